"""One procedural audio-visual scene from (settings, split, index). numpy only: nothing is read, nothing is stored.

A scene shows one to three objects of different categories on a cluttered background; each object has its own sound.
What identifies a category is the table below: a shape, a texture and a timbre. Colour, place, size, rotation,
outline, pitch, tempo and level do not.

Determinism. Every random number comes from a PCG64 stream seeded by numpy's SeedSequence with (seed, split, index,
purpose), so a scene does not depend on the scenes before it, on the process that makes it, or on the number of scenes
in a split. All arithmetic is float64 and is rounded once, to uint8 and int16, so that the last bits of sin, exp or a
Fourier transform, which differ between builds of numpy and processors, practically never show: numpy 1.26, 2.1 and
2.4, with and without AVX, gave the same bytes for 150 scenes. What would change scenes: another algorithm behind
Generator.random / uniform / integers / normal / poisson / permutation in a later numpy, and edits of this
folder. After such an edit, raise VERSION (the hashes in the tests show it); old caches are then left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from . import looks, shapes, sounds

VERSION = 2  # of the bytes that this generator produces


@dataclass(frozen=True)
class Category:
    """Shape, texture and timbre of the objects of a category."""

    shape: looks.Shape
    texture: looks.Texture
    timbre: sounds.Timbre


CATALOGUE: dict[str, Category] = {
    "bell": Category(shapes.bell, looks.horizontal_stripes, sounds.struck_bell),
    "drum": Category(shapes.drum, looks.zigzag, sounds.beaten_drum),
    "guitar": Category(shapes.guitar, looks.vertical_stripes, sounds.plucked_string),
    "siren": Category(shapes.siren, looks.checkerboard, sounds.wailing_siren),
    "bird": Category(shapes.bird, looks.dots, sounds.chirping),
    "gear": Category(shapes.gear, looks.diagonal_mesh, sounds.grinding_gears),
    "clock": Category(shapes.clock, looks.rings, sounds.ticking),
    "flute": Category(shapes.flute, looks.diagonal_stripes, sounds.blown_flute),
    "fan": Category(shapes.fan, looks.spokes, sounds.whirring_fan),
    "drop": Category(shapes.drop, looks.waves, sounds.dripping),
    "phone": Category(shapes.phone, looks.square_mesh, sounds.dialling),
    "horn": Category(shapes.horn, looks.bricks, sounds.blown_horn),
    "cat": Category(shapes.cat, looks.triangles, sounds.meowing),
    "snake": Category(shapes.snake, looks.diamonds, sounds.hissing),
    "bee": Category(shapes.bee, looks.wide_bars, sounds.buzzing),
    "car": Category(shapes.car, looks.plus_signs, sounds.honking),
}
CATEGORIES: tuple[str, ...] = tuple(CATALOGUE)

# The codes seed the streams: never renumber.
SPLITS = {"train": 0, "val": 1, "single": 2, "duo": 3, "trio": 4, "sequence": 5}
TRAIN_OBJECTS = (0.4, 0.4, 0.2)  # how often a training scene has one, two, three objects
SIZES = {
    1: (0.45, 0.80),
    2: (0.40, 0.58),
    3: (0.34, 0.46),
}  # side of an object's frame over that of the image, by number of objects
SPACING = 0.95  # centres are this many mean frames apart, along x or y: objects touch at most
MARGIN = 0.48  # a centre is this share of its frame inside the image
# Of `sequence`, in clips of the other splits: length, that of each object's sound, least silence around each.
SEQUENCE_LENGTH, SEQUENCE_SOUND, SEQUENCE_SILENCE = 4, (0.8, 1.1), 0.4
FADE = 0.01  # seconds in which a sound of `sequence` rises and falls
NOISE = 0.02  # standard deviation of the pixel noise, image range [0, 1]
# The least visible part of an object, of its own area and of the image's; else drawn again.
VISIBLE_SHARE, VISIBLE_AREA = 0.7, 0.008
ATTEMPTS, CANDIDATES = 100, 64

# Purposes of streams. The sound of the object at position k has purpose SOUND + k.
_BALANCE, _COMPOSITION, _PICTURE, _TIMES, _SOUND = 0, 1, 2, 3, 8


@dataclass(frozen=True)
class Settings:
    """Settings of the generator: `seed`, side of the square images in pixels, number of categories (the first of
    CATEGORIES), number of images in each split, and length of the sounds, of which those of `sequence` have
    SEQUENCE_LENGTH times as much. Raises ValueError naming the field that is out of range."""

    seed: int = 0
    size: int = 112
    categories: int = 12
    train: int = 4000
    val: int = 150
    single: int = 300
    duo: int = 300
    trio: int = 150
    sequence: int = 150
    seconds: float = 1.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "seconds" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field.name}: expected an integer, got {value!r}")
        if self.seed < 0:
            raise ValueError(f"seed: expected 0 or more, got {self.seed}")
        if not 48 <= self.size <= 1024:
            raise ValueError(f"size: expected 48 to 1024 pixels, got {self.size}")
        if not 3 <= self.categories <= len(CATEGORIES):
            raise ValueError(f"categories: expected 3 to {len(CATEGORIES)}, got {self.categories}")
        for split in SPLITS:
            if getattr(self, split) < 0:
                raise ValueError(f"{split}: expected 0 or more images, got {getattr(self, split)}")
        if not 1 <= self.seconds <= 60:  # a shorter clip could fall between two events and be empty
            raise ValueError(f"seconds: expected 1 to 60, got {self.seconds}")

    @property
    def names(self) -> tuple[str, ...]:
        return CATEGORIES[: self.categories]

    @property
    def samples(self) -> int:
        return round(self.seconds * sounds.SAMPLE_RATE)


@dataclass(frozen=True)
class Composition:
    """Objects of a scene, known before anything is drawn: `categories` in the order of painting; `sounding`, the
    positions of the objects whose sound belongs to the split (one of them in train, all in the others)."""

    categories: tuple[str, ...]
    sounding: tuple[int, ...]


@dataclass(frozen=True)
class Scene:
    """One generated scene of k objects of which s sound.

    image (H, W, 3) uint8 RGB; masks (k, H, W) bool, disjoint: what is visible of each object; boxes (k, 4) int32,
    left, top, right, bottom in pixels, right and bottom exclusive, tight around the masks; categories of the k
    objects, all different; sounding: positions of the s objects that sound; waveforms (s, samples) int16 at 16 kHz,
    in the order of `sounding`; of `sequence` 0 outside the object's own time (`stretches`), so that their sum is what
    is heard.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    categories: tuple[str, ...]
    sounding: tuple[int, ...]
    waveforms: np.ndarray


