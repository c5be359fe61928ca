"""SLAVC's product of softmaxes: explicit probabilities, identities, extreme temperatures."""

import math

import pytest
import torch

from op_checks import Shape, assert_accurate, dtypes, evaluate, extra_for, needs_compiled, product_op
from ssl_fast import ops
from ssl_fast.ops.product import INSTANCES, REDUCTIONS

SHAPE = Shape(4, 37, 12, 3, 5)


def for_every_option(test):
    return pytest.mark.parametrize("reduce", REDUCTIONS)(pytest.mark.parametrize("instances", INSTANCES)(test))


def features(dtype=torch.float64, seed=0, shape=SHAPE):
    return product_op().features(shape, dtype, seed=seed)


def cosine(x, y):
    product = sum(a * b for a, b in zip(x, y, strict=True))
    return product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


@for_every_option
def test_explicit_probabilities(reduce, instances, backend):
    """Loops over pairs and cells with probabilities, not their logarithms."""
    shape, tau = Shape(3, 4, 3, 1, 2), 0.3
    tensors = features(shape=shape)
    visual_loc, visual_avc = (x.flatten(2).transpose(1, 2).tolist() for x in tensors[:2])
    audio_loc, audio_avc = (x.tolist() for x in tensors[2:])
    scores = ops.product_log_scores(*tensors, tau=tau, reduce=reduce, instances=instances, backend=backend)

    def exp_avc(n, m, p):
        return math.exp(cosine(visual_avc[n][p], audio_avc[m]) / tau)

    for n in range(3):
        for m in range(4):
            products = []
            for p in range(2):
                others = [(n, k) for k in range(4)] if instances == "audio" else [(k, m) for k in range(3)]
                instance = exp_avc(n, m, p) / sum(exp_avc(*other, p) for other in others)
                loc = [math.exp(cosine(visual_loc[n][k], audio_loc[m]) / tau) for k in range(2)]
                products.append(instance * loc[p] / sum(loc))
            want = sum(products) if reduce == "sum" else max(products)
            assert scores[n, m].exp().item() == pytest.approx(want, rel=1e-12)


def test_probabilities_of_one_place_add_up_to_one(backend):
    """Where all audios have one softmax over space, the scores of an image are a distribution; and vice versa."""
    visual_loc, visual_avc, audio_loc, audio_avc = features()
    same = audio_loc[:1].expand(37, -1)
    scores = ops.product_log_scores(visual_loc, visual_avc, same, audio_avc, tau=0.1, backend=backend)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-13)
    same = visual_loc[:1].expand(4, -1, -1, -1)
    scores = ops.product_log_scores(same, visual_avc, audio_loc, audio_avc, tau=0.1, instances="image", backend=backend)
    torch.testing.assert_close(scores.exp().sum(0), torch.ones(37, dtype=torch.float64), rtol=0, atol=1e-13)


def test_one_instance_is_certain(backend):
    """A softmax over one audio is 1, and what is left is a softmax over space."""
    visual_loc, visual_avc, audio_loc, audio_avc = features()
    arguments = visual_loc, visual_avc, audio_loc[:1], audio_avc[:1]
    scores = ops.product_log_scores(*arguments, tau=0.05, backend=backend)
    assert scores.abs().max() < 1e-13
    scores = ops.product_log_scores(*arguments, tau=0.05, reduce="max", backend=backend)
    maps = ops.cosine_map(visual_loc, audio_loc[:1].expand(4, -1), backend="reference").flatten(1)
    torch.testing.assert_close(scores[:, 0], (maps / 0.05).log_softmax(1).max(1).values, rtol=1e-12, atol=1e-13)


