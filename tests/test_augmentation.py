import colorsys
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.ndimage import gaussian_filter, map_coordinates
from torch.nn.functional import pad
from torchaudio.functional import mask_along_axis

from ssl_fast.data import transforms as augmentation
from ssl_fast.data.transforms import colour_jitter, gaussian_blur, greyscale, horizontal_flip, random_resized_crop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("vertical", [False, True])
def test_shifts_are_windows_of_the_mirrored_image_or_their_flip(vertical):
    images = torch.randint(0, 256, (60, 3, 24, 36), dtype=torch.uint8)
    out = augmentation.shift_and_flip(images, seeded(0), vertical=vertical)
    assert out.shape == images.shape and out.dtype == torch.uint8
    flips = [(), (2,), (1,), (1, 2)] if vertical else [(), (2,)]
    seen = set()
    for image, got in zip(images, out):
        wide = pad(image.float(), (3, 3, 2, 2), mode="reflect").to(torch.uint8)  # a twelfth of 36 and of 24
        windows = {(dy, dx): wide[:, dy : dy + 24, dx : dx + 36] for dy in range(5) for dx in range(7)}
        found = {
            (*place, flip) for place, window in windows.items() for flip in flips if torch.equal(window.flip(flip), got)
        }
        assert len(found) == 1
        seen |= found
    assert len(seen) > 20 and {flip for _, _, flip in seen} == set(flips)


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


def bilinear(size, wanted):
    """(wanted, size) weights of bilinear interpolation without antialiasing: centres at halves, edges repeated."""
    at = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    return np.stack([np.interp(at.clip(0, size - 1), np.arange(size), unit) for unit in np.eye(size)], 1)


def resized(x, side):
    weights = bilinear(x.shape[-1], side)
    return weights @ x @ weights.T


def test_the_released_transform_of_ssl_tie():
    """Against warpAffine by the matrix of getRotationMatrix2D, as OpenCV documents them, and two resizings."""
    images, maps = torch.rand(3, 2, 224, 224), torch.rand(3, 1, 14, 14)
    seen = set()
    for seed in range(8):
        transform = augmentation.ReleasedEquivariance(3, seeded(seed))
        draw = seeded(seed)
        degrees = torch.randint(-30, 31, (3,), generator=draw).double().numpy()
        flip, half = (torch.rand(2, generator=draw) < 0.5).tolist()
        seen.add((flip, half))
        scale = 0.5 if half else 1.0
        for x, side in ((images, 112), (maps, 7)):
            got = transform(x)
            assert got.shape[2:] == ((side, side) if half else x.shape[2:])
            for one, turned, angle in zip(x.double().numpy(), got.numpy(), np.radians(degrees)):
                a, b = scale * np.cos(angle), scale * np.sin(angle)
                matrix = np.array([[a, b, (1 - a) * 112 - b * 112], [-b, a, b * 112 + (1 - a) * 112], [0, 0, 1]])
                y, x_ = np.indices((224, 224))
                from_x, from_y, _ = np.linalg.inv(matrix) @ np.stack([x_.ravel(), y.ravel(), np.ones(224 * 224)])
                for channel, result in zip(one, turned):
                    full = resized(channel, 224)
                    warped = map_coordinates(full, [from_y, from_x], order=1, mode="grid-constant").reshape(224, 224)
                    expected = resized(warped, got.shape[-1])
                    np.testing.assert_allclose(result, expected[:, ::-1] if flip else expected, atol=2e-4)
    assert len(seen) == 4


def test_the_released_transform_shrinks_content_twice():
    white, halved = torch.ones(1, 3, 224, 224), 0
    for seed in range(10):
        transform = augmentation.ReleasedEquivariance(1, seeded(seed), degrees=0)
        got = transform(white)
        if got.shape[-1] == 112:
            halved += 1
            rows, columns = np.nonzero(got[0, 0].numpy() > 0.5)
            assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 56 and abs(rows.mean() - 55.5) <= 0.5
        else:
            assert got[0, 0, 1:, 1:].min() > 0.99
    assert 2 <= halved <= 8


