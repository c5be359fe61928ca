"""Pooled similarity: closed forms, the poolings' limits, and the map of the positive pair beside the scores."""

import math

import pytest
import torch

from op_checks import (
    BETA,
    DTYPES,
    EPSILON,
    Shape,
    assert_accurate,
    dtypes,
    extra_for,
    needs_compiled,
    planted,
    soft_op,
    upstream,
)
from ssl_fast import ops
from ssl_fast.ops.poolings import LOWEST_LOGIT
from ssl_fast.ops.similarity import similarity_and_map

SHAPE = Shape(5, 37, 24, 3, 5)


def all_poolings():
    mask = torch.zeros(SHAPE.images, SHAPE.height, SHAPE.width)
    mask[:, 1, 2:] = torch.tensor([1.0, 0.5, 2.0])
    return {
        "mean": ops.Mean(),
        "masked mean": ops.Mean(mask),
        "soft threshold": ops.SoftThreshold(EPSILON, BETA),
        "max": ops.Max(),
    }


every_pooling = pytest.mark.parametrize("pooling", all_poolings().values(), ids=all_poolings())


def features(dtype=torch.float32, seed=0, shape=SHAPE):
    return [x.to(dtype) for x in planted(shape, seed)]


def with_gradients(function, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    return outputs, torch.autograd.grad(outputs, inputs, upstream([outputs])[0])


# ---- closed forms ----


@pytest.mark.grid
@every_pooling
@dtypes(*DTYPES)
def test_identical_orthogonal_and_opposite_vectors(pooling, dtype, backend):
    axis = torch.eye(SHAPE.channels, dtype=dtype)
    visual = (3 * axis[torch.arange(5)])[:, :, None, None] * torch.linspace(0.5, 2, 15, dtype=dtype).view(3, 5)
    audio = torch.cat([0.25 * axis[:8], -axis[:4]])
    want = torch.zeros(5, 12)
    want[range(5), range(5)] = 1
    want[range(4), range(8, 12)] = -1
    scores = ops.pooled_similarity(visual, audio, pooling, backend=backend)
    tolerance = 1e-2 if backend == "reference" and dtype.itemsize == 2 else 1e-6
    torch.testing.assert_close(scores, want.to(scores.dtype), rtol=0, atol=tolerance)


def vectors_at(cosines, dtype=torch.float64):
    """(1, 2, 1, cells) of several lengths at given cosines with the first axis."""
    angles = torch.tensor(cosines, dtype=torch.float64).acos()
    lengths = torch.arange(1, len(cosines) + 1, dtype=torch.float64)
    return (torch.stack([angles.cos(), angles.sin()]) * lengths)[None, :, None].to(dtype)


COSINES = [0.1, 0.7, -0.4, 0.66, 0.5]
FIRST_AXIS = torch.tensor([[2.0, 0.0]], dtype=torch.float64)


def test_soft_threshold_of_given_cosines(backend):
    weights = [1 / (1 + math.exp(-(a - 0.65) / 0.03)) for a in COSINES]
    want = sum(w * a for w, a in zip(weights, COSINES, strict=True)) / sum(weights)
    score = ops.pooled_similarity(vectors_at(COSINES), FIRST_AXIS, ops.SoftThreshold(), backend=backend)
    assert score.item() == pytest.approx(want, rel=1e-12)


def test_mean_and_max_of_given_cosines(backend):
    visual = vectors_at(COSINES)
    mask = torch.tensor([[[0, 1, 1, 0, 2]]])

    def score(pooling):
        return ops.pooled_similarity(visual, FIRST_AXIS, pooling, backend=backend).item()

    assert score(ops.Mean()) == pytest.approx(sum(COSINES) / 5, rel=1e-12)
    assert score(ops.Mean(mask)) == pytest.approx((0.7 - 0.4 + 2 * 0.5) / 4, rel=1e-12)
    assert score(ops.Mean(mask > 0)) == pytest.approx((0.7 - 0.4 + 0.5) / 3, rel=1e-12)
    assert score(ops.Max()) == pytest.approx(0.7, rel=1e-12)


@pytest.mark.grid
@pytest.mark.parametrize("cell", range(15))
def test_max_picks_the_planted_cell_and_its_gradient(cell, backend):
    visual, audio = features()
    row = torch.arange(5)
    visual.flatten(2)[row, :, cell] = 7 * audio[row]
    scores, (grad_visual, _) = with_gradients(
        lambda v, a: ops.pooled_similarity(v, a, ops.Max(), backend=backend)[row, row], visual, audio
    )
    torch.testing.assert_close(scores, torch.ones(5), rtol=0, atol=1e-6)
    others = torch.arange(15) != cell
    assert not grad_visual.flatten(2)[:, :, others].any()


@needs_compiled
@pytest.mark.parametrize("size", [(1, 2), (2, 3), (3, 5), (7, 7)])
def test_of_equal_cells_the_first_gets_the_gradient(size):
    visual, audio = features(shape=Shape(3, 40, 24, 1, 1))
    scores, (grad_visual, _) = with_gradients(
        lambda v, a: ops.pooled_similarity(v, a, ops.Max()), visual.expand(-1, -1, *size), audio
    )
    assert grad_visual[:, :, 0, 0].any() and not grad_visual.flatten(2)[:, :, 1:].any()
    torch.testing.assert_close(scores, ops.pooled_similarity(visual, audio, ops.Max()), rtol=0, atol=1e-6)


def test_masked_cells_count_for_nothing(backend):
    visual, audio = features()
    keep = torch.rand(5, 15, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[:, 3] = True
    got, (grad_visual, _) = with_gradients(
        lambda v, a: ops.pooled_similarity(v, a, ops.Mean(keep.view(5, 3, 5)), backend=backend), visual, audio
    )
    for n in range(5):
        chosen = visual.flatten(2)[n : n + 1, :, keep[n]][..., None]
        alone = ops.pooled_similarity(chosen, audio, ops.Mean(), backend=backend)
        torch.testing.assert_close(got[n : n + 1], alone, rtol=1e-5, atol=1e-6)
        assert not grad_visual.flatten(2)[n, :, ~keep[n]].any()


@dtypes(torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float32, torch.float64)
def test_dtypes_and_scale_of_a_mask(dtype, backend):
    visual, audio = features()
    mask = (torch.arange(75) % 3 == 0).view(5, 3, 5)
    want = ops.pooled_similarity(visual, audio, ops.Mean(mask), backend=backend)
    for scale in (1,) if dtype == torch.bool else (1, 16):
        scaled = (mask * scale).to(dtype)
        got = ops.pooled_similarity(visual, audio, ops.Mean(scaled), backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        strided = scaled.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.equal(ops.pooled_similarity(visual, audio, ops.Mean(strided), backend=backend), got)


def test_a_full_mask_is_the_plain_mean(backend):
    visual, audio = features(torch.float64)
    plain = ops.Mean()
    want, want_grads = with_gradients(lambda v, a: ops.pooled_similarity(v, a, plain, backend=backend), visual, audio)
    mask = ops.Mean(torch.full((5, 3, 5), 0.3))
    got, grads = with_gradients(lambda v, a: ops.pooled_similarity(v, a, mask, backend=backend), visual, audio)
    for a, b in zip((got, *grads), (want, *want_grads), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


# ---- the limits of the soft threshold ----


@dtypes(torch.float32, torch.bfloat16, torch.float64)
@pytest.mark.parametrize("epsilon", [1.2 - LOWEST_LOGIT * 0.01, -1.2 + LOWEST_LOGIT * 0.01, 50.0])
def test_far_from_epsilon_the_soft_threshold_is_the_mean(epsilon, dtype, backend):
    visual, audio = features(dtype)
    mean, pooling = ops.Mean(), ops.SoftThreshold(epsilon, 0.01)
    want, want_grads = with_gradients(lambda v, a: ops.pooled_similarity(v, a, mean, backend=backend), visual, audio)
    got, grads = with_gradients(lambda v, a: ops.pooled_similarity(v, a, pooling, backend=backend), visual, audio)
    assert (got - want).abs().max() < 2e-6
    for a, b in zip(grads, want_grads, strict=True):
        assert (a - b).double().norm() < (1e-5 if dtype.itemsize > 2 else 1e-2) * b.double().norm()


def test_a_steep_soft_threshold_is_the_mean_above_it(backend):
    visual, audio = features(torch.float64)
    maps = torch.stack([ops.cosine_map(visual, audio[m].expand(5, -1), backend="reference") for m in range(37)], 1)
    maps = maps.flatten(2)
    above = maps > 0.3
    far = ((maps - 0.3).abs() > 2e-4).all(2) & above.any(2)
    assert far.sum() > 100
    want = (maps * above).sum(2) / above.sum(2).clamp_min(1)
    got = ops.pooled_similarity(visual, audio, ops.SoftThreshold(0.3, 5e-6), backend=backend)
    torch.testing.assert_close(got[far], want[far], rtol=0, atol=1e-12)


@pytest.mark.grid
@needs_compiled
@pytest.mark.parametrize("epsilon, beta", [(0.65, 0.03), (0.65, 0.01), (0.9, 0.02), (-0.5, 0.1), (0.2, 5.0)])
@dtypes(torch.float32, torch.bfloat16, torch.float64)
def test_error_for_other_thresholds(epsilon, beta, dtype):
    op, shape = soft_op(epsilon, beta), Shape(4, 40, 96, 7, 7)
    assert_accurate(op, op.features(shape, dtype), extra_for(shape))


# ---- invariances ----


@every_pooling
@pytest.mark.parametrize("power", [-20, 20])
@needs_compiled
def test_powers_of_two_change_no_bit(pooling, power):
    """Cosines do not see lengths: scores stay, gradients shrink as features grow."""
    visual, audio = features()

    def function(v, a):
        return ops.pooled_similarity(v, a, pooling)

    scale = 2.0**power
    want, (want_visual, want_audio) = with_gradients(function, visual, audio)
    got, (grad_visual, grad_audio) = with_gradients(function, visual * scale, audio / scale)
    assert torch.equal(got, want)
    assert torch.equal(grad_visual * scale, want_visual) and torch.equal(grad_audio / scale, want_audio)


@every_pooling
@needs_compiled
def test_gradients_are_orthogonal_to_features(pooling):
    visual, audio = features(torch.float64)
    _, (grad_visual, grad_audio) = with_gradients(lambda v, a: ops.pooled_similarity(v, a, pooling), visual, audio)
    assert ((grad_visual * visual).sum(1).abs() < 1e-13 * (grad_visual.norm(dim=1) * visual.norm(dim=1) + 1)).all()
    assert ((grad_audio * audio).sum(1).abs() < 1e-13 * (grad_audio.norm(dim=1) * audio.norm(dim=1) + 1)).all()


@every_pooling
@needs_compiled
def test_a_pair_does_not_depend_on_the_others(pooling):
    """Any order of images and audios, and any part of them: the same bits."""
    visual, audio = features()
    scores = ops.pooled_similarity(visual, audio, pooling)
    images, audios = torch.tensor([3, 0, 4]), torch.randperm(37, generator=torch.Generator().manual_seed(1))[:21]
    if getattr(pooling, "mask", None) is not None:
        pooling = ops.Mean(pooling.mask[images])
    part = ops.pooled_similarity(visual[images], audio[audios], pooling)
    if isinstance(pooling, ops.Mean):  # torch's own product of matrices, whose order of adding depends on their sizes
        torch.testing.assert_close(part, scores[images][:, audios], rtol=0, atol=1e-6)
    else:
        assert torch.equal(part, scores[images][:, audios])


@every_pooling
@needs_compiled
def test_many_audios(pooling):
    shape = Shape(SHAPE.images, 517, 24, SHAPE.height, SHAPE.width)
    visual, audio = features(shape=shape)
    want, want_grads = with_gradients(
        lambda v, a: ops.pooled_similarity(v, a, pooling, backend="reference"), visual.double(), audio.double()
    )
    got, grads = with_gradients(lambda v, a: ops.pooled_similarity(v, a, pooling), visual, audio)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-6)
    for a, b in zip(grads, want_grads, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()


# ---- with the map of the positive pair ----

POOLING = ops.SoftThreshold(EPSILON, BETA)


def both(visual, audio, positives, backend):
    scores = ops.pooled_similarity(visual, audio, POOLING, backend=backend)
    return scores, ops.cosine_map(visual, audio[positives], backend=backend)


@pytest.mark.parametrize("positives", [[0, 1, 2, 3, 4], [36, 32, 31, 0, 16], [7, 7, 7, 7, 7]])
@pytest.mark.parametrize("used", [(True, True), (True, False), (False, True)], ids=["both", "scores", "map"])
def test_similarity_and_map_is_both_ops(positives, used, backend):
    visual, audio = (x.requires_grad_() for x in features(torch.float64))
    positives = torch.tensor(positives)
    results = []
    for scores, maps in (
        similarity_and_map(visual, audio, POOLING, positives, backend=backend),
        both(visual, audio, positives, backend),
    ):
        outputs = [x for x, wanted in zip((scores, maps), used, strict=True) if wanted]
        results.append([scores, maps, *torch.autograd.grad(outputs, (visual, audio), upstream(outputs))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)


@needs_compiled
def test_scores_do_not_change_with_the_map():
    visual, audio = features()
    scores, _ = similarity_and_map(visual, audio, POOLING, torch.arange(5))
    assert torch.equal(scores, ops.pooled_similarity(visual, audio, POOLING))


@pytest.mark.parametrize("positives", [[0, 1, 2, 3, 37], [-1, 0, 1, 2, 3]])
@needs_compiled
def test_positives_out_of_range(positives):
    visual, audio = features()
    expected = rf"positives: expected columns in \[0, 37\), got {min(positives)}..{max(positives)}"
    with pytest.raises(ValueError, match=expected):
        similarity_and_map(visual, audio, POOLING, torch.tensor(positives))
    with pytest.raises(ValueError, match=r"positives: expected columns in \[0, 0\)"):
        similarity_and_map(visual, audio[:0], POOLING, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("shape, dtype", [((4,), torch.int64), ((5,), torch.int32), ((5, 1), torch.int64)])
def test_positives_of_wrong_shape_or_dtype(shape, dtype, backend):
    (visual, audio), positives = features(), torch.zeros(shape, dtype=dtype)
    with pytest.raises(ValueError, match=r"positives: expected int64 \(5,\), got torch\.\w+ \("):
        similarity_and_map(visual, audio, POOLING, positives, backend=backend)
