"""Ground truth of the field's test sets, read from the files in which it is published.

    from ssl_fast.data.annotations import read, weight_map
    test = read("vgg-ss", "vggss.json", ids="vggss_test.csv")
    weight_map(test.samples[0].boxes, test.rule)        # (224, 224) float32
    print(test.report())                                # what was clipped, dropped, empty

| set | file | boxes | ground truth |
| --- | --- | --- | --- |
| vgg-ss | JSON, VGG-SS's own | fractions of the frame | union |
| vgg-ss-xml | folder of XML, one an image, as SSL-TIE publishes it | fractions of the frame | union |
| flickr | folder of XML, one an image, of Flickr-SoundNet | pixels of 256 x 256 | consensus |
| is3, is3-plus, vpo-ss, vpo-ms | JSON of SSL-Align, with boxes or with paths of masks | pixels of 224 x 224 | union |
| s4, ms3 | the same, of AVSBench; or AVSBench's csv: masks, of the videos of a split | pixels of 224 x 224 | union |

and those of several sources, and of ADE20K with prompts, as `multi_source` lists them.

Boxes become pixels of 224 x 224 as all published programs have it: scaled, then truncated. Dirt is handled by the rules
in `DIRT`, and every case is counted (`Annotations.dirt`). Anything else that is wrong is a DataError that names the
file and the entry.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from .avsbench import FRAMES, SPLITS, ms3_videos, s4_videos
from .io.images import Geometry, sides
from .sample_lists import (
    DataError,
    check_unique,
    read_annotations,
    read_ids,
    read_json,
    read_rows,
    short,
    some,
    wrong_id,
)

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


def read(
    name: str,
    path: str | os.PathLike,
    *,
    split: str = "test",
    ids: str | os.PathLike | None = None,
    negatives: str | os.PathLike | None = None,
) -> Annotations:
    """The annotations of a set (a key of READERS) in a file or folder; split: of AVSBench's csv, else there is but one;
    ids: a list of them (default: all there are), in any form in which those of the set are published, see
    sample_lists.ID_FORMS; negatives: an Extended list, appended.
    """
    if name not in READERS:
        raise ValueError(f"set: expected one of {', '.join(READERS)}, got {name!r}")
    found = READERS[name](Path(path)).of_split(split)
    if ids is not None:
        found = found.select(read_ids(Path(ids), SOURCES.get(name)), str(ids))
    return found if negatives is None else found.extended(negatives)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def _vggss(path: Path) -> Annotations:
    """[{"file": ID, "class": NAME, "bbox": [[xmin, ymin, xmax, ymax], ...]}, ...]."""
    entries = read_annotations(path)
    for name, entry in entries.items():
        if "class" not in entry or not entry.get("bbox"):
            raise DataError(f"{path}: {name!r}: expected a class and boxes, got {', '.join(entry)}")
    raw = ((Annotation(name, name, name, entry["class"], name), entry["bbox"]) for name, entry in entries.items())
    return annotations_of(path, "union", 1, raw)


def _sslalign(path: Path, depth: int, named: Callable[[str, str], tuple[str | None, str]]) -> Annotations:
    """[{"image": path, "audio": path, "gt_box": [xmin, ymin, xmax, ymax] or the path of a mask}, ...]: paths of another
    machine, whose last `depth` parts (of the sound one less, at least one) are kept; named(image stem, audio stem)
    tells category and group."""
    entries = read_json(path, "annotations as a JSON list")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a JSON list of annotations, got {short(entries)}")

    def tail(text: str, parts: int) -> PurePosixPath:
        return PurePosixPath(*PurePosixPath(text).parts[-parts:])

    raw = []
    for i, entry in enumerate(entries):
        texts = [entry.get(key) for key in ("image", "audio")] if isinstance(entry, dict) else [None]
        named_files = all(isinstance(text, str) and PurePosixPath(text).name for text in texts)
        if not named_files or not isinstance(entry.get("gt_box"), (list, str)):
            raise DataError(f"{path}: entry {i}: expected image, audio and gt_box, got {short(entry)}")
        image = tail(entry["image"], depth).with_suffix("").as_posix()
        audio = tail(entry["audio"], max(1, depth - 1)).with_suffix("").as_posix()
        box, mask = entry["gt_box"], None
        if isinstance(box, str):
            box, mask = None, tail(box, depth).as_posix()
        wrong = [text for text in (image, audio, mask) if text is not None and wrong_id(text)]
        if wrong:
            raise DataError(f"{path}: entry {i}: expected paths of files, got {wrong[0]!r}: {wrong_id(wrong[0])}")
        raw.append((Annotation(image, image, audio, *named(image, audio), mask=mask), None if box is None else [box]))
    return annotations_of(path, "union", SIZE, raw)


def _is3(path: Path) -> Annotations:
    """A name is CLASS_CLASS_NUMBER_SOUNDING; without the last part it is the image's, which two sounds share."""
    return _sslalign(path, 1, lambda image, audio: (image.rpartition("_")[2], image.rpartition("_")[0]))


