"""Folders of media files: layouts, annotations, lists, dirt, and every way to be broken."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from films import film
from ssl_fast.data import datasets
from ssl_fast.data.annotations import DIRT
from ssl_fast.data.datasets import Files, FolderSet, Item, SampleSet, check, check_files
from ssl_fast.data.io.audio import MediaError, load_audio
from ssl_fast.data.io.front_ends import FRONT_ENDS, FrontEnd
from ssl_fast.data.io.images import load_image
from ssl_fast.data.sample_lists import DataError
from ssl_fast.reproducibility import samples_record

FRONT_END = FrontEnd(name="tiny", seconds=0.25, hop=256)


def put(root, name, *, image=".png", sound=".wav", rate=16000, channels=1):
    """One frame and one sound."""
    rng = np.random.default_rng(zlib.crc32(os.fsencode(name)))
    for folder in ("frames", "audio"):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    if image:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(f"{root}/frames/{name}{image}")
    if sound:
        wave = rng.uniform(-0.5, 0.5, (rate // 2, channels))
        options = {"format": "MP3", "subtype": "MPEG_LAYER_III"} if sound == ".mp3" else {}
        soundfile.write(os.fsencode(f"{root}/audio/{name}{sound}"), wave, rate, **options)


def annotate(root, entries, name="annotations.json"):
    (root / name).write_text(json.dumps(entries), encoding="utf-8")


def folder_set(root, **options):
    return FolderSet(root, **{"front_end": FRONT_END, "size": 16} | options)


# ---------------------------------------------------------------------------------------------------------------------
# What a set offers


def test_every_kind_of_file_and_name(tmp_path):
    put(tmp_path, "b clip 7", image=".jpg", sound=".ogg", rate=44100, channels=2)
    put(tmp_path, "größe 音", image=".jpeg", sound=".flac", rate=8000)
    put(tmp_path, "a.with.dots", image=".PNG", sound=".mp3", rate=22050)
    put(tmp_path, "deep/er/c", image=".png", sound=".WAV", channels=8)
    (tmp_path / "frames" / "notes.txt").write_text("no frame")
    (tmp_path / "audio" / "._b clip 7.wav").write_text("what some file systems leave behind")
    found = folder_set(tmp_path)
    assert isinstance(found, SampleSet) and isinstance(found, torch.utils.data.Dataset) and len(found) == 4
    assert found.ids == found.image_ids == ["a.with.dots", "b clip 7", "deep/er/c", "größe 音"]
    assert found.categories == [None] * 4 and found.visible == [frozenset()] * 4 and not found.has_ground_truth
    files = ["a.with.dots.PNG", "b clip 7.jpg", "deep/er/c.png", "größe 音.jpeg"]
    sounds = ["a.with.dots.mp3", "b clip 7.ogg", "deep/er/c.WAV", "größe 音.flac"]
    for i, (file, sound) in enumerate(zip(files, sounds)):
        sample = found[i]
        wave = load_audio(tmp_path / "audio" / sound, sample_rate=16000, seconds=0.25)
        assert sample["index"] == i and wave.shape == (4000,)
        assert torch.equal(sample["image"], load_image(tmp_path / "frames" / file, 16))
        np.testing.assert_array_equal(found.waveform(i), wave)
        assert torch.equal(sample["spectrogram"], FRONT_END.spectrogram(torch.from_numpy(wave))[None])
        assert found.mask(i) is None
        with pytest.raises(ValueError, match=f"sample '{re.escape(found.ids[i])}': expected boxes or a mask"):
            found.ground_truth(i)
    assert found[-1]["index"] == 3
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"index: expected -4 to 3, got {index}"):
            found[index]


def test_content_is_of_the_files(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        for i in range(20):
            put(folder, f"id{i:02}")
    put(folders[1], "other")
    for kind, suffix in (("frames", "png"), ("audio", "wav")):
        (folders[1] / f"{kind}/other.{suffix}").rename(folders[1] / f"{kind}/id10.{suffix}")
    one, other, same = (folder_set(folder) for folder in folders)
    assert one.ids == other.ids and one.content() == same.content() != other.content()


def test_front_ends_by_name_and_bad_sizes(tmp_path):
    put(tmp_path, "a")
    assert folder_set(tmp_path, front_end="ssl_align").front_end is FRONT_ENDS["ssl_align"]
    with pytest.raises(ValueError, match="front_end: expected a FrontEnd or one of"):
        folder_set(tmp_path, front_end="none")
    annotate(tmp_path, [{"file": "a", "bbox": [[0, 0, 1, 1]]}])
    for size in (0, "224", 8193, 10**400):
        with pytest.raises(ValueError, match=f"size: expected an integer from 1 to 8192, got {size!r}"):
            folder_set(tmp_path, size=size)


@pytest.mark.parametrize("preloaded", [False, True])
def test_forked_workers_deliver_the_same(tmp_path, preloaded):
    for i in range(7):
        put(tmp_path, f"clip {i}", image=(".png", ".jpg")[i % 2], sound=(".wav", ".ogg")[i % 2], rate=22050, channels=2)
    found = folder_set(tmp_path)
    alone = [found[i] for i in range(7)]
    if preloaded:
        found.preload()
    with warnings.catch_warnings():  # of newer Pythons, about forking a process with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        batches = list(DataLoader(found, batch_size=3, num_workers=2, multiprocessing_context="fork"))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(7))
    for key in ("image", "spectrogram"):
        assert torch.equal(torch.cat([batch[key] for batch in batches]), torch.stack([one[key] for one in alone]))


def test_a_broken_file_in_a_worker_is_named(tmp_path):
    put(tmp_path, "good")
    put(tmp_path, "worse")
    (tmp_path / "audio" / "worse.wav").write_text("no sound")
    with pytest.raises(MediaError, match="worse.wav: cannot be read as audio"):
        list(DataLoader(folder_set(tmp_path), num_workers=1, multiprocessing_context="fork"))


def test_preload_reads_every_file_once(tmp_path, monkeypatch):
    put(tmp_path, "scene", sound=None)
    for sound in ("bell", "dog"):
        put(tmp_path, sound, image=None)
    annotate(tmp_path, [{"file": f"{x} {i}", "image": "scene", "audio": x} for i in range(2) for x in ("bell", "dog")])
    found, read = folder_set(tmp_path), []
    expected = [found[i] for i in range(4)]
    load_frame, load_sound = datasets.decode_image, FrontEnd.load
    monkeypatch.setattr(datasets, "decode_image", lambda path: read.append(path.name) or load_frame(path))
    monkeypatch.setattr(FrontEnd, "load", lambda self, path: read.append(path.name) or load_sound(self, path))
    assert found.preload() is found
    assert found.preloaded_bytes == 16 * 16 * 3 + 2 * 4 * FRONT_END.shape[0] * FRONT_END.shape[1]
    again = [found[i] for i in range(4)]
    assert read == ["scene.png", "bell.wav", "dog.wav"]
    for a, b in zip(again, expected):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["spectrogram"], b["spectrogram"])


# ---------------------------------------------------------------------------------------------------------------------
# Annotations


def test_boxes_are_filled_by_the_published_rule(tmp_path):
    put(tmp_path, "a")
    annotate(tmp_path, [{"file": "a", "class": "bell", "bbox": [[0.1, 0.2, 0.55, 0.9], [0.5, 0, 1, 0.3]]}])
    found = folder_set(tmp_path, size=32)
    expected = np.zeros((32, 32), np.float32)
    for y in range(32):
        for x in range(32):
            expected[y, x] = (3 <= x < 17 and 6 <= y < 28) or (16 <= x < 32 and 0 <= y < 9)
    truth = found.ground_truth(0)
    assert truth.dtype == np.float32 and found.has_ground_truth and found.notes == []
    np.testing.assert_array_equal(truth, expected)
    assert found.categories == ["bell"] and found.visible == [frozenset({"bell"})]


def test_dirt_in_boxes_is_clipped_dropped_and_counted(tmp_path):
    """As found in VGG-SS: coordinates of -2.9e16, boxes without width."""
    for name in ("a", "b", "c"):
        put(tmp_path, name)
    annotate(
        tmp_path,
        [
            {"file": "a", "bbox": [[-2.88e16, 0.5, 0.5, 1.2]]},
            {"file": "b", "bbox": [[0.4, 0.66, -2.88e16, 0.98], [0.3, 1.0, 0.7, 1.0], [0, 0, 0.5, 0.5]]},
            {"file": "c", "bbox": [[0.5, 0.5, 0.4, 0.9]]},
        ],
    )
    found = folder_set(tmp_path)
    expected = np.zeros((3, 16, 16), np.float32)
    expected[0, 8:, :8] = 1
    expected[1, :8, :8] = 1
    np.testing.assert_array_equal([found.ground_truth(i) for i in range(3)], expected)
    assert found.notes == [
        f"3 x outside ({DIRT['outside']}): 'a', 'b'",
        f"3 x degenerate ({DIRT['degenerate']}): 'b', 'c'",
        f"1 x empty ({DIRT['empty']}): 'c'",
    ]
    assert check(tmp_path).notes == found.notes and check(tmp_path).ok


def test_boxes_that_vanish_at_the_size_of_the_set_are_counted(tmp_path):
    """A box of 1/32 of the side has a pixel of 32 x 32 or 64 x 64, none of 16 x 16."""
    for name in ("a", "b"):
        put(tmp_path, name)
    box = [16 / 32, 16 / 32, 17 / 32, 17 / 32]
    annotate(tmp_path, [{"file": "a", "bbox": [box]}, {"file": "b", "bbox": [box, [0, 0, 0.5, 0.5]]}])
    for size, pixels in ((64, [4, 4 + 1024]), (32, [1, 1 + 256]), (16, [0, 64])):
        found = folder_set(tmp_path, size=size)
        assert [found.ground_truth(i).sum() for i in (0, 1)] == pixels and found.has_ground_truth
        assert found.notes == (
            [f"2 x degenerate ({DIRT['degenerate']}): 'a', 'b'", f"1 x empty ({DIRT['empty']}): 'a'"] * (size == 16)
        )


def test_a_byte_order_mark_in_annotations(tmp_path):
    put(tmp_path, "a")
    (tmp_path / "annotations.json").write_bytes(b'\xef\xbb\xbf[{"file": "a", "class": "dog"}]')
    assert folder_set(tmp_path).categories == ["dog"]


def test_samples_that_are_there(tmp_path):
    for name in ("a", "b", "c", "d"):
        put(tmp_path, name)
    annotate(tmp_path, [{"file": name, "class": name, "bbox": [[0, 0, 0.5, 0.5]]} for name in "dcba"])
    (tmp_path / "audio/b.wav").unlink()
    (tmp_path / "frames/d.png").unlink()
    found = folder_set(tmp_path, on_missing="list")
    assert found.ids == ["c", "a"] and found.missing == ["d", "b"] and found.categories == ["c", "a"]
    assert found.notes == ["2 of 4 samples are there; missing are 'd', 'b'"] and found.has_ground_truth
    assert samples_record(found) == {
        "used": 2,
        "listed": 4,
        "missing": ["d", "b"],
        "sha256": hashlib.sha256(b"a\nc").hexdigest(),
    }
    for place, words in (("loop", "Too many levels of symbolic links"), ("folder", "expected a file, got a folder")):
        file = tmp_path / "frames" / f"{place}.png"  # there, and no good
        file.symlink_to(file) if place == "loop" else file.mkdir()
        annotate(tmp_path, [{"file": "a"}, {"file": "x", "image": f"frames/{place}.png", "audio": "a"}], "other.json")
        with pytest.raises(DataError, match=f"1 problem: .*frames/{place}.png: {words}.*, id 'x'"):
            folder_set(tmp_path, annotations=tmp_path / "other.json", on_missing="list")
        file.unlink() if place == "loop" else file.rmdir()
    (tmp_path / "annotations.json").unlink()
    assert folder_set(tmp_path, on_missing="list").missing == ["b", "d"]  # of each one file is there
    put(tmp_path, "b", image=".jpg")
    with pytest.raises(DataError, match=r"1 problem: .*frames: expected one file of id 'b', got 2: b.jpg, b.png$"):
        folder_set(tmp_path, on_missing="list")


def test_several_sounds_of_one_image(tmp_path):
    put(tmp_path, "street", sound=None)
    put(tmp_path, "other")
    for sound in ("dog bark", "bell"):
        put(tmp_path, sound, image=None)
    masks = np.zeros((2, 30, 40), np.uint8)
    masks[0, :, :20] = masks[1, 15:, 20:] = 255
    (tmp_path / "masks").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    annotate(
        tmp_path,
        [
            {
                "file": "street dog",
                "image": "street",
                "audio": "audio/dog bark.wav",
                "class": "dog",
                "mask": "masks/0.png",
            },
            {
                "file": "street bell",
                "image": "frames/street.png",
                "audio": "bell",
                "class": "bell",
                "mask": "masks/1.png",
                "bbox": [[0.5, 0.5, 1, 1]],
                "visible": ["bell", "dog", "car"],
            },
            {"file": "other", "class": "cat", "bbox": []},
            {"file": "street bell 2", "image": "street", "audio": "bell", "class": "bell", "mask": "masks/1.png"},
        ],
    )
    found = folder_set(tmp_path)
    assert found.ids == ["street dog", "street bell", "other", "street bell 2"]
    assert found.image_ids == ["street", "street", "other", "street"]
    assert found.visible == [
        frozenset({"dog", "bell"}),
        frozenset({"bell", "dog", "car"}),
        frozenset({"cat"}),
        frozenset({"dog", "bell"}),
    ]
    assert torch.equal(found[0]["image"], found[1]["image"])
    np.testing.assert_array_equal(
        found.waveform(1), load_audio(tmp_path / "audio/bell.wav", sample_rate=16000, seconds=0.25)
    )
    expected = np.zeros((2, 16, 16), bool)
    expected[0, :, :8] = expected[1, 8:, 8:] = True
    np.testing.assert_array_equal([found.mask(0), found.mask(1)], expected)
    np.testing.assert_array_equal([found.ground_truth(0), found.ground_truth(1)], expected)
    assert found.mask(2) is None and not found.ground_truth(2).any() and found.has_ground_truth


@pytest.mark.parametrize(
    "entries, message",
    [
        ("{", "expected annotations as a JSON list, got "),
        ({"a": 1}, "expected a JSON list of annotations, got dict"),
        ([], "expected a JSON list of annotations, got an empty one"),
        ([{"class": "bell"}], "entry 0: expected an object with \"file\": id, got {'class': 'bell'}"),
        ([{"file": "a"}, {"file": "a"}], "entry 1, 'a': annotated twice"),
        ([{"file": "a", "boxes": []}], "entry 0, 'a': unknown key 'boxes'"),
        ([{"file": "a", "class": 3}], "'a': class: expected a string, got 3"),
        ([{"file": "a", "visible": "bell"}], "'a': visible: expected a list of strings, got 'bell'"),
        (
            [{"file": "a", "class": "dog", "visible": ["bell"]}],
            "visible: expected the sample's own class 'dog' among them",
        ),
        (
            [{"file": "a", "bbox": [0.1, 0.1, 0.2, 0.2]}],
            r"bbox: expected [[xmin, ymin, xmax, ymax], ...], got [0.1, 0.1",
        ),
        ([{"file": "a", "bbox": [[0.1, 0.1, 0.2]]}], "bbox: expected [[xmin, ymin, xmax, ymax], ...], got [[0.1, "),
        ([{"file": "a", "bbox": [[0.1, 0.1, 0.2, "x"]]}], "bbox: expected [[xmin, ymin, xmax, ymax], ...]"),
        ([{"file": "a", "bbox": [[0, 0, 0.5, float("nan")]]}], "bbox: expected [[xmin, ymin, xmax, ymax], ...]"),
        ([{"file": "a", "bbox": [[10, 20, 112, 224]]}], "bbox: expected fractions of the frame, got pixels or "),
        (
            [{"file": "a", "bbox": [[0, 0, 1, 10**400]]}],
            "bbox: expected [[xmin, ymin, xmax, ymax], ...], got [[0, 0, 1",
        ),
        ('[{"file": "a", "class": "b", "class": "c"}]', "an object: 1 of 2 keys listed more than once: 'class'"),
        ("[" * 100_000, "expected annotations as a JSON list, got maximum recursion depth exceeded"),
        (
            '[{"file": "a", "bbox": ' + "[" * 900 + "]" * 900 + "}]",
            "bbox: expected [[xmin, ymin, xmax, ymax], ...], got ",
        ),
        (
            [{"file": "../a"}],
            "entry 0, '../a': file: expected a path from the folder, got '../a': it is no path inside",
        ),
        ([{"file": "a", "image": "/etc/a.png"}], "'a': image: expected a path from the folder, got '/etc/a.png'"),
        ([{"file": "a", "mask": "m\0.png"}], "'a': mask: expected a path from the folder, got 'm\\x00.png': it holds"),
    ],
)
def test_bad_annotations(tmp_path, entries, message):
    put(tmp_path, "a")
    annotate(tmp_path, entries)
    if isinstance(entries, str):
        (tmp_path / "annotations.json").write_text(entries)
    for look in (folder_set, check):
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            look(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path / 'annotations.json'}: ")


def test_annotations_elsewhere(tmp_path):
    put(tmp_path / "data", "a")
    put(tmp_path / "data", "b")
    annotate(tmp_path, [{"file": "b", "bbox": [[0, 0, 1, 1]]}], "other.json")
    assert folder_set(tmp_path / "data").ids == ["a", "b"]
    assert folder_set(tmp_path / "data", annotations=tmp_path / "other.json").ids == ["b"]
    with pytest.raises(DataError, match="none.json: expected annotations as a JSON list, got .*No such file"):
        folder_set(tmp_path / "data", annotations=tmp_path / "none.json")


# ---------------------------------------------------------------------------------------------------------------------
# Lists


def test_lists_choose_and_order(tmp_path):
    for name in ("a", "b", "c, d", "e"):
        put(tmp_path, name)
    (tmp_path / "frames" / "e.png").unlink()  # not listed: does not matter
    (tmp_path / "train.txt").write_text("\ufeffc, d\n\na\r\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text('b,202\n"c, d",7\n')
    assert folder_set(tmp_path, split="train").ids == ["c, d", "a"]
    assert folder_set(tmp_path, split="test").ids == ["b", "c, d"]
    for split in (tmp_path / "test.csv", "test.csv"):
        assert folder_set(tmp_path, split=split).ids == ["b", "c, d"]
    with pytest.raises(DataError, match=f"^none.txt or {re.escape(str(tmp_path))}/none.txt: no such list of ids"):
        folder_set(tmp_path, split="none.txt")


def test_lists_and_annotations(tmp_path):
    for name in ("a", "b", "c"):
        put(tmp_path, name)
    annotate(tmp_path, [{"file": "b", "bbox": [[0, 0, 1, 0.5]]}, {"file": "c", "bbox": [[0, 0, 1, 0.5]]}])
    for split, ids in {"train": ["a"], "test": ["c", "b"], "mixed": ["a", "b"]}.items():
        (tmp_path / f"{split}.txt").write_text("\n".join(ids))
    train, test, mixed = (folder_set(tmp_path, split=split) for split in ("train", "test", "mixed"))
    assert not train.has_ground_truth and train.notes == []
    assert test.ids == ["c", "b"] and test.has_ground_truth
    assert not mixed.has_ground_truth and mixed.notes == ["1 of 2 samples have boxes or a mask, 'a' has none"]


def test_lists_of_every_kind(tmp_path):
    """Delimiters by suffix, in any case; a byte-order mark; quoted cells; lines of any system."""
    for name in ("a", "c, d", 'e "f"'):
        put(tmp_path, name)
    for name, content in {
        "one.CSV": '\ufeff"c, d",7\r\n\r\na\r\n',
        "two.tsv": '"c, d"\tdog "x"\na\tcat\n',
        "three.TXT": "\ufeff c, d \ra\r",
        "four.csv": '"e ""f""",1\na',
    }.items():
        (tmp_path / name).write_bytes(content.encode())
        want = ['e "f"', "a"] if name == "four.csv" else ["c, d", "a"]
        for split in (name, name.partition(".")[0]):
            assert folder_set(tmp_path, split=split).ids == want
    (tmp_path / "plain").write_text("a\n")
    assert folder_set(tmp_path, split=tmp_path / "plain").ids == ["a"]
    (tmp_path / "one.txt").write_text("a\n")
    assert folder_set(tmp_path, split="one.txt").ids == ["a"]
    with pytest.raises(DataError, match=r"/one: expected one list of ids, got one.CSV, one.txt"):
        folder_set(tmp_path, split="one")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    put(tmp_path, "a")
    put(tmp_path, "deep/b")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="Permission denied: '.*/frames/deep'"):
        folder_set(tmp_path)


