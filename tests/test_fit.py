"""The fit of frames, squash or crop, through sample sets, views, checkpoints, commands and pictures."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from ssl_fast.cli import main as cli
from ssl_fast.data.annotations import read, weight_map
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.io.images import load_image
from ssl_fast.data.test_sets import PublishedSet
from ssl_fast.evaluation import protocols
from ssl_fast.inference.localize import Answer, LocalizationPipeline
from ssl_fast.models import LocalizerConfig, build, checkpoints
from ssl_fast.models.storage import save
from ssl_fast.training.recipes import recipe
from ssl_fast.training.views import Views

BOXES = {"wide": (0.4, 0.25, 0.65, 0.75), "high": (0.25, 0.45, 0.75, 0.6), "edge": (0.0, 0.5, 0.4, 1.0)}
SIZES = {"wide": (160, 80), "high": (90, 120), "edge": (160, 80)}


@pytest.fixture
def data(tmp_path):
    """Black frames that are not square, each with a white box that is annotated and a mask of it, and clips of noise;
    "high" lies on its side and is turned by its EXIF tag."""
    root, entries = tmp_path / "data", []
    for kind in ("frames", "audio", "masks"):
        (root / kind).mkdir(parents=True)
    for name, box in BOXES.items():
        width, height = SIZES[name]
        pixels = np.zeros((height, width, 3), np.uint8)
        left, top, right, bottom = np.rint(np.multiply(box, (width, height) * 2)).astype(int)
        pixels[top:bottom, left:right] = 255
        Image.fromarray(pixels[..., 0]).save(root / "masks" / f"{name}.png")
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "high" else 1
        stored = np.rot90(pixels) if name == "high" else pixels
        Image.fromarray(np.ascontiguousarray(stored)).save(root / "frames" / f"{name}.jpg", quality=95, exif=exif)
        soundfile.write(
            root / "audio" / f"{name}.wav",
            np.random.default_rng(1).uniform(-0.5, 0.5, 160000).astype(np.float32),
            16000,
        )
        entries.append({"file": name, "class": name, "bbox": [box]})
    (root / "annotations.json").write_text(json.dumps(entries))
    masks = [{"file": entry["file"], "mask": f"masks/{entry['file']}.png"} for entry in entries]
    (root / "masks.json").write_text(json.dumps(masks))
    return root


def apart(bright, truth):
    """Pixels where two areas differ, as a share of what either covers."""
    return (bright ^ truth).sum() / (bright | truth).sum()


def test_boxes_and_masks_of_folders_go_the_way_of_the_image(data):
    boxes = FolderSet(data, front_end="scenes", size=112, fit="crop")
    masks = FolderSet(data, front_end="scenes", size=112, fit="crop", annotations=data / "masks.json")
    squashed = FolderSet(data, front_end="scenes", size=112)
    for i, name in enumerate(BOXES):
        bright = boxes.image(i).numpy()[1] > 127
        assert bright.any() and apart(bright, boxes.ground_truth(i) > 0) < 0.08
        assert apart(bright, masks.mask(i)) < 0.08 and apart(bright, masks.ground_truth(i) > 0) < 0.08
        assert apart(bright, squashed.ground_truth(i) > 0) > 0.2, name
        for one in (boxes, masks):
            truth = one.squashed_ground_truth(i)
            assert apart(truth > 0, squashed.ground_truth(i) > 0) < 0.08
    # by hand: columns .3 to .8 of 112, rows .25 to .75
    assert boxes.ground_truth(0)[28:84, 33:89].sum() == boxes.ground_truth(0).sum() == 56 * 56


def test_boxes_of_published_sets_go_the_way_of_the_image(data):
    found = read("vgg-ss", data / "annotations.json")
    crop, squash = (PublishedSet(data, "vgg-ss", found, front_end="scenes", fit=fit) for fit in ("crop", "squash"))
    for i, sample in enumerate(found.samples):
        bright = crop.image(i).numpy()[1] > 127
        assert apart(bright, crop.ground_truth(i) > 0) < 0.05
        expected = weight_map(sample.boxes, "union")
        np.testing.assert_array_equal(crop.squashed_ground_truth(i), expected)
        np.testing.assert_array_equal(squash.ground_truth(i), expected)
    silent = data / "silent.csv"
    silent.write_text("video,audio,label\nwide,high,non-sounding\n")
    extended = read("vgg-ss", data / "annotations.json", negatives=silent)
    assert not PublishedSet(data, "vgg-ss", extended, front_end="scenes", fit="crop").ground_truth(3).any()


def test_fits_and_resamplers_that_do_not_go_together(data):
    with pytest.raises(ValueError, match="fit: expected one of squash, crop, got 'pad'"):
        FolderSet(data, front_end="scenes", size=32, fit="pad")
    with pytest.raises(ValueError, match="resampler: expected one of pillow for crop, got 'torch'"):
        FolderSet(data, front_end="scenes", size=32, fit="crop", resampler="torch")


def test_views_that_are_not_augmented_are_fitted(data):
    model = LocalizerConfig.small("ssl_align", width=4, dimension=8, projection=8)
    for how in ({"fit": "crop"}, {"resampler": "torch_aliased"}):
        one = recipe("ssl_align", model=model, augmentation="simclr", views=("original",), image_size=48, **how)
        views = Views(FolderSet(data, **one.reading), one)
        for i, name in enumerate(BOXES):
            expected = load_image(data / "frames" / f"{name}.jpg", 48, **how)
            assert torch.equal(views[i, 0]["image"][0], expected)


def written(folder, **how):
    """A checkpoint of a narrow net, trained on nothing."""
    torch.manual_seed(2)
    one = recipe("ez_vsl", model=LocalizerConfig.small("ez_vsl", width=4, dimension=8), image_size=224)
    state = {"localizer": build(one.model).state_dict(), "recipe": one.to_dict() | how, "threshold": None}
    save(state, folder / "net.pt")
    return folder / "net.pt"


def test_checkpoints_keep_their_fit(tmp_path):
    found = checkpoints.load(written(tmp_path, fit="crop"))
    expected = {"front_end": "scenes", "size": 224, "fit": "crop", "resampler": "pillow"}
    assert found.reading == expected
    checkpoints.write(found, tmp_path / "again.pt")
    assert checkpoints.load(tmp_path / "again.pt").reading == expected


def test_checkpoints_before_there_were_fits_squash(tmp_path):
    path = written(tmp_path)
    state = torch.load(path, weights_only=True)
    state["recipe"] = {key: value for key, value in state["recipe"].items() if key not in ("fit", "resampler")}
    torch.save(state, path)
    found = checkpoints.load(path)
    assert found.reading == {"front_end": "scenes", "size": 224, "fit": "squash", "resampler": "pillow"}
    checkpoints.write(found, tmp_path / "again.pt")


def test_training_stores_the_fit_that_was_asked_for(data, tmp_path):
    options = ["--epochs", "1", "--batch-size", "2", "--image-size", "32", "--quiet"]
    command = ["train", "--data", str(data), "--method", "ez_vsl", "--out", str(tmp_path / "run"), *options]
    assert cli.main([*command, "--fit", "crop"]) == 0
    reading = checkpoints.load(tmp_path / "run").reading
    assert reading == {"front_end": "scenes", "size": 32, "fit": "crop", "resampler": "pillow"}
    assert cli.main([*command, "--resume"]) == 0


def test_evaluation_takes_the_fit_of_the_checkpoint(data, tmp_path, capsys):
    """Maps of the net on the cropped files, and boxes along with them; by the protocol of LVS boxes that stay."""
    command = ["evaluate", "--data", str(data), "--set", "vgg-ss", "--annotations", str(data / "annotations.json")]
    command += ["--negatives", "", "--quiet", "--protocol", "lvs,ssl_align"]
    results = {}
    for name, options in {"crop": [], "squash": ["--fit", "squash"]}.items():
        weights = ["--weights", str(written(tmp_path, fit="crop")), "--out", str(tmp_path / name)]
        assert cli.main([*command, *weights, *options]) == 0, capsys.readouterr().err
        results[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert results[name]["reading"]["fit"] == name
    weights = ["--weights", str(tmp_path / "net.pt"), "--out", str(tmp_path / "aligned"), "--fit", "squash"]
    assert cli.main([*command, *weights, "--resampler", "torch_aliased", "--front-end", "published/ezvsl"]) == 0
    reading = {"front_end": "published/ezvsl", "size": 224, "fit": "squash", "resampler": "torch_aliased"}
    assert json.loads((tmp_path / "aligned" / "metrics.json").read_text())["reading"] == reading
    found = read("vgg-ss", data / "annotations.json")
    net = checkpoints.load(tmp_path / "net.pt")
    for fit in ("crop", "squash"):
        test = PublishedSet(data, "vgg-ss", found, front_end="scenes", fit=fit)
        with torch.no_grad():
            images = torch.stack([load_image(data / "frames" / f"{name}.jpg", 224, fit) for name in BOXES])
            sounds = torch.stack([torch.from_numpy(test.waveform(i)) for i in range(3)])
            maps = net.maps(images, sounds).numpy()
        moved, stayed = (
            np.stack([truth(i) for i in range(3)]) for truth in (test.ground_truth, test.squashed_ground_truth)
        )
        for kind, truth, other in (("lvs", stayed, moved), ("ssl_align", moved, stayed)):
            run = {"image_ids": list(BOXES)} if kind == "ssl_align" else {}
            expected, apart = (
                protocols.run(kind, maps, one, **run)["figures"]["audio_visual"]["localization"]["mean_iou_top50"]
                for one in (truth, other)
            )
            got = results[fit]["protocols"]["vgg-ss"][kind]["model"]["figures"]["audio_visual"]["localization"]
            assert got["mean_iou_top50"] == pytest.approx(expected, abs=2e-4)
            assert (fit == "crop") == (abs(expected - apart) > 0.002)


def test_maps_and_functions_have_a_fit_too(data, tmp_path, capsys):
    """Maps that are hot where the boxes of the crop lie score fully with --fit crop alone; a sample whose box is cut
    off is told."""
    entries = json.loads((data / "annotations.json").read_text())
    entries[2]["bbox"] = [[0.0, 0.5, 0.2, 1.0]]
    (data / "annotations.json").write_text(json.dumps(entries))
    test = FolderSet(data, front_end="scenes", size=224, fit="crop")
    for i, name in enumerate(BOXES):
        np.save(tmp_path / f"{name}.npy", test.ground_truth(i) + np.float32(1e-3))
    ious = {}
    for fit in ("squash", "crop"):
        command = ["evaluate", "--data", data, "--maps", tmp_path, "--fit", fit, "--negatives", "", "--quiet"]
        assert cli.main([str(one) for one in (*command, "--front-end", "scenes", "--out", tmp_path / fit)]) == 0
        table = json.loads((tmp_path / fit / "metrics.json").read_text())
        ious[fit] = table["sets"]["data"]["model"]["mean_iou_adaptive"]
        told = "set data: 1 of 3 samples have no ground truth in the crop: 'edge'" in capsys.readouterr().out
        assert told == (fit == "crop")
    assert ious["crop"] == pytest.approx(2 / 3, abs=1e-6) and ious["squash"] < 0.6


def test_localization_sees_the_crop_and_says_where_it_lies(data, tmp_path):
    found = checkpoints.load(written(tmp_path, fit="crop"))
    pipeline = LocalizationPipeline(found, threshold=0.0)
    sound = np.zeros(found.front_end.samples, np.float32)
    for name, (width, height) in SIZES.items():
        path = data / "frames" / f"{name}.jpg"
        answer = pipeline.localize(pipeline.read_image(path), sound)
        with torch.no_grad():
            expected = found.maps(load_image(path, 224, "crop")[None], torch.from_numpy(sound)[None])[0]
        np.testing.assert_allclose(answer.audio_visual, expected, atol=1e-6)
        short = min(width, height)
        middle = [(side - short) / 2 / side for side in (width, height)]
        assert answer.box == pytest.approx((*middle, 1 - middle[0], 1 - middle[1]), abs=0.005)


def test_pictures_and_scores_of_a_crop_lie_in_its_part_of_the_image():
    image = np.full((224, 448, 3), 100, np.uint8)
    hot = np.zeros((7, 7), np.float32)
    hot[1, 5] = 1
    answer = Answer(image, hot, hot, 0.5, ("a", "b"), (0.25, 0.0, 0.75, 1.0))
    scores = answer.scores()
    assert (scores["x"], scores["y"]) == pytest.approx((0.25 + 0.5 * 5.5 / 7, 1.5 / 7))
    Answer(image[:1], hot, hot, 0.5, ("a", "b"), (0.499, 0.0, 0.501, 1.0)).panels()  # thinner than a pixel
    picture = answer.panels(1.0, (0.0, 1.0))[0].picture
    grey = np.abs(picture.astype(int) - 80).max(2) <= 1
    assert grey[:, :112].all() and grey[:, 336:].all()  # what was not seen
    rows, columns = np.nonzero(~grey)
    assert abs(columns.mean() - 448 * scores["x"]) < 4 and abs(rows.mean() - 224 * scores["y"]) < 4