def test_draws_follow_their_generator():
    images, sounds = torch.randint(0, 256, (8, 3, 24, 24), dtype=torch.uint8), torch.randn(8, 1, 4, 9)

    def draw(seed):
        generator = seeded(seed)
        return (
            augmentation.shift_and_flip(images, generator),
            augmentation.roll(sounds, generator),
            augmentation.Equivariance(8, generator).matrices,
        )

    before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(draw(5), draw(5)))
    assert not any(torch.equal(a, b) for a, b in zip(draw(5), draw(6)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [(12, 12), (5, 40)])
def test_small_images_shift_as_far_as_they_can(size):
    images = torch.randint(0, 256, (6, 3, *size), dtype=torch.uint8)
    assert augmentation.shift_and_flip(images, seeded(0)).shape == images.shape


AUGMENTATIONS = [random_resized_crop, horizontal_flip, colour_jitter, greyscale, gaussian_blur]


def batch(dtype=torch.uint8, n=64, size=32):
    values = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (n, 3, size, size), np.uint8))
    return values if dtype == torch.uint8 else (values / 255).to(dtype)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_seed_decides_everything(augment, dtype):
    before = torch.get_rng_state()
    x = batch(dtype)
    kept = x.clone()
    a, b, c = (augment(x, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.dtype == dtype and a.shape == x.shape and torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), before)
    if dtype != torch.uint8:
        assert a.min() >= -1e-6 and a.max() <= 1 + 1e-6


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_integers_and_floats_agree(augment):
    x = batch()
    whole, real = augment(x, seeded(1)), augment(x / 255, seeded(1))
    assert (whole / 255 - real).abs().max() <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_empty_and_bad_batches(augment):
    assert augment(batch(n=0), seeded()).shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match=r"images: expected \(B, 3, H, W\), got \(3, 8, 8\)"):
        augment(torch.zeros(3, 8, 8), seeded())
    with pytest.raises(TypeError, match="images: expected uint8 or float, got torch.int64"):
        augment(torch.zeros(1, 3, 8, 8, dtype=torch.int64), seeded())


def test_flips():
    x = batch(n=400, size=4)
    got = horizontal_flip(x, seeded())
    same, flipped = (got == x).flatten(1).all(1), (got == x.flip(3)).flatten(1).all(1)
    assert torch.equal(same, ~flipped) and 150 < flipped.sum() < 250
    assert torch.equal(horizontal_flip(x, seeded(), p=1), x.flip(3))
    assert torch.equal(horizontal_flip(x, seeded(), p=0), x)


def test_crops_are_boxes_of_the_asked_area_and_aspect():
    """Of a ramp, linear in x and y, the crop is a ramp again, whose slopes and level tell the box."""
    n, size = 300, 64
    position = (torch.arange(size) + 0.5) / size
    ramp = torch.stack([position.expand(size, size), position[:, None].expand(size, size), torch.zeros(size, size)])
    got = random_resized_crop(ramp.expand(n, -1, -1, -1), seeded(), scale=(0.5, 0.8), ratio=(0.8, 1.25))
    inner = slice(4, size - 4)  # beyond the outermost pixel centres the ramp is flat
    across, down = got[:, 0, :, inner].mean(1), got[:, 1, inner].mean(2)
    width, height = ((line[:, -1] - line[:, 0]) / (size - 9) * size for line in (across, down))
    assert (got[:, :2, inner, inner].diff(dim=-1)[:, 1].abs().max()) < 1e-5  # neither sheared nor turned
    area, aspect = width * height, width / height
    assert area.min() > 0.499 and area.max() < 0.801 and area.max() - area.min() > 0.28
    assert aspect.min() > 0.799 and aspect.max() < 1.251 and aspect.max() / aspect.min() > 1.45
    left, top = across.mean(1) - width / 2, down.mean(1) - height / 2
    for start, side in ((left, width), (top, height)):
        assert start.min() > -1e-4 and (start + side).max() < 1 + 1e-4
        assert (start / (1 - side)).std() == pytest.approx(12**-0.5, rel=0.15)  # uniform