@pytest.mark.parametrize(
    "content, line",
    [
        ('id1,"cat\nid2,cow\nid3,hen\n', 1),
        ('id1,cat\nid2,"cow\nid3,"hen\n', 2),
        ('id1,cat\n"id2\nid3",cow\n', 2),
        ('id1,cat\nid2,"cow" x\n', 2),
    ],
)
def test_a_quote_that_is_not_closed_loses_no_sample(tmp_path, content, line):
    put(tmp_path, "id1")
    (tmp_path / "list.csv").write_text("id1,cat\n,cow\n")
    with pytest.raises(DataError, match="list.csv: line 2: expected an id, got '': it is empty"):
        folder_set(tmp_path, split="list")
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(DataError, match=f"list.csv: line {line}: expected cells, quoted in pairs, got "):
        folder_set(tmp_path, split="list")


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\nb\na\n", "train.txt: 1 of 2 ids listed more than once: 'a'"),
        (
            "a\nz\n",
            r"2 problems: .*frames/z.jpg\|.jpeg\|.png: no such file, id 'z'; .*audio/z.wav\|.flac\|.ogg\|.mp3: no such",
        ),
        ("a\n../b\n", "train.txt: line 2: expected an id, got '../b': it is no path inside of the folder"),
        ("a\n\n/b\n", "train.txt: line 3: expected an id, got '/b': it is no path inside of the folder"),
        ("sub//b\n", "train.txt: line 1: expected an id, got 'sub//b': it is no path inside of the folder"),
        ("sub\\b\n", "train.txt: line 1: expected an id, got .*: it is no path inside of the folder"),
        ("a\nb\0\n", r"train.txt: line 2: expected an id, got 'b\\x00': it holds a control character"),
        ("", r"train.txt: expected a list of ids, got none"),
        ("\n \n", r"train.txt: expected a list of ids, got none"),
        (b"a\n\xff\xfe", r"train.txt: expected ids in UTF-8, got .* at byte 2"),
        (None, r"train.txt or .*train.csv or .*train.tsv: no such list of ids"),
    ],
)
def test_bad_lists(tmp_path, content, message):
    put(tmp_path, "a")
    put(tmp_path, "b")
    if content is not None:
        (tmp_path / "train.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        folder_set(tmp_path, split="train")


# ---------------------------------------------------------------------------------------------------------------------
# Missing and broken files


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda root: (root / "audio/b.wav").unlink(), r"{root}/audio/b.wav\|.flac\|.ogg\|.mp3: no such file, id 'b'"),
        (lambda root: (root / "frames/b.png").unlink(), r"{root}/frames/b.jpg\|.jpeg\|.png: no such file, id 'b'"),
        (lambda root: (root / "audio/b.wav").write_bytes(b""), r"{root}/audio/b.wav: empty file \(0 bytes\), id 'b'"),
        (
            lambda root: put(root, "b", image=".jpg", sound=None),
            r"{root}/frames: expected one file of id 'b', got 2: b.jpg, b.png",
        ),
        (lambda root: annotate(root, [{"file": "b"}, {"file": "d"}]), "{root}/frames/d.jpg.*: no such file, id 'd'"),
        (lambda root: annotate(root, [{"file": "b", "image": "a.png"}]), "{root}/a.png: no such file, id 'b'"),
        (lambda root: annotate(root, [{"file": "b", "mask": "m/b.png"}]), "{root}/m/b.png: no such file, id 'b'"),
    ],
)
def test_missing_files_are_named(tmp_path, damage, message):
    for name in ("a", "b", "c"):
        put(tmp_path, name)
    damage(tmp_path)
    message = message.format(root=re.escape(str(tmp_path)))
    with pytest.raises(DataError, match=message):
        folder_set(tmp_path)
    report = check(tmp_path)
    assert not report.ok and any(re.search(message, entry) for entry in report.missing + report.broken)
    assert bool(report.missing) == ("no such file" in message)


