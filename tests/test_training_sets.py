"""Training sets in small folders of every layout: lists, what is left out, and files of every kind and defect."""

import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.data.datasets import SampleSet
from ssl_fast.data.io.audio import MediaError, load_audio
from ssl_fast.data.io.images import load_image
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.training_sets import LAYOUTS, TrainingSet, check
from test_test_sets import FRONT_END, put

VGGSOUND = ["abcdefghij-_000030", "-_cdefghijk_000001", "zzzzzzzzzzz_000120"]
FLICKR = ["10000130166", "7", "3908875350"]
CLIPS = ["abcdefghij-_30000_40000", "-_cdefghijk_1000_11000", "zzzzzzzzzzz_120000_130000"]
FILES = {  # written out by hand from the description of each layout
    ("vggsound", "slavc"): [(f"frames/{k}.jpg", f"audio/{k}.wav") for k in VGGSOUND],
    ("vggsound", "fnac"): [(f"frames/{k}.png", f"audio/{k}.wav") for k in VGGSOUND],
    ("vggsound", "ssl-align"): [(f"frames/{k}/image_050.jpg", f"audio/{k}.wav") for k in CLIPS],
    ("vggsound", "ssl-tie"): [(f"total_video_frames/{k}/125.jpg", f"total_video_3s_audio/{k}.wav") for k in VGGSOUND],
    ("vggsound", "mp4"): [(f"videos/{k}.mp4", f"videos/{k}.mp4") for k in VGGSOUND],
    ("flickr", "slavc"): [(f"frames/{k}.jpg", f"audio/{k}.wav") for k in FLICKR],
    ("flickr", "ssl-align"): [(f"frames/{k}.mp4/some frame.jpg", f"audio/{k}.wav") for k in FLICKR],
    ("flickr", "ssl-tie"): [(f"frames/{k}/00000003.jpg", f"mp3/{k}.mp3") for k in FLICKR],
    ("flickr", "mp4"): [(f"videos/{k}.mp4", f"videos/{k}.mp4") for k in FLICKR],
}
IDS = {"vggsound": VGGSOUND, "flickr": FLICKR}


def write_list(path, ids):
    path.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
    return path


def fill(root, name="vggsound", layout="slavc"):
    for files in FILES[name, layout]:
        for file in files:
            if file.endswith(".mp3"):
                put(root, file.replace(".mp3", ".wav")).rename(root / file)  # its content tells what it is
            elif not file.endswith(".mp4"):
                put(root, file)
    return root


def training_set(root, split, name="vggsound", **options):
    return TrainingSet(root, name, split, **{"front_end": FRONT_END, "size": 16} | options)


def test_every_layout_is_tested():
    assert {(name, layout) for name, layouts in LAYOUTS.items() for layout in layouts} == set(FILES)


@pytest.mark.parametrize("name, layout", [case for case in FILES if case[1] != "mp4"])
def test_layouts(tmp_path, name, layout):
    root = fill(tmp_path / "größe 音", name, layout)
    split = write_list(root / "two of three.txt", IDS[name][::-2])
    found = training_set(root, split, name, layout=layout)
    assert isinstance(found, SampleSet) and found.ids == found.image_ids == IDS[name][::-2]
    assert not found.has_ground_truth and found.notes == [] and found.categories == [None] * 2
    for i, (image, sound) in enumerate(FILES[name, layout][::-2]):
        sample, wave = found[i], load_audio(root / sound, sample_rate=16000, seconds=0.25)
        assert torch.equal(sample["image"], load_image(root / image, 16)) and sample["index"] == i
        assert torch.equal(sample["spectrogram"], FRONT_END.spectrogram(torch.from_numpy(wave))[None])
        np.testing.assert_array_equal(found.frame(i), np.asarray(Image.open(root / image)))
    assert check(root, name, "two of three.txt", layout=layout).ids == found.ids


