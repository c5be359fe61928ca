"""AVSBench-Robust's figures against loops over pixels, closed forms, and what the released program computes."""

import numpy as np
import pytest
import torch

from evaluation_fakes import FakeLocalizer, FakeSet
from ssl_fast.evaluation import evaluate, protocols, robustness
from ssl_fast.evaluation.metrics import upsample
from ssl_fast.evaluation.segmentation import Segmentation, segmentation

KINDS = ("silence", "noise", "offscreen")


def loops(prediction, mask):
    """IoU, F and the predicted share of one image, pixel by pixel in Python's float64; F is None without an object."""
    both = either = predicted = objects = empty = pixels = 0
    for row, truth in zip(prediction, mask):
        for b, g in zip(row, truth):
            both, either = both + bool(b and g), either + bool(b or g)
            predicted, objects = predicted + bool(b), objects + bool(g)
            empty, pixels = empty + (not b and not g), pixels + 1
    if not objects:
        return empty / pixels, None, predicted / pixels
    precision, recall = both / predicted if predicted else 0.0, both / objects
    f = 1.3 * precision * recall / (0.3 * precision + recall) if both else 0.0
    return both / either, f, predicted / pixels


def mean(values):
    values = [value for value in values if value is not None]
    return sum(values) / len(values)


def harmonic(a, b):
    return 2 * a * b / (a + b) if a + b else 0.0


def twin(positive, negatives, masks):
    """The figures of the docstring by `loops`; positive (N, H, W), negatives {kind: (N, H, W)} bool."""
    own = [loops(b, g) for b, g in zip(positive, masks)]
    under = {kind: [loops(b, g) for b, g in zip(maps, masks)] for kind, maps in negatives.items()}
    seen = {kind: [one for one in values if one[1] is not None] for kind, values in under.items()}
    out = {"n_object": sum(f is not None for _, f, _ in own)}
    out |= {"miou": mean(iou for iou, _, _ in own), "f_score": mean(f for _, f, _ in own)}
    out |= {f"miou_{kind}": mean(iou for iou, _, _ in values) for kind, values in seen.items()}
    out |= {f"f_score_{kind}": mean(f for _, f, _ in values) for kind, values in seen.items()}
    out |= {f"fpr_{kind}": mean(area for _, _, area in values) for kind, values in under.items()}
    out["g_miou"] = harmonic(out["miou"], 1 - mean(out[f"miou_{kind}"] for kind in under))
    out["g_f"] = harmonic(out["f_score"], 1 - mean(out[f"f_score_{kind}"] for kind in under))
    out["g_fpr"] = mean(out[f"fpr_{kind}"] for kind in under)
    out["g_miou_fpr"] = harmonic(out["miou"], 1 - out["g_fpr"])
    whole = mean(loops(np.ones_like(g), g)[1] for g in masks)
    with_empty = [mean(iou for iou, _, _ in values) for values in under.values()]
    out["g_miou_published"] = harmonic(out["miou"], 1 - mean(with_empty))
    best = [max(whole, out[f"f_score_{kind}"]) for kind in under]
    out["g_f_published"] = harmonic(max(whole, out["f_score"]), 1 - mean(best))
    return out


@pytest.fixture(scope="module")
def data():
    """Maps of the size of the masks; one mask and one prediction is empty, one map covers all."""
    rng = np.random.default_rng(3)
    maps, *others = rng.uniform(-1, 1, (4, 7, 9, 8)).astype(np.float32)
    masks = rng.random((7, 9, 8)) < 0.3
    masks[2], maps[3], others[1][3], others[2][4] = False, -1, -1, 1
    return maps, dict(zip(KINDS, others)), masks


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_figures_equal_loops_over_pixels(data, backend):
    maps, negatives, masks = data
    got = protocols.run("avsbench_robust", maps, masks, negatives=negatives, threshold=0.1, backend=backend, batch=3)
    expected = twin(maps > 0.1, {kind: values > 0.1 for kind, values in negatives.items()}, masks)
    assert got["figures"]["audio_visual"]["robustness"] == pytest.approx(expected, abs=1e-12)


def test_maps_are_enlarged_and_mixed_as_the_positive_one(data):
    """A coarse map and a prior, and a threshold of the samples' own, which the names then say."""
    rng = np.random.default_rng(4)
    maps, prior, negative = rng.uniform(-1, 1, (3, 5, 3, 4)).astype(np.float32)
    masks = rng.random((5, 12, 12)) < 0.4
    got = protocols.run("avsbench_robust", maps, masks, prior=prior, negatives={"noise": negative})
    threshold = np.percentile(negative.max((1, 2)), 75)
    assert got["threshold"] == pytest.approx(threshold)
    full, objects, noise = (upsample(one, 12) for one in (maps, prior, negative))
    for name, own, other in (
        ("audio_visual", full, noise),
        ("prior", objects, objects),
        ("mixed", *(0.4 * one + 0.6 * objects for one in (full, noise))),
    ):
        figures = got["figures"][name]["robustness"]
        expected = twin(own > threshold, {"noise": other > threshold}, masks)
        renamed = {key if key == "n_object" else f"{key}_test_threshold": value for key, value in expected.items()}
        assert figures == pytest.approx(renamed, abs=1e-6)


