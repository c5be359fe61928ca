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

from .metrics import array, auc, check_maps, check_values, success_rate

SIZES = {"small": 32**2, "medium": 96**2, "large": 144**2, "huge": float("inf")}  # pixels, first area outside


def confidence(maps, fraction: float = 0.25) -> np.ndarray:
    """(N, H, W) -> float64 (N,): mean of the int(fraction · H · W) highest pixels of the up-sampled map (12,544 of
    224 x 224). A constant map has its own value."""
    maps = check_maps(maps)
    flat = maps.reshape(len(maps), -1)
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


def precision_recall(confidences, iou, sounding, thresholds, *, standard: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (T,) at the confidence thresholds (T,); confidences, iou, sounding are (N,)."""
    confidences, iou, sounding = _samples(confidences, iou, sounding)
    order = np.argsort(confidences)
    right = sounding & (iou >= 0.5)
    # number of detected samples of each kind: all from the first with confidence >= t on
    first = np.searchsorted(confidences[order], np.asarray(thresholds, np.float64))
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
    precision, recall = precision_recall(confidences, iou, sounding, np.unique(confidences)[::-1])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope * np.diff(recall, prepend=0)).sum()) if np.any(sounding) else 0.0


def average_precision_published(confidences, iou, sounding) -> float:
    """SLAVC's: published misses; thresholds are all confidences but the largest, descending, every max(1, N // 200)-th;
    a strip of recall takes the envelope at its lower end, and the strip before the first recall is left out."""
    thresholds = np.sort(check_values(confidences, "confidences"))[:-1][::-1][:: max(1, len(confidences) // 200)]
    precision, recall = precision_recall(confidences, iou, sounding, thresholds, standard=False)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((envelope[:-1] * np.diff(recall)).sum())


def f1(confidences, iou, sounding, thresholds, *, standard: bool = True) -> np.ndarray:
    """F1 (T,) at the confidence thresholds (T,)."""
    precision, recall = precision_recall(confidences, iou, sounding, thresholds, standard=standard)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros(len(total)), where=total > 0)


def max_f1(confidences, iou, sounding, *, standard: bool = True) -> float:
    """The highest F1 at any threshold."""
    return float(f1(confidences, iou, sounding, np.unique(confidences), standard=standard).max())


def max_f1_published(confidences, iou, sounding) -> float:
    """SLAVC's: published misses; every max(1, N // 10)-th of the sorted confidences, in per cent of one decimal."""
    thresholds = np.sort(check_values(confidences, "confidences"))[:: max(1, len(confidences) // 10)]
    return round(100 * float(f1(confidences, iou, sounding, thresholds, standard=False).max()), 1) / 100


def size_subset(areas) -> np.ndarray:
    """(N,) pixels of ground truth at 224 x 224 -> (N,) names: small below 32², medium below 96², large below 144²,
    huge from there on; "empty" for none."""
    areas = check_values(areas, "areas")
    names = np.array([*SIZES])[np.searchsorted([*SIZES.values()], areas, side="right")]
    return np.where(areas > 0, names, "empty")


def figures(confidences, iou, sounding, areas) -> dict[str, float | int]:
    """All figures of the Extended protocol; arguments (N,).

    `ap`, `max_f1`, `f1_at_half` with standard misses, `ap_published`, `max_f1_published`, `f1_at_half_published` as
    SLAVC's program counts; over the sounding samples `loc_acc` (IoU >= .5), `auc`, `precision_at_50` (IoU > .5, as its
    program tests), and for each subset by size that has any, `loc_acc_SIZE` and `n_SIZE`.
    """
    confidences, iou, sounding = samples = _samples(confidences, iou, sounding)
    out: dict[str, float | int] = {
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
    return out
