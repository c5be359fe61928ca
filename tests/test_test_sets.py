"""Published test sets in small folders of every layout, and what a check of them tells."""

import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from published_folders import CLASSES, CLIPS, FOLDERS, NUMBERS, PAIRS, TESTING, annotate, make, put
from ssl_fast.cli import main as cli
from ssl_fast.data.annotations import read, weight_map
from ssl_fast.data.datasets import SampleSet
from ssl_fast.data.io.audio import load_audio
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.io.images import load_image
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.test_sets import LAYOUTS, PublishedSet, annotation_file, check
from ssl_fast.evaluation import evaluate, metrics
from ssl_fast.reproducibility import samples_record
from test_annotations import write
from test_multi_source_sets import SETS as multi_source_sets

FRONT_END = FrontEnd(name="tiny", seconds=0.25, hop=256)


SLAVC = FOLDERS["lvs, ez-vsl, slavc: vgg-ss"]


def annotations(folder, where):
    """Those of the folder, with the masks that it has."""
    where.mkdir(exist_ok=True)
    annotate(where / folder.annotations, folder)
    return with_masks(folder, where, read(folder.of, where / folder.annotations))


def with_masks(folder, where, found):
    masks = where / f"{folder.of.replace('-', '_')}_seg.json"
    return found.with_masks(read(folder.of, masks)) if len(folder.files[0]) > 2 else found


def test_every_layout_is_tested():
    tested = {(FOLDERS[name].of.removesuffix("-xml"), FOLDERS[name].layout) for name in TESTING}
    elsewhere = ("vgg-ss-xml", *multi_source_sets)
    assert tested == {(name, program) for name in LAYOUTS for program in LAYOUTS[name] if name not in elsewhere}
    for name in ("vgg-ss-xml", "vggsound-single", "vggsound-duet"):
        assert LAYOUTS["vgg-ss"] == LAYOUTS[name]


@pytest.mark.parametrize("name", TESTING)
@pytest.mark.parametrize("named", [False, True])
def test_layouts(tmp_path, name, named):
    """With and without the name of the layout, with a list in the form of the program."""
    folder = FOLDERS[name]
    root, layout = make(tmp_path, folder), folder.layout if named else None
    assert annotation_file(root, folder.of) == root / folder.annotations
    found = read(folder.of, annotation_file(root, folder.of), ids=root / "list.txt")
    found = with_masks(folder, root, found)
    test = PublishedSet(root, folder.of, found, front_end=FRONT_END, layout=layout)
    assert isinstance(test, SampleSet) and len(test) == 6 and test.has_ground_truth and test.size == 224
    assert test.ids == folder.ids == [sample.id for sample in found.samples] and test.missing == []
    pairs, objects = [f"owl_train_{k}" for k in (7, 7, 8)], [f"00000006249{k}" for k in (0, 0, 1)]
    groups = {"is3": pairs, "is3-plus": pairs, "s4": ["dog_barking/v-1"] * 3, "ms3": ["v-1_0"] * 3}
    groups |= {"vpo-ss": objects, "vpo-ms": objects}
    assert test.image_ids[:3] == groups.get(folder.of, test.ids)[:3]
    if folder.of in ("is3", "is3-plus"):
        assert test.categories == ["owl", "train"] * 3 and test.visible == [frozenset({"owl", "train"})] * 6
    for i, (image, sound, *mask) in enumerate(folder.files[:3]):
        sample = test[i]
        assert torch.equal(sample["image"], load_image(root / image, 224)) and sample["index"] == i
        wave = load_audio(root / sound, sample_rate=16000, seconds=0.25)
        np.testing.assert_array_equal(test.waveform(i), wave)
        assert torch.equal(sample["spectrogram"], FRONT_END.spectrogram(torch.from_numpy(wave))[None])
        truth = test.ground_truth(i)
        np.testing.assert_array_equal(truth, weight_map(found.samples[i].boxes, found.rule))
        assert sorted(set(truth.flat)) == ([0, 0.5, 1] if folder.of == "flickr" else [0, 1])
        if mask:
            np.testing.assert_array_equal(test.mask(i), np.arange(224)[None].repeat(224, 0) < 75)
        else:
            assert test.mask(i) is None
    report = check(root, folder.of, found, layout=layout)
    assert report.ok and report.ids == test.ids


