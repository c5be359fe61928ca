"""Protocols against slow loops written from their definitions; those with recorded values are in test_golden."""

import json

import numpy as np
import pytest
import torch

from ssl_fast.evaluation import protocols
from ssl_fast.evaluation.map_metrics import Rule, Upsampling
from ssl_fast.evaluation.protocols import PROTOCOLS, Accumulator, Protocol
from ssl_fast.ops import checks

N, SIDE = 9, 40
KINDS = ("silence", "noise", "offscreen")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(11)
    truth = np.zeros((N, SIDE, SIDE), np.float32)
    for image in truth:
        y, x, h, w = rng.integers(1, 20, 4)
        image[y : y + h, x : x + w] = 1
    truth[4] = 0

    def draw():
        return np.tanh(rng.standard_normal((N, 5, 5))).astype(np.float32)

    return {
        "maps": draw(),
        "ground_truth": truth,
        "prior": np.abs(draw()) * 2,
        "negatives": [{kind: draw() * 0.8 for kind in KINDS} for _ in range(2)],
        "image_ids": [f"image {i // 2}" for i in range(N)],
        "sounding": truth.any((1, 2)),
        "categories": [f"class {i % 3}" for i in range(N)],
    }


def enlarged(low, mode, corners):
    low = torch.from_numpy(np.ascontiguousarray(low))[None, None]
    return torch.nn.functional.interpolate(low, (SIDE, SIDE), mode=mode, align_corners=corners)[0, 0].numpy()


def min_max(x):
    return (x - x.min()) / (x.max() - x.min())


def iou(predicted, truth, empty=1):
    either = (predicted | (truth > 0)).sum()
    return (predicted & (truth > 0)).sum() / either if either else empty


