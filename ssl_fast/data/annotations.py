"""Ground truth of the field's test sets, read from the files in which it is published.

    from ssl_fast.data.annotations import read, weight_map
    test = read("vgg-ss", "vggss.json", ids="vggss_test.csv")
    weight_map(test.samples[0].boxes, test.rule)        # (224, 224) float32
    print(test.report())                                # what was clipped, dropped, empty

| set | file | boxes | ground truth |
| --- | --- | --- | --- |
| vgg-ss | JSON, VGG-SS's own | fractions of the frame | union |
| vgg-ss-xml | folder of XML, one an image, as SSL-TIE publishes it | fractions of the frame | union |
| flickr | folder of XML, one an image, of Flickr-SoundNet | pixels of 256 x 256 | consensus |
| is3, is3-plus, vpo-ss, vpo-ms | JSON of SSL-Align, with boxes or with paths of masks | pixels of 224 x 224 | union |
| s4, ms3 | the same, of AVSBench; or AVSBench's csv: masks, of the videos of a split | pixels of 224 x 224 | union |

and those of several sources, and of ADE20K with prompts, as `multi_source` lists them.

The rules for boxes, and for dirt in the files, are those of `ground_truth`. Anything else that is wrong is a DataError
that names the file and the entry.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath

from . import multi_source
from .avsbench import FRAMES, ms3_videos, s4_videos
from .ground_truth import DIRT, SIZE, Annotation, Annotations, annotations_of, weight_map
from .sample_lists import DataError, read_annotations, read_ids, read_json, short, wrong_id

__all__ = ["DIRT", "READERS", "SIZE", "SOURCES", "Annotation", "Annotations", "read", "weight_map"]


def read(
    name: str,
    path: str | os.PathLike,
    *,
    split: str = "test",
    ids: str | os.PathLike | None = None,
    negatives: str | os.PathLike | None = None,
) -> Annotations:
    """The annotations of a set (a key of READERS) in a file or folder; split: of AVSBench's csv, else there is but one;
    ids: a list of them (default: all there are), in any form in which those of the set are published, see
    sample_lists.ID_FORMS; negatives: an Extended list, appended.
    """
    if name not in READERS:
        raise ValueError(f"set: expected one of {', '.join(READERS)}, got {name!r}")
    found = READERS[name](Path(path)).of_split(split)
    if ids is not None:
        found = found.select(read_ids(Path(ids), SOURCES.get(name)), str(ids))
    return found if negatives is None else found.extended(negatives)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def _vggss(path: Path) -> Annotations:
    """[{"file": ID, "class": NAME, "bbox": [[xmin, ymin, xmax, ymax], ...]}, ...]."""
    entries = read_annotations(path)
    for name, entry in entries.items():
        if "class" not in entry or not entry.get("bbox"):
            raise DataError(f"{path}: {name!r}: expected a class and boxes, got {', '.join(entry)}")
    raw = ((Annotation(name, name, name, entry["class"], name), entry["bbox"]) for name, entry in entries.items())
    return annotations_of(path, "union", 1, raw)


def _sslalign(path: Path, depth: int, named: Callable[[str, str], tuple[str | None, str]]) -> Annotations:
    """[{"image": path, "audio": path, "gt_box": [xmin, ymin, xmax, ymax] or the path of a mask}, ...]: paths of another
    machine, whose last `depth` parts (of the sound one less, at least one) are kept; named(image stem, audio stem)
    tells category and group."""
    entries = read_json(path, "annotations as a JSON list")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: expected a JSON list of annotations, got {short(entries)}")

    def tail(text: str, parts: int) -> PurePosixPath:
        return PurePosixPath(*PurePosixPath(text).parts[-parts:])

    raw = []
    for i, entry in enumerate(entries):
        texts = [entry.get(key) for key in ("image", "audio")] if isinstance(entry, dict) else [None]
        named_files = all(isinstance(text, str) and PurePosixPath(text).name for text in texts)
        if not named_files or not isinstance(entry.get("gt_box"), (list, str)):
            raise DataError(f"{path}: entry {i}: expected image, audio and gt_box, got {short(entry)}")
        image = tail(entry["image"], depth).with_suffix("").as_posix()
        audio = tail(entry["audio"], max(1, depth - 1)).with_suffix("").as_posix()
        box, mask = entry["gt_box"], None
        if isinstance(box, str):
            box, mask = None, tail(box, depth).as_posix()
        wrong = [text for text in (image, audio, mask) if text is not None and wrong_id(text)]
        if wrong:
            raise DataError(f"{path}: entry {i}: expected paths of files, got {wrong[0]!r}: {wrong_id(wrong[0])}")
        raw.append((Annotation(image, image, audio, *named(image, audio), mask=mask), None if box is None else [box]))
    return annotations_of(path, "union", SIZE, raw)


def _is3(path: Path) -> Annotations:
    """A name is CLASS_CLASS_NUMBER_SOUNDING; without the last part it is the image's, which two sounds share."""
    return _sslalign(path, 1, lambda image, audio: (image.rpartition("_")[2], image.rpartition("_")[0]))