@pytest.mark.parametrize("name", TESTING)
def test_every_file_that_is_missing_is_named(tmp_path, name):
    folder = FOLDERS[name]
    found, root = annotations(folder, tmp_path / "annotations"), tmp_path / "data"
    for file in folder.files[0]:  # so that there are the folders of this layout alone
        put(root, file).unlink()
    report = check(root, folder.of, found, layout=folder.layout)
    files = {file for files in folder.files for file in files}
    for file in files:
        shown = file.replace("some frame", "*")
        assert sum(f"{root / shown}: no such file" in entry for entry in report.missing) == 1
    assert len(report.missing) == len(files) and not report.broken and not report.ok and not report.ids
    with pytest.raises(DataError, match=f"{re.escape(str(root))}: {len(files)} problems: "):
        PublishedSet(root, folder.of, found, front_end=FRONT_END, layout=folder.layout)
    with pytest.raises(DataError, match=f"{re.escape(str(root))}: expected samples, none of the 6 listed has all its"):
        PublishedSet(root, folder.of, found, front_end=FRONT_END, layout=folder.layout, on_missing="list")


def test_layouts_that_cannot_be_told(tmp_path):
    """Two that fit: named, to choose from. None: what was looked for, and what there is."""
    found, root = annotations(SLAVC, tmp_path / "annotations"), tmp_path / "data"
    root.mkdir()
    make(root, SLAVC)
    make(root, FOLDERS["fnac: vgg-ss"])
    message = (
        "expected files of one layout, got those of several, choose by --layout: "
        "slavc: frames/ID.jpg with audio/ID.wav; fnac: frames/ID.png with audio/ID.wav"
    )
    with pytest.raises(DataError, match=re.escape(f"{root}: {message}")):
        check(root, "vgg-ss", found)
    assert check(root, "vgg-ss", found, layout="fnac").ok
    for file, _ in SLAVC.files[1:]:  # one sample of one, six of the other: still two
        (root / file).unlink()
    with pytest.raises(DataError, match=re.escape(message)):
        check(root, "vgg-ss", found)
    (root / SLAVC.files[0][0]).unlink()
    assert check(root, "vgg-ss", found).ok  # of the first the sounds alone are left
    for path in (root / "frames").iterdir():
        path.rename(path.with_suffix(".JPG"))
    message = message.replace("those of several", "no image and its sound, only the one or the other, in several")
    with pytest.raises(DataError, match=re.escape(message)):
        check(root, "vgg-ss", found)

    empty = tmp_path / "empty"
    (empty / "pictures").mkdir(parents=True)
    (empty / "vggss.json").write_text("[]")
    with pytest.raises(DataError) as caught:
        check(empty, "vgg-ss", found)
    start = f"{empty}: expected files of 'abcdefghij0_000030', 'abcdefghij1_000031', "
    assert str(caught.value).startswith(start) and str(caught.value).endswith("; got pictures/, vggss.json")
    assert "ssl-align: VGGSound_img/YTID_START_END/image_050.jpg with VGGSound_aud/YTID_START_END.wav" in str(
        caught.value
    )
    assert "ssl-tie: total_video_frames/ID/125.jpg with total_video_3s_audio/ID.wav" in str(caught.value)
    for folder in ("frames", "audio"):  # of two layouts, with files of none
        (empty / folder).mkdir()
    with pytest.raises(DataError, match="; got audio/, frames/, pictures/, vggss.json$"):
        check(empty, "vgg-ss", found)


