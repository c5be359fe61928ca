"""Ceilings of the top-50 % rule against exhaustive search, closed forms and the figures of the published sets."""

import itertools

import numpy as np
import pytest

from ssl_fast.data.annotations import read, weight_map
from ssl_fast.evaluation import ceilings, metrics
from test_annotations import FOLDER, published


def test_best_iou_is_the_best_of_all_predictions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.choice([0, 0.5, 1], (3, 3)).astype(np.float32)
        truth[0, 0] = 1
        for pixels in (1, 4, 9):
            every = np.zeros((126 if pixels == 4 else 9 if pixels == 1 else 1, 9), bool)
            for row, chosen in zip(every, itertools.combinations(range(9), pixels)):
                row[list(chosen)] = True
            iou = metrics.consensus_iou(every.reshape(-1, 3, 3), np.repeat(truth[None], len(every), 0))
            assert ceilings.best_iou(truth, pixels) == pytest.approx(iou.max(), abs=1e-12)
    assert ceilings.best_iou(np.zeros((3, 3)), 4) == 0
    with pytest.raises(ValueError, match="pixels: expected 1 to 9, got 10"):
        ceilings.best_iou(truth, 10)


def test_centre_square_is_scored_as_every_prediction():
    truths = [weight_map(np.array([[30, 40, 200, 190], [100, 5, 120, 220]]), rule) for rule in ("union", "consensus")]
    square = np.repeat(ceilings.centre_square(25088), 2, 0)
    got = ceilings.ceilings(truths)["centre square"]
    iou = metrics.consensus_iou(square, np.stack(truths))
    assert got == (metrics.success_rate(iou), metrics.auc(iou)) and 0.3 < got.auc < 0.9


def test_whole_frame_is_a_success_by_one_pixel():
    found = ceilings.ceilings([np.ones((224, 224), np.float32)])
    assert found["best >="].success == 1 and found["best >"].success == 0
    with pytest.raises(ValueError, match="expected at least one sample"):
        ceilings.ceilings([])


def test_centre_square():
    for pixels in (25088, 158**2, 160**2, 1000):
        square = ceilings.centre_square(pixels)[0]
        assert square.sum() == pixels
        rows, columns = np.nonzero(square)
        ring = np.maximum(abs(2 * rows - 223), abs(2 * columns - 223))
        out = ~square
        rows, columns = np.nonzero(out)
        assert ring.max() <= np.maximum(abs(2 * rows - 223), abs(2 * columns - 223)).min()


# set, file, list; success of the best prediction at >= and >, its AUC, success of the centre square; percent. The table
# has been rounded twice: up to .0055 from the value.
TABLE = [
    ("vgg-ss", "vggss.json", None, 50.54, 50.49, 49.5, 31.83),
    ("vgg-ss", "vggss.json", "vggss_heard_test.csv", 48.36, 48.28, 48.2, 30.03),
    ("vgg-ss", "vggss.json", "vggss_unheard_test.csv", 52.39, 52.35, 50.6, 33.40),
    ("is3", "synthetic3240_bbox.json", None, 58.61, 58.49, 55.5, None),
    ("s4", "s4_box.json", None, 58.87, 58.87, 53.8, None),
]


@pytest.mark.slow
@published
@pytest.mark.parametrize(
    "name, file, ids, with_ties, without, auc, centre",
    TABLE,
    ids=["vggss", "vggss_heard", "vggss_unheard", "is3", "s4"],
)
def test_ceilings_of_published_sets(name, file, ids, with_ties, without, auc, centre):
    found = read(name, FOLDER / file, ids=ids and FOLDER / ids)
    got = ceilings.ceilings(weight_map(sample.boxes, found.rule) for sample in found.samples)
    assert 100 * got["best >="].success == pytest.approx(with_ties, abs=0.0055)
    assert 100 * got["best >"].success == pytest.approx(without, abs=0.0055)
    assert 100 * got["best >="].auc == pytest.approx(auc, abs=0.055)
    if centre is not None:
        assert 100 * got["centre square"].success == pytest.approx(centre, abs=0.0055)
