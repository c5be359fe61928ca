"""Counts of pixels: the plain path against loops over pixels, the kernel against the plain path, number for number."""

import numpy as np
import pytest
import torch

from op_checks import needs_compiled
from ssl_fast.evaluation import map_metrics, metrics
from ssl_fast.evaluation.map_metrics import Counts, Rule, Upsampling, counts
from ssl_fast.ops import checks

RULES = [
    Rule("top50"),
    Rule("quarter", fraction=0.25),
    Rule("all", fraction=1.0),
    Rule("adaptive", "truth"),
    Rule("strict", comparison=">"),
    Rule("inclusive", comparison=">=", fraction=0.3),
    Rule("published", "truth", ">"),
    Rule("published2", "truth", ">="),
    Rule("universal", "value", ">"),
    Rule("at", "value", ">=", value=0.25),
    Rule("far", "value", ">", value=9.0),
]
UPSAMPLINGS = [Upsampling(), Upsampling(align_corners=True), Upsampling("bicubic"), Upsampling("bicubic", True)]
# cells, pixels: the field's, odd ones, up-sampling in one direction or none, and less than one word of 64 pixels
SIZES = [
    ((7, 7), (224, 224)),
    ((14, 14), (101, 67)),
    ((3, 5), (33, 17)),
    ((1, 1), (9, 9)),
    ((5, 4), (5, 4)),
    ((2, 9), (1, 3)),
    ((6, 6), (8, 8)),
    ((9, 4), (4, 90)),
]
SETS = checks.extension.instruction_sets() if checks.extension else []


def draw(cells, pixels, levels=None, n=12, maps=3, seed=0):
    """Maps with few levels (ties) or many; samples with a constant map, no ground truth, half weights, all of it."""
    rng = np.random.default_rng([seed, *cells, *pixels, levels or 0])
    low = [
        (rng.standard_normal((n, *cells)) * 0.4 if levels is None else rng.integers(0, levels, (n, *cells)) / 4).astype(
            np.float32
        )
        for _ in range(maps)
    ]
    truth = (rng.random((n, *pixels)) < 0.3).astype(np.float32)
    low[0][1], low[1][2] = 0.1, 0.5
    truth[3], truth[7] = 0, 1
    truth[4:6] *= 0.5
    truth[6] *= rng.random(pixels)
    return low, truth


def equal(a: Counts, b: Counts):
    for name, x, y in zip(Counts._fields, a, b):
        np.testing.assert_array_equal(x, y, err_msg=name)


# ---- the plain path ----


@pytest.mark.parametrize("levels", [None, 3])
def test_counts_equal_a_loop_over_pixels(levels):
    low, truth = draw((3, 2), (6, 5), levels)
    found = counts(low, truth, RULES, 0.2, upsampling=[Upsampling()] * 3, backend="reference")
    full = [metrics.upsample(m, (6, 5)).reshape(12, -1) for m in low]
    for n, g in enumerate(truth.reshape(12, -1)):
        objects = sum(x > 0 for x in g)
        assert found.objects[n] == objects and found.weight[n] == pytest.approx(sum(map(float, g)))
        for r, rule in enumerate(RULES):
            values = full[0][n].tolist()
            k = objects if rule.kind == "truth" and objects else int(30 * rule.fraction + 0.9)
            if rule.kind == "value":
                edge = np.float32(0.2 if rule.value is None else rule.value)
                chosen = [i for i in range(30) if (values[i] >= edge if rule.comparison == ">=" else values[i] > edge)]
            elif rule.comparison == "exact":
                chosen = sorted(range(30), key=lambda i: (-values[i], i))[:k]
                chosen = range(30) if len({*values}) == 1 else chosen
            else:
                edge = sorted(values)[30 - k]
                chosen = [i for i in range(30) if (values[i] >= edge if rule.comparison == ">=" else values[i] > edge)]
            assert found.hit[n, r] == pytest.approx(sum(float(g[i]) for i in chosen)), rule
            assert found.false[n, r] == sum(g[i] == 0 for i in chosen), rule
        for j in range(3):
            for k in range(3):
                both = sum(a > np.float32(0.2) and b > np.float32(0.2) for a, b in zip(full[j][n], full[k][n]))
                assert found.shared[n, j, k] == both


def test_counts_make_consensus_iou_and_agreement():
    low, truth = draw((4, 4), (20, 20))
    found = counts(low, truth, [Rule("top50")], 0.2, upsampling=[Upsampling()] * 3, backend="reference")
    full = [metrics.upsample(m, 20) for m in low]
    np.testing.assert_allclose(found.iou(1.0)[:, 0], metrics.consensus_iou(metrics.top_fraction(full[0]), truth))
    above = [m > np.float32(0.2) for m in full]
    either = (above[0] | above[2]).sum((1, 2))
    both = (above[0] & above[2]).sum((1, 2))
    np.testing.assert_allclose(found.map_iou(0, 2), np.where(either == 0, 1, both / np.maximum(either, 1)))


# ---- the kernel ----


@pytest.mark.grid
@needs_compiled
@pytest.mark.parametrize("levels", [None, 2, 5])
@pytest.mark.parametrize("cells, pixels", SIZES)
def test_the_kernel_counts_what_the_plain_path_counts(cells, pixels, levels, use_set):
    low, truth = draw(cells, pixels, levels)
    for first, others in zip(UPSAMPLINGS, UPSAMPLINGS[::-1]):
        options = {"upsampling": [first, others, others]}
        truth = truth > 0 if first == UPSAMPLINGS[2] else truth  # the last two of bool
        expected = counts(low, truth, RULES, 0.2, backend="reference", **options)
        for instruction_set in SETS:
            use_set(instruction_set)
            equal(counts(low, truth, RULES, 0.2, backend="compiled", **options), expected)


