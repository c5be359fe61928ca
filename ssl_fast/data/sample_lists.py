"""Lists of samples in files: ids (.txt, .csv), and annotations as JSON in VGG-SS's format, every entry checked."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """A folder's files, lists and annotations do not fit together. Names the first problems and tells how many."""


def find_list(root: Path, split: str | os.PathLike) -> Path:
    """The list of ids: "NAME" for NAME.txt or NAME.csv in the folder, else a path from here or from the folder."""
    if Path(split).suffix in (".txt", ".csv"):
        candidates = list(dict.fromkeys((Path(split), root / split)))
    else:
        candidates = [root / f"{split}.txt", root / f"{split}.csv"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise DataError(f"{' or '.join(map(str, candidates))}: no such list of ids")
    return path


def read_ids(path: Path) -> list[str]:
    """Ids of a list file in order: one a line, of a .csv the first column. DataError where there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected ids in UTF-8, got {error.reason} at byte {error.start}") from error
    if path.suffix == ".csv":
        lines = [row[0] for row in csv.reader(lines) if row]
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path}: expected a list of ids, got none")
    return ids


def read_annotations(path: Path) -> dict[str, dict]:
    """{id: entry} of an annotation file, every entry checked."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected annotations as a JSON list, got {error}") from error
    if not isinstance(entries, list) or not entries:
        got = "an empty one" if entries == [] else type(entries).__name__
        raise DataError(f"{path}: expected a JSON list of annotations, got {got}")
    out: dict[str, dict] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not entry["file"]:
            raise DataError(f'{path}: entry {i}: expected an object with "file": id, got {str(entry)[:80]}')
        wrong = "annotated twice" if entry["file"] in out else _wrong(entry)
        if wrong:
            raise DataError(f"{path}: entry {i}, {entry['file']!r}: {wrong}")
        out[entry["file"]] = entry
    return out


def _wrong(entry: dict) -> str:
    """Fault of an annotation in words, or ""."""
    unknown = sorted(entry.keys() - {"file", "class", "bbox", "mask", "image", "audio", "visible"})
    if unknown:
        return f"unknown key {unknown[0]!r}"
    for key in ("class", "mask", "image", "audio"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key]):
            return f"{key}: expected a string, got {entry[key]!r}"
    visible = entry.get("visible", [])
    if not isinstance(visible, list) or not all(isinstance(name, str) for name in visible):
        return f"visible: expected a list of strings, got {visible!r}"
    if visible and "class" in entry and entry["class"] not in visible:
        return f"visible: expected the sample's own class {entry['class']!r} among them, got {visible!r}"
    boxes = entry.get("bbox", [])
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(1)
    if not isinstance(boxes, list) or (array.size and array.shape[1:] != (4,)) or not np.isfinite(array).all():
        return f"bbox: expected [[xmin, ymin, xmax, ymax], ...], got {str(boxes)[:80]}"
    if array.size and array.max() > 2:  # far below 0 is known dirt, far above 1 another unit
        return f"bbox: expected fractions of the frame, got pixels or the like ({array.max():g})"
    return ""
