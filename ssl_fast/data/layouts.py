"""Folder layouts of published sets, by the programs that use them, and the samples whose files are there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .datasets import Files, Item
from .ground_truth import Annotation
from .sample_lists import DataError, film_paths, some


@dataclass(frozen=True)
class Layout:
    """Paths of files from the root. {image}, {audio}, {mask} are the stems of the annotation (of a mask with its
    suffix), {split} its split; {image_clip}, {audio_clip} the ids of VGG-SS as YTID_START_END in ms; {image_film},
    {audio_film} the places of a clip of SoundNet-Flickr (see film_paths); {audio_video} the video of a frame of MUSIC;
    of a * there is one file. A sound that is mixed in (kind "mixed") is where sounds are."""

    image: str
    audio: str
    mask: str = ""

    def __str__(self) -> str:
        names = {"image": "ID", "audio": "ID", "split": "SPLIT", "image_clip": "YTID_START_END"}
        names |= {"audio_clip": "YTID_START_END", "image_film": "videos/N/N/N/ID.mp4"}
        names |= {"audio_film": names["image_film"], "audio_video": "YTID"}
        return " with ".join(dict.fromkeys(text.format(**names) for text in (self.image, self.audio)))

    def kinds(self, sample: Annotation) -> list[str]:
        """The files that a sample has."""
        return ["image", "audio", *(kind for kind in ("mask", "mixed") if getattr(sample, kind) is not None)]

    def files(self, root: Path, kind: str, sample: Annotation) -> list[Path]:
        """The paths at which a file of a sample is; where there is none, the one where it should be."""
        name, kind = str(getattr(sample, kind)), "audio" if kind == "mixed" else kind
        template, names = getattr(self, kind), {kind: name, "split": sample.split}
        if "_clip}" in template:
            names[f"{kind}_clip"] = _clip(name)
        if "_film}" in template:
            paths = [root / template.format(**{f"{kind}_film": film}) for film in film_paths(name)]
            return [path for path in paths if path.exists()] or paths[:1]
        if "_video}" in template:
            names[f"{kind}_video"] = _video(name)
        path = root / template.format(**names)
        return ("*" in path.name and sorted(path.parent.glob(path.name))) or [path]

    def folders(self, root: Path) -> list[Path]:
        """The folders that hold all images, and all sounds."""
        return [root / text.partition("{")[0] for text in (self.image, self.audio)]


# Folders differ between the training and the test of a program, and between its versions.
Layouts = Mapping[str, Mapping[str, Sequence[Layout]]]  # {set: {program: its layouts}}
FLAT = Layout("frames/{image}.jpg", "audio/{audio}.wav")  # of LVS, EZ-VSL and SLAVC
FILMS = Layout("videos/{image}.mp4", "videos/{audio}.mp4")
_ALIGN = "{image_clip}/image_050.jpg"
VGGSOUND = {
    "slavc": [FLAT],
    "fnac": [Layout("frames/{image}.png", "audio/{audio}.wav")],
    "ssl-align": [
        Layout(f"VGGSound_img/{_ALIGN}", "VGGSound_aud/{audio_clip}.wav"),
        Layout(f"VGGSound_img/{_ALIGN}", "audios_wav/{audio_clip}.wav"),
        Layout(f"frames/{_ALIGN}", "audio/{audio_clip}.wav"),
    ],
    "ssl-tie": [
        Layout("frame/{image}.jpg", "audio/{audio}.wav"),  # to test; to train the frame at 5 s, and sounds of 3 s
        Layout("total_video_frames/{image}/125.jpg", "total_video_3s_audio/{audio}.wav"),
    ],
}
FLICKR = {
    "slavc": [FLAT],
    "ssl-align": [
        Layout(
            "Flickr_Sound_Top5_Dataset_img_test/{image}.mp4/*.jpg", "Flickr_Sound_Top5_Dataset_wav_test/{audio}.wav"
        ),
        Layout("frames_250/{image}.jpg", "audio_250/{audio}.wav"),
        Layout("frames/{image}.mp4/*.jpg", "audio/{audio}.wav"),
    ],
    "ssl-tie": [
        Layout("frame/{image}.jpg", "mp3/{audio}.mp3"),
        Layout("frame/{image}.jpg", "audio/{audio}.wav"),
        Layout("frames/{image_film}/00000003.jpg", "mp3/{audio_film}.mp3"),
        Layout("frames/{image}/00000003.jpg", "mp3/{audio}.mp3"),
    ],
}


def layouts_of(layouts: Layouts, name: str, program: str | None) -> dict[str, Sequence[Layout]]:
    """The layouts of a set; program: of this one alone. ValueError for names that are none."""
    if name not in layouts:
        raise ValueError(f"set: expected one of {', '.join(layouts)}, got {name!r}")
    known = layouts[name]
    if program is not None and program not in known:
        raise ValueError(f"layout: expected one of {', '.join(known)} for {name}, got {program!r}")
    return {key: known[key] for key in known if program in (None, key)}


def find_files(root: Path, layouts: Mapping[str, Sequence[Layout]], samples: Sequence[Annotation]) -> Files:
    """The files of samples, in the one of the layouts that is there. DataError for a folder where none of them is, or
    several are."""
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder, got {'a file' if root.exists() else 'nothing there'}")
    layout, found = _choose(root, layouts, samples), Files()
    for sample in samples:
        files = {kind: layout.files(root, kind, sample) for kind in layout.kinds(sample)}
        if found.complete(sample.id, files.values()):
            path = {kind: paths[0] for kind, paths in files.items()}
            more = {"mask": path.get("mask"), "label": sample.label, "mixed": path.get("mixed")}
            more["visible"] = sample.visible
            item = Item(sample.id, path["image"], path["audio"], sample.group, sample.category, **more)
            found.items.append(item)
    return found


def _choose(root: Path, layouts: Mapping[str, Sequence[Layout]], samples: Sequence[Annotation]) -> Layout:
    """The layout that is there: the only one in which some sample has both its files or, where no sample has them in
    any, the only one with some file, or with folders."""
    known = [(program, layout) for program, several in layouts.items() for layout in several]
    there = [one for one in known if all(folder.is_dir() for folder in one[1].folders(root))]
    if len(known) == 1 or len(there) == 1:
        return (there or known)[0][1]
    most = [0] * len(there)
    for some_of_them in (samples[:: len(samples) // 256 + 1], samples):  # of hundred thousands a few are enough
        if max(most, default=2) < 2:
            most = [max(_counts(root, layout, some_of_them), default=0) for _, layout in there]
    best = [one for one, n in zip(there, most) if n == max(most)]
    if len(best) == 1:
        return best[0][1]
    if best and max(most):
        several = "; ".join(f"{program}: {layout}" for program, layout in best)
        got = "those of several" if max(most) == 2 else "no image and its sound, only the one or the other, in several"
        raise DataError(f"{root}: expected files of one layout, got {got}, choose by --layout: {several}")
    looked_for = "; ".join(f"{program}: {layout}" for program, layout in known)
    entries = sorted(f"{path.name}{'/' * path.is_dir()}" for path in root.iterdir())
    more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
    got = ", ".join(entries[:8]) + more or "an empty folder"
    ids = some([sample.id for sample in samples])
    raise DataError(f"{root}: expected files of {ids} in one of these layouts: {looked_for}; got {got}")


def _counts(root: Path, layout: Layout, samples: Sequence[Annotation]) -> Iterator[int]:
    """Of image and sound, how many files of each sample are there, up to the first sample that has both."""
    for sample in samples:
        try:
            count = sum(layout.files(root, kind, sample)[0].is_file() for kind in ("image", "audio"))
        except DataError:  # its ids are not of this layout's form
            count = 0
        yield count
        if count == 2:
            return


def _clip(stem: str) -> str:
    """YTID_SECONDS -> YTID_START_END, in ms, of the 10 s that follow."""
    video, _, seconds = stem.rpartition("_")
    if not video or not seconds.isdecimal():
        raise DataError(f"id {stem!r}: expected YTID_SECONDS, as VGG-SS names its clips")
    return f"{video}_{int(seconds) * 1000}_{(int(seconds) + 10) * 1000}"


def _video(stem: str) -> str:
    """YTID_SEGMENT_FRAME -> YTID, of frames of MUSIC."""
    found = re.fullmatch(r"(.+)_[0-9]{3}_[0-9]{5}", stem)
    if found is None:
        raise DataError(f"id {stem!r}: expected YTID_NNN_NNNNN, as AVGN names the frames of MUSIC")
    return found[1]
