"""Localization of several sources in an image: class-aware IoU, CAP and PIAP, from per-sample values.

A sample is an image with one of its sources: a map, and the ground truth of this source. Samples of one image are its
sources. AP is that of pixels: the map ranks them, those with ground truth > 0 are right. A source without such a pixel
has no AP, and is left out.

* `ap`: mean over samples of the AP of the own map on the own ground truth.
* `cap`, class-aware AP: the same, first over the samples of each class, then over classes.
* `piap`, permutation-invariant AP: in each image the maps are given to the sources, each map to one at the most, such
  that the sum of the APs is the largest; mean over the sources of the image, then over images.
* `ciou_T`: share of samples with IoU >= T, `auc` its area over 21 thresholds (AVGN and NoPrior, in per cent
  "CIoU@0.3"). `image_ciou_T`, `image_auc`: of images, by the mean IoU of their sources, the class-aware IoU
  sum_k d_k IoU_k / sum_k d_k of Hu et al. (NeurIPS 2020), where d_k tells which classes sound.

CAP and PIAP are measures of "Mix and Localize" (Hu, Chen, Owens, CVPR 2022), whose released code has no evaluator:
above is what their names say. The programs of later papers take AP of the binary prediction instead of the map, and
average over samples:

* `cap_no_prior`: NoPrior's CAP (Kim et al., CVPR 2024), P R + (1 - R) g, with P and R the precision and recall of the
  pixels predicted and g the share of the image with ground truth: AP of a map of two values. Its program gives each map
  to the frame with the best IoU, here it is the own one; it stacks frames, see `data.multi_source`.
* `piap_avgn`: AVGN's PIAP (Mo, Tian, CVPR 2023). Its call of scikit-learn has prediction and ground truth the other way
  round, and nothing is permuted: P R + (1 - P) b, with b the share of the image that is predicted.
"""

import typing
from collections.abc import Mapping, Sequence

import numpy as np

from .metrics import array, auc, check_values, ratio, success_rate

MOST_SOURCES = 16  # of an image: their assignment takes 2^MOST_SOURCES steps
BINARY = "cap_no_prior", "piap_avgn"  # what `binary_aps` returns


def average_precision(scores, truth) -> np.ndarray:
    """Scores (P,) of pixels, bool (K, P) -> AP (K,) float64 of each ground truth: the sum over all distinct scores s of
    (R(s) - R(s')) P(s), with precision and recall of the pixels with a score >= s, and s' the next higher one. Pixels
    of equal scores enter together. NaN where no pixel is true. ValueError for scores with a NaN."""
    scores, truth = array(scores, "scores", 1), np.asarray(truth, bool)
    if truth.ndim != 2 or truth.shape[1:] != scores.shape:
        raise ValueError(f"truth: expected (K, {len(scores)}) to match scores, got {truth.shape}")
    if np.isnan(scores).any():
        raise ValueError(f"scores: expected numbers, pixel {int(np.isnan(scores).argmax())} is NaN")
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    last = np.append(np.flatnonzero(ordered[:-1] != ordered[1:]), len(scores) - 1)  # of each group of equal scores
    out = np.full(len(truth), np.nan)
    for k, mask in enumerate(truth):
        true = np.cumsum(mask[order])[last]
        if len(true) and true[-1]:
            out[k] = (np.diff(true, prepend=0) * (true / (last + 1))).sum() / true[-1]
    return out


class Sources(typing.NamedTuple):
    """Of a sample: which of the sources of its image it is, and the ground truths (K, H, W) of all of them."""

    own: int
    truths: np.ndarray


def by_image(image_ids: Sequence[str]) -> list[tuple[int, list[int]]]:
    """For each sample its place among the samples of its image, and the indices of these, in order. ValueError for an
    image with more than MOST_SOURCES sources."""
    groups: dict[str, list[int]] = {}
    places = []
    for i, image in enumerate(image_ids):
        members = groups.setdefault(image, [])
        places.append(len(members))
        members.append(i)
    for image, members in groups.items():
        if len(members) > MOST_SOURCES:
            raise ValueError(
                f"image_ids: expected at most {MOST_SOURCES} sources of an image, {image!r} has {len(members)}"
            )
    return [(place, groups[image]) for place, image in zip(places, image_ids)]


