"""Sets of (image, sound) samples: the interface that training and evaluation use, and folders of media files.

    from ssl_fast.data.datasets import FolderSet, check
    test = FolderSet("vggss", front_end="ez_vsl", size=224, split="test")
    print(check("vggss"))                               # what was found, is missing or broken

The layout of a folder is the field's:

    frames/ID.jpg | .jpeg | .png          one frame a clip
    audio/ID.wav | .flac | .ogg | .mp3    its sound
    annotations.json                      optional: boxes, categories, masks
    train.txt, NAME.txt | .csv | .tsv     optional lists of ids: one a line, of .csv and .tsv the first cell

IDs may contain folders (`bell/clip 7`). Annotations are one JSON list in VGG-SS's format,
{"file": ID, "class": NAME, "bbox": [[xmin, ymin, xmax, ymax], ...]}, with boxes as fractions of the frame. All but
"file" is optional, and so are further keys:

    "image", "audio"   other files than ID's: an id under frames/ (audio/), or a path from the folder. Samples with
                       the same image are its several sounds.
    "mask"             path, from the folder, of an image that is white where the sounding object is
    "visible"          names of all classes in the frame; by default the classes of all samples of the image

Dirt in boxes is handled by the rules of `annotations.DIRT` and counted (`FolderSet.notes`). Nothing else is repaired:
what is missing, broken, empty or listed twice is an error that names the file. No sample is ever replaced by another,
and none is left out unless `on_missing="list"` asks for what is there: then `missing` names the others.
"""

from __future__ import annotations

import hashlib
import os
import stat
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..progress import progress_bar
from ..terminal import printable
from .ground_truth import DIRT, SIZE, pixels, report, weight_map
from .io.audio import decode_audio
from .io.cache import DecodedCache
from .io.front_ends import FrontEnd, front_end_named
from .io.images import FITS, RESAMPLERS, SQUARE, Geometry, decode_image, fit_frame, frame_size, load_mask
from .io.media import MediaError
from .io.video import VIDEOS, frames_of_seconds
from .sample_lists import DataError, find_list, read_annotations, read_ids, some

IMAGES = (".jpg", ".jpeg", ".png")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
ANNOTATIONS = "annotations.json"
ON_MISSING = ("error", "list")
NOISE = 2  # steps of 8 (of 16) bits by which the pixels of one colour (the samples of silence) may differ


@dataclass(frozen=True)
class Item:
    """A sample and its files."""

    id: str
    frame: Path
    sound: Path
    image_id: str
    category: str | None
    boxes: np.ndarray | None = None  # (k, 4) fractions of the frame
    mask: Path | None = None
    visible: frozenset[str] = frozenset()
    label: int | None = None  # of a mask that is an image of labels, the one of the object
    mixed: Path | None = None  # a second sound

    @property
    def sounds(self) -> tuple[Path, ...]:
        """The files whose sum is heard."""
        return (self.sound,) if self.mixed is None else (self.sound, self.mixed)

    @property
    def annotated(self) -> bool:
        return self.boxes is not None or self.mask is not None


@dataclass
class Files:
    """What was found of the files of a set: items, the samples whose files are all there; absent, the ids of samples of
    which some file is not there; missing, those files, and problems, files that are there and no good, each in words by
    its path; notes on what a rule dropped."""

    items: list[Item] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    missing: dict[Path, str] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def complete(self, name: str, wanted: Iterable[Sequence[Path]]) -> bool:
        """True where the files of sample `name` are all there; else what is wrong with them is noted. wanted: for each
        file the paths at which it is, of which there must be one."""
        faults = [self._fault(name, paths) for paths in wanted]
        if any(fault is self.missing for fault in faults):
            self.absent.append(name)
        return all(fault is None for fault in faults)

    def _fault(self, name: str, paths: Sequence[Path]) -> dict[Path, str] | None:
        """The field in which something was noted."""
        path = paths[0]
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths[:3])
            self.problems[path] = f"{path.parent}: expected one file of id {name!r}, got {len(paths)}: {names}"
            return self.problems
        try:
            state = path.stat()  # once: sets have some hundred thousand files
        except (FileNotFoundError, NotADirectoryError):
            self.missing[path] = f"{path}: no such file, id {name!r}"
            return self.missing
        except OSError as error:  # it is there, for all we know
            problem = error.strerror
        else:
            if not stat.S_ISREG(state.st_mode):
                problem = "expected a file, got a folder or the like"
            else:
                problem = "" if state.st_size else "empty file (0 bytes)"
        if not problem:
            return None
        self.problems[path] = f"{path}: {problem}, id {name!r}"
        return self.problems


