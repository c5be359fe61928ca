"""Scores of all pairs, and the directions they are contrasted in: what several losses share."""

import torch
from torch import Tensor

from .. import ops
from ..ops.poolings import Pooling


def direction(symmetric: bool) -> tuple[str, float]:
    """Negatives and weight of a loss that averages both directions if `symmetric`."""
    return ("both", 0.5) if symmetric else ("audio", 1.0)


def pooled(visual: Tensor, audio: Tensor, pooling: Pooling, mean_weight: float, backend: str) -> Tensor:
    """S (N, M) by `pooling`, blended with the mean over the same cells."""
    if mean_weight == 1:
        return ops.pooled_similarity(visual, audio, ops.Mean(), backend=backend)
    scores = ops.pooled_similarity(visual, audio, pooling, backend=backend)
    return scores if isinstance(pooling, ops.Mean) else blend(scores, visual, audio, mean_weight, backend)


def blend(scores: Tensor, visual: Tensor, audio: Tensor, mean_weight: float, backend: str) -> Tensor:
    """(1 - mean_weight) scores + mean_weight (the mean over the same cells)."""
    if not 0 <= mean_weight <= 1:
        raise ValueError(f"mean_weight: expected within [0, 1], got {mean_weight}")
    if mean_weight == 0:
        return scores
    return torch.lerp(scores, ops.pooled_similarity(visual, audio, ops.Mean(), backend=backend), mean_weight)