def _vpo(path: Path) -> Annotations:
    """Names are IMAGE_OBJECT, of COCO's image and annotation; the class is not told."""
    return _sslalign(path, 1, lambda image, audio: (None, image.rpartition("_")[0]))


def _s4(path: Path) -> Annotations:
    """Images are CLASS/VIDEO/VIDEO_N, N of 1 to 5; all of a video have its sound, CLASS/VIDEO. To train there is the
    mask of the first alone."""
    if path.suffix.lower() != ".csv":
        return _sslalign(path, 3, lambda image, audio: (image.partition("/")[0], audio))
    raw = []
    for video in s4_videos(path):
        folder = f"{video.category}/{video.name}"
        for n in range(1, 2 if video.split == "train" else FRAMES + 1):
            stem = f"{folder}/{video.name}_{n}"
            one = Annotation(stem, stem, folder, video.category, folder, mask=f"{stem}.png", split=video.split)
            raw.append((one, None))
    return annotations_of(path, "union", SIZE, raw)


def _ms3(path: Path) -> Annotations:
    """Images are VIDEO/VIDEO.mp4_N, N of 1 to 5, their masks VIDEO/VIDEO_N; all of a video have its sound, VIDEO."""
    if path.suffix.lower() != ".csv":
        return _sslalign(path, 2, lambda image, audio: (None, audio))
    raw = []
    for video in ms3_videos(path):
        for n in range(1, FRAMES + 1):
            image, mask = f"{video.name}/{video.name}.mp4_{n}", f"{video.name}/{video.name}_{n}.png"
            more = {"mask": mask, "split": video.split, "visible": video.alike}
            raw.append((Annotation(image, image, video.name, video.category, video.name, **more), None))
    return annotations_of(path, "union", SIZE, raw)


def _flickr(path: Path) -> Annotations:
    """root > annotator > bbox > five children: something, then xmin, ymin, xmax, ymax of 256 x 256."""
    found = _xml(
        path,
        "consensus",
        256,
        lambda root: [
            (box.tag, [float(side.text) for side in list(box)[1:]]) for annotator in root for box in annotator
        ],
    )
    return replace(found, square=True)


def _ssl_tie(path: Path) -> Annotations:
    """root > bbox > box > xmin, ymin, xmax, ymax as fractions of the frame."""
    return _xml(
        path,
        "union",
        1,
        lambda root: [(boxes.tag, [float(side.text) for side in box]) for boxes in root for box in boxes],
    )


def _xml(folder: Path, rule: str, unit: float, boxes_of: Callable) -> Annotations:
    """ID.xml of a folder, sorted; boxes_of(root) lists (tag, coordinates)."""
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise DataError(f"{folder}: expected a folder of annotations ID.xml, got none")
    raw = []
    for file in files:
        try:
            boxes = boxes_of(ElementTree.parse(file).getroot())
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise DataError(f"{file}: expected boxes of numbers in XML, got {error}") from error
        wrong = [tag for tag, _ in boxes if tag != "bbox"]
        if wrong or not boxes:
            raise DataError(f"{file}: expected bbox elements, got {wrong[0] if wrong else 'none'}")
        raw.append((Annotation(file.stem, file.stem, file.stem, None, file.stem), [box for _, box in boxes]))
    return annotations_of(folder, rule, unit, raw)


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


def _multi_source():
    from . import multi_source  # which imports this module

    return multi_source


READERS: dict[str, Callable[[Path], Annotations]] = {
    "vgg-ss": _vggss,
    "vgg-ss-xml": _ssl_tie,
    "flickr": _flickr,
    "is3": _is3,
    "is3-plus": _is3,
    "s4": _s4,
    "ms3": _ms3,
    "vpo-ss": _vpo,
    "vpo-ms": _vpo,
    "music-solo": lambda path: _multi_source().music(path, 1),
    "music-duet": lambda path: _multi_source().music(path, 2),
    "vggsound-single": lambda path: _multi_source().vggsound(path, 1),
    "vggsound-duet": lambda path: _multi_source().vggsound(path, 2),
    "vgg-instruments": lambda path: _multi_source().instruments(path, 1),
    "vgg-instruments-duet": lambda path: _multi_source().instruments(path, 2),
    "ade20k-speech": lambda path: _multi_source().prompted(path, "speech_prompt_file"),
    "ade20k-sound": lambda path: _multi_source().prompted(path, "vggsound_file"),
}
# The data set that a test set is a part of, whose ids its lists have.
SOURCES = {"vgg-ss": "vggsound", "vgg-ss-xml": "vggsound", "flickr": "flickr", "vggsound-single": "vggsound"}
