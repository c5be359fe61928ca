"""The evaluation against a second, slow one made of loops, on samples whose maps are known."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from evaluation_fakes import SIDE, FakeLocalizer, FakeSet
from ssl_fast.data.negatives import negative_spectrograms
from ssl_fast.evaluation import BASELINES, Protocol, Results, evaluate
from ssl_fast.evaluation.map_metrics import Rule, Upsampling
from ssl_fast.evaluation.predictors import batches, inference
from ssl_fast.evaluation.results import table
from ssl_fast.evaluation.retrieval import retrieval

SINGLE = [[(c % 5, c % 3, c % 2, 2, 2)] for c in range(12)]
DUO = [[(c % 5, 0, 0, 2, 2), ((c + 1) % 5, 2, 1, 2, 3)] for c in range(10)]
VAL = [[(c % 4, 1, 1, 2, 2)] for c in range(8)]
KINDS = ("silence", "noise", "offscreen")
REQUIRED = """
    single_ciou_adaptive duo_ciou_adaptive iiou_adaptive interactive_pointing retrieval_a2i_r1 retrieval_i2a_r1
    pia_silence pia_noise pia_offscreen baseline_objectness_iiou_adaptive baseline_objectness_interactive_pointing
""".split()


def sets(**options):
    return {"single": FakeSet(SINGLE, **options), "duo": FakeSet(DUO, **options)}


def run(localizer=None, test_sets=None, **options):
    options.setdefault("validation", FakeSet(VAL, prefix="val"))
    return evaluate(localizer or FakeLocalizer(), test_sets or sets(), progress=False, **options)


# ------------------------------------------------------------------------------------------------ the slow evaluation


def map_of(localizer, sample_set, i, spectrogram):
    with inference(localizer):
        visual = localizer.visual_features(localizer.normalize_images(sample_set[i]["image"][None]))
        return localizer.maps(visual, localizer.audio_features(spectrogram[None]))


def enlarge(low, align_corners=False):
    low = low[None].double()  # float64, then rounded: pixels that are equal by symmetry stay equal
    full = torch.nn.functional.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=align_corners)
    return full[0, 0].float().numpy()


def iou_of_best(full, truth, k):
    best = np.zeros(full.size, bool)
    best[np.argsort(-full.reshape(-1), kind="stable")[:k]] = True
    best = best.reshape(full.shape)
    return (best & truth).sum() / (best | truth).sum()


def slow(localizer, sample_set, threshold):
    """Per-sample values by loops."""
    rows = []
    negatives = {kind: negative_spectrograms(sample_set, kind, 0) for kind in KINDS}
    for i in range(len(sample_set)):
        low = map_of(localizer, sample_set, i, sample_set[i]["spectrogram"])
        full, truth, mask = enlarge(low), sample_set.ground_truth(i) > 0, sample_set.mask(i)
        row = {
            "iou_adaptive": iou_of_best(full, truth, truth.sum()),
            "iou_top50": iou_of_best(full, truth, SIDE * SIDE // 2),
            "iou_universal": ((full > threshold) & truth).sum() / ((full > threshold) | truth).sum(),
        }
        if mask is not None:
            row["iou_adaptive_mask"] = iou_of_best(full, mask, mask.sum())
        cell = np.unravel_index(low[0].numpy().argmax(), low[0].shape)
        row["pointing"] = bool(truth[cell[0] * 4 + 2, cell[1] * 4 + 2])
        row["map_min"], row["map_max"] = low.min().item(), low.max().item()
        for kind in KINDS:
            low = map_of(localizer, sample_set, i, negatives[kind][i])
            row[f"{kind}_max"], row[f"pia_{kind}"] = low.max().item(), (enlarge(low) > threshold).mean()
        rows.append(row)
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def slow_threshold(localizer, sample_set):
    quartiles = []
    for kind in KINDS:
        sounds = negative_spectrograms(sample_set, kind, 0)
        maxima = [map_of(localizer, sample_set, i, sounds[i]).max().item() for i in range(len(sample_set))]
        quartiles.append(np.percentile(maxima, 75))
    return max(quartiles)


def in_all(values, image_ids):
    return np.mean([all(v for v, image in zip(values, image_ids) if image == one) for one in sorted(set(image_ids))])


@pytest.mark.parametrize("localizer", [FakeLocalizer(), FakeLocalizer(hears=False), FakeLocalizer(gain=0.2, alarm=0.7)])
def test_every_value_equals_the_slow_evaluation(localizer):
    test_sets, validation = sets(masks=True), FakeSet(VAL, prefix="val")
    results = run(localizer, test_sets, validation=validation, batch_size=5)
    threshold = results["universal_threshold"]["by_set"]["validation"]["model"]["value"]
    assert threshold == pytest.approx(slow_threshold(localizer, validation), abs=1e-7)
    for name, sample_set in test_sets.items():
        expected = slow(localizer, sample_set, threshold)
        for column, values in expected.items():
            np.testing.assert_allclose(results.samples[name][column], values, atol=1e-6, err_msg=f"{name} {column}")
        model = results["sets"][name]["model"]
        for rule in ("adaptive", "top50", "universal", "adaptive_mask"):
            iou = expected[f"iou_{rule}"]
            assert model[f"ciou_{rule}"] == pytest.approx(np.mean(iou >= 0.5))
            assert model[f"mean_iou_{rule}"] == pytest.approx(np.mean(iou))
            assert model[f"auc_{rule}"] - np.mean(iou) <= 0.025 + 1e-9
            assert model[f"iiou_{rule}"] == pytest.approx(in_all(iou >= 0.5, sample_set.image_ids))
            assert model["counts"][f"ciou_{rule}"] == np.sum(iou >= 0.5)
        assert model["pointing"] == pytest.approx(expected["pointing"].mean())
        assert model["interactive_pointing"] == pytest.approx(in_all(expected["pointing"], sample_set.image_ids))
        for kind in KINDS:
            assert model[f"pia_{kind}"] == pytest.approx(expected[f"pia_{kind}"].mean())
            positive, negative = expected["map_max"], expected[f"{kind}_max"]
            assert model[f"max_difference_{kind}"] == pytest.approx(np.mean(positive - negative), abs=1e-6)
            pairs = np.sign(positive[:, None] - negative) / 2 + 0.5
            assert model[f"auroc_{kind}"] == pytest.approx(pairs.mean(), abs=1e-3)
            five = np.percentile(expected[f"{kind}_max"], (0, 25, 50, 75, 100))
            np.testing.assert_allclose(results["sets"][name]["map_maxima"][kind], five, atol=1e-6)


def test_a_perfect_localizer_and_one_that_never_hears():
    perfect, deaf = run()["sets"], run(FakeLocalizer(hears=False))["sets"]
    for name in perfect:
        assert perfect[name]["model"]["ciou_adaptive"] == perfect[name]["model"]["mean_iou_adaptive"] == 1
    assert perfect["single"]["model"]["mean_iou_top50"] == 0.5  # 4 of 16 cells, half of the image predicted
    assert perfect["duo"]["model"]["mean_iou_top50"] == (0.5 + 0.75) / 2
    assert perfect["duo"]["model"]["iiou_adaptive"] == perfect["duo"]["model"]["interactive_pointing"] == 1
    assert deaf["single"]["model"]["ciou_adaptive"] == 1  # one object: hearing is not needed
    assert deaf["duo"]["model"]["iiou_adaptive"] == deaf["duo"]["model"]["interactive_pointing"] == 0
    assert deaf["duo"]["model"]["pointing"] == 0.5
    assert perfect["duo"]["n"] == 20 and perfect["duo"]["images"] == perfect["duo"]["interactive_images"] == 10
    assert perfect["single"]["interactive_images"] == 0 and perfect["single"]["size"] == [SIDE, SIDE]


def test_baselines_never_hear():
    results = run()
    for name, row in results["sets"]["duo"]["baselines"].items():
        assert row["interactive_pointing"] == 0, name
        assert row["pia_silence"] == row["pia_noise"] == row["pia_offscreen"], name
        assert row["auroc_noise"] == 0.5 and row["max_difference_noise"] == 0, name
    assert set(results["sets"]["duo"]["baselines"]) == set(BASELINES)
    whole = results["sets"]["single"]["baselines"]["whole_image"]
    assert whole["mean_iou_adaptive"] == 0.25 and whole["pointing"] == 0 and whole["mean_iou_universal"] == 0


def test_flat_keys_are_the_nested_figures():
    results = run()
    flat = {key: value for key, value in results.items() if not isinstance(value, (dict, list, str))}
    assert set(REQUIRED) <= set(flat)
    for key, value in flat.items():
        assert type(value) is float and 0 <= value <= 1, key
    duo = results["sets"]["duo"]
    assert flat["single_ciou_adaptive"] == results["sets"]["single"]["model"]["ciou_adaptive"]
    assert flat["iiou_adaptive"] == duo["model"]["iiou_adaptive"] and flat["pia_noise"] == duo["model"]["pia_noise"]
    assert flat["interactive_pointing"] == duo["model"]["interactive_pointing"]
    assert flat["baseline_objectness_iiou_adaptive"] == duo["baselines"]["objectness"]["iiou_adaptive"]
    assert flat["retrieval_a2i_r5"] == results["retrieval"]["class"]["a2i"]["r5"]
    assert flat["retrieval_i2a_r1_instance"] == results["retrieval"]["instance"]["i2a"]["r1"]


def test_batches_do_not_change_the_figures():
    whole = run(FakeLocalizer(alarm=0.5), batch_size=64)
    for size in (1, 7):
        other = run(FakeLocalizer(alarm=0.5), batch_size=size)
        assert other == whole and other.samples == whole.samples


def test_worker_processes_do_not_change_the_figures():
    assert run(workers=2) == run()


# ------------------------------------------------------------------------------------------------ threshold, protocol


def test_without_a_validation_set_the_names_say_where_the_threshold_is_from():
    results = run(FakeLocalizer(alarm=0.5), validation=None)
    assert results["universal_threshold"]["chosen_on"] == "test"
    assert set(results["universal_threshold"]["by_set"]) == {"single", "duo"}
    for name, sample_set in sets().items():
        threshold = results["universal_threshold"]["by_set"][name]["model"]["value"]
        assert threshold == pytest.approx(slow_threshold(FakeLocalizer(alarm=0.5), sample_set), abs=1e-7)
        expected = slow(FakeLocalizer(alarm=0.5), sample_set, threshold)["iou_universal"]
        assert results["sets"][name]["model"]["mean_iou_test_threshold"] == pytest.approx(expected.mean())
    assert "pia_silence_test_threshold" in results and "duo_ciou_test_threshold" in results
    for key in (*results, *results["sets"]["duo"]["model"], *results.samples["duo"]):
        assert not key.endswith(KINDS) or not key.startswith("pia_"), key
        assert "universal" not in key or key == "universal_threshold", key


def test_a_given_threshold_is_the_models_alone():
    localizer = FakeLocalizer(alarm=0.5)
    chosen = run(localizer)
    value = chosen["universal_threshold"]["by_set"]["validation"]["model"]["value"]
    results = run(localizer, validation=None, threshold=value)
    for name, one in chosen["sets"].items():
        assert results["sets"][name]["model"] == one["model"]
        for baseline, row in results["sets"][name]["baselines"].items():
            on_threshold = {key for key in one["baselines"][baseline] if "universal" in key or key.startswith("pia_")}
            assert len(on_threshold) == 8 and row.keys() == one["baselines"][baseline].keys() - on_threshold
    assert results["universal_threshold"]["origins"] == {"given": {}}
    with pytest.raises(ValueError, match="threshold: expected without validation"):
        run(threshold=0.3)
    with pytest.raises(TypeError, match="threshold: expected a number or Thresholds, got str"):
        run(validation=None, threshold="0.3")


def test_a_threshold_from_fewer_kinds_of_sound_is_refused():
    unknown = FakeSet(VAL, prefix="val")
    unknown.categories = [None, *unknown.categories[1:]]
    with pytest.raises(ValueError, match="set val: expected categories, .* 1 of 8 samples do not say .* as 'val0_a'"):
        run(validation={"val": unknown})
    results = run(validation={"val": unknown}, negatives=("silence", "noise"), baselines={})
    origin = results["universal_threshold"]["origins"]["validation"]
    assert (origin["set"], origin["n"], origin["negatives"]) == ("val", 8, ["silence", "noise"])
    with pytest.raises(ValueError, match=r"validation: expected one set, got \['a', 'b'\]"):
        run(validation={"a": FakeSet(VAL, prefix="a"), "b": FakeSet(VAL, prefix="b")})


def test_the_test_sets_do_not_move_the_threshold():
    alone = run(test_sets={"duo": FakeSet(DUO[:2])}, localizer=FakeLocalizer(alarm=0.5))
    other = run(test_sets={"duo": FakeSet(DUO)}, localizer=FakeLocalizer(alarm=0.5))
    assert alone["universal_threshold"] == other["universal_threshold"]


def test_a_protocol_is_data():
    protocol = Protocol("corners", positive=Upsampling(align_corners=True), rules=(Rule("top25", fraction=0.25),))
    results = run(protocol=protocol, baselines={})
    record = results["protocol"]
    assert record["name"] == "corners" and record["positive"] == {
        "interpolation": "bilinear",
        "align_corners": True,
        "arithmetic": "exact",
    }
    assert record["rules"] == [
        {"name": "top25", "kind": "fraction", "comparison": "exact", "fraction": 0.25, "value": None}
    ]
    assert results["sets"]["single"]["baselines"] == {}
    sample_set, localizer = FakeSet(SINGLE), FakeLocalizer()
    for i in range(len(sample_set)):
        low = map_of(localizer, sample_set, i, sample_set[i]["spectrogram"])
        expected = iou_of_best(enlarge(low, align_corners=True), sample_set.ground_truth(i) > 0, SIDE * SIDE // 4)
        assert results.samples["single"]["iou_top25"][i] == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------------------------------------ retrieval


def test_retrieval_equals_loops():
    class Scores(FakeLocalizer):
        def retrieval(self, visual, audio, similarity="auto"):
            torch.manual_seed(0)
            table = torch.rand(300, 300)
            return table[visual["visual"].sum((1, 2)).long()][:, audio["audio"].long()] + self.noise(visual, audio)

        def noise(self, visual, audio):  # tells apart images (by what they show) and sounds, without ties
            image = visual["visual"].flatten(1).mul(torch.arange(16)).sum(1)
            return image[:, None].sin() * audio["audio"].add(1).cos()[None]

    sample_set = FakeSet(DUO)
    got = retrieval(Scores(), sample_set, batch_size=7)
    visual, audio = [], []
    localizer = Scores()
    with inference(localizer):
        for i in range(20):
            visual.append(localizer.visual_features(sample_set[i]["image"][None].float())["visual"])
            audio.append(localizer.audio_features(sample_set[i]["spectrogram"][None])["audio"])
        scores = localizer.retrieval({"visual": torch.cat(visual)}, {"audio": torch.cat(audio)}).numpy()

    def recall(k, right, scores):
        hits = 0
        for i in range(20):
            best = max(scores[i, j] for j in range(20) if right(i, j))
            hits += sum(scores[i, j] >= best for j in range(20) if not right(i, j)) < k
        return hits / 20

    ids, heard, seen = sample_set.image_ids, sample_set.categories, sample_set.visible
    for k in (1, 5, 10):
        for way, oriented, right in (
            ("i2a", scores, lambda i, j: heard[j] in seen[i]),
            ("a2i", scores.T, lambda i, j: heard[i] in seen[j]),
        ):
            assert got["class"][way][f"r{k}"] == pytest.approx(recall(k, right, oriented))
            expected = recall(k, lambda i, j: ids[i] == ids[j], oriented)
            assert got["instance"][way][f"r{k}"] == pytest.approx(expected)
    assert got["n"] == 20


def test_sets_without_categories_say_what_is_left_out():
    sample_set = FakeSet(DUO)
    sample_set.categories = [None, *sample_set.categories[1:]]
    results = run(test_sets={"field": sample_set}, baselines={})
    assert results["interactive_on"] == results["retrieval"]["set"] == "field"
    assert "class" not in results["retrieval"] and "retrieval_a2i_r1" not in results
    assert "retrieval_a2i_r1_instance" in results and "pia_silence" in results and "pia_offscreen" not in results
    assert any("field: no off-screen sounds" in note for note in results["notes"])
    assert any("field: no retrieval by class" in note for note in results["notes"])


def test_no_negatives_no_threshold():
    results = run(negatives=(), baselines={})
    assert not any(key.startswith("pia_") or key.endswith("universal") for key in results)
    assert results["universal_threshold"]["by_set"] == {"validation": {}}
    assert results["iiou_adaptive"] == 1


# ------------------------------------------------------------------------------------------------ files


def test_json_and_csv_hold_what_the_results_hold(tmp_path):
    results = run(test_sets={"single": FakeSet(SINGLE, masks=True), "duo": FakeSet(DUO)})
    results.write_json(tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text()) == results
    results.write_csv(tmp_path / "per_sample.csv")
    rows = list(csv.DictReader((tmp_path / "per_sample.csv").open(newline="")))
    assert len(rows) == 32 and [row["set"] for row in rows] == ["single"] * 12 + ["duo"] * 20
    for row, sample in zip(rows[12:], range(20)):
        for column, values in results.samples["duo"].items():
            value = values[sample]
            if isinstance(value, str):
                assert row[column] == value
            else:
                assert float(row[column]) == float(value)
        assert row["iou_adaptive_mask"] == ""  # duo has no masks
    assert rows[0]["iou_adaptive_mask"] != ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "per_sample.csv"]


def test_no_cell_is_a_formula_for_a_spreadsheet(tmp_path):
    ids = ["=1+1", "+1", "-0Bkyt8iZ1I_000008", "@SUM(A1)", "\t=1", "'quoted", "plain", "a=1"]
    Results(samples={"=set": {"id": ids, "map_min": [-0.5] * 8}}).write_csv(tmp_path / "per_sample.csv")
    with open(tmp_path / "per_sample.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"].removeprefix("'") for row in rows] == ids and {row["map_min"] for row in rows} == {"-0.5"}
    assert not any(cell.startswith(("=", "+", "-", "@", "\t")) for row in rows for cell in (row["set"], row["id"]))


def test_a_nan_is_never_written(tmp_path):
    results = Results(bad=float("nan"))
    with pytest.raises(ValueError, match="JSON"):
        results.write_json(tmp_path / "metrics.json")
    assert not list(tmp_path.iterdir())


def test_masks_of_some_samples_only():
    columns = {
        "iou_adaptive": np.array([0.6, 0.2, 0.9]),
        "iou_adaptive_mask": np.array([0.7, np.nan, 0.4]),
        "pointing": np.ones(3),
    }
    row = table(columns, ["a", "a", "b"])
    assert row["ciou_adaptive"] == 2 / 3 and row["ciou_adaptive_mask"] == 0.5 and row["iiou_adaptive_mask"] == 0.5
    assert row["counts"] == {
        "ciou_adaptive": 2,
        "iiou_adaptive": 1,
        "ciou_adaptive_mask": 1,
        "iiou_adaptive_mask": 1,
        "n_adaptive_mask": 2,
        "images_adaptive_mask": 2,
        "pointing": 3,
        "interactive_pointing": 2,
    }


# ------------------------------------------------------------------------------------------------ conduct


def test_training_flags_and_random_state_come_back():
    localizer = FakeLocalizer()
    localizer.frozen = torch.nn.BatchNorm1d(2).eval()
    localizer.train()
    localizer.frozen.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(localizer)
    assert torch.equal(torch.rand(3), expected)
    assert localizer.training and localizer.dropout.training and not localizer.frozen.training
    with pytest.raises(RuntimeError, match="stop"), inference(localizer):
        raise RuntimeError("stop")
    assert localizer.training and torch.is_grad_enabled()


def test_batches_come_in_the_order_of_the_set():
    sample_set = FakeSet(DUO)
    seen = np.concatenate([index for index, _, _ in batches(sample_set, 6)])
    np.testing.assert_array_equal(seen, np.arange(20))


def test_a_map_with_a_nan_names_sample_and_sound():
    class Broken(FakeLocalizer):
        def maps(self, visual, audio):
            maps = super().maps(visual, audio)
            return torch.where((audio["audio"] == 3)[:, None, None], torch.tensor(float("nan")), maps)

    with pytest.raises(ValueError, match="maps of model under positive sound: sample 'image2_c' holds 16 values"):
        run(Broken(), test_sets={"single": FakeSet(SINGLE)}, negatives=("silence", "noise"))


def test_bad_arguments_say_what_was_expected():
    with pytest.raises(ValueError, match="test_sets: expected at least one set"):
        evaluate(FakeLocalizer(), {}, progress=False)
    with pytest.raises(ValueError, match="set 'duo': expected samples, got an empty set"):
        run(test_sets={"duo": FakeSet([])})
    with pytest.raises(ValueError, match="set 'validation': expected samples"):
        run(validation=FakeSet([]))
    with pytest.raises(ValueError, match=r"negatives: expected kinds among .*, got \['whisper'\]"):
        run(negatives=("silence", "whisper"))
    with pytest.raises(ValueError, match=r"interactive_on: expected one of \['single', 'duo'\], got 'trio'"):
        run(interactive_on="trio")
    with pytest.raises(ValueError, match="retrieval_on: expected one of"):
        run(retrieval_on="val")
    blind = FakeSet(SINGLE, prefix="val")
    blind.has_ground_truth = False
    with pytest.raises(ValueError, match="set 'field': expected ground truth"):
        run(test_sets={"field": blind})
    run(validation=blind)  # needs none
    small = FakeSet(SINGLE)
    small.ground_truth = lambda i: np.ones((8, 8), np.float32)
    with pytest.raises(ValueError, match=r"'field', sample 'image0_a': expected ground truth of the image's size"):
        run(test_sets={"field": small})
    few = SimpleNamespace(
        **{
            name: getattr(FakeLocalizer(), name)
            for name in ("normalize_images", "normalize_spectrograms", "visual_features", "audio_features", "retrieval")
        },
        maps=lambda visual, audio: torch.zeros(1, 4, 4),
    )
    few.visual_features = lambda images: {"visual": images[:, 0]}
    with pytest.raises(ValueError, match=r"maps of model under silence sound: expected 8, got shape \(1, 4, 4\)"):
        run(few)


def test_validation_samples_that_are_tested_are_refused():
    with pytest.raises(
        ValueError,
        match="validation: expected samples that are not tested, 8 are in set 'single': "
        "'image0_a', 'image1_b', 'image2_c' ...",
    ):
        run(validation=FakeSet(VAL), test_sets={"single": FakeSet(VAL)})


def test_separation_leaves_out_sounds_that_nothing_in_the_image_makes():
    test_set = FakeSet(DUO)
    test_set.sounding = [i % 3 > 0 for i in range(len(test_set))]
    results = run(test_sets={"field": test_set}, baselines={})
    columns, sounding = results.samples["field"], np.array(test_set.sounding)
    positive, negative = (np.array(columns[name])[sounding] for name in ("map_max", "noise_max"))
    model = results["sets"]["field"]["model"]
    assert model["max_difference_noise"] == pytest.approx(np.mean(positive - negative), abs=1e-6)
    pairs = np.sign(positive[:, None] - negative) / 2 + 0.5
    assert model["auroc_noise"] == results["auroc_noise"] == pytest.approx(pairs.mean())
    test_set.sounding = [False] * len(test_set)
    assert "auroc_noise" not in run(test_sets={"field": test_set}, baselines={})
