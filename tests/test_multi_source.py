"""CAP, PIAP and class-aware IoU against loops over pixels, permutations and images; AP in closed form."""

import itertools
import json

import numpy as np
import pytest
import scipy.optimize
import torch

from evaluation_fakes import FakeLocalizer, FakeSet
from ssl_fast.evaluation import evaluate, multi_source, protocols
from ssl_fast.evaluation.protocol_records import BICUBIC
from ssl_fast.evaluation.protocols import Protocol


def slow_ap(scores, truth):
    """By definition, in pure Python: every distinct score is a threshold."""
    scores, truth = [float(s) for s in scores], [bool(t) for t in truth]
    total, before, ap = sum(truth), 0.0, 0.0
    for s in sorted(set(scores), reverse=True):
        true = sum(t for score, t in zip(scores, truth) if score >= s)
        recall, precision = true / total, true / sum(score >= s for score in scores)
        ap, before = ap + (recall - before) * precision, recall
    return ap


@pytest.mark.parametrize("levels", [3, 1000])  # with many ties, and with few
def test_average_precision_equals_a_loop(levels):
    rng = np.random.default_rng(0)
    scores = rng.integers(-levels, levels, 90).astype(np.float32)
    truth = rng.random((6, 90)) < rng.random((6, 1))
    expected = [slow_ap(scores, one) for one in truth]
    np.testing.assert_allclose(multi_source.average_precision(scores, truth), expected, rtol=1e-13)


def test_average_precision_equals_torchmetrics():
    """Which DenseAV's program calls."""
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(4)
    scores, truth = rng.integers(0, 90, 5000).astype(np.float32) / 90, rng.random((3, 5000)) < 0.2
    for own, got in zip(truth, multi_source.average_precision(scores, truth)):
        wanted = classification.binary_average_precision(torch.from_numpy(scores), torch.from_numpy(own.astype(int)))
        assert got == pytest.approx(wanted.item(), abs=1e-6)


def test_average_precision_in_closed_form():
    pixels, true = 200, 37
    truth = np.arange(pixels) < true
    got = [multi_source.average_precision(s, truth[None])[0] for s in (truth * 1.0, np.full(pixels, 0.3), ~truth * 1.0)]
    # the object first; all at once; nothing of the object before all of the rest
    assert got == [1, pytest.approx(true / pixels), pytest.approx(true / pixels)]
    last = multi_source.average_precision(np.arange(pixels), truth[None])[0]  # the worst order, without ties
    assert last == pytest.approx(np.mean([k / (pixels - true + k) for k in range(1, true + 1)]))
    assert np.isnan(multi_source.average_precision(np.arange(3.0), np.zeros((1, 3), bool))).all()
    with pytest.raises(ValueError, match="scores: expected numbers, pixel 1 is NaN"):
        multi_source.average_precision(np.array([0, np.nan]), np.ones((1, 2), bool))
    with pytest.raises(ValueError, match=r"truth: expected \(K, 2\) to match scores, got \(1, 3\)"):
        multi_source.average_precision(np.zeros(2), np.ones((1, 3), bool))


def test_assignment_equals_all_permutations_and_scipys():
    rng = np.random.default_rng(1)
    for maps, sources in ((1, 1), (2, 2), (3, 3), (5, 5), (4, 2)):
        values = rng.random((maps, sources))
        best = max(
            sum(values[j, k] for k, j in enumerate(rows)) for rows in itertools.permutations(range(maps), sources)
        )
        rows, columns = scipy.optimize.linear_sum_assignment(values, maximize=True)
        assert multi_source.best_assignment(values) == pytest.approx(best) == values[rows, columns].sum()


def test_binary_aps_are_those_of_maps_with_two_values():
    """scikit-learn's arguments in order, and the other way round."""
    rng = np.random.default_rng(2)
    predicted, truth = rng.random((2, 20, 50)) < rng.random((2, 20, 1))
    predicted[3], predicted[4], truth[5], truth[6] = False, True, True, False
    hit, false, area = (predicted & truth).sum(1), (predicted & ~truth).sum(1), truth.sum(1)
    no_prior, avgn = multi_source.binary_aps(hit, false, area, 50)
    for i in range(20):
        if not truth[i].any():
            assert np.isnan([no_prior[i], avgn[i]]).all()
            continue
        assert no_prior[i] == pytest.approx(slow_ap(predicted[i], truth[i]))
        if predicted[i].any():
            assert avgn[i] == pytest.approx(slow_ap(truth[i], predicted[i]))
    assert avgn[3] == 0  # nothing is predicted


N, SIDE = 11, 16
IMAGES = [*"aabbbccdefa"]  # one of a's sources comes last
CLASSES = [*"xyxyzxyzxxz"]


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(3)
    maps = rng.uniform(-1, 1, (N, 4, 4)).astype(np.float32)
    truth = np.zeros((N, SIDE, SIDE), np.float32)
    for image in truth:
        y, x, h, w = rng.integers(1, 8, 4)
        image[y : y + h, x : x + w] = 1
    truth[4] = 0
    return maps, truth


