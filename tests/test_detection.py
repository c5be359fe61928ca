"""The Extended metrics against loops over samples and thresholds, and against closed forms."""

import numpy as np
import pytest

from ssl_fast.evaluation import detection, metrics


def draw(seed, n=60, levels=None):
    rng = np.random.default_rng(seed)
    confidences = rng.random(n) if levels is None else rng.integers(0, levels, n) / levels
    sounding = rng.random(n) < 0.6
    return confidences, rng.random(n) * sounding, sounding


def slow_counts(confidences, iou, sounding, t, standard, success=0.5):
    true = false = missed = 0
    for c, x, visible in zip(confidences, iou, sounding):
        hit = c >= t and visible and x >= success
        true += hit
        false += c >= t and not hit
        missed += visible and (not hit if standard else c < t)
    precision = true / (true + false) if true + false else 1
    recall = true / (true + missed) if true + missed else 1
    return precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0


CASES = [draw(0), draw(1, 7), draw(2, 40, 5), draw(3, 1), draw(4, 30, 1)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("standard", [True, False])
def test_precision_recall_and_f1_equal_a_loop(case, standard):
    thresholds = [-1000, 0.2, 0.5, *case[0], 2]
    precision, recall = detection.precision_recall(*case, thresholds, standard=standard)
    f1 = detection.f1(*case, thresholds, standard=standard)
    for i, t in enumerate(thresholds):
        assert (precision[i], recall[i], f1[i]) == pytest.approx(slow_counts(*case, t, standard), abs=1e-12)
    best = max(slow_counts(*case, t, standard)[2] for t in case[0])
    assert detection.max_f1(*case, standard=standard) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_average_precision_equals_a_loop(case):
    points = [slow_counts(*case, t, True)[:2] for t in sorted(set(case[0]), reverse=True)]
    area, before = 0.0, 0.0
    for i, (_, recall) in enumerate(points):
        area += (recall - before) * max(p for p, _ in points[i:])
        before = recall
    assert detection.average_precision(*case) == pytest.approx(area if case[2].any() else 0, abs=1e-12)


def slow_published(case, success=0.5):
    """AP and highest F1 of SLAVC's program."""
    ordered, n = sorted(case[0]), len(case[0])
    points = [slow_counts(*case, t, False, success) for t in [*reversed(ordered[:-1])][:: max(1, n // 200)]]
    area = sum((points[i + 1][1] - points[i][1]) * max(p[0] for p in points[i:]) for i in range(len(points) - 1))
    best = max(slow_counts(*case, t, False, success)[2] for t in ordered[:: max(1, n // 10)])
    return area, float(f"{100 * best:.1f}") / 100


@pytest.mark.parametrize("case", [*CASES, draw(5, 450), draw(6, 1210)])
def test_published_curves_equal_a_loop(case):
    area, best = slow_published(case)
    assert detection.average_precision_published(*case) == pytest.approx(area, abs=1e-12)
    assert detection.max_f1_published(*case) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_published_subsets_equal_loops(case):
    """At both IoUs, of all, of the visible and of these by size, from the limits of its program."""
    areas = np.random.default_rng(7).choice([0, 100, 1023, 1024, 5000, 9216, 20000, 20736, 50176], len(case[0]))
    found = detection.figures(*case, areas)["published"]
    limits = {"small": (0, 1024), "medium": (1024, 9216), "large": (9216, 20736), "huge": (20736, 10**8)}
    expected = {}
    for percent in (50, 75):
        for name in ("all", "visible", *limits):
            low, high = limits.get(name, (0, 10**8))
            rows = [
                row
                for row, area in zip(zip(*case), areas)
                if name == "all" or (row[2] and (name == "visible" or low <= area < high))
            ]
            if rows:
                part = tuple(map(np.array, zip(*rows)))
                area, best = slow_published(part, percent / 100)
                precision = slow_counts(*part, -1000, False, percent / 100)[0]
                expected[f"{name}@{percent}"] = {"n": len(rows), "precision": precision, "ap": area, "max_f1": best}
                visible = part[1][part[2]]
                if len(visible):
                    expected[f"{name}@{percent}"]["auc"] = metrics.auc(visible)
    assert found.keys() == expected.keys()
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, abs=1e-12), name


def test_closed_forms():
    confidences = np.linspace(1, 0, 10)
    sounding = np.arange(10) < 5
    assert detection.average_precision(confidences, sounding * 0.9, sounding) == 1  # sounding first, well localized
    assert detection.max_f1(confidences, sounding * 0.9, sounding) == 1
    assert detection.average_precision(confidences, sounding * 0.4, sounding) == 0  # all in the wrong place
    assert detection.average_precision(np.full(10, 0.3), sounding * 0.9, sounding) == 0.5  # cannot tell: the base rate
    # published: a wrong place is no miss, so recall is 1 although four of five are lost
    iou = np.where(np.arange(10) == 0, 0.9, 0)
    assert detection.precision_recall(confidences, iou, sounding, [-1000], standard=False)[1] == 1
    assert detection.precision_recall(confidences, iou, sounding, [-1000])[1] == 0.2


def test_without_a_sounding_sample_nothing_is_found():
    figures = detection.figures([0.2, 0.8], [0, 0], [False, False], [0, 0])
    assert figures == {
        "n": 2,
        "n_sounding": 0,
        "ap": 0,
        "ap_published": 0,
        "max_f1": 0,
        "max_f1_published": 0,
        "f1_at_half": 0,
        "f1_at_half_published": 0,
        "published": {name: {"n": 2, "precision": 0, "ap": 0, "max_f1": 0} for name in ("all@50", "all@75")},
    }


def test_an_iou_of_one_half_is_a_hit_but_not_in_the_published_precision_at_50():
    figures = detection.figures([0.9, 0.8], [0.5, 0.7], [True, True], [50, 50000])
    assert figures["loc_acc"] == 1 and figures["precision_at_50"] == 0.5
    assert (figures["loc_acc_small"], figures["n_small"], figures["loc_acc_huge"], figures["n_huge"]) == (1, 1, 1, 1)
    assert "loc_acc_medium" not in figures and figures["auc"] == metrics.auc([0.5, 0.7])


def test_sizes():
    areas = [0, 1, 1023, 1024, 9215, 9216, 20735, 20736, 50176]
    assert detection.size_subset(areas).tolist() == [
        "small",
        "small",
        "small",
        "medium",
        "medium",
        "large",
        "large",
        "huge",
        "huge",
    ]


@pytest.mark.parametrize("levels", [2, None])
def test_confidence_is_the_mean_of_the_top_quarter(levels):
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((20, 9, 7)) if levels is None else rng.integers(0, levels, (20, 9, 7)).astype(float)
    maps[3] = 0.7
    expected = [sum(sorted(m.reshape(-1).tolist())[-15:]) / 15 for m in maps]
    np.testing.assert_allclose(detection.confidence(maps), expected, atol=1e-12)


def test_bad_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="sounding: expected 2 samples to match confidences, got 3"):
        detection.max_f1([0.1, 0.2], [0.1, 0.2], [True] * 3)
    with pytest.raises(ValueError, match="confidences: sample 1 is NaN"):
        detection.average_precision([0.1, np.nan], [0.1, 0.2], [True] * 2)
    with pytest.raises(ValueError, match="iou: sample 0 is NaN"):
        detection.max_f1([0.1, 0.2], [np.nan, 0.2], [True] * 2)
    with pytest.raises(ValueError, match="confidences: expected at least one sample"):
        detection.max_f1_published([], [], [])
    with pytest.raises(ValueError, match="fraction: expected a share of at least one of 4 pixels, got 0.1"):
        detection.confidence(np.zeros((1, 2, 2)), 0.1)