def test_annotation_files(tmp_path):
    with pytest.raises(DataError, match="annotations of flickr, annotations or Annotations or anno, got none"):
        annotation_file(tmp_path, "flickr")
    for name in ("anno", "annotations"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="annotations of flickr, .*, got annotations and anno: --annotations"):
        annotation_file(tmp_path, "flickr")
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing there"):
        annotation_file(tmp_path / "nowhere", "flickr")
    with pytest.raises(ValueError, match="set: expected one of vgg-ss, .*s4.*, got 'vgg'"):
        annotation_file(tmp_path, "vgg")


@pytest.mark.parametrize("name", ["fnac: vgg-ss", "ssl-tie: flickr test", "is3", "avsbench: s4"])
def test_samples_that_are_there(tmp_path, name):
    """on_missing="list": the others are named, what is there is as before, and a broken file is still an error."""
    folder = FOLDERS[name]
    root, found = make(tmp_path, folder), annotations(folder, tmp_path / "more")
    whole = PublishedSet(root, folder.of, found, front_end=FRONT_END, on_missing="list")
    assert whole.missing == [] and len(whole) == 6
    lost = [folder.files[1][0], folder.files[4][-1]]
    for file in lost:
        (root / file).unlink()
    with pytest.raises(DataError, match="2 problems: .*: no such file"):
        PublishedSet(root, folder.of, found, front_end=FRONT_END)
    test = PublishedSet(root, folder.of, found, front_end=FRONT_END, on_missing="list")
    there = [0, 2, 3, 5]
    assert test.ids == [folder.ids[i] for i in there] and test.missing == [folder.ids[i] for i in (1, 4)]
    assert test.notes[-1] == f"4 of 6 samples are there; missing are {folder.ids[1]!r}, {folder.ids[4]!r}"
    assert samples_record(test) == {
        "used": 4,
        "listed": 6,
        "missing": test.missing,
        "sha256": hashlib.sha256("\n".join(sorted(test.ids)).encode()).hexdigest(),
    }
    for i, k in enumerate(there):
        assert torch.equal(test[i]["image"], whole[k]["image"])
        np.testing.assert_array_equal(test.ground_truth(i), whole.ground_truth(k))
    report = check(root, folder.of, found)
    assert len(report.missing) == 2 and report.ids == test.ids and not report.broken
    (root / folder.files[0][0]).write_bytes(b"")
    with pytest.raises(DataError, match="1 problem: .*: empty file"):
        PublishedSet(root, folder.of, found, front_end=FRONT_END, on_missing="list")
    assert len(check(root, folder.of, found).broken) == 1
    with pytest.raises(ValueError, match="on_missing: expected one of error, list, got 'skip'"):
        PublishedSet(root, folder.of, found, front_end=FRONT_END, on_missing="skip")


def test_masks_alone_are_the_ground_truth(tmp_path):
    found = annotations(FOLDERS["avsbench: s4"], tmp_path / "annotations")
    make(tmp_path, FOLDERS["avsbench: s4"])
    masks = replace(found, samples=tuple(replace(sample, boxes=None) for sample in found.samples))
    test = PublishedSet(tmp_path, "s4", masks, front_end=FRONT_END)
    assert test.has_ground_truth and test.ground_truth(1).sum() == 75 * 224
    neither = replace(found, samples=tuple(replace(sample, boxes=None, mask=None) for sample in found.samples))
    bare = PublishedSet(tmp_path, "s4", neither, front_end=FRONT_END)
    assert not bare.has_ground_truth
    with pytest.raises(ValueError, match="sample 'dog_barking/v-1/v-1_1': expected boxes or a mask, it has none"):
        bare.ground_truth(0)


