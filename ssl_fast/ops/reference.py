"""Parts that the plain-PyTorch references of all ops share."""

import torch
from torch import Tensor

# A vector shorter than this counts as a zero vector: its cosine with anything is 0, and so is its gradient. In float16,
# one shorter than the smallest normal number: it has no digits, and its gradient is beyond the largest number.
SHORTEST = 1e-12


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64 inputs, float32 for all others."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def unit(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`F.normalize(x, dim=1)` of any shape (B, C, ...), except that the gradient of a zero vector is 0 (not g / 1e-12).

    Computed in float32 for 16 bits, as lengths of float16 vectors leave its range; the result is rounded to `dtype`
    (None: that of x).
    """
    wide = x.to(accumulate_dtype(x))
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    shortest = max(SHORTEST, torch.finfo(x.dtype).tiny)
    return (wide * torch.where(norm < shortest, 0, 1 / norm.clamp_min(shortest))).to(dtype or x.dtype)


def similarity_maps(visual: Tensor, audio: Tensor) -> Tensor:
    """Cosine of every audio with every cell of every image.

    visual (N, C, h, w), audio (M, C) -> (N, M, h*w), float32 (float64 for float64 inputs). The product is computed in
    the dtype of the inputs, as a training script would; what follows it is not.
    """
    maps = torch.einsum("nchw,mc->nmhw", unit(visual), unit(audio))
    return maps.flatten(2).to(accumulate_dtype(visual))
