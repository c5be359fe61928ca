"""Training sets in small folders of every layout: lists, what is left out, and files of every kind and defect."""

import re

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from published_folders import CLIPS, CLIPS_MS, FOLDERS, NUMBERS, TRAINING, make, put
from ssl_fast.cli import main as cli
from ssl_fast.data.datasets import SampleSet
from ssl_fast.data.io.audio import MediaError, load_audio
from ssl_fast.data.io.images import load_image
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.training_sets import LAYOUTS, TrainingSet, check
from test_test_sets import FRONT_END

VGGSOUND, FLICKR = CLIPS[:3], NUMBERS[:3]
FILES = [(f"frames/{k}.jpg", f"audio/{k}.wav") for k in VGGSOUND]
IDS = {"vggsound": VGGSOUND, "flickr": FLICKR}


def write_list(path, ids):
    path.write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")
    return path


def fill(root):
    for files in FILES:
        for file in files:
            put(root, file)
    return root


def training_set(root, split, name="vggsound", **options):
    return TrainingSet(root, name, split, **{"front_end": FRONT_END, "size": 16} | options)


def test_every_layout_is_tested():
    tested = {(FOLDERS[name].of, FOLDERS[name].layout) for name in TRAINING}
    known = {(name, program) for name, programs in LAYOUTS.items() for program in programs}
    assert tested == known - {("vggsound", "mp4"), ("flickr", "mp4")}


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("named", [False, True])
def test_layouts(tmp_path, name, named):
    """With and without the name of the layout; a list in the form of the program, in its order."""
    folder = FOLDERS[name]
    root, layout = tmp_path / "größe 音", folder.layout if named else None
    root.mkdir()
    make(root, folder)
    split = write_list(root / "two of six.txt", folder.lines[4:2:-1])
    found = training_set(root, split, folder.of, layout=layout)
    assert isinstance(found, SampleSet) and found.ids == found.image_ids == folder.ids[4:2:-1]
    assert not found.has_ground_truth and found.notes == [] and found.categories == [None] * 2
    for i, (image, sound) in enumerate(folder.files[4:2:-1]):
        sample, wave = found[i], load_audio(root / sound, sample_rate=16000, seconds=0.25)
        assert torch.equal(sample["image"], load_image(root / image, 16)) and sample["index"] == i
        assert torch.equal(sample["spectrogram"], FRONT_END.spectrogram(torch.from_numpy(wave))[None])
        np.testing.assert_array_equal(found.frame(i), np.asarray(Image.open(root / image)))
    assert check(root, folder.of, "two of six.txt", layout=layout).ids == found.ids
    assert training_set(root, "list", folder.of, layout=layout).ids == folder.ids