def test_a_crop_of_everything_changes_nothing():
    x = batch()
    assert torch.equal(random_resized_crop(x, seeded(), scale=(1, 1)), x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"scale": (0, 1)}, r"scale: expected 0 < low <= high <= 1, got \(0, 1\)"),
        ({"scale": (0.5, 1.5)}, r"scale: .* got \(0.5, 1.5\)"),
        ({"ratio": (2, 1)}, r"ratio: expected 0 < low <= high, got \(2, 1\)"),
    ],
)
def test_bad_crops(change, message):
    with pytest.raises(ValueError, match=message):
        random_resized_crop(batch(), seeded(), **change)


def test_greyscale():
    x = batch(n=400, size=4)
    got = greyscale(x, seeded())
    changed = (got != x).flatten(1).any(1)
    assert 50 < changed.sum() < 110
    r, g, b = x[changed].double().unbind(1)
    expected = 0.299 * r + 0.587 * g + 0.114 * b
    assert (got[changed].double() - expected[:, None]).abs().max() <= 0.5 + 1e-3


def only(**strengths):
    return {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "p": 1} | strengths


def test_jitter_of_nothing_changes_nothing():
    x = batch()
    assert torch.equal(colour_jitter(x, seeded(), **only()), x)
    assert torch.equal(colour_jitter(x, seeded(), p=0), x)


def test_brightness_contrast_and_saturation_are_blends():
    """Each image is a blend of itself and of black, its mean grey, its own grey, by a factor in [.7, 1.3]."""
    x = batch(torch.float32) * 0.4 + 0.3  # nothing is clipped
    luma = torch.einsum("c,bchw->bhw", augmentation._GREY, x)[:, None]
    towards = {
        "brightness": torch.zeros_like(x),
        "contrast": luma.mean((2, 3), keepdim=True).expand_as(x),
        "saturation": luma.expand_as(x),
    }
    for name, other in towards.items():
        got = colour_jitter(x, seeded(), **only(**{name: 0.3}))
        factor = ((got - other) * (x - other)).sum((1, 2, 3)) / ((x - other) ** 2).sum((1, 2, 3))
        torch.testing.assert_close(got, other + factor[:, None, None, None] * (x - other), atol=1e-5, rtol=0)
        assert 0.699 < factor.min() < 0.75 and 1.25 < factor.max() < 1.301


def test_hue_is_turned_in_hsv():
    x = batch(torch.float32, size=6)
    x[:, :, 0] = x[:, :1, 0]  # grey, without hue
    x[:, 1, 1] = x[:, 0, 1]  # two channels alike
    got, turns = colour_jitter(x, seeded(), **only(hue=0.5)), []
    for before, after in zip(x.flatten(2).double(), got.flatten(2).double()):
        hsv = [[colorsys.rgb_to_hsv(*pixel.tolist()) for pixel in y.T] for y in (before, after)]
        turns.append((hsv[1][20][0] - hsv[0][20][0]) % 1)
        expected = [colorsys.hsv_to_rgb((h + turns[-1]) % 1, s, v) for h, s, v in hsv[0]]
        np.testing.assert_allclose(after.T, expected, atol=2e-5)
    assert min(turns) < 0.1 and max(turns) > 0.9 and any(0.4 < turn < 0.6 for turn in turns)


def test_jitter_is_that_of_torchvision_on_pillow_images():
    """ColorJitter on PIL images as documented: ImageEnhance's Brightness, Contrast and Color, and the hue channel of
    HSV shifted, in a random order. Eight bits after each step leave some levels of difference."""
    smooth = gaussian_filter(np.random.default_rng(1).uniform(0, 255, (40, 24, 24, 3)), (0, 2, 2, 0))
    lowest, highest = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    pixels = ((smooth - lowest) / (highest - lowest) * 255).astype(np.uint8)
    strengths = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    got = colour_jitter(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), seeded(), p=1, **strengths)
    draw = seeded()
    torch.rand(40, generator=draw)
    draws, orders = torch.rand(40, 4, generator=draw) * 2 - 1, torch.rand(40, 4, generator=draw).argsort(1)
    assert len({tuple(order.tolist()) for order in orders}) > 15
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    apart = []
    for one, amounts, order, result in zip(pixels, draws.tolist(), orders.tolist(), got.numpy()):
        image = Image.fromarray(one)
        for kind in order:
            if kind < 3:
                image = enhancers[kind](image).enhance(1 + 0.4 * amounts[kind])
            else:
                hue, saturation, value = image.convert("HSV").split()
                turned = (np.asarray(hue).astype(int) + round(0.1 * amounts[3] * 255)) % 256
                hue = Image.fromarray(turned.astype(np.uint8))
                image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        apart.append(np.abs(np.asarray(image).astype(int) - result.transpose(1, 2, 0)))
    assert np.mean(apart) < 1.5 and np.max(apart) < 12