class Original(typing.NamedTuple):
    """Ground truth at the size of a sample's frame."""

    truth: np.ndarray  # (H, W) float32 with weights in [0, 1]
    mask: np.ndarray | None  # (H, W) bool, the exact outline, where it is known
    window: tuple[int, int, int, int]  # left, top, right, bottom, ends excluded, of the pixels that the image shows


class SampleSet(torch.utils.data.Dataset):
    """Map-style data set of (image, sound) pairs, the interface that training and evaluation use.

    Fields, one entry a sample: ids (unique); image_ids (samples with the same image share it); categories (of the
    sounding object, None where unknown); visible (all categories in the image, empty where unknown). Further front_end,
    the FrontEnd of the spectrograms, has_ground_truth, missing, the ids that the set should have beside these and whose
    files are not there, sounding (False for samples with a sound that nothing in the image makes, None where no list
    tells), and of_videos: image_ids are those of videos, of which the samples are several frames. Samples are counted
    from 0 (or from the end, below 0); IndexError for what is not there.
    """

    ids: list[str]
    image_ids: list[str]
    categories: list[str | None]
    visible: list[frozenset[str]]
    front_end: FrontEnd
    has_ground_truth: bool = False
    missing: Sequence[str] = ()
    sounding: list[bool] | None = None
    of_videos: bool = False

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

    def original_size(self, index: int) -> tuple[int, int]:
        """(width, height) of the frame that became the image, for which `original` has ground truth. ValueError where
        there is none."""
        name = self.ids[self._checked(index)]
        raise ValueError(f"sample {name!r}: expected a frame of a size of its own, the set has images alone")

    def original(self, index: int) -> Original:
        """Ground truth in the pixels of the frame; what `ground_truth` and `mask` have where that is as large as the
        image. Frames of one size have one window."""
        raise NotImplementedError

    def waveform(self, index: int) -> np.ndarray:
        """(front_end.samples,) float32 in [-1, 1], mono, at front_end.sample_rate; of two sounds their sum."""
        raise NotImplementedError

    def own_waveform(self, index: int) -> np.ndarray:
        """`waveform` of the sample's own category alone, where others are mixed in."""
        return self.waveform(index)

    def content(self) -> str | None:
        """A hash by which processes compare whether they have the same samples under the same ids; None: unknown."""
        return None

    def _checked(self, index: int) -> int:
        """The index, counted from the front."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)} to {len(self) - 1}, got {index}")
        return int(index) % len(self)


def check_size(size: int) -> None:
    """ValueError for what cannot be the side of images, in pixels."""
    if type(size) is not int or not 1 <= size <= SQUARE:
        raise ValueError(f"size: expected an integer from 1 to {SQUARE}, got {size!r}")


class FileSet(SampleSet):
    """Samples whose images and sounds are files, read when a sample is asked for: anew every time, unless `preload` was
    called.

    root: names the set in messages. files: what was found there. front_end: a FrontEnd, or its name. size: side in
    pixels of the images. fit: how frames become squares, see images.fit_frame; ground truth and masks go the same way.
    cache: a folder where decoded frames and clips are kept (see cache.py); what comes out is the same. resampler: see
    Geometry.image. on_missing: "error" raises DataError where files are not there, "list" goes on with the samples
    whose files are; `missing` then lists the ids of the others, and `notes` says how many there are.

    Raises DataError for files that are no good, whatever on_missing is, and MediaError when one is read that is broken;
    both name the file.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        files: Files,
        *,
        front_end: str | FrontEnd,
        size: int,
        cache: str | os.PathLike | None = None,
        fit: str = "squash",
        resampler: str = "pillow",
        on_missing: str = "error",
    ):
        check_size(size)
        allowed = ["pillow"] if fit == "crop" else RESAMPLERS
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        if resampler not in allowed:
            raise ValueError(f"resampler: expected one of {', '.join(allowed)} for {fit}, got {resampler!r}")
        if on_missing not in ON_MISSING:
            raise ValueError(f"on_missing: expected one of {', '.join(ON_MISSING)}, got {on_missing!r}")
        self.root, self.size, self.front_end = Path(root), size, front_end_named(front_end)
        problems = [*files.problems.values(), *(files.missing.values() if on_missing == "error" else ())]
        if problems:
            count, shown = len(problems), "; ".join(problems[:5])
            more = f"; and {count - 5} more" if count > 5 else ""
            raise DataError(f"{self.root}: {count} problem{'s' * (count > 1)}: {shown}{more}")
        items, self.missing, self.notes = files.items, files.absent, list(files.notes)
        if not items:
            raise DataError(f"{self.root}: expected samples, none of the {len(self.missing)} listed has all its files")
        if self.missing:
            total = len(items) + len(self.missing)
            self.notes.append(f"{len(items):,} of {total:,} samples are there; missing are {some(self.missing)}")
        self._items, self.fit, self.resampler = items, fit, resampler
        self._cache = None if cache is None else DecodedCache(cache)
        self.ids = [item.id for item in items]
        self.image_ids = [item.image_id for item in items]
        self.categories = [item.category for item in items]
        self.visible = _visible(items)
        self._images: dict[Path, torch.Tensor] = {}
        self._spectrograms: dict[tuple[Path, ...], torch.Tensor] = {}

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
        sounds = self._items[self._checked(index)].sounds
        spectrogram = self._spectrograms.get(sounds)
        return self._spectrogram(sounds) if spectrogram is None else spectrogram

    def _image(self, frame: Path) -> torch.Tensor:
        return fit_frame(self._frame(frame), self.size, self.fit, self.resampler)

    def _spectrogram(self, sounds: Sequence[Path]) -> torch.Tensor:
        return self.front_end.spectrogram(torch.from_numpy(self._sum(sounds)))[None]

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

    def _sum(self, sounds: Sequence[Path]) -> np.ndarray:
        first, *others = map(self._segment, sounds)
        for other in others:
            first = first + other
        return first

    def content(self) -> str:
        """Of the files of 16 samples, evenly spaced."""
        digest = hashlib.sha256()
        for item in self._items[:: -(-len(self) // 16)]:
            for path in (item.frame, *item.sounds):
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:16]

    @property
    def preloaded_bytes(self) -> int:
        """Bytes that `preload` takes: size * size * 3 for every frame, 4 * F * T for every sound."""
        bands, times = self.front_end.shape
        frames, sounds = ({getattr(item, kind) for item in self._items} for kind in ("frame", "sounds"))
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
            if item.sounds not in self._spectrograms:
                self._spectrograms[item.sounds] = self._spectrogram(item.sounds)
        return self

    def _geometry(self, item: Item) -> Geometry:
        return Geometry() if self.fit == "squash" else Geometry.of_fit(self.fit, *frame_size(item.frame), self.size)

    def ground_truth(self, index: int) -> np.ndarray:
        index = self._checked(index)
        return self._ground_truth(index, self._geometry(self._items[index]))

    def squashed_ground_truth(self, index: int) -> np.ndarray:
        return self._ground_truth(self._checked(index), Geometry())

    def _ground_truth(self, index: int, geometry: Geometry, size: tuple[int, int] | None = None) -> np.ndarray:
        """(self.size, self.size) float32, or of `size`, (width, height), of what `geometry` cuts out: here the mask,
        ValueError where there is none."""
        item = self._items[index]
        if item.mask is None:
            raise ValueError(f"sample {self.ids[index]!r}: expected boxes or a mask, it has none")
        return load_mask(item.mask, size or self.size, geometry, item.label).astype(np.float32)

    def mask(self, index: int) -> np.ndarray | None:
        item = self._items[self._checked(index)]
        return None if item.mask is None else load_mask(item.mask, self.size, self._geometry(item), item.label)

    def original_size(self, index: int) -> tuple[int, int]:
        return frame_size(self._items[self._checked(index)].frame)

    def original(self, index: int) -> Original:
        index = self._checked(index)
        size, mask = self.original_size(index), self._items[index].mask
        window = Geometry.of_fit(self.fit, *size, self.size).window(*size)
        if size == (self.size, self.size):
            return Original(self.ground_truth(index), self.mask(index), window)
        truth = self._ground_truth(index, Geometry(), size)
        return Original(truth, None if mask is None else load_mask(mask, size, label=self._items[index].label), window)

    def waveform(self, index: int) -> np.ndarray:
        return self._sum(self._items[self._checked(index)].sounds)

    def own_waveform(self, index: int) -> np.ndarray:
        return self._segment(self._items[self._checked(index)].sound)

    def frame(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the whole frame, as it is in the file."""
        return self._frame(self._items[self._checked(index)].frame)

    def clip(self, index: int) -> np.ndarray:
        """(n,) float32 in [-1, 1]: the clip in the sound file, of any length; see FrontEnd.clip."""
        return self._clip(self._items[self._checked(index)].sound)


class FolderSet(FileSet):
    """A folder of frames and sounds (layout: see the module).

    root: the folder. front_end, size, `reading` (cache, fit, resampler, on_missing): see FileSet. annotations: path of
    the annotation file; by default annotations.json in the folder where there is one. split: see find_list.

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
        super().__init__(
            root, _files_of(Path(root), annotations, split, size), front_end=front_end, size=size, **reading
        )
        self.has_ground_truth = all(item.annotated for item in self._items)

    def _ground_truth(self, index: int, geometry: Geometry, size: tuple[int, int] | None = None) -> np.ndarray:
        """Union of the boxes: a box fills rows int(ymin * height) up to, without, int(ymax * height), and columns
        alike. The mask of a sample that has one and no boxes. All 0 where every box was dropped."""
        boxes = self._items[index].boxes
        if boxes is None:
            return super()._ground_truth(index, geometry, size)
        return weight_map(geometry.pixels(boxes, size or self.size), size=size or self.size)


@dataclass(frozen=True)
class FolderReport:
    """Findings of `check`: ids of complete samples, files that are not there, files that are broken, empty or one too
    many (each named), notes on what rules dropped, and what is in order as a file but not as a sample: frames of one
    colour, still videos, muted sounds, and files of the same pixels or samples."""

    root: str
    ids: list[str]
    missing: list[str]
    broken: list[str]
    notes: list[str]
    suspect: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.missing and not self.broken

    def __str__(self) -> str:
        found = f"{len(self.ids)} samples complete, {len(self.missing)} files missing, {len(self.broken)} broken"
        lines = [f"{printable(self.root)}: {found}"]  # a line each, also of names with line feeds
        for title, entries in (
            ("missing", self.missing),
            ("broken", self.broken),
            ("suspect", self.suspect),
            ("note", self.notes),
        ):
            lines += [f"  {title}: {printable(entry)}" for entry in entries]
        return "\n".join(lines)


def check(
    root: str | os.PathLike,
    *,
    annotations: str | os.PathLike | None = None,
    split: str | os.PathLike | None = None,
    progress: bool = False,
) -> FolderReport:
    """Decode every file that a FolderSet with these arguments would use; list what is missing or broken.

    Boxes are counted in pixels of 224 x 224. DataError only for what cannot be gone through: no such folder, an
    unreadable list or annotation file.
    """
    return check_files(root, _files_of(Path(root), annotations, split, SIZE), progress=progress)


def check_files(root: str | os.PathLike, files: Files, *, progress: bool = False) -> FolderReport:
    """Decode every file of complete samples; the report of it, with what else was found."""
    # of each file that was read, what is wrong with it: samples may share files, and a file may be image and sound
    errors: dict[tuple, str] = {}
    suspect: list[str] = []
    same: dict[tuple, list[Path]] = {}  # files by their contents

    def good(path: Path, read: Callable[[Path], tuple[str, bytes]]) -> bool:
        if (path, read) not in errors:
            try:
                remark, content = read(path)
                errors[path, read] = ""
                suspect.extend([f"{path}: {remark}"] if remark else [])
                if content:
                    same.setdefault((read, content), []).append(path)
            except MediaError as error:
                errors[path, read] = str(error)
        return not errors[path, read]

    complete = []
    for item in progress_bar(files.items, unit="sample", desc="check", disable=not progress):
        parts = [(item.frame, _inspect_frame), *((sound, _inspect_sound) for sound in item.sounds)]
        parts += [(item.mask, _inspect_mask if item.label is None else _inspect_labels)] if item.mask else []
        if all([good(*part) for part in parts]):  # noqa: C419, all are read, so that all faults are found
            complete.append(item.id)
    broken = list(dict.fromkeys([*files.problems.values(), *(error for error in errors.values() if error)]))
    for (read, _), paths in same.items():
        if len(paths) > 1:
            what = "frames of the same pixels" if read is _inspect_frame else "sounds of the same samples"
            suspect.append(f"{len(paths)} {what}: {some(list(map(str, paths)))}")
    return FolderReport(str(root), complete, list(files.missing.values()), broken, files.notes, suspect)


# Each reads a file and gives a remark on it, or "", and a digest of what it holds, or b"" where that says nothing.


def _inspect_frame(path: Path) -> tuple[str, bytes]:
    pixels = decode_image(path)
    if np.ptp(pixels, axis=(0, 1)).max() <= NOISE:
        return "a frame of one colour", b""
    still = path.suffix.lower() in VIDEOS and _is_still(path)
    return "a video of one picture" if still else "", _digest(pixels)


def _is_still(path: Path) -> bool:
    """True for a video of two seconds or more whose pictures of each second are the same, but for the codec's noise."""
    pictures = (picture for _, picture in frames_of_seconds(path))
    first, count = next(pictures).astype(np.int16), 1
    for picture in pictures:
        if np.abs(picture - first).mean() > NOISE / 2:
            return False
        count += 1
    return count > 1


def _inspect_sound(path: Path) -> tuple[str, bytes]:
    samples, rate = decode_audio(path)
    if np.abs(samples).max() <= NOISE / 32768:
        return f"a sound of {len(samples) / rate:.1f} s of silence", b""
    return "", _digest(samples)


def _inspect_mask(path: Path) -> tuple[str, bytes]:
    load_mask(path, 16)
    return "", b""


def _inspect_labels(path: Path) -> tuple[str, bytes]:
    load_mask(path, 16, label=0)
    return "", b""


def _digest(array: np.ndarray) -> bytes:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).data).digest()


