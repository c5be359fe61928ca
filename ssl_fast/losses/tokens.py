"""Losses of images with sequences of audio tokens, and the regularisers of DenseAV."""

import itertools

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import check_pair, without_autocast
from ..ops.poolings import Pooling
from ..ops.reference import accumulate_dtype
from ..ops.tokens import TokenPooling
from .cross_entropy import contrast, join


def _check_clips(audio: Tensor) -> None:
    if audio.dim() != 3:
        raise ValueError(f"audio: expected (M, C, T), got {tuple(audio.shape)}")


def _masked(mask: Tensor | None, audio: Tensor) -> Tensor:
    return torch.ones(audio.shape[::2], dtype=torch.bool, device=audio.device) if mask is None else mask


def dense_av(
    visual: Tensor,
    audio: Tensor,
    *,
    scale: Tensor | float = 1.0,
    audio_mask: Tensor | None = None,
    heads: int = 2,
    head_pooling: str = "elementwise_max",
    pooling: Pooling = ops.Max(),
    paired: bool = False,
    normalize: bool = False,
    nonnegative: bool = False,
    bias: Tensor | None = None,
    positives: Tensor | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """DenseAV: contrast of dot products, pooled over heads, cells and audio tokens (CVPR 2024, eq. 1-4).

        S[n, m] = mean over tokens t of clip m of  pooling over cells p of  max over heads k of  alpha[n, m, k, p, t]
        L = (CE(scale S, positives) + CE(scale S^T, positives)) / 2

    visual (N, C, h, w); audio (M, C, T), C the channels of all heads. scale: a number or a learned scalar tensor, as the
    released program's exp(w), kept within [.01, 100]; what it subtracts, the mean of all scores, changes no loss.
    audio_mask: (M, T) bool, the tokens that are neither silent nor padding; a clip without any has scores 0.
    paired: half of S and half of the mean over cells of the maximum over tokens (its "paired" score).
    bias (N, M) or (N, M, heads): products of class tokens. Other arguments as in `ops.pooled_similarity`.
    """
    _check_clips(audio)
    batch, positives, audio, mask = join(group, positives, visual, audio=audio, audio_mask=_masked(audio_mask, audio))
    options = {"heads": heads, "head_pooling": head_pooling, "normalize": normalize, "nonnegative": nonnegative}
    scores = ops.pooled_similarity(
        visual, audio, pooling, tokens=ops.TokenMean(mask, empty=0.0), bias=bias, backend=backend, **options
    )
    if paired:
        by_cell = ops.pooled_similarity(
            audio.unsqueeze(-1),
            visual.flatten(2),
            ops.Max(),
            tokens=ops.TokenMean(),
            visual_mask=mask.unsqueeze(-1),
            bias=None if bias is None else bias.transpose(0, 1),
            backend=backend,
            **options,
        )
        scores = (scores + by_cell.t()) / 2
    return contrast(batch, scores * scale, positives, "both") / 2