def scene(settings: Settings, split: str, index: int) -> Scene:
    """Scene `index` of `split`. Any index >= 0 works; a split holds the first `getattr(settings, split)`.

    Raises ValueError for an unknown split or a negative index.
    """
    objects = compose(settings, split, index)
    image, masks = _picture(_stream(settings, split, index, _PICTURE), objects.categories, settings.size)
    waveforms = np.zeros((len(objects.sounding), samples := clip_samples(settings, split)), np.int16)
    times = stretches(settings, index) if split == "sequence" else [(0, samples)] * len(objects.categories)
    for waveform, k in zip(waveforms, objects.sounding):
        (start, stop), timbre = times[k], CATALOGUE[objects.categories[k]].timbre
        sound = sounds.render_sound(timbre, _stream(settings, split, index, _SOUND + k), stop - start)
        waveform[start:stop] = sounds.faded(sound, FADE) if split == "sequence" else sound
    boxes = np.stack([bounding_box(mask) for mask in masks])
    return Scene(image, masks, boxes, objects.categories, objects.sounding, waveforms)


def clip_samples(settings: Settings, split: str) -> int:
    """Length of the waveforms of a split."""
    return settings.samples * (SEQUENCE_LENGTH if split == "sequence" else 1)


def stretches(settings: Settings, index: int) -> list[tuple[int, int]]:
    """First sample, and the one after the last, of each object's sound in scene `index` of `sequence`, in the order of
    painting: one object sounds, then nothing, then the other; there is silence before and after, too."""
    rng = _stream(settings, "sequence", index, _TIMES)
    lengths = rng.uniform(*SEQUENCE_SOUND, 2)
    spare = SEQUENCE_LENGTH - lengths.sum() - 3 * SEQUENCE_SILENCE
    first, second = np.sort(rng.random(2)) * spare  # of what is spare, before the first sound and before the second
    starts = first + SEQUENCE_SILENCE, second + 2 * SEQUENCE_SILENCE + lengths[0]
    times = [tuple(round(t * settings.samples) for t in (start, start + n)) for start, n in zip(starts, lengths)]
    return [times[k] for k in rng.permutation(2)]


