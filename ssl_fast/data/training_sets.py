"""The field's training sets as sample sets: VGGSound and SoundNet-Flickr, by a list of ids, in the published layouts.

    from ssl_fast.data.training_sets import TrainingSet, check
    train = TrainingSet("VGGSound", "vggsound", "vggss_144k.txt", exclude="vggss_test.csv", front_end="ez_vsl",
                        size=224)
    print(check("VGGSound", "vggsound", "vggss_144k.txt", layout="mp4"))    # every file that is missing or broken

Lists are what the field passes on (10k, 144k, full, the heard classes): one id a line, of a .csv the first column. Many
of them overlap with the test sets (of the 144,000 ids of EZ-VSL's list 3,709 are tested): `exclude` leaves ids out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

from .annotations import Annotation, some
from .datasets import FileSet, FolderReport, Item, check_files
from .io.front_ends import FrontEnd
from .io.video import VIDEOS, pyav
from .layouts import FLICKR, VGGSOUND, Layout, find_items, layout_named
from .sample_lists import DataError, find_list, read_ids

_MP4 = Layout("videos/{image}.mp4", "videos/{audio}.mp4")
# Of every set the first layout is the default. SSL-TIE's frames are those at 5 s, its sounds of VGGSound 3 s long.
LAYOUTS: dict[str, dict[str, Layout]] = {
    "vggsound": VGGSOUND
    | {"ssl-tie": Layout("total_video_frames/{image}/125.jpg", "total_video_3s_audio/{audio}.wav"), "mp4": _MP4},
    "flickr": FLICKR | {"ssl-tie": Layout("frames/{image}/00000003.jpg", "mp3/{audio}.mp3"), "mp4": _MP4},
}
_IDS = {
    "vggsound": (r"[A-Za-z0-9_-]{11}_\d{6}", "YTID_SECONDS of eleven and six characters"),
    "flickr": (r"\d+", "numbers"),
}


class TrainingSet(FileSet):
    """A training set in a folder, in the order of its list; it has no ground truth.

    root: the folder. name: a key of LAYOUTS; layout: one of that set's (default: its first). split: the list of ids;
    exclude: a list of ids to leave out; for both see find_list. front_end, size, `reading` (cache, resampler): see
    FileSet. `notes` tells how many ids were left out.

    Raises DataError for lists that are missing or empty, ids in another form or listed twice, and files that are
    missing; ValueError for layouts of mp4 files without PyAV.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        name: str,
        split: str | os.PathLike,
        *,
        front_end: str | FrontEnd,
        size: int,
        layout: str | None = None,
        exclude: str | os.PathLike | None = None,
        **reading,
    ):
        items, problems, notes = _items(Path(root), name, split, layout, exclude)
        super().__init__(root, items, problems, front_end=front_end, size=size, **reading)
        self.notes = notes


def check(
    root: str | os.PathLike,
    name: str,
    split: str | os.PathLike,
    *,
    layout: str | None = None,
    exclude: str | os.PathLike | None = None,
    progress: bool = False,
) -> FolderReport:
    """Decode every file that a TrainingSet with these arguments would use; list what is missing or broken."""
    return check_files(root, *_items(Path(root), name, split, layout, exclude), progress=progress)


def _items(root: Path, name: str, split, layout: str | None, exclude) -> tuple[list[Item], list[str], list[str]]:
    """The samples whose files are all there, in words what is missing, and what was left out by rule."""
    found, notes = layout_named(LAYOUTS, name, layout), []
    if found.image.endswith(VIDEOS):
        pyav()
    path = find_list(root, split)
    ids = _ids(path, name)
    twice = [one for one, n in Counter(ids).items() if n > 1]
    if twice:
        raise DataError(f"{path}: {len(twice)} of {len(set(ids))} ids listed more than once: {some(twice)}")
    if exclude is not None:
        other = find_list(root, exclude)
        left_out = set(_ids(other, name))
        remaining = [one for one in ids if one not in left_out]
        notes.append(f"{len(ids) - len(remaining)} of the {len(ids)} ids in {path} left out, since they are in {other}")
        if not remaining:
            raise DataError(f"{path}: expected ids that are not in {other}, all {len(ids)} are")
        ids = remaining
    items, problems = find_items(root, found, [Annotation(one, one, one, None, one) for one in ids])
    return items, [f"{problem} in {path}" for problem in problems], notes


def _ids(path: Path, name: str) -> list[str]:
    """The ids of a list; DataError where they are not in the set's form."""
    ids, (form, words) = read_ids(path), _IDS[name]
    wrong = [one for one in ids if not re.fullmatch(form, one)]
    if wrong:
        raise DataError(
            f"{path}: expected ids of {name}, {words}, got {len(wrong)} of {len(ids)} in another form: {some(wrong)}"
        )
    return ids
