"""Sets of (image, sound) samples: what training and evaluation ask of one, and folders of media files.

    from ssl_fast.data.datasets import FolderSet, check
    test = FolderSet("vggss", front_end="ez_vsl", size=224, split="test")
    print(check("vggss"))                               # what was found, is missing or broken

The layout of a folder is the field's:

    frames/ID.jpg | .jpeg | .png          one frame a clip
    audio/ID.wav | .flac | .ogg | .mp3    its sound
    annotations.json                      optional: boxes, categories, masks
    train.txt, test.txt, NAME.txt | .csv  optional lists of ids: one a line, of a .csv the first column

IDs may contain folders (`bell/clip 7`). Annotations are one JSON list in VGG-SS's format, {"file": ID, "class": NAME, "bbox": [[xmin, ymin, xmax, ymax], ...]}
with boxes as fractions of the frame; further keys, all optional:

    "image", "audio"   other files than ID's: an id under frames/ (audio/), or a path from the folder. Samples of one image are its several sounds.
    "mask"             path, from the folder, of an image that is white where the sounding object is
    "visible"          names of all classes in the frame; by default the classes of all samples of the image

Dirt in boxes is handled by rule: coordinates are clipped to [0, 1], boxes without area then are dropped and counted (`notes`). Nothing else is
repaired: what is missing, broken, empty or listed twice is an error that names the file. No sample is ever skipped or replaced by another.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .audio import FrontEnd, MediaError, decode_audio, front_end_named
from .images import decode_image, load_image, load_mask

IMAGES = (".jpg", ".jpeg", ".png")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
ANNOTATIONS = "annotations.json"


class DataError(ValueError):
    """A folder's files, lists and annotations do not fit together. The message names the first files and tells how many."""


