"""The field's test sets as sample sets, in the folder layouts in which they are passed on.

    from ssl_fast.data.annotations import read
    from ssl_fast.data.test_sets import PublishedSet, check
    boxes = read("vgg-ss", "vggss.json", ids="vggss_test.csv")
    test = PublishedSet("VGGSound", "vgg-ss", boxes, front_end="ez_vsl", layout="slavc")
    print(check("VGGSound", "vgg-ss", boxes))           # every file that is missing or broken, by name

Heard and unheard classes are lists of ids; Extended VGG-SS and Flickr are the sets with `negatives` read along; S4 has
boxes, masks, or both (`Annotations.with_masks`). Its clips last 5 s: front ends that first cut to 10 s tile them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .annotations import SIZE, Annotation, Annotations, weight_map
from .audio import FrontEnd
from .datasets import DataError, FileSet, FolderReport, Item, check_files, missing


@dataclass(frozen=True)
class Layout:
    """Where files lie, from the root. {image}, {audio}, {mask} are the stems of the annotation (of a mask with its
    suffix); {image_clip} and {audio_clip} the ids of VGG-SS as YTID_START_END in ms; of a * there is one file."""

    image: str
    audio: str
    mask: str = ""


_FLAT = Layout("frames/{image}.jpg", "audio/{audio}.wav")
_VGGSS = {
    "slavc": _FLAT,  # EZ-VSL's too
    "fnac": Layout("frames/{image}.png", "audio/{audio}.wav"),
    "ssl-align": Layout("frames/{image_clip}/image_050.jpg", "audio/{audio_clip}.wav"),
}
# Of every set the first layout is the default.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "vgg-ss": _VGGSS,
    "vgg-ss-xml": _VGGSS,
    "flickr": {"slavc": _FLAT, "ssl-align": Layout("frames/{image}.mp4/*.jpg", "audio/{audio}.wav")},
    "is3": {
        "is3": Layout("images/{image}.jpg", "audio_wav/{audio}.wav", "gt_segmentation/{mask}"),
        "ssl-align": Layout("visual_frames/{image}.jpg", "audio_wav/{audio}.wav", "gt_segmentation/{mask}"),
    },
    "s4": {"avsbench": Layout("visual_frames/test/{image}.png", "audio_wav/test/{audio}.wav", "gt_masks/test/{mask}")},
}
# The names of the annotation files in those folders.
ANNOTATIONS = {"vgg-ss": "vggss.json", "vgg-ss-xml": "annotations", "flickr": "annotations",
               "is3": "synthetic3240_bbox.json", "s4": "s4_box.json"}  # fmt: skip


class PublishedSet(FileSet):
    """A test set in a folder: images of 224 x 224, ground truth by the rule of its annotations.

    root: the folder. name: a key of LAYOUTS; layout: one of that set's (default: its first). annotations: what there is
    to test on. front_end: a FrontEnd, or its name. image_ids are the groups that IIoU takes together. `notes`: the dirt
    in the annotations. DataError names the files that are missing.
    """

    def __init__(self, root: str | os.PathLike, name: str, annotations: Annotations, *, front_end: str | FrontEnd,
                 layout: str | None = None):  # fmt: skip
        items, problems = _items(Path(root), _layout(name, layout), annotations)
        super().__init__(root, items, problems, front_end=front_end, size=SIZE)
        self.annotations, self.notes = annotations, annotations.report()
        self.has_ground_truth = all(s.boxes is not None or s.mask is not None for s in annotations.samples)

    def ground_truth(self, index: int) -> np.ndarray:
        """(224, 224) float32: the boxes by their rule; the mask of a sample without boxes."""
        boxes = self.annotations.samples[self._checked(index)].boxes
        if boxes is not None:
            return weight_map(boxes, self.annotations.rule)
        mask = self.mask(index)
        return super().ground_truth(index) if mask is None else mask.astype(np.float32)


def check(root: str | os.PathLike, name: str, annotations: Annotations, *, layout: str | None = None,
          progress: bool = False) -> FolderReport:  # fmt: skip
    """Decode every file that a PublishedSet with these arguments would use; list what is missing or broken."""
    items, problems = _items(Path(root), _layout(name, layout), annotations)
    return check_files(root, items, problems, annotations.report(), progress=progress)


def _layout(name: str, layout: str | None) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"set: expected one of {', '.join(LAYOUTS)}, got {name!r}")
    known = LAYOUTS[name]
    if layout is not None and layout not in known:
        raise ValueError(f"layout: expected one of {', '.join(known)} for {name}, got {layout!r}")
    return known[layout or next(iter(known))]


def _items(root: Path, layout: Layout, annotations: Annotations) -> tuple[list[Item], list[str]]:
    """The samples whose files are all there, and in words what is missing."""
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, got {'a file' if root.exists() else 'nothing there'}")
    items, problems = [], {}  # a file that samples share is missing once
    for sample in annotations.samples:
        kinds = ["image", "audio"] + ["mask"] * (sample.mask is not None)
        found = {kind: _files(root, getattr(layout, kind), sample) for kind in kinds}
        wrong = {files[0]: problem for files in found.values() if (problem := _wrong(files))}
        problems |= {path: f"{problem}, id {sample.id!r}" for path, problem in wrong.items()}
        if not wrong:
            frame, sound, *mask = (files[0] for files in found.values())
            items.append(Item(sample.id, frame, sound, sample.group, sample.category, mask=mask[0] if mask else None))
    return items, list(problems.values())


def _files(root: Path, template: str, sample: Annotation) -> list[Path]:
    """What may be meant: one path, but of a template with a * all files that fit."""
    fields = {"image": sample.image, "audio": sample.audio, "mask": sample.mask}
    if "_clip}" in template:
        fields |= {f"{kind}_clip": _clip(fields[kind]) for kind in ("image", "audio")}
    path = root / template.format(**fields)
    return ("*" in path.name and sorted(path.parent.glob(path.name))) or [path]


def _wrong(files: list[Path]) -> str:
    return f"{files[0].parent}: expected one file, got {len(files)}" if len(files) > 1 else missing(files[0])


def _clip(stem: str) -> str:
    """YTID_SECONDS -> YTID_START_END, in ms, of the 10 s that follow."""
    video, _, seconds = stem.rpartition("_")
    if not video or not seconds.isdecimal():
        raise DataError(f"id {stem!r}: expected YTID_SECONDS, as VGG-SS names its clips")
    return f"{video}_{int(seconds) * 1000}_{(int(seconds) + 10) * 1000}"