def test_figures_equal_loops_over_images(samples):
    maps, truth = samples
    protocol = Protocol("mine", figures=("sources",), grouped=True, successes=(0.1, 0.3))
    got = protocols.run(protocol, maps, truth, image_ids=IMAGES, categories=CLASSES, batch=3)
    found = got["figures"]["audio_visual"]["sources"]
    full = protocol.positive(maps, (SIDE, SIDE))
    ap = {(j, k): slow_ap(full[j].ravel(), truth[k].ravel()) for j in range(N) for k in range(N) if truth[k].any()}
    own = {k: ap[k, k] for k in range(N) if truth[k].any()}
    by_class = [np.mean([own[k] for k in own if CLASSES[k] == name]) for name in "xyz"]
    piap, groups = [], [[k for k in range(N) if IMAGES[k] == image] for image in "abcdef"]
    for group in groups:
        there = [k for k in group if truth[k].any()]
        orders = itertools.permutations(group, len(there))
        piap.append(max(np.mean([ap[j, k] for j, k in zip(order, there)]) for order in orders))
    assert found["ap"] == pytest.approx(np.mean(list(own.values())))
    assert (found["cap"], found["classes"]) == (pytest.approx(np.mean(by_class)), 3)
    assert found["piap"] == pytest.approx(np.mean(piap)) and found["piap"] > found["ap"]
    assert (found["n_object"], found["images"]) == (10, 6)
    default = protocols.run("default", maps, truth, image_ids=IMAGES)
    for rule in ("adaptive", "top50"):
        iou = protocols.score(Protocol(), maps, truth)["audio_visual"][f"iou_{rule}"]
        together = [np.mean([iou[k] for k in group]) for group in groups]
        assert found[rule]["auc"] == default["figures"]["audio_visual"]["localization"][f"auc_{rule}"]
        for t in (10, 30):
            assert found[rule][f"ciou_{t}"] == np.mean([one >= t / 100 for one in iou])
            assert found[rule][f"image_ciou_{t}"] == np.mean([one >= t / 100 for one in together])
        thresholds = np.arange(21) / 20
        area = np.trapezoid([np.mean([one >= t for one in together]) for t in thresholds], thresholds)
        assert found[rule]["image_auc"] == pytest.approx(area)
    assert protocols.run(protocol, maps, truth, image_ids=IMAGES)["figures"]["audio_visual"]["sources"].keys() == (
        found.keys() - {"cap", "classes"}
    )


