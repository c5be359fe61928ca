import numpy as np
import pytest
import torch
from torch.nn.functional import pad

from ssl_fast import augmentation


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_shifts_are_windows_of_the_mirrored_image_or_their_flip():
    images = torch.randint(0, 256, (40, 3, 24, 36), dtype=torch.uint8)
    out = augmentation.shift_and_flip(images, seeded(0))
    assert out.shape == images.shape and out.dtype == torch.uint8
    seen = set()
    for image, got in zip(images, out):
        wide = pad(image.float(), (3, 3, 2, 2), mode="reflect").to(torch.uint8)  # a twelfth of 36 and of 24
        windows = {(dy, dx): wide[:, dy : dy + 24, dx : dx + 36] for dy in range(5) for dx in range(7)}
        found = {(*place, False) for place, window in windows.items() if torch.equal(window, got)}
        found |= {(*place, True) for place, window in windows.items() if torch.equal(window.flip(2), got)}
        assert len(found) == 1
        seen |= found
    assert len(seen) > 20 and {flip for _, _, flip in seen} == {False, True}


def test_roll_is_circular_in_time_and_leaves_frequencies_alone():
    x = torch.randn(30, 1, 5, 8)
    out = augmentation.roll(x, seeded(0))
    shifts = []
    for a, b in zip(x, out):
        found = [k for k in range(8) if np.array_equal(np.roll(a.numpy(), -k, axis=2), b.numpy())]
        assert len(found) == 1
        shifts += found
    assert len(set(shifts)) > 4


def test_equivariance_does_the_same_to_images_and_to_maps():
    transform = augmentation.Equivariance(4, seeded(3))
    maps = torch.rand(4, 1, 16, 16)
    both = transform(maps.expand(4, 3, 16, 16))
    assert torch.equal(both[:, 1:2], transform(maps))
    matrix = transform.matrices.double()
    zoom = matrix[:, :, :2].det().abs().sqrt()  # 1, or 2 where the content is halved
    assert torch.allclose(zoom, zoom[0].expand(4)) and min(abs(zoom[0] - 1), abs(zoom[0] - 2)) < 1e-6
    angles = torch.rad2deg(torch.atan2(matrix[:, 1, 1] * 0 - matrix[:, 0, 1], matrix[:, 1, 1]))
    assert angles.abs().max() <= 30 and angles.unique().numel() == 4


def test_draws_follow_their_generator():
    images, sounds = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8), torch.randn(8, 1, 4, 9)

    def draw(seed):
        generator = seeded(seed)
        return (augmentation.shift_and_flip(images, generator), augmentation.roll(sounds, generator),
                augmentation.Equivariance(8, generator).matrices)  # fmt: skip

    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(draw(5), draw(5)))
    assert not any(torch.equal(a, b) for a, b in zip(draw(5), draw(6)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(12, 12), (5, 40)])
def test_small_images_shift_as_far_as_they_can(size):
    images = torch.randint(0, 256, (6, 3, *size), dtype=torch.uint8)
    assert augmentation.shift_and_flip(images, seeded(0)).shape == images.shape