def test_extended_sets(tmp_path):
    root = make(tmp_path, FOLDERS["fnac: vgg-ss"])
    rows = f"video,audio,label\n{CLIPS[0]},{CLIPS[1]},non-sounding\nz_000001,z_000001,non-sounding\n"
    found = read("vgg-ss", root / "vggss.json").extended(write(tmp_path / "silent.csv", rows))
    for file in ("frames/z_000001.png", "audio/z_000001.wav"):
        put(root, file)
    test = PublishedSet(root, "vgg-ss", found, front_end=FRONT_END)
    assert test.ids[6:] == [f"{CLIPS[0]}+{CLIPS[1]}", "z_000001+z_000001"] and test.has_ground_truth
    assert test.categories == [*CLASSES, None, None]
    assert test.ground_truth(0).any() and not test.ground_truth(6).any() and not test.ground_truth(7).any()
    assert torch.equal(test[6]["image"], test[0]["image"])
    np.testing.assert_array_equal(test.waveform(6), test.waveform(1))
    (root / "audio/z_000001.wav").unlink()
    test = PublishedSet(root, "vgg-ss", found, front_end=FRONT_END, on_missing="list")
    assert test.missing == ["z_000001+z_000001"] and len(test) == 7 and not test.ground_truth(6).any()


class Grey:
    """A localizer whose map is the image, and that does not listen."""

    def normalize_images(self, images):
        return images.float()

    def normalize_spectrograms(self, spectrograms):
        return spectrograms

    def visual_features(self, images):
        return {"map": torch.nn.functional.avg_pool2d(images.mean(1), 32)}

    def audio_features(self, spectrograms):
        return {"level": spectrograms.mean((1, 2, 3))}

    def maps(self, visual, audio):
        return visual["map"]

    def retrieval(self, visual, audio, similarity):
        return visual["map"].mean((1, 2))[:, None] + audio["level"]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_of_a_published_set(tmp_path, workers):
    found = annotations(FOLDERS["is3"], tmp_path / "annotations").select(PAIRS[:2])
    make(tmp_path, FOLDERS["is3"])
    negative = f"video,audio,label\n{PAIRS[0]},{PAIRS[1]},non-sounding\n"
    sets = {
        "is3": PublishedSet(tmp_path, "is3", found, front_end=FRONT_END),
        "boxes": PublishedSet(
            tmp_path,
            "is3",
            replace(found, samples=tuple(replace(sample, mask=None) for sample in found.samples)).extended(
                write(tmp_path / "silent.csv", negative)
            ),
            front_end=FRONT_END,
        ),
    }
    got = evaluate(Grey(), sets, progress=False, workers=workers, negatives=("silence",), baselines={})
    grey = np.stack([sets["is3"][i]["image"].float().mean(0).numpy() for i in (0, 1)])
    low = grey.reshape(2, 7, 32, 7, 32).mean((2, 4)).astype(np.float32)
    predicted = metrics.top_fraction(metrics.upsample(low, 224))
    boxes = np.zeros((2, 224, 224), np.float32)
    boxes[:, 20:200, 10:100] = 1
    masks = np.zeros((2, 224, 224), np.float32)
    masks[:, :, :75] = 1
    samples = got.samples["is3"]
    np.testing.assert_allclose(samples["iou_top50"], metrics.consensus_iou(predicted, boxes), atol=1e-6)
    np.testing.assert_allclose(samples["iou_top50_mask"], metrics.consensus_iou(predicted, masks), atol=1e-6)
    np.testing.assert_allclose(got.samples["boxes"]["iou_top50"], [*samples["iou_top50"], 0], atol=1e-6)
    assert got["sets"]["is3"]["interactive_images"] == 1
    negative = evaluate(Grey(), {"boxes": sets["boxes"]}, progress=False, negatives=("silence", "offscreen"))
    assert negative["notes"][0].startswith("set boxes: no off-screen sounds, because 1 of 3 samples do not say")
    assert negative["sets"]["boxes"]["n_silent"] == 1 and "n_silent" not in got["sets"]["is3"]


