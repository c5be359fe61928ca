"""Mean IoU and F-score against loops over images, and the rules for nothing there and nothing predicted."""

import numpy as np
import pytest

from ssl_fast.evaluation import segmentation
from ssl_fast.evaluation.segmentation import Segmentation, figures


def test_iou_and_f_equal_a_loop_over_pixels():
    rng = np.random.default_rng(0)
    prediction, truth = rng.random((30, 5, 6)) < 0.5, (rng.random((30, 5, 6)) < 0.4).astype(np.float32)
    truth[3], prediction[4], truth[5], prediction[5] = 0, False, 0, False
    got = segmentation.segmentation(prediction, truth)
    for i, (b, g) in enumerate(zip(prediction.reshape(30, -1), truth.reshape(30, -1) > 0)):
        both = sum(x and y for x, y in zip(b, g))
        either = sum(x or y for x, y in zip(b, g))
        if not g.any():
            assert got.iou[i] == pytest.approx(sum(not x for x in b) / 30)
            assert np.isnan([got.f[i], got.f_whole[i]]).all()
            continue
        assert got.iou[i] == pytest.approx(both / either)

        def f(hits, predicted):
            p, r = (hits / predicted if predicted else 0), hits / sum(g)
            return 1.3 * p * r / (0.3 * p + r) if p + r else 0

        assert got.f[i] == pytest.approx(f(both, sum(b))) and got.f_whole[i] == pytest.approx(f(sum(g), 30))


def test_rules_for_nothing():
    nothing, whole = np.zeros((1, 4, 4), bool), np.ones((1, 4, 4), bool)
    assert segmentation.segmentation(nothing, nothing).iou == 1 and segmentation.segmentation(whole, nothing).iou == 0
    assert segmentation.segmentation(nothing, whole)[:2] == (0, 0)
    assert segmentation.segmentation(whole, whole) == (1, 1, 1)


def test_means_over_samples_and_published_over_batches():
    iou = np.array([0.2, 0.4, 0.6, 1.0])
    values = Segmentation(iou, np.array([0.1, np.nan, 0.3, 0.5]), np.array([0.2, np.nan, 0.6, 0.7]))
    got = figures(values, batch=3)
    assert got == {
        "n_object": 3,
        "miou": pytest.approx(0.55),
        "miou_published": pytest.approx((0.4 + 1) / 2),
        "f_score": pytest.approx(0.3),
        "f_score_published": pytest.approx(0.5),
    }
    assert figures(Segmentation(iou, *np.full((2, 4), np.nan))) == {
        "n_object": 0,
        "miou": pytest.approx(0.55),
        "miou_published": pytest.approx(0.55),
    }
    with pytest.raises(ValueError, match="iou: expected at least one sample"):
        figures(Segmentation(*np.zeros((3, 0))))
