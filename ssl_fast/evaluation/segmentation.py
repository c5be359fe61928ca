"""Segmentation of what sounds: AVSBench's mean IoU and F-score of binary masks, as SSL-Align evaluates them.

Rules: cells with ground truth > 0 are the object. *Empty ground truth*: the IoU is the share of the image that is
rightly left empty, the F-score has no value (NaN) and is left out of the mean. *Empty prediction* on an object: both 0.
A prediction of a constant map is what the threshold rule makes of it.
"""

import typing

import numpy as np

from .metrics import array, check_values, overlap

BETA2 = 0.3  # weight of recall against precision in F


class Segmentation(typing.NamedTuple):
    """Per-sample values (N,)."""

    iou: np.ndarray
    f: np.ndarray  # of the prediction; NaN where there is no object
    f_whole: np.ndarray  # of predicting the whole image; NaN likewise


def _f(true, predicted, area) -> np.ndarray:
    # (1 + b) P R / (b P + R) with P = true / predicted, R = true / area
    value = (1 + BETA2) * true / np.maximum(BETA2 * area + predicted, 1)
    return np.where(area > 0, value, np.nan)


def segmentation(prediction, ground_truth) -> Segmentation:
    """bool (N, H, W), weights (N, H, W) -> |b & g| / |b | g| and F = 1.3 P R / (.3 P + R) of each sample."""
    objects = array(ground_truth, "ground_truth", 3) > 0
    true, false, area = overlap(prediction, objects)
    pixels = float(objects[0].size if len(objects) else 1)
    return per_sample(true, false, area, pixels)


def per_sample(true, false, area, pixels: float) -> Segmentation:
    """Segmentation from counts (N,): predicted pixels on and off the object, pixels of the object; pixels of the
    image."""
    iou = np.where(area > 0, true / np.maximum(area + false, 1), 1 - false / pixels)
    return Segmentation(iou, _f(true, true + false, area), _f(area, pixels, area))


def figures(values: Segmentation, batch: int = 64) -> dict[str, float | int]:
    """`miou` and `f_score` are means over samples.

    As published: `miou_published` is a mean over batches of `batch` samples in order (the last, smaller one weighs as
    much as any); `f_score_published` is the best over binarisations of the mask, one of which is the whole image.
    `n_object`: samples behind F; without any there is no F.
    """
    iou = check_values(values.iou)
    means = [iou[start : start + batch].mean() for start in range(0, len(iou), batch)]
    out: dict[str, float | int] = {
        "n_object": int((~np.isnan(values.f)).sum()),
        "miou": float(iou.mean()),
        "miou_published": float(np.mean(means)),
    }
    if out["n_object"]:
        out |= {
            "f_score": float(np.nanmean(values.f)),
            "f_score_published": float(max(np.nanmean(values.f), np.nanmean(values.f_whole))),
        }
    return out
