"""Published test sets in small folders of every layout, and what a check of them tells."""

import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.data.annotations import read, weight_map
from ssl_fast.data.datasets import SampleSet
from ssl_fast.data.io.audio import load_audio
from ssl_fast.data.io.front_ends import FrontEnd
from ssl_fast.data.io.images import load_image
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.test_sets import LAYOUTS, PublishedSet, check
from ssl_fast.evaluation import evaluate, metrics
from test_annotations import write

FRONT_END = FrontEnd(name="tiny", seconds=0.25, hop=256)


def put(root, file):
    """An image, a mask whose left third is white, or a sound, of what its name seeds."""
    path, rng = root / file, np.random.default_rng(zlib.crc32(file.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".wav"):
        soundfile.write(path, rng.uniform(-0.5, 0.5, 8000), 16000)
    elif "gt_" in file:
        pixels = np.zeros((224, 224), np.uint8)
        pixels[:, :75] = 255
        Image.fromarray(pixels).save(path)
    else:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    return path


def annotations(name, folder):
    """Two samples, as the set publishes them."""
    folder.mkdir(exist_ok=True)
    if name == "vgg-ss":
        entry = {"class": "owl hooting", "bbox": [[0.1, 0.2, 0.5, 0.9]]}
        return read(name, write(folder / "v.json", [{"file": f"abcdefghij{k}_000030"} | entry for k in "-_"]))
    if name == "vgg-ss-xml":
        for k in "-_":
            sides = "".join(f"<s>{v}</s>" for v in (0.1, 0.2, 0.5, 0.9))
            write(folder / f"abcdefghij{k}_000030.xml", f"<r><bbox><one>{sides}</one></bbox></r>")
        return read(name, folder)
    if name == "flickr":
        for k in (10000130166, 12):
            sides = "".join(f"<s>{v}</s>" for v in ("label", 10, 20, 130, 255))
            write(folder / f"{k}.xml", f"<r><one><bbox>{sides}</bbox></one></r>")
        return read(name, folder)
    stems = [f"owl_car_7_{k}" for k in ("owl", "car")] if name == "is3" else [f"owl/v-1/v-1_{k}" for k in (1, 2)]
    entries = [
        {
            "image": f"/x/y/{stem}.png",
            "audio": f"/x/y/{stem if name == 'is3' else 'owl/v-1'}.wav",
            "gt_box": [10.0, 20.0, 100.0, 200.0],
        }
        for stem in stems
    ]
    masks = [entry | {"gt_box": f"/x/y/{stem}.png", "offset": 1} for entry, stem in zip(entries, stems)]
    return read(name, write(folder / "b.json", entries)).with_masks(read(name, write(folder / "m.json", masks)))


VGGSS = {
    "slavc": [(f"frames/abcdefghij{k}_000030.jpg", f"audio/abcdefghij{k}_000030.wav") for k in "-_"],
    "fnac": [(f"frames/abcdefghij{k}_000030.png", f"audio/abcdefghij{k}_000030.wav") for k in "-_"],
    "ssl-align": [
        (f"frames/abcdefghij{k}_30000_40000/image_050.jpg", f"audio/abcdefghij{k}_30000_40000.wav") for k in "-_"
    ],
}
FLICKR = (12, 10000130166)
IS3 = ("owl_car_7_owl", "owl_car_7_car")
S4 = [f"owl/v-1/v-1_{k}.png" for k in (1, 2)]
FILES = {  # written out by hand from the description of each layout
    "vgg-ss": VGGSS,
    "vgg-ss-xml": VGGSS,
    "flickr": {
        "slavc": [(f"frames/{k}.jpg", f"audio/{k}.wav") for k in FLICKR][::-1],
        "ssl-align": [(f"frames/{k}.mp4/frame {k}.jpg", f"audio/{k}.wav") for k in FLICKR][::-1],
    },
    "is3": {
        layout: [(f"{folder}/{k}.jpg", f"audio_wav/{k}.wav", f"gt_segmentation/{k}.png") for k in IS3]
        for layout, folder in (("is3", "images"), ("ssl-align", "visual_frames"))
    },
    "s4": {"avsbench": [(f"visual_frames/test/{f}", "audio_wav/test/owl/v-1.wav", f"gt_masks/test/{f}") for f in S4]},
}
CASES = [(name, layout) for name, layouts in FILES.items() for layout in layouts]


def test_every_layout_is_tested():
    assert {name: set(layouts) for name, layouts in LAYOUTS.items()} == {n: set(f) for n, f in FILES.items()}


@pytest.mark.parametrize("name, layout", CASES)
def test_layouts(tmp_path, name, layout):
    root, found = tmp_path / "data", annotations(name, tmp_path / "annotations")
    for files in FILES[name][layout]:
        for file in files:
            put(root, file)
    test = PublishedSet(root, name, found, front_end=FRONT_END, layout=layout)
    assert isinstance(test, SampleSet) and len(test) == 2 and test.has_ground_truth and test.size == 224
    assert test.ids == [sample.id for sample in found.samples]
    assert test.image_ids == {"is3": ["owl_car_7"] * 2, "s4": ["owl/v-1"] * 2}.get(name, test.ids)
    if name == "is3":
        assert test.categories == ["owl", "car"] and test.visible == [frozenset({"owl", "car"})] * 2
    for i, (image, sound, *mask) in enumerate(FILES[name][layout]):
        sample = test[i]
        assert torch.equal(sample["image"], load_image(root / image, 224)) and sample["index"] == i
        wave = load_audio(root / sound, sample_rate=16000, seconds=0.25)
        np.testing.assert_array_equal(test.waveform(i), wave)
        assert torch.equal(sample["spectrogram"], FRONT_END.spectrogram(torch.from_numpy(wave))[None])
        truth = test.ground_truth(i)
        np.testing.assert_array_equal(truth, weight_map(found.samples[i].boxes, found.rule))
        assert truth.max() == (0.5 if name == "flickr" else 1)
        if mask:
            np.testing.assert_array_equal(test.mask(i), np.arange(224)[None].repeat(224, 0) < 75)
        else:
            assert test.mask(i) is None
    report = check(root, name, found, layout=layout)
    assert report.ok and report.ids == test.ids


@pytest.mark.parametrize("name, layout", CASES)
def test_every_file_that_is_missing_is_named(tmp_path, name, layout):
    found = annotations(name, tmp_path / "annotations")
    root = tmp_path / "data"
    root.mkdir()
    report = check(root, name, found, layout=layout)
    for file in {file for files in FILES[name][layout] for file in files}:
        shown = re.sub("frame [0-9]+", "*", file)
        assert sum(f"{root / shown}: no such file" in entry for entry in report.missing) == 1
    assert not report.ok and not report.ids
    with pytest.raises(DataError, match=f"{re.escape(str(root))}: {len(report.missing)} problems: "):
        PublishedSet(root, name, found, front_end=FRONT_END, layout=layout)


def test_masks_alone_are_the_ground_truth(tmp_path):
    found = annotations("s4", tmp_path / "annotations")
    for files in FILES["s4"]["avsbench"]:
        for file in files:
            put(tmp_path, file)
    masks = replace(found, samples=tuple(replace(sample, boxes=None) for sample in found.samples))
    test = PublishedSet(tmp_path, "s4", masks, front_end=FRONT_END)
    assert test.has_ground_truth and test.ground_truth(1).sum() == 75 * 224
    neither = replace(found, samples=tuple(replace(sample, boxes=None, mask=None) for sample in found.samples))
    bare = PublishedSet(tmp_path, "s4", neither, front_end=FRONT_END)
    assert not bare.has_ground_truth
    with pytest.raises(ValueError, match="sample 'owl/v-1/v-1_1': expected boxes or a mask, it has none"):
        bare.ground_truth(0)


def test_extended_sets(tmp_path):
    found = annotations("vgg-ss", tmp_path / "annotations")
    rows = "video,audio,label\nabcdefghij-_000030,abcdefghij__000030,non-sounding\nz_000001,z_000001,non-sounding\n"
    found = found.extended(write(tmp_path / "silent.csv", rows))
    for file in [file for files in VGGSS["fnac"] for file in files] + ["frames/z_000001.png", "audio/z_000001.wav"]:
        put(tmp_path, file)
    test = PublishedSet(tmp_path, "vgg-ss", found, front_end=FRONT_END, layout="fnac")
    assert test.ids[2:] == ["abcdefghij-_000030+abcdefghij__000030", "z_000001+z_000001"] and test.has_ground_truth
    assert test.categories == ["owl hooting"] * 2 + [None] * 2
    assert test.ground_truth(0).any() and not test.ground_truth(2).any() and not test.ground_truth(3).any()
    assert torch.equal(test[2]["image"], test[0]["image"])
    np.testing.assert_array_equal(test.waveform(2), test.waveform(1))


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
    found = annotations("is3", tmp_path / "annotations")
    for files in FILES["is3"]["is3"]:
        for file in files:
            put(tmp_path, file)
    negative = "video,audio,label\nowl_car_7_owl,owl_car_7_car,non-sounding\n"
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
    found = annotations("flickr", tmp_path / "annotations")
    for arguments, message in (
        (("vgg", found), "set: expected one of vgg-ss, .*, got 'vgg'"),
        (("flickr", found, "fnac"), "layout: expected one of slavc, ssl-align for flickr, got 'fnac'"),
        (("vgg-ss", found, "ssl-align"), "id '10000130166': expected YTID_SECONDS, as VGG-SS names its clips"),
    ):
        with pytest.raises(ValueError, match=message):
            check(tmp_path, *arguments[:2], layout=arguments[2] if len(arguments) > 2 else None)
    for name in ("a.jpg", "b.jpg"):
        put(tmp_path, f"frames/10000130166.mp4/{name}")
    assert check(tmp_path, "flickr", found, layout="ssl-align").missing[0] == (
        f"{tmp_path}/frames/10000130166.mp4: expected one file, got 2, id '10000130166'"
    )
    with pytest.raises(DataError, match="nowhere: expected a folder, got nothing there"):
        check(tmp_path / "nowhere", "flickr", found)


def test_commands(tmp_path, capsys):
    annotations("vgg-ss", tmp_path)
    (tmp_path / "v.json").rename(tmp_path / "vggss.json")
    for files in VGGSS["slavc"]:
        for file in files:
            path = put(tmp_path, file)
    argv = ["data", "check", str(tmp_path), "--set", "vgg-ss", "--quiet"]
    assert cli.main(argv) == 0
    assert "2 samples complete, 0 missing, 0 files broken" in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:200])
    (tmp_path / VGGSS["slavc"][0][0]).unlink()
    assert cli.main(argv) == 1
    out = capsys.readouterr().out
    assert f"missing: {tmp_path / VGGSS['slavc'][0][0]}: no such file, id 'abcdefghij-_000030'" in out
    assert f"broken: {path}: truncated" in out
    silent = write(tmp_path / "silent.csv", "video,audio,label\nabcdefghij__000030,gone_000001,non-sounding\n")
    assert cli.main([*argv, "--negatives", str(silent)]) == 1
    out = capsys.readouterr().out
    assert f"missing: {tmp_path}/audio/gone_000001.wav: no such file, id 'abcdefghij__000030+gone_000001'" in out
    one = write(tmp_path / "one.csv", "abcdefghij__000030\n")
    assert cli.main([*argv, "--list", str(one)]) == 1
    assert "0 samples complete, 0 missing, 1 files broken" in capsys.readouterr().out
    assert cli.main([*argv, "--annotations", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert cli.main(["data", "check", str(tmp_path), "--layout", "fnac"]) == 2
    assert "--layout, --negatives, --exclude, --train: expected with --set" in capsys.readouterr().err


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
