"""Sets of (image, sound) samples: the interface that training and evaluation use, and folders of media files.

    from ssl_fast.data.datasets import FolderSet, check
    test = FolderSet("vggss", front_end="ez_vsl", size=224, split="test")
    print(check("vggss"))                               # what was found, is missing or broken

The layout of a folder is the field's:

    frames/ID.jpg | .jpeg | .png          one frame a clip
    audio/ID.wav | .flac | .ogg | .mp3    its sound
    annotations.json                      optional: boxes, categories, masks
    train.txt, test.txt, NAME.txt | .csv  optional lists of ids: one a line, of a .csv the first column

IDs may contain folders (`bell/clip 7`). Annotations are one JSON list in VGG-SS's format,
{"file": ID, "class": NAME, "bbox": [[xmin, ymin, xmax, ymax], ...]}, with boxes as fractions of the frame. All but
"file" is optional, and so are further keys:

    "image", "audio"   other files than ID's: an id under frames/ (audio/), or a path from the folder. Samples with
                       the same image are its several sounds.
    "mask"             path, from the folder, of an image that is white where the sounding object is
    "visible"          names of all classes in the frame; by default the classes of all samples of the image

Dirt in boxes is handled by rule: coordinates are clipped to [0, 1], boxes without area then are dropped and counted
(`FolderSet.notes`). Nothing else is repaired: what is missing, broken, empty or listed twice is an error that names the
file. No sample is ever skipped or replaced by another.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..progress import progress_bar
from .io.audio import decode_audio
from .io.cache import DecodedCache
from .io.front_ends import FrontEnd, front_end_named
from .io.images import FITS, RESAMPLERS, Geometry, decode_image, fit_frame, frame_size, load_mask
from .io.media import MediaError
from .sample_lists import DataError, find_list, read_annotations, read_ids

IMAGES = (".jpg", ".jpeg", ".png")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
ANNOTATIONS = "annotations.json"


@dataclass(frozen=True)
class Item:
    """A sample and its files."""

    id: str
    frame: Path
    sound: Path
    image_id: str
    category: str | None
    boxes: np.ndarray | None = None  # (k, 4) fractions
    mask: Path | None = None
    visible: frozenset[str] = frozenset()

    @property
    def annotated(self) -> bool:
        return self.boxes is not None or self.mask is not None


class SampleSet(torch.utils.data.Dataset):
    """Map-style data set of (image, sound) pairs, the interface that training and evaluation use.

    Fields, one entry a sample: ids (unique); image_ids (samples with the same image share it); categories (of the
    sounding object, None where unknown); visible (all categories in the image, empty where unknown). Further front_end,
    the FrontEnd of the spectrograms, and has_ground_truth. Samples are counted from 0 (or from the end, below 0);
    IndexError for what is not there.
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
        raise ValueError(f"sample {self.ids[self._checked(index)]!r}: expected boxes or a mask, it has none")

    def squashed_ground_truth(self, index: int) -> np.ndarray:
        """`ground_truth` as if the frame had been squashed: not moved along where the image is a crop of it."""
        return self.ground_truth(index)

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