class SampleSet(torch.utils.data.Dataset):
    """A map-style data set of (image, sound) pairs: what training and evaluation use. Subclasses fill in the fields and methods below.

    Fields, one entry a sample: ids (unique), image_ids (samples with the same image share it), categories (of the sounding object, None where
    unknown), visible (all categories in the image, empty where unknown). Further front_end, the FrontEnd of the spectrograms, and has_ground_truth.
    """

    ids: list[str]
    image_ids: list[str]
    categories: list[str | None]
    visible: list[frozenset[str]]
    front_end: FrontEnd
    has_ground_truth: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict:
        """dict(image (3, H, W) uint8 RGB, spectrogram (1, F, T) float32, index int)."""
        raise NotImplementedError

    def ground_truth(self, index: int) -> np.ndarray:
        """(H, W) float32 with weights in [0, 1], of the size of the image; ValueError where there is none."""
        raise ValueError(f"sample {self.ids[self._checked(index)]!r}: expected ground truth, this set has none")

    def mask(self, index: int) -> np.ndarray | None:
        """(H, W) bool, the exact outline of the sounding object; None where it is unknown."""
        self._checked(index)
        return None

    def waveform(self, index: int) -> np.ndarray:
        """(front_end.samples,) float32 in [-1, 1], mono, at front_end.sample_rate."""
        raise NotImplementedError

    def _checked(self, index: int) -> int:
        """The index, counted from the front."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)} to {len(self) - 1}, got {index}")
        return int(index) % len(self)


class FolderSet(SampleSet):
    """A folder of frames and sounds (layout: see the module).

    root: the folder. front_end: a FrontEnd, or its name. size: side in pixels of the images; frames are resized to size x size directly, whatever
    their aspect ratio, so that boxes in fractions of the frame stay right. annotations: path of the annotation file; by default annotations.json
    in the folder where there is one. split: "NAME" for NAME.txt or NAME.csv in the folder, or the path of a list.

    The samples are, in this order: the ids of the list; else those of the annotations; else all ids under frames/ and audio/, sorted. Listed ids
    must be annotated all or none; has_ground_truth tells which. `notes` (list of str) tells what was dropped by rule.

    Files are looked up at once, and read when a sample is asked for. Raises DataError where ids and files do not fit, MediaError for a file that is
    empty or broken; each names the file.
    """

    def __init__(self, root: str | os.PathLike, *, front_end: str | FrontEnd, size: int, annotations: str | os.PathLike | None = None,
                 split: str | os.PathLike | None = None):  # fmt: skip
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: expected an integer >= 1, got {size!r}")
        self.root, self.size, self.front_end = Path(root), size, front_end_named(front_end)
        folder = _Folder(self.root, annotations, split)
        problems = folder.problems
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise DataError(f"{self.root}: {len(problems)} problem{'s' * (len(problems) > 1)}: {'; '.join(problems[:5])}{more}")
        self._items, self.notes = folder.items, folder.notes
        self.ids = [item.id for item in self._items]
        self.image_ids = [item.image_id for item in self._items]
        self.categories = [item.category for item in self._items]
        self.visible = folder.visible()
        self.has_ground_truth = all(item.boxes is not None or item.mask for item in self._items)

    def __getitem__(self, index: int) -> dict:
        index = self._checked(index)
        image = load_image(self._items[index].frame, self.size)
        spectrogram = self.front_end.spectrogram(torch.from_numpy(self.waveform(index)))
        return {"image": image, "spectrogram": spectrogram[None], "index": index}

    def ground_truth(self, index: int) -> np.ndarray:
        """Union of the boxes, (size, size) float32: rows int(ymin * size) to int(ymax * size), exclusive, and columns alike. The mask where a sample
        has one and no boxes. All 0 where every box was dropped."""
        item = self._items[self._checked(index)]
        if item.boxes is None:
            mask = self.mask(index)
            return super().ground_truth(index) if mask is None else mask.astype(np.float32)
        truth = np.zeros((self.size, self.size), np.float32)
        for left, top, right, bottom in (item.boxes * self.size).astype(int):
            truth[top:bottom, left:right] = 1
        return truth

    def mask(self, index: int) -> np.ndarray | None:
        path = self._items[self._checked(index)].mask
        return None if path is None else load_mask(path, self.size)

    def waveform(self, index: int) -> np.ndarray:
        return self.front_end.load(self._items[self._checked(index)].sound)


@dataclass(frozen=True)
class FolderReport:
    """What `check` found: ids that are complete, missing (file and id), broken (file and reason), notes on what rules dropped."""

    root: str
    ids: list[str]
    missing: list[str]
    broken: list[str]
    notes: list[str]

    @property
    def ok(self) -> bool:
        return not self.missing and not self.broken

    def __str__(self) -> str:
        lines = [f"{self.root}: {len(self.ids)} samples complete, {len(self.missing)} missing, {len(self.broken)} broken"]
        for title in ("missing", "broken", "notes"):
            lines += [f"  {title}: {entry}" for entry in getattr(self, title)]
        return "\n".join(lines)


def check(root: str | os.PathLike, *, annotations: str | os.PathLike | None = None, split: str | os.PathLike | None = None,
          progress: bool = False) -> FolderReport:
    """Look at every file of a folder (arguments: see FolderSet) and decode it; nothing is raised for what is missing or broken, it is listed.

    DataError only for what cannot be gone through: no such folder, a list or annotation file that is unreadable.
    """
    folder = _Folder(Path(root), annotations, split)
    items = folder.items
    if progress:
        from tqdm import tqdm

        items = tqdm(items, unit="sample", desc="check")
    reasons: dict[Path, str | None] = {}

    def reason(path: Path, read) -> str | None:
        if path not in reasons:  # several samples may share a frame or a sound
            try:
                read(path)
                reasons[path] = None
            except MediaError as error:
                reasons[path] = str(error)
        return reasons[path]

    def sound_of(item):
        return [(item.frame, decode_image), (item.sound, decode_audio)] + ([(item.mask, lambda p: load_mask(p, 16))] if item.mask else [])

    complete = [item.id for item in items if not [r for r in [reason(*part) for part in sound_of(item)] if r]]
    broken = [r for r in reasons.values() if r]
    return FolderReport(str(root), complete, [p for p in folder.problems if p not in broken], broken, folder.notes)


@dataclass(frozen=True)
class _Item:
    id: str
    frame: Path
    sound: Path
    image_id: str
    category: str | None = None
    boxes: np.ndarray | None = None  # (k, 4) fractions
    mask: Path | None = None
    visible: frozenset[str] = frozenset()


class _Folder:
    """Goes through a folder: `items` whose files exist, `problems` in words, `notes` on dirt that a rule covers."""

    def __init__(self, root: Path, annotations: str | os.PathLike | None, split: str | os.PathLike | None):
        if not root.is_dir():
            raise DataError(f"{root}: expected a folder with frames/ and audio/, got {'a file' if root.exists() else 'nothing there'}")
        self.root, self.problems, self.notes = root, [], []
        self.media = {"frames": _files(root / "frames", IMAGES), "audio": _files(root / "audio", SOUNDS)}
        if annotations is None and (root / ANNOTATIONS).exists():
            annotations = root / ANNOTATIONS
        entries = {} if annotations is None else _annotations(Path(annotations))
        if split is not None:
            listed = _list(root, split)
            ids = list(dict.fromkeys(listed))
            self.problems += [f"{name!r} is listed twice" for name in ids if listed.count(name) > 1] if len(ids) < len(listed) else []
            bare = [name for name in ids if name not in entries]
            if entries and 0 < len(bare) < len(ids):
                self.problems.append(f"{annotations}: {len(bare)} of {len(ids)} listed ids are not annotated, among them {bare[0]!r}")
        else:
            ids = list(entries) or sorted(self.media["frames"].keys() | self.media["audio"].keys())
        if not ids:
            raise DataError(f"{root}: expected samples, got none ({_have(self.media)})")
        self._dropped: list[str] = []
        self.items = [item for name in ids if (item := self._item(name, entries.get(name, {})))]
        if self._dropped:
            self.notes.append(f"{len(self._dropped)} boxes without area dropped, of {', '.join(dict.fromkeys(self._dropped))}")

    def _item(self, name: str, entry: dict) -> _Item | None:
        frame, sound = (self._find(name, entry.get(key, name), kind) for key, kind in (("image", "frames"), ("audio", "audio")))
        mask = entry.get("mask") and self._present(self.root / entry["mask"], f"the mask of {name!r}")
        if frame is None or sound is None or (entry.get("mask") and mask is None):
            return None
        boxes = entry.get("bbox")
        if boxes is not None:
            boxes = np.clip(np.asarray(boxes, np.float64).reshape(-1, 4), 0, 1)
            solid = (boxes[:, :2] < boxes[:, 2:]).all(1)
            self._dropped += [name] * int((~solid).sum())
            boxes = boxes[solid]
        return _Item(name, frame, sound, str(entry.get("image", name)), entry.get("class"), boxes, mask, frozenset(entry.get("visible", ())))

    def _find(self, name: str, wanted: str, kind: str) -> Path | None:
        """The file of an id under frames/ or audio/, or at a path from the folder; a problem where there is none or several."""
        suffixes = IMAGES if kind == "frames" else SOUNDS
        found = self.media[kind].get(wanted, [])
        if not found and Path(wanted).suffix.lower() in suffixes:
            return self._present(self.root / wanted, f"of {name!r}")
        if len(found) == 1:
            return self._present(found[0], f"of {name!r}")
        if found:
            self.problems.append(f"{name!r} has {len(found)} files: {', '.join(map(str, found))}")
        else:
            self.problems.append(f"{self.root / kind / wanted}.*: no such file ({', '.join(s[1:] for s in suffixes)}), of {name!r}")
        return None

    def _present(self, path: Path, what: str) -> Path | None:
        if path.is_file() and path.stat().st_size:
            return path
        self.problems.append(f"{path}: {'empty file (0 bytes)' if path.is_file() else 'no such file'}, {what}")
        return None

    def visible(self) -> list[frozenset[str]]:
        """Of each item: what its annotation says; else the classes of all items of its image."""
        together: dict[str, set[str]] = {}
        for item in self.items:
            together.setdefault(item.image_id, set()).update({item.category} - {None})
        return [item.visible or frozenset(together[item.image_id]) for item in self.items]


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """{id: files} of a folder and the folders in it, by name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing there'}")
    found: dict[str, list[Path]] = {}
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(place, name)
            if path.suffix.lower() in suffixes:
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found


