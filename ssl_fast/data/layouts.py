"""Folder layouts of published sets, and the samples whose files are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .annotations import Annotation
from .datasets import Item, missing
from .sample_lists import DataError


@dataclass(frozen=True)
class Layout:
    """Paths of files from the root. {image}, {audio}, {mask} are the stems of the annotation (of a mask with its
    suffix); {image_clip} and {audio_clip} the ids of VGG-SS as YTID_START_END in ms; of a * there is one file."""

    image: str
    audio: str
    mask: str = ""


FLAT = Layout("frames/{image}.jpg", "audio/{audio}.wav")
# Of VGGSound, for training and for testing; EZ-VSL has SLAVC's.
VGGSOUND = {
    "slavc": FLAT,
    "fnac": Layout("frames/{image}.png", "audio/{audio}.wav"),
    "ssl-align": Layout("frames/{image_clip}/image_050.jpg", "audio/{audio_clip}.wav"),
}
FLICKR = {"slavc": FLAT, "ssl-align": Layout("frames/{image}.mp4/*.jpg", "audio/{audio}.wav")}


def layout_named(layouts: dict[str, dict[str, Layout]], name: str, layout: str | None) -> Layout:
    """The layout of a set by their names; None: the set's first. ValueError for names that are none."""
    if name not in layouts:
        raise ValueError(f"set: expected one of {', '.join(layouts)}, got {name!r}")
    known = layouts[name]
    if layout is not None and layout not in known:
        raise ValueError(f"layout: expected one of {', '.join(known)} for {name}, got {layout!r}")
    return known[layout or next(iter(known))]


def find_items(root: Path, layout: Layout, samples: Sequence[Annotation]) -> tuple[list[Item], list[str]]:
    """The samples whose files are all there, and in words what is missing."""
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, got {'a file' if root.exists() else 'nothing there'}")
    items, problems = [], {}  # a file that samples share is missing once
    for sample in samples:
        kinds = ["image", "audio"] + ["mask"] * (sample.mask is not None)
        found = {kind: _files(root, getattr(layout, kind), sample) for kind in kinds}
        wrong = {files[0]: problem for files in found.values() if (problem := _wrong(files))}
        problems |= {path: f"{problem}, id {sample.id!r}" for path, problem in wrong.items()}
        if not wrong:
            frame, sound, *mask = (files[0] for files in found.values())
            items.append(Item(sample.id, frame, sound, sample.group, sample.category, mask=mask[0] if mask else None))
    return items, list(problems.values())


def _files(root: Path, template: str, sample: Annotation) -> list[Path]:
    """Candidates for a template: one path, with a * all files that fit."""
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