class FileSet(SampleSet):
    """Samples whose images and sounds are files, read when a sample is asked for: anew every time, unless `preload` was
    called.

    root: names the set in messages. items: the samples. problems: what is wrong with the files, in words; any raises
    DataError. front_end: a FrontEnd, or its name. size: side in pixels of the images. fit: how frames become squares,
    see images.fit_frame; ground truth and masks go the same way. cache: a folder where decoded frames and clips are
    kept (see cache.py); what comes out is the same. resampler: see Geometry.image.

    Raises MediaError for a file that is empty or broken; it names the file.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        items: Sequence[Item],
        problems: Sequence[str],
        *,
        front_end: str | FrontEnd,
        size: int,
        cache: str | os.PathLike | None = None,
        fit: str = "squash",
        resampler: str = "pillow",
    ):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size: expected an integer >= 1, got {size!r}")
        allowed = ["pillow"] if fit == "crop" else RESAMPLERS
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        if resampler not in allowed:
            raise ValueError(f"resampler: expected one of {', '.join(allowed)} for {fit}, got {resampler!r}")
        self.root, self.size, self.front_end = Path(root), size, front_end_named(front_end)
        if problems:
            count, shown = len(problems), "; ".join(problems[:5])
            more = f"; and {count - 5} more" if count > 5 else ""
            raise DataError(f"{self.root}: {count} problem{'s' * (count > 1)}: {shown}{more}")
        self._items, self.fit, self.resampler = items, fit, resampler
        self._cache = None if cache is None else DecodedCache(cache)
        self.ids = [item.id for item in items]
        self.image_ids = [item.image_id for item in items]
        self.categories = [item.category for item in items]
        self.visible = _visible(items)
        self._images: dict[Path, torch.Tensor] = {}
        self._spectrograms: dict[Path, torch.Tensor] = {}

    def __getitem__(self, index: int) -> dict:
        index = self._checked(index)
        return {"image": self.image(index), "spectrogram": self.spectrogram(index), "index": index}

    def image(self, index: int) -> torch.Tensor:
        """(3, size, size) uint8 RGB: the image of `self[index]` alone."""
        frame = self._items[self._checked(index)].frame
        image = self._images.get(frame)
        return self._image(frame) if image is None else image

    def spectrogram(self, index: int) -> torch.Tensor:
        """(1, F, T) float32: the spectrogram of `self[index]` alone."""
        sound = self._items[self._checked(index)].sound
        spectrogram = self._spectrograms.get(sound)
        return self._spectrogram(sound) if spectrogram is None else spectrogram

    def _image(self, frame: Path) -> torch.Tensor:
        return fit_frame(self._frame(frame), self.size, self.fit, self.resampler)

    def _spectrogram(self, sound: Path) -> torch.Tensor:
        return self.front_end.spectrogram(torch.from_numpy(self._segment(sound)))[None]

    def _frame(self, frame: Path) -> np.ndarray:
        if self._cache is None:
            return decode_image(frame)
        return self._cache.get(frame, ("frame",), decode_image, np.uint8)

    def _clip(self, sound: Path) -> np.ndarray:
        front_end = self.front_end
        if self._cache is None:
            return front_end.clip(sound)
        return self._cache.get(sound, ("clip", *front_end.decoding), front_end.clip, np.float32)

    def _segment(self, sound: Path) -> np.ndarray:
        return self.front_end.load(sound) if self._cache is None else self.front_end.segment(self._clip(sound))

    @property
    def preloaded_bytes(self) -> int:
        """Bytes that `preload` takes: size * size * 3 for every frame, 4 * F * T for every sound."""
        bands, times = self.front_end.shape
        frames, sounds = ({getattr(item, kind) for item in self._items} for kind in ("frame", "sound"))
        return len(frames) * self.size**2 * 3 + len(sounds) * bands * times * 4

    def preload(self, *, progress: bool = False) -> FileSet:
        """Read every frame and sound now, once, and keep images and spectrograms in memory; returns the set itself.

        Epochs then cost no decoding and resampling, and a broken file shows before training starts (MediaError). Worker
        processes that are forked share the memory.
        """
        items = self._items
        if progress:
            items = progress_bar(items, unit="sample", desc=f"reading {self.root.name}")
        for item in items:
            if item.frame not in self._images:
                self._images[item.frame] = self._image(item.frame)
            if item.sound not in self._spectrograms:
                self._spectrograms[item.sound] = self._spectrogram(item.sound)
        return self

    def _geometry(self, item: Item) -> Geometry:
        return Geometry() if self.fit == "squash" else Geometry.of_fit(self.fit, *frame_size(item.frame), self.size)

    def ground_truth(self, index: int) -> np.ndarray:
        index = self._checked(index)
        return self._ground_truth(index, self._geometry(self._items[index]))

    def squashed_ground_truth(self, index: int) -> np.ndarray:
        return self._ground_truth(self._checked(index), Geometry())

    def _ground_truth(self, index: int, geometry: Geometry) -> np.ndarray:
        """(size, size) float32 of what `geometry` cuts out: here the mask, ValueError where there is none."""
        path = self._items[index].mask
        if path is None:
            raise ValueError(f"sample {self.ids[index]!r}: expected boxes or a mask, it has none")
        return load_mask(path, self.size, geometry).astype(np.float32)

    def mask(self, index: int) -> np.ndarray | None:
        item = self._items[self._checked(index)]
        return None if item.mask is None else load_mask(item.mask, self.size, self._geometry(item))

    def waveform(self, index: int) -> np.ndarray:
        return self._segment(self._items[self._checked(index)].sound)

    def frame(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the whole frame, as it is in the file."""
        return self._frame(self._items[self._checked(index)].frame)

    def clip(self, index: int) -> np.ndarray:
        """(n,) float32 in [-1, 1]: the clip in the sound file, of any length; see FrontEnd.clip."""
        return self._clip(self._items[self._checked(index)].sound)


