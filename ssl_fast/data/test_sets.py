"""The field's test sets as sample sets, in the folder layouts in which they are passed on.

    from ssl_fast.data.annotations import read
    from ssl_fast.data.test_sets import PublishedSet, check
    boxes = read("vgg-ss", "vggss.json", ids="vggss_test.csv")
    test = PublishedSet("VGGSound", "vgg-ss", boxes, front_end="ez_vsl", layout="slavc")
    print(check("VGGSound", "vgg-ss", boxes))           # every file that is missing or broken, by name

Heard and unheard classes are lists of ids; Extended VGG-SS and Flickr are the sets with `negatives` read along; S4 has
boxes, masks, or both (`Annotations.with_masks`), and so have MS3 and VPO. Clips of AVSBench last 5 s: front ends that
first cut to 10 s tile them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .annotations import SIZE, Annotations, read, weight_map
from .datasets import Files, FileSet, FolderReport, Item, check_files
from .io.front_ends import FrontEnd
from .io.images import Geometry, frame_size
from .io.media import MediaError
from .layouts import FLAT, FLICKR, VGGSOUND, Layout, Layouts, find_files, layouts_of
from .sample_lists import DELIMITERS, DataError, find_list

_IS3 = "audio_wav/{audio}.wav", "gt_segmentation/{mask}"
IS3 = {"is3": [Layout("images/{image}.jpg", *_IS3)], "ssl-align": [Layout("visual_frames/{image}.jpg", *_IS3)]}
VPO = {"ssl-align": [Layout("visual_frames/{image}.jpg", "audio_wav/{audio}.wav", "gray_masks/{mask}")]}
_MUSIC = {"avgn": [Layout("frames/{image}.jpg", "audio/{audio_video}.wav")], "no-prior": [FLAT]}
_INSTRUMENTS = {"avgn": [Layout(FLAT.image, FLAT.audio, "masks/{mask}")]}
_ADE20K = {"denseav": [Layout("frames/{image}.jpg", "audio/{audio}", "annotations/{mask}")]}


def _avsbench(frames: str, data: str) -> dict[str, list[Layout]]:
    """The folder of the data, and the one above it, where the csv lies."""
    rest = "audio_wav/{split}/{audio}.wav", "gt_masks/{split}/{mask}"
    return {"avsbench": [Layout(*(f"{above}{path}" for path in (frames, *rest))) for above in ("", data)]}


LAYOUTS: Layouts = {
    "vgg-ss": VGGSOUND,
    "vgg-ss-xml": VGGSOUND,
    "flickr": FLICKR,
    "is3": IS3,
    "is3-plus": IS3,
    "s4": _avsbench("visual_frames/{split}/{image}.png", "s4_data/"),
    "ms3": _avsbench("visual_frames/{image}.png", "ms3_data/"),
    "vpo-ss": VPO,
    "vpo-ms": VPO,
    "vggsound-single": VGGSOUND,
    "vggsound-duet": VGGSOUND,
    "music-solo": _MUSIC,
    "music-duet": _MUSIC,
    "vgg-instruments": _INSTRUMENTS,
    "vgg-instruments-duet": _INSTRUMENTS,
    "ade20k-speech": _ADE20K,
    "ade20k-sound": _ADE20K,
}
# The names that the annotation files have in those folders; "anno" is SSL-TIE's.
ANNOTATIONS = {
    "vgg-ss": ["vggss.json"],
    "vgg-ss-xml": ["annotations", "anno"],
    "flickr": ["annotations", "Annotations", "anno"],
    "is3": ["synthetic3240_bbox.json"],
    "is3-plus": ["is3_plus_bbox.json"],  # of ours: the set is not published yet
    "s4": ["s4_box.json", "s4_meta_data.csv"],
    "ms3": ["ms3_box.json", "ms3_meta_data.csv"],
    "vpo-ss": ["vpo_ss_bbox.json"],
    "vpo-ms": ["vpo_ms_bbox.json"],
    "vggsound-single": ["vggsound_single_test.csv"],
    "vggsound-duet": ["vggsound_duet_test.csv"],
    "music-solo": ["music_solo.json"],
    "music-duet": ["music_duet.json"],
    "vgg-instruments": ["vgginstruments_test.csv"],
    "vgg-instruments-duet": ["vgginstruments_multi_test.csv"],
    "ade20k-speech": ["prompted_segmentation.csv"],
    "ade20k-sound": ["prompted_segmentation.csv"],
}
AVSBENCH = ("s4", "ms3")  # frames of videos, masks of their size, csv with splits


def annotation_file(root: str | os.PathLike, name: str) -> Path:
    """The annotations of a set in its folder. DataError where there are none, or several."""
    if name not in ANNOTATIONS:
        raise ValueError(f"set: expected one of {', '.join(ANNOTATIONS)}, got {name!r}")
    if not Path(root).is_dir():
        raise DataError(f"{root}: expected a folder, got {'a file' if Path(root).exists() else 'nothing there'}")
    known, there = ANNOTATIONS[name], os.listdir(root)
    found = [one for one in known if one in there]  # by its exact name, also where upper and lower case are the same
    if len(found) != 1:
        got = " and ".join(found) or "none"
        raise DataError(f"{root}: expected the annotations of {name}, {' or '.join(known)}, got {got}: --annotations")
    return Path(root) / found[0]


def annotations_of(
    root: str | os.PathLike,
    name: str,
    path: str | os.PathLike | None = None,
    split: str | None = None,
    negatives: str | os.PathLike | None = None,
) -> Annotations:
    """The annotations of a set. path: of their file (default: in the folder). split: a list of ids, see find_list, or
    the split of AVSBench's csv (default: test). negatives: an Extended list. DataError names the file that is no good.
    """
    path = Path(path) if path is not None else annotation_file(root, name)
    lists: dict = {}
    has_splits = name in AVSBENCH and path.suffix.lower() == ".csv"
    if split is not None and has_splits and Path(split).suffix.lower() not in DELIMITERS:
        lists["split"] = split
    elif split is not None:
        lists["ids"] = find_list(Path(root), split)
    return read(name, path, negatives=negatives, **lists)


class PublishedSet(FileSet):
    """A test set in a folder: images of 224 x 224, ground truth by the rule of its annotations.

    root: the folder. name: a key of LAYOUTS; layout: one of that set's (default: the one whose files are there).
    annotations: what there is to test on. front_end, and `reading` (cache, fit, resampler, on_missing): see FileSet.
    image_ids are the groups that IIoU takes together. `notes`: the dirt in the annotations. DataError for a layout that
    cannot be told, and for files that are missing.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        name: str,
        annotations: Annotations,
        *,
        front_end: str | FrontEnd,
        layout: str | None = None,
        **reading,
    ):
        files, self.annotations = _files_of(Path(root), name, annotations, layout)
        super().__init__(root, files, front_end=front_end, size=SIZE, **reading)
        self.of_videos = name in AVSBENCH
        self.sounding = [sample.sounding for sample in self.annotations.samples]
        self.has_ground_truth = all(s.boxes is not None or s.mask is not None for s in self.annotations.samples)

    def original_size(self, index: int) -> tuple[int, int]:
        """DataError for a frame that is not square where boxes are of squares and nobody says how it became one."""
        width, height = super().original_size(index)
        boxes = self.annotations.samples[index].boxes
        if self.annotations.square and width != height and boxes is not None and len(boxes):
            raise DataError(
                f"{self._items[index].frame}: expected a square frame to evaluate at its own size, as boxes in "
                f"{self.annotations.source} are in pixels of squares and nothing tells how other frames became these, "
                f"got {width} x {height}"
            )
        return width, height

    def _ground_truth(self, index: int, geometry: Geometry, size: tuple[int, int] | None = None) -> np.ndarray:
        """The boxes by their rule; the mask of a sample without boxes."""
        boxes = self.annotations.samples[index].boxes_in(geometry, size or SIZE)
        if boxes is None:
            return super()._ground_truth(index, geometry, size)
        return weight_map(boxes, self.annotations.rule, size or SIZE)


