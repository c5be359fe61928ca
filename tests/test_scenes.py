"""The embedded data set: what a scene promises, determinism by hash, no shortcut by colour, and the cache."""

import hashlib
from collections import Counter
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, map_coordinates, zoom
from scipy.signal import spectrogram

from ssl_fast.data.scenes import dataset as scenes
from ssl_fast.data.scenes import generator
from ssl_fast.data.scenes import looks as scene_looks
from ssl_fast.data.scenes import shapes as scene_shapes
from ssl_fast.data.scenes.generator import CATALOGUE, CATEGORIES, SIZES, SPLITS, Settings, compose, scene
from ssl_fast.data.scenes.shapes import Plane
from ssl_fast.data.scenes.store import load_arrays

DEFAULT = Settings()
OTHER = Settings(seed=5, size=64, categories=16, seconds=1.5)
TINY = Settings(size=48, categories=5, train=14, val=6, single=4, duo=5, trio=3)


@cache
def made(split, count, settings=DEFAULT):
    return [scene(settings, split, index) for index in range(count)]


def digest(one):
    sha = hashlib.sha256(repr((one.image.shape, one.categories, one.sounding)).encode())
    for array in (one.image, one.masks, one.waveforms):
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Determinism

# A change here means that everybody's scenes change: raise generator.VERSION with it.
HASHES = {
    ("train", 0, DEFAULT): "13da2d8ee517a3282caa33cf08cef3a380394a1bcea977d412f083ec3922dbb5",
    ("val", 9, DEFAULT): "d86533595747ea6ffe1450d76f4bf375dd011ea5a87f11eb49ec657111b455f3",
    ("single", 3, DEFAULT): "b367c2f6367baf2ea4aca03b0f72b9bac339f7d522698eafa2f7881f7a44c95c",
    ("duo", 7, DEFAULT): "d377b1ef6ae824c1c574d43d7b405e6c04d3b5e25e20102850f7b3406dfaa407",
    ("trio", 1, DEFAULT): "3303ade61bffe6fec4ba81c3d186f70a78411772de2a7f47f1df6b53b780e69b",
    ("sequence", 5, DEFAULT): "120d8868ffe168700444f95e45b302b1a6f47298db125dd17c5f51ccd9e1e6a8",
    ("duo", 11, OTHER): "3d1db855b6f71a7ceca3f2c360ffde7e429ce4c5559c2e10bba8d8589aa71e81",
}


@pytest.mark.parametrize("split, index, settings", HASHES)
def test_scenes_have_the_hashes_of_this_version(split, index, settings):
    assert digest(scene(settings, split, index)) == HASHES[split, index, settings]
    assert generator.VERSION == 2


def test_scene_does_not_depend_on_split_sizes_or_on_scenes_before_it():
    first = digest(scene(DEFAULT, "duo", 2))
    np.random.seed(3)
    scene(DEFAULT, "train", 5)
    assert digest(scene(Settings(train=7, duo=3, single=0), "duo", 2)) == first


def test_scenes_of_other_index_split_and_seed_differ():
    some = [(Settings(seed=seed, size=48), split, index) for seed, split, index in product((0, 1), SPLITS, (0, 1))]
    assert len({digest(scene(*one)) for one in some}) == len(some)


