"""Scores of all pairs, and the directions they are contrasted in: what several losses share."""

import torch
from torch import Tensor

from .. import ops
from ..ops.checks import check_tensor
from ..ops.poolings import Pooling
from ..ops.tokens import TokenPooling


def direction(symmetric: bool) -> tuple[str, float]:
    """Negatives and weight of a loss that averages both directions if `symmetric`."""
    return ("both", 0.5) if symmetric else ("audio", 1.0)


def pooled(
    visual: Tensor,
    audio: Tensor,
    pooling: Pooling,
    mean_weight: float,
    backend: str,
    tokens: TokenPooling | None = None,
) -> Tensor:
    """S (N, M) by `pooling`, and of audio tokens by `tokens`, blended with the mean over the same cells."""
    if mean_weight == 1:
        return ops.pooled_similarity(visual, audio, ops.Mean(), tokens=tokens, backend=backend)
    scores = ops.pooled_similarity(visual, audio, pooling, tokens=tokens, backend=backend)
    return scores if isinstance(pooling, ops.Mean) else blend(scores, visual, audio, mean_weight, backend, tokens)


def check_mean_weight(mean_weight: float) -> None:
    if not 0 <= mean_weight <= 1:
        raise ValueError(f"mean_weight: expected within [0, 1], got {mean_weight}")


def blend(
    scores: Tensor, visual: Tensor, audio: Tensor, mean_weight: float, backend: str, tokens: TokenPooling | None = None
) -> Tensor:
    """(1 - mean_weight) scores + mean_weight (the mean over the same cells)."""
    check_mean_weight(mean_weight)
    if mean_weight == 0:
        return scores
    mean = ops.pooled_similarity(visual, audio, ops.Mean(), tokens=tokens, backend=backend)
    return torch.lerp(scores, mean, mean_weight)


def clip_vectors(audio: Tensor, tokens: TokenPooling | None) -> Tensor:
    """(M, C), or (M, C, T) -> (M, C), the mean over the tokens that count."""
    if audio.dim() != 3:
        return audio
    mask = tokens.mask if isinstance(tokens, TokenPooling) else None  # of what is none, the op says what is wrong
    if mask is not None:
        check_tensor("tokens.mask", mask)
        if mask.shape != audio.shape[::2]:
            raise ValueError(f"tokens.mask: expected (M, T) = {tuple(audio.shape[::2])}, got {tuple(mask.shape)}")
    return audio.mean(2) if mask is None else ops.TokenMean(mask).pool(audio.transpose(0, 1)).t()
