"""Shapes of the scene categories: parts of an object as signed distances in its own frame. numpy only.

The frame has x to the right and y down, and the object fills about [-1, 1]^2. A signed distance is negative inside a
part; close to zero it is the Euclidean distance (anti-aliasing needs that), further away it only has the right sign.
Every number that an object of the category may vary is drawn from `rng`, so no two bells are alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BODY, SECOND, ACCENT = range(3)  # paints; the texture of the category covers the parts painted BODY
Part = tuple[np.ndarray, int]  # (signed distance (H, W), paint); later parts are painted over earlier ones
Point = tuple[float, float]


def union(*distances: np.ndarray) -> np.ndarray:
    return np.minimum.reduce(distances)


def intersection(*distances: np.ndarray) -> np.ndarray:
    return np.maximum.reduce(distances)


@dataclass(frozen=True)
class Plane:
    """Points (H, W) of an object's frame at which distances are evaluated."""

    x: np.ndarray
    y: np.ndarray

    def turned(self, angle: float) -> Plane:
        """Points in a frame turned by `angle` radians."""
        c, s = np.cos(angle), np.sin(angle)
        return Plane(c * self.x + s * self.y, c * self.y - s * self.x)

    def moved(self, x: float, y: float) -> Plane:
        """Points in a frame whose origin is (x, y)."""
        return Plane(self.x - x, self.y - y)

    def polar(self) -> tuple[np.ndarray, np.ndarray]:
        return np.hypot(self.x, self.y), np.arctan2(self.y, self.x)

    def disc(self, x: float, y: float, radius: float) -> np.ndarray:
        return np.hypot(self.x - x, self.y - y) - radius

    def ring(self, x: float, y: float, radius: float, half_width: float) -> np.ndarray:
        return np.abs(self.disc(x, y, radius)) - half_width

    def ellipse(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """First-order distance: level over length of its gradient."""
        u, v = (self.x - x) / rx, (self.y - y) / ry
        level = np.maximum(np.hypot(u, v), 1e-9)
        return level * (level - 1) / np.maximum(np.hypot(u / rx, v / ry), 1e-9)

    def box(self, x: float, y: float, half_width: float, half_height: float, corner: float = 0.0) -> np.ndarray:
        dx, dy = np.abs(self.x - x) - half_width + corner, np.abs(self.y - y) - half_height + corner
        return np.hypot(np.maximum(dx, 0), np.maximum(dy, 0)) + np.minimum(np.maximum(dx, dy), 0) - corner

    def line(self, start: Point, end: Point, half_width: float) -> np.ndarray:
        return _to_segment(self.x, self.y, start, end) - half_width

    def polyline(self, points: Sequence[Point], half_width: float) -> np.ndarray:
        return union(*(self.line(a, b, half_width) for a, b in itertools.pairwise(points)))

    def polygon(self, points: Sequence[Point]) -> np.ndarray:
        """Any simple polygon: distance to the nearest edge, sign by the even-odd rule."""
        distance = np.full(self.x.shape, np.inf)
        inside = np.zeros(self.x.shape, bool)
        for (ax, ay), (bx, by) in zip(points, [*points[1:], points[0]]):
            distance = np.minimum(distance, _to_segment(self.x, self.y, (ax, ay), (bx, by)))
            if ay != by:
                crosses = (ay > self.y) != (by > self.y)
                inside ^= crosses & (self.x < ax + (self.y - ay) * (bx - ax) / (by - ay))
        return np.where(inside, -distance, distance)

    def symmetric(self, half: Sequence[Point]) -> np.ndarray:
        """Polygon whose right half is outlined by `half`, from top to bottom."""
        return self.polygon([*half, *((-x, y) for x, y in reversed(half))])


def _to_segment(x: np.ndarray, y: np.ndarray, start: Point, end: Point) -> np.ndarray:
    dx, dy = end[0] - start[0], end[1] - start[1]
    px, py = x - start[0], y - start[1]
    along = np.clip((px * dx + py * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return np.hypot(px - along * dx, py - along * dy)


# ---------------------------------------------------------------------------------------------------------------------
# One function per category: (plane, rng) -> parts


def bell(plane: Plane, rng: np.random.Generator) -> list[Part]:
    waist, flare = rng.uniform(0.42, 0.55), rng.uniform(0.72, 0.88)
    profile = [(0.14, -0.74), (0.34, -0.62), (waist, -0.15), (waist + 0.06, 0.25), (flare, 0.62)]
    return [
        (plane.ring(0, -0.84, 0.13, 0.06), SECOND),
        (plane.disc(rng.uniform(-0.15, 0.15), 0.74, 0.19), ACCENT),
        (plane.symmetric(profile), BODY),
        (plane.box(0, 0.6, flare + 0.04, 0.07, 0.05), SECOND),
    ]


def drum(plane: Plane, rng: np.random.Generator) -> list[Part]:
    half = rng.uniform(0.32, 0.5)
    top, bottom = 0.12 - half, 0.12 + half
    ropes = 2 * rng.integers(3, 5) + 1
    zigzag = [(x, top + 0.24 if i % 2 == 0 else bottom + 0.06) for i, x in enumerate(np.linspace(-0.66, 0.66, ropes))]
    parts = [
        (union(plane.box(0, 0.12, 0.74, half), plane.ellipse(0, bottom, 0.74, 0.25)), BODY),
        (plane.polyline(zigzag, 0.035), ACCENT),
        (plane.ellipse(0, top, 0.78, 0.29), SECOND),
    ]
    if rng.random() < 0.7:  # a pair of sticks on the skin
        for side in (-1, 1):
            reach = rng.uniform(0.55, 0.85)
            stick = plane.line((side * reach, -0.8), (side * 0.08, top), 0.05)
            parts.append((union(stick, plane.disc(side * 0.08, top, 0.09)), ACCENT))
    return parts


def guitar(plane: Plane, rng: np.random.Generator) -> list[Part]:
    lower, upper = rng.uniform(0.5, 0.58), rng.uniform(0.38, 0.45)
    body = union(plane.disc(0, 0.42, lower), plane.disc(0, -0.16, upper), plane.box(0, 0.1, upper - 0.08, 0.2))
    pegs = [plane.line((-0.22, y), (0.22, y), 0.04) for y in (-0.93, -0.82)]
    return [
        (union(*pegs), ACCENT),
        (body, BODY),
        (union(plane.box(0, -0.42, 0.09, 0.45), plane.box(0, -0.88, 0.14, 0.13, 0.04)), SECOND),
        (plane.disc(0, 0.12, 0.17), ACCENT),
        (plane.box(0, 0.6, 0.24, 0.06), SECOND),
    ]


def siren(plane: Plane, rng: np.random.Generator) -> list[Part]:
    width, rays = rng.uniform(0.5, 0.62), rng.integers(3, 6)
    dome = intersection(plane.ellipse(0, 0.5, width, rng.uniform(0.86, 1.0)), plane.y - 0.5)
    angles = np.linspace(-1.1, 1.1, rays)
    beams = [
        plane.line((0.82 * np.sin(a), 0.34 - 0.98 * np.cos(a)), (0.96 * np.sin(a), 0.34 - 1.2 * np.cos(a)), 0.06)
        for a in angles
    ]
    return [
        (union(*beams), ACCENT),
        (union(dome, plane.box(0, 0.66, 0.78, 0.2, 0.06)), BODY),
        (plane.box(0, 0.5, 0.78, 0.07, 0.04), SECOND),
    ]


def bird(plane: Plane, rng: np.random.Generator) -> list[Part]:
    tilt = rng.uniform(-0.15, 0.15)
    head = (0.5, rng.uniform(-0.45, -0.32))
    legs = [plane.polyline([(x, 0.4), (x - 0.03, 0.75), (x + 0.14, 0.8)], 0.04) for x in (-0.12, 0.14)]
    beak = [(head[0] + 0.2, head[1] - 0.14), (head[0] + 0.2, head[1] + 0.16), (head[0] + 0.56, head[1] + 0.06)]
    wing = plane.turned(0.35 + tilt)
    return [
        (union(*legs), ACCENT),
        (
            plane.polygon(
                [(-0.35, 0.02), (-0.92, -0.2 + tilt), (-0.84, 0.1 + tilt), (-0.92, 0.36 + tilt), (-0.35, 0.32)]
            ),
            SECOND,
        ),
        (plane.polygon(beak), ACCENT),
        (union(plane.ellipse(-0.05, 0.12, 0.64, 0.43), plane.disc(*head, 0.31)), BODY),
        (wing.ellipse(-0.08, 0.1, 0.34, 0.17), SECOND),
        (plane.disc(head[0] + 0.1, head[1] - 0.07, 0.075), ACCENT),
    ]


def gear(plane: Plane, rng: np.random.Generator) -> list[Part]:
    teeth, hole = rng.integers(7, 12), rng.uniform(0.18, 0.3)
    radius, angle = plane.polar()
    wheel = radius - (0.8 + 0.15 * np.tanh(4 * np.cos(teeth * angle)))
    return [(intersection(wheel, hole - radius), BODY), (np.abs(radius - hole - 0.1) - 0.07, ACCENT)]


def clock(plane: Plane, rng: np.random.Generator) -> list[Part]:
    face, parts = rng.uniform(0.66, 0.74), []
    if rng.random() < 0.35:  # an alarm clock: two bells and two feet
        caps = [plane.disc(side * 0.52, -0.74, 0.24) for side in (-1, 1)]
        feet = [plane.line((side * 0.55, 0.7), (side * 0.68, 0.94), 0.07) for side in (-1, 1)]
        parts.append((union(*caps, *feet), BODY))
    marks = [plane.line(_at(h, face - 0.16), _at(h, face - 0.05), 0.045) for h in np.arange(12) * np.pi / 6]
    short, long = rng.uniform(0, 2 * np.pi, 2)
    hands = [plane.line((0, 0), _at(short, 0.36), 0.075), plane.line((0, 0), _at(long, face - 0.12), 0.05)]
    return [
        *parts,
        (plane.disc(0, 0, 0.92), BODY),
        (plane.disc(0, 0, face), SECOND),
        (plane.ring(0, 0, 0.2, 0.05), BODY),
        (union(*marks, *hands), ACCENT),
    ]


def _at(angle: float, radius: float) -> Point:
    return radius * np.cos(angle), radius * np.sin(angle)


def flute(plane: Plane, rng: np.random.Generator) -> list[Part]:
    plane = plane.turned(rng.uniform(-0.6, 0.6))
    half, holes = rng.uniform(0.22, 0.27), rng.integers(3, 5)
    joints = [plane.box(x, 0, 0.07, half + 0.05, 0.03) for x in (-0.94, -0.02, 0.94)]
    row = [plane.disc(side * x, 0, 0.11) for side in (-1, 1) for x in np.linspace(0.2, 0.74, holes)]
    return [(plane.box(0, 0, 1.0, half, 0.06), BODY), (union(*joints), SECOND), (union(*row), ACCENT)]


def fan(plane: Plane, rng: np.random.Generator) -> list[Part]:
    blades, turn = rng.integers(3, 6), rng.uniform(0, 2 * np.pi)
    radius, angle = plane.polar()
    rotor = 0.6 * (radius - 0.84 * np.abs(np.cos(blades * (angle + turn) / 2)) ** 0.55)
    return [(np.abs(radius - 0.93) - 0.055, SECOND), (rotor, BODY), (radius - 0.2, ACCENT), (radius - 0.08, SECOND)]


def drop(plane: Plane, rng: np.random.Generator) -> list[Part]:
    def droplet(x: float, y: float, size: float) -> np.ndarray:
        tip = [(0.0, -0.95), (0.12, -0.62), (0.44, 0.06), (0.3, 0.45)]
        placed = plane.moved(x, y)
        scaled = Plane(placed.x / size, placed.y / size)
        return size * union(scaled.symmetric(tip), scaled.disc(0, 0.3, 0.5))

    large = rng.uniform(0.9, 1.08)
    return [
        (droplet(-0.2, 0.16, large), BODY),
        (droplet(rng.uniform(0.5, 0.66), -0.5, rng.uniform(0.42, 0.5)), BODY),
        (droplet(0.66, 0.48, rng.uniform(0.36, 0.46)), BODY),
        (plane.turned(0.3).ellipse(-0.28, 0.58, 0.09, 0.19), SECOND),
    ]


def phone(plane: Plane, rng: np.random.Generator) -> list[Part]:
    half = rng.uniform(0.46, 0.6)
    side = 2 * rng.integers(2) - 1
    keys = [
        plane.box(column * half * 0.56, 0.02 + 0.25 * row, 0.1, 0.08, 0.03) for column in (-1, 0, 1) for row in range(4)
    ]
    return [
        (plane.line((side * (half - 0.12), -0.7), (side * (half - 0.12), -0.98), 0.09), SECOND),
        (plane.box(0, 0.03, half, 0.95, 0.14), BODY),
        (plane.box(0, -0.52, half - 0.12, 0.26, 0.04), SECOND),
        (union(*keys), ACCENT),
    ]


def horn(plane: Plane, rng: np.random.Generator) -> list[Part]:
    mouth = rng.uniform(0.46, 0.58)
    upper = [(-0.98, -0.17), (0.1, -0.2), (0.5, -0.28), (0.98, -mouth)]
    tube = [*upper, *((x, -y) for x, y in reversed(upper))]
    valves = [union(plane.box(x, -0.28, 0.07, 0.2), plane.box(x, -0.5, 0.1, 0.06, 0.02)) for x in (-0.5, -0.24, 0.02)]
    loop = np.abs(plane.ellipse(-0.24, 0.26, 0.5, rng.uniform(0.26, 0.32))) - 0.1
    return [
        (union(*valves), ACCENT),
        (loop, SECOND),
        (plane.polygon(tube), BODY),
        (plane.box(-0.97, 0, 0.06, 0.22, 0.03), SECOND),
    ]


def cat(plane: Plane, rng: np.random.Generator) -> list[Part]:
    ear, eye = rng.uniform(-1.0, -0.82), rng.uniform(0.1, 0.15)
    ears = [plane.polygon([(s * 0.76, 0.0), (s * 0.68, ear), (s * 0.12, -0.4)]) for s in (-1, 1)]
    whiskers = [
        plane.line((s * 0.3, 0.48), (s * 0.98, 0.48 + lift), 0.035) for s in (-1, 1) for lift in (-0.14, 0.05, 0.24)
    ]
    nose = plane.polygon([(-0.12, 0.3), (0.12, 0.3), (0.0, 0.45)])
    mouth = plane.polyline([(-0.2, 0.62), (0.0, 0.52), (0.2, 0.62)], 0.03)
    return [
        (union(*ears), SECOND),
        (plane.ellipse(0, 0.2, 0.82, 0.7), BODY),
        (union(*(plane.disc(s * 0.34, 0.03, eye + 0.06) for s in (-1, 1))), SECOND),
        (union(nose, mouth, *whiskers, *(plane.disc(s * 0.34, 0.03, eye) for s in (-1, 1))), ACCENT),
    ]


def snake(plane: Plane, rng: np.random.Generator) -> list[Part]:
    waves, phase, half = rng.uniform(3.8, 5.4), rng.uniform(0, 2 * np.pi), rng.uniform(0.18, 0.23)
    swing = 0.4

    def height(x: np.ndarray | float) -> np.ndarray | float:
        return swing * np.sin(waves * x + phase)

    slope = np.hypot(1, swing * waves * np.cos(waves * plane.x + phase))  # vertical gap -> distance across the curve
    taper = np.clip((plane.x + 1.0) / 0.5, 0.25, 1)  # the tail thins out
    across = np.abs(plane.y - height(plane.x)) / slope - half * taper
    head = (0.8, float(height(0.8)))
    tongue = plane.polyline([head, (head[0] + 0.3, head[1]), (head[0] + 0.42, head[1] - 0.08)], 0.03)
    return [
        (intersection(across, np.abs(plane.x) - 0.85), BODY),
        (tongue, ACCENT),
        (plane.ellipse(*head, 0.24, 0.25), BODY),
        (plane.disc(head[0] + 0.06, head[1] - 0.09, 0.075), ACCENT),
    ]


def bee(plane: Plane, rng: np.random.Generator) -> list[Part]:
    wing = rng.uniform(0.42, 0.52)
    wings = [plane.moved(x, -0.46).turned(lean).ellipse(0, 0, 0.25, wing) for x, lean in ((-0.42, -0.5), (0.2, 0.3))]
    feelers = [plane.line((0.7, 0.05), (x, -0.34), 0.035) for x in (0.78, 0.98)]
    return [
        (union(*wings), SECOND),
        (plane.polygon([(-0.62, 0.1), (-1.0, 0.26), (-0.62, 0.42)]), ACCENT),
        (plane.ellipse(-0.05, 0.25, 0.72, rng.uniform(0.4, 0.48)), BODY),
        (union(plane.disc(0.68, 0.16, 0.24), *feelers), ACCENT),
        (plane.disc(0.75, 0.1, 0.07), SECOND),
    ]


def car(plane: Plane, rng: np.random.Generator) -> list[Part]:
    roof, wheel = rng.uniform(0.34, 0.46), rng.uniform(0.22, 0.27)
    cabin = plane.polygon([(-roof - 0.3, 0.0), (-roof, -0.5), (roof - 0.08, -0.5), (roof + 0.3, 0.0)])
    rear = plane.polygon([(-roof - 0.12, -0.05), (-roof + 0.06, -0.39), (-0.07, -0.39), (-0.07, -0.05)])
    front = plane.polygon([(0.06, -0.05), (0.06, -0.39), (roof - 0.14, -0.39), (roof + 0.1, -0.05)])
    return [
        (union(plane.box(0, 0.18, 0.98, 0.26, 0.1), cabin), BODY),
        (union(rear, front), SECOND),
        (union(*(plane.disc(x, 0.44, wheel) for x in (-0.55, 0.55))), ACCENT),
        (union(*(plane.disc(x, 0.44, 0.1) for x in (-0.55, 0.55)), plane.box(0.92, 0.1, 0.07, 0.08)), SECOND),
    ]
