"""Sets of several sources, and of prompts: made folders in the layouts of the programs, with their lists."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from multi_source_folders import BOX, CLASSES, CLIPS, FRAMES, ROWS, SAMPLES, lists, make
from ssl_fast.cli import main as cli
from ssl_fast.data.annotations import read, weight_map
from ssl_fast.data.io.audio import load_audio
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.negatives import negatives
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.test_sets import LAYOUTS, PublishedSet, annotation_file, annotations_of, check

FRONT_END = FrontEnd(name="tiny", seconds=0.25, hop=256)


def opened(root, name, layout=None):
    found = read(name, annotation_file(root, name))
    assert check(root, name, found, layout=layout).ok
    return PublishedSet(root, name, found, front_end=FRONT_END, layout=layout)


def wave(root, sound):
    return load_audio(root / sound, sample_rate=16000, seconds=0.25)


@pytest.mark.parametrize("layout", ["avgn", "no-prior"])
def test_music(tmp_path, layout):
    solo = opened(make(tmp_path / "solo", "music-solo", layout), "music-solo")
    assert solo.ids == solo.image_ids == FRAMES and solo.categories == ["cello"] * 3
    box = weight_map(np.array([[56, 112, 168, 168]]))
    np.testing.assert_array_equal(solo.ground_truth(1), box)
    root = make(tmp_path / "duet", "music-duet", layout)
    duet = opened(root, "music-duet")
    assert duet.ids[:3] == [f"{FRAMES[0]}/1", f"{FRAMES[0]}/2", f"{FRAMES[1]}/1"]
    assert duet.image_ids[:3] == [FRAMES[0], FRAMES[0], FRAMES[1]]
    assert duet.categories[:2] == ["cello", "acoustic_guitar"] and duet.visible[0] == {"cello", "acoustic_guitar"}
    np.testing.assert_array_equal(duet.ground_truth(2), box)
    np.testing.assert_array_equal(duet.ground_truth(3), np.arange(224)[None].repeat(224, 0) < 112)
    sound = "audio/-abc_efghij.wav" if layout == "avgn" else f"audio/{FRAMES[1]}.wav"
    np.testing.assert_array_equal(duet.waveform(3), wave(root, sound))


@pytest.mark.parametrize("name", ["vggsound", "vgg-instruments"])
def test_pairs_of_clips(tmp_path, name):
    """Each frame has its own ground truth, and hears both; off-screen sounds are of one clip alone."""
    singles, duets = ("vggsound-single", "vggsound-duet") if name == "vggsound" else (name, f"{name}-duet")
    names = CLIPS if name == "vggsound" else SAMPLES
    classes = CLASSES if name == "vggsound" else [one.replace(",", "") for one in CLASSES]
    single = opened(make(tmp_path / "single", singles), singles, layout="slavc" if name == "vggsound" else None)
    assert single.ids == names and single.categories == classes
    root = make(tmp_path / "duet", duets)
    duet = opened(root, duets)
    order = [i for row in ROWS for i in row]
    assert duet.ids == [f"{names[a]}+{names[b]}/{k}" for a, b in ROWS for k in (1, 2)] == duet.image_ids
    assert duet.categories == [classes[i] for i in order] and duet.visible[0] == {classes[0]}
    other = [i for row in ROWS for i in row[::-1]]
    for k, (i, j) in enumerate(zip(order, other)):
        np.testing.assert_array_equal(duet.ground_truth(k), single.ground_truth(i))
        assert torch.equal(duet.image(k), single.image(i))
        both = wave(root, f"audio/{names[i]}.wav") + wave(root, f"audio/{names[j]}.wav")
        np.testing.assert_array_equal(duet.waveform(k), both)
        assert torch.equal(duet.spectrogram(k), FRONT_END.spectrogram(torch.from_numpy(both))[None])
    before = [duet[k]["spectrogram"] for k in range(8)]
    assert duet.preload() is duet and all(torch.equal(duet[k]["spectrogram"], one) for k, one in enumerate(before))
    drawn = negatives(duet, "offscreen")
    for k in range(8):
        source = order[drawn.sources[k]]
        assert classes[source] != classes[order[k]]
        np.testing.assert_array_equal(drawn[k], wave(root, f"audio/{names[source]}.wav"))
    if name == "vgg-instruments":
        np.testing.assert_array_equal(duet.mask(0), np.arange(224)[None].repeat(224, 0) < 75)


def test_prompts(tmp_path):
    speech = opened(make(tmp_path / "ade", "ade20k-speech"), "ade20k-speech")
    assert speech.ids == ["training/a/x_1+dog 1", "training/b/x_2+s2"] and speech.categories == ["773", "773"]
    sound = opened(tmp_path / "ade", "ade20k-sound")
    assert sound.ids == ["training/a/x_1+s2", "training/a/x_1+dog 1"] and sound.categories == ["773", "12"]
    assert sound.image_ids == ["training/a/x_1"] * 2
    columns, rows = np.meshgrid(np.arange(224), np.arange(224))
    np.testing.assert_array_equal(speech.mask(1), columns < 112)
    np.testing.assert_array_equal(sound.mask(0), columns < 56)
    np.testing.assert_array_equal(sound.ground_truth(1), (columns >= 168) & (rows < 112))


def test_every_file_of_a_pair_is_checked(tmp_path):
    root = make(tmp_path / "duet", "vggsound-duet")
    found = read("vggsound-duet", root / "vggsound_duet_test.csv")
    (root / f"audio/{CLIPS[3]}.wav").unlink()
    (root / f"audio/{CLIPS[0]}.wav").write_bytes(b"RIFF")
    report = check(root, "vggsound-duet", found)
    assert len(report.missing) == len(report.broken) == 1
    assert report.ids == [f"{CLIPS[1]}+{CLIPS[2]}/{k}" for k in (1, 2)]
    make(tmp_path / "ade", "ade20k-sound")
    labels, found = tmp_path / "ade/annotations/training/a/x_1_seg.png", tmp_path / "ade/prompted_segmentation.csv"
    labels.write_bytes(b"no picture")
    report = check(tmp_path / "ade", "ade20k-sound", read("ade20k-sound", found))
    assert "x_1_seg.png" in report.broken[0] and not report.ids
    Image.new("L", (40, 30)).save(labels)
    report = check(tmp_path / "ade", "ade20k-sound", read("ade20k-sound", found))
    assert report.broken == [f"{labels}: expected labels in red and green, got an image of grey values"]


def test_lists_by_name(tmp_path):
    """A csv of these sets has no splits, as AVSBench's has."""
    root = make(tmp_path, "vggsound-duet")
    (root / "heard.txt").write_text(f"{CLIPS[1]}+{CLIPS[2]}/2\n")
    assert [one.id for one in annotations_of(root, "vggsound-duet", split="heard").samples] == (
        [f"{CLIPS[1]}+{CLIPS[2]}/2"]
    )
    with pytest.raises(DataError, match=r"unheard.txt or .*: no such list of ids"):
        annotations_of(root, "vggsound-duet", split="unheard")


