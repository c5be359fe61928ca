"""AVSBench's own lists of videos: the csv of S4 and of MS3, and AVSBench-semantic's, which tells what sounds in MS3.

| file | columns |
| --- | --- |
| `s4_meta_data.csv` | the video (first column), `category`, `split` |
| `ms3_meta_data.csv` | the video (first column), `split` |
| `metadata.csv` of AVSBench-semantic | `vid`, `a_obj` (classes, `_` between), `split`, `label` (`v1m` for MS3) |

There may be further columns. A split is train, val or test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .sample_lists import DataError, check_unique, read_rows, some, wrong_id

SPLITS = ("train", "val", "test")
FRAMES = 5  # of a clip of 5 s
_MS3 = "v1m"  # label of MS3's videos in AVSBench-semantic


@dataclass(frozen=True)
class Video:
    """name; split, of SPLITS; category: the class, of MS3 all its classes with `_` between, None where the file does
    not tell; alike: the categories of the file with a class of this one, itself among them."""

    name: str
    split: str
    category: str | None = None
    alike: frozenset[str] = frozenset()


def s4_videos(path: Path) -> list[Video]:
    """The videos of `s4_meta_data.csv`. DataError for a column that is not there, and for lines that are none."""
    header, rows = _table(path, ["category", "split"])
    return [Video(row[header[0]], row["split"], row["category"]) for row in rows]


def ms3_videos(path: Path) -> list[Video]:
    """Those of `ms3_meta_data.csv`, or of MS3 in AVSBench-semantic's `metadata.csv`. DataError as of `s4_videos`."""
    header, rows = _table(path, ["split"])
    if "label" not in header:
        return [Video(row[header[0]], row["split"]) for row in rows]
    rows = [row for row in _table(path, ["vid", "a_obj", "split", "label"])[1] if row["label"] == _MS3]
    classes = {row["a_obj"]: frozenset(row["a_obj"].split("_")) for row in rows}
    without = [row["vid"] for row in rows if "" in classes[row["a_obj"]]]
    if without:
        raise DataError(f"{path}: expected classes in a_obj with _ between, got none of {some(without)}")
    alike = {one: frozenset(other for other in classes if classes[one] & classes[other]) for one in classes}
    return [Video(row["vid"], row["split"], row["a_obj"], alike[row["a_obj"]]) for row in rows]


def _table(path: Path, columns: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """The header, and {column: cell} of each line."""
    (_, header), *lines = read_rows(path) or [(1, [])]
    lacking = [column for column in columns if column not in header]
    if lacking:
        raise DataError(f"{path}: expected a column {lacking[0]!r}, got {', '.join(header) or 'an empty file'}")
    check_unique([column for column in header if column in columns], path, "columns")
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            raise DataError(f"{path}: line {number}: expected {len(header)} cells as in the header, got {len(cells)}")
        row = dict(zip(header, cells))
        if row["split"] not in SPLITS:
            raise DataError(f"{path}: line {number}: expected a split, {', '.join(SPLITS)}, got {row['split'][:80]!r}")
        for cell in (cells[0], row.get("vid", cells[0]), row.get("category", cells[0])):
            if problem := wrong_id(cell):
                raise DataError(f"{path}: line {number}: expected the name of a folder, got {cell[:80]!r}: {problem}")
        rows.append(row)
    return header, rows
