"""Metrics of visual sound source localization: pure, batched functions from maps to per-sample values, and the
figures made of those.

Arrays may be numpy or torch (any device); what comes back is numpy. Maps are (N, h, w) scores of any range, ground
truths (N, H, W) weights in [0, 1]. Rules that hold everywhere:

* A map or score with a NaN or an infinity is an error that names the sample.
* A *constant map* puts no pixel before another: the top-fraction and adaptive rules predict the **whole image**, its
  pointing is a miss.
* *Ties* at the border of the k best pixels go to the pixel that comes first in row-major order, so exactly k pixels
  are predicted.
* Success is `>=` (IoU of exactly .5 counts); an absolute threshold is strict (`>`) unless asked otherwise.
* The published programs do not count pixels but compare with the *value at an index* of the sorted map (`at_index`):
  ties go all one way, a constant map predicts everything with `>=` and nothing with `>`.
* *Nothing predicted and nothing there* has no IoU; the function that meets it says what it counts as.
"""

import functools
import math
import typing
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

# floating products, as in all published evaluators (some lie one ulp above the decimal)
THRESHOLDS = 0.05 * np.arange(21)


def array(values, name: str, ndim: int | None = None) -> np.ndarray:
    """numpy float32 (float64 stays) of a numpy array, a torch tensor or lists, without a copy where possible. TypeError
    for what is no array of numbers, ValueError for another number of dimensions, both naming it."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values if values.dtype == torch.float64 else values.float()).numpy()
    values = _numpy(values, name)
    if values.dtype.kind not in "fbiu":
        raise TypeError(f"{name}: expected real numbers, got dtype {values.dtype}")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float32)
    if ndim is not None and values.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {values.shape}")
    return values


def _numpy(values, name: str) -> np.ndarray:
    try:
        return np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal lengths, of tensors with gradients
        raise TypeError(f"{name}: expected an array of numbers, got {type(values).__name__}: {error}") from None


def check_predictions(values, name: str = "prediction") -> np.ndarray:
    """bool (N, H, W); TypeError for anything else."""
    values = _numpy(values, name)
    if values.dtype != bool or values.ndim != 3:
        raise TypeError(f"{name}: expected bool (N, H, W), got {values.dtype} {values.shape}")
    return values


def check_maps(maps, ids: Sequence[str] | None = None, name: str = "maps") -> np.ndarray:
    """(N, h, w) floats; ValueError naming the first sample (by `ids` where given) with a NaN or an infinity."""
    maps = array(maps, name, 3)
    if maps.shape[1] * maps.shape[2] == 0:
        raise ValueError(f"{name}: expected at least one cell, got shape {maps.shape}")
    finite = np.isfinite(maps).all((1, 2))
    if not finite.all():
        i = int(finite.argmin())
        who = f"sample {i}" if ids is None else f"sample {ids[i]!r}"
        raise ValueError(f"{name}: {who} holds {int((~np.isfinite(maps[i])).sum())} values that are NaN or infinite")
    return maps


def check_truth(ground_truth, shape: tuple | None = None) -> np.ndarray:
    """(N, H, W) floats of that shape; ValueError naming the first sample with a weight outside [0, 1]."""
    ground_truth = array(ground_truth, "ground_truth", 3)
    if shape is not None and ground_truth.shape != tuple(shape):
        raise ValueError(f"ground_truth: expected shape {tuple(shape)}, got {ground_truth.shape}")
    if ground_truth.size and not (ground_truth.min() >= 0 and ground_truth.max() <= 1):  # a NaN fails both
        refuse_truth(np.asarray((~((ground_truth >= 0) & (ground_truth <= 1))).any((1, 2))))
    return ground_truth


def weights(ground_truth) -> np.ndarray:
    """(N, H, W) floats, or bool where it is so: weights whose range is not checked yet."""
    if isinstance(ground_truth, torch.Tensor) and ground_truth.dtype == torch.bool:
        ground_truth = ground_truth.detach().cpu().numpy()
    if isinstance(ground_truth, np.ndarray) and ground_truth.dtype == np.bool_ and ground_truth.ndim == 3:
        return ground_truth
    return array(ground_truth, "ground_truth", 3)


def refuse_truth(wrong: np.ndarray) -> typing.NoReturn:
    raise ValueError(f"ground_truth: expected weights in [0, 1], sample {int(wrong.argmax())} has values outside")


def check_values(values, name: str = "iou") -> np.ndarray:
    values = array(values, name, 1).astype(np.float64)
    if not len(values):
        raise ValueError(f"{name}: expected at least one sample, got none")
    if np.isnan(values).any():
        raise ValueError(f"{name}: sample {int(np.isnan(values).argmax())} is NaN")
    return values


# ------------------------------------------------------------------------------------------------ maps to predictions


@functools.lru_cache(maxsize=64)
def interpolation_matrix(cells: int, pixels: int, mode: str, align_corners: bool) -> np.ndarray:
    """(pixels, cells) float64: torch's interpolation along one axis as a matrix."""
    unit = torch.eye(cells, dtype=torch.float64)[None, :, :, None]
    columns = F.interpolate(unit, size=(pixels, 1), mode=mode, align_corners=align_corners)[0, :, :, 0]
    return columns.T.contiguous().numpy()


