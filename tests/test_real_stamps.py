"""The example on real media, with stamps made on the fly in place of the package's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from programs import example
from ssl_fast.data.datasets import FolderSet


@pytest.fixture(scope="module", name="example")
def stamps_example():
    return example("real_stamps")


def photograph(path: Path, seed: int, *, side: int = 120, colours: int = 4000, mode: str = "RGBA") -> None:
    """An ellipse of smooth colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) / side
    waves = [np.sin(x * rng.uniform(2, 9) + y * rng.uniform(2, 9) + rng.uniform(0, 6)) for _ in range(3)]
    pixels = 127.5 + 127.5 * np.stack(waves, 2)
    if colours < 100:
        pixels = np.round(pixels / 255) * 255
    alpha = 255.0 * ((2 * x - 1) ** 2 + (2 * y - 1) ** 2 < 0.9)
    Image.fromarray(np.dstack([pixels, alpha]).astype(np.uint8)).convert(mode).save(path)


def record(path: Path, seed: int, seconds: float = 0.8, level: float = 0.5, rate: int = 44100) -> None:
    rng, time = np.random.default_rng(seed), np.arange(round(rate * seconds)) / rate
    tones = sum(np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(200, 1500, 3))
    bursts = np.interp(time, np.linspace(0, seconds, 12), rng.uniform(0, 1, 12))
    soundfile.write(path, level * tones / 3 * bursts, rate)


@pytest.fixture
def stamps(tmp_path):
    root = tmp_path / "stamps"
    for i, name in enumerate(["animals/dog", "animals/deep/cat", "hobbies/drum", "household/saw", "vehicles/bus"]):
        photograph(root / f"{name}.png", i)
        record(root / f"{name}.ogg", i)
    photograph(root / "plants/rose.png", 10)
    photograph(root / "food/pear.png", 11)
    return root


def test_what_is_no_photograph_or_no_sound_is_left_out(example, stamps):
    for i, (name, options) in enumerate(
        {
            "drawing": {"colours": 8},
            "small": {"side": 60},
            "flat": {"mode": "RGB"},
            "cartoon/cow": {},
            "mute": {},
            "quiet": {},
        }.items()
    ):
        photograph(stamps / f"animals/{name}.png", 20 + i, **options)
        if name != "mute":
            record(stamps / f"animals/{name}.ogg", 20 + i, level=0.01 if name == "quiet" else 0.5)
    photograph(stamps / "symbols/a.png", 30)
    record(stamps / "symbols/a.ogg", 30)
    photograph(stamps / "plants/talking.png", 31)
    record(stamps / "plants/talking.ogg", 31)
    photograph(stamps / "vehicles/coach.png", 32)
    record(stamps / "vehicles/coach.ogg", 4, level=0.2)  # the bus's recording at another level
    categories, silent = example.find(stamps)
    assert {one.name: [path.stem for path in one.photographs] for one in categories} == {
        "cat": ["cat"],
        "dog": ["dog"],
        "drum": ["drum"],
        "saw": ["saw"],
        "bus": ["bus", "coach"],
    }
    assert [path.stem for path in silent] == ["rose", "pear"]


def test_another_tempo_has_the_same_pitch(example):
    time = np.arange(32000) / 16000
    tone = np.sin(2 * np.pi * 500 * time).astype(np.float32)
    for speed in (0.8, 1.25):
        got = example.stretch(tone, speed)
        assert len(got) == pytest.approx(32000 / speed, rel=0.03)
        middle = got[len(got) // 4 : 3 * len(got) // 4]
        peak = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * 16000 / len(middle)
        assert peak == pytest.approx(500, abs=3)


@pytest.mark.slow
def test_the_whole_way(example, stamps, tmp_path, capsys):
    out = tmp_path / "out"
    example.main(
        ["--out", str(out), "--stamps", str(stamps), "--short", "--scenes", "40", "--test", "6", "--epochs", "1"]
    )
    printed = capsys.readouterr().out
    assert "5 categories of 5 photographs, 2 silent photographs" in printed
    assert f"{out / 'train'}: 40 samples complete, 0 files missing, 0 broken" in printed
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert {".jpg", ".png", ".wav", ".ogg", ".flac"} <= suffixes
    infos = [soundfile.info(path) for path in (out / "train" / "audio").iterdir()]
    assert {info.channels for info in infos} == {1, 2} and len({info.samplerate for info in infos}) == 4
    assert len({Image.open(path).size for path in (out / "train" / "frames").iterdir()}) == 4
    metrics = json.loads((out / "results" / "metrics.json").read_text())
    assert metrics["method"] == "ssl_align" and 0 <= metrics["iiou_adaptive"] <= 1
    assert (out / "results" / "report.html").stat().st_size > 10000
    test = FolderSet(out / "test", front_end="scenes", size=96)
    assert len(test) > len(set(test.image_ids)) == 6 and test.notes == []
    for i in range(len(test)):  # each box is its mask's
        box, mask = test.ground_truth(i) > 0, test.mask(i)
        assert mask.any() and test.categories[i] in test.visible[i] and len(test.visible[i]) >= 2
        for axis in (0, 1):
            a, b = np.flatnonzero(mask.any(axis)), np.flatnonzero(box.any(axis))
            assert abs(a[0] - b[0]) <= 1 and abs(a[-1] - b[-1]) <= 1


def test_composition_is_decided_by_the_seed(example, stamps, tmp_path):
    categories, silent = example.find(stamps)
    folders = [tmp_path / name / "val" for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1)):
        example.write_split(folder, 2, seed, categories, silent)
    frames = [[path.read_bytes() for path in sorted((folder / "frames").iterdir())] for folder in folders]
    assert frames[0] == frames[1] != frames[2]
    waves = [[soundfile.read(path)[0] for path in sorted((folder / "audio").iterdir())] for folder in folders[:2]]
    assert all(np.array_equal(a, b) for a, b in zip(*waves))


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda root: None,
            "real_stamps: .*stamps: no such folder; install the Debian package tuxpaint-stamps-default",
        ),
        (lambda root: root.mkdir(), "expected photographs with sounds, found 0; install the Debian package tuxpaint"),
    ],
)
def test_without_the_package_the_error_names_it(example, tmp_path, make, message):
    make(tmp_path / "stamps")
    with pytest.raises(SystemExit, match=message):
        example.main(["--out", str(tmp_path / "out"), "--stamps", str(tmp_path / "stamps")])
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(example, stamps, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(SystemExit, match=re.escape(f"--out {tmp_path / 'out'}: expected a new or empty folder")):
        example.main(["--out", str(tmp_path / "out"), "--stamps", str(stamps)])