@needs_compiled
def test_order_statistics_at_every_rank(use_set):
    """Each rank of maps with close, repeated, negative, zero and huge values, which no up-sampling changes."""
    rng = np.random.default_rng(0)
    tiny = (1 + np.arange(400) * 2.0**-23).astype(np.float32)
    rows = [
        rng.permutation(tiny),
        rng.choice([-1, -0.0, 0.0, 1e-45, 3e38, -3e38], 400).astype(np.float32),
        np.sort(rng.standard_normal(400)).astype(np.float32),
        np.exp(rng.standard_normal(400) * 20).astype(np.float32),
    ]
    maps = np.repeat(np.stack(rows).reshape(4, 1, 20, 20), 400, 1).reshape(-1, 20, 20)
    truth = np.zeros((4, 400, 400), np.float32)
    for k in range(400):
        truth[:, k, : k + 1] = 1
    arguments = [maps], truth.reshape(-1, 20, 20), RULES[3:8:2]
    expected = counts(*arguments, upsampling=[Upsampling()], backend="reference")
    for instruction_set in SETS:
        use_set(instruction_set)
        equal(counts(*arguments, upsampling=[Upsampling()], backend="compiled"), expected)


@needs_compiled
def test_threads_and_batches_do_not_change_counts(set_threads):
    low, truth = draw((7, 7), (60, 50), n=23)
    whole = counts(low, truth, RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3, backend="compiled")
    for threads in (1, 2, 5):
        set_threads(threads)
        equal(whole, counts(low, truth, RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3, backend="compiled"))
    parts = [
        counts([m[i : i + 5] for m in low], truth[i : i + 5], RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3)
        for i in range(0, 23, 5)
    ]
    equal(whole, Counts(*(np.concatenate(values) for values in zip(*parts))))
    empty = counts([m[:0] for m in low], truth[:0], RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3)
    assert empty.hit.shape == (0, len(RULES)) and empty.shared.shape == (0, 3, 3)


@needs_compiled
def test_inputs_of_any_layout_and_dtype():
    low, truth = draw((7, 7), (30, 30))
    expected = counts(low[:1], truth, RULES[:8], upsampling=[Upsampling()], backend="reference")
    for change in (torch.from_numpy, lambda m: np.asfortranarray(m), lambda m: np.repeat(m, 2, 2)[:, :, ::2]):
        equal(
            expected, counts([change(low[0])], change(truth), RULES[:8], upsampling=[Upsampling()], backend="compiled")
        )
    binary = truth > 0
    for change in (torch.from_numpy, np.asfortranarray, lambda g: g):
        equal(
            counts(low, change(binary), RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3, backend="compiled"),
            counts(low, binary.astype(float), RULES, 0.2, upsampling=UPSAMPLINGS[:1] * 3, backend="reference"),
        )
    double = [low[0].astype(np.float64)]
    equal(
        counts(double, truth, RULES[:8], upsampling=[Upsampling()]),
        counts(double, truth, RULES[:8], upsampling=[Upsampling()], backend="reference"),
    )


# ---- bad input ----


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_bad_arguments_say_what_was_expected(backend):
    low, truth = draw((3, 3), (8, 8))
    options = {"upsampling": [Upsampling()] * 3, "backend": backend}
    for wrong in (1.5, -0.1, np.nan, np.inf):
        bad = truth.copy()
        bad[9, 7, 7] = wrong
        with pytest.raises(ValueError, match=r"ground_truth: expected weights in \[0, 1\], sample 9 has values"):
            counts(low, bad, RULES, 0.2, **options)
    with pytest.raises(ValueError, match=r"maps: expected 11 samples each to match ground_truth, got \[12, 12, 12\]"):
        counts(low, truth[:11], RULES, 0.2, **options)
    for wrong in (None, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"value: expected the universal threshold .* finite number, got {wrong}"):
            counts(low, truth, RULES, wrong, **options)
    with pytest.raises(ValueError, match="maps: sample 2 holds 9 values that are NaN"):
        counts([np.where(np.arange(12)[:, None, None] == 2, np.nan, low[0])], truth, RULES[:1], **options)


def test_a_backend_that_cannot_be_had_says_why(monkeypatch, set_extension):
    low, truth = draw((3, 3), (8, 8))
    with pytest.raises(ValueError, match="backend: expected 'auto', 'compiled' or 'reference', got 'gpu'"):
        counts(low, truth, RULES[:1], upsampling=[Upsampling()] * 3, backend="gpu")
    if checks.extension is not None:
        with pytest.raises(RuntimeError, match="backend='compiled': expected exact up-sampling, alike for all but"):
            counts(low, truth, RULES[:1], upsampling=[Upsampling(arithmetic="torch")] * 3, backend="compiled")
        with pytest.raises(RuntimeError, match="backend='compiled': expected float32 maps of one size, got .*float64"):
            counts([low[0].astype(float)], truth, RULES[:1], upsampling=[Upsampling()], backend="compiled")
    monkeypatch.setattr(map_metrics.checks, "extension", None)
    with pytest.raises(RuntimeError, match="backend='compiled': the compiled module did not load"):
        counts(low, truth, RULES[:1], upsampling=[Upsampling()] * 3, backend="compiled")
    with pytest.warns(RuntimeWarning, match="all ops run plain PyTorch or numpy: the compiled module did not load"):
        found = counts(low, truth, RULES[:1], upsampling=[Upsampling()] * 3)
    equal(found, counts(low, truth, RULES[:1], upsampling=[Upsampling()] * 3, backend="reference"))