def compose(settings: Settings, split: str, index: int) -> Composition:
    """Categories and sounding objects of a scene, without drawing it.

    One object is the lead: the only one that sounds in train. Leads are balanced: each cycle of `settings.categories`
    scenes has every category once. The other objects are drawn from the remaining categories, and the order of
    painting is shuffled.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if index < 0:
        raise ValueError(f"index: expected 0 or more, got {index}")
    cycle, position = divmod(index, settings.categories)
    lead = _stream(settings, split, cycle, _BALANCE).permutation(settings.categories)[position]
    rng = _stream(settings, split, index, _COMPOSITION)
    count = _object_count(rng, split, index)
    others = rng.permutation(np.delete(np.arange(settings.categories), lead))[: count - 1]
    order = rng.permutation(np.append(lead, others))
    sounding = [int(np.flatnonzero(order == lead)[0])] if split == "train" else range(count)
    return Composition(tuple(CATEGORIES[c] for c in order), tuple(sounding))


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """(4,) int32: left, top, right, bottom (exclusive) of a non-empty mask (H, W)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.int32)


def _stream(settings: Settings, split: str, index: int, purpose: int) -> np.random.Generator:
    key = np.random.SeedSequence(settings.seed, spawn_key=(SPLITS[split], index, purpose))
    return np.random.Generator(np.random.PCG64(key))  # named, because default_rng may change its algorithm


def _object_count(rng: np.random.Generator, split: str, index: int) -> int:
    if split == "train":
        return 1 + int(np.searchsorted(np.cumsum(TRAIN_OBJECTS)[:-1], rng.random(), side="right"))
    if split == "val":  # half like single, half like duo
        return 1 + index % 2
    return {"single": 1, "duo": 2, "trio": 3, "sequence": 2}[split]


def _picture(rng: np.random.Generator, categories: Sequence[str], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Image (size, size, 3) uint8 and disjoint masks (k, size, size) bool. A drawing that hides an object (see
    VISIBLE_*) is thrown away."""
    background = looks.paint_background(rng, size)
    for _ in range(ATTEMPTS):
        image, masks, areas = background.copy(), [], []
        for name, (x, y, side) in zip(categories, _layout(rng, len(categories), size)):
            mask = looks.paint_object(
                image, rng, CATALOGUE[name].shape, CATALOGUE[name].texture, np.array([x, y]), side
            )
            masks = [earlier & ~mask for earlier in masks] + [mask]
            areas.append(mask.sum())
        if all(mask.sum() >= max(VISIBLE_SHARE * area, VISIBLE_AREA * size**2) for mask, area in zip(masks, areas)):
            return _expose(image, rng), np.stack(masks)
    raise RuntimeError(f"no drawing of {', '.join(categories)} in {size} pixels left every object visible")


def _layout(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """(count, 3): x, y of centres and sides of the frames, pixels; the first random candidate that is spread enough."""
    first, second = np.triu_indices(count, 1)
    for _ in range(ATTEMPTS):
        sides = rng.uniform(*SIZES[count], (CANDIDATES, count)) * size
        border = MARGIN * sides[..., None]
        centres = border + (size - 2 * border) * rng.random((CANDIDATES, count, 2))
        gaps = np.abs(centres[:, first] - centres[:, second]).max(2)
        fits = (gaps >= SPACING * (sides[:, first] + sides[:, second]) / 2).all(1)
        if fits.any():
            chosen = int(np.argmax(fits))
            return np.concatenate([centres[chosen], sides[chosen, :, None]], 1)
    raise RuntimeError(f"no layout of {count} objects found")  # less likely than 1e-100 with the numbers above


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixel noise, contrast and brightness; then uint8."""
    noisy = (image + rng.normal(0, NOISE, image.shape)) * rng.uniform(0.75, 1.1) + rng.uniform(-0.06, 0.06)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
