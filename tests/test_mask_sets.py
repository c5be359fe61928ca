"""AVSBench as released, with its csv and masks, and the evaluation of every set with masks by the command line."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from published_folders import FOLDERS, S4_CSV, SEMANTIC_CSV, make, ms3, put, s4
from ssl_fast.cli import main as cli
from ssl_fast.data.annotations import read
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.negatives import negatives
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.test_sets import PublishedSet, annotations_of, check
from test_annotations import write
from test_robustness import twin

FRONT_END = FrontEnd(name="tiny", seconds=0.25, hop=256)


def test_s4_as_released(tmp_path):
    root = s4(tmp_path)
    for split, names in (("test", ("v-1", "v-2")), ("val", ("v-3", "v-6"))):
        clips = [f"{category}/{name}" for category, name in zip(("dog_barking", "helicopter"), names)]
        found = annotations_of(root, "s4", split=None if split == "test" else split)
        test = PublishedSet(root, "s4", found, front_end=FRONT_END)
        assert test.ids == [f"{clip}/{clip.partition('/')[2]}_{n}" for clip in clips for n in range(1, 6)]
        assert test.image_ids == [clip for clip in clips for _ in range(5)] and test.has_ground_truth
        assert test.categories == [clip.partition("/")[0] for clip in clips for _ in range(5)]
        np.testing.assert_array_equal(test.mask(1), np.arange(224)[None].repeat(224, 0) < 75)
        np.testing.assert_array_equal(test.ground_truth(1), test.mask(1))
        report = check(root, "s4", found)
        assert report.ok and report.ids == test.ids
    ids = [sample.id for sample in annotations_of(root, "s4", split="train").samples]
    assert ids == ["dog_barking/v-4/v-4_1"]
    inner = root / "s4_data"  # the folder of the data itself, and a list of ids
    one = write(root / "one.txt", "helicopter/v-2/v-2_3\n")
    found = annotations_of(inner, "s4", root / "s4_meta_data.csv", str(one))
    assert PublishedSet(inner, "s4", found, front_end=FRONT_END).ids == ["helicopter/v-2/v-2_3"]
    # the same frames by the same names as in SSL-Align's list
    entry = "/far/visual_frames/test/helicopter/v-2/v-2_3.png", "/far/audio_wav/test/helicopter/v-2.wav"
    align = write(root / "a.json", [{"image": entry[0], "audio": entry[1], "gt_box": [0, 0, 9, 9]}])
    ours, theirs = found.samples[0], read("s4", align).samples[0]
    for field in ("id", "image", "audio", "category", "group", "split"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_ms3_as_released(tmp_path):
    root = ms3(tmp_path)
    test = PublishedSet(root, "ms3", annotations_of(root, "ms3"), front_end=FRONT_END)
    assert test.ids == [f"{name}/{name}.mp4_{n}" for name in ("v-1_0", "v-2_0") for n in range(1, 6)]
    assert test.image_ids == ["v-1_0"] * 5 + ["v-2_0"] * 5 and set(test.categories) == {None}
    assert test.mask(0).sum() == 75 * 224
    train = annotations_of(root, "ms3", split="train")
    assert len(PublishedSet(root, "ms3", train, front_end=FRONT_END)) == 5
    entry = {"image": "/far/visual_frames/v-1_0/v-1_0.mp4_1.png", "audio": "/far/audio_wav/test/v-1_0.wav"}
    align = read("ms3", write(root / "a.json", [entry | {"gt_box": [0.0] * 4}]))
    ours = annotations_of(root, "ms3").samples[0]
    for field in ("id", "image", "audio", "category", "group", "split"):
        assert getattr(ours, field) == getattr(align.samples[0], field)
    assert align.dirt["empty"] == [ours.id]


def test_what_sounds_in_ms3(tmp_path):
    """AVSBench-semantic's list: a sound off screen has no class in common with the clip."""
    root = ms3(tmp_path)
    found = annotations_of(root, "ms3", root / "metadata.csv")
    test = PublishedSet(root, "ms3", found, front_end=FRONT_END)
    assert test.categories == ["man_guitar"] * 5 + ["dog"] * 5 + ["guitar"] * 5
    assert test.visible[0] == test.visible[10] == {"man_guitar", "guitar"} and test.visible[5] == {"dog"}
    sources = negatives(test, "offscreen", 0).sources
    assert {test.categories[i] for i in sources[:5]} == {test.categories[i] for i in sources[10:]} == {"dog"}
    assert {test.categories[i] for i in sources[5:10]} <= {"man_guitar", "guitar"}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("s4", "name,start,split\nv,1,test\n", "a.csv: expected a column 'category', got name, start, split"),
        ("s4", "", "a.csv: expected a column 'category', got an empty file"),
        ("ms3", "video_id,part\nv,test\n", "a.csv: expected a column 'split', got video_id, part"),
        ("ms3", "uid,split,label\nv,test,v1m\n", "a.csv: expected a column 'vid', got uid, split, label"),
        ("s4", f"{S4_CSV}v-5,helicopter,test\n", "a.csv: line 7: expected 4 cells as in the header, got 3"),
        ("s4", f"{S4_CSV}v-5,1,helicopter,tset\n", "a.csv: line 7: expected a split, train, val, test, got 'tset'"),
        (
            "s4",
            f"{S4_CSV}v-5,1,../x,test\n",
            r"a.csv: line 7: expected the name of a folder, got '../x': it is no path",
        ),
        ("s4", f"{S4_CSV},1,helicopter,test\n", "a.csv: line 7: expected the name of a folder, got '': it is empty"),
        ("s4", f"{S4_CSV}v-1,3,dog_barking,test\n", "a.csv: 5 of 21 samples listed more than once: 'dog_barking/v-1/v"),
        ("s4", "name,category,split\n", "a.csv: expected samples of split 'test', got those of none"),
        ("s4", "name,category,split\nv,dog,val\n", "a.csv: expected samples of split 'test', got those of val"),
        ("s4", "name,split,category,split\nv,val,dog,test\n", "a.csv: 1 of 2 columns listed more than once: 'split'"),
        ("ms3", SEMANTIC_CSV.replace("man_guitar", "man_"), "a.csv: expected classes in a_obj.*, got none of 'v-1_0'"),
        ("ms3", SEMANTIC_CSV.replace("v1m", "v1s"), "a.csv: expected samples of split 'test', got those of none"),
    ],
)
def test_bad_csv(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read(name, write(tmp_path / "a.csv", text))


def test_files_that_do_not_fit(tmp_path, capsys):
    """By the command: a split that is none, a mask that is gone, one of another size, one that is no image."""
    root = s4(tmp_path)
    argv = ["data", "check", str(root), "--set", "s4", "--quiet"]
    assert cli.main(argv) == 0 and "10 samples complete, 0 files missing, 0 broken" in capsys.readouterr().out
    assert cli.main([*argv, "--split", "val"]) == 0 and "10 samples complete" in capsys.readouterr().out
    assert cli.main([*argv, "--split", "tset"]) == 2
    error = capsys.readouterr().err
    assert "s4_meta_data.csv: expected samples of split 'tset', got those of train, val, test" in error
    assert "Traceback" not in error
    assert cli.main([*argv, "--annotations", str(root / "none.csv")]) == 2
    assert "none.csv" in capsys.readouterr().err
    masks = root / "s4_data/gt_masks/test/dog_barking/v-1"
    (masks / "v-1_2.png").unlink()
    Image.new("L", (224, 200)).save(masks / "v-1_3.png")
    (masks / "v-1_4.png").write_bytes(b"no image")
    assert cli.main(argv) == 1
    said = capsys.readouterr().out
    assert "7 samples complete, 1 files missing, 2 broken" in said
    assert f"missing: {masks / 'v-1_2.png'}: no such file, id 'dog_barking/v-1/v-1_2'" in said
    assert f"broken: {masks / 'v-1_3.png'}: expected the 224 x 224 pixels of its frame, got 224 x 200, id 'dog" in said
    assert f"broken: {masks / 'v-1_4.png'}: " in said
    with pytest.raises(DataError, match=f"2 problems: {re.escape(str(masks))}/v-1_3.png: expected the 224 x 224 pix"):
        PublishedSet(root, "s4", annotations_of(root, "s4"), front_end=FRONT_END)
    write(root / "s4_box.json", "[]")
    assert cli.main(argv) == 2
    assert "annotations of s4, s4_box.json or s4_meta_data.csv, got s4_box.json and s4_meta_data.csv: --annotat" in (
        capsys.readouterr().err
    )


@pytest.fixture
def no_report(monkeypatch):
    """The report is most of the time of an evaluation of a few samples."""
    monkeypatch.setattr("ssl_fast.evaluation.overlays.collect", lambda *_, **__: {})
    monkeypatch.setattr("ssl_fast.evaluation.report.write_report", lambda *_, **__: None)


def put_maps(where, ids, kinds):
    """Logits of 224 x 224, of 7 x 7 blocks, under the samples' own sounds and under negatives."""
    rng, found = np.random.default_rng(0), {}
    for kind in ("", *kinds):
        found[kind] = rng.uniform(-3, 3, (len(ids), 7, 7)).repeat(32, 1).repeat(32, 2).astype(np.float32)
        for name, values in zip(ids, found[kind]):
            (where / kind / name).parent.mkdir(parents=True, exist_ok=True)
            np.save(where / kind / f"{name}.npy", values)
    return found


SETS = {  # by name: how the folder is made, its annotations (default: those in it), kinds of negatives
    "s4": (s4, None, ("silence", "noise", "offscreen")),
    "ms3": (ms3, None, ("silence", "noise")),
    "ms3, classes": (ms3, "metadata.csv", ("silence", "noise", "offscreen")),
    "ms3, ssl-align": (FOLDERS["avsbench: ms3"], "ms3_seg.json", ("silence", "noise")),
    "vpo-ss": (FOLDERS["ssl-align: vpo-ss"], "vpo_ss_seg.json", ("silence", "noise")),
    "vpo-ms": (FOLDERS["ssl-align: vpo-ms"], "vpo_ms_seg.json", ("silence", "noise")),
    "is3-plus": (FOLDERS["is3: is3-plus"], "is3_plus_seg.json", ("silence", "noise")),
}


@pytest.mark.parametrize("case", SETS)
def test_evaluation_by_the_command_line(tmp_path, case, capsys, no_report):
    """Logits of maps computed elsewhere, at a threshold of 0; figures against loops over the pixels of the masks."""
    (folder, file, kinds), name = SETS[case], case.partition(",")[0]
    root = folder(tmp_path / "data") if callable(folder) else make(tmp_path / "data", folder)
    ids = [sample.id for sample in annotations_of(root, name, None if file is None else root / file).samples]
    maps = put_maps(tmp_path / "maps", ids, kinds)
    argv = ["evaluate", "--data", str(root), "--set", name, "--maps", str(tmp_path / "maps"), "--threshold", "0"]
    argv += ["--protocol", "avsbench,avsbench_robust", "--negatives", ",".join(kinds), "--out", str(tmp_path / "out")]
    argv += [] if file is None else ["--annotations", str(root / file)]
    code = cli.main([*argv, "--quiet"])
    assert code == 0, capsys.readouterr().err
    got = json.loads((tmp_path / "out/metrics.json").read_text())["protocols"][name]
    blocks = np.zeros((7, 32 * 7), bool)  # a row of each: blocks are alike in height
    blocks[:, :75] = True
    own, *under = ((maps[kind] > 0)[:, ::32] for kind in ("", *kinds))
    expected = twin(own, dict(zip(kinds, under)), [blocks] * len(ids))
    figures = got["avsbench_robust"]["model"]["figures"]["audio_visual"]["robustness"]
    assert figures == pytest.approx(expected, abs=1e-9)
    assert got["avsbench"]["model"]["n"] == len(ids)


def test_is3_plus_with_sounds_of_elsewhere(tmp_path, capsys, no_report):
    """Negatives that a set brings along are an Extended list; boxes alone are no masks."""
    folder = FOLDERS["is3: is3-plus"]
    root = make(tmp_path / "data", folder)
    put(root, "audio_wav/rain_1.wav")
    write(root / "silent.csv", f"video,audio,label\n{folder.ids[0]},rain_1,non-sounding\n")
    ids = [*folder.ids, f"{folder.ids[0]}+rain_1"]
    put_maps(tmp_path / "maps", ids, ["silence"])
    argv = ["evaluate", "--data", str(root), "--set", "is3-plus", "--maps", str(tmp_path / "maps"), "--quiet"]
    argv += ["--silent", str(root / "silent.csv"), "--negatives", "silence", "--threshold", "0"]
    assert cli.main([*argv, "--protocol", "slavc_extended", "--out", str(tmp_path / "out")]) == 0
    got = json.loads((tmp_path / "out/metrics.json").read_text())
    assert got["sets"]["is3-plus"]["n"] == 7 and got["sets"]["is3-plus"]["n_silent"] == 1
    assert cli.main([*argv, "--protocol", "avsbench_robust", "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert (
        f"set 'is3-plus', sample '{folder.ids[0]}': expected a mask for protocol 'avsbench_robust', got boxes" in error
    )
    assert "Traceback" not in error
