"""Augmentation of batches in training, beside that of `data.images`: shifts, sounds, and SSL-TIE's transform.

Every image or sound has its own draw. All draws are made on the CPU from the generator that is given.
"""

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def shift_and_flip(images: Tensor, generator: Generator, fraction: float = 1 / 12) -> Tensor:
    """Images (B, 3, H, W) shifted by up to `fraction` of their sides, mirrored at the border; flipped by a coin."""
    batch, _, height, width = images.shape

    def source(size: int) -> Tensor:
        """(B, size): the position that every output row or column is taken from."""
        most = int(size * fraction)
        position = (torch.arange(size) + torch.randint(-most, most + 1, (batch, 1), generator=generator)).abs()
        return torch.where(position >= size, 2 * (size - 1) - position, position)

    rows, columns = source(height), source(width)
    flip = torch.rand(batch, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    out = torch.empty_like(images)
    for i in range(batch):
        out[i] = images[i].index_select(1, rows[i]).index_select(2, columns[i])
    return out


def roll(spectrograms: Tensor, generator: Generator) -> Tensor:
    """Spectrograms (B, 1, F, T) shifted circularly in time."""
    batch, _, _, frames = spectrograms.shape
    source = (torch.arange(frames) + torch.randint(frames, (batch, 1), generator=generator)) % frames
    return torch.stack([spectrogram.index_select(2, index) for spectrogram, index in zip(spectrograms, source)])


class Equivariance:
    """SSL-TIE's transform, drawn once for a batch: flip and halving by a coin for all, rotation by up to 30 degrees
    for each.

    Called on square images (B, C, H, H) or maps (B, 1, h, h), float, it does the same to both; what comes from outside
    is 0.
    """

    def __init__(self, batch: int, generator: Generator, degrees: float = 30.0):
        angle = (torch.rand(batch, generator=generator) * 2 - 1) * degrees * (math.pi / 180)
        flip, half = (torch.rand(2, generator=generator) < 0.5).tolist()
        zoom, sign = 2.0 if half else 1.0, -1.0 if flip else 1.0
        sine, cosine = angle.sin() * zoom, angle.cos() * zoom
        zero = torch.zeros(batch)
        self.matrices = torch.stack([cosine * sign, -sine, zero, sine * sign, cosine, zero], 1).view(batch, 2, 3)

    def __call__(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.matrices.to(x), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
