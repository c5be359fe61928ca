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
from pathlib import Path

import numpy as np

from .annotations import SIZE, Annotations, weight_map
from .datasets import FileSet, FolderReport, check_files
from .io.front_ends import FrontEnd
from .io.images import Geometry
from .layouts import FLICKR, VGGSOUND, Layout, find_items, layout_named

# Of every set the first layout is the default.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "vgg-ss": VGGSOUND,
    "vgg-ss-xml": VGGSOUND,
    "flickr": FLICKR,
    "is3": {
        "is3": Layout("images/{image}.jpg", "audio_wav/{audio}.wav", "gt_segmentation/{mask}"),
        "ssl-align": Layout("visual_frames/{image}.jpg", "audio_wav/{audio}.wav", "gt_segmentation/{mask}"),
    },
    "s4": {"avsbench": Layout("visual_frames/test/{image}.png", "audio_wav/test/{audio}.wav", "gt_masks/test/{mask}")},
}
# The names of the annotation files in those folders.
ANNOTATIONS = {
    "vgg-ss": "vggss.json",
    "vgg-ss-xml": "annotations",
    "flickr": "annotations",
    "is3": "synthetic3240_bbox.json",
    "s4": "s4_box.json",
}


class PublishedSet(FileSet):
    """A test set in a folder: images of 224 x 224, ground truth by the rule of its annotations.

    root: the folder. name: a key of LAYOUTS; layout: one of that set's (default: its first). annotations: what there is
    to test on. front_end, and `reading` (cache, fit, resampler): see FileSet. image_ids are the groups that IIoU takes
    together. `notes`: the dirt in the annotations. DataError names the files that are missing.
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
        items, problems = find_items(Path(root), layout_named(LAYOUTS, name, layout), annotations.samples)
        super().__init__(root, items, problems, front_end=front_end, size=SIZE, **reading)
        self.annotations, self.notes = annotations, annotations.report()
        self.has_ground_truth = all(s.boxes is not None or s.mask is not None for s in annotations.samples)

    def _ground_truth(self, index: int, geometry: Geometry) -> np.ndarray:
        """(224, 224) float32: the boxes by their rule; the mask of a sample without boxes."""
        boxes = self.annotations.samples[index].boxes_in(geometry)
        return super()._ground_truth(index, geometry) if boxes is None else weight_map(boxes, self.annotations.rule)


def check(
    root: str | os.PathLike, name: str, annotations: Annotations, *, layout: str | None = None, progress: bool = False
) -> FolderReport:
    """Decode every file that a PublishedSet with these arguments would use; list what is missing or broken."""
    items, problems = find_items(Path(root), layout_named(LAYOUTS, name, layout), annotations.samples)
    return check_files(root, items, problems, annotations.report(), progress=progress)
