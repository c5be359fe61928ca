"""Metrics under negative sounds against loops and closed forms."""

import itertools

import numpy as np
import pytest

from ssl_fast.evaluation import false_alarms, metrics


def test_pia_is_the_share_strictly_above():
    maps = np.array([[[0.1, 0.5], [0.5000001, -1]], [[0.5, 0.5], [0.5, 0.5]], [[0.6, 0.6], [0.6, 0.6]]])
    assert false_alarms.pia(maps, 0.5).tolist() == [0.25, 0, 1]
    with pytest.raises(ValueError, match="maps: sample 1 holds 1 values that are NaN"):
        false_alarms.pia(np.array([[[0.0]], [[np.nan]]]), 0.5)


def test_auc_n_equals_a_loop():
    areas = np.random.default_rng(0).random(50) ** 3
    rates = [np.mean([a <= 0.05 * i for a in areas]) for i in range(21)]
    assert false_alarms.auc_n(areas) == pytest.approx(
        sum((a + b) / 40 for a, b in itertools.pairwise(rates)), abs=1e-12
    )
    assert false_alarms.auc_n(np.zeros(3)) == 1 and false_alarms.auc_n([1e-6]) == pytest.approx(0.975)
    assert false_alarms.auc_n(np.ones(2)) == pytest.approx(0.025)


def test_map_iou_and_its_rule_for_nothing():
    rng = np.random.default_rng(0)
    first, second = rng.random((20, 3, 4)) < 0.5, rng.random((20, 3, 4)) < 0.3
    first[0] = second[0] = first[1] = False
    second[1, 0, 0] = True
    got = false_alarms.map_iou(first, second)
    assert got[0] == 1 and got[1] == 0
    for a, b, iou in zip(first[2:].reshape(18, -1), second[2:].reshape(18, -1), got[2:]):
        assert iou == pytest.approx(sum(x and y for x, y in zip(a, b)) / sum(x or y for x, y in zip(a, b)))
    with pytest.raises(TypeError, match=r"second: expected bool \(N, H, W\), got float64 \(20, 3, 4\)"):
        false_alarms.map_iou(first, second.astype(float))


def test_figures_are_their_definitions():
    rng = np.random.default_rng(0)
    iou, areas = rng.random(30), {kind: rng.random(30) ** 2 for kind in ("silence", "noise")}
    overlaps = {key: rng.random(30) for key in ("silence", "noise", "silence_noise")}
    got = false_alarms.figures(iou, areas, overlaps)
    quiet = 1 - (areas["silence"].mean() + areas["noise"].mean()) / 2
    assert got["f_loc"] == pytest.approx(2 * iou.mean() * quiet / (iou.mean() + quiet))
    calm = (false_alarms.auc_n(areas["silence"]) + false_alarms.auc_n(areas["noise"])) / 2
    assert got["f_auc"] == pytest.approx(2 * metrics.auc(iou) * calm / (metrics.auc(iou) + calm))
    assert got["overlap_negatives"] == got["overlap_silence_noise"] == pytest.approx(overlaps["silence_noise"].mean())
    assert got["pia_noise"] == pytest.approx(areas["noise"].mean()) and got["mean_iou"] == pytest.approx(iou.mean())
    nothing = false_alarms.figures(np.zeros(2), {"noise": np.ones(2)}, {"noise": np.zeros(2)})
    assert nothing["f_loc"] == 0 and "overlap_negatives" not in nothing


def test_universal_threshold_is_the_highest_third_quartile():
    maxima = {"silence": np.arange(5.0), "noise": np.array([0, 0, 0, 10.0]), "offscreen": np.array([2.9, 2.9])}
    expected = (3.0, {"silence": 3.0, "noise": 2.5, "offscreen": pytest.approx(2.9)})
    assert false_alarms.universal_threshold(maxima) == expected
    with pytest.raises(ValueError, match=r"maxima\['noise'\]: sample 1 is NaN"):
        false_alarms.universal_threshold({"noise": [0, np.nan]})
    with pytest.raises(ValueError, match="at least one kind"):
        false_alarms.universal_threshold({})


def test_auroc_counts_pairs_and_ties_by_half():
    rng = np.random.default_rng(0)
    for decimals in (1, 9):  # many ties, and none
        positive, negative = rng.normal(0.3, 1, 70).round(decimals), rng.normal(0, 1, 40).round(decimals)
        pairs = [(p > q) + (p == q) / 2 for p in positive for q in negative]
        assert false_alarms.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    ties = sum(p == q for p in positive.round(1) for q in negative.round(1))
    assert ties > 30
    assert false_alarms.auroc([2, 3], [0, 1, 1]) == 1 and false_alarms.auroc([0], [1, 2]) == 0
    assert false_alarms.auroc([0.5] * 3, [0.5] * 4) == 0.5
    with pytest.raises(ValueError, match="negative: expected at least one sample, got none"):
        false_alarms.auroc([1.0], [])


def test_separation_is_of_the_same_images():
    positive, noise = np.array([0.9, 0.2, 0.6]), np.array([0.1, 0.2, 0.4])
    got = false_alarms.separation(positive, {"silence": positive, "noise": noise})
    assert got == pytest.approx(
        {
            "max_difference_silence": 0,
            "max_difference_noise": (0.8 + 0 + 0.2) / 3,
            "auroc_silence": 0.5,
            "auroc_noise": (3 + 1.5 + 3) / 9,
        }
    )
    with pytest.raises(ValueError, match=r"negatives\['noise'\]: expected 3 maxima to match positive, got 2"):
        false_alarms.separation(positive, {"noise": noise[:2]})
