"""Lists of samples in files: ids (.txt, .csv, .tsv), and annotations as JSON in VGG-SS's format, all of it checked."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DELIMITERS = {".txt": None, ".csv": ",", ".tsv": "\t"}  # of lists by suffix, in any case


class DataError(ValueError):
    """A folder's files, lists and annotations do not fit together. Names the first problems and tells how many."""


def some(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------------------------------------------------------------
# Ids

_CLIP = r"[A-Za-z0-9_-]{11}"  # of YouTube
_FILE = r"\.(jpg|png|wav|mp3|mp4|xml)"


def _of_milliseconds(text: str) -> str | None:
    """YTID_START_END in ms, of clips of 10 s, as SSL-Align has them -> YTID_SECONDS."""
    found = re.fullmatch(rf"({_CLIP})_([0-9]{{1,9}})_([0-9]{{1,9}})", text)
    if found is None or int(found[2]) % 1000 or int(found[3]) != int(found[2]) + 10_000:
        return None
    return f"{found[1]}_{int(found[2]) // 1000:06}"


def _of_cells(text: str) -> str | None:
    """YTID,SECONDS, the first cells of vggsound.csv -> YTID_SECONDS."""
    found = re.fullmatch(rf"({_CLIP}),([0-9]{{1,6}})", text)
    return found and f"{found[1]}_{int(found[2]):06}"


def film_paths(number: str) -> tuple[str, str]:
    """The two places of a clip of SoundNet-Flickr: folders of its last three digits, or of its last eight."""
    return f"videos/{'/'.join(number[-3:])}/{number}.mp4", f"videos2/{'/'.join(number[-8:])}/{number}.mp4"


def _of_film(text: str) -> str | None:
    """videos/0/0/0/2615133000.mp4, as SSL-TIE and SoundNet have it -> 2615133000."""
    number = text.rpartition("/")[2].removesuffix(".mp4")
    return number if re.fullmatch("[0-9]+", number) and text in film_paths(number) else None


def _pattern(pattern: str) -> Callable[[str], str | None]:
    def first_group(text: str) -> str | None:
        found = re.fullmatch(pattern, text)
        return found and found[1]

    return first_group


# {set: {form in which its ids are published: function that gives the id in the first form, None for other texts}}
ID_FORMS: dict[str, dict[str, Callable[[str], str | None]]] = {
    "vggsound": {
        "YTID_SECONDS (11 and 6 characters)": _pattern(rf"({_CLIP}_[0-9]{{6}})"),
        "YTID_SECONDS.jpg": _pattern(rf"({_CLIP}_[0-9]{{6}}){_FILE}"),
        "YTID_START_END (ms, 10 s apart)": _of_milliseconds,
        "YTID,SECONDS (two cells, as in vggsound.csv)": _of_cells,
    },
    "flickr": {
        "NUMBER": _pattern("([0-9]+)"),
        "NUMBER.jpg": _pattern(f"([0-9]+){_FILE}"),
        "videos/N/N/N/NUMBER.mp4": _of_film,
    },
}


def id_of_set(text: str, of: str) -> str | None:
    """An id of a set in any of its ID_FORMS, in the first of them; None for other texts."""
    return next((found for of_form in ID_FORMS[of].values() if (found := of_form(text)) is not None), None)


def normal_id(text: str) -> str:
    """An id of VGGSound or Flickr in any published form as the sets here have it; other texts as they are."""
    return next((found for of in ID_FORMS if (found := id_of_set(text, of)) is not None), text)


def wrong_id(text: str) -> str:
    """Why a text cannot be an id, which names a file in a folder or in folders in it; "" where it can."""
    if not text:
        return "it is empty"
    if any(ord(character) < 32 or character == "\x7f" for character in text):
        return "it holds a control character"
    if "\\" in text or {"", ".", ".."} & set(text.split("/")):
        return "it is no path inside of the folder, with / between folders"
    return ""


def find_list(root: Path, split: str | os.PathLike) -> Path:
    """The list of ids: a path from here or from the folder, "NAME" also for NAME.txt, NAME.csv or NAME.tsv in the
    folder. DataError where there is none, or where NAME stands for several."""
    if Path(split).suffix.lower() in DELIMITERS:
        paths = [path for path in (Path(split), root / split) if path.is_file()][:1]
        wanted = " or ".join(dict.fromkeys((str(split), str(root / split))))
    else:
        folder, name = (root / split).parent, Path(split).name
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        paths = [path for path in there if path.stem == name and path.suffix.lower() in DELIMITERS and path.is_file()]
        paths = paths or [path for path in (Path(split),) if path.is_file()]
        wanted = " or ".join(f"{root / split}{suffix}" for suffix in DELIMITERS)
    if len(paths) > 1:
        raise DataError(f"{root / split}: expected one list of ids, got {', '.join(path.name for path in paths)}")
    if not paths:
        raise DataError(f"{wanted}: no such list of ids")
    return paths[0]


def read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """(number of the line, its cells) of all lines of a list that are not blank, in order. A cell may be quoted, and
    ends in the line where it began. DataError names the line that is not so."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected ids in UTF-8, got {error.reason} at byte {error.start}") from error
    delimiter = DELIMITERS.get(path.suffix.lower())
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        cells = [line]
        if delimiter is not None:
            try:
                # each line by itself: a quote that is not closed would make one row of all that follow
                cells = next(csv.reader([line], delimiter=delimiter, strict=True))
            except csv.Error as error:
                raise DataError(f"{path}: line {number}: expected cells, quoted in pairs, got {line[:80]!r}") from error
        rows.append((number, [cell.strip() for cell in cells]))
    return rows


def read_ids(path: Path, of: str | None = None) -> list[str]:
    """Ids of a list file in order: one a line, of .csv and .tsv the first cell, of vggsound.csv the first two.

    of: a key of ID_FORMS. All lines then are in one of the forms of this set, and the ids are returned in the first of
    them. DataError, that names the line, for another form or two of them, for what cannot be an id (see wrong_id), for
    ids that are listed twice, and where there is none.
    """
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path}: expected a list of ids, got none")
    cells_of_id = 2 if of == "vggsound" and re.fullmatch(_CLIP, rows[0][1][0]) else 1
    listed = [(number, ",".join(cells[:cells_of_id])) for number, cells in rows]
    if of is not None:
        listed = _in_one_form(path, listed, of)
    for number, one in listed:
        if problem := wrong_id(one):
            raise DataError(f"{path}: line {number}: expected an id, got {one[:80]!r}: {problem}")
    ids = [one for _, one in listed]
    check_unique(ids, path)
    return ids


def check_unique(ids: Sequence[str], source: object, what: str = "ids") -> None:
    """DataError for ids that are listed more than once."""
    twice = [one for one, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(f"{source}: {len(twice)} of {len(set(ids))} {what} listed more than once: {some(twice)}")


def _in_one_form(path: Path, listed: list[tuple[int, str]], of: str) -> list[tuple[int, str]]:
    first, text = listed[0]
    forms = {words: of_form for words, of_form in ID_FORMS[of].items() if of_form(text) is not None}
    if not forms:
        known = ", ".join(ID_FORMS[of])
        raise DataError(f"{path}: line {first}: expected an id of {of}, as {known}, got {text[:80]!r}")
    words, of_form = next(iter(forms.items()))
    ids = []
    for number, text in listed:
        found = of_form(text)
        if found is None:
            raise DataError(
                f"{path}: line {number}: expected an id as {words}, the form of line {first}, got {text[:80]!r}"
            )
        ids.append((number, found))
    return ids


# ---------------------------------------------------------------------------------------------------------------------
# Annotations


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file. DataError, that tells what was `expected`, where it cannot be read or has a key
    twice."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected {expected}, got {error}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    check_unique([key for key, _ in pairs], "an object", "keys")
    return dict(pairs)


def read_annotations(path: Path) -> dict[str, dict]:
    """{id: entry} of an annotation file, every entry checked."""
    entries = read_json(path, "annotations as a JSON list")
    if not isinstance(entries, list) or not entries:
        got = "an empty one" if entries == [] else type(entries).__name__
        raise DataError(f"{path}: expected a JSON list of annotations, got {got}")
    out: dict[str, dict] = {}
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not entry["file"]:
            raise DataError(f'{path}: entry {i}: expected an object with "file": id, got {short(entry)}')
        wrong = "annotated twice" if entry["file"] in out else _wrong(entry)
        if wrong:
            raise DataError(f"{path}: entry {i}, {entry['file']!r}: {wrong}")
        out[entry["file"]] = entry
    return out


def short(value: object) -> str:
    """A value out of a file, for messages: the first 80 characters of how Python writes it."""
    try:
        return repr(value)[:80]
    except (RecursionError, ValueError):  # nested too deeply, an integer of too many digits
        return f"a {type(value).__name__} that cannot be shown"


def _wrong(entry: dict) -> str:
    """Fault of an annotation in words, or ""."""
    unknown = sorted(entry.keys() - {"file", "class", "bbox", "mask", "image", "audio", "visible"})
    if unknown:
        return f"unknown key {unknown[0]!r}"
    for key in ("class", "mask", "image", "audio"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key]):
            return f"{key}: expected a string, got {short(entry[key])}"
    for key in ("file", "mask", "image", "audio"):
        if problem := wrong_id(entry.get(key, "none")):
            return f"{key}: expected a path from the folder, got {entry[key]!r}: {problem}"
    visible = entry.get("visible", [])
    if not isinstance(visible, list) or not all(isinstance(name, str) for name in visible):
        return f"visible: expected a list of strings, got {short(visible)}"
    if visible and "class" in entry and entry["class"] not in visible:
        return f"visible: expected the sample's own class {entry['class']!r} among them, got {visible!r}"
    boxes = entry.get("bbox", [])
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.zeros(1)
    if not isinstance(boxes, list) or (array.size and array.shape[1:] != (4,)) or not np.isfinite(array).all():
        return f"bbox: expected [[xmin, ymin, xmax, ymax], ...], got {short(boxes)}"
    if array.size and array.max() > 2:  # far below 0 is known dirt, far above 1 another unit
        return f"bbox: expected fractions of the frame, got pixels or the like ({array.max():g})"
    return ""