def upsample(
    maps, size, *, interpolation: str = "bilinear", align_corners: bool = False, arithmetic: str = "exact"
) -> np.ndarray:
    """(N, h, w) -> (N, H, W) float32 (float64 for float64) as torch interpolates; size = (H, W) or one number.

    arithmetic: "exact": in float64, rounded once, map by map: a map comes out the same in any batch, and equal values
    by symmetry stay equal. Bilinear values stay within [min, max] of their map to the last bit, so a constant map
    stays constant. "torch": `F.interpolate` in the maps' dtype; "opencv": what `cv2.resize` does with
    `INTER_LINEAR` in float32. Both round at every step, as the published programs do.
    """
    maps = check_maps(maps)
    size = (int(size),) * 2 if np.ndim(size) == 0 else tuple(int(s) for s in size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (height, width) of at least one pixel, got {size}")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"interpolation: expected 'bilinear' or 'bicubic', got {interpolation!r}")
    if arithmetic not in ("exact", "torch", "opencv"):
        raise ValueError(f"arithmetic: expected 'exact', 'torch' or 'opencv', got {arithmetic!r}")
    if arithmetic == "opencv" and (interpolation, align_corners) != ("bilinear", False):
        raise ValueError(
            f"arithmetic: 'opencv' is bilinear without aligned corners, got {interpolation!r}, "
            f"align_corners={align_corners}"
        )
    if maps.shape[1:] == size:
        return maps
    if arithmetic == "torch":
        full = F.interpolate(torch.from_numpy(maps)[:, None], size, mode=interpolation, align_corners=align_corners)
        return full[:, 0].numpy()
    if arithmetic == "opencv":
        return _opencv(_opencv(maps.astype(np.float32), size[1]).swapaxes(1, 2), size[0]).swapaxes(1, 2)
    rows, columns = (
        interpolation_matrix(cells, pixels, interpolation, align_corners) for cells, pixels in zip(maps.shape[1:], size)
    )
    full = np.empty((len(maps), *size), maps.dtype)
    for low, high in zip(maps, full):
        high[:] = rows @ low.astype(np.float64) @ columns.T
        if interpolation == "bilinear":  # rounding may leave the range by an ulp
            np.clip(high, low.min(), low.max(), out=high)
    return full


def _opencv(maps: np.ndarray, pixels: int) -> np.ndarray:
    """(N, h, w) -> (N, h, pixels) float32: a + (b - a) t between neighbours along the rows, product and sum fused."""
    cells = maps.shape[2]
    at = ((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5).astype(np.float32).clip(0, cells - 1)
    left = np.floor(at).astype(int)
    a, b = maps[..., left], maps[..., np.minimum(left + 1, cells - 1)]
    return (a + (b - a).astype(np.float64) * (at - left.astype(np.float32))).astype(np.float32)


def largest(maps, counts) -> np.ndarray:
    """The counts[i] largest pixels of map i, by selection, not sorting; ties and constant maps by the rules above."""
    maps = array(maps, "maps", 3)
    flat = rows(maps)
    n = flat.shape[1]
    out = np.zeros(flat.shape, bool)
    constant = flat.min(1) == flat.max(1) if len(flat) else []
    for row, k, predicted, same in zip(flat, counts, out, constant):
        if same or k >= n:
            predicted[:] = True
        elif k > 0:
            edge = np.partition(row, n - k)[n - k]
            np.greater(row, edge, out=predicted)
            predicted[np.flatnonzero(row == edge)[: k - np.count_nonzero(predicted)]] = True
    return out.reshape(maps.shape)


def fraction_count(fraction: float, n: int) -> int:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a number in (0, 1], got {fraction}")
    return math.ceil(fraction * n - 1e-9)


def top_fraction(maps, fraction: float = 0.5) -> np.ndarray:
    """(N, H, W) -> bool (N, H, W): exactly k = ceil(fraction * H * W) highest pixels (25,088 of 224 x 224 at .5)."""
    maps = check_maps(maps)
    return largest(maps, np.full(len(maps), fraction_count(fraction, maps[0].size if len(maps) else 1)))


def adaptive(maps, ground_truth, *, empty: float = 0.5) -> np.ndarray:
    """(N, H, W), (N, H, W) -> bool: exactly as many pixels as have ground truth > 0 (SSL-Align's adaptive threshold).

    Where the ground truth is empty the fraction `empty` of the image is predicted (the published rule), so that
    nothing is won by default.
    """
    maps = check_maps(maps)
    counts = np.count_nonzero(check_truth(ground_truth, maps.shape), axis=(1, 2))
    return largest(maps, np.where(counts > 0, counts, fraction_count(empty, max(1, maps[:1].size))))


def at_index(maps, index, *, strict: bool) -> np.ndarray:
    """(N, H, W) -> bool: pixels `>` (strict) or `>=` the value at an ascending index of the sorted map, the rule of the
    published programs; index: one number or (N,), within [0, H * W)."""
    maps = check_maps(maps)
    flat = rows(maps)
    index = np.broadcast_to(index, len(maps))
    if ((index < 0) | (index >= flat.shape[1])).any():
        raise ValueError(f"index: expected numbers within [0, {flat.shape[1]}), got {index.min()} .. {index.max()}")
    edge = np.array([np.partition(row, i)[i] for row, i in zip(flat, index)], maps.dtype)[:, None, None]
    return maps > edge if strict else maps >= edge


def above(maps, threshold: float, *, strict: bool = True) -> np.ndarray:
    """(N, H, W) -> bool: pixels above an absolute threshold (may be none, may be all); `>=` where not `strict`."""
    if not np.isfinite(threshold):
        raise ValueError(f"threshold: expected a finite number, got {threshold}")
    return check_maps(maps) > threshold if strict else check_maps(maps) >= threshold


# ------------------------------------------------------------------------------------------------ per-sample values


def rows(maps: np.ndarray) -> np.ndarray:
    """(N, h, w) -> (N, h w), also of no map, where numpy does not know what -1 stands for."""
    return maps.reshape(len(maps), maps.shape[1] * maps.shape[2])


def overlap(prediction, ground_truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """bool (N, H, W), weights (N, H, W) -> float64 (N,) each: sum b·g, sum b·[g = 0], sum g."""
    prediction = check_predictions(prediction)
    truth = check_truth(ground_truth, prediction.shape)
    out = np.empty((3, len(truth)))
    for i, (b, g) in enumerate(zip(prediction, truth)):  # image by image: what a loop touches stays in cache
        weights = g.astype(np.float64)
        out[:, i] = np.vdot(b.astype(np.float64), weights), np.count_nonzero(b & (g == 0)), weights.sum()
    hit, false, weight = out
    return hit, false, weight


def ratio(part, whole, empty: float) -> np.ndarray:
    """part / whole as float64, `empty` where both are 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, whole, out=np.full(whole.shape, float(empty)), where=whole != 0)


def consensus_iou(prediction, ground_truth, *, empty: float = 1.0) -> np.ndarray:
    """bool (N, H, W), weights (N, H, W) -> float64 (N,): sum b·g / (sum g + sum b·[g = 0]). Plain IoU where the
    weights are 0 and 1.

    Empty ground truth and non-empty prediction: 0. Both empty: `empty` (1: rightly nothing; some published programs
    count 0).
    """
    hit, false, weight = overlap(prediction, ground_truth)
    return ratio(hit, weight + false, empty)


def pointing(maps, ground_truth) -> np.ndarray:
    """(N, h, w), (N, H, W) -> bool (N,): the centre of the cell with the highest value lies where ground truth > 0.

    Works on low-resolution maps and on full ones (where a cell is a pixel). Several highest cells: the first in
    row-major order counts. A constant map points nowhere: a miss.
    """
    maps, truth = check_maps(maps), check_truth(ground_truth)
    if len(maps) != len(truth):
        raise ValueError(f"ground_truth: expected {len(maps)} samples to match maps, got {len(truth)}")
    return points_at(maps, truth)


def points_at(maps: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`pointing` of checked arrays."""
    flat = rows(maps)
    best = flat.argmax(1)
    row, column = np.divmod(best, maps.shape[2])
    row = (2 * row + 1) * truth.shape[1] // (2 * maps.shape[1])
    column = (2 * column + 1) * truth.shape[2] // (2 * maps.shape[2])
    sample = np.arange(len(maps))
    return (truth[sample, row, column] > 0) & (flat.min(1) < flat[sample, best])


# ------------------------------------------------------------------------------------------------ figures of a set


def success_rate(iou, threshold: float = 0.5) -> float:
    """Fraction of samples with IoU >= threshold: what the field prints as "cIoU"."""
    return float((check_values(iou) >= threshold).mean())


def area_under(rates: np.ndarray) -> float:
    """Trapezoid rule over the 21 thresholds of (21,) rates."""
    return float((rates[0] / 2 + rates[1:-1].sum() + rates[-1] / 2) / 20)


def auc(iou) -> float:
    """Area under the success rate at 21 thresholds (`>=`, trapezoid): at least .025, within .025 of the mean IoU."""
    return area_under((check_values(iou)[None] >= THRESHOLDS[:, None]).mean(1))


def group_minimum(values, image_ids: Sequence) -> np.ndarray:
    """(N,) values -> (G,) lowest value among the samples of each image, images in order of first appearance."""
    values = check_values(values, "values")
    if len(image_ids) != len(values):
        raise ValueError(f"image_ids: expected {len(values)} ids, got {len(image_ids)}")
    index: dict = {}
    groups = np.array([index.setdefault(image, len(index)) for image in image_ids])
    lowest = np.full(len(index), np.inf)
    np.minimum.at(lowest, groups, values)
    return lowest


class Interactive(typing.NamedTuple):
    iiou: float  # fraction of images whose sounds are all localised (IoU >= .5)
    iauc: float  # area under that fraction over the 21 thresholds
    groups: int  # number of images


def interactive(per_sample_iou, image_ids: Sequence) -> Interactive:
    """IIoU and IAUC of SSL-Align: an image counts at threshold t if *every* sample (sound) of it has IoU >= t."""
    lowest = group_minimum(per_sample_iou, image_ids)
    return Interactive(success_rate(lowest), auc(lowest), len(lowest))


def interactive_pointing(hits, image_ids: Sequence) -> float:
    """Fraction of images for each of whose sounds the maximum of the map lies in that sound's object."""
    return float(group_minimum(array(hits, "hits", 1), image_ids).mean())


# ------------------------------------------------------------------------------------------------ retrieval


def _one_hot(labels: Sequence, index: dict, name: str) -> torch.Tensor:
    sets = [label if isinstance(label, (set, frozenset)) else (label,) for label in labels]
    for i, members in enumerate(sets):
        if not members or None in members:
            raise ValueError(f"{name}: entry {i} has no label")
    pairs = [(i, index[member]) for i, members in enumerate(sets) for member in members if member in index]
    out = torch.zeros(len(sets), len(index))
    if pairs:
        out[tuple(torch.tensor(pairs).T)] = 1
    return out


def recall_ranks(scores, query_labels: Sequence, item_labels: Sequence) -> np.ndarray:
    """(N, M) scores -> (N,) int: how many wrong items stand before the best right one (0 = the first answer is right).

    An item is right if its label equals the query's; a label may be a set (all classes visible in an image), then
    one in common is enough. A wrong item with the same score stands before: a model that scores everything alike
    retrieves nothing.
    """
    scores = array(scores, "scores", 2)
    shape = len(query_labels), len(item_labels)
    if scores.shape != shape:
        raise ValueError(f"scores: expected shape {shape} to match the labels, got {scores.shape}")
    index: dict = {}
    for label in item_labels:
        for member in label if isinstance(label, (set, frozenset)) else (label,):
            index.setdefault(member, len(index))
    queries, items = _one_hot(query_labels, index, "query_labels"), _one_hot(item_labels, index, "item_labels")
    ranks = np.zeros(len(scores), np.int64)
    rows = max(1, (1 << 24) // max(1, scores.shape[1]))  # 64 MiB at a time
    for start in range(0, len(scores), rows):
        part, right = scores[start : start + rows], (queries[start : start + rows] @ items.T).numpy() > 0
        if np.isnan(part).any():
            raise ValueError(f"scores: query {start + int(np.isnan(part).any(1).argmax())} has a NaN")
        if not right.any(1).all():
            i = start + int(right.any(1).argmin())
            raise ValueError(f"query_labels: no item has the label {query_labels[i]!r} of query {i}")
        best = np.where(right, part, -np.inf).max(1, keepdims=True)
        ranks[start : start + rows] = np.count_nonzero((part >= best) & ~right, axis=1)
    return ranks


def recall_at(
    scores, query_labels: Sequence, item_labels: Sequence, ks: Sequence[int] = (1, 5, 10)
) -> dict[int, float]:
    """R@k: fraction of queries with a right item among the k best. Label = image id (instance) or category (class)."""
    ranks = recall_ranks(scores, query_labels, item_labels)
    if not len(ranks):
        raise ValueError("scores: expected at least one query, got none")
    return {int(k): float((ranks < k).mean()) for k in ks}
