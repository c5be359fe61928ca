"""Detection of what sounds: SLAVC's Extended metrics, over samples some of which show no source of their sound.

A sample has a confidence, a consensus IoU and the mark `sounding` (whether its source is visible). At a confidence
threshold t a sample is detected if its confidence is >= t. Detected and not sounding: false positive. Detected and
sounding: true positive if IoU >= .5, else false positive. What is *missed* is counted in two ways:

* `standard`: every sounding sample that is not a true positive, so that recall = TP / sounding samples;
* published (SLAVC's program): sounding samples below t only. A detection in the wrong place is then no miss, and recall
  reaches 1 at the lowest threshold whatever the localization.

*Ties* in confidence enter together. Precision is 1 where nothing is detected, recall 1 where nothing can be missed
(*no sounding sample*), F1 is 0 where precision and recall are. No sample at all, and a NaN, are errors.
"""

import numpy as np

from .metrics import array, auc, check_maps, check_values, rows, success_rate

SIZES = {"small": 32**2, "medium": 96**2, "large": 144**2, "huge": float("inf")}  # pixels, first area outside


def confidence(maps, fraction: float = 0.25) -> np.ndarray:
    """(N, H, W) -> float64 (N,): mean of the int(fraction · H · W) highest pixels of the up-sampled map (12,544 of
    224 x 224). A constant map has its own value."""
    maps = check_maps(maps)
    flat = rows(maps)
    count = int(fraction * flat.shape[1])
    if not 0 < count <= flat.shape[1]:
        raise ValueError(f"fraction: expected a share of at least one of {flat.shape[1]} pixels, got {fraction}")
    return np.partition(flat, -count, axis=1)[:, -count:].mean(1, dtype=np.float64)


