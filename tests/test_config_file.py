"""Options in a file: what --config reads, what a run writes, and that it repeats the run."""

import random
import sys
from pathlib import Path

import pytest
import torch

from ssl_fast.cli import config_file, quickstart, train
from ssl_fast.cli import main as cli
from ssl_fast.models import storage
from test_cli import fails
from training_toys import folder

COMMANDS = {"train": train, "quickstart": quickstart}


def parsed(*argv):
    return cli.parser().parse_args([str(x) for x in argv])


def test_values_survive_the_file():
    draw = random.Random(0)

    def text():
        codes = draw.choice((draw.randrange(0x80), draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)))
        return "".join(chr(codes) for _ in range(draw.randrange(4)))

    for _ in range(500):
        value = draw.choice(
            (text(), draw.randrange(-(1 << 60), 1 << 60), draw.uniform(-1, 1) * 10.0 ** draw.randrange(-300, 300))
        )
        for one in (value, draw.random() < 0.5, [text(), text()], []):
            found = config_file.tomllib.loads(f"x = {config_file.toml(one)}")["x"]
            assert found == one and type(found) is type(one)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_run_writes_are_its_options(command, tmp_path):
    """All of them, with a value of each kind; what decides where and whether it is written is left out."""
    options = {
        "quickstart": ["--out", "a", "--scenes", "7"],
        "train": ["--out", "a", "--data", 'sp ace/"é', "--set", "flickr", "--val", "b\\c", "--gather"],
    }[command]
    options += "--loss tau=.1 --loss margin=1 --compile --minutes 1e-7 --seed 0 --precision float32".split()
    before = parsed(command, *options)
    (tmp_path / "x.toml").write_text(config_file.text(before, COMMANDS[command].add_arguments, "1"))
    after = parsed(command, "--config", tmp_path / "x.toml", "--out", "b", "--force")
    changed = {key for key in vars(before) if getattr(before, key) != getattr(after, key)}
    assert changed == {"out", "force", "config"}


def test_the_command_line_overrides_the_file(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text(
        '\ufeffdata = "d"\r\nout = "o"\nepochs = 3\nminutes = 2\nworkers = 4\nloss = ["tau=1"]\ncompile = false'
    )
    found = parsed("train", "--config", file)
    assert (str(found.data), str(found.out), found.epochs, found.workers) == ("d", "o", 3, 4)
    assert (found.minutes, found.loss, found.compile) == (2.0, ["tau=1"], None) and type(found.minutes) is float
    found = parsed("train", "--workers", "0", "--loss", "tau=2", "--conf", file, "--data", "e", "--loss", "margin=1")
    assert (str(found.data), found.epochs, found.workers, found.loss) == ("e", 3, 0, ["tau=2", "margin=1"])


BAD = {
    "epoch = 3": "epoch: expected one of epochs",
    "batch_size = 3": "batch_size: expected one of batch-size",
    "zzzzz = 3": "zzzzz: expected an option of `ssl-fast train` without its dashes",
    "force = true": "force: expected on the command line alone",
    'config = "x.toml"': "config: expected on the command line alone",
    "epochs = 3\nepochs = 4\nseed = 1": "expected options in TOML, NAME = VALUE, got Cannot overwrite a value (at line",
    "epochs 3": "expected options in TOML, NAME = VALUE, got Expected '='",
    'epochs = "3"': 'epochs: expected an integer, got "3"',
    "workers = 1025": "workers: expected at most 1024, got 1025",
    "epochs = 0": "epochs: expected a positive integer, got '0'",
    "epochs = true": "epochs: expected a positive integer, got 'True'",
    "minutes = nan": "minutes: expected a positive number",
    "split = 3": "split: expected a text, got 3",
    "data = [1]": "data: expected a text, got [1]",
    'compile = "yes"': 'compile: expected true or false, got "yes"',
    'loss = "tau=1"': 'loss: expected a list of texts, got "tau=1"',
    "loss = [1]": "loss: expected a text, got [1]",
    'precision = "half"': "precision: expected one of auto, float32, bfloat16, float16",
    'log = ["paper"]': "log: expected one of tensorboard, wandb, trackio",
    "[train]\nepochs = 3": "train: expected",
    "split = 1979-05-27": "split: expected a text, got",
    "x = " + "[" * 100_000: "expected options in TOML",
    "x = '\0'": "expected options in TOML",
}


@pytest.mark.parametrize("content", BAD, ids=[text[:20] for text in BAD])
def test_a_file_that_has_no_options(content, tmp_path, capsys):
    (tmp_path / "x.toml").write_text(content)
    fails(capsys, ["train", "--config", tmp_path / "x.toml"], f"{tmp_path / 'x.toml'}: {BAD[content]}")


def test_a_file_that_cannot_be_read(tmp_path, capsys):
    fails(capsys, ["train", "--config", tmp_path / "none.toml"], f"No such file or directory: '{tmp_path}/none.toml'")
    fails(capsys, ["quickstart", "--config", tmp_path], f"Is a directory: '{tmp_path}'")
    (tmp_path / "x.toml").write_bytes(b"data = '\xff'")
    fails(capsys, ["train", "--config", tmp_path / "x.toml"], "x.toml: expected options in TOML", "utf-8")


def test_what_neither_has_is_still_required(tmp_path, capsys):
    (tmp_path / "x.toml").write_text('data = "d"')
    assert cli.main(["train", "--config", str(tmp_path / "x.toml")]) == 2
    err = capsys.readouterr().err
    assert "the following arguments are required: --out" in err and "--data," not in err


def test_a_run_is_one_file(tmp_path, capsys, monkeypatch):
    """config.toml alone repeats a run bit for bit, and --resume takes it, too."""
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "media")
    options = "--batch-size 4 --epochs 2 --seed 5 --threads 1 --image-size 32 --method ez_vsl --precision float32"
    options += " --loss tau=.2 --negatives noise=2 --checkpoint-every 1"
    assert cli.main(["train", "--data", "media", "--out", "a", "--quiet", *options.split()]) == 0
    again = ["train", "--config", "a/config.toml", "--out", "b", "--quiet"]
    assert cli.main(again) == 0
    a, b = (storage.load(tmp_path / name / storage.LAST) for name in "ab")
    assert a["step"] == b["step"] == 6 and a["recipe"] == b["recipe"]
    assert all(torch.equal(value, b["localizer"][key]) for key, value in a["localizer"].items())
    assert (tmp_path / "a/config.toml").read_text() == (tmp_path / "b/config.toml").read_text()
    assert cli.main([*again, "--resume"]) == 0
    fails(capsys, [*again, "--resume", "--seed", "6"], "--seed 6: the run in b has --seed 5")
    fails(capsys, [*again, "--resume", "--set", "flickr"], "--set flickr: the run in b has --set None")
    fails(
        capsys, [*again[:-2], "a", "--force"], "--config a/config.toml: expected a file that is not replaced in --out"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="whose names of files are UTF-8")