# what is said of each protocol that has no recorded values: from one map (and prior) to one prediction
LOOPS = {
    "slavc_validation": lambda low, prior: (
        (x := min_max((enlarged(low / np.float32(0.03), "bicubic", False) + 1 / 0.03) / (2 / 0.03)))
        >= (np.sort(x.ravel())[SIDE * SIDE // 2])
    ),
    "fnac": lambda low, prior: (
        (
            x := min_max(
                0.4 * min_max(enlarged(low, "bilinear", True)) + 0.6 * min_max(enlarged(prior, "bilinear", True))
            )
        )
        >= (np.sort(x.ravel())[SIDE * SIDE // 2])
    ),
    "vsl_paper": lambda low, prior: (
        (
            x := 0.4 * 2 * enlarged(low.astype(np.float64), "bilinear", False)
            + 0.6 * 512 * enlarged(prior.astype(np.float64), "bilinear", False)
        )
        >= np.sort(x.ravel())[SIDE * SIDE // 2]
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_protocol_equals_a_loop_over_images(name, data):
    total = Accumulator(name)
    prior = None if name == "slavc_validation" else data["prior"]
    total.update(data["maps"], data["ground_truth"], prior=prior)
    got = total.columns["audio_visual" if prior is None else "mixed"]["iou_top50"]
    expected = [iou(LOOPS[name](low, own), g) for low, own, g in zip(data["maps"], data["prior"], data["ground_truth"])]
    np.testing.assert_allclose(got, expected, atol=2e-3 if name == "vsl_paper" else 1e-6)  # float32: a pixel of 1,600


def test_universal_rule_and_false_alarms_equal_a_loop(data):
    """All of vssl_eval, maps brought to [0, 1], two draws of negatives pooled."""
    result = protocols.run("vssl_eval_unit", data["maps"], data["ground_truth"], negatives=data["negatives"])
    unit = [{kind: (draw[kind] + 1) / 2 for kind in KINDS} for draw in data["negatives"]]
    raw = {kind: np.concatenate([draw[kind] for draw in data["negatives"]]).max((1, 2)) for kind in KINDS}
    threshold = (max(np.percentile(values, 75) for values in raw.values()) + 1) / 2
    assert result["threshold"] == result["universal_threshold"]["value"] == pytest.approx(threshold, abs=1e-6)
    ious, areas, overlaps, between = [], {kind: [] for kind in KINDS}, {kind: [] for kind in KINDS}, []
    for draw in unit:
        for i, low in enumerate(data["maps"]):
            positive = enlarged((low + 1) / 2, "bilinear", True) > threshold
            ious.append(iou(positive, data["ground_truth"][i], empty=0))
            negative = {kind: enlarged(draw[kind][i], "bilinear", False) > threshold for kind in KINDS}
            for kind in KINDS:
                areas[kind].append(negative[kind].mean())
                overlaps[kind].append(iou(positive, negative[kind]))
            between += [iou(negative[a], negative[b]) for a, b in (KINDS[:2], KINDS[1:], KINDS[::2])]
    found = result["figures"]["audio_visual"]["false_alarms"]
    assert all(name.endswith("_test_threshold") for name in found)
    found = {name.removesuffix("_test_threshold"): value for name, value in found.items()}
    assert result["n"] == 2 * N and found["mean_iou"] == pytest.approx(np.mean(ious), abs=1e-3)
    for kind in KINDS:
        assert found[f"pia_{kind}"] == pytest.approx(np.mean(areas[kind]), abs=1e-3)
        assert found[f"overlap_{kind}"] == pytest.approx(np.mean(overlaps[kind]), abs=1e-2)
    assert found["overlap_negatives"] == pytest.approx(np.mean(between), abs=1e-2)


def test_batches_do_not_change_anything(data):
    data = data | {"negatives": data["negatives"][0]}
    whole = protocols.run("default", **data, batch=64)
    assert protocols.run(PROTOCOLS["default"], **data, batch=2) == whole
    json.dumps(whole, allow_nan=False)
    table = whole["figures"]["mixed"]["localization"]
    assert {"iiou_adaptive", "iauc_test_threshold", "mean_iou_top50", "pia_noise_test_threshold"} <= table.keys()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_runs_and_says_what_it_is(name, data):
    """Mirroring everything changes nothing but the order of ties."""
    result = protocols.run(name, **data)
    assert result["protocol"]["name"] == name and result["protocol"] == json.loads(json.dumps(PROTOCOLS[name].record()))
    mirrored = {key: data[key][..., ::-1].copy() for key in ("maps", "ground_truth", "prior")}
    mirrored["negatives"] = [{kind: v[..., ::-1].copy() for kind, v in draw.items()} for draw in data["negatives"]]
    other = protocols.run(name, **data | mirrored)

    def close(a, b):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                close(a[key], b[key])
        else:  # arithmetic in float32 and the order of ties may move a pixel, and that a success
            assert a == pytest.approx(b, abs=0.03)

    close(result["figures"], other["figures"])


def normalize(x):  # as all released programs have it
    return (x - x.min()) / (x.max() - x.min()) if x.max() != x.min() else x


def at(x, index):
    return np.sort(x.ravel())[index]


def released_lvs(x, k):
    """LVS's and SSL-TIE's test loops: above the threshold becomes 1, below 1 becomes 0, predicted is from .5 on."""
    x = 1 - normalize(-x)
    threshold = at(x, x.size // 2)
    x[x > threshold] = 1
    x[x < 1] = 0
    return x >= 0.5


# {protocol: {rule: map, pixels of ground truth -> prediction}} as the released programs compute them in float32
RELEASED = {
    "lvs": {"top50": released_lvs},
    "ssl_tie": {"top50": released_lvs},
    "ez_vsl": {"top50": lambda x, k: (y := normalize(x)) >= at(y, int(x.size * 0.5))},
    "slavc_validation": {
        "top50": lambda x, k: (
            (y := normalize((x / np.float32(0.03) + 1 / 0.03) / (2 / 0.03))) >= at(y, int(x.size * 0.5))
        )
    },
    "slavc_extended_absolute": {"at_half": lambda x, k: (x / np.float32(0.03) + 1 / 0.03) / (2 / 0.03) >= 0.5},
    "ssl_align": {
        "top50": lambda x, k: (y := 1 - normalize(-x)) > at(y, x.size // 2),
        "adaptive": lambda x, k: (y := 1 - normalize(-x)) > at(y, x.size - (k or x.size // 2)),
    },
    "avsbench": {"top50": lambda x, k: x > at(x, x.size // 2), "adaptive": lambda x, k: x > at(x, x.size - (k or 32))},
    "vssl_eval": {"adaptive": lambda x, k: x > at(x, x.size - (k or x.size // 2))},
}


@pytest.mark.parametrize("name", RELEASED)
def test_constant_maps_and_plateaus_are_what_the_released_program_makes_of_them(name):
    """Maps of the size of the ground truth, so that nothing is up-sampled."""
    side, rng = 224 if name == "avsbench" else 56, np.random.default_rng(5)
    maps = [np.full((side, side), value, np.float32) for value in (-0.5, -1e-9, 0, 0.3, 1)]
    noise = rng.uniform(-1, 1, (side, side))
    maps += [
        np.where(noise > -0.4, 0.7, noise),  # a plateau of the maximum, of more than half
        np.where(noise > 0.6, 0.7, noise),
        np.where(np.abs(noise) < 0.3, 0.1, noise),  # of the median
        np.where(noise < 0.5, -0.9, noise),  # of the minimum
        np.sign(noise),
        np.tanh(noise),
    ]
    maps = np.stack(maps * 2).astype(np.float32)
    truth = np.zeros(maps.shape, np.float32)
    truth[: len(maps) // 2, side // 8 : side // 2, side // 7 : side // 3] = 1  # and without an object
    total = Accumulator(name, threshold=0.2)
    total.update(maps, truth, sounding=truth.any((1, 2)), image_ids=range(len(maps)), negatives={"noise": maps})
    columns = total.columns["audio_visual"]
    for rule, predict in RELEASED[name].items():
        predictions = [predict(x.copy(), np.count_nonzero(g)) for x, g in zip(maps, truth)]
        if name == "avsbench":  # in which an empty ground truth is scored by the pixels left empty
            expected = [
                (b & (g > 0)).sum() / (b | (g > 0)).sum() if g.any() else (~b).mean()
                for b, g in zip(predictions, truth)
            ]
            np.testing.assert_allclose(columns[f"segmentation_iou_{rule}"], expected, atol=1e-6, err_msg=rule)
        else:
            expected = [iou(b, g, empty=0) for b, g in zip(predictions, truth)]
            np.testing.assert_allclose(columns[f"iou_{rule}"], expected, atol=1e-6, err_msg=rule)


def test_the_whole_image_is_predicted_by_the_constant_one(data):
    """In LVS's program; in SSL-Align's nothing is."""
    flat, area = np.ones((N, 1, 1), np.float32), data["ground_truth"].mean((1, 2))
    for name, expected in (("default", area), ("ez_vsl", area), ("lvs", area), ("ssl_align", 0 * area)):
        total = Accumulator(name)
        total.update(flat, data["ground_truth"], image_ids=data["image_ids"])
        np.testing.assert_allclose(total.columns["audio_visual"]["iou_top50"], expected, atol=1e-6, err_msg=name)
        assert not total.columns["audio_visual"]["pointing"].any()


@pytest.mark.parametrize(
    ("name", "corners"), [("vssl_eval", False), ("vssl_eval_corners", True), ("vssl_eval_unit", True)]
)
def test_vssl_eval_mixes_with_a_prior_up_sampled_as_the_positive_map(name, corners, data):
    threshold, negatives = 0.4, data["negatives"][0]
    total = Accumulator(name, threshold=threshold)
    total.update(data["maps"], data["ground_truth"], prior=data["prior"], negatives=negatives)
    columns, unit = total.columns["mixed"], name == "vssl_eval_unit"
    for i, (low, prior, truth) in enumerate(zip(data["maps"], data["prior"], data["ground_truth"])):
        objects = enlarged(prior, "bilinear", corners)

        def predicted(low, corners, objects=objects):
            full = enlarged((low + 1) / 2 if unit else low, "bilinear", corners)
            return 0.4 * full + 0.6 * objects > threshold

        positive = predicted(low, corners)
        assert columns["iou_universal"][i] == pytest.approx(iou(positive, truth, empty=0), abs=2e-3)
        for kind in KINDS:
            negative = predicted(negatives[kind][i], False)
            assert columns[f"pia_{kind}"][i] == pytest.approx(negative.mean(), abs=1e-3)
            assert columns[f"overlap_{kind}"][i] == pytest.approx(iou(positive, negative), abs=4e-3)


def test_slavcs_scripts_and_readme_weigh_the_prior_less(data):
    """They mix .9 of the model's map, in a fixed range, and the scripts lack --relative_prediction."""
    full = {
        key: np.stack([enlarged(low, "bicubic", True) for low in data[key]]).astype(np.float64)
        for key in ("maps", "prior")
    }
    for name, rule in (("slavc_extended_readme", "top50"), ("slavc_extended_scripts", "at_half")):
        total = Accumulator(name)
        total.update(data["maps"], data["ground_truth"], prior=data["prior"], sounding=data["sounding"])
        mixed = 0.9 * (full["maps"] + 1) / 2 + 0.1 * full["prior"] / 2.5
        quarter = [np.sort(x.ravel())[-SIDE * SIDE // 4 :].mean() for x in mixed]
        np.testing.assert_allclose(total.columns["mixed"]["confidence"], quarter, atol=1e-5)
        edges = [np.median(x) if rule == "top50" else 0.5 for x in mixed]
        expected = [iou(x >= edge, g, empty=0) for x, edge, g in zip(mixed, edges, data["ground_truth"])]
        np.testing.assert_allclose(total.columns["mixed"][f"iou_{rule}"], expected, atol=5e-3)


def test_an_exact_variant_differs_by_pixels_at_most(data):
    for name in ("lvs", "ez_vsl", "vssl_eval"):
        exact = PROTOCOLS[name].exact()
        assert exact.positive.arithmetic == exact.prior.arithmetic == "exact" and exact.name == f"{name} (exact)"
        a, b = (Accumulator(p, threshold=0.2) for p in (PROTOCOLS[name], exact))
        for total in (a, b):
            total.update(data["maps"], data["ground_truth"], prior=data["prior"], negatives=data["negatives"][0])
        for predictor, columns in a.columns.items():
            for column, values in columns.items():
                np.testing.assert_allclose(values, b.columns[predictor][column], atol=0.02, err_msg=f"{name} {column}")


def test_the_kernel_changes_no_figure(data):
    data = {key: data[key] for key in ("maps", "ground_truth", "image_ids")} | {"negatives": data["negatives"]}
    for protocol in (
        PROTOCOLS["default"],
        PROTOCOLS["vssl_eval"].exact(),
        PROTOCOLS["vssl_eval_unit"].exact(),
        PROTOCOLS["avsbench"].exact(),
    ):
        reference = protocols.run(protocol, **data, backend="reference")
        assert protocols.run(protocol, **data) == reference
        if checks.extension is not None:
            assert protocols.run(protocol, **data, backend="compiled") == reference
    with pytest.raises(RuntimeError, match="backend='compiled': protocol 'lvs' is not of exact up-sampling"):
        protocols.run("lvs", data["maps"], data["ground_truth"], backend="compiled")


def test_only_numbers_per_sample_are_kept(data):
    total = Accumulator("vssl_eval", threshold=0.2)
    for _ in range(3):
        total.update(data["maps"], data["ground_truth"], negatives=data["negatives"][0])
    kept = [values for columns in total.columns.values() for values in columns.values()]
    assert total.n == 3 * N and all(values.shape == (3 * N,) for values in kept)


def test_rules_without_their_threshold_are_reported(data):
    result = protocols.run("default", data["maps"], data["ground_truth"])
    assert result["left_out"] == ["universal"] and result["threshold"] is None
    assert "ciou_universal" not in result["figures"]["audio_visual"]["localization"]
    given = protocols.run("default", data["maps"], data["ground_truth"], threshold=0.1)
    assert given["left_out"] == [] and "ciou_universal" in given["figures"]["audio_visual"]["localization"]


def test_groups_of_published_names():
    names = ["a/b/fox_train_12_fox.jpg", "fox_train_12_train", "x/10000130166.jpg"]
    assert [protocols.published_image_id(name) for name in names] == ["fox_train_12", "fox_train_12", ""]


def test_bad_arguments_say_what_was_expected(data):
    maps, truth = data["maps"], data["ground_truth"]
    with pytest.raises(ValueError, match="protocol: expected one of .*'lvs'.*, got 'lvz'"):
        protocols.run("lvz", maps, truth)
    with pytest.raises(ValueError, match="threshold: expected the universal one for protocol 'vssl_eval', got None"):
        Accumulator("vssl_eval")
    with pytest.raises(ValueError, match="image_ids: expected 9 values for protocol 'ssl_align', got None"):
        protocols.run("ssl_align", maps, truth)
    with pytest.raises(ValueError, match="sounding: expected 9 values for protocol 'slavc_extended', got None"):
        protocols.run("slavc_extended", maps, truth)
    with pytest.raises(ValueError, match="maps under prior: expected 9 samples to match ground_truth, got 8"):
        protocols.score(Protocol(), maps, truth, prior=data["prior"][:8])
    with pytest.raises(ValueError, match="maps under noise: sample 'dog' holds 25 values that are NaN"):
        protocols.score(Protocol(), maps[:1], truth[:1], negatives={"noise": maps[:1] * np.nan}, ids=["dog"])
    with pytest.raises(ValueError, match="ground_truth: expected 0 and 1 for segmentation, sample 0 has weights"):
        protocols.run("avsbench", maps, truth * 0.5)
    with pytest.raises(ValueError, match="compute: expected at least one sample, got none"):
        Accumulator("lvs").compute()
    total = Accumulator("default")
    total.update(maps, truth, image_ids=data["image_ids"])
    with pytest.raises(ValueError, match="image_ids: expected 9 values for protocol 'default', got None"):
        total.update(maps, truth)
    with pytest.raises(ValueError, match="update: expected the columns .* of 'audio_visual' as in the first batch"):
        total.update(maps, truth, image_ids=data["image_ids"], negatives=data["negatives"][0])
    with pytest.raises(ValueError, match="image_ids: expected 9 values, one per map, got 2"):
        total.update(maps, truth, image_ids=["a", "b"])
    with pytest.raises(ValueError, match=r"update: expected the columns \[\] of 'prior' as in the first batch"):
        total.update(maps, truth, image_ids=data["image_ids"], prior=data["prior"])
    with pytest.raises(ValueError, match="negatives: expected maps under at least one kind of negative"):
        protocols.run("vssl_eval", maps, truth, threshold=0.1)
    with pytest.raises(ValueError, match="protocol 'x', after: expected one of .*, got 'max'"):
        Protocol("x", after="max")
    with pytest.raises(ValueError, match=r"protocol 'x', figures: expected some of .*, got \('retrieval',\)"):
        Accumulator(Protocol("x", figures=("retrieval",)))
    total = Accumulator("default")
    total.update(maps, truth)
    with pytest.raises(ValueError, match="image_ids: expected None as in the first batch, got 9 values"):
        total.update(maps, truth, image_ids=data["image_ids"])
    with pytest.raises(ValueError, match="rule 'half': expected kind and comparison among .*, got 'value', 'exact'"):
        Rule("half", "value")
    with pytest.raises(ValueError, match="rule 'half': expected a finite value, got nan"):
        Rule("half", "value", ">", value=float("nan"))
    with pytest.raises(ValueError, match=r"rule 'none': expected a fraction in \(0, 1\], got 0"):
        Rule("none", fraction=0)
    with pytest.raises(ValueError, match="'opencv' is bilinear without aligned corners, got 'bicubic'"):
        protocols.score(Protocol(positive=Upsampling("bicubic", arithmetic="opencv")), maps, truth)
