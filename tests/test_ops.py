"""What holds for the numbers of every op: accuracy, gradients, poison, determinism, memory."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from op_checks import (
    DTYPES,
    LAYOUTS,
    OPS,
    SHAPES,
    Shape,
    assert_accurate,
    assert_accurate_on_average,
    dtypes,
    evaluate,
    extra_for,
    log_mean_exp_op,
    needs_compiled,
    product_op,
    relative_errors,
    soft_op,
    truth_of,
    upstream,
)
from ssl_fast.benchmarks import measure
from ssl_fast.ops import checks, kernels
from ssl_fast.ops.product import INSTANCES, REDUCTIONS

pytestmark = needs_compiled

ODD = Shape(5, 33, 41, 5, 7)
SMALL = Shape(3, 4, 5, 2, 3)
TRAINING = Shape(16, 24, 512, 7, 7)


every_op = pytest.mark.parametrize("name", OPS)
every_dtype = dtypes(*DTYPES)


# ---- accuracy ----


@pytest.mark.grid
@every_op
@every_dtype
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_at_most_twice_that_of_eager(name, dtype, shape):
    op, shape = OPS[name], SHAPES[shape]
    assert_accurate(op, op.features(shape, dtype), extra_for(shape))


@every_op
def test_float32_error_at_a_training_shape_without_allowance(name):
    assert_accurate(OPS[name], OPS[name].features(TRAINING, torch.float32), extra_for(TRAINING), floor=False)


@every_op
def test_bfloat16_error_at_a_training_shape(name):
    """Far below that of eager: of the inputs, nothing is rounded to bfloat16 but the gradients."""
    op, extra = OPS[name], extra_for(TRAINING)
    features = op.features(TRAINING, torch.bfloat16)
    truth = truth_of(op, features, extra)
    errors, eager = (
        relative_errors(evaluate(op, features, extra, backend), truth) for backend in ("compiled", "reference")
    )
    factors = [0.1] * len(truth.outputs) + [0.75] * len(truth.gradients)
    assert all(e <= factor * other for e, other, factor in zip(errors, eager, factors, strict=True)), (errors, eager)


@every_op
def test_large_float16_features(name):
    """Lengths beyond the range of float16, where the eager reference gives zeros or worse."""
    op, extra = OPS[name], extra_for(ODD)
    features = [(15000 * x).clamp(-6e4, 6e4).half() for x in op.features(ODD)]
    assert all(x.double().norm(dim=1).max() > torch.finfo(torch.float16).max for x in features)
    truth, result = truth_of(op, features, extra), evaluate(op, features, extra)
    errors = relative_errors(result, truth)[: len(truth.outputs)]
    assert all(error < 20 * torch.finfo(torch.float32).eps for error in errors)
    assert all(x.isfinite().all() for x in result.tensors())


@every_op
def test_float16_lengths_at_the_ends_of_its_range(name):
    """Too short to have a gradient, just long enough, and longer than the largest number; in one image."""
    op, extra = OPS[name], extra_for(ODD)
    features = []
    for x in op.features(ODD):
        unit = torch.nn.functional.normalize(x, dim=1)
        lengths = torch.tensor([3e-4, 1e5, 1, 2e-5]).repeat(unit[:, 0].numel() // 4 + 1)[: unit[:, 0].numel()]
        features.append((unit * lengths.view(unit[:, :1].shape)).half())
    result = evaluate(op, features, extra)
    assert all(x.isfinite().all() for x in result.tensors())
    for x, gradient in zip(features, result.gradients, strict=True):
        short = x.double().norm(dim=1) < 2.0**-14
        assert short.any() and not gradient.movedim(1, -1)[short].any()
    if "max" not in name:  # equal cosines
        assert_accurate(op, features, extra)


@every_op
def test_reference_equals_the_equations(name):
    op, extra = OPS[name], extra_for(ODD)
    features = op.features(ODD)
    errors = relative_errors(evaluate(op, features, extra, "reference"), truth_of(op, features, extra))
    assert all(error < 1e-13 for error in errors)  # max() would pass over a NaN


# ---- extreme parameters, in each instruction set ----

SETS = checks.extension.instruction_sets() if checks.extension else []
EXTREMES = {
    f"soft-threshold {e} {b:g}": soft_op(e, b) for e in (-1.5, 0.45, 50) for b in (1e-20, 1e-4, 1e-2, 1e3, 1e20)
}
EXTREMES |= {f"log-mean-exp {t:g}": log_mean_exp_op(t) for t in (1e-20, 1e-4, 1e-2, 1.0, 1e3)}
EXTREMES |= {
    f"product {reduce} {instances} {t:g}": product_op(t, reduce, instances)
    for reduce in REDUCTIONS
    for instances in INSTANCES
    for t in (1e-20, 1e-4, 1e-2, 1e3, 1e20)
}


@pytest.mark.grid
@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("instruction_set", SETS)
@dtypes(*DTYPES)
def test_error_for_extreme_parameters(name, instruction_set, dtype, use_set):
    """Where all weights but one vanish, or none does; 1 - weight over beta; exponents beyond the range of float32."""
    use_set(instruction_set)
    assert_accurate_on_average(EXTREMES[name], Shape(12, 65, 33, 5, 7), dtype)


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("instruction_set", SETS)
@pytest.mark.parametrize("shape", [Shape(2, 3, 8, 128, 128), Shape(1, 5, 33, 100, 100), Shape(2, 5, 2048, 2, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_error_of_long_sums(name, instruction_set, shape, layout, use_set):
    """Over cells and channels: eager sums in a tree."""
    use_set(instruction_set)
    assert_accurate(OPS[name], OPS[name].features(shape, torch.float32, layout), extra_for(shape))


@pytest.mark.parametrize("name", ["soft-threshold", "max", "log-mean-exp", "similarity-and-map"])
@pytest.mark.parametrize(
    "dtype, layout",
    [(torch.float32, "contiguous"), (torch.float32, "channels-last"), (torch.bfloat16, "contiguous")],
    ids=["float32", "channels-last", "bfloat16"],
)
def test_more_audios_and_channels_than_the_cpu_kernels_take_at_once(name, dtype, layout):
    """Forward: three blocks of packed audios or more. Backward of the maximum: two of panels; on two threads groups of
    four, two and one image."""
    op, shape = OPS[name], Shape(11, 800, 1030, 2, 2)
    assert_accurate(op, op.features(shape, dtype, layout), extra_for(shape))


# ---- layouts ----

# With equal rows of cells it would be left to rounding which cell is the largest.
LAYOUT_CASES = [(n, x) for n in OPS for x in LAYOUTS if not ("max" in n and x == "expanded-rows")]


@pytest.mark.grid
@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("name, layout", LAYOUT_CASES)
def test_error_of_layouts(name, dtype, layout):
    op, extra = OPS[name], extra_for(ODD)
    features = op.features(ODD, dtype, layout)
    assert_accurate(op, features, extra)
    dense = evaluate(op, [x.contiguous() for x in features], extra)
    for got, want in zip(evaluate(op, features, extra).outputs, dense.outputs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@every_op
def test_gradients_have_the_layout_of_channels_last_features(name):
    op = OPS[name]
    result = evaluate(op, op.features(ODD, torch.float32, "channels-last"), extra_for(ODD))
    for gradient in result.gradients[: op.spaces]:
        assert gradient.is_contiguous(memory_format=torch.channels_last)


# ---- gradients ----


@every_op
def test_gradcheck(name):
    op, extra = OPS[name], extra_for(SMALL)
    features = [x.requires_grad_() for x in op.features(SMALL)]
    assert torch.autograd.gradcheck(lambda *x: op.call(*x, extra, "compiled"), features, atol=1e-7, rtol=1e-5)


class BackwardSizes(TorchDispatchMode):
    """Sizes of the tensors that backward ops return."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "ssl_fast" in str(function) and "backward" in str(function):
            self.sizes += [x.numel() for x in (result if isinstance(result, tuple) else (result,))]
        return result


