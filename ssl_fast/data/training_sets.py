"""The field's training sets as sample sets: VGGSound and SoundNet-Flickr, by a list of ids, in the published layouts.

    from ssl_fast.data.training_sets import TrainingSet, check
    train = TrainingSet("VGGSound", "vggsound", "vggss_144k.txt", exclude="vggss_test.csv", front_end="ez_vsl",
                        size=224)
    print(check("VGGSound", "vggsound", "vggss_144k.txt", layout="mp4"))    # every file that is missing or broken

Lists are what the field passes on (10k, 144k, full, the heard classes, open set): one id a line, of a .csv the first
cell, in any published form (sample_lists.ID_FORMS). Many of them overlap with the test sets (of the 144,000 ids of
EZ-VSL's list 3,709 are tested): `exclude` leaves ids out.
"""

from __future__ import annotations

import os
from pathlib import Path

from .datasets import Files, FileSet, FolderReport, check_files
from .ground_truth import Annotation
from .io.front_ends import FrontEnd
from .io.video import VIDEOS, pyav
from .layouts import FILMS, FLICKR, VGGSOUND, Layouts, find_files, layouts_of
from .sample_lists import DataError, find_list, read_ids

LAYOUTS: Layouts = {"vggsound": VGGSOUND | {"mp4": [FILMS]}, "flickr": FLICKR | {"mp4": [FILMS]}}


class TrainingSet(FileSet):
    """A training set in a folder, in the order of its list; it has no ground truth.

    root: the folder. name: a key of LAYOUTS; layout: one of that set's (default: the one whose files are there). split:
    the list of ids; exclude: a list of ids to leave out; for both see find_list. front_end, size, `reading` (cache,
    resampler, on_missing): see FileSet. `notes` tells how many ids were left out.

    Raises DataError for lists that are missing or empty, ids in another form or listed twice, a layout that cannot be
    told, and files that are missing; ValueError for layouts of mp4 files without PyAV.
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
        files = _files_of(Path(root), name, split, layout, exclude)
        super().__init__(root, files, front_end=front_end, size=size, **reading)


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
    return check_files(root, _files_of(Path(root), name, split, layout, exclude), progress=progress)


def _files_of(root: Path, name: str, split, layout: str | None, exclude) -> Files:
    """What is found of the samples of a list; its notes tell what was left out by rule."""
    layouts, notes = layouts_of(LAYOUTS, name, layout), []
    path = find_list(root, split)
    ids = read_ids(path, name)
    if exclude is not None:
        other = find_list(root, exclude)
        left_out = set(read_ids(other, name))
        remaining = [one for one in ids if one not in left_out]
        notes.append(f"{len(ids) - len(remaining)} of the {len(ids)} ids in {path} left out, since they are in {other}")
        if not remaining:
            raise DataError(f"{path}: expected ids that are not in {other}, all {len(ids)} are")
        ids = remaining
    found = find_files(root, layouts, [Annotation(one, one, one, None, one) for one in ids])
    if any(item.frame.suffix in VIDEOS for item in found.items):
        pyav()
    for messages in (found.missing, found.problems):
        messages.update({file: f"{text} in {path}" for file, text in messages.items()})
    found.notes = notes
    return found
