"""Every loss of visual sound source localization, as functions (`ez_vsl`) and as modules (`EZVSL`).

Shared conventions
    Features are raw: cosines are taken inside, by the fused ops, so nothing of size N*M*h*w is stored.
    `visual` (N, C, h, w) and `audio` (M, C), same dtype and device; float32, bfloat16, float16 or float64.
    `positives` (N,) int64: the column (row of `audio`) that sounds in image n. Default: n itself, which needs N == M;
        with gathered negatives (M > N) it must be given. Where negatives are images, only columns that are someone's
        positive are queries, one per image; two images with the same positive are negatives of each other there.
        Or (N, M) bool, several positives P_n of an image, as of clips of one video or of one class: the sum over
        positives in the numerator of MIL-NCE (Miech et al., CVPR 2020, eq. 1),
            L_n = -log( sum over m in P_n of e_nm / (sum over m in P_n of e_nm + sum over others m of exp(s_nm / tau)) )
        with e_nm = exp((s_nm - margin) / tau); where negatives are images the same over the rows of a column, and the
        mean over columns with a positive. Every row needs one. A row or column of positives alone has the loss 0.
    `extra_negatives` ExtraNegatives: K audios that are nobody's positive, such as silence, noise or sounds from off
        screen. They are negatives of every image; where negatives are images they have no part.
    `group` a torch.distributed process group (torch.distributed.group.WORLD: all processes): the loss of the joined
        batch of its processes. Each hands over its own images and as many audios, row by row (how many may differ from
        process to process); its audios are gathered, while images stay where they are. Each gets the same joined loss,
        and its gradient is that of the sum over the K processes of what they return: K times the gradient of the joined
        loss, which DistributedDataParallel's mean over processes turns into the gradient of one process on the joined
        batch. All processes of the group call the loss, and backward, together. `positives` are not given, or are the
        rows (N, M) bool of the own images, M the audios of all processes in their order. Extra negatives are gathered,
        too: those of each, how many may differ, are negatives of the images of all.
        None: the batch of this process alone; under DistributedDataParallel its own negatives only.
    `backend` "auto" | "compiled" | "reference", handed to the ops.
    `tokens` ops.TokenMean or ops.TokenMax: with audio (M, C, T), T tokens a clip, whose pooled cells it pools; its mask
        (M, T) leaves out padding and silence, and is gathered with a group.
    `margin` m is subtracted from the cosine of each positive before it is divided by tau; m < 0 makes positives easier.
    `mean_weight` w in [0, 1] blends the pooling with the plain mean, S = (1 - w) S_pooling + w S_mean:
        the pooling warm-up that keeps selective poolings from collapsing when a net starts from scratch.
    Result: scalar, float32 (float64 for float64 features). Logits and cross-entropy are float32 under autocast too.
    Raised: ValueError or TypeError naming the argument, for wrong shapes and dtypes, tau or beta <= 0, positives
        missing or out of range, an empty batch, and a contrast without any negative (its loss would be a constant).
    CE(z, y) stands for mean over rows of logsumexp(z_i) - z_i[y_i]; S has images as rows and audio as columns.
"""

from .extra import ExtraNegatives
from .functional import ez_vsl, fnac, lvs, margin_nce, slavc, ssl_tie
from .modules import (
    EZVSL,
    FNAC,
    LOSSES,
    LVS,
    SLAVC,
    SSLTIE,
    SSPL,
    DenseAV,
    HardPositives,
    LateInteraction,
    MarginNCE,
    SSLAlign,
)
from .neighbors import hard_positives
from .predictive import attention_pooled, sspl
from .tokens import dense_av, head_specialization, late_interaction, negative_pressure, silence, total_variation
from .views import ssl_align

__all__ = [
    "EZVSL",
    "FNAC",
    "LOSSES",
    "LVS",
    "SLAVC",
    "SSLTIE",
    "SSPL",
    "DenseAV",
    "ExtraNegatives",
    "HardPositives",
    "LateInteraction",
    "MarginNCE",
    "SSLAlign",
    "attention_pooled",
    "dense_av",
    "ez_vsl",
    "fnac",
    "hard_positives",
    "head_specialization",
    "late_interaction",
    "lvs",
    "margin_nce",
    "negative_pressure",
    "silence",
    "slavc",
    "ssl_align",
    "ssl_tie",
    "sspl",
    "total_variation",
]