def _files_of(root: Path, annotations: str | os.PathLike | None, split: str | os.PathLike | None, size: int) -> _Folder:
    """What is found of a folder's samples, for images of size x size."""
    check_size(size)
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(f"{root}: expected a folder with frames/ and audio/, got {got}")
    found = _Folder(root, size)
    if annotations is None and (root / ANNOTATIONS).exists():
        annotations = root / ANNOTATIONS
    entries = {} if annotations is None else read_annotations(Path(annotations))
    if split is not None:
        ids = read_ids(find_list(root, split))
    else:
        ids = list(entries) or sorted(found.media["frames"].keys() | found.media["audio"].keys())
    if not ids:
        counts = " and ".join(f"{len(files)} files in {kind}/" for kind, files in found.media.items())
        raise DataError(f"{root}: expected samples, got {counts}")
    for name in ids:
        found.add(name, entries.get(name, {}))
    annotated = sum(item.annotated for item in found.items)
    if 0 < annotated < len(found.items):
        first = next(item.id for item in found.items if not item.annotated)
        found.notes.append(f"{annotated} of {len(found.items)} samples have boxes or a mask, {first!r} has none")
    found.notes += report(found.dirt)
    return found


class _Folder(Files):
    """Files of a folder, sample by sample; dirt: see ground_truth.report."""

    def __init__(self, root: Path, size: int):
        super().__init__()
        self.root, self.size = root, size
        self.media = {"frames": files_by_id(root / "frames", IMAGES), "audio": files_by_id(root / "audio", SOUNDS)}
        self.dirt: dict[str, list[str]] = {kind: [] for kind in DIRT}

    def add(self, name: str, entry: dict) -> None:
        """Look up the files of a sample, and add it where they are all there."""
        frame = self._find(entry.get("image", name), "frames", IMAGES)
        sound = self._find(entry.get("audio", name), "audio", SOUNDS)
        masks = [[self.root / entry["mask"]]] if "mask" in entry else []
        if not self.complete(name, [frame, sound, *masks]):
            return
        boxes = None
        if "bbox" in entry:
            _, boxes = pixels(entry["bbox"], 1, self.size, f"{self.root}: {name!r}", name, self.dirt)
        # however an annotation names a frame, it is one image
        frames, path = self.root / "frames", frame[0]
        image_id = (path.relative_to(frames).with_suffix("") if path.is_relative_to(frames) else path).as_posix()
        mask, visible = (masks[0][0] if masks else None), frozenset(entry.get("visible", ()))
        self.items.append(Item(name, path, sound[0], image_id, entry.get("class"), boxes, mask, visible))

    def _find(self, wanted: str, kind: str, suffixes: Sequence[str]) -> list[Path]:
        """The files of an id under frames/ or audio/, or the one at a path from the folder; where there is none, the
        path where it should be."""
        if found := self.media[kind].get(wanted):
            return found
        if Path(wanted).suffix.lower() in suffixes:
            return [self.root / wanted]
        return [self.root / kind / f"{wanted}{'|'.join(suffixes)}"]


def _visible(items: Sequence[Item]) -> list[frozenset[str]]:
    """Visible classes of each item, by its annotation, else the classes of all items of its image."""
    together: dict[str, set[str]] = {}
    for item in items:
        classes = together.setdefault(item.image_id, set())
        if item.category is not None:
            classes.add(item.category)
    return [item.visible or frozenset(together[item.image_id]) for item in items]


def files_by_id(folder: Path, suffixes: Sequence[str]) -> dict[str, list[Path]]:
    """{id: files} of a folder and the folders in it, by name; hidden files aside. DataError for a link that leads to a
    folder that it is in, where every file would be found again and again."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing there'}")
    found: dict[str, list[Path]] = {}

    def unreadable(error: OSError):
        raise error  # os.walk goes on without what it cannot list

    for directory, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        for link in (path for one in folders if (path := Path(directory, one)).is_symlink()):
            if above := [one for one in link.absolute().parents if link.samefile(one)]:
                raise DataError(f"{link}: expected a link that leads elsewhere, got one to {above[0]}, which it is in")
        for name in sorted(names):
            path = Path(directory, name)
            if path.suffix.lower() in suffixes and not name.startswith("."):
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return found
