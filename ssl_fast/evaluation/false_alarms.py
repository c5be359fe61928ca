"""Metrics under sounds of nothing in the image (silence, noise, off-screen), after vssl_eval.

Predictions are pixels strictly above one universal threshold. Rules: a *constant map* is wholly above it or not at all;
*two empty predictions* agree (IoU 1), one empty and one not disagree (0); the harmonic mean of two zeros is 0; a NaN is
an error that names the sample. Everything is a fraction in [0, 1] (published in per cent).
"""

import typing
from collections.abc import Mapping

import numpy as np

from .metrics import THRESHOLDS, above, area_under, auc, check_predictions, check_values, ratio


class UniversalThreshold(typing.NamedTuple):
    value: float
    third_quartiles: dict[str, float]  # of the maxima, for each kind of negative


def universal_threshold(maxima: Mapping[str, np.ndarray]) -> UniversalThreshold:
    """{kind of negative: (N,) maxima of the low-resolution maps} -> the highest of the third quartiles (vssl_eval's
    "U. th.").

    A quarter of the worst kind of negatives is above it. Choose it on validation data, never on the set that is tested.
    """
    if not maxima:
        raise ValueError("maxima: expected at least one kind of negative, got none")
    quartiles = {kind: float(np.percentile(check_values(v, f"maxima[{kind!r}]"), 75)) for kind, v in maxima.items()}
    return UniversalThreshold(max(quartiles.values()), quartiles)


def pia(maps, threshold: float) -> np.ndarray:
    """(N, H, W) -> float64 (N,): share of the image strictly above the threshold (0 is right for a negative)."""
    return above(maps, threshold).mean((1, 2), dtype=np.float64)


def auc_n(areas) -> float:
    """(N,) pIA -> area under P(pIA <= t) at 21 thresholds (trapezoid): 1 if every pIA is 0, at most .975 if none is."""
    return area_under((check_values(areas, "pia")[None] <= THRESHOLDS[:, None]).mean(1))


def auroc(positive, negative) -> float:
    """(N,) and (M,) scores -> area under the ROC curve: P(positive > negative) + P(positive = negative) / 2.

        AUROC = 1 / (N M) * sum over n, m of  [p_n > q_m] + [p_n = q_m] / 2

    the probability that of a positive and a negative, drawn at random, the positive has the higher score, ties counted
    by half (Hanley & McNeil, Radiology 1982; the statistic of Mann and Whitney). 1: a threshold parts them; .5: chance.
    """
    positive, negative = check_values(positive, "positive"), np.sort(check_values(negative, "negative"))
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum()) / (2 * len(positive) * len(negative))


def separation(positive, negatives: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How well the maximum of a map tells whether anything in the image sounds, without any threshold.

        max_difference_KIND = mean over n of  max A(x_n, s_n) - max A(x_n, s'_n)
        auroc_KIND          = AUROC of the max A(x_n, s_n) against the max A(x_n, s'_n)

    positive: (N,), maxima of the low-resolution maps A of images x under sounds s of something that they show;
    negatives: {kind: (N,)}, those of the same images under sounds s' of nothing there. 0 and .5 for a predictor that
    never hears.
    """
    positive = check_values(positive, "positive")
    negatives = {kind: check_values(values, f"negatives[{kind!r}]") for kind, values in negatives.items()}
    for kind, values in negatives.items():
        if len(values) != len(positive):
            raise ValueError(
                f"negatives[{kind!r}]: expected {len(positive)} maxima to match positive, got {len(values)}"
            )
    return {
        **{f"max_difference_{kind}": float(np.mean(positive - values)) for kind, values in negatives.items()},
        **{f"auroc_{kind}": auroc(positive, values) for kind, values in negatives.items()},
    }


def map_iou(first, second) -> np.ndarray:
    """bool (N, H, W) twice -> float64 (N,): agreement of two predictions of the same image."""
    first, second = check_predictions(first, "first"), check_predictions(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"second: expected shape {first.shape} to match first, got {second.shape}")
    return ratio((first & second).sum((1, 2)), (first | second).sum((1, 2)), empty=1.0)


def harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def figures(iou, areas: Mapping[str, np.ndarray], overlaps: Mapping[str, np.ndarray]) -> dict[str, float]:
    """iou (N,) of the positives at the universal threshold; {kind: (N,) pIA}; {"KIND" or "KIND_KIND": (N,) IoU of that
    prediction with the positive one, or of both}.

    `f_loc` = H(mean IoU, 1 - mean pIA), `f_auc` = H(AUC of the IoU, mean AUC_N), means over the kinds. The paper's
    "cIoU U. th." is this mean IoU, not a success rate.
    """
    iou, areas, overlaps = (
        check_values(iou),
        *(
            {key: check_values(values, f"{name}[{key!r}]") for key, values in given.items()}
            for name, given in (("areas", areas), ("overlaps", overlaps))
        ),
    )
    pias, aucs = ({kind: f(a) for kind, a in areas.items()} for f in (lambda a: float(np.mean(a)), auc_n))
    pairs = [float(np.mean(v)) for key, v in overlaps.items() if key not in areas]
    return {
        "mean_iou": float(iou.mean()),
        "auc": auc(iou),
        **{f"pia_{kind}": value for kind, value in pias.items()},
        **{f"auc_n_{kind}": value for kind, value in aucs.items()},
        **{f"overlap_{key}": float(np.mean(v)) for key, v in overlaps.items()},
        **({"overlap_negatives": float(np.mean(pairs))} if pairs else {}),
        "f_loc": harmonic(float(np.mean(iou)), 1 - float(np.mean([*pias.values()]))),
        "f_auc": harmonic(auc(iou), float(np.mean([*aucs.values()]))),
    }