@for_every_option
def test_one_cell_is_a_softmax_over_instances(reduce, instances, backend):
    visual_loc, visual_avc, audio_loc, audio_avc = features(shape=SHAPE._replace(height=1, width=1))
    scores = ops.product_log_scores(
        visual_loc, visual_avc, audio_loc, audio_avc, tau=0.05, reduce=reduce, instances=instances, backend=backend
    )
    maps = ops.pooled_similarity(visual_avc, audio_avc, ops.Max(), backend="reference")
    want = (maps / 0.05).log_softmax(1 if instances == "audio" else 0)
    torch.testing.assert_close(scores, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("instances", ["audio", "image"])
def test_sum_and_max_bound_each_other(instances, backend):
    tensors, options = features(), {"tau": 0.07, "instances": instances, "backend": backend}
    total = ops.product_log_scores(*tensors, **options)
    largest = ops.product_log_scores(*tensors, reduce="max", **options)
    assert (largest <= total).all() and (total <= largest + math.log(15)).all() and (total <= 1e-13).all()


@for_every_option
def test_a_large_tau_knows_nothing(reduce, instances, backend):
    tensors = features(torch.float32)
    scores = ops.product_log_scores(*tensors, tau=1e6, reduce=reduce, instances=instances, backend=backend)
    want = -math.log(37 if instances == "audio" else 4) - (math.log(15) if reduce == "max" else 0)
    torch.testing.assert_close(scores, torch.full((4, 37), want), rtol=0, atol=2e-5)


@pytest.mark.grid
@for_every_option
@pytest.mark.parametrize("tau", [0.03, 1.0, 1e3])
@dtypes(torch.float32, torch.bfloat16, torch.float64)
@needs_compiled
def test_error_for_other_temperatures(reduce, instances, tau, dtype):
    op, shape = product_op(tau, reduce, instances), Shape(6, 40, 96, 7, 7)
    assert_accurate(op, op.features(shape, dtype), extra_for(shape))


@for_every_option
@pytest.mark.parametrize("tau", [1e-4, 1e-3, 1e4])
@needs_compiled
def test_extreme_temperatures_stay_finite(reduce, instances, tau):
    """With tau = 1e-3 log probabilities reach -2000: far more than the range of exp."""
    op, shape = product_op(tau, reduce, instances), Shape(5, 33, 16, 4, 4)
    result = evaluate(op, op.features(shape, torch.float32), extra_for(shape))
    assert all(x.isfinite().all() for x in result.tensors())
    assert (result.outputs[0] <= 1e-4).all()


@for_every_option
@needs_compiled
def test_powers_of_two_change_no_bit(reduce, instances):
    op, shape = product_op(0.05, reduce, instances), Shape(5, 33, 16, 4, 4)
    tensors = op.features(shape, torch.float32)
    scales = [2.0**12, 2.0**-12, 2.0**-5, 2.0**7]
    want = evaluate(op, tensors, extra_for(shape))
    got = evaluate(op, [x * scale for x, scale in zip(tensors, scales, strict=True)], extra_for(shape))
    assert torch.equal(got.outputs[0], want.outputs[0])
    for a, b, scale in zip(got.gradients, want.gradients, scales, strict=True):
        assert torch.equal(a * scale, b)


@for_every_option
@needs_compiled
def test_order_of_images_and_audios(reduce, instances):
    tensors = features(torch.float32)
    images, audios = torch.tensor([2, 0, 3, 1]), torch.randperm(37, generator=torch.Generator().manual_seed(1))
    options = {"tau": 0.07, "reduce": reduce, "instances": instances}
    want = ops.product_log_scores(*tensors, **options)[images][:, audios]
    shuffled = [x[images] for x in tensors[:2]] + [x[audios] for x in tensors[2:]]
    got = ops.product_log_scores(*shuffled, **options)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)


@needs_compiled
def test_both_spaces_may_be_one():
    """The same features in both places: gradients add up."""
    visual, audio = (x.requires_grad_() for x in features()[::2])
    grads = []
    for backend in ("compiled", "reference"):
        scores = ops.product_log_scores(visual, visual, audio, audio, tau=0.1, backend=backend)
        grads.append(torch.autograd.grad(scores.square().sum(), (visual, audio)))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layouts", [("contiguous", "channels_last"), ("channels_last", "contiguous")])
@needs_compiled
def test_spaces_of_different_layouts(layouts):
    op = product_op()
    tensors = features(torch.float32)
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    mixed = [x.contiguous(memory_format=formats[layout]) for x, layout in zip(tensors, layouts)] + tensors[2:]
    assert_accurate(op, mixed, extra_for(SHAPE))