def source_columns(maps: np.ndarray, sources: Sequence[Sources]) -> dict[str, np.ndarray]:
    """Maps (N, H, W) -> columns (N,): `source`, which of its image's sources a sample is, and `source_ap`, objects: the
    AP (K,) of its map on each of these."""
    aps = np.empty(len(maps), object)
    for n, (one, (_, truths)) in enumerate(zip(maps, sources)):
        if truths.shape[1:] != one.shape:
            raise ValueError(f"sources: expected ground truths (K, {one.shape}) of sample {n}, got {truths.shape}")
        aps[n] = average_precision(one.ravel(), truths.reshape(len(truths), -1) > 0)
    return {"source": np.array([own for own, _ in sources], int), "source_ap": aps}


def binary_aps(hit: np.ndarray, false: np.ndarray, area: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """AP as NoPrior and as AVGN have it, (N,) each, from counts (N,): predicted pixels on and off the object, pixels of
    the object; NaN where there is no object."""
    precision, recall = ratio(hit, hit + false, 0), np.where(area > 0, ratio(hit, area, 0), np.nan)
    no_prior = precision * recall + (1 - recall) * area / pixels
    return no_prior, precision * recall + (1 - precision) * (hit + false) / pixels


def best_assignment(values: np.ndarray) -> float:
    """(J, K), J >= K -> the largest sum of K entries, one in each column, none two in one row. 2^J steps."""
    best = {0: 0.0}  # sets of rows that are taken, as bits
    for column in np.asarray(values, np.float64).T:
        following: dict[int, float] = {}
        for taken, total in best.items():
            for j, value in enumerate(column):
                rows = taken | 1 << j
                if rows != taken and total + value > following.get(rows, -np.inf):
                    following[rows] = total + value
        best = following
    return max(best.values())


def permutation_invariant(matrix: np.ndarray) -> float:
    """PIAP of an image: matrix (K, K), of each map the AP on each source; NaN where no source has an object."""
    there = ~np.isnan(matrix[0])  # of a source without a pixel no map has an AP
    return best_assignment(matrix[:, there]) / there.sum() if there.any() else np.nan


def _rates(iou: np.ndarray, successes: Sequence[float], prefix: str = "") -> dict[str, float]:
    rates = {f"{prefix}ciou_{round(100 * success)}": success_rate(iou, success) for success in successes}
    return rates | {f"{prefix}auc": auc(iou)}


def figures(
    columns: Mapping[str, np.ndarray],
    rules: Sequence[str],
    image_ids: Sequence[str],
    categories: Sequence[str | None],
    successes: Sequence[float],
) -> dict:
    """{"n_object": samples with an object, "images", "ap", "piap", "cap" and "classes" where all samples have a
    category, RULE: {"ciou_30" ..., "auc", "image_ciou_30" ..., "image_auc", "cap_no_prior", "piap_avgn"}}.

    columns (N,): those of `source_columns`, and of each rule `iou_RULE`, `cap_no_prior_RULE`, `piap_avgn_RULE`.
    successes: lowest IoU of a hit, of each rate. Means over nothing are left out.
    """
    images: dict[str, dict[int, int]] = {}  # of each its sources, and the sample of each
    for i, (image, source) in enumerate(zip(image_ids, columns["source"])):
        images.setdefault(image, {})[int(source)] = i
    aps, members = columns["source_ap"], [[own[k] for k in sorted(own)] for own in images.values()]
    for image, samples in zip(images, members):
        if len(samples) != len(aps[samples[0]]):
            raise ValueError(
                f"image_ids: expected all {len(aps[samples[0]])} sources of image {image!r}, got {len(samples)}"
            )
    piap = np.array([permutation_invariant(np.stack(aps[samples].tolist())) for samples in members])
    own = np.array([ap[source] for source, ap in zip(columns["source"], aps)])
    there = ~np.isnan(own)
    out: dict = {"n_object": int(there.sum()), "images": len(members)}
    if there.any():
        out |= {"ap": float(own[there].mean()), "piap": float(np.nanmean(piap))}
        if len(categories) and None not in categories:
            names = np.array(categories)[there]
            classes = [own[there][names == name].mean() for name in np.unique(names)]
            out |= {"cap": float(np.mean(classes)), "classes": len(classes)}
    for rule in rules:
        iou = check_values(columns[f"iou_{rule}"])
        out[rule] = _rates(iou, successes)
        out[rule] |= _rates(np.array([iou[samples].mean() for samples in members]), successes, "image_")
        if there.any():
            out[rule] |= {name: float(np.nanmean(columns[f"{name}_{rule}"])) for name in BINARY}
    return out