def test_many_problems_are_counted_not_listed(tmp_path):
    for i in range(9):
        put(tmp_path, f"clip{i}", sound=None)
    with pytest.raises(DataError, match=r"9 problems: .*clip0.*clip4.*; and 4 more$") as caught:
        folder_set(tmp_path)
    assert "clip5" not in str(caught.value) and len(check(tmp_path).missing) == 9


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "expected a folder with frames/ and audio/, got nothing there"),
        (lambda root: root.write_text(""), "expected a folder with frames/ and audio/, got a file"),
        (lambda root: root.mkdir(), "frames: expected a folder, got nothing there"),
        (
            lambda root: [(root / x).mkdir(parents=True) for x in ("frames", "audio")],
            "expected samples, got 0 files in frames/ and 0 files in audio/",
        ),
    ],
)
def test_folders_that_are_none(tmp_path, make, message):
    root = tmp_path / "data"
    make(root)
    for look in (folder_set, check):
        with pytest.raises(DataError, match=message):
            look(root)


BROKEN = {
    "cut frame": ("frames/bad.png", lambda data: data[: len(data) // 2], "cannot be read as an image"),
    "text for a frame": ("frames/bad.png", lambda data: b"no picture", "cannot be read as an image"),
    "cut sound": ("audio/bad.wav", lambda data: data[: len(data) // 2], "truncated"),
    "head of a sound": ("audio/bad.wav", lambda data: data[:20], "cannot be read as audio"),
    "no samples": ("audio/bad.wav", np.zeros((0, 1)), "expected audio, got a file of no samples"),
    "not a number": ("audio/bad.wav", np.array([0.1, np.nan]), "expected finite samples, got nan"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_when_read(tmp_path, kind):
    """Constructing a set does not read files; reading one does, and so do preload and check."""
    put(tmp_path, "bad")
    put(tmp_path, "good")
    file, damage, message = BROKEN[kind]
    path = tmp_path / file
    if callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        soundfile.write(path, damage, 16000, subtype="FLOAT")
    message = f"^{re.escape(str(path))}: {message}"
    for read in (lambda found: found[0], lambda found: found.preload()):
        found = folder_set(tmp_path)
        assert found[1]["index"] == 1
        with pytest.raises(MediaError, match=message):
            read(found)
    report = check(tmp_path)
    assert not report.ok and report.ids == ["good"] and report.missing == []
    assert len(report.broken) == 1 and re.search(message, report.broken[0])
    assert str(report).splitlines()[0] == f"{tmp_path}: 1 samples complete, 0 files missing, 1 broken"
    assert str(report).splitlines()[1].startswith(f"  broken: {path}: ")


def test_check_of_a_good_folder(tmp_path):
    put(tmp_path, "a", image=".jpg", sound=".ogg")
    put(tmp_path, "b")
    report = check(tmp_path)
    assert report.ok and report.ids == ["a", "b"]
    assert str(report) == f"{tmp_path}: 2 samples complete, 0 files missing, 0 broken"


def test_names_that_are_no_utf_8(tmp_path):
    """They are read, and printed as they are."""
    put(tmp_path, "caf\udce9")
    put(tmp_path, "d\udce9")
    assert FolderSet(tmp_path, front_end=FRONT_END, size=16, cache=tmp_path / "cache")[0]["image"].shape == (3, 16, 16)
    (tmp_path / "audio/d\udce9.wav").write_bytes(b"RIFF")
    command = [sys.executable, "-m", "ssl_fast", "data", "check", str(tmp_path), "--quiet"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True)
    assert (
        done.returncode == 1
        and b"1 samples complete" in done.stdout
        and rb"/d\udce9.wav: cannot be read" in done.stdout
    )


def test_check_counts_a_shared_broken_file_once(tmp_path):
    put(tmp_path, "scene", sound=None)
    put(tmp_path, "x", image=None)
    put(tmp_path, "y", image=None)
    (tmp_path / "frames/scene.png").write_bytes(b"no picture")
    annotate(tmp_path, [{"file": f"scene {x}", "image": "scene", "audio": x} for x in "xy"])
    report = check(tmp_path)
    assert len(report.broken) == 1 and report.ids == []


def test_check_names_samples_that_tell_nothing(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c", "d"):
        put(tmp_path, name)
        pixels = generator.integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frames/{name}.png")
        soundfile.write(tmp_path / f"audio/{name}.wav", generator.uniform(-0.5, 0.5, 1600), 16000)
    Image.fromarray(np.full((20, 30, 3), (1, 2, 200), np.uint8)).save(tmp_path / "frames/a.png")
    soundfile.write(tmp_path / "audio/b.wav", np.where(generator.random(1600) < 0.5, 0, 1 / 32768), 16000)
    shutil.copy(tmp_path / "frames/c.png", tmp_path / "frames/d.png")
    shutil.copy(tmp_path / "audio/c.wav", tmp_path / "audio/a.wav")
    report = check(tmp_path)
    assert report.ok and report.ids == ["a", "b", "c", "d"]
    assert report.suspect == [
        f"{tmp_path}/frames/a.png: a frame of one colour",
        f"{tmp_path}/audio/b.wav: a sound of 0.1 s of silence",
        f"2 sounds of the same samples: '{tmp_path}/audio/a.wav', '{tmp_path}/audio/c.wav'",
        f"2 frames of the same pixels: '{tmp_path}/frames/c.png', '{tmp_path}/frames/d.png'",
    ]
    assert f"  suspect: {tmp_path}/audio/b.wav" in str(report)


def test_check_names_videos_that_stand_still(tmp_path):
    moving = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    sound = np.sin(np.arange(32000) / 7)[:, None] / 2
    for name, pictures in (("still", [moving[0]] * 50), ("moving", [moving[k // 25] for k in range(50)])):
        film(tmp_path / f"{name}.mp4", pictures, sound=sound)
        item = Item(name, tmp_path / f"{name}.mp4", tmp_path / f"{name}.mp4", name, None)
        report = check_files(tmp_path, Files([item]))
        expected = [f"{tmp_path}/still.mp4: a video of one picture"] if name == "still" else []
        assert report.ids == [name] and report.suspect == expected