SOLO = {"file": "a", "class": "c", "bbox": BOX}
HEAD = "image_location,ade_class_id,vggsound_file\n"
FAULTS = {
    "a list": ("music-solo", {"file": "a"}, "expected a JSON list of annotations"),
    "a key": ("music-solo", [{"file": "a", "bbox": BOX}], "entry 0: expected bbox, class, file, got"),
    "a class": ("music-solo", [SOLO | {"class": 3}], "entry 0: expected an id and a class"),
    "corners": ("music-solo", [SOLO | {"bbox": [1, 2, 3, 4]}], "'a': expected a box [x, y, width, height], got"),
    "a source": ("music-duet", [SOLO], "expected bbox_src1, bbox_src2, class_src1, class_src2, file, got"),
    "twice": ("music-solo", [SOLO] * 2, "1 of 1 samples listed more than once: 'a'"),
    "cells": ("vgg-instruments-duet", "a,x,b\n", "line 1: expected ID,CLASS,ID,CLASS of two clips, got 'a,x,b'"),
    "one clip": ("vgg-instruments-duet", "a,x,a,x\n", "line 1: expected ID,CLASS,ID,CLASS of two clips, got 'a,x,a,x'"),
    "an integer": (
        "music-solo",
        [SOLO | {"bbox": [10**400, 0, 1, 1]}],
        "'a': expected a box [x, y, width, height], got",
    ),
    "a truth": ("music-solo", [SOLO | {"bbox": [True, 0, 1, 1]}], "'a': expected a box [x, y, width, height], got"),
    "lines": ("vgg-instruments", "\n", "expected lines ID,CLASS, got none"),
    "boxes": (
        "vggsound-duet",
        f"{CLIPS[0]},x,b,y\n",
        "line 1: expected class and boxes of 'b' in vggss.json, got none",
    ),
    "a column": ("ade20k-speech", HEAD, "got none called speech_prompt_file"),
    "a number": (
        "ade20k-sound",
        f"{HEAD}a.jpg,dog,b.wav\n",
        "line 2: expected IMAGE.jpg, the number of a class, a sound",
    ),
    "a prompt": ("ade20k-sound", f"{HEAD}a.jpg,0,b.wav\n", "expected lines with a vggsound_file and a class, got none"),
    "a comma": ("ade20k-sound", f"{HEAD}a.jpg,1,2,b.wav\n", "line 2: expected 3 cells as in the header, got 4"),
    "no sound": ("ade20k-sound", f"{HEAD}a.jpg,1\n", "line 2: expected 3 cells as in the header, got 2"),
    "columns": ("ade20k-sound", f"vggsound_file,{HEAD}", "1 of 3 columns listed more than once: 'vggsound_file'"),
    "quotes": ("ade20k-sound", f'{HEAD}"a"b,1,c\n', "expected comma-separated values"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path, fault, capsys):
    name, content, message = FAULTS[fault]
    path = lists(tmp_path, name)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read(name, path)
    assert str(error.value).startswith(str(path))
    assert cli.main(["data", "check", str(tmp_path), "--set", name]) == 2
    shown = capsys.readouterr().err
    assert message in shown and "Traceback" not in shown


def test_names_of_frames_of_music(tmp_path):
    (tmp_path / "frames").mkdir(), (tmp_path / "audio").mkdir()
    (tmp_path / "music_solo.json").write_text(json.dumps([{"file": "a", "class": "c", "bbox": BOX}]))
    with pytest.raises(DataError, match="id 'a': expected YTID_NNN_NNNNN, as AVGN names the frames of MUSIC"):
        check(tmp_path, "music-solo", read("music-solo", tmp_path / "music_solo.json"), layout="avgn")


SETS = [name for name in LAYOUTS if name.startswith(("music", "vggsound", "vgg-instruments", "ade20k"))]


QUICK = ("music-duet", "ade20k-sound")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in SETS])
def test_commands(tmp_path, name, capsys):
    """Checked and evaluated, by maps of a folder, under the protocols that belong to the set."""
    root = make(tmp_path / "data", name)
    assert cli.main(["data", "check", str(root), "--set", name, "--quiet"]) == 0
    test = opened(root, name)
    rng = np.random.default_rng(0)
    for one in test.ids:
        path = tmp_path / "maps" / f"{one}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, rng.uniform(-1, 1, (7, 7)).astype(np.float32))
    names = "denseav" if name.startswith("ade20k") else "sources,avgn,no_prior"
    out = tmp_path / "out"
    options = ["--data", root, "--set", name, "--maps", tmp_path / "maps", "--protocol", names, "--out", out]
    assert cli.main(["evaluate", "--quiet", "--negatives", "", *map(str, options)]) == 0, capsys.readouterr().err
    results = json.loads((out / "metrics.json").read_text())["protocols"][name]
    found = {protocol: one["model"]["figures"]["audio_visual"] for protocol, one in results.items()}
    if names == "denseav":
        assert found["denseav"]["prompted"]["classes"] == (1 if name == "ade20k-speech" else 2)
        assert 0 < found["denseav"]["prompted"]["map"] < 1
    else:
        assert found["sources"]["sources"]["images"] == len({*test.image_ids})
        assert 0 < found["sources"]["sources"]["cap"] <= 1 and "ciou_75" in found["avgn"]["sources"]["top50"]
    assert f"protocol {names.partition(',')[0]}" in (out / "report.html").read_text()