def test_names_that_do_not_fit(tmp_path):
    found = annotations(FOLDERS["ssl-align: flickr test"], tmp_path / "annotations")
    for arguments, message in (
        (("vgg", found), "set: expected one of vgg-ss, .*, got 'vgg'"),
        (("flickr", found, "fnac"), "layout: expected one of slavc, ssl-align, ssl-tie for flickr, got 'fnac'"),
    ):
        with pytest.raises(ValueError, match=message):
            check(tmp_path, *arguments[:2], layout=arguments[2] if len(arguments) > 2 else None)
    make(tmp_path, FOLDERS["ssl-align, frames: vggsound"])
    with pytest.raises(ValueError, match="id '10000130160': expected YTID_SECONDS, as VGG-SS names its clips"):
        check(tmp_path, "vgg-ss", found, layout="ssl-align")
    for name in ("a.jpg", "b.jpg"):
        put(tmp_path, f"frames/{NUMBERS[0]}.mp4/{name}")
    assert check(tmp_path, "flickr", found, layout="ssl-align").broken == [
        f"{tmp_path}/frames/{NUMBERS[0]}.mp4: expected one file of id '{NUMBERS[0]}', got 2: a.jpg, b.jpg"
    ]
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing there"):
        check(tmp_path / "nowhere", "flickr", found)


def test_commands(tmp_path, capsys):
    make(tmp_path, SLAVC)
    (image, _), (_, sound), *_ = SLAVC.files
    argv = ["data", "check", str(tmp_path), "--set", "vgg-ss", "--quiet"]
    assert cli.main(argv) == 0
    assert "6 samples complete, 0 files missing, 0 broken" in capsys.readouterr().out
    (tmp_path / image).unlink()
    assert cli.main(argv) == 1
    out = capsys.readouterr().out
    assert f"missing: {tmp_path / image}: no such file, id '{CLIPS[0]}'" in out
    assert cli.main([*argv, "--on-missing", "list"]) == 0
    assert capsys.readouterr().out == out
    (tmp_path / sound).write_bytes((tmp_path / sound).read_bytes()[:200])
    assert cli.main([*argv, "--on-missing", "list"]) == 1
    assert f"broken: {tmp_path / sound}: truncated" in capsys.readouterr().out
    silent = write(tmp_path / "silent.csv", f"video,audio,label\n{CLIPS[2]},gone_000001,non-sounding\n")
    assert cli.main([*argv, "--negatives", str(silent)]) == 1
    out = capsys.readouterr().out
    assert f"missing: {tmp_path}/audio/gone_000001.wav: no such file, id '{CLIPS[2]}+gone_000001'" in out
    one = write(tmp_path / "one.csv", f"{CLIPS[1]}\n")
    assert cli.main([*argv, "--list", str(one)]) == 1
    assert "0 samples complete, 0 files missing, 1 broken" in capsys.readouterr().out
    gone = write(tmp_path / "gone.csv", f"{CLIPS[0]}\n")  # of which nothing could be evaluated
    assert cli.main([*argv, "--list", str(gone), "--layout", "slavc", "--on-missing", "list"]) == 1
    assert "0 samples complete, 1 files missing, 0 broken" in capsys.readouterr().out
    assert cli.main([*argv, "--annotations", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path), "--layout", "fnac"]) == 2
    assert "--layout: expected with --set" in capsys.readouterr().err


def test_ceilings_command(tmp_path, capsys):
    entries = [{"file": k, "class": "c", "bbox": [[0, 0, 1, side]]} for k, side in (("a", 0.5), ("b", 0.2), ("c", 1))]
    path = write(tmp_path / "vggss.json", entries)
    assert cli.main(["data", "ceilings", "--set", "vgg-ss", "--annotations", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vgg-ss: 3 samples, ground truth by union; in percent"
    # areas of a half, 44 rows of 224, and all: IoU 1, 44/112 and 1/2, beyond 20, 7 and 10 steps of .05
    assert lines[2].split() == ["best", ">=", "66.67", f"{100 * ((20 + 7 + 10) + 3 / 2 - 1 / 2) / 3 / 20:.2f}"]
    assert lines[3].split()[2] == "33.33"
    assert lines[5] == "  note: 1 x whole frame (samples whose ground truth fills the frame stay): 'c'"
    masks = write(tmp_path / "s4.json", [{"image": "a/b/c_1.png", "audio": "a/b.wav", "gt_box": "a/b/c_1.png"}])
    assert cli.main(["data", "ceilings", "--set", "s4", "--annotations", str(masks)]) == 2
    assert "s4.json: expected boxes, got masks" in capsys.readouterr().err
