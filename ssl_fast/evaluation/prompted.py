"""Segmentation of what a prompt names: AP and mIoU over classes, as DenseAV's program has them.

Of each class the pixels of all its samples are taken together (Hamilton et al., CVPR 2024, `eval_utils`): AP ranks them
by their scores, IoU is that of the best of 20 thresholds, evenly spaced from the lowest to the highest score, of the
pixels strictly above. `map` and `miou` are means over classes. Scores of different samples are compared, so maps are
not normalised one by one. A class without a pixel of its object in any sample has neither, and is left out.

DenseAV averages speech prompts over the time of the word alone ("advanced"), sound prompts over the whole clip
("basic"): which of these a map is, is up to the model.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .multi_source import average_precision

THRESHOLDS = 20


def kept(maps: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of each sample: its map (N, h, w) before up-sampling, the pixels with ground truth > 0 as bits,
    object (N,), and their size (N, 2)."""
    bits = np.empty(len(truth), object)
    bits[:] = [np.packbits(one > 0) for one in truth]
    return {"map": maps, "truth": bits, "size": np.tile(truth.shape[1:], (len(truth), 1))}


def best_iou(scores: np.ndarray, truth: np.ndarray) -> float:
    """Scores (P,), bool (P,) -> the highest IoU of pixels above one of the thresholds; 0 where there is neither."""
    edges = np.linspace(scores.min(), scores.max(), THRESHOLDS).astype(scores.dtype)
    above = [len(part) - np.searchsorted(np.sort(part), edges, side="right") for part in (scores, scores[truth])]
    union = truth.sum() + above[0] - above[1]
    return float((above[1] / np.maximum(union, 1)).max())


def figures(columns: Mapping[str, np.ndarray], categories: Sequence[str], enlarge: Callable) -> dict[str, float | int]:
    """{"map", "miou", "classes", "classes_without_object"}, the two first where some class has an object.

    columns: see `kept`; enlarge(maps (1, h, w), (H, W)): the protocol's up-sampling. The maps of one class are
    up-sampled at a time.
    """
    aps, ious, without = [], [], 0
    names = np.array(categories)
    for name in np.unique(names):
        scores, truths = [], []
        for i in np.flatnonzero(names == name):
            height, width = map(int, columns["size"][i])
            scores.append(enlarge(columns["map"][i : i + 1], (height, width)).ravel())
            truths.append(np.unpackbits(columns["truth"][i], count=height * width).astype(bool))
        score, truth = np.concatenate(scores), np.concatenate(truths)
        if not truth.any():
            without += 1
            continue
        aps.append(average_precision(score, truth[None])[0])
        ious.append(best_iou(score, truth))
    out: dict[str, float | int] = {"classes": len(aps), "classes_without_object": without}
    return out | {"map": float(np.mean(aps)), "miou": float(np.mean(ious))} if aps else out