class FolderSet(FileSet):
    """A folder of frames and sounds (layout: see the module).

    root: the folder. front_end, size, `reading` (cache, fit, resampler): see FileSet. annotations: path of the
    annotation file; by default annotations.json in the folder where there is one. split: see find_list.

    The samples are, in this order: the ids of the list; else those of the annotations; else all ids under frames/ and
    audio/, sorted. has_ground_truth: every sample has boxes or a mask. `notes` (list of str) tells what was dropped by
    rule, and how many are annotated where only some are.

    Files are looked up at once. Raises DataError where ids and files do not fit; it names the files.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        front_end: str | FrontEnd,
        size: int,
        annotations: str | os.PathLike | None = None,
        split: str | os.PathLike | None = None,
        **reading,
    ):
        folder = _Folder(Path(root), annotations, split)
        super().__init__(root, folder.items, folder.problems, front_end=front_end, size=size, **reading)
        self.notes = folder.notes
        self.has_ground_truth = all(item.annotated for item in self._items)

    def _ground_truth(self, index: int, geometry: Geometry) -> np.ndarray:
        """Union of the boxes, (size, size) float32: a box fills rows int(ymin * size) up to, without, int(ymax * size),
        and columns alike. The mask of a sample that has one and no boxes. All 0 where every box was dropped."""
        boxes = self._items[index].boxes
        if boxes is None:
            return super()._ground_truth(index, geometry)
        truth = np.zeros((self.size, self.size), np.float32)
        for left, top, right, bottom in (geometry.boxes(boxes) * self.size).astype(int):
            truth[top:bottom, left:right] = 1
        return truth


@dataclass(frozen=True)
class FolderReport:
    """Findings of `check`: ids of complete samples, files that are missing, empty or ambiguous, files that are broken
    (each named), and notes on what rules dropped."""

    root: str
    ids: list[str]
    missing: list[str]
    broken: list[str]
    notes: list[str]

    @property
    def ok(self) -> bool:
        return not self.missing and not self.broken

    def __str__(self) -> str:
        found = f"{len(self.ids)} samples complete, {len(self.missing)} missing, {len(self.broken)} files broken"
        lines = [f"{self.root}: {found}"]
        for title, entries in (("missing", self.missing), ("broken", self.broken), ("note", self.notes)):
            lines += [f"  {title}: {entry}" for entry in entries]
        return "\n".join(lines)


def check(
    root: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    split: str | os.PathLike | None = None,
    progress: bool = False,
) -> FolderReport:
    """Decode every file that a FolderSet with these arguments would use; list what is missing or broken.

    DataError only for what cannot be gone through: no such folder, an unreadable list or annotation file.
    """
    folder = _Folder(Path(root), annotations, split)
    return check_files(root, folder.items, folder.problems, folder.notes, progress=progress)


def check_files(
    root: str | os.PathLike, items: Sequence[Item], missing: list[str], notes: list[str], *, progress: bool = False
) -> FolderReport:
    """Decode every file of `items`; the report of it, with what else is missing and noted."""
    # of each file that was read, "" where it is good: samples may share files, and a file may be image and sound
    errors: dict[tuple, str] = {}

    def good(path: Path, read) -> bool:
        if (path, read) not in errors:
            try:
                read(path)
                errors[path, read] = ""
            except MediaError as error:
                errors[path, read] = str(error)
        return not errors[path, read]

    complete = []
    for item in progress_bar(items, unit="sample", desc="check", disable=not progress):
        parts = [(item.frame, decode_image), (item.sound, decode_audio)]
        parts += [(item.mask, _check_mask)] if item.mask else []
        if all([good(*part) for part in parts]):  # noqa: C419, all are read, so that all faults are found
            complete.append(item.id)
    broken = list(dict.fromkeys(error for error in errors.values() if error))
    return FolderReport(str(root), complete, missing, broken, notes)


def _check_mask(path: Path) -> None:
    load_mask(path, 16)


class _Folder:
    """Goes through a folder: `items` whose files exist, `problems` in words, `notes` on dirt that a rule covers."""

    def __init__(self, root: Path, annotations: str | os.PathLike | None, split: str | os.PathLike | None):
        if not root.is_dir():
            got = "a file" if root.exists() else "nothing there"
            raise DataError(f"{root}: expected a folder with frames/ and audio/, got {got}")
        self.root, self.problems, self.notes = root, [], []
        self.media = {"frames": _files(root / "frames", IMAGES), "audio": _files(root / "audio", SOUNDS)}
        if annotations is None and (root / ANNOTATIONS).exists():
            annotations = root / ANNOTATIONS
        entries = {} if annotations is None else read_annotations(Path(annotations))
        if split is not None:
            listed = Counter(read_ids(find_list(root, split)))
            self.problems += [f"id {name!r} is listed {n} times" for name, n in listed.items() if n > 1]
            ids = list(listed)
        else:
            ids = list(entries) or sorted(self.media["frames"].keys() | self.media["audio"].keys())
        if not ids:
            found = " and ".join(f"{len(files)} files in {kind}/" for kind, files in self.media.items())
            raise DataError(f"{root}: expected samples, got {found}")
        self.dropped: list[str] = []
        self.clipped = 0
        self.items = [item for name in ids if (item := self._item(name, entries.get(name, {})))]
        annotated = sum(item.annotated for item in self.items)
        if 0 < annotated < len(self.items):
            first = next(item.id for item in self.items if not item.annotated)
            self.notes.append(f"{annotated} of {len(self.items)} samples have boxes or a mask, {first!r} has none")
        if self.clipped:
            self.notes.append(f"{self.clipped} coordinates of boxes clipped to [0, 1]")
        if self.dropped:
            of = ", ".join(dict.fromkeys(self.dropped))
            self.notes.append(f"{len(self.dropped)} boxes without area dropped, of {of}")

    def _item(self, name: str, entry: dict) -> Item | None:
        frame = self._find(name, entry.get("image", name), "frames", IMAGES)
        sound = self._find(name, entry.get("audio", name), "audio", SOUNDS)
        mask = self._present(self.root / entry["mask"], f"mask of {name!r}") if "mask" in entry else None
        if frame is None or sound is None or (mask is None and "mask" in entry):
            return None
        boxes = None
        if "bbox" in entry:
            given = np.asarray(entry["bbox"], np.float64).reshape(-1, 4)
            boxes = given.clip(0, 1)
            self.clipped += int((boxes != given).sum())
            solid = (boxes[:, :2] < boxes[:, 2:]).all(1)
            self.dropped += [name] * int((~solid).sum())
            boxes = boxes[solid]
        # however an annotation names a frame, it is one image
        frames = self.root / "frames"
        image_id = (frame.relative_to(frames).with_suffix("") if frame.is_relative_to(frames) else frame).as_posix()
        return Item(name, frame, sound, image_id, entry.get("class"), boxes, mask, frozenset(entry.get("visible", ())))

    def _find(self, name: str, wanted: str, kind: str, suffixes: Sequence[str]) -> Path | None:
        """The file of an id under frames/ or audio/, or at a path from the folder; a problem where there is not one."""
        found = self.media[kind].get(wanted, [])
        if not found and Path(wanted).suffix.lower() in suffixes:
            found = [self.root / wanted]
        if len(found) == 1:
            return self._present(found[0], f"id {name!r}")
        if found:
            self.problems.append(f"id {name!r}: expected one file, got {', '.join(map(str, found))}")
        else:
            self.problems.append(f"{self.root / kind / wanted}: no such file ({', '.join(suffixes)}), id {name!r}")
        return None

    def _present(self, path: Path, what: str) -> Path | None:
        problem = missing(path)
        if problem:
            self.problems.append(f"{problem}, {what}")
        return None if problem else path


def missing(path: Path) -> str:
    """Reason why a file has nothing to be read, or ""."""
    try:
        state = path.stat()  # once: sets have some hundred thousand files
    except OSError:
        return f"{path}: no such file"
    if not stat.S_ISREG(state.st_mode):
        return f"{path}: no such file"
    return "" if state.st_size else f"{path}: empty file (0 bytes)"


def _visible(items: Sequence[Item]) -> list[frozenset[str]]:
    """Visible classes of each item, by its annotation, else the classes of all items of its image."""
    together: dict[str, set[str]] = {}
    for item in items:
        classes = together.setdefault(item.image_id, set())
        if item.category is not None:
            classes.add(item.category)
    return [item.visible or frozenset(together[item.image_id]) for item in items]


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """{id: files} of a folder and the folders in it, by name; hidden files aside."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing there'}")
    found: dict[str, list[Path]] = {}
    for directory, _, names in os.walk(folder, followlinks=True):
        for name in sorted(names):
            path = Path(directory, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found
