"""DenseAV's AP and mIoU over classes against loops over pixels."""

import numpy as np
import pytest
import torch

from ssl_fast.evaluation import prompted, protocols
from ssl_fast.evaluation.prompted import best_iou
from test_multi_source import slow_ap

CLASSES = [*"abcabacd"]


def slow_iou(scores, truth):
    """The best of 20 thresholds, in pure Python."""
    low, high = min(scores), max(scores)
    best = 0.0
    for k in range(20):
        above = [s > low + (high - low) * k / 19 for s in scores]
        either = sum(a or t for a, t in zip(above, truth))
        best = max(best, sum(a and t for a, t in zip(above, truth)) / either if either else 0)
    return best


def test_figures_equal_loops_over_the_pixels_of_each_class():
    rng = np.random.default_rng(0)
    maps, truth = rng.uniform(-3, 5, (8, 3, 3)).astype(np.float32), (rng.random((8, 9, 7)) < 0.3).astype(np.float32)
    truth[[0, 7]] = 0  # of class a in one sample, of class d in all
    found = protocols.run("denseav", maps, truth, categories=CLASSES, batch=3)["figures"]["audio_visual"]["prompted"]
    full = [torch.nn.functional.interpolate(torch.tensor(one)[None, None], (9, 7), mode="bilinear") for one in maps]
    aps, ious = [], []
    for name in "abc":
        own = [i for i in range(8) if CLASSES[i] == name]
        scores = [float(s) for i in own for s in full[i].flatten()]
        true = [bool(t) for i in own for t in truth[i].ravel()]
        aps.append(slow_ap(scores, true))
        ious.append(slow_iou(scores, true))
    assert found == {
        "map": pytest.approx(np.mean(aps)),
        "miou": pytest.approx(np.mean(ious)),
        "classes": 3,
        "classes_without_object": 1,
    }


def test_closed_forms():
    truth = np.zeros(100, bool)
    truth[:30] = True
    scores = truth.astype(np.float32)
    assert best_iou(scores, truth) == 1  # perfect
    assert best_iou(np.full(100, 2, np.float32), truth) == 0  # nothing is above its only value
    assert best_iou(1 - scores, truth) == 0
    three = np.where(truth, 1, np.arange(100) / 200).astype(np.float32)
    assert best_iou(three, truth) == 1
    values = {"perfect": truth * 1.0, "constant": np.ones(100), "inverted": ~truth * 1.0}
    for name, (ap, iou) in {"perfect": (1, 1), "constant": (0.3, 0), "inverted": (0.3, 0)}.items():
        maps = values[name].reshape(1, 10, 10).astype(np.float32)
        got = protocols.run("denseav", maps, truth.reshape(1, 10, 10), categories=["x"])
        figures = got["figures"]["audio_visual"]["prompted"]
        assert (figures["map"], figures["miou"]) == (pytest.approx(ap), iou)


def test_samples_without_a_class_are_refused():
    maps, truth = np.zeros((2, 2, 2), np.float32), np.ones((2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="categories: expected a value for each map, sample 1 has None"):
        protocols.run("denseav", maps, truth, categories=["a", None])


def test_what_is_kept_of_a_sample_is_small():
    kept = prompted.kept(np.zeros((2, 7, 7), np.float32), np.ones((2, 224, 224), bool))
    assert kept["truth"][0].nbytes == 224 * 224 // 8 and kept["map"].shape == (2, 7, 7)
    assert kept["size"].tolist() == [[224, 224]] * 2
