"""Predictors that never hear, against closed forms and scipy."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from ssl_fast.evaluation import BASELINES, baselines, metrics


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_objectness_equals_scipy(images):
    got = baselines.objectness(images)
    size = (40 * 56) ** 0.5
    fine, coarse = 3 * size / 112, 0.07 * size
    for image, plane in zip(images.numpy(), got.numpy()):
        grey = image.astype(np.float64).mean(0) / 255
        detail = grey - ndimage.gaussian_filter(grey, fine, mode="nearest", radius=int(np.ceil(4 * fine)))
        energy = ndimage.gaussian_filter(detail**2, coarse, mode="nearest", radius=int(np.ceil(4 * coarse)))
        np.testing.assert_allclose(plane, energy**0.5, atol=1e-5)


def test_objectness_finds_the_patterned_patch_and_not_the_smooth_one():
    image = torch.full((1, 3, 112, 112), 128, dtype=torch.uint8)
    image[:, :, 10:40, 10:40] = 200  # a smooth patch
    image[:, :, 60:96:4, 60:96] = 255  # stripes
    image[:, :, 62:96:4, 60:96] = 0
    y, x = divmod(int(baselines.objectness(image)[0].argmax()), 112)
    assert 60 <= y < 96 and 60 <= x < 96
    assert baselines.objectness(image[:, :, :9, :9]).max() < 1e-6  # nothing in it: zero, not noise


@pytest.mark.parametrize("shape", [(16, 16), (20, 30)])
def test_centre_box_gives_the_centred_box_of_any_size(shape):
    height, width = shape
    maps = baselines.centre_box(torch.zeros(2, 3, height, width, dtype=torch.uint8)).numpy()
    for a in range(1, 10):
        border = height * a // 20, width * a // 20
        if border[0] * width != border[1] * height:
            continue  # not the image's aspect
        box = np.zeros(shape, bool)
        box[border[0] : height - border[0], border[1] : width - border[1]] = True
        truth = np.broadcast_to(box, (2, *shape))
        np.testing.assert_array_equal(metrics.adaptive(maps, truth), truth)


def test_whole_image_predicts_all_and_points_nowhere(images):
    full = metrics.upsample(baselines.whole_image(images), (40, 56))
    truth = np.ones((5, 40, 56))
    truth[:, 10:] = 0
    assert metrics.top_fraction(full).all() and metrics.adaptive(full, truth).all()
    np.testing.assert_allclose(metrics.consensus_iou(metrics.adaptive(full, truth), truth), 10 / 40)
    assert not metrics.pointing(baselines.whole_image(images), truth).any()


def test_random_maps_depend_on_image_and_seed_alone(images):
    maps = baselines.random(images)
    assert maps.shape == (5, 7, 7) and maps.min() >= 0 and maps.max() < 1
    torch.testing.assert_close(baselines.random(images[[3, 1]]), maps[[3, 1]], rtol=0, atol=0)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(baselines.random(channels_last), maps, rtol=0, atol=0)
    assert (baselines.random(images, seed=1) != maps).all()
    assert len({m.numpy().tobytes() for m in maps}) == 5
    many = torch.arange(400, dtype=torch.uint8).view(-1, 1, 1, 1).expand(400, 3, 1, 1).clone()
    many[:, 1] = (torch.arange(400) // 256).view(-1, 1, 1)
    assert baselines.random(many).mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 400 / 49) ** 0.5)


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_points_at_two_places_of_one_image(name, images):
    """Whatever the sound: two objects that do not overlap cannot both hold the maximum."""
    maps = BASELINES[name](images.repeat_interleave(2, 0))
    np.testing.assert_array_equal(maps[::2], maps[1::2])
    truth = np.zeros((10, 40, 56), np.float32)
    truth[::2, :, :28] = truth[1::2, :, 28:] = 1
    ids = [f"image {i // 2}" for i in range(10)]
    assert metrics.interactive_pointing(metrics.pointing(maps, truth), ids) == 0


@pytest.mark.parametrize("name", BASELINES)
def test_wrong_images_say_what_came(name):
    with pytest.raises(TypeError, match=r"images: expected uint8 \(B, 3, H, W\), got torch.float32 \(1, 3, 8, 8\)"):
        BASELINES[name](torch.zeros(1, 3, 8, 8))
    with pytest.raises(TypeError, match=r"got torch.uint8 \(3, 8, 8\)"):
        BASELINES[name](torch.zeros(3, 8, 8, dtype=torch.uint8))
    assert len(BASELINES[name](torch.zeros(0, 3, 8, 8, dtype=torch.uint8))) == 0
