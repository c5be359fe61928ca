"""Every loss of visual sound source localization, as functions (`ez_vsl`) and as modules (`EZVSL`).

Shared conventions
    Features are raw: cosines are taken inside, by the fused ops, so nothing of size N*M*h*w is stored.
    `visual` (N, C, h, w) and `audio` (M, C), same dtype and device; float32, bfloat16, float16 or float64.
    `positives` (N,) int64: the column (row of `audio`) that sounds in image n. Default: n itself, which needs N == M;
        with gathered negatives (M > N) it must be given. Where negatives are images, only columns that are someone's
        positive are queries, one per image; two images with the same positive are negatives of each other there.
    `group` a torch.distributed process group (torch.distributed.group.WORLD: all processes): the loss of the joined
        batch of its processes. Each hands over its own images and as many audios, row by row (how many may differ from
        process to process); its audios are gathered, while images stay where they are. Each gets the same joined loss,
        and its gradient is that of the sum over the K processes of what they return: K times the gradient of the joined
        loss, which DistributedDataParallel's mean over processes turns into the gradient of one process on the joined
        batch. All processes of the group call the loss, and backward, together; `positives` are not given.
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

from .functional import ez_vsl, fnac, lvs, margin_nce, slavc, ssl_align, ssl_tie
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

__all__ = [
    "EZVSL",
    "FNAC",
    "LOSSES",
    "LVS",
    "SLAVC",
    "SSLTIE",
    "SSPL",
    "DenseAV",
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