@pytest.mark.grid
@every_op
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_subsets_of_requires_grad(name, layout):
    op, shape = OPS[name], Shape(6, 37, 20, 3, 5)
    extra, features = extra_for(shape), OPS[name].features(shape, torch.float32, layout)
    full = evaluate(op, features, extra)
    for count in range(1, len(features)):
        for wanted in itertools.combinations(range(len(features)), count):
            with BackwardSizes() as recorded:
                result = evaluate(op, features, extra, wanted=wanted)
            for got, want in zip(result.outputs, full.outputs, strict=True):
                assert torch.equal(got, want)
            for i in wanted:
                assert torch.equal(result.gradients[i], full.gradients[i]), (wanted, i)
            visual, audio = ({i for i in wanted if (i < op.spaces) == kind} for kind in (True, False))
            if not visual or not audio:  # the other kind of gradient is neither computed nor given memory
                unwanted = features[-1] if visual else features[0]
                assert unwanted.numel() not in recorded.sizes


@every_op
def test_no_gradient_wanted(name):
    op, extra = OPS[name], extra_for(ODD)
    features = op.features(ODD, torch.float32)
    full = evaluate(op, features, extra).outputs
    for got, want in zip(op.call(*features, extra, "compiled"), full, strict=True):
        assert not got.requires_grad and torch.equal(got, want)
    with torch.no_grad():
        assert not op.call(*[x.clone().requires_grad_() for x in features], extra, "compiled")[0].requires_grad