@pytest.mark.parametrize("name", ["avgn", "no_prior"])
def test_published_aps_equal_a_loop(name, samples):
    maps, truth = samples
    got = protocols.run(name, maps, truth, image_ids=IMAGES)["figures"]["audio_visual"]["sources"]["top50"]
    full = BICUBIC(maps, (SIDE, SIDE))
    cap, piap, ious = [], [], []
    for x, g in zip(full.reshape(N, -1), truth.reshape(N, -1)):
        threshold = np.sort(x)[x.size // 2]
        b = x >= threshold if name == "avgn" else x > threshold
        ious.append((b & (g > 0)).sum() / (b | (g > 0)).sum())
        if g.any():
            cap.append(slow_ap(b, g)), piap.append(slow_ap(g, b))
    assert got["cap_no_prior"] == pytest.approx(np.mean(cap), abs=0.02)  # rounding may move a pixel of 256
    assert got["piap_avgn"] == pytest.approx(np.mean(piap), abs=0.02)
    assert got["ciou_30"] == pytest.approx(np.mean(np.array(ious) >= 0.3), abs=1 / N)


def test_swapped_maps_lose_cap_and_keep_piap(samples):
    """A map that is right for the other source of its image."""
    truth = np.zeros((4, 8, 8), np.float32)
    truth[0, :3, :3] = truth[1, 4:, 4:] = truth[2, :, :2] = truth[3, :2, 5:] = 1
    given = {"image_ids": [*"aabb"], "categories": [*"xyxy"]}
    right, wrong = (
        protocols.run("sources", maps, truth, **given)["figures"]["audio_visual"]["sources"]
        for maps in (truth, truth[[1, 0, 3, 2]])
    )
    assert right["cap"] == right["piap"] == right["ap"] == wrong["piap"] == 1
    assert right["adaptive"]["image_ciou_75"] == 1 and wrong["adaptive"]["ciou_30"] == 0
    share = truth.mean((1, 2))  # an object that comes after the wrong pixels enters with all the others
    assert wrong["ap"] == pytest.approx(share.mean())


def test_what_is_missing_is_named(samples):
    maps, truth = samples
    with pytest.raises(ValueError, match="image_ids: expected 11 values for protocol 'sources', got None"):
        protocols.run("sources", maps, truth, batch=N, backend="reference", image_ids=None)
    total = protocols.Accumulator("sources")
    with pytest.raises(ValueError, match="sources: expected those of 11 samples for 'sources', got None"):
        total.update(maps, truth, image_ids=IMAGES)
    sources = [multi_source.Sources(0, truth[:2])] * 2
    total.update(maps[:2], truth[:2], image_ids=["a", "b"], sources=sources)
    with pytest.raises(ValueError, match="image_ids: expected all 2 sources of image 'a', got 1"):
        total.compute()
    with pytest.raises(ValueError, match="ground_truth: expected 0 and 1 for sources, sample 1 has weights between"):
        protocols.run("sources", maps, truth * np.where(np.arange(N) == 1, 0.5, 1)[:, None, None], image_ids=IMAGES)
    with pytest.raises(ValueError, match=r"categories: expected 11 values for protocol 'denseav', got None"):
        protocols.run("denseav", maps, truth)
    with pytest.raises(ValueError, match="categories: expected a value for each map, sample 2 has None"):
        protocols.run("denseav", maps, truth, categories=["x", "y", None, *"zzzzzzzz"])
    with pytest.raises(ValueError, match="image_ids: expected at most 16 sources of an image, 'a' has 17"):
        multi_source.by_image(["a"] * 17)
    with pytest.raises(ValueError, match="protocol 'mine': expected sources with neither squashed_truth nor exact_ma"):
        Protocol("mine", figures=("sources",), exact_masks=True)


def test_evaluation_of_sets_with_images_of_several_sources():
    """A model that hears tells the sources apart, one that does not ranks them alike; the baselines stand beside it."""
    objects = [
        [(0, 0, 0, 2, 2), (1, 2, 2, 2, 2)],
        [(2, 0, 2, 2, 2), (0, 2, 0, 2, 2), (1, 0, 0, 1, 1)],
        [(1, 1, 1, 2, 2)],
    ]
    for hears in (True, False):
        settings = {"published": ["sources"], "negatives": ["silence"], "batch_size": 4, "progress": False}
        results = evaluate(FakeLocalizer(hears), {"set": FakeSet(objects)}, **settings)
        json.dumps(results, allow_nan=False)
        rows = results["protocols"]["set"]["sources"]
        model = rows["model"]["figures"]["audio_visual"]["sources"]
        assert rows.keys() == {"model", "whole_image", "centre_box", "random", "objectness"} and model["images"] == 3
        assert model["n_object"] == 6 and model["classes"] == 3
        if hears:
            assert model["adaptive"]["ciou_75"] == model["adaptive"]["image_ciou_75"] == 1
            assert model["ap"] > 0.95
        else:
            assert model["piap"] < 0.8 and model["adaptive"]["ciou_75"] < 0.5
        flat = rows["whole_image"]["figures"]["audio_visual"]["sources"]
        areas = [w * h / 16 for shown in objects for *_, w, h in shown]
        assert flat["ap"] == pytest.approx(np.mean(areas))


LACKING = {
    "denseav": ({"categories": [None] * 3}, "expected the category that is prompted for protocol 'denseav', got none"),
    "sources": (
        {"sounding": [True, True, False]},
        "'image1_a': expected a source in the image for protocol 'sources', g",
    ),
    "avgn": ({"of_videos": True}, "expected single images for protocol 'avgn', got several frames of each video"),
    "avsbench_robust": ({}, "'image0_a': expected a mask for protocol 'avsbench_robust', got boxes"),
    "avsbench": ({"half": True}, "'image0_a': expected ground truth of 0 and 1 for protocol 'avsbench', got weights"),
    "vssl_eval": ({"negatives": []}, "expected negative sounds for protocol 'vssl_eval', got none"),
    "vssl_eval_unit": (
        {"negatives": ["offscreen"], "categories": [None] * 3},
        "'image0_a': expected the categories that off-screen sounds need for protocol 'vssl_eval_unit', g",
    ),
}


@pytest.mark.parametrize("name", LACKING)
def test_what_a_set_lacks_is_told_before_the_pass(name):
    """Also where a threshold is given, so that no pass chooses one; nothing is localized."""
    lacks, message = dict(LACKING[name][0]), LACKING[name][1]
    negatives, half = lacks.pop("negatives", ["silence"]), lacks.pop("half", False)

    class Lacking(FakeSet):
        def ground_truth(self, sample):
            return super().ground_truth(sample) / (2 if half else 1)

    one = Lacking([[(0, 0, 0, 2, 2), (1, 2, 2, 2, 2)], [(0, 1, 1, 2, 2)]])
    vars(one).update(lacks)
    with pytest.raises(ValueError, match=f"set 'set'.*{message}"):
        evaluate(lambda *_: pytest.fail("a pass"), {"set": one}, published=[name], negatives=negatives, threshold=0.5)
