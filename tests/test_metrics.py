"""Metrics against closed forms and brute-force loops over pixels."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssl_fast.evaluation import ceilings, detection, false_alarms, map_metrics, metrics, mixing, protocols, segmentation
from ssl_fast.evaluation.map_metrics import Rule, Upsampling


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def weights(rng, shape):
    return rng.choice([0, 0, 0, 0.5, 1], shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------ up-sampling


def test_upsample_equals_a_loop_over_pixels(rng):
    low = rng.standard_normal((2, 3, 5))
    full = metrics.upsample(low, (8, 11))
    for n in range(2):
        for i in range(8):
            for j in range(11):
                y, x = (i + 0.5) * 3 / 8 - 0.5, (j + 0.5) * 5 / 11 - 0.5  # cell centres aligned, border cells continued
                y, x = min(max(y, 0), 2), min(max(x, 0), 4)
                i0, j0 = int(y), int(x)
                i1, j1, a, b = min(i0 + 1, 2), min(j0 + 1, 4), y - i0, x - j0
                expected = (1 - a) * ((1 - b) * low[n, i0, j0] + b * low[n, i0, j1]) + a * (
                    (1 - b) * low[n, i1, j0] + b * low[n, i1, j1]
                )
                assert full[n, i, j] == pytest.approx(expected, abs=1e-12)


def test_upsample_with_corners_aligned_equals_scipy(rng):
    low = rng.standard_normal((3, 7, 7))
    full = metrics.upsample(low, 25, align_corners=True)
    for a, b in zip(low, full):
        np.testing.assert_allclose(ndimage.zoom(a, 25 / 7, order=1, grid_mode=False), b, atol=1e-12)


def test_upsample_in_torch_s_own_steps_is_torch(rng):
    low = rng.standard_normal((3, 7, 5)).astype(np.float32)
    for mode, corners in (("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)):
        full = metrics.upsample(low, (31, 20), interpolation=mode, align_corners=corners, arithmetic="torch")
        expected = torch.nn.functional.interpolate(
            torch.from_numpy(low)[None], (31, 20), mode=mode, align_corners=corners
        )[0].numpy()
        np.testing.assert_array_equal(full, expected)
        exact = metrics.upsample(low, (31, 20), interpolation=mode, align_corners=corners)
        np.testing.assert_allclose(exact, expected, atol=1e-5)


def test_upsample_in_opencv_s_steps_equals_a_loop(rng):
    low = rng.standard_normal((2, 3, 7)).astype(np.float32)
    full = metrics.upsample(low, (10, 23), arithmetic="opencv")

    def between(values, i, pixels):  # a + (b - a) t: difference and weight rounded, product and sum rounded once
        at = np.float32(min(max((i + 0.5) * (len(values) / pixels) - 0.5, 0), len(values) - 1))
        left = int(at)
        a, b = values[left], values[min(left + 1, len(values) - 1)]
        return np.float32(float(a) + float(b - a) * float(at - np.float32(left)))

    for n in range(2):
        wide = [[between(row, j, 23) for j in range(23)] for row in low[n]]
        for j in range(23):
            column = [row[j] for row in wide]
            np.testing.assert_array_equal(full[n, :, j], [between(column, i, 10) for i in range(10)])
    np.testing.assert_allclose(full, metrics.upsample(low, (10, 23)), atol=1e-6)


def test_upsample_keeps_the_range_and_constant_maps_to_the_bit(rng):
    low = rng.standard_normal((200, 7, 7)).astype(np.float32)
    low[0] = np.float32(0.1234567)
    full = metrics.upsample(low, 101)
    assert full.dtype == np.float32
    assert (full.max((1, 2)) <= low.max((1, 2))).all() and (full.min((1, 2)) >= low.min((1, 2))).all()
    assert np.unique(full[0]).tolist() == [np.float32(0.1234567)]
    assert metrics.upsample(low, (7, 7)) is low
    assert metrics.upsample(low[:0], (9, 4)).shape == (0, 9, 4)


def test_torch_and_numpy_inputs_agree(rng):
    low, truth = rng.standard_normal((4, 7, 7)).astype(np.float32), weights(rng, (4, 28, 28))
    tensor = torch.from_numpy(low).to(torch.bfloat16)
    np.testing.assert_array_equal(metrics.upsample(tensor, 28), metrics.upsample(tensor.float().numpy(), 28))
    full = metrics.upsample(low, 28)
    prediction = metrics.adaptive(torch.from_numpy(full).requires_grad_(), torch.from_numpy(truth))
    np.testing.assert_array_equal(prediction, metrics.adaptive(full, truth))
    np.testing.assert_array_equal(
        metrics.consensus_iou(torch.from_numpy(prediction), torch.from_numpy(truth)),
        metrics.consensus_iou(prediction, truth),
    )


# ------------------------------------------------------------------------------------------------ predictions


def best_pixels(row, k):
    """The k best of a flat map by a stable sort: ties in row-major order; a constant map predicts everything."""
    out = np.zeros(row.size, bool)
    out[np.argsort(-row, kind="stable")[:k]] = True
    return np.ones_like(out) if (row == row[0]).all() else out


@pytest.mark.parametrize("levels", [2, 3, 7, None])
@pytest.mark.parametrize("shape", [(1, 7), (5, 9), (16, 16)])
def test_exact_counts_and_ties_equal_a_stable_sort(rng, levels, shape):
    maps = rng.standard_normal((50, *shape)).astype(np.float32)
    if levels:
        maps = rng.integers(0, levels, (50, *shape)).astype(np.float32)
    truth = weights(rng, (50, *shape))
    n = shape[0] * shape[1]
    for fraction in (0.01, 0.25, 0.5, 0.9, 1.0):
        k = int(np.ceil(fraction * n))
        got = metrics.top_fraction(maps, fraction).reshape(50, -1)
        for row, predicted in zip(maps.reshape(50, -1), got):
            np.testing.assert_array_equal(predicted, best_pixels(row, k))
    got = metrics.adaptive(maps, truth).reshape(50, -1)
    for row, g, predicted in zip(maps.reshape(50, -1), truth.reshape(50, -1), got):
        k = int((g > 0).sum()) or (n + 1) // 2
        np.testing.assert_array_equal(predicted, best_pixels(row, k))
        assert predicted.sum() == k or np.ptp(row) == 0


def test_half_of_the_field_s_frame_is_25088_pixels():
    assert metrics.top_fraction(np.random.default_rng(0).random((1, 224, 224))).sum() == 25088


def test_a_constant_map_predicts_the_whole_image_under_both_rules():
    maps, truth = np.full((1, 4, 4), 0.3, np.float32), np.zeros((1, 4, 4))
    truth[0, :2] = 1
    assert metrics.top_fraction(maps).all() and metrics.adaptive(maps, truth).all()
    assert metrics.consensus_iou(metrics.adaptive(maps, truth), truth) == [0.5]


def test_an_empty_ground_truth_wins_nothing_by_the_adaptive_rule(rng):
    maps, truth = rng.random((1, 6, 6)), np.zeros((1, 6, 6))
    prediction = metrics.adaptive(maps, truth)
    assert prediction.sum() == 18
    assert metrics.consensus_iou(prediction, truth) == [0]


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_the_published_rules_compare_with_the_value_at_an_index(rng, levels):
    maps = rng.integers(0, levels, (30, 5, 8)).astype(np.float32)
    index = rng.integers(0, 40, 30)
    for at in (20, index):
        strict, inclusive = (metrics.at_index(maps, at, strict=flag).reshape(30, -1) for flag in (True, False))
        for i, row in enumerate(maps.reshape(30, -1)):
            edge = sorted(row)[at if isinstance(at, int) else at[i]]
            np.testing.assert_array_equal(strict[i], row > edge)
            np.testing.assert_array_equal(inclusive[i], row >= edge)
    if levels == 1:
        assert not strict.any() and inclusive.all()


def test_published_halves_of_the_field_s_frame():
    maps = np.random.default_rng(0).permutation(224 * 224).reshape(1, 224, 224).astype(np.float32)
    assert metrics.at_index(maps, 25088, strict=True).sum() == 25087
    assert metrics.at_index(maps, 25088, strict=False).sum() == 25088


def test_an_absolute_threshold_is_strict():
    maps = np.array([[[0.1, 0.5], [0.5000001, -1]]])
    np.testing.assert_array_equal(metrics.above(maps, 0.5), [[[False, False], [True, False]]])
    np.testing.assert_array_equal(metrics.above(maps, 0.5, strict=False), [[[False, True], [True, False]]])
    assert not metrics.above(np.ones((1, 3, 3), np.float32), 1.0).any()
    assert metrics.above(np.ones((1, 3, 3), np.float32), -5.0).all()


# ------------------------------------------------------------------------------------------------ IoU


def test_consensus_iou_equals_a_double_loop(rng):
    prediction, truth = rng.random((40, 6, 7)) < 0.4, weights(rng, (40, 6, 7))
    for b, g, iou in zip(prediction, truth, metrics.consensus_iou(prediction, truth)):
        hit = false = total = 0.0
        for i in range(6):
            for j in range(7):
                total += float(g[i, j])
                hit += float(g[i, j]) if b[i, j] else 0
                false += 1 if b[i, j] and g[i, j] == 0 else 0
        assert iou == pytest.approx(hit / (total + false), abs=1e-12)


def test_consensus_iou_of_binary_ground_truth_is_plain_iou(rng):
    prediction, truth = rng.random((40, 6, 7)) < 0.4, rng.random((40, 6, 7)) < 0.3
    expected = (prediction & truth).sum((1, 2)) / (prediction | truth).sum((1, 2))
    np.testing.assert_allclose(metrics.consensus_iou(prediction, truth), expected, atol=1e-15)


def test_half_weights_are_not_plain_iou():
    truth = np.array([[[0.5, 0.5, 1, 0]]])
    prediction = np.array([[[True, False, True, True]]])
    assert metrics.consensus_iou(prediction, truth) == [1.5 / 3]  # (.5 + 1) / (2 + one false pixel)


def test_empty_predictions_and_ground_truths():
    nothing, something = np.zeros((1, 3, 3), bool), np.ones((1, 3, 3), bool)
    assert metrics.consensus_iou(nothing, nothing) == [1]
    assert metrics.consensus_iou(nothing, nothing, empty=0.0) == [0]
    assert metrics.consensus_iou(something, nothing) == [0]
    assert metrics.consensus_iou(nothing, something) == [0]
    assert metrics.consensus_iou(something, something) == [1]


def test_success_at_exactly_one_half_counts():
    assert metrics.success_rate([0.5, 0.4999999, 0.9, 0]) == 0.5


def test_auc_identity_floor_and_ceiling(rng):
    for x in (rng.random(1000), rng.random(5), 0.9 * rng.random(64) ** 3):
        assert metrics.auc(x) - x.mean() == pytest.approx(0.025 - np.mod(x, 0.05).mean(), abs=1e-9)
    assert metrics.auc(np.zeros(4)) == pytest.approx(0.025)
    assert metrics.auc(np.ones(4)) == 1
    x = rng.random(101)
    rates = [np.mean([value >= 0.05 * i for value in x]) for i in range(21)]
    assert metrics.auc(x) == pytest.approx(sum((a + b) / 2 * 0.05 for a, b in itertools.pairwise(rates)), abs=1e-12)


# ------------------------------------------------------------------------------------------------ groups, pointing


def test_interactive_equals_a_loop_over_images(rng):
    ids = [f"image {i}" for i in rng.integers(0, 30, 90)]
    iou = rng.random(90)
    images = sorted(set(ids))

    def rate(t):
        return np.mean([all(iou[k] >= t for k in range(90) if ids[k] == image) for image in images])

    got = metrics.interactive(iou, ids)
    assert got.groups == len(images)
    assert got.iiou == pytest.approx(rate(0.5), abs=1e-12)
    rates = [rate(0.05 * i) for i in range(21)]
    assert got.iauc == pytest.approx(sum((a + b) / 40 for a, b in itertools.pairwise(rates)), abs=1e-12)


def test_interactive_needs_every_sound_of_the_image():
    assert metrics.interactive([0.9, 0.5, 0.9, 0.49], ["a", "a", "b", "b"]) == (0.5, metrics.auc([0.5, 0.49]), 2)
    assert metrics.interactive_pointing(np.array([True, True, True, False, True]), ["a", "b", "a", "b", "c"]) == 2 / 3
    with pytest.raises(ValueError, match="image_ids: expected 2 ids, got 1"):
        metrics.interactive([0.1, 0.2], ["a"])


@pytest.mark.parametrize("cells, pixels", [((7, 7), (112, 112)), ((5, 3), (5, 3)), ((4, 6), (20, 33))])
def test_pointing_equals_a_loop_over_cells(rng, cells, pixels):
    maps, truth = rng.standard_normal((60, *cells)), weights(rng, (60, *pixels))
    for m, g, hit in zip(maps, truth, metrics.pointing(maps, truth)):
        best = None
        for i in range(cells[0]):
            for j in range(cells[1]):
                if best is None or m[i, j] > m[best]:
                    best = i, j
        y, x = (int((at + 0.5) / c * p) for at, c, p in zip(best, cells, pixels))
        assert hit == (g[y, x] > 0)


def test_pointing_of_constant_maps_misses_and_of_ties_takes_the_first():
    truth = np.zeros((1, 4, 4))
    truth[0, 1, 1] = 1
    maps = np.zeros((1, 2, 2))
    assert not metrics.pointing(maps, np.ones((1, 4, 4)))[0]
    maps[0, 0, 0] = maps[0, 1, 1] = 1
    assert metrics.pointing(maps, truth)[0]  # cell (0, 0) has its centre at pixel (1, 1)
    assert not metrics.pointing(maps * [0.5, 1], truth)[0]
    with pytest.raises(ValueError, match="expected 1 samples to match maps, got 2"):
        metrics.pointing(maps, np.zeros((2, 4, 4)))


# ------------------------------------------------------------------------------------------------ retrieval


def test_recall_equals_sorting(rng):
    scores = rng.standard_normal((60, 45))
    queries, items = rng.integers(0, 6, 60).tolist(), rng.integers(0, 6, 45).tolist()
    got = metrics.recall_at(scores, queries, items, (1, 5, 10))
    order = np.argsort(-scores, axis=1)
    for k in (1, 5, 10):
        hits = [any(items[j] == queries[i] for j in order[i, :k]) for i in range(60)]
        assert got[k] == pytest.approx(np.mean(hits), abs=1e-12)
    for i, rank in enumerate(metrics.recall_ranks(scores, queries, items)):
        assert rank == min(place for place, j in enumerate(order[i]) if items[j] == queries[i])


def test_recall_with_several_labels_an_item(rng):
    scores = rng.standard_normal((20, 30))
    queries = [frozenset(rng.choice(list("abcdef"), 2)) for _ in range(20)]
    items = [frozenset(rng.choice(list("abcdef"), 3)) for _ in range(30)]
    order = np.argsort(-scores, axis=1)
    expected = np.mean([any(queries[i] & items[j] for j in order[i, :2]) for i in range(20)])
    assert metrics.recall_at(scores, queries, items, (2,))[2] == pytest.approx(expected, abs=1e-12)
    single = [next(iter(sorted(q))) for q in queries]
    expected = np.mean([any(single[i] in items[j] for j in order[i, :2]) for i in range(20)])
    assert metrics.recall_at(torch.from_numpy(scores), single, items, (2,))[2] == pytest.approx(expected, abs=1e-12)


def test_a_score_that_is_the_same_for_all_retrieves_nothing():
    assert metrics.recall_at(np.zeros((4, 4)), range(4), range(4), (1, 3, 4)) == {1: 0, 3: 0, 4: 1}


def test_recall_errors():
    with pytest.raises(ValueError, match="no item has the label 'c' of query 1"):
        metrics.recall_at(np.zeros((2, 2)), ["a", "c"], ["a", "b"])
    with pytest.raises(ValueError, match="query 1 has a NaN"):
        metrics.recall_at([[0, 1], [np.nan, 0]], "ab", "ab")
    with pytest.raises(ValueError, match="query_labels: entry 1 has no label"):
        metrics.recall_at(np.zeros((2, 2)), ["a", None], ["a", "b"])
    with pytest.raises(ValueError, match=r"expected shape \(2, 3\)"):
        metrics.recall_at(np.zeros((3, 2)), "ab", "abc")


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "function",
    [
        lambda m, g: metrics.upsample(m, 9),
        lambda m, g: metrics.top_fraction(m),
        metrics.adaptive,
        lambda m, g: metrics.above(m, 0.0),
        metrics.pointing,
        lambda m, g: metrics.at_index(m, 3, strict=True),
    ],
)
def test_a_map_that_is_not_finite_names_its_sample(rng, bad, function):
    maps = rng.random((5, 4, 4))
    maps[3, 1, 2] = bad
    with pytest.raises(ValueError, match="maps: sample 3 holds 1 values that are NaN or infinite"):
        function(maps, np.ones((5, 4, 4)))
    with pytest.raises(ValueError, match="heat: sample 'dog_7' holds 1"):
        metrics.check_maps(maps, ["a", "b", "c", "dog_7", "e"], "heat")


def test_wrong_shapes_and_values_say_what_came(rng):
    maps = rng.random((2, 4, 4))
    with pytest.raises(ValueError, match=r"maps: expected 3 dimensions, got shape \(4, 4\)"):
        metrics.top_fraction(maps[0])
    with pytest.raises(ValueError, match=r"ground_truth: expected shape \(2, 4, 4\), got \(2, 4, 5\)"):
        metrics.adaptive(maps, np.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match=r"weights in \[0, 1\], sample 1"):
        metrics.adaptive(maps, np.stack([np.zeros((4, 4)), np.full((4, 4), 1.5)]))
    with pytest.raises(TypeError, match="prediction: expected bool"):
        metrics.consensus_iou(maps, maps)
    with pytest.raises(ValueError, match=r"fraction: expected a number in \(0, 1\], got 0"):
        metrics.top_fraction(maps, 0)
    with pytest.raises(ValueError, match="iou: expected at least one sample"):
        metrics.success_rate([])
    with pytest.raises(ValueError, match="iou: sample 1 is NaN"):
        metrics.auc([0, np.nan])
    with pytest.raises(ValueError, match=r"index: expected numbers within \[0, 16\), got 16 .. 16"):
        metrics.at_index(maps, 16, strict=True)
    with pytest.raises(ValueError, match="arithmetic: expected 'exact', 'torch' or 'opencv', got 'float16'"):
        metrics.upsample(maps, 9, arithmetic="float16")
    with pytest.raises(ValueError, match="'opencv' is bilinear without aligned corners, got 'bicubic'"):
        metrics.upsample(maps, 9, interpolation="bicubic", arithmetic="opencv")
    with pytest.raises(ValueError, match="threshold: expected a finite number, got nan"):
        metrics.above(maps, float("nan"))
    with pytest.raises(TypeError, match="expected real numbers"):
        metrics.check_maps(np.zeros((1, 2, 2), complex))


MAPS = np.random.default_rng(1).random((3, 4, 4))
TRUTH = (np.random.default_rng(2).random((3, 4, 4)) > 0.5).astype(np.float64)
VALUES = np.array([0.2, 0.9, 0.6])
TAKE_MAPS = {
    "upsample": lambda m: metrics.upsample(m, 8),
    "upsample as torch": lambda m: metrics.upsample(m, 8, arithmetic="torch"),
    "top_fraction": metrics.top_fraction,
    "adaptive": lambda m: metrics.adaptive(m, TRUTH),
    "ground truth of adaptive": lambda m: metrics.adaptive(MAPS, m),
    "at_index": lambda m: metrics.at_index(m, 3, strict=True),
    "largest": lambda m: metrics.largest(m, [3, 3, 3]),
    "pointing": lambda m: metrics.pointing(m, TRUTH),
    "pia": lambda m: false_alarms.pia(m, 0.5),
    "confidence": detection.confidence,
    "min_max_flipped": mixing.min_max_flipped,
    "fixed_range": lambda m: mixing.fixed_range(m, 0.03),
    "mix": lambda m: mixing.mix(MAPS, m, 0.4),
    "predict": lambda m: Rule("a").predict(m, np.array([3, 3, 3])),
    "counts": lambda m: map_metrics.counts([m], TRUTH, [Rule("a")], upsampling=[Upsampling()]).hit,
    "counts_of_pixels": lambda m: map_metrics.counts_of_pixels([m], TRUTH, [Rule("a")]).hit,
    "segmentation": lambda m: segmentation.segmentation(TRUTH > 0, m).iou,
    "ceilings": lambda m: [*ceilings.ceilings(m).values()],
    "in_range": lambda m: protocols.in_range(protocols.PROTOCOLS["slavc_extended"], m),
    "score": lambda m: protocols.score(protocols.PROTOCOLS["ez_vsl"], m, TRUTH)["audio_visual"]["iou_top50"],
    "run": lambda m: protocols.run("lvs", m, m)["figures"]["audio_visual"]["localization"]["auc_top50"],
    "prior of run": lambda m: protocols.run("ez_vsl", MAPS, TRUTH, prior=m)["figures"]["mixed"]["localization"][
        "auc_top50"
    ],
    "negatives of run": lambda m: protocols.run("vssl_eval", MAPS, TRUTH, negatives={"noise": m})["threshold"],
}
TAKE_VALUES = {
    "auc": metrics.auc,
    "interactive": lambda v: metrics.interactive(v, "aab"),
    "interactive_pointing": lambda v: metrics.interactive_pointing(v, "aab"),
    "universal_threshold": lambda v: false_alarms.universal_threshold({"noise": v}).value,
    "auc_n": false_alarms.auc_n,
    "false alarms": lambda v: [*false_alarms.figures(v, {"noise": v}, {"noise": v}).values()],
    "average_precision": lambda v: detection.average_precision(v, VALUES, [1, 0, 1]),
    "max_f1": lambda v: detection.max_f1(VALUES, v, [1, 0, 1]),
    "thresholds": lambda v: detection.precision_recall(VALUES, VALUES, [1, 0, 1], v),
    "size_subset": lambda v: detection.size_subset(v) == "small",
}


@pytest.mark.parametrize(
    ("call", "given"),
    [*((f, MAPS) for f in TAKE_MAPS.values()), *((f, VALUES) for f in TAKE_VALUES.values())],
    ids=[*TAKE_MAPS, *TAKE_VALUES],
)
def test_lists_and_tensors_give_what_arrays_give(call, given):
    """And what is no array of numbers is named in a TypeError."""
    expected = call(given)
    for same in (given.tolist(), torch.from_numpy(given), torch.from_numpy(given).requires_grad_()):
        np.testing.assert_array_equal(call(same), expected)
    for wrong in ([[[1.0], [2.0, 3.0]]], ["a", "b"], [None] * 3):
        with pytest.raises(TypeError, match=r"^\S+.*: expected (an array of|real) numbers, got "):
            call(wrong)