def test_the_grey_of_moco_v1_comes_before_its_jitter():
    """Jitter of grey leaves it grey and changes it; grey of jitter has other levels."""
    x = batch(torch.float32, n=40, size=8)
    policy, draw = augmentation.POLICIES["moco_v1"], seeded(3)
    grey = greyscale(x, draw, 0.2)
    torch.testing.assert_close(policy.colours(x, seeded(3)), colour_jitter(grey, draw, **policy.jitter))


def test_random_resized_crops_are_cut_and_then_resized():
    """As torchvision crops a PIL image and resizes it, bilinear: what lies beside the box does not shine in."""
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    policy = augmentation.POLICIES["moco_v2"]
    for seed in range(10):
        geometry = policy.geometry(120, 90, 32, seeded(seed))
        left, top, right, bottom = np.rint(np.multiply(geometry.box, (120, 90, 120, 90))).astype(int)
        expected = Image.fromarray(frame[top:bottom, left:right]).resize((32, 32), Image.Resampling.BILINEAR)
        expected = np.asarray(expected)[:, ::-1] if geometry.flip else np.asarray(expected)
        got = policy.square(frame, 32, seeded(seed)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(got, expected)


def test_images_have_draws_of_their_own():
    x = batch()[:1].expand(16, -1, -1, -1)
    for augment in (random_resized_crop, lambda *a: colour_jitter(*a, p=1)):
        assert len({one.numpy().tobytes() for one in augment(x, seeded())}) == 16


# ---------------------------------------------------------------------------------------------------------------------
# Blur


def test_blur_is_a_gaussian_convolution():
    x = batch(torch.float32, n=3, size=20)
    got = gaussian_blur(x, seeded(), sigma=(1.3, 1.3), p=1)
    radius = 6  # four times sigma, rounded up
    expected = gaussian_filter(x.double().numpy(), 1.3, mode="nearest", truncate=radius / 1.3, axes=(2, 3))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # one pixel by its definition
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.3**2)) for i in range(-6, 7) for j in range(-6, 7)}
    total = sum(w * x[1, 2, min(max(2 + i, 0), 19), min(max(17 + j, 0), 19)].item() for (i, j), w in weights.items())
    assert got[1, 2, 2, 17].item() == pytest.approx(total / sum(weights.values()), abs=1e-6)


def test_blurs_have_widths_of_their_own():
    """The spread of a blurred point, across and down, is sigma."""
    point = torch.zeros(400, 3, 33, 33)
    point[:, :, 16, 16] = 1
    got = gaussian_blur(point, seeded(), p=0.5)
    blurred = (got != point).flatten(1).any(1)
    assert 160 < blurred.sum() < 240
    offset = torch.arange(33.0) - 16
    spread = [(got[:, 1].sum(axis) * offset**2).sum(1).sqrt() for axis in (1, 2)]
    torch.testing.assert_close(*spread)
    wide = spread[0][spread[0] > 0.5]  # narrower ones are hardly sampled
    assert wide.max() < 2 and wide.min() < 0.6 and wide.max() > 1.9
    assert wide.mean() == pytest.approx(1.25, abs=0.1)  # uniform between


def test_blur_keeps_constants_and_works_on_small_images():
    x = torch.full((4, 3, 5, 2), 77, dtype=torch.uint8)
    assert torch.equal(gaussian_blur(x, seeded(), p=1), x)


# ---------------------------------------------------------------------------------------------------------------------
# Masks


