"""Losses of images with sequences of audio tokens: DenseAV with its regularisers, and FILIP's late interaction."""

import itertools
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import check_tensor, without_autocast
from ..ops.poolings import Pooling
from ..ops.reference import accumulate_dtype, unit
from ..ops.tokens import TokenPooling, check_heads, check_tokens
from .cross_entropy import check_tau, contrast, gather_tokens, join
from .extra import ExtraNegatives
from .options import check_choice
from .scores import check_mean_weight


def _check_clips(audio: Tensor) -> None:
    if audio.dim() != 3:
        raise ValueError(f"audio: expected (M, C, T), got {tuple(audio.shape)}")


def dense_av(
    visual: Tensor,
    audio: Tensor,
    *,
    scale: Tensor | float = 1.0,
    pooling: Pooling = ops.Max(),
    tokens: TokenPooling = ops.TokenMean(),
    heads: int = 2,
    head_pooling: Literal["elementwise_max", "max", "sum"] = "elementwise_max",
    paired: bool = False,
    normalize: bool = False,
    nonnegative: bool = False,
    mean_weight: float = 0.0,
    bias: Tensor | None = None,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """DenseAV: contrast of dot products of features over time, pooled over heads, cells and tokens (CVPR 2024).

        S[n, m] = mean over tokens t of clip m of  max over cells p of image n of  max over heads k of  v_npk . a_mtk
        L = (CE(scale S, positives) + CE(scale S^T, positives)) / 2

    visual (N, C, h, w), audio (M, C, T), C the channels of all heads; neither is normalised.
    scale: a number or a scalar tensor, learned in `DenseAV`. The released program also subtracts the mean of all
        scores, which changes no cross-entropy.
    tokens: pooling of tokens with their mask; the released program gives a clip without any the scores 0: `empty=0`.
    paired: S is half of this and half of the mean over cells of the maximum over tokens, whatever `pooling` is; of
        `tokens` only the mask, bool, and `empty` count.
    mean_weight: that of scores of the mean over the cells, whose heads are pooled after it; DenseAV has none.
    bias: (N, M) or (N, M, heads), products of class tokens; with K extra negatives of M + K clips. Others as in
        `ops.pooled_similarity`.
    """
    _check_clips(audio)
    check_choice("head_pooling", head_pooling, dense_av)
    check_mean_weight(mean_weight)
    if isinstance(scale, Tensor) and scale.numel() != 1:
        raise ValueError(f"scale: expected a number or a scalar tensor, got {tuple(scale.shape)}")
    if bias is not None and group is not None:
        raise ValueError("bias: expected none with a group, whose other clips it knows nothing of")
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    audio = extra.behind(audio)
    options = {
        "heads": heads,
        "head_pooling": head_pooling,
        "normalize": normalize,
        "nonnegative": nonnegative,
        "bias": bias,
        "backend": backend,
    }
    gathered = gather_tokens(batch, tokens, extra, audio)
    check_tokens(gathered, audio)
    if paired and gathered is not None:
        scores = _paired_scores(visual, audio, gathered, options)
    else:
        scores = ops.pooled_similarity(visual, audio, pooling, tokens=gathered, **options)
    if mean_weight:
        dtype = accumulate_dtype(visual)
        cells, sounds = (unit(x, dtype) if normalize else x.to(dtype) for x in (visual, audio))
        options["normalize"] = False
        of_mean = ops.pooled_similarity(cells.mean((2, 3), keepdim=True), sounds, ops.Max(), tokens=gathered, **options)
        scores = (1 - mean_weight) * scores + mean_weight * of_mean
    return contrast(batch, scores * scale, positives, extra, "both") / 2


def _paired_scores(visual: Tensor, audio: Tensor, tokens: TokenPooling, options: dict) -> Tensor:
    """Half of both directions of late interaction; of a clip without a token, `empty` of `tokens`."""
    mask, empty = tokens.mask, tokens.empty
    if mask is not None and mask.dtype == torch.bool and empty is not None:
        heard = mask.any(1)  # the op refuses the other clips: they take part, and their scores are replaced
        every = replace(tokens, mask=mask | ~heard[:, None], empty=None)
        return torch.where(heard, _paired_scores(visual, audio, every, options), empty)
    by_token, by_cell = ops.late_interaction(visual, audio, audio_mask=mask, **options)
    return (by_token + by_cell) / 2


def late_interaction(
    visual: Tensor,
    audio: Tensor,
    *,
    tau: float = 0.07,
    visual_mask: Tensor | None = None,
    audio_mask: Tensor | None = None,
    positives: Tensor | None = None,
    extra_negatives: ExtraNegatives | None = None,
    group=None,
    backend: str = "auto",
) -> Tensor:
    """FILIP: each image is contrasted by the best token of its cells, each clip by the best cell of its tokens.

        L = (CE(by_cell / tau, positives) + CE(by_token^T / tau, positives)) / 2          of `ops.late_interaction`

    ICLR 2022, eq. 1-5, there of images and text. visual (N, C, h, w), audio (M, C, T). visual_mask (N, h, w),
    audio_mask (M, T) bool: the cells and tokens that count. Extra negatives are in the first term.
    """
    _check_clips(audio)
    check_tau(tau)
    batch, positives, extra, audio = join(group, positives, extra_negatives, visual, audio=audio)
    audio = extra.behind(audio)
    mask = extra.masks("audio_mask", None if audio_mask is None else batch.gather(audio_mask), audio)
    by_token, by_cell = ops.late_interaction(visual, audio, visual_mask=visual_mask, audio_mask=mask, backend=backend)
    down = contrast(batch, by_token, positives, extra, "image", tau)
    return (contrast(batch, by_cell, positives, extra, "audio", tau) + down) / 2


# ---------------------------------------------------------------------------------------------------------------------
# Regularisers of DenseAV. sim[n, k, t, p] are the products of a pair by head, token and cell: (N, heads, T, h w).


def paired_products(visual: Tensor, audio: Tensor, heads: int) -> Tensor:
    """visual (N, C, h, w), audio (N, C, T) -> products by head (N, heads, T, h w), as in `ops.token_maps`."""
    check_heads(visual.shape[1], heads)
    pairs = zip(visual.chunk(heads, 1), audio.chunk(heads, 1), strict=True)
    return torch.stack([ops.token_maps(v, a, normalize=False).flatten(2) for v, a in pairs], 1)


def negative_pressure(visual: Tensor, audio: Tensor, *, heads: int = 2, generator: torch.Generator | None = None):
    """Mean of min(sim, 0)^2 over 250 cells and 250 tokens, drawn from the batch, in all pairs: keeps products from
    being negative. visual (N, C, h, w), audio (M, C, T); generator: of the draw, on the CPU. Weight in DenseAV: .01."""
    rows = []
    for name, x in (("visual", visual), ("audio", audio)):
        check_heads(x.shape[1], heads)
        if not len(x):
            raise ValueError(f"{name}: expected at least one, got {tuple(x.shape)}")
        vectors = x.flatten(2).transpose(1, 2).flatten(0, 1)
        drawn = torch.randint(len(vectors), (250,), generator=generator)
        rows.append(vectors[drawn.to(x.device)].unflatten(1, (heads, -1)).float())
    with without_autocast(visual):
        return torch.einsum("nkc,mkc->nmk", *rows).clamp_max(0).square().mean()


def check_silent(silent: Tensor, audio: Tensor) -> None:
    """(N, T) bool, of audio (N, C, T); ValueError, TypeError."""
    check_tensor("silent", silent)
    expected = (audio.shape[0], *audio.shape[2:])
    if silent.dtype != torch.bool or tuple(silent.shape) != expected:
        raise ValueError(f"silent: expected {expected} bool, got {tuple(silent.shape)} {silent.dtype}")


def silence(visual: Tensor, audio: Tensor, silent: Tensor, *, heads: int = 2, power: int = 1) -> Tensor:
    """Mean of |sim|^power of the pairs at the tokens `silent` (N, T) bool: silence is nowhere. 0 without such a token.

    visual (N, C, h, w), audio (N, C, T). The released program draws 250 silent tokens and compares them with all
    images; here they are compared with their own. Weight in DenseAV: .01 with power 1.
    """
    check_silent(silent, audio)
    products = paired_products(visual, audio, heads).abs().pow(power).mean((1, 3))
    return (products * silent).sum() / silent.sum().clamp_min(1)


def total_variation(visual: Tensor, audio: Tensor, *, heads: int = 2) -> Tensor:
    """Mean of (sim[t + 1] - sim[t])^2 of the pairs: maps that change slowly. visual (N, C, h, w), audio (N, C, T), T >=
    2. Weight in DenseAV: .01."""
    if audio.shape[2] < 2:
        raise ValueError(f"audio: expected (N, C, T) with T >= 2, got {tuple(audio.shape)}")
    return paired_products(visual, audio, heads).diff(dim=2).square().mean()


def head_specialization(visual: Tensor, audio: Tensor, *, heads: int = 2) -> Tensor:
    """Mean over pairs of heads i < j, tokens and cells of |sim_i sim_j| of the pairs: of a cell and token one head is
    active. visual (N, C, h, w), audio (N, C, T), heads >= 2. Weight in DenseAV: .05."""
    by_head = paired_products(visual, audio, heads).unbind(1)
    pairs = list(itertools.combinations(by_head, 2))
    if not pairs:
        raise ValueError(f"heads: expected at least 2, got {heads}")
    return torch.stack([(a * b).abs().mean() for a, b in pairs]).mean()