def _vpo(path: Path) -> Annotations:
    """Names are IMAGE_OBJECT, of COCO's image and annotation; the class is not told."""
    return _sslalign(path, 1, lambda image, audio: (None, image.rpartition("_")[0]))


def _s4(path: Path) -> Annotations:
    """Images are CLASS/VIDEO/VIDEO_N, N of 1 to 5; all of a video have its sound, CLASS/VIDEO. To train there is the
    mask of the first alone."""
    if path.suffix.lower() != ".csv":
        return _sslalign(path, 3, lambda image, audio: (image.partition("/")[0], audio))
    raw = []
    for video in s4_videos(path):
        folder = f"{video.category}/{video.name}"
        for n in range(1, 2 if video.split == "train" else FRAMES + 1):
            stem = f"{folder}/{video.name}_{n}"
            one = Annotation(stem, stem, folder, video.category, folder, mask=f"{stem}.png", split=video.split)
            raw.append((one, None))
    return annotations_of(path, "union", SIZE, raw)


def _ms3(path: Path) -> Annotations:
    """Images are VIDEO/VIDEO.mp4_N, N of 1 to 5, their masks VIDEO/VIDEO_N; all of a video have its sound, VIDEO."""
    if path.suffix.lower() != ".csv":
        return _sslalign(path, 2, lambda image, audio: (None, audio))
    raw = []
    for video in ms3_videos(path):
        for n in range(1, FRAMES + 1):
            image, mask = f"{video.name}/{video.name}.mp4_{n}", f"{video.name}/{video.name}_{n}.png"
            more = {"mask": mask, "split": video.split, "visible": video.alike}
            raw.append((Annotation(image, image, video.name, video.category, video.name, **more), None))
    return annotations_of(path, "union", SIZE, raw)


def _flickr(path: Path) -> Annotations:
    """root > annotator > bbox > five children: something, then xmin, ymin, xmax, ymax of 256 x 256."""
    found = _xml(
        path,
        "consensus",
        256,
        lambda root: [
            (box.tag, [float(side.text) for side in list(box)[1:]]) for annotator in root for box in annotator
        ],
    )
    return replace(found, square=True)


def _ssl_tie(path: Path) -> Annotations:
    """root > bbox > box > xmin, ymin, xmax, ymax as fractions of the frame."""
    return _xml(
        path,
        "union",
        1,
        lambda root: [(boxes.tag, [float(side.text) for side in box]) for boxes in root for box in boxes],
    )


def _xml(folder: Path, rule: str, unit: float, boxes_of: Callable) -> Annotations:
    """ID.xml of a folder, sorted; boxes_of(root) lists (tag, coordinates)."""
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise DataError(f"{folder}: expected a folder of annotations ID.xml, got none")
    raw = []
    for file in files:
        try:
            boxes = boxes_of(ElementTree.parse(file).getroot())
        except (ElementTree.ParseError, TypeError, ValueError) as error:
            raise DataError(f"{file}: expected boxes of numbers in XML, got {error}") from error
        wrong = [tag for tag, _ in boxes if tag != "bbox"]
        if wrong or not boxes:
            raise DataError(f"{file}: expected bbox elements, got {wrong[0] if wrong else 'none'}")
        raw.append((Annotation(file.stem, file.stem, file.stem, None, file.stem), [box for _, box in boxes]))
    return annotations_of(folder, rule, unit, raw)


READERS: dict[str, Callable[[Path], Annotations]] = {
    "vgg-ss": _vggss,
    "vgg-ss-xml": _ssl_tie,
    "flickr": _flickr,
    "is3": _is3,
    "is3-plus": _is3,
    "s4": _s4,
    "ms3": _ms3,
    "vpo-ss": _vpo,
    "vpo-ms": _vpo,
    "music-solo": lambda path: multi_source.music(path, 1),
    "music-duet": lambda path: multi_source.music(path, 2),
    "vggsound-single": lambda path: multi_source.vggsound(path, 1),
    "vggsound-duet": lambda path: multi_source.vggsound(path, 2),
    "vgg-instruments": lambda path: multi_source.instruments(path, 1),
    "vgg-instruments-duet": lambda path: multi_source.instruments(path, 2),
    "ade20k-speech": lambda path: multi_source.prompted(path, "speech_prompt_file"),
    "ade20k-sound": lambda path: multi_source.prompted(path, "vggsound_file"),
}
# The data set that a test set is a part of, whose ids its lists have.
SOURCES = {"vgg-ss": "vggsound", "vgg-ss-xml": "vggsound", "flickr": "flickr", "vggsound-single": "vggsound"}
