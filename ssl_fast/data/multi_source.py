"""Annotations of the sets in which several sources sound, and of those where a prompt names the source.

* music-solo, music-duet: music_solo.json, music_duet.json of AVGN, [{"file", "class", "bbox": [x, y, width, height]}],
  of duets "class_src1", "bbox_src1", "class_src2", "bbox_src2": samples ID/1 and ID/2 of one image and one sound.
* vggsound-single, vggsound-duet: vggsound_single_test.csv, vggsound_duet_test.csv of AVGN, lines ID,CLASS, of duets
  ID,CLASS,ID,CLASS, and vggss.json beside it: samples A+B/1 and A+B/2, each of the two frames under the sum of both
  sounds.
* vgg-instruments, vgg-instruments-duet: vgginstruments_test.csv, vgginstruments_multi_test.csv of AVGN, the same with
  masks.
* ade20k-speech, ade20k-sound: prompted_segmentation.csv of DenseAV, with the columns image_location, ade_class_id, and
  speech_prompt_file or vggsound_file: samples IMAGE+SOUND.

Boxes are fractions of the frame. Those of MUSIC have a width and a height, as NoPrior's program reads them (it
truncates the two to whole pixels each by itself, so that its boxes may be a pixel smaller; AVGN's takes them for the
other corner). A frame of a duet is judged by its own boxes (AVGN's program takes those of its partner). In NoPrior's
program the frames of a duet are one image, one above the other, whose map is cut in two again before it is counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from .ground_truth import Annotation, Annotations, annotations_of
from .sample_lists import DataError, check_unique, read_annotations, read_json, read_rows, short, wrong_id

_BOXES = "vggss.json"


def music(path: Path, sources: int) -> Annotations:
    """Solos (1 source) or duets (2)."""
    endings = [""] if sources == 1 else ["_src1", "_src2"]
    keys = {"file", *(f"{key}{ending}" for key in ("class", "bbox") for ending in endings)}
    entries = read_json(path, "annotations as a JSON list")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a JSON list of annotations, got {short(entries)}")
    raw = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or entry.keys() != keys:
            raise DataError(f"{path}: entry {i}: expected {', '.join(sorted(keys))}, got {short(entry)}")
        name = entry["file"]
        for source, ending in enumerate(endings, 1):
            category, box = entry[f"class{ending}"], entry[f"bbox{ending}"]
            if not all(isinstance(text, str) and not wrong_id(text) for text in (name, category)):
                raise DataError(f"{path}: entry {i}: expected an id and a class, got {short(name)}, {short(category)}")
            # a float holds no integer of any size
            numbers = isinstance(box, list) and all(type(side) in (int, float) and abs(side) < 1e300 for side in box)
            if not numbers or len(box) != 4 or not all(0 <= side <= 1 for side in box[2:]):
                raise DataError(f"{path}: {name!r}: expected a box [x, y, width, height], got {short(box)}")
            x, y, width, height = box
            one = Annotation(name if sources == 1 else f"{name}/{source}", name, name, category, name)
            raw.append((one, [[x, y, x + width, y + height]]))
    return annotations_of(path, "union", 1, raw)


def vggsound(path: Path, sources: int) -> Annotations:
    """Clips of VGG-SS, or pairs of them."""
    known = read_annotations(path.with_name(_BOXES))
    raw = []
    for one, number in _clips(path, sources):
        entry = known.get(one.image, {})
        if not entry.get("bbox") or "class" not in entry:
            raise DataError(f"{path}: line {number}: expected class and boxes of {one.image!r} in {_BOXES}, got none")
        raw.append((replace(one, category=entry["class"]), entry["bbox"]))
    return annotations_of(path, "union", 1, raw)


def instruments(path: Path, sources: int) -> Annotations:
    """Clips of VGG-Instruments, or pairs of them, with masks ID.png."""
    clips = (one for one, _ in _clips(path, sources, mask="{}.png"))
    return annotations_of(path, "union", 1, ((one, None) for one in clips))


def _clips(path: Path, sources: int, mask: str = "") -> Iterator[tuple[Annotation, int]]:
    """Samples without boxes, and the lines that they are of."""
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: expected lines {'ID,CLASS' if sources == 1 else 'ID,CLASS,ID,CLASS'}, got none")
    for number, row in rows:
        names, classes = row[::2], [cell.replace("_", " ") for cell in row[1::2]]
        if len(row) != 2 * sources or len({*names}) < sources or any(wrong_id(cell) for cell in row):
            expected = ",".join(["ID,CLASS"] * sources) + " of two clips" * (sources == 2)
            raise DataError(f"{path}: line {number}: expected {expected}, got {','.join(row)!r}")
        for k, (name, category) in enumerate(zip(names, classes)):
            sample = name if sources == 1 else f"{'+'.join(names)}/{k + 1}"
            mixed = None if sources == 1 else names[1 - k]
            yield (
                Annotation(sample, name, name, category, sample, mask=mask.format(name) or None, mixed=mixed),
                number,
            )


def prompted(path: Path, column: str) -> Annotations:
    """Images of ADE20K and sounds that name one of their classes; column: of the sounds' files. As in DenseAV's
    program, lines without such a file are no samples of the set, nor are those of class 0."""
    columns = "image_location", "ade_class_id", column
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise DataError(f"{path}: expected the columns {', '.join(columns)}, got none called {missing[0]}")
            check_unique([name for name in header if name in columns], path, "columns")
            rows = []
            for cells in filter(None, reader):
                number = reader.line_num
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}: line {number}: expected {len(header)} cells as in the header, got {len(cells)}"
                    )
                rows.append((number, *(cells[header.index(name)] for name in columns)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected comma-separated values in UTF-8, got {error}") from error
    samples = []
    for number, image, label, sound in rows:
        if not sound or label == "0":
            continue
        stem, sound = image.removesuffix(".jpg"), sound.rpartition("/")[2]
        if stem == image or wrong_id(stem) or wrong_id(sound) or not label.isdecimal():
            got = ",".join((image, label, sound))
            raise DataError(f"{path}: line {number}: expected IMAGE.jpg, the number of a class, a sound, got {got!r}")
        name = f"{stem}+{sound.rpartition('.')[0] or sound}"
        samples.append(Annotation(name, stem, sound, label, stem, mask=f"{stem}_seg.png", label=int(label)))
    if not samples:
        raise DataError(f"{path}: expected lines with a {column} and a class, got none")
    check_unique([one.id for one in samples], path, "samples")
    return Annotations(tuple(samples), "union", {}, str(path))
