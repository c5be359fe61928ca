"""`ssl-fast train` on folders of images and sounds, and `evaluate` of what it gives."""

import json
import re
import shutil
from hashlib import sha256

import numpy as np
import pytest
import torch

from ssl_fast.cli import main as cli
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.neighbors import FORMAT
from ssl_fast.models import ResNet18, checkpoints, storage
from ssl_fast.reproducibility import fingerprint
from test_cli import fails
from training_toys import loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12 images as PNG, each with a wav at 22,050 Hz, boxes and classes."""
    import soundfile
    from PIL import Image

    root = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    entries = []
    for name in ("frames", "audio"):
        (root / name).mkdir()
    for i in range(12):
        image = rng.integers(0, 80, (40, 60, 3), np.uint8)
        image[10:30, 5 + 25 * (i % 2) : 30 + 25 * (i % 2), i % 3] = 250
        Image.fromarray(image).save(root / "frames" / f"clip {i}.png")
        tone = np.sin(np.arange(22050) * (0.05 + 0.1 * (i % 3))) * 0.5
        soundfile.write(root / "audio" / f"clip {i}.wav", tone.astype(np.float32), 22050)
        left = (5 + 25 * (i % 2)) / 60
        entries.append({"file": f"clip {i}", "class": "abc"[i % 3], "bbox": [[left, 0.25, left + 25 / 60, 0.75]]})
    (root / "annotations.json").write_text(json.dumps(entries))
    (root / "first.txt").write_text("".join(f"clip {i}\n" for i in range(8)))
    (root / "last.txt").write_text("".join(f"clip {i}\n" for i in range(8, 12)))
    return root


def test_train_and_evaluate_a_folder(folder, tmp_path, capsys):
    common = ["--image-size", "64", "--batch-size", "4", "--threads", "1", "--quiet"]
    argv = [
        "train",
        "--data",
        folder,
        "--split",
        "first",
        "--val",
        folder,
        "--method",
        "ez_vsl",
        "--epochs",
        "2",
        "--out",
        tmp_path / "run",
        *common,
    ]
    fails(capsys, argv, "validation: expected samples that are not trained on, 8 of 12 are")
    argv += ["--val-split", "last"]
    assert cli.main([str(x) for x in argv]) == 0
    assert "best epoch: " in capsys.readouterr().out
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (results["method"], results["steps"], results["sets"][folder.name]["n"]) == ("ez_vsl", 4, 4)
    assert "the epoch was chosen on the samples that it is evaluated on" in results["notes"]
    assert results["recipe"]["image_size"] == 64 and (tmp_path / "run" / "report.html").stat().st_size > 10_000
    fails(capsys, argv, "holds another run")
    argv = [
        "evaluate",
        "--data",
        folder,
        "--split",
        "last",
        "--weights",
        tmp_path / "run",
        "--out",
        tmp_path / "results",
        "--threads",
        "1",
        "--quiet",
    ]
    assert cli.main([str(x) for x in argv]) == 0
    again = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert again["sets"] == results["sets"] and again["weights"] == str(tmp_path / "run" / "best.pt")


def test_samples_that_are_missing_are_listed(folder, tmp_path, capsys):
    """Told on the console, in the checkpoint, the results and the report; a resumed run has the same."""
    data, out = tmp_path / "media", tmp_path / "run"
    shutil.copytree(folder, data)
    lost = [data / "frames" / "clip 3.png", data / "audio" / "clip 9.wav"]
    for file in lost:
        file.rename(file.with_suffix(".lost"))
    small = "--image-size 32 --batch-size 3 --epochs 2 --threads 1 --quiet --method ez_vsl".split()
    argv = ["train", "--data", data, "--split", "first", "--val", data, "--val-split", "last", "--out", out, *small]
    fails(capsys, argv, "1 problem: ", "clip 3.jpg|.jpeg|.png: no such file, id 'clip 3'")
    assert cli.main([str(x) for x in [*argv, "--on-missing", "list", "--minutes", "1e-9"]]) == 0
    printed = capsys.readouterr().out
    assert f"{data}: 7 of 8 samples are there; missing are 'clip 3'" in printed
    assert f"{data}: 3 of 4 samples are there; missing are 'clip 9'" in printed
    assert re.search("^media, 3 of 4 samples: ez_vsl ", printed, re.MULTILINE)
    used = [f"clip {i}" for i in (0, 1, 2, 4, 5, 6, 7)]
    record = {"used": 7, "listed": 8, "missing": ["clip 3"], "sha256": sha256("\n".join(used).encode()).hexdigest()}
    assert storage.load(out / storage.LAST)["files"] == record
    digest = sha256(b"clip 10\nclip 11\nclip 8").hexdigest()
    results = json.loads((out / "metrics.json").read_text())["sets"]["media"]
    assert results["samples"] == {"used": 3, "listed": 4, "missing": ["clip 9"], "sha256": digest}
    assert "media: 3 of 4 samples, 3 images" in (out / "report.html").read_text()

    resume = [str(x) for x in ("train", "--resume", "--out", out, "--data", data, "--minutes", "1", "--quiet")]
    lost[0].with_suffix(".lost").rename(lost[0])
    fails(capsys, resume, "run with 1 missing samples, asked to go on where 0 are; they differ in 'clip 3'")
    lost[0].rename(lost[0].with_suffix(".lost"))
    assert cli.main(resume) == 0 and storage.load(out / storage.LAST)["step"] == 4


def test_train_without_validation_prints_the_checkpoint(folder, tmp_path, capsys):
    argv = [
        "train",
        "--data",
        folder,
        "--epochs",
        "1",
        "--image-size",
        "48",
        "--batch-size",
        "6",
        "--out",
        tmp_path / "run",
        "--quiet",
    ]
    assert cli.main([str(x) for x in argv]) == 0
    assert f"checkpoint: {tmp_path / 'run' / 'checkpoint.pt'}" in capsys.readouterr().out
    assert not (tmp_path / "run" / "metrics.json").exists()


def published(folder, out, *more):
    return [
        str(x)
        for x in (
            "train",
            "--data",
            folder,
            "--recipe",
            "published",
            "--image-size",
            32,
            "--batch-size",
            6,
            "--epochs",
            1,
            "--threads",
            1,
            "--quiet",
            "--out",
            out,
            *more,
        )
    ]


@pytest.mark.slow
def test_image_nets_start_from_a_file(folder, tmp_path, capsys):
    state = ResNet18().state_dict()
    file = tmp_path / "net.pth"
    torch.save(state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}, file)
    argv = published(folder, tmp_path / "run", "--method", "ez_vsl", "--init", file)
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert f"{file}: not used are fc.weight, fc.bias" in printed and "from scratch" not in printed
    assert cli.main(published(folder, tmp_path / "scratch", "--method", "ez_vsl")) == 0
    assert "from scratch, without --init; the published runs of ez_vsl started from ImageNet" in capsys.readouterr().out
    weight = loaded(tmp_path / "run")[0].visual_net.layer3[1].conv2.weight
    assert 0 < (weight - state["layer3.1.conv2.weight"]).abs().max() < 1e-3  # two steps of Adam at 1e-4 away
    assert cli.main(["train", "--data", str(folder), "--out", str(tmp_path / "run"), "--resume", "--quiet"]) == 0
    torch.save(dict(list(state.items())[1:]), file)
    fails(capsys, published(folder, tmp_path / "other", "--method", "ez_vsl", "--init", file), "conv1.weight")
    fails(
        capsys,
        ["train", "--data", folder, "--batch-size", 6, "--init", file, "--out", tmp_path / "other"],
        "got SmallResNet",
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_conceptual_views_of_files_of_neighbours(folder, tmp_path, capsys):
    ids = FolderSet(folder, front_end="ssl_align", size=48).ids
    for name, names in (("visual", ids), ("audio", ids), ("other", ids[::-1]), ("seen", ids)):
        np.save(tmp_path / f"{name}.npy", ((np.arange(12)[:, None] + [1, 2, 5]) % 12).astype(np.int32))
        about = {"format": FORMAT, "k": 3, "number": 12, "ids": fingerprint(names), "features": ""}
        about |= {"modality": "visual"} if name == "seen" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(about))

    def argv(visual, *more):
        return published(folder, tmp_path / "run", "--neighbors-visual", tmp_path / f"{visual}.npy", *more)

    audio = ["--neighbors-audio", tmp_path / "audio.npy"]
    fails(capsys, argv("visual"), "--neighbors-visual, --neighbors-audio: expected both or none of them")
    fails(capsys, argv("other", *audio), str(tmp_path / "other.npy"), "belongs to ids")
    seen = tmp_path / "seen.npy"
    expected = f"--neighbors-audio {seen}: expected audio neighbours, got visual ones"
    fails(capsys, argv("seen", "--neighbors-audio", seen), expected)
    fails(capsys, argv("visual", *audio, "--method", "lvs"), "neighbors: expected none with the views augmented, got")
    expected = "--neighbors-audio: expected with the views original, augmented, conceptual, got none; `ssl-fast mine` "
    fails(capsys, published(folder, tmp_path / "run"), expected, "--views original,augmented does without")
    mixed = ["--method", "ssl_tie", "--audio-mix", "ssl_tie"]
    fails(capsys, argv("visual", *audio, *mixed), "--neighbors-visual: expected with conceptual views, got mixed")
    fails(capsys, published(folder, tmp_path / "run", *mixed), "--neighbors-audio: expected with --audio-mix, got none")
    fails(
        capsys, published(folder, tmp_path / "run", "--transform", "twice"), "transform: expected one of single_shrink,"
    )
    assert not (tmp_path / "run").exists()
    assert cli.main(argv("visual", *audio)) == 0
    assert loaded(tmp_path / "run")[1]["recipe"]["views"] == ("original", "augmented", "conceptual")
    similar = published(folder, tmp_path / "similar", "--neighbors-visual", tmp_path / "visual.npy", *audio)
    assert cli.main([*similar, "--method", "hard_positives"]) == 0
    assert loaded(tmp_path / "similar")[1]["recipe"]["views"] == ("augmented", "conceptual")


def test_bad_folders_are_named(folder, tmp_path, capsys):
    out = ["--out", tmp_path / "run"]
    fails(capsys, ["train", "--data", tmp_path / "none", *out], str(tmp_path / "none"))
    fails(capsys, ["train", "--data", folder, *out], "batch_size: expected at most the 12 samples of the set, got 32")
    fails(
        capsys,
        ["train", "--data", folder, "--recipe", "mine", *out],
        "recipe: expected one of quickstart, published, got 'mine'",
    )
    fails(capsys, ["train", "--data", folder, "--front-end", "ears", *out], "front_end: expected a FrontEnd or one of")
    fails(capsys, ["train", "--data", folder, "--split", "none", *out], "none.txt")
    fails(capsys, ["train", "--data", folder, "--val-split", "first", *out], "--val-split: expected with --val")
    assert not (tmp_path / "run").exists()


def test_views_are_those_asked_for(folder, tmp_path, capsys):
    argv = [
        "train",
        "--data",
        folder,
        "--views",
        "original,augmented",
        "--batch-size",
        "12",
        "--epochs",
        "1",
        "--image-size",
        "48",
        "--quiet",
        "--out",
        tmp_path / "run",
    ]
    assert cli.main([str(x) for x in argv]) == 0
    assert storage.load(tmp_path / "run" / "checkpoint.pt")["recipe"]["views"] == ("original", "augmented")
    fails(capsys, [*argv[:4], "original,upside_down", "--out", tmp_path / "other"], "views: expected", "upside_down")


def test_options_of_the_loss_are_recorded_and_resumed(folder, tmp_path, capsys):
    argv = ["train", "--data", folder, "--method", "fnac", "--batch-size", "12", "--image-size", "48", "--quiet"]
    argv += ["--epochs", "2"]
    chosen = ["--nce-epochs", "1", "--loss", "weights=1,2,0", "--loss", "tau=0.1"]
    out = ["--out", tmp_path / "run"]
    fails(capsys, [*argv, *out, *chosen, "--loss", "margin=1"], "loss: fnac has no option 'margin', it takes tau (a")
    fails(capsys, [*argv, *out, *chosen[2:]], "nce_epochs: expected >= 0 and fewer than the 2 epochs of the run")
    assert not (tmp_path / "run").exists()
    assert cli.main([str(x) for x in (*argv, *out, *chosen)]) == 0
    recipe = storage.load(tmp_path / "run" / "checkpoint.pt")["recipe"]
    assert recipe["loss"] == {"tau": 0.1, "weights": (1.0, 2.0, 0.0)} and recipe["nce_epochs"] == 1
    arguments = json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]
    assert (arguments["loss"], arguments["nce_epochs"]) == (["weights=1,2,0", "tau=0.1"], 1)
    assert cli.main([str(x) for x in (*argv, *out, "--resume")]) == 0
    fails(capsys, [*argv, *out, "--resume", "--loss", "tau=0.2"], "the run in", "leave it out")


@pytest.mark.slow
def test_broken_file_stops_training_and_is_named(folder, tmp_path, capsys):
    import shutil

    broken = tmp_path / "media"
    shutil.copytree(folder, broken)
    path = broken / "frames" / "clip 5.png"
    path.write_bytes(path.read_bytes()[:200])
    argv = ["train", "--data", broken, "--batch-size", "12", "--epochs", "1", "--image-size", "48", "--quiet"]
    fails(capsys, [*argv, "--out", tmp_path / "run"], str(path))
    unread = ["--recipe", "published", "--method", "ez_vsl", "--workers", "1"]  # policies for crops need the files
    fails(capsys, [*argv, *unread, "--out", tmp_path / "other"], f"ssl-fast train: {path}: cannot be read as an image")
    assert cli.main(["data", "check", str(broken), "--quiet"]) == 1
    assert str(path) in capsys.readouterr().out
    assert cli.main(["data", "check", str(folder), "--quiet"]) == 0
    assert "12 samples complete, 0 files missing" in capsys.readouterr().out


def test_sets_without_boxes_cannot_be_evaluated(folder, tmp_path, capsys):
    import shutil

    bare = tmp_path / "media"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("annotations.json"))
    fails(
        capsys,
        ["evaluate", "--data", bare, "--weights", checkpoints.EMBEDDED, "--out", tmp_path / "results"],
        str(bare),
        "expected boxes or masks",
    )


def test_negatives_of_a_run_are_recorded_and_resumed(folder, tmp_path, capsys):
    argv = ["train", "--data", folder, "--image-size", "32", "--batch-size", "4", "--threads", "1", "--quiet"]
    argv += ["--method", "ez_vsl", "--epochs", "1"]
    wanted = ["--negatives", "noise=2,silence,offscreen=3", "--negatives-weight", "0.5"]
    assert cli.main([str(x) for x in [*argv, *wanted, "--out", tmp_path / "run"]]) == 0
    assert "of a collapsed net 3.332" in capsys.readouterr().out  # log(4 + 6 / 2) + log 4
    of_run = loaded(tmp_path / "run")[1]["recipe"]
    assert of_run["negatives"] == {"silence": 1, "noise": 2, "offscreen": 3} and of_run["negatives_weight"] == 0.5
    again = ["train", "--data", folder, "--out", tmp_path / "run", "--resume", "--quiet"]
    assert cli.main([str(x) for x in again]) == 0
    fails(capsys, [*again, "--negatives", "silence"], "--negatives silence: the run in", "leave it out")
    for text, message in (
        ("offscreen=9", "of 12 samples a batch of 4 may leave 8"),
        ("noise=two", "each once, as silence,noise=4, got 'noise=two'"),
        ("hum", "negatives: expected some of silence, noise, offscreen, got 'hum'"),
    ):
        fails(capsys, [*argv, "--negatives", text, "--out", tmp_path / "none"], message)
    assert not (tmp_path / "none").exists()
