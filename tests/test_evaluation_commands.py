"""`ssl-fast evaluate` of a published set: maps from files, functions, protocols, draws, lists."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from published_folders import CLIPS, FOLDERS, make
from ssl_fast.cli import main as cli
from ssl_fast.cli.evaluate import published_set
from ssl_fast.data.annotations import weight_map
from ssl_fast.data.io.front_ends import FRONT_ENDS, file_spectrogram
from ssl_fast.data.io.images import load_image
from ssl_fast.evaluation import BASELINES, protocols, thresholds
from ssl_fast.evaluation import evaluate as evaluate_model
from ssl_fast.models.resnet import ResNet18

IDS = [f"abcdefghij{i}_00003{i}" for i in range(6)]
CLASSES = ["owl hooting", "playing cello", "train horning", "owl hooting", "machine gun shooting", "playing cello"]
BOXES = [
    [[0.1, 0.2, 0.6, 0.8]],
    [[0.0, 0.0, 1.0, 0.9]],
    [[0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.3, 0.3]],
    [[0.2, 0.0, 0.7, 0.5]],
    [[0.3, 0.3, 0.8, 0.9]],
    [[0.0, 0.4, 0.5, 1.0]],
]
KINDS = ("silence", "noise", "offscreen")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "VGGSound"
    for name in ("frames", "audio"):
        (root / name).mkdir(parents=True)
    for name in IDS:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(root / "frames" / f"{name}.jpg")
        soundfile.write(root / "audio" / f"{name}.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
    entries = [{"file": name, "class": own, "bbox": boxes} for name, own, boxes in zip(IDS, CLASSES, BOXES)]
    (root / "vggss.json").write_text(json.dumps(entries))
    return root


@pytest.fixture
def maps(tmp_path):
    """{kind: (6, 7, 7)}, and a folder of them."""
    rng = np.random.default_rng(1)
    out = {kind: rng.uniform(-1, 1, (6, 7, 7)).astype(np.float32) for kind in ("positive", *KINDS)}
    for kind, values in out.items():
        where = tmp_path / "maps" / ("" if kind == "positive" else kind)
        where.mkdir(parents=True, exist_ok=True)
        for name, one in zip(IDS, values):
            np.save(where / f"{name}.npy", one)
    return out, tmp_path / "maps"


def evaluate(root, out, *more):
    return cli.main(["evaluate", "--data", str(root), "--set", "vgg-ss", "--out", str(out), "--quiet", *map(str, more)])


def truths():
    pixels = [np.trunc(np.array(boxes) * 224).astype(int) for boxes in BOXES]
    return np.stack([weight_map(boxes, "union") for boxes in pixels])


def same(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            same(found[key], wanted[key])
    else:
        assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.slow
def test_maps_from_files_under_several_protocols(folder, maps, tmp_path, capsys):
    values, where = maps
    (tmp_path / "train.csv").write_text(f"{IDS[2]}\nother_000001\n")
    names = ["ez_vsl", "lvs", "slavc_extended", "vssl_eval"]
    assert (
        evaluate(
            folder,
            tmp_path / "out",
            "--maps",
            where,
            "--protocol",
            ",".join(names),
            "--train-list",
            tmp_path / "train.csv",
        )
        == 0
    )
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    threshold = max(np.percentile(values[kind].max((1, 2)), 75) for kind in KINDS)
    assert results["universal_threshold"]["by_set"]["vgg-ss"]["model"]["value"] == pytest.approx(threshold, abs=1e-6)
    negatives = {kind: values[kind] for kind in KINDS}
    for name in names:
        want = protocols.run(  # vssl_eval by the threshold of these negatives, too
            name, values["positive"], truths(), negatives=negatives, image_ids=IDS, sounding=np.ones(6, bool)
        )
        found = results["protocols"]["vgg-ss"][name]["model"]
        same(found["figures"], json.loads(json.dumps(want["figures"])))
        assert found["n"] == 6 and found["protocol"]["name"] == name
    assert results["retrieval"] == {} and "no retrieval, because the model gives maps alone" in results["notes"]
    note = f"set vgg-ss: 1 of 6 samples are in {tmp_path / 'train.csv'}"
    assert note in results["notes"] and note in capsys.readouterr().out
    reachable = [min(truth.mean(), 0.5) / max(truth.mean(), 0.5) >= 0.5 for truth in truths()]
    assert results["ceilings"]["vgg-ss"]["best >="]["success"] == np.mean(reachable)
    page = (tmp_path / "out" / "report.html").read_text()
    agreement = results["protocols"]["vgg-ss"]["vssl_eval"]["model"]["figures"]["audio_visual"]["false_alarms"]
    assert f"silence, noise {agreement['overlap_silence_noise_test_threshold']:.3f}; " in page.lower()
    assert all(f"vgg-ss: protocol {name}" in page for name in names) and "square that looks at nothing" in page


@pytest.mark.slow
def test_draws_of_several_seeds_are_pooled(folder, maps, tmp_path):
    values, where = maps
    rng, draws = np.random.default_rng(2), {}
    for seed in (7, 11):
        draws[seed] = {kind: rng.uniform(-1, 1, (6, 7, 7)).astype(np.float32) for kind in KINDS}
        for kind, many in draws[seed].items():
            (where / kind / str(seed)).mkdir()
            for name, one in zip(IDS, many):
                np.save(where / kind / str(seed) / f"{name}.npy", one)
    assert evaluate(folder, tmp_path / "out", "--maps", where, "--protocol", "vssl_eval,lvs", "--seeds", "7,11") == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    want = protocols.run("vssl_eval", values["positive"], truths(), negatives=[draws[7], draws[11]])
    found = results["protocols"]["vgg-ss"]["vssl_eval"]["model"]
    assert found["n"] == 12 and results["protocols"]["vgg-ss"]["lvs"]["model"]["n"] == 6 and results["seeds"] == [7, 11]
    assert found["threshold"] == pytest.approx(want["threshold"], abs=1e-6)
    same(
        found["figures"]["audio_visual"]["false_alarms"],
        json.loads(json.dumps(want["figures"]["audio_visual"]["false_alarms"])),
    )


@pytest.mark.slow
def test_object_prior(folder, maps, tmp_path, capsys):
    values, where = maps
    torch.manual_seed(0)
    net = ResNet18().eval()
    weights = tmp_path / "resnet18.pth"
    torch.save(net.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, weights)
    options = "--maps", where, "--protocol", "ez_vsl,slavc_extended"
    assert evaluate(folder, tmp_path / "out", *options, "--object-weights", weights) == 0
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    images = torch.stack([load_image(folder / "frames" / f"{name}.jpg", 224) for name in IDS])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        features = net((images / 255 - mean[:, None, None]) / std[:, None, None])
    prior = features.abs().sum(1).numpy() / 512
    for name in ("ez_vsl", "slavc_extended"):
        want = protocols.run(name, values["positive"], truths(), prior=prior, image_ids=IDS, sounding=np.ones(6, bool))
        found = results["protocols"]["vgg-ss"][name]
        assert found["model"]["figures"].keys() == {"audio_visual", "prior", "mixed"}
        assert found["whole_image"]["figures"].keys() == {"audio_visual"}
        for row in ("prior", "mixed"):
            wanted = want["figures"][row]["localization" if name == "ez_vsl" else "detection"]
            same(
                found["model"]["figures"][row]["localization" if name == "ez_vsl" else "detection"],
                json.loads(json.dumps(wanted)),
            )
    assert "model mixed with it" in (tmp_path / "out" / "report.html").read_text()
    options_09 = *options, "--object-weights", weights, "--alpha"
    assert evaluate(folder, tmp_path / "alpha", *options_09, 0.9) == 0
    found = json.loads((tmp_path / "alpha" / "metrics.json").read_text())["protocols"]["vgg-ss"]
    for name, same_as in (("slavc_extended", "slavc_extended_readme"), ("ez_vsl", None)):
        protocol = same_as or replace(protocols.PROTOCOLS[name], alpha=0.9)
        want = protocols.run(
            protocol, values["positive"], truths(), prior=prior, image_ids=IDS, sounding=np.ones(6, bool)
        )
        same(found[name]["model"]["figures"], json.loads(json.dumps(want["figures"])))
        assert found[name]["model"]["protocol"]["alpha"] == 0.9
    broken = tmp_path / "broken"  # options are refused before the files are read, which may take minutes
    shutil.copytree(folder, broken)
    next((broken / "frames").iterdir()).write_bytes(b"no image")
    assert evaluate(broken, tmp_path / "bad", *options_09, 1.5) == 2
    assert "--alpha: expected a weight from 0 to 1, got 1.5" in capsys.readouterr().err
    torch.save({"conv1.weight": torch.zeros(1)}, weights)
    assert evaluate(folder, tmp_path / "bad", *options, "--object-weights", weights) == 2
    assert f"{weights}: expected the weights of torchvision's ResNet-18: " in capsys.readouterr().err
    assert evaluate(folder, tmp_path / "bad", "--maps", where, "--object-weights", weights) == 2
    assert "--object-weights: expected with --protocol" in capsys.readouterr().err


IS3 = ["banjo_bird_1_banjo", "banjo_bird_1_bird", "bus_ocean_2_bus", "bus_ocean_2_ocean"]


@pytest.fixture
def is3(tmp_path, maps):
    """IS3 in a folder, and maps of it beside those of VGG-SS; {kind: (4, 7, 7)}."""
    rng = np.random.default_rng(3)
    root = tmp_path / "IS3"
    for name in ("images", "audio_wav"):
        (root / name).mkdir(parents=True)
    entries = []
    for i, name in enumerate(IS3):
        Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8)).save(root / "images" / f"{name}.jpg")
        soundfile.write(root / "audio_wav" / f"{name}.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
        entries.append({"image": f"{name}.jpg", "audio": f"{name}.wav", "gt_box": [10 * i, 20, 100 + 10 * i, 150]})
    (root / "synthetic3240_bbox.json").write_text(json.dumps(entries))
    values = {kind: rng.uniform(-1, 1, (4, 7, 7)).astype(np.float32) for kind in ("positive", *KINDS)}
    for kind, several in values.items():
        for name, one in zip(IS3, several):
            np.save(maps[1] / ("" if kind == "positive" else kind) / f"{name}.npy", one)
    return root, values


@pytest.fixture
def no_report(monkeypatch):
    """The report is most of the time of an evaluation of a few samples."""
    monkeypatch.setattr("ssl_fast.evaluation.overlays.collect", lambda *_, **__: {})
    monkeypatch.setattr("ssl_fast.evaluation.report.write_report", lambda *_, **__: None)


def test_the_universal_threshold_of_vgg_ss_is_used_on_is3(folder, maps, is3, tmp_path, capsys, no_report):
    """As paper 004 has it: chosen on one set, with its categories, and used on another; then the same from a file, and
    as a number."""
    (values, where), (root, of_is3) = maps, is3
    threshold = max(np.percentile(values[kind].max((1, 2)), 75) for kind in KINDS)
    common = ["evaluate", "--maps", where, "--protocol", "vssl_eval", "--quiet"]

    def run(out, *more):
        assert cli.main([str(part) for part in (*common, "--out", tmp_path / out, *more)]) == 0
        return json.loads((tmp_path / out / "metrics.json").read_text()), capsys.readouterr().out

    test = "--data", root, "--set", "is3"
    draws = tmp_path / "draws"
    got, said = run("val", *test, "--val", folder, "--val-set", "vgg-ss", "--draws", draws)
    record = got["universal_threshold"]
    assert record["chosen_on"] == "validation"
    assert record["by_set"]["validation"]["model"]["value"] == pytest.approx(threshold, abs=1e-6)
    quartiles = {kind: np.percentile(values[kind].max((1, 2)), 75) for kind in KINDS}
    assert record["by_set"]["validation"]["model"]["third_quartiles"] == pytest.approx(quartiles, abs=1e-6)
    origin = record["origins"]["validation"]
    assert (origin["set"], origin["n"], origin["negatives"], origin["seeds"]) == ("vgg-ss", 6, [*KINDS], [0])
    assert f"universal threshold of is3: {threshold:.4g}, chosen on vgg-ss, 6 samples under silence, noise" in said
    borrowed = json.loads((draws / "validation-vgg-ss-offscreen-0.json").read_text())["draws"]
    broad = dict(zip(IDS, ["animals", "music", "vehicles", "animals", "weapons", "music"]))
    assert all(broad[name] != broad[draw["file"]] for name, draw in borrowed.items())
    borrowed = json.loads((draws / "is3-offscreen-0.json").read_text())["draws"]
    assert all(name.split("_")[0] != draw["file"].split("_")[0] for name, draw in borrowed.items())
    areas = {  # of the image above the threshold, by plain torch
        kind: np.mean(
            torch.nn.functional.interpolate(
                torch.from_numpy(of_is3[kind])[:, None], (224, 224), mode="bilinear"
            ).numpy()
            > threshold
        )
        for kind in KINDS
    }
    for kind, area in areas.items():
        assert got[f"pia_{kind}"] == pytest.approx(area, abs=1e-4)
    found = got["protocols"]["is3"]["vssl_eval"]["model"]
    assert found["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert found["figures"]["audio_visual"]["false_alarms"]["pia_noise"] == pytest.approx(areas["noise"], abs=1e-4)
    assert found["figures"]["audio_visual"]["false_alarms"].keys() >= {"f_loc", "f_auc", "mean_iou"}

    run("vgg-ss", "--data", folder, "--set", "vgg-ss")
    again, said = run("from", *test, "--threshold-from", tmp_path / "vgg-ss")
    for key in ("sets", "protocols"):
        assert again[key] == got[key]
    assert again["universal_threshold"]["origins"]["results"]["set"] == "vgg-ss" and "(of " in said
    chain, said = run("chain", *test, "--threshold-from", tmp_path / "from" / "metrics.json")
    assert chain["sets"] == got["sets"]

    number, said = run("number", *test, "--threshold", threshold)
    assert number["universal_threshold"]["chosen_on"] == "given"
    assert number["sets"]["is3"]["model"]["pia_noise"] == pytest.approx(got["pia_noise"], abs=1e-4)
    row = number["sets"]["is3"]["baselines"]["random"]
    assert "ciou_universal" not in row and "ciou_adaptive" in row
    assert [*number["protocols"]["is3"]["vssl_eval"]] == ["model"]
    assert "note: no universal threshold is known of whole_image, centre_box, random, objectness" in said


def test_whatever_depends_on_the_test_sets_own_threshold_says_so(folder, maps, tmp_path, capsys):
    _, where = maps
    assert evaluate(folder, tmp_path / "out", "--maps", where, "--protocol", "vssl_eval,vssl_eval_unit") == 0
    results, said = json.loads((tmp_path / "out" / "metrics.json").read_text()), capsys.readouterr().out
    on_threshold = ("universal", "pia_", "overlap_", "auc_n_", "f_loc", "f_auc")

    def check(key):
        if any(part in key for part in on_threshold):
            assert "test_threshold" in key and "universal" not in key, key

    for row in results["sets"]["vgg-ss"]["model"], results["sets"]["vgg-ss"]["baselines"]["random"]:
        assert "ciou_test_threshold" in row and "pia_noise_test_threshold" in row
        for key in (*row, *row["counts"]):
            check(key)
    for computed in results["protocols"]["vgg-ss"].values():
        for key in computed["model"]["figures"]["audio_visual"]["localization"]:
            check(key)
        family = computed["model"]["figures"]["audio_visual"]["false_alarms"]
        assert family and all(key.endswith("_test_threshold") for key in family)
    for key in (*(key for key in results if key != "universal_threshold"), *header(tmp_path / "out")):
        check(key)
    for line in said.splitlines():
        check(line.split()[0])
        if line.startswith("false alarms"):
            assert "pia_noise_test_threshold" in line
    assert "the test set's own threshold of vgg-ss: " in said and "universal" not in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "share of the image above the test set&#x27;s own threshold" in page and "cIoU thr. of test set" in page
    assert "cIoU universal" not in page


def test_the_console_names_rules_and_silent_samples(folder, maps, tmp_path, capsys):
    _, where = maps
    silent = f"{IDS[0]}+{IDS[1]}"
    for kind in ("", "silence", "noise"):
        np.save(where / kind / f"{silent}.npy", np.load(where / kind / f"{IDS[0]}.npy"))
    (tmp_path / "silent.csv").write_text(f"video,audio,label\n{IDS[0]},{IDS[1]},non-sounding\n")
    options = "--maps", where, "--protocol", "slavc_extended", "--silent", tmp_path / "silent.csv"
    assert evaluate(folder, tmp_path / "out", *options) == 0
    lines, results = capsys.readouterr().out.splitlines(), json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert lines[0].startswith("vgg-ss: 7 samples, 1 of them silent")
    assert lines[1].split() == [*"vgg-ss, protocol slavc_extended, 7 samples model".split(), *BASELINES]
    found = results["protocols"]["vgg-ss"]["slavc_extended"]["model"]["figures"]["audio_visual"]["detection"]["top50"]
    assert any(line.split()[:3] == ["top50", "ap", f"{found['ap']:.4f}"] for line in lines)
    default = next(i for i, line in enumerate(lines) if line.startswith("protocol default"))
    assert default > max(i for i, line in enumerate(lines) if line.startswith("top50 "))
    assert lines[default].endswith("  cIoU adaptive  AUC adaptive  cIoU top50  IIoU adaptive  interactive pointing")
    row = lines[default + 1].split()
    assert row[:3] == ["vgg-ss:", "model", f"{results['vgg-ss_ciou_adaptive']:.3f}"]
    assert found["n_sounding"] == 6 and "7 samples, 1 of them silent" in (tmp_path / "out" / "report.html").read_text()


def header(out):
    return (out / "per_sample.csv").read_text().splitlines()[0].split(",")


def test_thresholds_that_do_not_fit_are_refused(folder, maps, is3, tmp_path, capsys, no_report):
    (_, where), (root, _) = maps, is3
    assert evaluate(folder, tmp_path / "own", "--maps", where) == 0
    plain = tmp_path / "plain"  # the same samples without classes
    shutil.copytree(folder, plain)
    (plain / "vggss.json").unlink()
    file = tmp_path / "results.json"

    def fails(message, *more, data=(root, "is3")):
        argv = ["evaluate", "--data", data[0], "--set", data[1], "--maps", where, "--out", tmp_path / "out", "--quiet"]
        assert cli.main([str(part) for part in (*argv, *more)]) == 2
        assert re.search(message, capsys.readouterr().err), message
        assert not (tmp_path / "out").exists()

    fails("not allowed with argument", "--threshold", "0.1", "--val", folder)
    fails("not allowed with argument", "--threshold", "0.1", "--threshold-from", tmp_path / "own")
    fails("threshold: expected a finite number, got nan", "--threshold", "nan")
    fails(r"--val-set: expected with --val$", "--val-set", "vgg-ss")
    fails("--val-layout: expected with --val-set", "--val", folder, "--val-layout", "slavc")
    fails(
        "set plain: expected categories, for off-screen sounds, on which the universal threshold depends; 6 of 6 "
        "samples do not say which categories they show",
        "--val",
        plain,
    )
    fails(
        "threshold: expected one that was chosen on other samples than those of set 'vgg-ss'",
        "--threshold-from",
        tmp_path / "own",
        data=(folder, "vgg-ss"),
    )
    fails("nowhere", "--threshold-from", tmp_path / "nowhere")
    fails("--val: expected with --negatives", "--negatives", "", "--val", folder, "--val-set", "vgg-ss")
    results = json.loads((tmp_path / "own" / "metrics.json").read_text())
    record = results["universal_threshold"]
    for wrong, message in (
        ("[" * 100_000, "results.json: expected the results of an evaluation, got RecursionError"),
        ("[]", "results.json: expected the results of an evaluation, got TypeError"),
        (
            json.dumps(
                {"universal_threshold": {"by_set": {"a": {"model": {"value": 10**400, "third_quartiles": {}}}}}}
            ),
            "results.json: expected the results of an evaluation, got OverflowError",
        ),
        (json.dumps({"universal_threshold": record | {"by_set": {}}}), "results.json: .* one set, got those of none"),
        (
            json.dumps({"universal_threshold": record | {"by_set": dict.fromkeys("ab", record["by_set"]["vgg-ss"])}}),
            "results.json: expected universal thresholds of one set, got those of 'a', 'b'",
        ),
    ):
        file.write_text(wrong)
        fails(message, "--threshold-from", file)


def test_thresholds_of_the_set_that_is_tested(folder, maps, tmp_path, capsys, no_report):
    """Refused for the same samples in whatever order; where only the set is the same, a note says what is not known."""
    _, where = maps
    assert evaluate(folder, tmp_path / "own", "--maps", where) == 0
    from_own = "--maps", where, "--threshold-from", tmp_path / "own"
    for name, ids in (("turned", IDS[::-1]), ("half", IDS[:3])):
        (tmp_path / f"{name}.txt").write_text("\n".join(ids))
    capsys.readouterr()
    assert evaluate(folder, tmp_path / "turned", *from_own, "--list", tmp_path / "turned.txt") == 2
    assert "chosen on other samples than those of set 'vgg-ss'" in capsys.readouterr().err
    assert evaluate(folder, tmp_path / "half", *from_own, "--list", tmp_path / "half.txt") == 0
    assert "set vgg-ss: its universal threshold was chosen on 6 samples of vgg-ss, too" in capsys.readouterr().out


def test_thresholds_of_other_weights(tmp_path):
    origin = {"file": "r/metrics.json", "weights": "a.pt", "weights_sha256": "1" * 64}
    assert thresholds.check_model(origin, {"weights": "copy.pt", "weights_sha256": "1" * 64}) is None
    with pytest.raises(ValueError, match="r/metrics.json: expected thresholds of b.pt .*, got those of a.pt"):
        thresholds.check_model(origin, {"weights": "b.pt", "weights_sha256": "2" * 64})
    note = thresholds.check_model(origin, {"model": "maps"})
    assert "thresholds are of a.pt; whether this is the model of maps is not recorded" in note
    assert thresholds.check_model({"file": "r", "model": "m:f"}, {"model": "m:f"}) is None


def test_thresholds_of_other_nets_or_readings_of_the_same_weights():
    """A file of SLAVC's holds two models; frames and sounds that are read in another way have other maps."""
    weights = {"file": "r", "weights": "a.pt", "weights_sha256": "1" * 64}
    with pytest.raises(ValueError, match="r: expected thresholds of the momentum nets of a.pt, got online"):
        thresholds.check_model(weights | {"layout": "ssl_fast"}, weights | {"layout": "slavc_momentum"})
    with pytest.raises(ValueError, match="r: expected thresholds of the online nets of a.pt, got momentum"):
        thresholds.check_model(weights | {"layout": "slavc_momentum"}, weights | {"layout": "slavc"})
    for model in (weights, {"file": "r", "model": "m:f"}):
        one, other = ({"reading": {"size": 224, "fit": fit}} for fit in ("crop", "squash"))
        assert thresholds.check_model(model | one, model | one) is None
        note = thresholds.check_model(model | one, model | other)
        assert note == "r: its universal thresholds are of fit crop, here squash"