def stripe(cells):
    """(first, width) of the true cells of a line, which must be contiguous; (None, 0) of none."""
    (found,) = np.nonzero(cells)
    assert len(found) == 0 or found[-1] - found[0] + 1 == len(found)
    return (int(found[0]), len(found)) if len(found) else (None, 0)


def stripes(masks, n=800, shape=(257, 200), silence=-1.3):
    """Of each of n masked spectrograms: (first, width) of its frequencies and of its times; checks all other cells."""
    x = 1 + torch.rand(n, 1, *shape)  # no cell has the value of a mask
    value = silence if masks.value is None else masks.value
    kept = x.clone()
    got = masks(x, seeded(), silence)
    assert torch.equal(x, kept) and got.shape == x.shape
    found = []
    for before, after in zip(x[:, 0].numpy(), got[:, 0].numpy()):
        changed = before != after
        assert (after[changed] == np.float32(value)).all()
        bands, frames = changed.all(1), changed.all(0)
        assert np.array_equal(changed, bands[:, None] | frames)
        found.append((stripe(bands), stripe(frames)))
    return found


def test_spec_augment():
    found = stripes(augmentation.MASKS["ssl_tie"], n=1500, shape=(64, 670))
    assert np.mean([b[1] == f[1] == 0 for b, f in found]) == pytest.approx(0.2, abs=0.04)
    for kind, most, size in ((0, 34, 64), (1, 179, 670)):
        widths = np.array([one[kind][1] for one in found if one[0][1] or one[1][1]])
        assert widths.max() == most and widths.mean() == pytest.approx(most / 2, rel=0.06)
        starts = np.array([one[kind][0] / (size - one[kind][1]) for one in found if one[kind][1]])
        assert starts.min() < 0.02 and starts.max() > 0.98 and starts.mean() == pytest.approx(0.5, abs=0.04)


def test_spec_augment_is_that_of_torchaudio():
    """Widths and starts of torchaudio's masks with the parameters of SSL-TIE's program."""
    masks = replace(augmentation.MASKS["ssl_tie"], p=1.0)
    got, theirs = stripes(masks, n=1500, shape=(64, 300)), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(1500):
            x = mask_along_axis(torch.ones(1, 64, 300), 180, 0.0, 2)
            x = mask_along_axis(x, 35, 0.0, 1)[0] == 0
            theirs.append((stripe(x.all(1).numpy()), stripe(x.all(0).numpy())))
    for kind, size in ((0, 64), (1, 300)):
        ours, other = ([one[kind] for one in found] for found in (got, theirs))
        for of in (lambda one: one[1], lambda one: one[0] / size):
            a, b = (np.quantile([of(one) for one in found if one[1]], (0, 0.2, 0.5, 0.8, 1)) for found in (ours, other))
            np.testing.assert_allclose(a, b, atol=max(0.1, 0.08 * b.max()))


def test_masks_of_fnac_lie_within_unless_as_released():
    for name, idle in (("fnac", 0.1), ("fnac_released", 0.1 + 0.9 * 57 / 257)):
        found = stripes(augmentation.MASKS[name])
        assert {f[1] for _, f in found} | {b[1] for b, _ in found} == set(range(10))
        assert np.mean([f[1] == 0 for _, f in found]) == pytest.approx(idle, abs=0.035)
        last = max(b[0] + b[1] for b, _ in found if b[1])
        assert last <= 199 + 9 if name == "fnac_released" else last > 250  # starts end with the 200 frames


# ---------------------------------------------------------------------------------------------------------------------
# Policies


def test_the_crop_of_ez_vsl_is_one_of_the_frame_with_a_shorter_side_of_246():
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.uniform(0, 255, (300, 500, 3)), (3, 3, 0))
    frame = np.interp(smooth, (smooth.min(), smooth.max()), (0, 255)).astype(np.uint8)
    whole = np.asarray(Image.fromarray(frame).resize((410, 246), Image.Resampling.BICUBIC))
    generator, places, flips = seeded(), [], 0
    for _ in range(200):
        geometry = augmentation.POLICIES["ez_vsl"].geometry(500, 300, 224, generator)
        left, top = geometry.box[0] * 410, geometry.box[1] * 246
        places.append((round(left), round(top)))
        assert abs(left - places[-1][0]) < 1e-6 and abs(top - places[-1][1]) < 1e-6  # whole pixels of the resized frame
        if len(places) <= 20:
            x, y = places[-1]
            expected = whole[y : y + 224, x : x + 224]
            expected = expected[:, ::-1] if geometry.flip else expected
            got = geometry.image(frame, 224).permute(1, 2, 0).numpy()
            off = np.abs(got.astype(int) - expected)
            assert off.max() <= 2 and off.mean() < 0.05
        flips += geometry.flip
    x, y = np.array(places).T
    assert 0 <= x.min() < 10 and 176 < x.max() <= 186 and y.min() == 0 and y.max() == 22 and 75 < flips < 125