def _have(media: dict[str, dict]) -> str:
    return ", ".join(f"{len(files)} files in {kind}/" for kind, files in media.items())


def _list(root: Path, split: str | os.PathLike) -> list[str]:
    """Ids of a list file, in order."""
    candidates = [Path(split)] if Path(split).suffix else [root / f"{split}.txt", root / f"{split}.csv"]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise DataError(f"{' or '.join(map(str, candidates))}: no such list of ids")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected a list of ids in UTF-8, got {error.reason} at byte {error.start}") from error
    if path.suffix == ".csv":
        lines = [row[0] for row in csv.reader(lines) if row]
    ids = [line.strip() for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path}: expected a list of ids, got an empty file")
    return ids


def _annotations(path: Path) -> dict[str, dict]:
    """{id: entry} of an annotation file, every entry checked."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected annotations as a JSON list, got {error}") from error
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a JSON list of annotations, got {'an empty one' if entries == [] else type(entries).__name__}")
    out: dict[str, dict] = {}
    for i, entry in enumerate(entries):
        wrong = _wrong(entry)
        if wrong:
            raise DataError(f"{path}: entry {i}: {wrong}")
        if entry["file"] in out:
            raise DataError(f"{path}: entry {i}: {entry['file']!r} is annotated twice")
        out[entry["file"]] = entry
    return out


def _wrong(entry) -> str:
    """What is wrong with an annotation, or ""."""
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not entry["file"]:
        return f'expected an object with "file": id, got {str(entry)[:80]}'
    unknown = sorted(entry.keys() - {"file", "class", "bbox", "mask", "image", "audio", "visible"})
    if unknown:
        return f"{entry['file']!r}: unknown key {unknown[0]!r}"
    for key in ("class", "mask", "image", "audio"):
        if key in entry and not isinstance(entry[key], str):
            return f"{entry['file']!r}: {key}: expected a string, got {entry[key]!r}"
    if not all(isinstance(name, str) for name in entry.get("visible", ())) or isinstance(entry.get("visible"), str):
        return f"{entry['file']!r}: visible: expected a list of strings, got {entry['visible']!r}"
    boxes = entry.get("bbox", [])
    try:
        array = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):
        array = np.zeros(1)
    if not isinstance(boxes, list) or (array.size and array.shape[1:] != (4,)) or not np.isfinite(array).all():
        return f"{entry['file']!r}: bbox: expected [[xmin, ymin, xmax, ymax], ...] as fractions of the frame, got {str(boxes)[:80]}"
    return ""