@pytest.mark.slow
def test_no_split_shares_an_image_or_a_sound_with_another():
    images, waves = Counter(), Counter()
    for split in SPLITS:
        for one in made(split, 20):
            images[one.image.tobytes()] += 1
            waves.update(wave.tobytes() for wave in one.waveforms)
    assert max(images.values()) == max(waves.values()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# Pictures

SEEN = [("train", 60), ("val", 10), ("single", 20), ("duo", 50), ("trio", 50)]


@pytest.mark.parametrize("split, count", SEEN)
def test_masks_are_disjoint_and_boxes_tight(split, count):
    for one in made(split, count):
        size = DEFAULT.size
        assert one.image.shape == (size, size, 3) and one.image.dtype == np.uint8
        assert one.masks.shape == (len(one.categories), size, size) and one.masks.dtype == bool
        assert one.masks.sum(0).max() == 1
        for mask, (left, top, right, bottom) in zip(one.masks, one.boxes):
            rows = [y for y in range(size) if any(mask[y])]
            columns = [x for x in range(size) if any(mask[:, x])]
            assert (left, top, right, bottom) == (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


@pytest.mark.parametrize("split, count", SEEN)
def test_every_object_shows_enough(split, count):
    share = [mask.mean() for one in made(split, count) for mask in one.masks]
    assert min(share) >= generator.VISIBLE_AREA
    # no frame is larger than its place in SIZES; outline, rotation and aspect add at most 60 %
    for one in made(split, count):
        extent = (one.boxes[:, 2:] - one.boxes[:, :2]).max()
        assert extent <= 1.6 * SIZES[len(one.categories)][1] * DEFAULT.size


def test_mask_is_what_painting_changed():
    """Pixels of the mask change; others change only in the one or two pixels of the anti-aliased edge."""
    for number, (name, category) in enumerate(CATALOGUE.items()):
        rng = np.random.default_rng([number, 1])
        image = scene_looks.paint_background(rng, 112)
        before = image.copy()
        mask = scene_looks.paint_object(image, rng, category.shape, category.texture, np.array([56.3, 55.1]), 70.0)
        changed = (image != before).any(2)
        assert not (mask & ~changed).any(), name
        assert not (changed & ~binary_dilation(mask, np.ones((3, 3)), 2)).any(), name
        assert (changed & ~mask).sum() < mask.sum(), name


def test_drawings_that_hide_an_object_are_drawn_again(monkeypatch):
    full, paint = [], scene_looks.paint_object
    monkeypatch.setattr(generator, "SPACING", 0.1)  # objects now overlap most of the time
    monkeypatch.setattr(scene_looks, "paint_object", lambda *a: full.append(paint(*a)) or full[-1])
    drawn = hidden = 0
    for index in range(12):
        full.clear()
        one = scene(Settings(size=64), "trio", index)
        drawn += len(full)
        for whole, mask in zip(full[-3:], one.masks):
            assert not (mask & ~whole).any()
            assert mask.sum() >= 0.7 * whole.sum()
            hidden += (whole & ~mask).sum()
    assert drawn > 12 * 3 and hidden > 0


def test_hopeless_drawing_is_an_error(monkeypatch):
    monkeypatch.setattr(generator, "VISIBLE_AREA", 1.0)
    monkeypatch.setattr(generator, "ATTEMPTS", 3)
    with pytest.raises(RuntimeError, match="left every object visible"):
        scene(Settings(size=48), "single", 0)


def test_seven_by_seven_cells_suffice_to_localize():
    """Ceiling of the protocol: the true mask, averaged over 7 x 7 cells and enlarged, finds the box (IoU of the top
    |box| pixels >= .5).
    """
    hits = []
    for one in made("duo", 50):
        right = []
        for mask, (left, top, right_edge, bottom) in zip(one.masks, one.boxes):
            cells = mask.reshape(7, 16, 7, 16).mean((1, 3))
            score = zoom(np.pad(cells, 1, mode="edge"), 16, order=1, grid_mode=True, mode="nearest")[16:-16, 16:-16]
            box = np.zeros(mask.shape, bool)
            box[top:bottom, left:right_edge] = True
            best = np.zeros(mask.size, bool)
            best[np.argsort(-score.ravel(), kind="stable")[: box.sum()]] = True
            best = best.reshape(mask.shape)
            right.append((best & box).sum() / (best | box).sum() >= 0.5)
        hits.append(all(right))
    assert np.mean(hits) >= 0.94


def features_of_colour(split, count):
    settings = Settings(size=56)
    pairs = [
        (one.image[m].mean(0), c) for one in made(split, count, settings) for m, c in zip(one.masks, one.categories)
    ]
    return np.stack([colour for colour, _ in pairs]), np.array([CATEGORIES.index(c) for _, c in pairs])


@pytest.mark.slow
def test_colour_does_not_identify():
    colours, categories = features_of_colour("train", 300)
    unseen, truth = features_of_colour("duo", 120)
    means = np.stack([colours[categories == c].mean(0) for c in range(12)])
    nearest = np.linalg.norm(unseen[:, None] - means, axis=2).argmin(1)
    assert (nearest == truth).mean() < 2 / 12


# ---------------------------------------------------------------------------------------------------------------------
# Shapes, colours, backgrounds against closed forms


def grid(size=400, reach=1.2):
    ticks = (np.arange(size) + 0.5) / size * 2 * reach - reach
    return Plane(*np.meshgrid(ticks, ticks)), (2 * reach / size) ** 2


def test_areas_of_shapes_equal_closed_forms():
    plane, pixel = grid()
    star = [(0.0, -0.9), (0.2, -0.2), (0.9, 0.0), (0.2, 0.3), (0.5, 0.95), (-0.3, 0.4), (-0.8, 0.1), (-0.2, -0.3)]
    shoelace = 0.5 * abs(sum(ax * by - bx * ay for (ax, ay), (bx, by) in pairwise([*star, star[0]])))
    turned = plane.turned(0.4)
    expected = [
        (plane.disc(0.1, -0.2, 0.7), np.pi * 0.49),
        (plane.ring(0, 0, 0.7, 0.1), np.pi * (0.64 - 0.36)),
        (turned.ellipse(0.1, 0.1, 0.9, 0.3), np.pi * 0.27),
        (turned.box(0, 0.1, 0.8, 0.3), 4 * 0.24),
        (turned.box(0, 0.1, 0.8, 0.3, 0.2), 4 * 0.24 - (4 - np.pi) * 0.04),
        (plane.line((-0.5, 0.1), (0.4, -0.3), 0.1), 0.2 * np.hypot(0.9, 0.4) + np.pi * 0.01),
        (turned.polygon(star), shoelace),
        (plane.symmetric([(0.2, -0.8), (0.7, 0.5)]), 1.3 * (0.4 + 1.4) / 2),
    ]
    for distance, area in expected:
        assert (distance < 0).sum() * pixel == pytest.approx(area, rel=0.01)


def test_polygon_distance_equals_brute_force():
    corners = [(-0.7, -0.5), (0.8, -0.3), (0.1, 0.1), (0.6, 0.9)]
    points = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    share = np.linspace(0, 1, 4001)[:, None]
    edges = np.concatenate(
        [np.array(a) * (1 - share) + np.array(b) * share for a, b in pairwise([*corners, corners[0]])]
    )
    nearest = np.linalg.norm(points[:, None] - edges, axis=2).min(1)
    distance = Plane(*points.T).polygon(corners)
    np.testing.assert_allclose(np.abs(distance), nearest, atol=2e-4)


def test_every_shape_fits_its_frame_and_has_its_paints():
    plane, pixel = grid(200, 1.6)
    for number, (name, category) in enumerate(CATALOGUE.items()):
        for draw in range(8):
            parts = category.shape(plane, np.random.default_rng([number, draw]))
            inside = scene_shapes.union(*(distance for distance, _ in parts)) < 0
            body = scene_shapes.union(*(distance for distance, paint in parts if paint == scene_shapes.BODY)) < 0
            assert {paint for _, paint in parts} <= {0, 1, 2}
            assert np.abs(plane.x[inside]).max() < 1.3 and np.abs(plane.y[inside]).max() < 1.3, name
            assert 0.4 < inside.sum() * pixel < 3.6 and body.sum() > 0.3 * inside.sum(), name


def test_textures_differ_and_cover_about_half():
    u, v = np.meshgrid(np.arange(-6, 6, 0.07) + 0.013, np.arange(-6, 6, 0.07) + 0.017)
    patterns = {name: category.texture(u, v) for name, category in CATALOGUE.items()}
    for name, pattern in patterns.items():
        assert pattern.dtype == bool and 0.2 < pattern.mean() < 0.75, name
    for (a, first), (b, second) in product(patterns.items(), repeat=2):
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert a == b or abs(correlation) < 0.75, (a, b)


def test_enlarge_equals_bilinear_interpolation():
    coarse = np.random.default_rng(0).normal(size=(5, 5, 3))
    at = np.linspace(0, 4, 33)
    expected = [map_coordinates(coarse[..., c], np.meshgrid(at, at, indexing="ij"), order=1) for c in range(3)]
    np.testing.assert_allclose(scene_looks.enlarge(coarse, 33), np.stack(expected, 2), atol=1e-12)


def test_random_colours_have_uniform_hue_and_bounded_value():
    rng = np.random.default_rng(0)
    colours = np.stack([scene_looks.random_colour(rng, 0.2, 0.9) for _ in range(3000)])
    assert colours.max(1).min() >= 0.2 and colours.max(1).max() <= 0.9 and colours.min() >= 0
    assert all(abs((colours.argmax(1) == channel).mean() - 1 / 3) < 0.04 for channel in range(3))


# ---------------------------------------------------------------------------------------------------------------------
# Objects of a scene


def test_leads_are_balanced_and_sound_in_train():
    compositions = [compose(DEFAULT, "train", index) for index in range(1200)]
    leads = [one.categories[one.sounding[0]] for one in compositions]
    assert all(len(one.sounding) == 1 for one in compositions)
    for start in range(0, 1200, 12):
        assert sorted(leads[start : start + 12]) == sorted(CATEGORIES[:12])
    counts = Counter(len(one.categories) for one in compositions)
    assert [abs(counts[k] / 1200 - p) < 0.05 for k, p in zip((1, 2, 3), generator.TRAIN_OBJECTS)] == [True] * 3
    shown = Counter(category for one in compositions for category in one.categories)
    assert set(shown) == set(CATEGORIES[:12]) and max(shown.values()) < 1.25 * min(shown.values())
    positions = Counter(one.sounding[0] for one in compositions if len(one.categories) == 3)
    assert (
        min(positions.values()) > 0.2 * positions.total()
    )  # the one that sounds is not always painted first, nor last


@pytest.mark.parametrize("split, objects", [("single", {1}), ("duo", {2}), ("trio", {3}), ("val", {1, 2})])
def test_all_objects_of_the_other_splits_sound(split, objects):
    compositions = [compose(DEFAULT, split, index) for index in range(60)]
    assert {len(one.categories) for one in compositions} == objects
    assert all(one.sounding == tuple(range(len(one.categories))) for one in compositions)
    assert all(len(set(one.categories)) == len(one.categories) for one in compositions)


def test_sixteen_categories():
    shown = {c for index in range(32) for c in compose(Settings(categories=16), "duo", index).categories}
    assert shown == set(CATEGORIES) and len(CATEGORIES) == 16


# ---------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"size": 20}, "size: expected 48 to 1024 pixels, got 20"),
        ({"categories": 17}, "categories: expected 3 to 16, got 17"),
        ({"train": -4}, "train: expected 0 or more images, got -4"),
        ({"seconds": 0.2}, "seconds: expected 1 to 60, got 0.2"),
        ({"duo": 2.5}, "duo: expected an integer, got 2.5"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_wrong_split_or_index_is_named(tmp_path):
    with pytest.raises(ValueError, match="split: expected one of train, val, single, duo, trio, sequence, got 'test'"):
        scene(DEFAULT, "test", 0)
    with pytest.raises(ValueError, match="index: expected 0 or more, got -1"):
        scene(DEFAULT, "duo", -1)
    with pytest.raises(ValueError, match="settings.duo: the split has no images"):
        load_arrays("duo", Settings(duo=0), cache=tmp_path)
    with pytest.raises(ValueError, match="workers: expected None or an integer of 0 or more, got -2"):
        load_arrays("duo", TINY, cache=tmp_path, workers=-2)


# ---------------------------------------------------------------------------------------------------------------------
# The sample set


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_those_of_the_scenes(split, cache_folder):
    loaded = scenes.load(split, TINY, cache=cache_folder, progress=False)
    expected = [(i, k, one) for i, one in enumerate(made(split, getattr(TINY, split), TINY)) for k in one.sounding]
    assert len(loaded) == len(expected) == len(set(loaded.ids)) and loaded.has_ground_truth
    groups = {}
    for index, (image, k, one) in enumerate(expected):
        groups.setdefault(loaded.image_ids[index], set()).add(image)
        assert loaded.categories[index] == one.categories[k] and loaded.visible[index] == frozenset(one.categories)
        sample = loaded[index]
        assert sample["index"] == index and sample["image"].dtype == torch.uint8
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), one.image)
        assert np.array_equal(loaded.mask(index), one.masks[k]) and loaded.mask(index).dtype == bool
        truth, (rows, columns) = loaded.ground_truth(index), np.nonzero(one.masks[k])
        box = np.zeros((48, 48), np.float32)
        box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
        assert np.array_equal(truth, box) and truth.dtype == np.float32
        wave = loaded.waveform(index)
        position = one.sounding.index(k)
        assert wave.dtype == np.float32 and np.array_equal(wave * 32768, one.waveforms[position])
    assert len(groups) == getattr(TINY, split) and all(len(images) == 1 for images in groups.values())


def test_spectrograms_equal_those_of_scipy(cache_folder):
    loaded = scenes.load("duo", TINY, cache=cache_folder, progress=False)
    front_end = loaded.front_end
    assert front_end.samples == TINY.samples == 16000
    for index in (0, 5, 9):
        power = spectrogram(
            loaded.waveform(index), 16000, nperseg=front_end.window, noverlap=front_end.window - front_end.hop
        )[2]
        log = np.log(power + front_end.floor) / front_end.scale
        bands, frames = (n // front_end.pool for n in log.shape)
        pooled = log[: bands * front_end.pool, : frames * front_end.pool]
        pooled = pooled.reshape(bands, front_end.pool, frames, front_end.pool).mean((1, 3))
        assert loaded[index]["spectrogram"].shape == (1, bands, frames)
        np.testing.assert_allclose(loaded[index]["spectrogram"][0], pooled, atol=2e-4)


def test_batches_equal_samples(cache_folder):
    loaded = scenes.load("trio", TINY, cache=cache_folder, progress=False)
    batch = next(iter(torch.utils.data.DataLoader(loaded, batch_size=5)))
    for index in range(5):
        assert batch["index"][index] == index
        assert torch.equal(batch["image"][index], loaded[index]["image"])
        assert torch.equal(batch["spectrogram"][index], loaded[index]["spectrogram"])
    assert [one["index"] for one in loaded.__getitems__([3, 1])] == [3, 1]


def test_index_out_of_range_is_an_error(cache_folder):
    loaded = scenes.load("trio", TINY, cache=cache_folder, progress=False)
    assert loaded[-1]["index"] == len(loaded) - 1
    for wrong in (len(loaded), -len(loaded) - 1):
        for get in (loaded.__getitem__, loaded.mask, loaded.ground_truth, loaded.waveform):
            with pytest.raises(IndexError, match=f"index: expected -9 to 8, got {wrong}"):
                get(wrong)


def test_longer_sounds(tmp_path):
    loaded = scenes.load("single", Settings(**vars(TINY) | {"seconds": 1.5}), cache=tmp_path, progress=False)
    assert loaded.front_end.samples == len(loaded.waveform(0)) == 24000