def test_boxes_of_the_other_policies_have_the_asked_area_and_shape():
    width, height, generator = 640, 360, seeded()
    for name, low in (("moco_v1", 0.2), ("moco_v2", 0.3), ("simclr", 0.08)):
        boxes = np.array([augmentation.POLICIES[name].geometry(width, height, 224, generator).box for _ in range(500)])
        w, h = (boxes[:, 2] - boxes[:, 0]) * width, (boxes[:, 3] - boxes[:, 1]) * height
        area, shape = w * h / (width * height), w / h
        assert low - 0.01 < area.min() < low + 0.03 and area.max() > 0.7
        assert 0.74 < shape.min() < 0.77 and 1.3 < shape.max() < 1.35
    small = augmentation.Policy(scale=(0.1, 0.3), flip=0.0)  # always fits: area and place are uniform
    found = [small.geometry(width, height, 224, generator) for _ in range(1000)]
    assert not any(geometry.flip for geometry in found)
    left, top, right, bottom = np.array([geometry.box for geometry in found]).T
    area = (right - left) * (bottom - top)
    assert area.mean() == pytest.approx(0.2, abs=0.006) and area.std() == pytest.approx(0.2 * 12**-0.5, rel=0.1)
    for start, side in ((left, right - left), (top, bottom - top)):
        place = start / (1 - side)
        assert place.min() >= 0 and place.max() < 1 + 1e-9 and place.std() == pytest.approx(12**-0.5, rel=0.08)
    assert np.log((right - left) * width / ((bottom - top) * height)).mean() == pytest.approx(0, abs=0.02)


def test_a_frame_that_no_box_fits_gives_its_middle():
    policy = augmentation.Policy(scale=(0.9, 1.0), flip=0.0)
    assert policy.geometry(1200, 90, 224, seeded()).box == pytest.approx((540 / 1200, 0, 660 / 1200, 1))  # 4 : 3
    assert policy.geometry(90, 1200, 224, seeded()).box == pytest.approx((0, 540 / 1200, 1, 660 / 1200))  # 3 : 4


def test_colours_of_policies():
    x = batch(n=200, size=24)
    assert augmentation.POLICIES["ez_vsl"].colours(x, seeded()) is x
    for name, grey in (("moco_v1", 0.2), ("moco_v2", 0.2), ("simclr", 0.2)):
        got = augmentation.POLICIES[name].colours(x, seeded())
        assert got.dtype == torch.uint8 and torch.equal(got, augmentation.POLICIES[name].colours(x, seeded()))
        share = (got[:, :1] == got).flatten(1).all(1).float().mean()
        assert share == pytest.approx(grey, abs=0.08)
        noise = got.float().diff(dim=-1).abs().mean((1, 2, 3)) / x.float().diff(dim=-1).abs().mean((1, 2, 3))
        assert (noise < 0.25).float().mean() == pytest.approx(0.0 if name == "moco_v1" else 0.35, abs=0.15)  # blurred


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_seed_decides_everything_on_any_device():
    images, sounds = batch(n=32, size=24), torch.rand(32, 1, 40, 50)
    for policy in augmentation.POLICIES.values():
        here, there = (policy.colours(x, seeded()) for x in (images, images.cuda()))
        assert there.is_cuda and (here.int() - there.cpu().int()).abs().max() <= 1
    for masks in augmentation.MASKS.values():
        assert torch.equal(masks(sounds, seeded(), -1.0), masks(sounds.cuda(), seeded(), -1.0).cpu())
