"""Evaluation at the size of the frames: against loops over pixels, closed forms, and squares that are the frames."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from PIL import Image

from evaluation_fakes import FakeLocalizer, FakeSet
from published_folders import FOLDERS, make
from ssl_fast.cli.main import main as cli
from ssl_fast.data.annotations import read
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.sample_lists import DataError
from ssl_fast.data.test_sets import PublishedSet
from ssl_fast.evaluation import evaluate, original
from ssl_fast.evaluation.protocols import PROTOCOLS, Protocol, score

SIDE = 56


def twin(low, truth, window, threshold=None):
    """{column: value} of one map (h, w), by definition, over the pixels of the frame."""
    left, top, right, bottom = window
    full = F.interpolate(torch.from_numpy(low)[None, None].double(), (bottom - top, right - left), mode="bilinear")
    values = {
        (top + y, left + x): value for y, row in enumerate(full[0, 0].float().tolist()) for x, value in enumerate(row)
    }
    order = sorted(values, key=lambda pixel: (-values[pixel], pixel))
    objects, constant = int((truth > 0).sum()), low.min() == low.max()

    def iou(predicted):
        hit = sum(float(truth[pixel]) for pixel in predicted)
        return hit / (float(truth.sum(dtype=np.float64)) + sum(truth[pixel] == 0 for pixel in predicted))

    half = -(-truth.size // 2)
    out = {
        "iou_adaptive": iou(order if constant else order[: objects or half]),
        "iou_top50": iou(order if constant else order[:half]),
    }
    row, column = divmod(int(low.argmax()), low.shape[1])
    centre = (top + (row + 0.5) / low.shape[0] * (bottom - top), left + (column + 0.5) / low.shape[1] * (right - left))
    out["pointing"] = float(truth[int(centre[0]), int(centre[1])] > 0 and not constant)
    if threshold is not None:
        above = [pixel for pixel in values if values[pixel] > threshold]
        out |= {"iou_universal": iou(above), "pia": len(above) / truth.size}
    return out


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_score_of_a_part_of_the_frame(backend):
    rng = np.random.default_rng(0)
    cases = [
        ((31, 47), (8, 0, 39, 31)),  # a crop of a wide frame
        ((60, 20), (0, 20, 20, 40)),  # of a high one: half of its pixels are more than it shows
        ((33, 21), (0, 0, 21, 33)),  # a whole frame
    ]
    for (height, width), window in cases:
        truth = rng.integers(0, 3, (5, height, width)).astype(np.float32) / 2  # consensus
        truth[0] = 0
        truth[1, :, window[0] : window[2]] = truth[1, window[1] : window[3]] = 0  # all of it outside, if anything is
        truth[2, 3:9, :] = 1
        maps, noise = (rng.normal(size=(5, 6, 7)).astype(np.float32) for _ in range(2))
        maps[4] = 0.25
        given = None if window == (0, 0, width, height) else window
        options = {"negatives": {"noise": noise}, "threshold": 0.1, "window": given, "backend": backend}
        found = score(Protocol(), maps, truth, **options)["audio_visual"]
        mirrored = (width - window[2], window[1], width - window[0], window[3])
        options |= {"negatives": {"noise": noise[..., ::-1]}, "window": given and mirrored}
        other = score(Protocol(), maps[..., ::-1].copy(), truth[..., ::-1].copy(), **options)["audio_visual"]
        for i in range(5):
            want = twin(maps[i], truth[i], window, 0.1)
            assert found["pia_noise"][i] == other["pia_noise"][i] == twin(noise[i], truth[i], window, 0.1)["pia"]
            for column in want.keys() - {"pia"}:
                assert found[column][i] == pytest.approx(want[column], abs=1e-12), (column, i, window)
            for column in ("iou_universal", "pointing"):  # ties at the border come in another order in the others
                assert other[column][i] == pytest.approx(want[column], abs=1e-12), (column, i, window)
    with pytest.raises(
        ValueError, match=re.escape("window: expected a part of 21 x 33 pixels of ground truth, got (0, 3, 22")
    ):
        score(Protocol(), maps, truth, window=(0, 3, 22, 9))
    with pytest.raises(ValueError, match="window: expected none for 'denseav', whose figures rank all pixels"):
        score(PROTOCOLS["denseav"], maps, truth, window=(0, 3, 20, 9))


def put(root, name, width, height, boxes, *, orientation=1, mask=None):
    """A frame of noise, stored as its EXIF tag has it, its sound, and a mask; returns its annotation."""
    rng = np.random.default_rng(len(name))
    for kind in ("frames", "audio", "masks"):
        (root / kind).mkdir(parents=True, exist_ok=True)
    pixels, exif = rng.integers(0, 256, (height, width, 3), np.uint8), Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(pixels) if orientation == 6 else pixels
    Image.fromarray(np.ascontiguousarray(stored)).save(root / "frames" / f"{name}.png", exif=exif)
    soundfile.write(root / "audio" / f"{name}.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
    entry = {"file": name, "class": name, "bbox": boxes}
    if mask is not None:
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")
        entry["mask"] = f"masks/{name}.png"
    return entry


def ramp(images, spectrograms):
    """Falls from left to right: of k x H pixels the k columns at the left are predicted."""
    return -torch.arange(14.0).expand(len(images), 14, 14)


def scored(root, entries, **reading):
    (root / "annotations.json").write_text(json.dumps(entries))
    test = FolderSet(root, front_end="scenes", size=SIDE, **reading)
    return evaluate(ramp, {"mine": test}, negatives=(), original_size=True, progress=False, baselines={})


def test_closed_forms(tmp_path):
    """Boxes of full height, from column a on, w columns wide: the prediction is columns 0 to w."""
    a, w = 2 / 8, 5 / 8  # wider than half a cell, in which the enlarged ramp is flat
    boxes = [[a, 0, a + w, 1]]
    sizes = {"same": (SIDE, SIDE), "twice": (2 * SIDE, 2 * SIDE), "wide": (5 * SIDE, SIDE), "high": (24, 240)}
    results = scored(tmp_path, [put(tmp_path, name, *size, boxes) for name, size in sizes.items()])
    one, samples = results["sets"]["mine"], results.samples["mine"]
    assert samples["original_iou_adaptive"] == samples["iou_adaptive"] == [pytest.approx((w - a) / (w + a))] * 4
    assert samples["original_iou_top50"] == [pytest.approx((0.5 - a) / (a + w))] * 4
    assert one["original"]["sizes"] == {"n": 4, "smallest": [SIDE, SIDE], "largest": [5 * SIDE, SIDE]}
    assert one["original"]["unreachable"] == 0 and samples["original_reachable"] == [1] * 4
    assert results["mine_original_mean_iou_adaptive"] == one["original"]["model"]["mean_iou_adaptive"]


def test_closed_forms_of_crops(tmp_path):
    """The square is the middle half of frames of 2 : 1, from 1/4 to 3/4 of their width."""
    boxes = {"left": (0, 3 / 8), "middle": (3 / 8, 5 / 8), "wide": (0, 1), "right": (1 / 2, 7 / 8)}
    entries = [put(tmp_path, name, 320, 160, [[start, 0, end, 1]]) for name, (start, end) in boxes.items()]
    results = scored(tmp_path, entries, fit="crop")
    one, samples = results["sets"]["mine"], results.samples["mine"]
    for i, (start, end) in enumerate(boxes.values()):
        stop = 1 / 4 + min(end - start, 1 / 2)  # predicted from 1/4 to there
        both = max(0, min(end, stop) - max(start, 1 / 4))
        assert samples["original_iou_adaptive"][i] == pytest.approx(both / (end - start + stop - 1 / 4 - both))
        both = min(end, 3 / 4) - max(start, 1 / 4)  # half of the frame is all that is seen
        assert samples["original_iou_top50"][i] == pytest.approx(both / (end - start + 1 / 2 - both))
        assert samples["original_reachable"][i] == pytest.approx(both / (end - start))
    assert one["original"]["unreachable"] == 1  # a third of "left"
    for figure in ("ciou_adaptive", "auc_adaptive", "mean_iou_adaptive", "pointing"):
        assert one["original"]["difference"]["model"][figure] == one["original"]["model"][figure] - one["model"][figure]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_command(tmp_path, capsys, fit, monkeypatch):
    """Frames of several sizes, some with masks of another size than theirs, against the loop over pixels; the sample
    whose frame is the square has the same figures twice."""
    monkeypatch.setattr(original, "PIXELS", 5000)  # one or two frames at a time
    root, rng = tmp_path / "mine", np.random.default_rng(5)
    blob = np.add.outer(np.abs(np.arange(60) - 30), np.abs(np.arange(80) - 35)) < 20
    box = [[0.31, 0.22, 0.77, 0.83], [0.05, 0.6, 0.4, 0.95]]
    entries = [
        put(root, "a", SIDE, SIDE, box, mask=blob),
        put(root, "bb", 80, 60, box, mask=blob),
        put(root, "ccc", 60, 90, box[:1], orientation=6, mask=blob),
        put(root, "dddd", 80, 60, box[1:]),
    ]
    (root / "annotations.json").write_text(json.dumps(entries))
    maps = rng.uniform(-1, 1, (4, 7, 7)).astype(np.float32)
    (tmp_path / "maps").mkdir()
    for entry, one in zip(entries, maps):
        np.save(tmp_path / "maps" / f"{entry['file']}.npy", one)
    common = ["evaluate", "--data", root, "--maps", tmp_path / "maps", "--image-size", SIDE, "--fit", fit, "--quiet"]
    common += ["--front-end", "scenes", "--negatives", "", "--protocol", "lvs", "--threshold", "0.2"]
    outs = [tmp_path / "square", tmp_path / "original"]
    for out, resolution in zip(outs, ("square", "original")):
        assert cli([*map(str, common), "--out", str(out), "--resolution", resolution]) == 0
    printed = capsys.readouterr().out
    assert "mine, frames of 3 sizes, 56 x 56 to 60 x 90" in printed and "figures of the protocols lvs" in printed
    plain, found = (json.loads((out / "metrics.json").read_text()) for out in outs)
    assert "original" not in plain["sets"]["mine"]
    one = found["sets"]["mine"]
    assert {key: one[key] for key in plain["sets"]["mine"]} == plain["sets"]["mine"]
    assert found["protocols"] == plain["protocols"]
    with open(outs[1] / "per_sample.csv", newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    sizes = {"a": (SIDE, SIDE), "bb": (80, 60), "ccc": (60, 90), "dddd": (80, 60)}
    for entry, low in zip(entries, maps):
        name, (width, height) = entry["file"], sizes[entry["file"]]
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        window = (left, top, left + short, top + short) if fit == "crop" else (0, 0, width, height)
        truth = np.zeros((height, width), np.float32)
        for x0, y0, x1, y1 in entry["bbox"]:
            truth[int(y0 * height) : int(y1 * height), int(x0 * width) : int(x1 * width)] = 1
        want = {key: value for key, value in twin(low, truth, window, 0.2).items() if key != "pia"}
        if "mask" in entry and name != "a":
            part = Image.fromarray(blob.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
            exact = twin(low, (np.asarray(part) >= 128).astype(np.float32), window, 0.2)
            want |= {f"{key}_mask": exact[key] for key in ("iou_adaptive", "iou_top50", "iou_universal")}
        for column, value in want.items():
            assert float(rows[name][f"original_{column}"]) == pytest.approx(value, abs=1e-6), (name, column)
        if name == "a":
            for column in rows[name]:
                if column.startswith("original_i"):
                    assert rows[name][column] == rows[name][column.removeprefix("original_")] != ""
    assert rows["dddd"]["original_iou_adaptive_mask"] == ""
    centre = one["original"]["difference"]["centre_box"]["mean_iou_adaptive"]
    page = re.sub(r"\s*</?t[hdr][^>]*>\s*", " ", (outs[1] / "report.html").read_text())
    assert f"{centre:+.3f}" in page and "At the frames' own size" in page.replace("&#x27;", "'")
    assert cli(["compare", *map(str, outs)]) == 0
    printed = capsys.readouterr().out
    assert "mine: 4 samples of 4 images" in printed and "not all results have the set mine (original)" in printed
    assert cli(["compare", str(outs[1]), str(outs[1] / "per_sample.csv")]) == 0
    compared = capsys.readouterr().out.partition("mine (original): 4 samples")[2]
    own = one["original"]["model"]["mean_iou_adaptive_mask"]
    assert re.search(rf"mean_iou_adaptive_mask +{own:.3f} +{own:.3f}", compared)


def test_boxes_in_pixels_of_squares(tmp_path):
    """IS3's are of the squashed frame; how Flickr's 256 x 256 came about is not known: square frames alone."""
    root = make(tmp_path / "is3", FOLDERS["is3"])  # frames of 40 x 30, boxes from (10, 20) to (100, 200) of 224
    test = PublishedSet(root, "is3", read("is3", root / "synthetic3240_bbox.json"), front_end="scenes")
    truth, mask, window = test.original(0)
    want = np.zeros((30, 40))
    want[int(20 / 224 * 30) : int(200 / 224 * 30), int(10 / 224 * 40) : int(100 / 224 * 40)] = 1
    assert np.array_equal(truth, want) and mask is None and window == (0, 0, 40, 30)
    for path in (root / "images").iterdir():
        Image.new("RGB", (672, 448)).save(path)
    truth = test.original(0).truth  # 3 x and 2 x exactly
    assert truth[40:400, 30:300].all() and truth.sum() == 360 * 270

    folder = FOLDERS["ez-vsl, slavc: flickr test"]
    root = make(tmp_path / "flickr", folder)
    test = PublishedSet(root, "flickr", read("flickr", root / "Annotations"), front_end="scenes")
    with pytest.raises(DataError, match=r"0\.jpg: expected a square frame .*Annotations are in pixels .*got 40 x 30"):
        evaluate(ramp, {"flickr": test}, negatives=(), original_size=True, progress=False)
    for image, _ in folder.files:
        Image.new("RGB", (512, 512)).save(root / image)
    truth = test.original(0).truth  # boxes 10 and 50 to 130 by 20 to 255, of 256
    assert (truth[40:510, 20:100] == 0.5).all() and (truth[40:510, 100:260] == 1).all()
    assert truth.sum() == 470 * (80 / 2 + 160)


def test_sets_without_frames(capsys, tmp_path):
    with pytest.raises(ValueError, match="image0_a': expected a frame of a size of its own, the set has images alone"):
        evaluate(FakeLocalizer(), {"fake": FakeSet([[(0, 0, 0, 1, 1)]])}, original_size=True, progress=False)
    command = ["evaluate", "--scenes", "--model", "a:b", "--out", str(tmp_path / "out"), "--resolution", "original"]
    assert cli(command) == 2
    assert "--resolution original: expected with --data" in capsys.readouterr().err