def test_names_that_are_no_utf8_are_in_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "media")
    (tmp_path / "media").rename(tmp_path / "caf\udce9")
    tiny = "--batch-size 4 --epochs 1 --threads 1 --image-size 32 --method ez_vsl --quiet".split()
    assert cli.main(["train", "--data", "caf\udce9", "--out", "a", *tiny]) == 0
    assert "a: no config.toml, as TOML takes names of UTF-8 alone" in capsys.readouterr().err
    assert not (tmp_path / "a/config.toml").exists() and (tmp_path / "a/run.json").exists()


def test_force_removes_no_folders_of_others(tmp_path, capsys):
    media, out = folder(tmp_path / "media").root, tmp_path / "out"
    argv = ["train", "--data", media, "--out", out, "--force", "--batch-size", 4, "--epochs", 1, "--method", "ez_vsl"]
    (out / "wandb").mkdir(parents=True)
    fails(capsys, argv, f"--out {out}: holds wandb, but no run.json of a run; choose another folder")
    (out / "wandb").rename(tmp_path / "elsewhere")
    (out / "wandb").symlink_to(tmp_path / "elsewhere")
    (out / "run.json").write_text("{}")
    assert cli.main([*map(str, argv), "--image-size", "32", "--quiet"]) == 0
    assert (tmp_path / "elsewhere").is_dir() and not (out / "wandb").exists()


def test_an_interrupted_run_says_what_resume_does_not_know():
    argv = ["--data", "my data", "--device", "cuda", "--workers", "8"]
    line = cli._resume_line(parsed("train", "--out", "x", *argv), Path("x"), 1)
    assert line == "ssl-fast train --resume --out x --data 'my data' --device cuda --workers 8"


def test_code_that_a_file_names_is_named_by_the_user_too(tmp_path, capsys, monkeypatch):
    file = tmp_path / "x.toml"
    file.write_text('backbone = "a:net"\naudio-backbone = "timm:test_vit"')
    argv = ["train", "--data", "d", "--out", "o", "--config", file]
    fails(
        capsys, argv, f"{file}: backbone a:net: code that is only run where you allow it", "name it by its option, too"
    )
    assert parsed(*argv, "--backbone", "a:net").backbone == "a:net"
    assert parsed(*argv, "--backbone", "b:net").audio_backbone == "timm:test_vit"
    monkeypatch.setenv("SSL_FAST_BACKBONES", "a:net")
    assert parsed(*argv).backbone == "a:net"
