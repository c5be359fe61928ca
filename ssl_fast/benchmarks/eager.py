"""The ops of `ops.CASES` in the few lines of PyTorch that a training script has in their place, for 16-bit features.

    script(visuals, audios, pooled) -> output

visuals, audios: lists of features as a case's `call` takes them. Products have the dtype of the features, and are
pooled in the dtype `pooled`. Under torch.autocast with float32 that is what a user of mixed precision has; with the
features' own, without autocast, everything has 16 bits. Unlike the references these lines do not look after zero
vectors, nor after sums of weights that underflow.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rivals import token_mask

Script = Callable[[Sequence[Tensor], Sequence[Tensor], torch.dtype], Tensor]


def _maps(visual: Tensor, audio: Tensor, pooled: torch.dtype) -> Tensor:
    """Cosines of all pairs (N, M, h w)."""
    maps = torch.einsum("nchw,mc->nmhw", F.normalize(visual, dim=1), F.normalize(audio, dim=1))
    return maps.flatten(2).to(pooled)


def soft_threshold(visuals, audios, pooled) -> Tensor:
    maps = _maps(visuals[0], audios[0], pooled)
    weight = torch.sigmoid((maps - 0.65) / 0.03)
    return (weight * maps).sum(2) / weight.sum(2)


def maximum(visuals, audios, pooled) -> Tensor:
    return _maps(visuals[0], audios[0], pooled).max(2).values


def mean(visuals, audios, pooled) -> Tensor:
    return _maps(visuals[0], audios[0], pooled).mean(2)


def cosine_map(visuals, audios, pooled) -> Tensor:
    return torch.einsum("nchw,nc->nhw", F.normalize(visuals[0], dim=1), F.normalize(audios[0], dim=1)).to(pooled)


def product(visuals, audios, pooled) -> Tensor:
    space, instance = (_maps(*pair, pooled) / 0.03 for pair in zip(visuals, audios))
    return (F.log_softmax(instance, dim=1) + F.log_softmax(space, dim=2)).logsumexp(2)


def tokens(visuals, audios, pooled, heads: int) -> Tensor:
    visual, audio = visuals[0].flatten(2).unflatten(1, (heads, -1)), audios[0].unflatten(1, (heads, -1))
    maps = torch.einsum("nkcp,mkct->nmkpt", visual, audio).to(pooled)
    kept = token_mask(audios[0]).to(pooled)
    return (maps.amax(3).amax(2) * kept).sum(2) / kept.sum(1)
