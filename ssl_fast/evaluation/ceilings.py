"""Ceilings of a rule of prediction: the best map there can be, and a square that looks at nothing.

Under the top-50 % rule every prediction has the same area, so an object that fills less than a quarter of the image can
never reach IoU .5. A figure is to be read beside the ceiling of its set.
"""

import typing
from collections.abc import Iterable

import numpy as np

from . import metrics


def _counts(pixels: int) -> dict[str, int]:
    """Pixels that published evaluators predict, the threshold's own or not: 25,088 and 25,087 of 224 x 224."""
    return {">=": pixels // 2, ">": pixels // 2 - 1}


class Figures(typing.NamedTuple):
    success: float  # fraction of samples with IoU >= .5
    auc: float


def best_iou(ground_truth: np.ndarray, pixels: int) -> float:
    """Weights (H, W) in [0, 1] -> the highest consensus IoU that any prediction of so many pixels has: of those of the
    greatest weights. 0 where the ground truth is empty."""
    weights = np.sort(metrics.array(ground_truth, "ground_truth", 2), axis=None)
    if not 0 < pixels <= weights.size:
        raise ValueError(f"pixels: expected 1 to {weights.size}, got {pixels}")
    return _iou(weights[weights.size - pixels :], weights)


def _iou(predicted: np.ndarray, weights: np.ndarray) -> float:
    """Consensus IoU (`metrics.consensus_iou`) of a prediction, by the weights of its pixels and of all pixels."""
    return predicted.sum(dtype=np.float64) / (weights.sum(dtype=np.float64) + np.count_nonzero(predicted == 0))


def centre_square(pixels: int, shape: tuple[int, int] = (224, 224)) -> np.ndarray:
    """(1, H, W) bool: the `pixels` nearest to the centre by the greater of the two distances; of the outermost ring
    those that come first in row-major order."""
    rows, columns = (np.abs(np.arange(size) - (size - 1) / 2) for size in shape)
    return metrics.top_fraction(-np.maximum.outer(rows, columns)[None], pixels / (shape[0] * shape[1]))


def ceilings(ground_truths: Iterable[np.ndarray]) -> dict[str, Figures]:
    """Ground truths (H, W), one a sample, all of one size -> figures of the best prediction of half the pixels ("best
    >="), of one less ("best >"), and of the centre square of half of them ("centre square")."""
    rows, square = [], None
    for truth in ground_truths:
        truth = metrics.array(truth, "ground_truths", 2)
        counts = _counts(truth.size)
        square = centre_square(counts[">="], truth.shape)[0] if square is None else square
        rows.append([*(best_iou(truth, pixels) for pixels in counts.values()), _iou(truth[square], truth)])
    columns = np.asarray(rows, np.float64).reshape(-1, 3).T
    return {
        name: Figures(metrics.success_rate(iou), metrics.auc(iou))
        for name, iou in zip(("best >=", "best >", "centre square"), columns)
    }