def _samples(confidences, iou, sounding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confidences, iou = check_values(confidences, "confidences"), check_values(iou)
    sounding = array(sounding, "sounding", 1) > 0
    for name, values in (("iou", iou), ("sounding", sounding)):
        if len(values) != len(confidences):
            raise ValueError(f"{name}: expected {len(confidences)} samples to match confidences, got {len(values)}")
    return confidences, iou, sounding


def precision_recall(
    confidences, iou, sounding, thresholds, *, standard: bool = True, success: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (T,) at the confidence thresholds (T,); confidences, iou, sounding are (N,). success: the
    lowest IoU of a hit."""
    confidences, iou, sounding = _samples(confidences, iou, sounding)
    order = np.argsort(confidences)
    right = sounding & (iou >= success)
    # number of detected samples of each kind: all from the first with confidence >= t on
    first = np.searchsorted(confidences[order], array(thresholds, "thresholds", 1).astype(np.float64))
    detected, true, visible = (
        np.append(np.cumsum(kind[order][::-1])[::-1], 0)[first] for kind in (np.ones_like(right), right, sounding)
    )
    missed = sounding.sum() - (true if standard else visible)
    return (
        np.divide(true, detected, out=np.ones(len(first)), where=detected > 0),
        np.divide(true, true + missed, out=np.ones(len(first)), where=true + missed > 0),
    )


def average_precision(confidences, iou, sounding) -> float:
    """Area under the envelope of precision (its maximum at this or any higher recall) over recall from 0 to 1, at every
    confidence."""
    confidences, iou, sounding = _samples(confidences, iou, sounding)
    precision, recall = precision_recall(confidences, iou, sounding, np.unique(confidences)[::-1])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(recall, prepend=0)).sum()) if sounding.any() else 0.0


def average_precision_published(confidences, iou, sounding, *, success: float = 0.5) -> float:
    """SLAVC's: published misses; thresholds are all confidences but the largest, descending, every max(1, N // 200)-th;
    a strip of recall takes the envelope at its lower end, and the strip before the first recall is left out."""
    thresholds = np.sort(check_values(confidences, "confidences"))[:-1][::-1][:: max(1, len(confidences) // 200)]
    precision, recall = precision_recall(confidences, iou, sounding, thresholds, standard=False, success=success)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope[:-1] * np.diff(recall)).sum())


def f1(confidences, iou, sounding, thresholds, *, standard: bool = True, success: float = 0.5) -> np.ndarray:
    """F1 (T,) at the confidence thresholds (T,); arguments as of `precision_recall`."""
    precision, recall = precision_recall(confidences, iou, sounding, thresholds, standard=standard, success=success)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)


def max_f1(confidences, iou, sounding, *, standard: bool = True) -> float:
    """The highest F1 at any threshold."""
    thresholds = np.unique(check_values(confidences, "confidences"))
    return float(f1(confidences, iou, sounding, thresholds, standard=standard).max())


def max_f1_published(confidences, iou, sounding, *, success: float = 0.5) -> float:
    """SLAVC's: published misses; every max(1, N // 10)-th of the sorted confidences, in per cent of one decimal."""
    thresholds = np.sort(check_values(confidences, "confidences"))[:: max(1, len(confidences) // 10)]
    best = float(f1(confidences, iou, sounding, thresholds, standard=False, success=success).max())
    return round(100 * best, 1) / 100


def size_subset(areas) -> np.ndarray:
    """(N,) areas, the sums of the weights of 224 x 224 pixels of ground truth -> (N,) names: small below 32² (also
    where boxes have no pixel), medium below 96², large below 144², huge from there on."""
    return np.array([*SIZES])[np.searchsorted([*SIZES.values()], check_values(areas, "areas"), side="right")]


def by_subset(confidences, iou, sounding, areas) -> dict[str, dict[str, float | int]]:
    """{"SUBSET@50" and "SUBSET@75": figures} as SLAVC's program counts and prints them, at an IoU of .5 and .75, of all
    samples, of the sounding ("visible") ones, and of these by size; subsets without a sample are left out.

    `n`, `precision` (of every sample as detected), `ap`, `max_f1`, and `auc` over the sounding samples.
    """
    confidences, iou, sounding = _samples(confidences, iou, sounding)
    sizes = size_subset(areas)
    subsets = {"all": np.ones_like(sounding), "visible": sounding} | {
        size: sounding & (sizes == size) for size in SIZES
    }
    out = {}
    for percent in (50, 75):
        for name, chosen in subsets.items():
            if not chosen.any():
                continue
            samples = confidences[chosen], iou[chosen], sounding[chosen]
            success = percent / 100
            out[f"{name}@{percent}"] = {
                "n": int(chosen.sum()),
                "precision": float(precision_recall(*samples, [-np.inf], success=success)[0][0]),
                "ap": average_precision_published(*samples, success=success),
                "max_f1": max_f1_published(*samples, success=success),
                **({"auc": auc(samples[1][samples[2]])} if samples[2].any() else {}),
            }
    return out


def figures(confidences, iou, sounding, areas) -> dict:
    """All figures of the Extended protocol; arguments (N,).

    `ap`, `max_f1`, `f1_at_half` with standard misses, `ap_published`, `max_f1_published`, `f1_at_half_published` as
    SLAVC's program counts; over the sounding samples `loc_acc` (IoU >= .5), `auc`, `precision_at_50` (IoU > .5, as its
    program tests), and for each subset by size that has any, `loc_acc_SIZE` and `n_SIZE`; `published`: `by_subset`.
    """
    confidences, iou, sounding = samples = _samples(confidences, iou, sounding)
    out: dict = {
        "n": len(iou),
        "n_sounding": int(sounding.sum()),
        "ap": average_precision(*samples),
        "ap_published": average_precision_published(*samples),
        "max_f1": max_f1(*samples),
        "max_f1_published": max_f1_published(*samples),
        "f1_at_half": float(f1(*samples, [0.5])[0]),
        "f1_at_half_published": float(f1(*samples, [0.5], standard=False)[0]),
    }
    if sounding.any():
        out |= {
            "loc_acc": success_rate(iou[sounding]),
            "auc": auc(iou[sounding]),
            "precision_at_50": float((iou[sounding] > 0.5).mean()),
        }
    sizes = size_subset(areas)
    for size in SIZES:
        chosen = sounding & (sizes == size)
        if chosen.any():
            out |= {f"loc_acc_{size}": success_rate(iou[chosen]), f"n_{size}": int(chosen.sum())}
    return out | {"published": by_subset(*samples, areas)}