def test_closed_forms():
    """A model that hears: 1. One that does not: H(m, 1 - m), as 86.20 and 23.79 of a published table. Nothing: 0."""
    masks = np.zeros((5, 20, 50), bool)
    masks[:, :, :10] = True
    masks[4] = False  # a frame without an object
    nothing, areas = np.zeros_like(masks), {"silence": np.zeros(5)}
    best = robustness.figures(segmentation(masks, masks), {"silence": segmentation(nothing, masks)}, areas)
    assert best["g_miou"] == best["g_f"] == best["miou"] == best["g_miou_fpr"] == 1 and best["g_fpr"] == 0
    assert best["g_miou_published"] == pytest.approx(2 * 0.8 / 1.8)  # an empty answer counts against it there
    deaf = Segmentation(np.full(4, 0.862), np.full(4, 0.9), np.full(4, 0.3))
    figures = robustness.figures(deaf, dict.fromkeys(KINDS, deaf), {kind: np.full(4, 0.25) for kind in KINDS})
    assert round(100 * figures["g_miou"], 2) == 23.79 and figures["g_f"] == pytest.approx(2 * 0.9 * 0.1)
    assert figures["g_fpr"] == 0.25 and figures["g_miou_fpr"] == pytest.approx(2 * 0.862 * 0.75 / 1.612)
    none = robustness.figures(segmentation(nothing, masks), {"silence": segmentation(nothing, masks)}, areas)
    assert none["g_miou"] == pytest.approx(2 * 0.2 / 1.2) and none["g_f"] == 0  # 0.2: the frame that is rightly empty
    empty = segmentation(nothing, nothing)
    assert robustness.figures(empty, {"silence": empty}, areas) == {
        "n_object": 0,
        "miou": 1,
        "fpr_silence": 0,
        "g_fpr": 0,
        "g_miou_fpr": 1,
    }


def test_the_released_programs_numbers(data):
    """Its mask_iou and calculate_FPR, written down from their description with torch: of logits, at a sigmoid of .5."""
    logits, mask = torch.from_numpy(data[0]), torch.from_numpy(data[2]).float()
    predicted = (torch.sigmoid(logits) > 0.5).float()
    union = torch.maximum(predicted, mask).sum((1, 2))
    without = mask.sum((1, 2)) == 0
    inter = torch.where(without, ((1 - mask) * (1 - predicted)).sum((1, 2)), (predicted * mask).sum((1, 2)))
    iou = inter / (torch.where(without, torch.full_like(union, 72.0), union) + 1e-7)
    got = protocols.run("avsbench_robust", data[0], data[2], negatives={"noise": data[0]}, threshold=0.0)
    figures = got["figures"]["audio_visual"]["robustness"]
    assert figures["miou"] == pytest.approx(float(iou.mean()), abs=1e-6)
    assert figures["fpr_noise"] == pytest.approx(float(predicted.mean()), abs=1e-6)


def test_evaluation_takes_the_masks():
    """Not the boxes, of which they are every other column; baselines have no threshold."""
    objects = [[(0, 0, 0, 2, 2), (1, 2, 2, 2, 2)], [(2, 1, 1, 2, 2)]]
    options = {"published": ["avsbench_robust"], "negatives": ("silence", "noise"), "threshold": 0.4, "progress": False}
    fake = FakeSet(objects, masks=True)
    got = evaluate(FakeLocalizer(alarm=0.6), {"fake": fake}, **options)["protocols"]["fake"]["avsbench_robust"]
    assert [*got] == ["model"]
    low, alarm = np.zeros((3, 4, 4), np.float32), np.zeros((3, 4, 4), np.float32)
    for i in range(3):
        low[i][fake.block(i, 1)], alarm[i, 0, 0] = 0.9, 0.6
    positive, negative = (upsample(maps, 16) > 0.4 for maps in (low, alarm))
    expected = twin(positive, dict.fromkeys(("silence", "noise"), negative), [fake.mask(i) for i in range(3)])
    figures = got["model"]["figures"]["audio_visual"]["robustness"]
    assert figures == pytest.approx(expected, abs=1e-9) and 0 < figures["g_fpr"] < 0.1
    with pytest.raises(ValueError, match="set 'fake', sample 'image0_a': expected a mask for protocol 'avsb"):
        evaluate(FakeLocalizer(), {"fake": FakeSet(objects)}, **options)


def test_what_is_missing(data):
    maps, negatives, masks = data
    with pytest.raises(ValueError, match="threshold: expected the universal one for protocol 'avsbench_robust'"):
        protocols.Accumulator("avsbench_robust")
    with pytest.raises(ValueError, match="negatives: expected maps under at least one kind of negative for robustness"):
        protocols.run("avsbench_robust", maps, masks, threshold=0.1)
    with pytest.raises(ValueError, match="ground_truth: expected 0 and 1 for robustness, sample 0 has weights"):
        protocols.run("avsbench_robust", maps, masks * 0.5, negatives=negatives, threshold=0.1)
