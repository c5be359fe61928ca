"""The ops as citizens of torch: torch.library, torch.compile, autocast, checkpointing, double backward."""

import shutil
import types
import warnings

import pytest
import torch
import torch._dynamo.testing
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from op_checks import OPS, Shape, evaluate, extra_for, needs_compiled, relative_errors, truth_of, upstream
from ssl_fast import ops
from ssl_fast.ops import checks, kernels
from test_losses import SQUARE_LOSSES

pytestmark = needs_compiled

SHAPE = Shape(4, 5, 6, 2, 3)
every_op = pytest.mark.parametrize("name", OPS)


# ---- torch.library ----


def arguments(dtype, layout):
    def visual():
        return torch.randn(4, 6, 2, 3, dtype=dtype).contiguous(memory_format=layout)

    def audio(rows=5):
        return torch.randn(rows, 6, dtype=dtype)

    similarity = [
        ("soft_threshold", [0.4, 0.1], True, positives, cached, 1)
        for positives in (None, torch.tensor([1, 0, 4, 4]))
        for cached in (False, True)
    ]
    maxima = [("max", [], normalized, None, False, 1) for normalized in (True, False)]
    clips = [torch.randn(5, 6, 4, dtype=dtype), torch.randn(5, 4, 6, dtype=dtype).transpose(1, 2)]
    by_head = [("max", [], False, None, False, 3), ("soft_threshold", [0.4, 0.1], False, None, True, 2)]
    weight = torch.rand(4, 6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    return {
        "pooled_similarity": [
            *((visual(), audio(), *rest) for rest in [*similarity, *maxima]),
            *((visual(), clip, *rest) for clip in clips for rest in by_head),
        ],
        "product_log_scores": [
            (visual(), visual(), audio(), audio(), 0.1, *rest)
            for rest in (("sum", "audio", True), ("max", "audio", False), ("sum", "image", True))
        ],
        "mean_direction": [(visual(), None), (visual(), weight)],
        "cosine_map": [(visual(), audio(4))],
        "cross_entropy": [
            (torch.rand(4, 6), maps, y, True, columns, 0.1, 0.2, 0.4, 0.1, True)
            for maps, y, columns in (
                (None, None, True),
                (torch.rand(4, 6), torch.tensor([1, 0, 5, 4]), False),
                (torch.rand(4, 6), None, True),
            )
        ],
        "pooled_row_loss": [
            (visual(), audio(), torch.tensor([1, 0, 4, 4]), "soft_threshold", [0.4, 0.1], 0.1, 0.2, *rest)
            for rest in (([], True, True), ([0.4, 0.1], True, True))
        ],
        "product_row_loss": [
            (visual(), visual(), audio(), audio(), torch.tensor([1, 0, 4, 4]), 0.1, *rest)
            for rest in (("sum", True, True), ("max", True, True))
        ],
        "late_interaction": [(visual(), clip, *rest) for clip in clips for rest in ((True, 1), (False, 2))],
    }


NAMES = ["pooled_similarity", "product_log_scores", "mean_direction", "cosine_map"]
LIBRARY_OPS = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("name", [*NAMES, "late_interaction", "cross_entropy", "pooled_row_loss", "product_row_loss"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16-channels-last"])
def test_opcheck(name, kind):
    dtype = getattr(torch, kind.split("-")[0])
    layout = torch.channels_last if "last" in kind else torch.contiguous_format
    differentiable = {"mean_direction": 1, "cross_entropy": 2, "pooled_row_loss": 2}.get(name, 4)
    op = getattr(torch.ops.ssl_fast, name).default
    for args in arguments(dtype, layout)[name][:: 1 if dtype == torch.float32 else 2]:
        for x in args[:differentiable]:
            if isinstance(x, torch.Tensor):
                x.requires_grad_()
        torch.library.opcheck(op, args)


def backward_arguments(name, dtype):
    for args in arguments(dtype, torch.channels_last)[name]:
        saved = getattr(torch.ops.ssl_fast, name)(*args)
        grad = torch.randn_like(saved[0])
        if name == "pooled_similarity":
            visual, audio, kind, parameters, normalized, positives, _, heads = args
            grad_map = None if positives is None else torch.randn_like(saved[1])
            for needs in ((True, True), (False, True)):
                yield grad, grad_map, visual, audio, kind, parameters, normalized, positives, *saved, *needs, heads
        elif name == "product_log_scores":
            for needs in ((True, True), (True, False)):
                yield grad, *args[:-1], list(saved), *needs
        elif name == "mean_direction":
            yield grad, *args, saved[1]
        else:
            yield grad, *args, *saved, True, True


@LIBRARY_OPS
def test_opcheck_of_backward_ops(name):
    for args in backward_arguments(name, torch.bfloat16):
        torch.library.opcheck(getattr(torch.ops.ssl_fast, name + "_backward").default, args)


# ---- calls that torch has to see, and others, which go past its dispatcher ----


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "ssl_fast":
            self.seen.add(function._opname)
        return function(*args, **kwargs or {})


@every_op
def test_a_watched_call_is_one_of_the_op_and_gives_the_same_bits(name):
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    want = evaluate(op, features, extra).tensors()
    with Watch() as watch:
        got = evaluate(op, features, extra).tensors()
    forward = min(watch.seen)
    assert forward in NAMES and watch.seen == {forward, forward + "_backward"}
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@every_op
def test_an_unwatched_call_is_not_dispatched(name, monkeypatch):
    def dispatched(*_):
        raise AssertionError("dispatched")

    monkeypatch.setattr(torch.library.CustomOpDef, "__call__", dispatched)
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    evaluate(op, features, extra)
    with Watch(), pytest.raises(AssertionError, match="dispatched"):
        evaluate(op, features, extra)


def test_a_traced_graph_has_the_op():
    visual, audio = OPS["max"].features(SHAPE, torch.float32)
    graph = make_fx(lambda visual, audio: ops.pooled_similarity(visual, audio, ops.Max()))(visual, audio)
    assert torch.ops.ssl_fast.pooled_similarity.default in {node.target for node in graph.graph.nodes}
    torch.testing.assert_close(graph(-visual, audio), ops.pooled_similarity(-visual, audio, ops.Max()), rtol=0, atol=0)


@every_op
def test_tensors_that_are_not_what_their_memory_holds(name):
    """Numbers whose sign is yet to be changed, and gradients of zeros without memory."""
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE)
    turned = [torch.complex(x, -x).conj().imag for x in features]
    assert all(x.is_neg() for x in turned)
    want, got = evaluate(op, features, extra), evaluate(op, turned, extra)
    assert all(torch.equal(a, b) for a, b in zip(got.tensors(), want.tensors(), strict=True))
    features = [x.requires_grad_() for x in features]
    outputs = op.call(*features, extra, "compiled")
    zeros = [torch._efficientzerotensor(x.shape, dtype=x.dtype) for x in outputs]
    assert not any(x.any() for x in torch.autograd.grad(outputs, features, zeros))


@every_op
def test_features_without_a_kernel_are_refused(name):
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    with pytest.raises(NotImplementedError, match="ssl_fast.*SparseCPU"):
        op.call(features[0].to_sparse(), *features[1:], extra, "compiled")


# ---- transforms: by plain PyTorch ----


def loss_and_features(name):
    """A function of the features that weighs all outputs of an op, the features, and a tangent for each."""
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE)
    weights = upstream(op.call(*features, extra, "compiled"))

    def loss(*features, backend="auto"):
        return dot((x.square() for x in op.call(*features, extra, backend)), weights)

    return loss, features, op.features(SHAPE, seed=7)


def gradients_of(loss, features):
    """By the kernels."""
    features = [x.detach().requires_grad_() for x in features]
    return torch.autograd.grad(loss(*features, backend="compiled"), features)


def dot(xs, ys):
    return sum((x * y).sum() for x, y in zip(xs, ys, strict=True))


def dual(function, primals, tangents):
    with torch.autograd.forward_ad.dual_level():
        return torch.autograd.forward_ad.unpack_dual(
            function(*map(torch.autograd.forward_ad.make_dual, primals, tangents))
        ).tangent


@every_op
def test_forward_mode_derivatives(name):
    """Along a tangent: the product of the kernels' gradient with it."""
    loss, features, tangents = loss_and_features(name)
    want = dot(gradients_of(loss, features), tangents)
    for got in (torch.func.jvp(loss, tuple(features), tuple(tangents))[1], dual(loss, features, tangents)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_forward_mode_derivatives_in_a_compiled_graph():
    loss, features, tangents = loss_and_features("soft-threshold")
    torch._dynamo.reset()
    derivative = torch.compile(
        lambda *both: torch.func.jvp(loss, both[:2], both[2:])[1], fullgraph=True, backend="aot_eager"
    )
    want = dot(gradients_of(loss, features), tangents)
    torch.testing.assert_close(derivative(*features, *tangents), want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SQUARE_LOSSES)
def test_forward_mode_derivatives_of_losses(name):
    def loss(*features, backend="auto"):
        return SQUARE_LOSSES[name](*features, backend=backend)

    shape = SHAPE._replace(audios=SHAPE.images)
    features, tangents = (OPS["max"].features(shape, seed=seed) for seed in (0, 7))
    want = dot(gradients_of(loss, features), tangents)
    for got in (torch.func.jvp(loss, tuple(features), tuple(tangents))[1], dual(loss, features, tangents)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@every_op
def test_torch_func_grad_and_vmap(name):
    loss, features, _ = loss_and_features(name)
    numbers = tuple(range(len(features)))
    for got, want in zip(torch.func.grad(loss, numbers)(*features), gradients_of(loss, features), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    several = [torch.stack([x, -x, x.flip(0)]) for x in features]
    for i, got in enumerate(zip(*torch.func.vmap(torch.func.grad(loss, numbers))(*several), strict=True)):
        for found, want in zip(got, gradients_of(loss, [x[i] for x in several]), strict=True):
            torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)


@every_op
def test_derivatives_of_gradients(name):
    """Forward over reverse mode, and reverse over reverse mode: differences of the kernels' gradients."""
    loss, features, tangents = loss_and_features(name)
    numbers, step = tuple(range(len(features))), 1e-6
    plus, minus = (gradients_of(loss, [x + sign * step * t for x, t in zip(features, tangents)]) for sign in (1, -1))
    want = [(a - b) / (2 * step) for a, b in zip(plus, minus, strict=True)]
    forward = torch.func.jvp(torch.func.grad(loss, numbers), tuple(features), tuple(tangents))[1]
    reverse = torch.func.grad(lambda *x: dot(torch.func.grad(loss, numbers)(*x), tangents), numbers)(*features)
    for got in (forward, reverse):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


@every_op
def test_gradients_of_several_upstream_gradients_at_once(name):
    op, extra = OPS[name], extra_for(SHAPE)
    features = [x.requires_grad_() for x in op.features(SHAPE)]
    outputs = op.call(*features, extra, "compiled")
    several = [torch.stack([x, -2 * x, x.flip(0)]) for x in upstream(outputs)]
    if op.spaces == 2:  # torch does not batch ops that take lists
        with pytest.raises(
            RuntimeError, match="Batching rule not implemented for ssl_fast::product_log_scores_backward"
        ):
            torch.autograd.grad(outputs, features, several, is_grads_batched=True)
        return
    got = torch.autograd.grad(outputs, features, several, retain_graph=True, is_grads_batched=True)
    for i in range(3):
        want = torch.autograd.grad(outputs, features, [x[i] for x in several], retain_graph=True)
        assert all(torch.equal(a[i], b) for a, b in zip(got, want, strict=True))


@every_op
def test_transforms_of_the_kernels_themselves_are_refused(name, set_extension):
    loss, features, tangents = loss_and_features(name)
    numbers = tuple(range(len(features)))

    def compiled_loss(*x):
        return loss(*x, backend="compiled")

    for transformed in (
        lambda: torch.func.jvp(compiled_loss, tuple(features), tuple(tangents)),
        lambda: dual(compiled_loss, features, tangents),
        lambda: torch.func.grad(compiled_loss, numbers)(*features),
        lambda: torch.func.vmap(compiled_loss)(*(x[None] for x in features)),
    ):
        with pytest.raises(RuntimeError, match="backend='compiled': the kernels have .* no rule for forward-mode"):
            transformed()
    with pytest.warns(RuntimeWarning, match="ssl_fast: transformed calls run plain PyTorch: the kernels have"):
        torch.func.grad(loss)(*features)


# ---- torch.compile ----


def compiled(op, **options):
    torch._dynamo.reset()
    return torch.compile(lambda features, extra: op.call(*features, extra, "auto"), fullgraph=True, **options)


def results(function, features, extra):
    features = [x.detach().requires_grad_() for x in features]
    outputs = function(features, extra)
    return [*outputs, *torch.autograd.grad(outputs, features, upstream(outputs))]


@every_op
def test_compiled_graph_gives_the_same(name):
    op, extra = OPS[name], extra_for(SHAPE)
    function = compiled(op, backend="aot_eager")
    for dtype in (torch.float32, torch.bfloat16):
        features = op.features(SHAPE, dtype)
        want = evaluate(op, features, extra, "auto").tensors()
        for got, expected in zip(results(function, features, extra), want, strict=True):
            assert got.dtype == expected.dtype
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("instruction_set", checks.extension.instruction_sets() if checks.extension else [])
def test_compiled_graph_with_dynamic_batches(name, instruction_set, monkeypatch, use_set):
    """Few graphs for all batch sizes, where alphas are kept for all images or for some, and of one panel or more."""
    use_set(instruction_set)
    op = OPS[name]
    monkeypatch.setattr(kernels, "CACHED_ALPHA_BYTES", 3 * 64 * 6 * 4)  # 64 audios of 3 images
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(lambda features, extra: op.call(*features, extra, "auto"), fullgraph=True, backend=counter)
    for images, audios in ((4, 5), (7, 9), (6, 34), (3, 70), (5, 100), (9, 40)):
        shape = SHAPE._replace(images=images, audios=images if op.paired else audios)
        extra, features = extra_for(shape), op.features(shape, torch.float32)
        features = [x.requires_grad_() for x in features]
        for x in (*features, *(t for t in extra if name in ("masked-mean", "similarity-and-map"))):
            torch._dynamo.maybe_mark_dynamic(x, 0)
        outputs = function(features, extra)
        got = [*outputs, *torch.autograd.grad(outputs, features, upstream(outputs))]
        for found, expected in zip(got, evaluate(op, features, extra, "auto").tensors(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert counter.frame_count <= 4


def test_compiled_graph_without_kernels_warns_once(set_extension):
    """The module and the warning filters are asked while the graph is traced, without a break."""
    op, extra = OPS["max"], extra_for(SHAPE)
    set_extension(None)
    function = compiled(op, backend="aot_eager")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            features = op.features(SHAPE, dtype)
            got, want = results(function, features, extra)[0], op.call(*features, extra, "reference")[0]
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    assert len([x for x in found if "ssl_fast: all ops run plain" in str(x.message)]) == 1

    asked = []
    set_extension(
        types.SimpleNamespace(
            cuda_architectures="80",
            cuda_error=lambda index: (
                asked.append(index) or ("cudaErrorInsufficientDriver", "busy or unavailable", 13000, 0)
            ),
        )
    )
    function = torch.compile(lambda x: x + checks.has_kernels("auto", "cuda", 1), fullgraph=True, backend="eager")
    with pytest.warns(RuntimeWarning, match="no kernel loads on cuda:1: busy or unavailable"):
        assert [function(torch.zeros(n)).sum() for n in (2, 3, 4)] == [0, 0, 0]
    assert asked == [1]
    function = torch.compile(lambda x: x + checks.has_kernels("compiled", "cuda", 1), fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="backend='compiled': no kernel loads on cuda:1"):
        function(torch.zeros(2))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's inductor needs a C++ compiler")
def test_compiled_by_inductor():
    shape = Shape(4, 6, 16, 3, 3)

    def loss(visual, audio, mask):
        scores = ops.pooled_similarity(visual.relu(), audio, ops.SoftThreshold()) / 0.07
        scores = scores + ops.pooled_similarity(visual, audio, ops.Mean(mask))
        scores = scores * ops.pooled_similarity(visual, audio, ops.Max())
        scores = scores + ops.product_log_scores(visual, visual.relu(), audio, audio.sigmoid(), tau=0.1)
        return torch.logsumexp(scores, 1).sum() + ops.cosine_map(visual, audio[:4]).square().sum()

    visual, audio = (x.requires_grad_() for x in OPS["max"].features(shape, torch.float32, "channels-last"))
    mask = extra_for(shape).mask
    want = torch.autograd.grad(loss(visual, audio, mask), (visual, audio))
    torch._dynamo.reset()
    got = torch.autograd.grad(torch.compile(loss, fullgraph=True)(visual, audio, mask), (visual, audio))
    for found, expected in zip(got, want, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)


def test_compiled_graph_under_autocast():
    op, extra = OPS["soft-threshold"], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        want = evaluate(op, features, extra, "auto").tensors()
        got = results(compiled(op, backend="aot_eager"), features, extra)
    for found, expected in zip(got, want, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_empty_mask_in_a_compiled_graph_gives_nan():
    """A compiled graph cannot raise an error that depends on values."""
    visual, audio = OPS["max"].features(SHAPE, torch.float32)
    mask = torch.ones(4, 2, 3)
    mask[2] = 0

    def function(visual, audio, mask):
        return ops.pooled_similarity(visual, audio, ops.Mean(mask))

    scores = torch.compile(function, fullgraph=True, backend="aot_eager")(visual, audio, mask)
    assert scores[2].isnan().all() and scores[[0, 1, 3]].isfinite().all()


# ---- autocast ----


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_autocast_rounds_unit_vectors_and_nothing_else(name, backend):
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    mixed = [x.bfloat16() if i % 2 else x for i, x in enumerate(features)]  # as when one network ran under autocast
    rounded = [x if x.dtype == torch.bfloat16 else torch.nn.functional.normalize(x, dim=1).bfloat16() for x in mixed]
    want = evaluate(op, rounded, extra, backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(op, mixed, extra, backend)
    for found, expected in zip(got.outputs, want.outputs, strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-2 if backend == "reference" else 1e-6, atol=1e-7)
    assert [x.dtype for x in got.gradients] == [x.dtype for x in mixed]


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 1e5, 1e-8])
def test_autocast_takes_lengths_in_float32(name, dtype, scale):
    """Lengths beyond the range of float16: at most twice the error of F.normalize and a product in 16 bits."""
    op, shape = OPS[name], Shape(4, 5, 32, 3, 5)
    extra, features = extra_for(shape), [scale * x for x in op.features(shape, torch.float32)]

    def eager(*features):
        units = [torch.nn.functional.normalize(x, dim=1).to(dtype) for x in features[:-2]]
        return op.call(*units, *features[-2:])

    truth = truth_of(op, features, extra)
    expected = relative_errors(evaluate(op._replace(call=eager), features, extra, "reference"), truth)
    with torch.autocast("cpu", dtype):
        result = evaluate(op, features, extra)
    assert all(x.dtype == torch.float32 for x in result.tensors())
    for error, other in zip(relative_errors(result, truth), expected, strict=True):
        assert error <= 2 * other + 0.1 * torch.finfo(dtype).eps


@every_op
def test_autocast_leaves_float64_alone(name):
    op, extra = OPS[name], extra_for(SHAPE)
    want = evaluate(op, op.features(SHAPE), extra)
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(op, op.features(SHAPE), extra)
    assert all(torch.equal(a, b) for a, b in zip(got.tensors(), want.tensors(), strict=True))


def test_autocast_of_a_network():
    """Parameters get float32 gradients."""
    network, head = torch.nn.Conv2d(3, 16, 3), torch.nn.Linear(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        visual, audio = network(torch.randn(3, 3, 6, 6)), head(torch.randn(5, 4))
        scores = ops.pooled_similarity(visual, audio.float(), ops.Max())
    scores.logsumexp(1).sum().backward()
    for parameter in (*network.parameters(), *head.parameters()):
        assert parameter.grad.dtype == torch.float32 and parameter.grad.any()


# ---- autograd ----


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("budget", [0, kernels.CACHED_ALPHA_BYTES])
def test_activation_checkpointing(name, reentrant, budget, monkeypatch):
    monkeypatch.setattr(kernels, "CACHED_ALPHA_BYTES", budget)
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE, torch.float32)
    want = evaluate(op, features, extra).tensors()

    def function(features, extra):
        return checkpoint(lambda *x: op.call(*x, extra, "compiled"), *features, use_reentrant=reentrant)

    features = [x.detach().requires_grad_() for x in features]
    outputs = function(features, extra)
    torch.autograd.backward(outputs, upstream(outputs))
    for got, expected in zip([*outputs, *(x.grad for x in features)], want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@every_op
def test_double_backward_is_refused(name):
    op, extra = OPS[name], extra_for(SHAPE)
    features = [x.requires_grad_() for x in op.features(SHAPE)]
    outputs = op.call(*features, extra, "compiled")
    first = torch.autograd.grad(outputs, features, upstream(outputs), create_graph=True)
    with pytest.raises(RuntimeError, match="ssl_fast.*no autograd formula was registered"):
        first[0].square().sum().backward()


@every_op
def test_gradients_add_up_over_uses(name):
    """Features that are used twice."""
    op, extra = OPS[name], extra_for(SHAPE)
    features = op.features(SHAPE)
    once = evaluate(op, features, extra).gradients
    features = [x.requires_grad_() for x in features]
    for _ in range(2):
        outputs = op.call(*features, extra, "compiled")
        torch.autograd.backward(outputs, upstream(outputs))
    for x, gradient in zip(features, once, strict=True):
        torch.testing.assert_close(x.grad, 2 * gradient, rtol=1e-12, atol=0)


@every_op
def test_changing_features_before_the_backward_pass_is_an_error(name):
    op, extra = OPS[name], extra_for(SHAPE)
    features = [x.requires_grad_() for x in op.features(SHAPE, torch.float32)]
    visual = features[0] * 1
    outputs = op.call(visual, *features[1:], extra, "compiled")
    with torch.no_grad():
        visual.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(outputs, features, upstream(outputs))