@pytest.mark.parametrize("name", IDS)
def test_films(tmp_path, name):
    """Grey levels tell the frame, a tone that swells the second."""
    pytest.importorskip("av", reason="mp4 files are read and written by PyAV")
    from films import film
    from test_video import greys, tone

    (tmp_path / "videos").mkdir()
    for k, one in zip((4, 5, 6), IDS[name]):
        film(tmp_path / f"videos/{one}.mp4", greys(k), fps=1, sound=tone(k, 16000))
    found = training_set(tmp_path, write_list(tmp_path / "all.txt", IDS[name]), name)
    assert found.ids == IDS[name]
    for i, k in enumerate((4, 5, 6)):
        np.testing.assert_allclose(found.frame(i), greys(k)[k // 2], atol=4)
        np.testing.assert_allclose(found[i]["image"], greys(k)[k // 2], atol=4)
        expected = tone(k, 16000)[8000 * k - 2000 : 8000 * k + 2000, 0]
        np.testing.assert_allclose(found.waveform(i), expected, atol=0.01)
    assert check(tmp_path, name, "all", layout="mp4").ok
    path = tmp_path / f"videos/{IDS[name][1]}.mp4"
    path.write_bytes(path.read_bytes()[:500])
    report = check(tmp_path, name, "all", layout="mp4")
    assert report.ids == [IDS[name][0], IDS[name][2]] and len(report.broken) == 1
    assert report.broken[0].startswith(f"{path}: truncated")


def test_films_need_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    write_list(tmp_path / "all.txt", VGGSOUND[:1])
    (tmp_path / "videos").mkdir()
    (tmp_path / f"videos/{VGGSOUND[0]}.mp4").write_bytes(b"a film")
    with pytest.raises(ValueError, match=r'PyAV, which cannot be imported .*: pip install "ssl_fast\[video\]"'):
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
            "{list}: 2 of 3 ids listed more than once: 'abcdefghij1_000031', 'abcdefghij2_000032'",
        ),
        ([], {}, "{list}: expected a list of ids, got none"),
        (
            [VGGSOUND[0], CLIPS_MS[1], "7"],
            {},
            "{list}: line 2: expected an id as YTID_SECONDS .*, the form of line 1, got 'abcdefghij1_31000_41000'",
        ),
        (
            [f"{k},202" for k in VGGSOUND],
            {},
            "{list}: line 1: expected an id of vggsound, as YTID_SECONDS .*, got 'abcdefghij0_000030,202'",
        ),
        (
            ["", "7", "", "x"],
            {"name": "flickr"},
            "{list}: line 4: expected an id as NUMBER, the form of line 2, got 'x'",
        ),
        (["abcdefghij0_30000_41000"], {}, "{list}: line 1: expected an id of vggsound, as YTID_SECONDS .*_41000'"),
        (["abcdefghij0_30500_40500"], {}, "{list}: line 1: expected an id of vggsound, as YTID_SECONDS .*_40500'"),
        (["videos/0/0/1/10.mp4"], {"name": "flickr"}, "{list}: line 1: expected an id of flickr, as NUMBER, .*10.mp4'"),
        (["7.jpg", "7.JPG"], {"name": "flickr"}, "{list}: line 2: expected an id as NUMBER.jpg, the form of line 1"),
        (["7.jpg", "7.wav"], {"name": "flickr"}, "{list}: 1 of 1 ids listed more than once: '7'"),
        (
            [VGGSOUND[0], "gone_567890_000001", "gone_567891_000001"],
            {},
            "{root}: 4 problems: {root}/frames/gone_567890_000001.jpg: no such file, id 'gone_567890_000001' in {list}"
            "; {root}/audio/gone_567890_000001.wav: no such file, id ",
        ),
        (VGGSOUND, {"exclude": "list"}, "{list}: expected ids that are not in {list}, all 3 are"),
        (VGGSOUND, {"exclude": "clips"}, "{list}: expected ids that are not in {root}/clips.txt, all 3 are"),
        (VGGSOUND, {"exclude": "numbers"}, "{root}/numbers.txt: line 1: expected an id of vggsound, as YTID_SECONDS"),
        (VGGSOUND, {"exclude": "none"}, "{root}/none.txt or {root}/none.csv or {root}/none.tsv: no such list of ids"),
        (VGGSOUND, {"name": "vgg-ss"}, "set: expected one of vggsound, flickr, got 'vgg-ss'"),
        (
            VGGSOUND,
            {"layout": "is3"},
            "layout: expected one of slavc, fnac, ssl-align, ssl-tie, mp4 for vggsound, got 'is3'",
        ),
        (
            VGGSOUND,
            {"resampler": "box"},
            "resampler: expected one of pillow, torch, torch_aliased for squash, got 'box'",
        ),
    ],
)
def test_bad_lists_and_names(tmp_path, ids, options, message):
    fill(tmp_path)
    write_list(tmp_path / "clips.txt", CLIPS_MS)
    write_list(tmp_path / "numbers.txt", FLICKR)
    message = message.format(list=re.escape(str(write_list(tmp_path / "list.txt", ids))), root=re.escape(str(tmp_path)))
    with pytest.raises(ValueError, match=f"^{message}"):
        training_set(tmp_path, "list", **options)


def test_no_folder(tmp_path):
    split = write_list(tmp_path / "list.txt", VGGSOUND)
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing there"):
        training_set(tmp_path / "nowhere", split)


# ---------------------------------------------------------------------------------------------------------------------
# Files: what is taken, and how; what is refused, by name

IMAGE, SOUND = FILES[1]
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
    assert "2 samples complete, 0 files missing, 0 broken" in out and f"note: {note}" in out
    argv = ["train", "--data", str(root), "--out", str(tmp_path / "run")]
    small = ["--batch-size", "2", "--epochs", "1", "--quiet"]
    assert cli.main([*argv, *small, *which, "--cache", str(tmp_path / "cache")]) == 0
    assert f"{root}: {note}" in capsys.readouterr().out
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 4  # two frames, two sounds

    for arguments, message in (
        (["--set", "vggsound"], "--set vggsound: expected its list of ids, --split"),
        (["--exclude", "test"], "--exclude: expected with --set"),
    ):
        assert cli.main([*argv[:4], str(tmp_path / "other"), *arguments]) == 2
        assert message in capsys.readouterr().err
    for arguments, message in (
        (["--set", "vggsound"], "--set vggsound: expected its list of ids, --split, to train on"),
        (["--set", "flickr", "--train"], "--set flickr: expected its list of ids, --split"),
        (
            ["--set", "flickr", "--train", "--annotations", "x"],
            "--annotations: expected with a test set, got the training",
        ),
        (["--set", "flickr", "--exclude", "x"], "--exclude: expected with a training set, got the test set flickr"),
        (["--train", "--layout", "x"], "--layout, --train: expected with --set"),
    ):
        assert cli.main(["data", "check", str(root), *arguments]) == 2
        assert message in capsys.readouterr().err
    flickr = make(tmp_path, FOLDERS["ssl-tie: flickr"])
    assert cli.main(["data", "check", str(flickr), "--set", "flickr", "--train", "--split", "list", "--quiet"]) == 0
