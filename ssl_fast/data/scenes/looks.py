"""Looks of scenes: colours, textures of the categories, painted objects and cluttered backgrounds. numpy only.

Images here are float64 (H, W, 3) RGB, about [0, 1], y down; they are rounded to uint8 once, when a scene is complete.
Colours never depend on the category: shape and texture alone identify an object.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .shapes import BODY, Part, Plane, union

REFERENCE_SIZE = 112  # pixels; lengths below that are in pixels hold at this image size and scale with it
Shape = Callable[[Plane, np.random.Generator], list[Part]]
Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


# ---------------------------------------------------------------------------------------------------------------------
# Colours


def random_colour(rng: np.random.Generator, darkest: float = 0.15, brightest: float = 0.95) -> np.ndarray:
    """(3,) RGB of uniform hue, saturation in [.1, .9] and value in [darkest, brightest]."""
    hue, saturation, value = 6 * rng.random(), rng.uniform(0.1, 0.9), rng.uniform(darkest, brightest)
    ramp = np.clip(np.abs((hue - np.array([0.0, 2.0, 4.0]) + 3) % 6 - 3), 1, 2) - 1  # 0 where a channel is full
    return value * (1 - saturation * ramp)


def contrasting_colour(rng: np.random.Generator, differs: Callable[[np.ndarray], bool]) -> np.ndarray:
    """First random colour for which `differs` holds."""
    while True:
        colour = random_colour(rng, 0.05, 1.0)
        if differs(colour):
            return colour


# ---------------------------------------------------------------------------------------------------------------------
# Textures: (u, v) in periods of the object's frame -> bool, True where the second colour goes


def _saw(t: np.ndarray) -> np.ndarray:
    """Triangle wave of period 1: 0 at whole numbers, 1 half-way between."""
    return 1 - np.abs(2 * (t - np.floor(t)) - 1)


def _from_centre(u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """|distance| to the centre of the unit cell along both axes, each in [0, .5]."""
    return np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5)


def horizontal_stripes(u, v):
    return _saw(v) > 0.5


def vertical_stripes(u, v):
    return _saw(u) > 0.5


def diagonal_stripes(u, v):
    return _saw(0.72 * (u + v)) > 0.5


def wide_bars(u, v):
    return _saw(0.5 * u) > 0.5


def zigzag(u, v):
    return _saw(v + 0.9 * _saw(0.7 * u)) > 0.5


def waves(u, v):
    return _saw(v + 0.35 * np.sin(1.2 * np.pi * u)) > 0.5


def checkerboard(u, v):
    return (np.floor(1.3 * u) + np.floor(1.3 * v)) % 2 > 0.5


def dots(u, v):
    return np.hypot(*_from_centre(u, v)) < 0.32


def diamonds(u, v):
    return np.add(*_from_centre(u, 0.6 * v)) < 0.5


def plus_signs(u, v):
    across, down = _from_centre(u, v)
    return (np.minimum(across, down) < 0.12) & (np.maximum(across, down) < 0.4)


def rings(u, v):
    return _saw(np.hypot(u, v)) > 0.5


def spokes(u, v):
    return _saw(np.arctan2(v, u) * 4.5 / np.pi) > 0.5


def square_mesh(u, v):
    return np.minimum(_saw(u), _saw(v)) < 0.3


def diagonal_mesh(u, v):
    return np.minimum(_saw(0.75 * (u + v)), _saw(0.75 * (u - v))) < 0.25


def bricks(u, v):
    row = np.floor(1.2 * v)
    return np.minimum(_saw(1.2 * v), _saw(0.6 * u + 0.5 * (row % 2))) < 0.22


def triangles(u, v):
    return u - np.floor(u) < v - np.floor(v)


# ---------------------------------------------------------------------------------------------------------------------
# Objects


def paint_over(image: np.ndarray, colour: np.ndarray, alpha: np.ndarray) -> None:
    """Blend `colour` (3,) or (H, W, 3) into `image` (H, W, 3) in place, with alpha (H, W) in [0, 1]."""
    image += alpha[..., None] * (colour - image)


def coverage(distance: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Share of each pixel that a part covers, from its signed distance: a ramp one pixel wide."""
    return np.clip(0.5 - distance * pixels_per_unit, 0, 1)