@every_op
def test_backward_twice(name):
    op, extra = OPS[name], extra_for(ODD)
    features = [x.requires_grad_() for x in op.features(ODD, torch.float32)]
    outputs = op.call(*features, extra, "compiled")
    first = torch.autograd.grad(outputs, features, upstream(outputs), retain_graph=True)
    second = torch.autograd.grad(outputs, features, upstream(outputs))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_op
def test_strided_and_expanded_upstream_gradients(name):
    op, extra = OPS[name], extra_for(ODD)
    features = [x.requires_grad_() for x in op.features(ODD, torch.float32)]
    outputs = op.call(*features, extra, "compiled")
    for make in (lambda x: torch.ones((), dtype=x.dtype).expand(x.shape), lambda x: upstream([x.mT])[0].mT):
        strided = [make(x) for x in outputs]
        dense = [x.clone(memory_format=torch.contiguous_format) for x in strided]
        want = torch.autograd.grad(outputs, features, dense, True)
        got = torch.autograd.grad(outputs, features, strided, True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", [name for name in OPS if "mean" not in name and "map" not in name])
@dtypes(torch.float32, torch.float64)
def test_budget_of_cached_alphas(name, dtype, monkeypatch):
    """Alphas cached for the backward pass, or for some images only, or computed again: the same to rounding."""
    op, extra = OPS[name], extra_for(ODD)
    features = op.features(ODD, dtype)
    default = evaluate(op, features, extra)
    lanes = checks.extension.panel(dtype == torch.float64)
    image = -(-ODD.audios // lanes) * lanes * ODD.height * ODD.width * (8 if dtype == torch.float64 else 4)
    for images in (0, 1, 3, 4):
        monkeypatch.setattr(kernels, "CACHED_ALPHA_BYTES", images * image)
        alphas = kernels.empty_cache(features[0], ODD.audios, True)
        assert kernels.cached_images(alphas, features[0], ODD.audios) == images
        result = evaluate(op, features, extra)
        assert all(torch.equal(a, b) for a, b in zip(result.outputs, default.outputs, strict=True))
        for got, want in zip(result.gradients, default.gradients, strict=True):
            error = (got - want).norm() / want.norm()
            assert error < 20 * torch.finfo(dtype).eps, f"{images} images kept: {error}"


def test_budget_of_cached_alphas_on_cuda(monkeypatch):
    name = "SSL_FAST_CUDA_CACHE_MIB"
    monkeypatch.delenv(name, raising=False)
    assert kernels._cuda_cache_bytes() == 256 * 2**20
    for text, size in (("0", 0), ("12", 12 * 2**20)):
        monkeypatch.setenv(name, text)
        assert kernels._cuda_cache_bytes() == size
    for text in ("", "-1", "1.5", "many"):
        monkeypatch.setenv(name, text)
        with pytest.raises(ValueError, match=f"{name}: expected a whole number of MiB >= 0, got {text!r}"):
            kernels._cuda_cache_bytes()


# ---- poison, zeros, nothing ----


def reach(name, feature):
    """Which scores a bad value in a feature of image 1 or audio 2 reaches: its row, its column or all."""
    op = OPS[name]
    visual, avc = feature < op.spaces, op.spaces == 2 and feature % 2 == 1
    if op.paired:
        return (1 if visual else 2), slice(None)
    if avc and visual == ("image" in name):
        return slice(None), slice(None)
    return (1, slice(None)) if visual else (slice(None), 2)


@pytest.mark.grid
@pytest.mark.parametrize("name, feature", [(name, i) for name, op in OPS.items() for i in range(2 * op.spaces)])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@dtypes(torch.float32, torch.bfloat16, torch.float64)
def test_poison_reaches_only_its_own_pairs(name, feature, poison, dtype):
    op, shape = OPS[name], Shape(4, 35, 33, 3, 5)
    extra, features = extra_for(shape), op.features(shape, dtype)
    clean = op.call(*features, extra, "compiled")[0]
    if feature < op.spaces:
        features[feature][1, 7] = poison  # a channel of all cells, as the mask may hide one
    else:
        features[feature][2, 7] = poison
    got = op.call(*features, extra, "compiled")[0]
    hit = torch.zeros(got.shape, dtype=torch.bool)
    hit[reach(name, feature)] = True
    assert got[hit].isnan().all()
    assert torch.equal(got[~hit], clean[~hit])


@pytest.mark.grid
@pytest.mark.parametrize("name", [name for name in OPS if name not in ("masked-mean", "cosine-map")])
@pytest.mark.parametrize("cell", [0, 7, 14])
def test_poison_in_one_cell_is_enough(name, cell):
    op, shape = OPS[name], Shape(3, 5, 9, 3, 5)
    features = op.features(shape, torch.float32)
    features[0].flatten(2)[1, 4, cell] = float("nan")
    scores = op.call(*features, extra_for(shape), "compiled")[0]
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()


@pytest.mark.grid
@every_op
@every_dtype
def test_zero_vectors(name, dtype):
    """A zero vector has cosine 0 with everything, and no gradient."""
    op, shape = OPS[name], Shape(4, 35, 33, 3, 5)
    extra, features = extra_for(shape), op.features(shape, dtype)
    for i, x in enumerate(features):
        if i < op.spaces:
            x[2] = 0
            x[0, :, 1, 3] = 0
        else:
            x[3] = 0
    if "max" not in name:  # equal cosines
        assert_accurate(op, features, extra)
    result = evaluate(op, features, extra)
    assert all(x.isfinite().all() for x in result.tensors())
    for i, gradient in enumerate(result.gradients):
        assert not (gradient[2] if i < op.spaces else gradient[3]).any()
        assert i >= op.spaces or not gradient[0, :, 1, 3].any()
    if op.spaces == 1 and not op.paired:
        assert not result.outputs[0][2].any() and not result.outputs[0][:, 3].any()


# An image without an audio of its own is an error of that op, in test_similarity.py.
EMPTY = [(n, x) for n in OPS for x in ((0, 3), (3, 0), (0, 0)) if not (n == "similarity-and-map" and x == (3, 0))]


@pytest.mark.grid
@pytest.mark.parametrize("name, size", EMPTY)
@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_empty_batches(name, size, backend, layout):
    op, (images, audios) = OPS[name], size
    shape = Shape(images, audios, 5, 2, 3)
    if op.paired:
        shape = shape._replace(images=0)
    visual, audio = torch.ones(shape.images, 5, 2, 3), torch.ones(0 if op.paired else audios, 5)
    features = [LAYOUTS[layout](x) for x in (visual,) * op.spaces + (audio,) * op.spaces]
    extra = extra_for(shape._replace(audios=max(audios, 1)))
    result = evaluate(op, features, extra, backend)
    assert result.outputs[0].shape == ((0, 2, 3) if op.paired else (images, audios))
    for gradient, feature in zip(result.gradients, features, strict=True):
        assert gradient.shape == feature.shape and gradient.dtype == feature.dtype and not gradient.any()


@pytest.mark.grid
@every_op
@every_dtype
def test_no_output_is_left_uninitialised(name, dtype):
    """torch fills fresh memory with NaN in its deterministic mode."""
    torch.use_deterministic_algorithms(True)
    try:
        for shape in (ODD, Shape(2, 5, 3, 1, 1)):
            result = evaluate(OPS[name], OPS[name].features(shape, dtype), extra_for(shape))
            assert all(x.isfinite().all() for x in result.tensors())
    finally:
        torch.use_deterministic_algorithms(False)


# ---- memory ----


def peak_of(name, images, audios, size, budget):
    kernels.CACHED_ALPHA_BYTES = budget
    torch.set_num_threads(1)
    op, shape = OPS[name], Shape(images, audios, 8, size, size)
    extra, features = extra_for(shape), op.features(shape, torch.float32)
    evaluate(
        op,
        [x[:1].clone() for x in features[: op.spaces]] + features[op.spaces :],
        type(extra)(extra.mask[:1], extra.positives[:1]),
    )
    return measure.peak_resident(lambda: tuple(evaluate(op, features, extra).tensors()))


@pytest.mark.grid
@pytest.mark.parametrize("name", ["soft-threshold", "max", "mean", "product-sum-audio", "product-sum-image"])
def test_peak_memory_does_not_hold_a_map_of_all_pairs(name):
    images, audios, size = 512, 256, 14
    every_pair = images * audios * size * size * 4  # bytes
    peak = measure.in_fresh_process(peak_of, name, images, audios, size, 0)
    assert 0 < peak < every_pair / 8, f"{peak / 2**20:.1f} MiB; a map of all pairs holds {every_pair / 2**20:.1f} MiB"
