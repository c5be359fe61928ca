"""Evaluation at the frame's own size: the model sees its squares as ever, its maps are carried back to the frame, and
ground truth is that in the frame's pixels.

Where the square is a crop, pixels of the frame outside of it are never predicted, and rules that predict a share of the
image, or as many pixels as have ground truth, mean those of the frame.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .metrics import ratio
from .results import table

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

PREFIX = "original_"  # of the columns of samples
COMPARED = {  # figures that are shown beside those of the squares, with their titles
    "ciou_adaptive": "cIoU adaptive",
    "auc_adaptive": "AUC adaptive",
    "mean_iou_adaptive": "mean IoU adaptive",
    "pointing": "pointing",
}
PIXELS = 1 << 24  # of frames whose ground truth is in memory at once, or one frame


class Frames(typing.NamedTuple):
    """Samples of a batch whose frames are of one size."""

    rows: list[int]  # of the batch
    truth: np.ndarray  # (n, H, W) weights
    masks: list[np.ndarray | None]  # (H, W) bool
    window: tuple[int, int, int, int] | None  # what the images show, as `protocols.score` takes it; None: all
    reachable: np.ndarray  # (n,) share of the ground truth that they show, which no IoU exceeds; NaN without any


def sizes(sample_set: "SampleSet") -> list[tuple[int, int]]:
    """(width, height) of the frame of each sample. ValueError where one has no ground truth at this size."""
    return [sample_set.original_size(i) for i in range(len(sample_set))]


def frames(sample_set: "SampleSet", index: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Iterator[Frames]:
    """The samples `index` of a set by the size of their frames, a few at a time where these are large. sizes: of the
    frames of all samples of the set."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for row, i in enumerate(index):
        by_size.setdefault(sizes[i], []).append(row)
    for (width, height), rows in by_size.items():
        step = max(1, PIXELS // (width * height))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            truths, masks, windows = zip(*(sample_set.original(int(index[row])) for row in part))
            left, top, right, bottom = window = windows[0]  # one for all frames of a size
            truth, whole = np.stack(truths), window == (0, 0, width, height)
            shown, total = (one.sum((1, 2), dtype=np.float64) for one in (truth[:, top:bottom, left:right], truth))
            yield Frames(part, truth, list(masks), None if whole else window, ratio(shown, total, empty=np.nan))


def columns(scored: Mapping[str, np.ndarray], frames: Frames) -> dict[str, np.ndarray]:
    """The columns of `protocols.score` that depend on the size, under the names that they have in results, and
    `original_reachable`."""
    sized = {name: values for name, values in scored.items() if name.startswith(("iou_", "pia_", "pointing"))}
    return {PREFIX + name: values for name, values in (sized | {"reachable": frames.reachable}).items()}


def figures(
    columns: Mapping[str, Mapping[str, np.ndarray]],
    squares: Mapping,
    image_ids: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> dict:
    """The figures of a set at the size of the frames, `sets[SET]["original"]` of `Results`: {sizes: {n, smallest,
    largest}, unreachable: samples of whose ground truth the image shows less than half, so that no IoU is .5, model:
    table, baselines: {NAME: table}, difference: {predictor: {figure: what it has here minus that of the squares}}}.

    columns: of each predictor (`columns`). squares: `sets[SET]`.
    """
    tables = {
        name: table({key.removeprefix(PREFIX): v for key, v in by.items() if key.startswith(PREFIX)}, image_ids)
        for name, by in columns.items()
    }
    areas = sorted(set(sizes), key=lambda size: size[0] * size[1])
    rows = {"model": squares["model"], **squares["baselines"]}
    return {
        "sizes": {"n": len(areas), "smallest": list(areas[0]), "largest": list(areas[-1])},
        "unreachable": int((columns["model"][f"{PREFIX}reachable"] < 0.5).sum()),
        "model": tables["model"],
        "baselines": {name: one for name, one in tables.items() if name != "model"},
        "difference": {
            name: {key: rate - rows[name][key] for key, rate in one.items() if key != "counts"}
            for name, one in tables.items()
        },
    }


def described(name: str, one: Mapping) -> str:
    """Title of the figures of a set (`sets[SET]`): which sizes its frames have, and what lies outside of the images."""
    found = one["original"]["sizes"]
    smallest, largest = ("{} x {}".format(*found[which]) for which in ("smallest", "largest"))
    sizes = smallest if found["n"] == 1 else f"{found['n']} sizes, {smallest} to {largest}"
    lost = one["original"]["unreachable"]
    outside = f"; of {lost} of {one['n']} samples the model sees less than half of the ground truth" if lost else ""
    return f"{name}, frames of {sizes}{outside}"
