"""Predictors that look at the image and never hear the sound.

Each maps uint8 images (B, 3, H, W) to float32 maps (B, h, w). What they score is what a data set gives away for
nothing; on the interactive metrics (the same image, another sound) they fail by construction: their map is a
function of the image alone.
"""

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Baseline = Callable[[Tensor], Tensor]


def _check(images: Tensor) -> Tensor:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images: expected uint8 (B, 3, H, W), got {got}")
    return images


def whole_image(images: Tensor) -> Tensor:
    """A constant map, by rule the whole image is predicted (`metrics`) and no pixel is pointed at."""
    return torch.ones(len(_check(images)), 1, 1)


def centre_box(images: Tensor) -> Tensor:
    """Distance from the border: its k highest pixels are the centred box of k pixels, of the image's aspect."""
    height, width = _check(images).shape[-2:]
    y = ((torch.arange(height) + 0.5) / height * 2 - 1)[:, None]
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    # the small second term fills a ring from the middle of its sides
    ring = torch.maximum(y.abs(), x.abs()) + 1e-3 * (y * y + x * x)
    return (1 - ring).expand(len(images), height, width)


def random(images: Tensor, *, seed: int = 0, cells: int = 7) -> Tensor:
    """cells x cells uniform numbers, drawn from `seed` and the image's bytes: an image always gets the same map."""
    hashes = [zlib.crc32(image.contiguous().cpu().numpy().tobytes()) for image in _check(images)]
    draws = [np.random.default_rng([seed, h]).random((cells, cells), np.float32) for h in hashes]
    return torch.from_numpy(np.stack(draws)) if draws else torch.zeros(0, cells, cells)


def _blur(planes: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (1, 1, H, W), kernel cut at 4 sigma (or the image), borders continued by their last pixel."""
    for dim in (2, 3):
        radius = min(math.ceil(4 * sigma), planes.shape[dim] - 1)
        offsets = torch.arange(-radius, radius + 1, dtype=planes.dtype, device=planes.device)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        padding = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        shape = (1, 1, -1, 1) if dim == 2 else (1, 1, 1, -1)
        planes = F.conv2d(F.pad(planes, padding, mode="replicate"), (kernel / kernel.sum()).view(shape))
    return planes


def objectness(images: Tensor, *, detail: float = 3.0, scale: float = 0.07) -> Tensor:
    """An object prior from pixels alone: local contrast.

    Root mean square of the grey image minus its blur (sigma = `detail` pixels at 112 px) in a Gaussian neighbourhood
    of sigma = `scale` image widths. Grey levels in [0, 1]; not normalised per image."""
    size = (_check(images).shape[-2] * images.shape[-1]) ** 0.5

    def contrast(image: Tensor) -> Tensor:
        grey = image.float().mean(0)[None, None] / 255
        detailed = grey - _blur(grey, detail * size / 112)
        return _blur(detailed * detailed, scale * size).clamp_min(0).sqrt()[0]

    # One by one: a library's convolution may have other bits in another batch, which decide between equal pixels.
    return torch.cat([contrast(image) for image in images]) if len(images) else images[:, 0].float()


BASELINES: dict[str, Baseline] = {
    "whole_image": whole_image,
    "centre_box": centre_box,
    "random": random,
    "objectness": objectness,
}