def paint_object(
    image: np.ndarray, rng: np.random.Generator, shape: Shape, texture: Texture, centre: np.ndarray, size: float
) -> np.ndarray:
    """Paint one object into `image` (H, W, 3) in place; returns its mask (H, W) bool.

    centre (x, y) and size (side of the object's frame) are in pixels. Rotation, aspect, flip, colours, outline and
    the proportions of the shape are drawn from `rng`.
    """
    height, width = image.shape[:2]
    radius, reach = size / 2, int(np.ceil(0.75 * size)) + 2
    left, top = (max(0, int(c) - reach) for c in centre)
    right, bottom = min(width, int(centre[0]) + reach), min(height, int(centre[1]) + reach)
    window = image[top:bottom, left:right]

    x, y = np.meshgrid(
        (np.arange(left, right) + 0.5 - centre[0]) / radius, (np.arange(top, bottom) + 0.5 - centre[1]) / radius
    )
    stretch, mirror = np.exp(rng.uniform(-0.15, 0.15)), (2 * rng.integers(2) - 1)
    turned = Plane(x, y).turned(rng.uniform(-0.35, 0.35))
    plane = Plane(mirror * turned.x / stretch, turned.y * stretch)
    parts = shape(plane, rng)

    body = random_colour(rng)
    second = contrasting_colour(rng, lambda c: np.abs(c - body).sum() > 0.45)
    accent = contrasting_colour(rng, lambda c: min(np.abs(c - body).sum(), np.abs(c - second).sum()) > 0.45)
    # The texture must show in grey too: its two colours differ in summed RGB by .9 of 3.
    ink = contrasting_colour(rng, lambda c: abs((c - body).sum()) > 0.9)
    period = np.clip(size * REFERENCE_SIZE / width / 5.5, 5, 10) * width / REFERENCE_SIZE * rng.uniform(0.9, 1.15)
    pattern = texture(plane.x * radius / period, plane.y * radius / period)
    paints = [np.where(pattern[..., None], ink, body), second, accent]

    silhouette = union(*(distance for distance, _ in parts))
    if rng.random() < 0.5:  # an outline, mostly dark
        silhouette = silhouette - 0.05
        outline = random_colour(rng, 0.0, 0.4) if rng.random() < 0.7 else random_colour(rng, 0.8, 1.0)
        paint_over(window, outline, coverage(silhouette, radius))
    for distance, paint in parts:
        paint_over(window, paints[paint], coverage(distance, radius))
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = silhouette < 0
    return mask


# ---------------------------------------------------------------------------------------------------------------------
# Backgrounds


def enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear enlargement of (k, k, c) to (size, size, c), corners of the grid on corners of the result."""
    last = grid.shape[0] - 1
    position = np.linspace(0, last, size)
    low = np.minimum(position.astype(int), last - 1)
    weight = (position - low)[:, None, None]
    rows = grid[low] * (1 - weight) + grid[low + 1] * weight
    columns = weight.transpose(1, 0, 2)
    return rows[:, low] * (1 - columns) + rows[:, low + 1] * columns


def paint_background(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3): a colour gradient, at times a ground, mottle of three scales, about five distractors."""
    corners = np.stack([random_colour(rng) for _ in range(4)]).reshape(2, 2, 3)
    image = enlarge(corners, size)
    if rng.random() < 0.35:
        _paint_ground(image, rng)
    for cells, strength in ((4, 0.1), (9, 0.063), (20, 0.045)):
        tint = rng.normal(0, strength, (cells, cells, 3)) * rng.uniform(0.3, 1)
        shade = rng.normal(0, strength, (cells, cells, 1)) * rng.random()
        image += enlarge(tint + shade, size)
    for _ in range(rng.poisson(5)):
        _paint_distractor(image, rng)
    return image


def _paint_ground(image: np.ndarray, rng: np.random.Generator) -> None:
    size = image.shape[0]
    tilt, horizon = rng.uniform(-0.25, 0.25), rng.uniform(0.4, 0.85)
    grid = (np.arange(size) + 0.5) / size
    below = grid[:, None] - horizon - tilt * (grid[None, :] - 0.5)
    paint_over(image, random_colour(rng), coverage(-below, size) * rng.uniform(0.3, 0.8))


def _paint_distractor(image: np.ndarray, rng: np.random.Generator) -> None:
    """A plain shape of one colour: it has edges and colour like an object, but neither category shape nor texture."""
    size = image.shape[0]
    centre, radius = rng.uniform(0, size, 2), rng.uniform(0.04, 0.25) * size
    left, top = (np.maximum(0, centre - 1.5 * radius)).astype(int)
    right, bottom = (np.minimum(size, centre + 1.5 * radius + 1)).astype(int)
    x, y = np.meshgrid(
        (np.arange(left, right) + 0.5 - centre[0]) / radius, (np.arange(top, bottom) + 0.5 - centre[1]) / radius
    )
    plane = Plane(x, y).turned(rng.uniform(0, 2 * np.pi))
    kind = rng.integers(5)
    if kind == 0:
        distance = plane.box(0, 0, 1, rng.uniform(0.1, 0.9))
    elif kind == 1:
        distance = plane.ellipse(0, 0, 1, rng.uniform(0.2, 0.9))
    elif kind == 2:
        distance = plane.line((-1, 0), (1, 0), rng.uniform(0.03, 0.15))
    elif kind == 3:
        distance = plane.polygon([tuple(corner) for corner in rng.uniform(-1, 1, (3, 2))])
    else:
        distance = plane.ring(0, 0, rng.uniform(0.5, 0.9), rng.uniform(0.03, 0.2))
    paint_over(image[top:bottom, left:right], random_colour(rng), coverage(distance, radius) * rng.uniform(0.4, 1))


__all__ = ["BODY", "Shape", "Texture", "paint_background", "paint_object", "random_colour"]