@pytest.mark.parametrize("name", IDS)
def test_films(tmp_path, name):
    """Grey levels tell the frame, a tone that swells the second."""
    pytest.importorskip("av", reason="mp4 files are read and written by PyAV")
    from films import film
    from test_video import greys, tone

    (tmp_path / "videos").mkdir()
    for k, files in zip((4, 5, 6), FILES[name, "mp4"]):
        film(tmp_path / files[0], greys(k), fps=1, sound=tone(k, 16000))
    found = training_set(tmp_path, write_list(tmp_path / "all.txt", IDS[name]), name, layout="mp4")
    assert found.ids == IDS[name]
    for i, k in enumerate((4, 5, 6)):
        np.testing.assert_allclose(found.frame(i), greys(k)[k // 2], atol=4)
        np.testing.assert_allclose(found[i]["image"], greys(k)[k // 2], atol=4)
        expected = tone(k, 16000)[8000 * k - 2000 : 8000 * k + 2000, 0]
        np.testing.assert_allclose(found.waveform(i), expected, atol=0.01)
    assert check(tmp_path, name, "all", layout="mp4").ok
    path = tmp_path / FILES[name, "mp4"][1][0]
    path.write_bytes(path.read_bytes()[:500])
    report = check(tmp_path, name, "all", layout="mp4")
    assert report.ids == [IDS[name][0], IDS[name][2]] and len(report.broken) == 1
    assert report.broken[0].startswith(f"{path}: cannot be read as video")


def test_films_need_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=re.escape('PyAV, which is not installed: pip install "ssl_fast[video]"')):
        training_set(tmp_path, "all", layout="mp4")


# ---------------------------------------------------------------------------------------------------------------------
# Lists


def test_what_is_left_out_is_counted(tmp_path):
    fill(tmp_path)
    write_list(tmp_path / "all.csv", [f"{k},202" for k in VGGSOUND])
    test = write_list(tmp_path / "test.txt", [VGGSOUND[1], "elsewhere12_000009"])
    found = training_set(tmp_path, "all", exclude="test")
    assert found.ids == [VGGSOUND[0], VGGSOUND[2]]
    assert found.notes == [f"1 of the 3 ids in {tmp_path}/all.csv left out, since they are in {test}"]
    report = check(tmp_path, "vggsound", "all", exclude=test)
    assert report.ok and report.ids == found.ids and report.notes == found.notes
    write_list(test, ["elsewhere12_000009"])
    assert training_set(tmp_path, "all", exclude="test").notes[0].startswith("0 of the 3 ids in ")


@pytest.mark.parametrize(
    "ids, options, message",
    [
        (
            [*VGGSOUND, *VGGSOUND[1:]],
            {},
            "{list}: 2 of 3 ids listed more than once: '-_cdefghijk_000001', 'zzzzzzzzzzz_000120'",
        ),
        ([], {}, "{list}: expected a list of ids, got none"),
        (
            [VGGSOUND[0], CLIPS[0], "7"],
            {},
            "{list}: expected ids of vggsound, YTID_SECONDS of eleven and six characters, got 2 of 3 in another form: "
            "'abcdefghij-_30000_40000', '7'",
        ),
        (
            [f"{k},202" for k in VGGSOUND],
            {},
            "{list}: expected ids of vggsound, .* got 3 of 3 in another form: 'abcdefghij-_",
        ),
        (["7", "x"], {"name": "flickr"}, "{list}: expected ids of flickr, numbers, got 1 of 2 in another form: 'x'"),
        (
            [VGGSOUND[0], "gone_567890_000001", "gone_567891_000001"],
            {},
            "{root}: 4 problems: {root}/frames/gone_567890_000001.jpg: no such file, id 'gone_567890_000001' in {list}"
            "; {root}/audio/gone_567890_000001.wav: no such file, id ",
        ),
        (VGGSOUND, {"exclude": "list"}, "{list}: expected ids that are not in {list}, all 3 are"),
        (VGGSOUND, {"exclude": "clips"}, "{root}/clips.txt: expected ids of vggsound, .* got 3 of 3 in another form"),
        (VGGSOUND, {"exclude": "none"}, "{root}/none.txt or {root}/none.csv: no such list of ids"),
        (VGGSOUND, {"name": "vgg-ss"}, "set: expected one of vggsound, flickr, got 'vgg-ss'"),
        (
            VGGSOUND,
            {"layout": "is3"},
            "layout: expected one of slavc, fnac, ssl-align, ssl-tie, mp4 for vggsound, got 'is3'",
        ),
        (VGGSOUND, {"resampler": "box"}, "resampler: expected one of pillow, torch, got 'box'"),
    ],
)
def test_bad_lists_and_names(tmp_path, ids, options, message):
    fill(tmp_path)
    write_list(tmp_path / "clips.txt", CLIPS)
    message = message.format(list=re.escape(str(write_list(tmp_path / "list.txt", ids))), root=re.escape(str(tmp_path)))
    with pytest.raises(ValueError, match=f"^{message}"):
        training_set(tmp_path, "list", **options)


def test_no_folder(tmp_path):
    split = write_list(tmp_path / "list.txt", VGGSOUND)
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing there"):
        training_set(tmp_path / "nowhere", split)


# ---------------------------------------------------------------------------------------------------------------------
# Files: what is taken, and how; what is refused, by name

IMAGE, SOUND = FILES["vggsound", "slavc"][1]
RNG = np.random.default_rng(0)
WAVE = RNG.uniform(-0.5, 0.5, (8000, 8))


@pytest.mark.parametrize(
    "channels, rate, subtype",
    [
        (1, 16000, "PCM_16"),
        (2, 16000, "PCM_16"),
        (8, 16000, "PCM_16"),
        (1, 16000, "PCM_24"),
        (2, 16000, "FLOAT"),
        (1, 16000, "PCM_U8"),
        (1, 44100, "PCM_16"),
        (2, 8000, "PCM_24"),
    ],
)
def test_sounds_of_every_kind(tmp_path, channels, rate, subtype):
    """What is heard is the segment of the whole clip, bit for bit, and the mean of the channels as it was written."""
    fill(tmp_path)
    soundfile.write(tmp_path / SOUND, WAVE[:, :channels], rate, subtype)
    found = training_set(tmp_path, write_list(tmp_path / "list.txt", VGGSOUND))
    clip = load_audio(tmp_path / SOUND, sample_rate=16000)
    start = (len(clip) - 4000) // 2
    np.testing.assert_array_equal(found.clip(1), clip)
    heard = clip[start : start + 4000] if start >= 0 else np.tile(clip, 2)[:4000]
    np.testing.assert_array_equal(found.waveform(1), heard)
    if rate == 16000:
        precision = {"PCM_U8": 2**-7, "PCM_16": 2**-15, "PCM_24": 2**-22, "FLOAT": 2**-22}[subtype]
        np.testing.assert_allclose(clip, WAVE[:, :channels].mean(1), atol=precision)
    assert check(tmp_path, "vggsound", "list").ok


@pytest.mark.parametrize(
    "kind, message",
    [
        ("cut", "truncated, its header tells of 16044 bytes, the file has 9626"),
        ("head", "cannot be read as audio"),
        ("text", "cannot be read as audio"),
        ("no samples", "expected audio, got a file of no samples"),
        ("nan", "expected finite samples, got nan at 0.000 s"),
        ("integers", r"expected samples within full scale, \[-1, 1\], got a peak of 9"),
        ("rate", "expected a rate of 1000 to 768000 Hz, got 378420864"),
    ],
)
def test_broken_sounds(tmp_path, kind, message):
    """Also where the broken part is not heard."""
    path = fill(tmp_path) / SOUND
    if kind in ("nan", "integers"):
        wave = WAVE[:, 0].copy()
        wave[0] = np.nan if kind == "nan" else 9
        soundfile.write(path, wave, 16000, "FLOAT")
    elif kind == "no samples":
        soundfile.write(path, np.zeros((0, 1)), 16000)
    elif kind == "rate":
        soundfile.write(path, WAVE[:, 0], 378420864)
    else:
        data = path.read_bytes()
        path.write_bytes({"cut": data[: len(data) * 6 // 10], "head": data[:30], "text": b"no sound"}[kind])
    refused(tmp_path, path, message)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("cut", r"cannot be read as an image \(.*truncated"),
        ("text", r"cannot be read as an image \(Format not recognised\)"),
        ("floats", "expected integer pixels, got an image of floats"),
    ],
)
def test_broken_images(tmp_path, kind, message):
    path = fill(tmp_path) / IMAGE
    if kind == "floats":
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path, format="TIFF")
    else:
        path.write_bytes(path.read_bytes()[:700] if kind == "cut" else b"no picture")
    refused(tmp_path, path, message)


def refused(root, path, message):
    message = f"^{re.escape(str(path))}: {message}"
    split = write_list(root / "list.txt", VGGSOUND)
    for options in ({}, {"cache": root / "cache"}, {"resampler": "torch"}):
        found = training_set(root, split, **options)
        assert found[0]["index"] == 0
        with pytest.raises(MediaError, match=message):
            found[1]
    report = check(root, "vggsound", split)
    assert report.ids == [VGGSOUND[0], VGGSOUND[2]] and len(report.broken) == 1
    assert re.search(message, report.broken[0])


@pytest.mark.parametrize("kind", ["CMYK", "16 bit"])
def test_images_of_every_kind(tmp_path, kind):
    path = fill(tmp_path) / IMAGE
    if kind == "CMYK":
        inks = RNG.integers(0, 256, (3, 5, 4), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(inks, "CMYK").save(path, quality=100)
        expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    else:  # its content tells what it is, not its name
        grey = RNG.integers(0, 65536, (24, 40)).astype(np.uint16)
        Image.fromarray(grey).save(path, format="PNG")
        expected = np.floor(grey / 257 + 0.5)[..., None].repeat(3, 2)
    found = training_set(tmp_path, write_list(tmp_path / "list.txt", VGGSOUND))
    np.testing.assert_allclose(found.frame(1), expected, atol=4 if kind == "CMYK" else 0)


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def test_train_and_check_by_list(tmp_path, capsys):
    root = fill(tmp_path / "data")
    split = write_list(tmp_path / "all.txt", VGGSOUND)
    test = write_list(tmp_path / "test.txt", VGGSOUND[1:2])
    which = ["--set", "vggsound", "--split", str(split), "--exclude", str(test)]
    note = f"1 of the 3 ids in {split} left out, since they are in {test}"
    assert cli.main(["data", "check", str(root), *which, "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "2 samples complete, 0 missing, 0 files broken" in out and f"note: {note}" in out
    argv = ["train", "--data", str(root), "--out", str(tmp_path / "run")]
    small = ["--batch-size", "2", "--epochs", "1", "--quiet"]
    assert cli.main([*argv, *small, *which, "--cache", str(tmp_path / "cache")]) == 0
    assert f"{root}: {note}" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4  # two frames, two sounds

    for arguments, message in (
        (["--set", "vggsound"], "--set vggsound: expected its list of ids, --split"),
        (["--exclude", "test"], "--layout, --exclude: expected with --set"),
    ):
        assert cli.main([*argv[:4], str(tmp_path / "other"), *arguments]) == 2
        assert message in capsys.readouterr().err
    for arguments, message in (
        (["--set", "vggsound"], "--set vggsound: expected --split, and no --annotations and --negatives, to train on"),
        (["--set", "flickr", "--train"], "--set flickr: expected --split"),
        (["--set", "flickr", "--exclude", "x"], "--exclude: expected with a training set, got the test set flickr"),
        (["--train"], "--layout, --negatives, --exclude, --train: expected with --set"),
    ):
        assert cli.main(["data", "check", str(root), *arguments]) == 2
        assert message in capsys.readouterr().err
    fill(root, "flickr", "ssl-tie")
    split = write_list(tmp_path / "flickr.txt", FLICKR)
    assert (
        cli.main(
            [
                "data",
                "check",
                str(root),
                "--set",
                "flickr",
                "--train",
                "--split",
                str(split),
                "--layout",
                "ssl-tie",
                "--quiet",
            ]
        )
        == 0
    )