def check(
    root: str | os.PathLike, name: str, annotations: Annotations, *, layout: str | None = None, progress: bool = False
) -> FolderReport:
    """Decode every file that a PublishedSet with these arguments would use; list what is missing or broken."""
    files, _ = _files_of(Path(root), name, annotations, layout)
    return check_files(root, files, progress=progress)


def _files_of(root: Path, name: str, annotations: Annotations, layout: str | None) -> tuple[Files, Annotations]:
    """What is found of the samples, and the annotations of those that are complete."""
    found = find_files(root, layouts_of(LAYOUTS, name, layout), annotations.samples)
    if name in AVSBENCH:
        found.items = [item for item in found.items if not _of_another_size(item, found.problems)]
    if len(found.items) < len(annotations.samples):
        annotations = annotations.select([item.id for item in found.items])
    found.notes = annotations.report()
    return found, annotations


def _of_another_size(item: Item, problems: dict[Path, str]) -> bool:
    """Whether the mask of a sample has not the size of its frame, which then is noted."""
    if item.mask is None:
        return False
    try:
        frame, mask = frame_size(item.frame), frame_size(item.mask)
    except MediaError:  # whoever reads the file is told
        return False
    if frame != mask:
        sizes = (f"{width} x {height}" for width, height in (frame, mask))
        problems[item.mask] = "{}: expected the {} pixels of its frame, got {}, id {!r}".format(
            item.mask, *sizes, item.id
        )
    return frame != mask
