"""Names that hold control sequences, from files to a terminal and to the page of an evaluation."""

import os
import unicodedata
import warnings

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import doctor
from ssl_fast.cli import main as cli
from ssl_fast.evaluation.report import _text
from ssl_fast.models import checkpoints
from ssl_fast.terminal import printable

# a title, a colour, a carriage return, C1's CSI, right-to-left override, a byte that is no UTF-8, a line of its own
HOSTILE = "a\x1b]0;t\x07\x1b[31m\r\x9b2J\u202eb\udce9\n  missing: c"
ESCAPED = r"a\x1b]0;t\x07\x1b[31m\r\x9b2J\u202eb\udce9\n  missing: c"


def controls(text: str) -> set[str]:
    """Characters that act on a terminal or cannot be encoded, by their Unicode category; all lines must be ours."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c != "\n"}


def test_printable():
    assert printable(HOSTILE) == ESCAPED and printable(HOSTILE, keep="\n") == ESCAPED.replace(r"\n", "\n")
    plain = "naïve Gitarre 吉他 🎸 ½ a\\x1b"
    assert printable(plain) == plain
    everything = "".join(map(chr, range(0x110000)))
    assert not controls(printable(everything)) and printable(everything).encode()


def test_page_of_an_evaluation():
    assert _text(f"<b>\"'&{HOSTILE}") == "&lt;b&gt;&quot;&#x27;&amp;" + ESCAPED.replace(r"\n", "\n")


@pytest.fixture
def folder(tmp_path):
    """A set of an image with a sound and an image without; both ids are hostile."""
    for name in ("frames", "audio"):
        (tmp_path / name).mkdir()
    for sample in (HOSTILE, "b" + HOSTILE):
        with open(tmp_path / "frames" / f"{sample}.png", "wb") as file:
            Image.new("RGB", (8, 8)).save(file, "PNG")
    with open(tmp_path / "audio" / f"{HOSTILE}.wav", "wb") as file:
        soundfile.write(file, np.zeros(16000), 16000, format="WAV")
    return tmp_path


def test_each_sample_has_one_line(folder, capsys):
    assert cli.main(["data", "check", str(folder), "--quiet"]) == 1
    out, err = capsys.readouterr()
    found, *entries = out.splitlines()
    assert "1 files missing" in found and err == "" and not controls(out)
    assert sum(f"b{ESCAPED}" in entry for entry in entries) == 1 and all(ESCAPED in entry for entry in entries)


def test_errors_and_notes(folder, tmp_path, capsys):
    image = os.path.join(folder, "frames", f"{HOSTILE}.png")
    assert cli.main(["localize", image, image + ".wav", "-o", str(tmp_path / "out.png")]) == 2
    out, err = capsys.readouterr()
    assert not controls(out + err) and err.count("\n") == 1 and r"a\x1b]0;t\x07\x1b[31m" in err and r"\udce9" in err
    for argv in (["data", "check", str(folder), HOSTILE], ["data", "check", str(folder), "--set", HOSTILE]):
        assert cli.main(argv) == 2
        err = capsys.readouterr().err
        assert not controls(err) and r"\x1b]0;t\x07" in err


def test_keys_of_a_checkpoint(tmp_path, capsys):
    kept = torch.load(checkpoints.EMBEDDED, weights_only=True)
    kept["localizer"]["\x1b[2Jkey"] = torch.zeros(1)
    path = tmp_path / "\x1b[2J.pt"
    torch.save(kept, path)
    cli.main(["convert", str(path), str(tmp_path / "b.pt")])
    out, err = capsys.readouterr()
    assert not controls(out + err) and r"\x1b[2Jkey" in out + err


def test_warnings_are_one_line(monkeypatch, capsys):
    def warns(_):
        warnings.warn(HOSTILE, stacklevel=1)
        return 0

    monkeypatch.setattr(doctor, "run", warns)
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert not controls(err) and err.count("\n") == 1 and r"a\x1b]0;t\x07\x1b[31m" in err and out == ""