def test_a_function_is_a_model(folder, tmp_path, monkeypatch):
    """The same maps from a function as from files, and the draws of its negatives on disk."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model.py").write_text(
        "import torch\nNUMBER = 3\ndef maps(images, spectrograms):\n"
        "    light = torch.nn.functional.avg_pool2d(images.float().mean(1), 32) / 255\n"
        "    return light * spectrograms.std((1, 2, 3))[:, None, None]\n"
    )
    out, draws = tmp_path / "out", tmp_path / "draws"
    options = "--model", "my_model:maps", "--draws", draws, "--seeds", "1234"
    assert evaluate(folder, out, *options) == 0
    results = json.loads((out / "metrics.json").read_text())
    record = json.loads((draws / "vgg-ss-offscreen-1234.json").read_text())
    heard = {name: record["draws"][name]["file"] for name in IDS}
    broad = dict(zip(IDS, ["animals", "music", "vehicles", "animals", "weapons", "music"]))
    assert record["seed"] == 1234 and all(broad[name] != broad[other] for name, other in heard.items())
    assert evaluate(folder, tmp_path / "again", *options) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert again["sets"] == results["sets"]
    for kind in KINDS:  # the spectrogram of silence is constant
        assert (results["sets"]["vgg-ss"]["map_maxima"][kind][-1] > 1e-6) == (kind != "silence")
    assert torch.tensor(results["sets"]["vgg-ss"]["map_maxima"]["positive"]).diff().min() >= 0


def test_a_released_pipeline_by_its_name(folder, tmp_path, monkeypatch):
    """--front-end published/NAME: a function is given that program's spectrograms, in the order of the set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listener.py").write_text(
        "import torch\ndef maps(images, spectrograms):\n"
        "    if len(images) > 1:  # the report asks for single ones\n        torch.save(spectrograms, 'given.pt')\n"
        "    return torch.zeros(len(images), 7, 7)\n"
    )
    options = "--model", "listener:maps", "--negatives", "", "--front-end", "published/sslalign_ezvsl"
    assert evaluate(folder, tmp_path / "out", *options) == 0
    pipeline = FRONT_ENDS["published/sslalign_ezvsl"]
    want = torch.stack([file_spectrogram(pipeline, folder / "audio" / f"{name}.wav") for name in IDS])
    torch.testing.assert_close(torch.load(tmp_path / "given.pt", weights_only=True), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--maps", "nowhere"], "--maps nowhere: expected a folder, got nothing"),
        (["--model", "no_such_module:maps"], "--model no_such_module:maps: expected MODULE:NAME of a function"),
        (["--model", "math:pi"], "--model math:pi: expected a function, got float"),
        (["--model", "math:sin", "--protocol", "best"], "protocol: expected one of \\['default', 'lvs'"),
        (["--model", "math:sin", "--image-size", "96"], "published sets have images of 224 pixels"),
        (
            ["--model", "math:sin", "--layout", "zip"],
            "layout: expected one of slavc, fnac, ssl-align, ssl-tie for vgg-ss, got 'zip'",
        ),
        (["--model", "math:sin", "--train-list", "nowhere.csv"], "nowhere.csv"),
        (
            ["--model", "math:sin", "--seeds", "1,-2"],
            "--seeds: expected integers >= 0 with commas between, or published",
        ),
        (["--model", "math:sin", "--alpha", "0.9"], "--alpha: expected with --object-weights, the prior"),
        (
            ["--model", "math:sin", "--protocol", "vssl_eval", "--negatives", ""],
            "expected negative sounds for protocol 'vssl_eval', got none",
        ),
    ],
)
def test_bad_arguments(folder, tmp_path, capsys, more, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert evaluate(folder, tmp_path / "out", *more) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data", ".", "--annotations", "nowhere"], "--annotations: expected with --set"),
        (["--data", ".", "--layout", "fnac", "--silent", "x"], "--layout, --silent: expected with --set"),
        (["--scenes", "--layout", "fnac"], "--layout: expected with --set"),
        (["--scenes", "--set", "is3", "--on-missing", "list"], "--set, --on-missing: expected with --data"),
        (["--scenes", "--val", "x", "--split", "y"], "--val, --split: expected with --data, the scenes have splits"),
        (["--scenes", "--fit", "crop", "--image-size", "64"], "--image-size, --fit: expected with --data, the scenes"),
        (["--scenes", "--resampler", "torch"], "--resampler: expected with --data"),
        (["--scenes", "--front-end", "lvs"], "--front-end: expected with --data or --weights"),
        (["--data", ".", "--test-scenes", "3"], "--test-scenes: expected with --scenes"),
        (["--data", ".", "--retrieval", "max"], "--retrieval: expected with --weights"),
        (["--data", ".", "--negatives", "", "--draws", "x"], "--draws: expected with --negatives"),
        (["--data", ".", "--negatives", "", "--seeds", "1"], "--seeds: expected with --negatives"),
        (["--data", ".", "--image-size", "0"], "argument --image-size: expected a positive integer, got '0'"),
        (["--data", "DATA", "--set", "vgg-ss", "--seeds", "0,0"], "--seeds: expected each once, got 0 twice"),
        (
            ["--data", "DATA", "--set", "vgg-ss", "--protocol", "lvs,lvs"],
            "--protocol: expected each once, got lvs twice",
        ),
        (
            ["--data", "DATA", "--set", "vgg-ss", "--negatives", "noise,noise"],
            "--negatives: expected each once, got noise",
        ),
    ],
)
def test_options_without_effect_are_refused(folder, tmp_path, capsys, more, message):
    argv = ["evaluate", "--out", str(tmp_path / "out"), "--model", "math:sin", "--quiet", *more]
    assert cli.main([str(folder) if part == "DATA" else part for part in argv]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_lists_of_other_programs_and_missing_samples(tmp_path, monkeypatch, capsys):
    """SSL-Align's folder and list, LVS's annotations, an SSL-TIE list of what was trained on."""
    published = FOLDERS["ssl-align: vgg-ss"]
    root = tmp_path / "VGGSound_v1"
    root.mkdir()
    make(root, published)
    (root / published.files[2][0]).unlink()
    (tmp_path / "trained.txt").write_text(f"{CLIPS[0]}.jpg\n{CLIPS[2]}.jpg\n{CLIPS[5]}.jpg\n")
    (tmp_path / "light.py").write_text("def maps(images, spectrograms):\n    return images[:, 0, ::32, ::32].float()\n")
    monkeypatch.chdir(tmp_path)
    argv = ["--list", "list", "--model", "light:maps", "--train-list", "trained.txt", "--protocol", "lvs"]
    assert evaluate(root, tmp_path / "out", *argv) == 2
    assert "1 problem: " in capsys.readouterr().err
    assert evaluate(root, tmp_path / "out", *argv, "--on-missing", "list") == 0
    printed = capsys.readouterr().out
    assert f"{root}: 5 of 6 samples are there; missing are '{CLIPS[2]}'" in printed
    assert "vgg-ss, 5 of 6 samples: model" in printed
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "set vgg-ss: 2 of 5 samples are in trained.txt" in results["notes"]
    one = results["sets"]["vgg-ss"]
    assert (one["n"], one["samples"]["listed"], one["samples"]["missing"]) == (5, 6, [CLIPS[2]])
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("vgg-ss: 5 of 6 samples") == 2  # in the table, and in that of the protocol


def test_bad_maps(folder, maps, tmp_path, capsys):
    _, where = maps
    file = where / "noise" / f"{IDS[3]}.npy"

    def fails(message):
        assert evaluate(folder, tmp_path / "new" / "out", "--maps", where) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    np.save(file, np.zeros((5, 7)))
    fails(f"expected maps of one size, (7, 7) as of {IDS[0]!r}, got (5, 7) of {IDS[3]!r}")
    np.save(file, np.full((7, 7), np.nan))
    fails(f"maps of model under noise sound: sample {IDS[3]!r} holds 49 values that are NaN or infinite")
    np.save(file, np.zeros((1, 7, 7)))
    fails(f"{file}: expected floats (h, w), got float64 (1, 7, 7)")
    file.write_bytes(b"no array")
    fails(f"{file}: expected a map as .npy, got: ")
    file.unlink()
    fails(f"{file}: expected a map as .npy, got: ")


@pytest.mark.slow
def test_a_published_checkpoint_is_evaluated_as_it_was_published(folder, tmp_path):
    """One image net and one audio net in EZ-VSL's layout, with heads that leave features as they are."""
    torch.manual_seed(0)
    nets = {"imgnet": ResNet18(), "audnet": ResNet18(1)}
    state = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    heads = {"img_proj": torch.eye(512)[:, :, None, None], "aud_proj": torch.eye(512)}
    for name, weight in heads.items():
        state |= {f"{name}.weight": weight, f"{name}.bias": torch.zeros(512)}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "best.pth")
    assert evaluate(folder, tmp_path / "out", "--weights", tmp_path / "best.pth", "--negatives", "") == 0
    results = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (results["method"], results["layout"], results["recipe"]["front_end"]) == ("ez_vsl", "ezvsl", "ez_vsl")

    def maps(images, spectrograms):
        mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            visual = nets["imgnet"].eval()((images / 255 - mean) / std)
            audio = nets["audnet"].eval()(spectrograms).amax((2, 3))
        return torch.einsum("bchw,bc->bhw", *map(torch.nn.functional.normalize, (visual, audio)))

    args = cli.parser().parse_args(["evaluate", "--data", str(folder), "--set", "vgg-ss", "--out", "x", "--maps", "x"])
    test = published_set(args, size=224, front_end="ez_vsl")
    again = evaluate_model(maps, {"vgg-ss": test}, negatives=[], progress=False)["sets"]["vgg-ss"]
    found = results["sets"]["vgg-ss"]
    assert found["map_maxima"]["positive"] == pytest.approx(again["map_maxima"]["positive"], abs=1e-5)
    assert found["model"]["auc_adaptive"] == pytest.approx(again["model"]["auc_adaptive"], abs=1e-6)
