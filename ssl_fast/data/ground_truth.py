"""Annotations of test samples: boxes and masks, boxes as pixels and weights, and what is done about dirt.

Boxes become pixels of 224 x 224 as all published programs have it: scaled, then truncated. Dirt is handled by the rules
in `DIRT`, and every case is counted (`Annotations.dirt`). Anything else that is wrong is a DataError that names the
file and the entry.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .avsbench import SPLITS
from .io.images import Geometry, sides
from .sample_lists import DataError, check_unique, read_rows, short, some, wrong_id

SIZE = 224  # pixels a side: every published evaluator works at this size
DIRT = {
    "outside": "coordinates outside the frame (negative, -2.9e16) are clipped to it",
    "degenerate": "boxes without a pixel are dropped",
    "empty": "sounding samples without a box left stay, with a ground truth that nothing can hit",
    "whole frame": "samples whose ground truth fills the frame stay",
    "misspelt": "classes are spelt right",
}
SPELLING = {"eletric blender running": "electric blender running"}


@dataclass(frozen=True)
class Annotation:
    """Annotation of one sample.

    id: unique in its set. image, audio: stems of its files, with folders. category: of the sounding object, None where
    unknown. group: the image (of S4 the video) that IIoU takes together. boxes: (k, 4) int, xmin, ymin, xmax, ymax in
    pixels of 224 x 224, ends excluded, or None; fractions: the same, (k, 4) float, as fractions of the frame. mask: the
    path of one, or None; label: of a mask that is an image of ADE20K's labels, the one of the object. mixed: stem of a
    second sound that is added to the first. sounding: False for an image with a sound that nothing in it makes (boxes
    then are (0, 4)). split: the part of the set, of AVSBench. visible: the classes in the image; where none are, those
    of its group.
    """

    id: str
    image: str
    audio: str
    category: str | None
    group: str
    boxes: np.ndarray | None = None
    mask: str | None = None
    sounding: bool = True
    fractions: np.ndarray | None = None
    split: str = "test"
    visible: frozenset[str] = frozenset()
    label: int | None = None
    mixed: str | None = None

    def boxes_in(self, geometry: Geometry, size: int | tuple[int, int] = SIZE) -> np.ndarray | None:
        """`boxes` in the square of `size` pixels, or the part of (width, height), that `geometry` cuts out of the
        frame, (n, 4) int, scaled and truncated alike; n <= k, as those of which no pixel is left are dropped."""
        if self.boxes is None or (geometry == Geometry() and size == SIZE):
            return self.boxes
        assert self.fractions is not None
        return geometry.pixels(self.fractions, size)


@dataclass(frozen=True)
class Annotations:
    """Samples in order; rule: "union" or "consensus" (see weight_map); dirt: for each key of DIRT the id of every case;
    source: the file or folder; square: boxes were drawn in squares, and it is not known how frames that are not square
    became these."""

    samples: tuple[Annotation, ...]
    rule: str
    dirt: dict[str, list[str]]
    source: str
    square: bool = False

    def select(self, ids: Sequence[str], of: str = "ids") -> Annotations:
        """The samples of a list, in its order. DataError names ids that are listed twice or have no annotation."""
        check_unique(ids, of)
        known = {sample.id: sample for sample in self.samples}
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise DataError(f"{of}: {len(unknown)} ids without annotation in {self.source}: {some(unknown)}")
        listed = set(ids)
        dirt = {kind: [name for name in cases if name in listed] for kind, cases in self.dirt.items()}
        return replace(self, samples=tuple(known[name] for name in ids), dirt=dirt)

    def of_split(self, split: str) -> Annotations:
        """The samples of a split. DataError where there are none."""
        ids = [sample.id for sample in self.samples if sample.split == split]
        if not ids:
            there = [one for one in SPLITS if any(sample.split == one for sample in self.samples)]
            raise DataError(
                f"{self.source}: expected samples of split {split!r}, got those of {', '.join(there) or 'none'}"
            )
        return self.select(ids)

    def extended(self, path: str | os.PathLike) -> Annotations:
        """These samples and, after them, the negatives of an Extended list (SLAVC's "plus_silent", .csv with the header
        video,audio,label): images with a sound of elsewhere, or clips in which nothing visible sounds. Their id is
        VIDEO+AUDIO, their ground truth empty. DataError for other labels and for pairs that are listed twice."""
        (_, header), *rows = read_rows(Path(path)) or [(1, [])]
        if header != ["video", "audio", "label"]:
            raise DataError(f"{path}: expected the header video,audio,label, got {','.join(header)!r}")
        negatives, none = [], {"boxes": np.zeros((0, 4), int), "fractions": np.zeros((0, 4))}
        split = self.samples[0].split
        for i, row in rows:
            if len(row) != 3 or row[2] != "non-sounding" or wrong_id(row[0]) or wrong_id(row[1]):
                raise DataError(f"{path}: line {i}: expected VIDEO,AUDIO,non-sounding, got {','.join(row)!r}")
            negatives.append(
                Annotation(f"{row[0]}+{row[1]}", row[0], row[1], None, row[0], sounding=False, split=split, **none)
            )
        check_unique([sample.id for sample in negatives], path, "pairs")
        return replace(self, samples=self.samples + tuple(negatives))

    def with_masks(self, masks: Annotations) -> Annotations:
        """These samples, each with the mask of the same id (SSL-Align's `_seg` file beside the boxes). DataError names
        samples that have none."""
        paths = {sample.id: sample.mask for sample in masks.samples if sample.mask is not None}
        without = [sample.id for sample in self.samples if sample.id not in paths]
        if without:
            raise DataError(f"{masks.source}: {len(without)} samples of {self.source} without mask: {some(without)}")
        return replace(self, samples=tuple(replace(sample, mask=paths[sample.id]) for sample in self.samples))

    def report(self) -> list[str]:
        return report(self.dirt)


def report(dirt: dict[str, list[str]]) -> list[str]:
    """A line for every kind of dirt that was met: how often, the rule, and where. dirt: {key of DIRT: ids}."""
    return [
        f"{len(cases)} x {kind} ({DIRT[kind]}): {some(list(dict.fromkeys(cases)))}"
        for kind, cases in dirt.items()
        if cases
    ]


def weight_map(boxes: np.ndarray, rule: str = "union", size: int | tuple[int, int] = SIZE) -> np.ndarray:
    """Boxes (k, 4) int in pixels of size x size, or of (width, height) -> weights (height, width) float32.

    rule: "union" is 1 inside of any box. "consensus" (Flickr-SoundNet) is half the number of boxes that cover a pixel,
    1 at most: it counts boxes, not annotators. No boxes: all 0.
    """
    if rule not in ("union", "consensus"):
        raise ValueError(f"rule: expected union or consensus, got {rule!r}")
    width, height = sides(size)
    covers = np.zeros((height, width), np.float32)
    for left, top, right, bottom in boxes:
        covers[top:bottom, left:right] += 1
    return np.minimum(covers / 2 if rule == "consensus" else covers, 1)


def annotations_of(path: Path, rule: str, unit: float, raw: Iterable[tuple[Annotation, list | None]]) -> Annotations:
    """Samples with their boxes, fractions of `unit`, made pixels; dirt handled and counted."""
    dirt: dict[str, list[str]] = {kind: [] for kind in DIRT}
    samples = []
    for sample, given in raw:
        if given is not None:
            boxes, fractions = pixels(given, unit, SIZE, f"{path}: {sample.id!r}", sample.id, dirt)
            sample = replace(sample, boxes=boxes, fractions=fractions)
        if sample.category in SPELLING:
            dirt["misspelt"].append(sample.id)
            sample = replace(sample, category=SPELLING[sample.category])
        samples.append(sample)
    check_unique([sample.id for sample in samples], path, "samples")
    return Annotations(tuple(samples), rule, dirt, str(path))


def pixels(
    given: list, unit: float, size: int, source: str, name: str, dirt: dict[str, list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of sample `name` in fractions of `unit` -> (k, 4) int in pixels of size x size, and as fractions of the
    frame, (k, 4) float, by the rules of DIRT; each case is added to `dirt`. DataError, that begins with `source`, for
    what are no boxes."""
    try:
        boxes = np.asarray(given, np.float64).reshape(len(given), 4)
    except (TypeError, ValueError, OverflowError):
        boxes = np.full((1, 4), np.nan)
    if not np.isfinite(boxes).all() or boxes.max(initial=0) > 2 * unit:
        raise DataError(f"{source}: expected boxes of four numbers up to {unit:g}, got {short(given)}")
    inside = boxes.clip(0, unit)
    dirt["outside"] += [name] * int((inside != boxes).sum())
    # fractions times the size, then truncated: the factor is exact for pixels of 256 and 224
    found = (inside * (size / unit)).astype(int)
    solid = (found[:, :2] < found[:, 2:]).all(1)
    dirt["degenerate"] += [name] * int((~solid).sum())
    if not solid.any():
        dirt["empty"].append(name)
    elif weight_map(found[solid], size=size).all():
        dirt["whole frame"].append(name)
    return found[solid], inside[solid] / unit
