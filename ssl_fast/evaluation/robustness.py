"""Segmentation under negative sounds: the figures of AVSBench-Robust (Li et al., "Do Audio-Visual Segmentation Models
Truly Segment Sounding Objects?", arXiv 2502.00358).

A prediction is made of the same frame under its own sound, and under silence, noise and a sound of elsewhere
("misaligned", here `offscreen`); all are compared with the frame's own mask. Under a negative sound nothing should be
predicted: a high IoU there says that the model segments what it sees. With P the samples, K the kinds of negatives,
b+ and b_k the predictions, g the mask, |image| the pixels of the image and H(a, b) = 2 a b / (a + b):

    mIoU      = mean over P of IoU(b+, g)           by AVSBench's rules, see `segmentation`
    F         = mean over P of F(b+, g)             beta^2 = .3, over frames with an object
    mIoU_k, F_k = the same of b_k                   over frames with an object; lower is better
    FPR_k     = mean over P of |b_k| / |image|      the program's calculate_FPR; lower is better
    G-mIoU    = H(mIoU, 1 - mean over K of mIoU_k)
    G-F       = H(F, 1 - mean over K of F_k)
    G-FPR     = mean over K of FPR_k                lower is better

*What is known of the definitions.* The released program prints mIoU, F and FPR of one kind of sound at a time; its
README says that G-mIoU, G-F and G-FPR were aggregated by hand. H is inferred from figures that the README of KEVA
prints of VCT on S4: mIoU 86.20 and G-mIoU 23.79 = H(86.20, 100 - 86.20), as of a model which no sound changes. No such
pair is known for G-FPR; here it is the mean. `g_miou_fpr` = H(mIoU, 1 - G-FPR) is what vssl_eval's F_LOC is of boxes.

*Where the program differs.* (1) On frames without an object (of MS3) it scores the share of pixels left empty under
negatives, too, so that a right answer raises mIoU_k. (2) Its F is the best over 255 thresholds, the lowest of which
predicts the whole image; of a binary prediction the better one of it and of the whole image. `g_miou_published` and
`g_f_published` are counted so. (3) Its predictions are sigmoid(logit) > .5, here the map above the universal threshold:
0 for maps of logits. (4) Its sounds of elsewhere are of other ones of four categories; for those here see
`data.negatives`.
"""

from collections.abc import Mapping

import numpy as np

from . import segmentation
from .false_alarms import harmonic
from .metrics import check_values
from .segmentation import Segmentation


def figures(
    positive: Segmentation, negatives: Mapping[str, Segmentation], areas: Mapping[str, np.ndarray]
) -> dict[str, float | int]:
    """Values of the predictions under the samples' own sound, {kind: those under negatives}, both against the same
    masks, and {kind: (N,) predicted shares of the image} -> the figures above, in [0, 1].

    `n_object`, `miou`, `f_score`; `miou_KIND`, `f_score_KIND`, `fpr_KIND`; `g_miou`, `g_f`, `g_fpr`, `g_miou_fpr`,
    `g_miou_published`, `g_f_published`. Without any object only `n_object`, `miou` and those of FPR.
    ValueError without a kind of negative.
    """
    if not negatives:
        raise ValueError("negatives: expected maps under at least one kind of negative for robustness, got none")
    own = segmentation.figures(positive)
    fpr = {kind: float(check_values(area, f"areas[{kind!r}]").mean()) for kind, area in areas.items()}
    out = {key: own[key] for key in ("n_object", "miou", "f_score") if key in own}
    objects = ~np.isnan(positive.f)
    if objects.any():
        iou = {kind: float(one.iou[objects].mean()) for kind, one in negatives.items()}
        f = {kind: float(one.f[objects].mean()) for kind, one in negatives.items()}
        out |= {f"miou_{kind}": value for kind, value in iou.items()}
        out |= {f"f_score_{kind}": value for kind, value in f.items()}
        out |= {"g_miou": harmonic(own["miou"], 1 - _mean(iou)), "g_f": harmonic(own["f_score"], 1 - _mean(f))}
        published = {kind: segmentation.figures(one) for kind, one in negatives.items()}
        for name, key in (("g_miou_published", "miou"), ("g_f_published", "f_score_published")):
            out[name] = harmonic(own[key], 1 - _mean({kind: one[key] for kind, one in published.items()}))
    out |= {f"fpr_{kind}": value for kind, value in fpr.items()} | {"g_fpr": _mean(fpr)}
    return out | {"g_miou_fpr": harmonic(own["miou"], 1 - _mean(fpr))}


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean([*values.values()]))
