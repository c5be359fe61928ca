"""Image files to RGB tensors, and augmentation of batches.

    from ssl_fast.data.images import load_image
    image = load_image("frames/clip.jpg", 224)                  # uint8 (3, 224, 224), aspect ratio not kept
    generator = torch.Generator().manual_seed(step)
    images = colour_jitter(random_resized_crop(images, generator), generator)

Rules of decoding: the EXIF orientation is applied; grey and palette images become RGB, CMYK too by (1 - C)(1 - K);
transparent pixels are laid over white; 16-bit grey is divided by 257 and rounded; of several frames the first counts.
Images of floats, truncated, empty and unreadable files raise MediaError, which names the file.

The augmentations take (B, 3, H, W), uint8 in [0, 255] or float in [0, 1], and return the same. Every image of a batch
has its own draw, and all draws are made on the CPU from the generator that is given: a seed decides them on any device.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .audio import MediaError, check_file

FITS = ("squash", "centre_crop")


def decode_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, by the rules above. Raises MediaError, which names the file."""
    return np.asarray(_open(path))


def load_image(path: str | os.PathLike, size: int, fit: str = "squash") -> Tensor:
    """An image file as uint8 (3, size, size) RGB, resized with an antialiased bicubic filter.

    fit: "squash" resizes both sides to `size`, whatever the aspect ratio, so that coordinates in fractions of the frame
    stay right. "centre_crop" resizes the shorter side and crops the middle; boxes have to be moved along.
    """
    from PIL import Image

    if fit not in FITS:
        raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
    image, box = _open(path), None
    if fit == "centre_crop":
        side = min(image.size)
        left, top = ((length - side) / 2 for length in image.size)
        box = (left, top, left + side, top + side)
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def load_mask(path: str | os.PathLike, size: int) -> np.ndarray:
    """A mask image (white on black) as bool (size, size): averaged over each target pixel, true from one half on.

    Raises MediaError, which names the file; also for a mask that would vanish since its values are 0 and 1, not 255.
    """
    from PIL import Image

    image = _open(path).convert("L")
    highest = image.getextrema()[1]
    if 0 < highest < 128:
        raise MediaError(f"{path}: expected a mask with values 0 and 255, got a maximum of {highest}")
    return np.asarray(image.resize((size, size), Image.Resampling.BOX)) >= 128


def _open(path: str | os.PathLike):
    """Pillow image of mode RGB, fully decoded."""
    from PIL import Image, ImageOps

    path = Path(path)
    check_file(path)
    try:
        with Image.open(path) as file:
            file.load()
            image = ImageOps.exif_transpose(file)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:  # Pillow's plug-ins
        reason = "Format not recognised" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise MediaError(f"{path}: cannot be read as an image ({reason})") from error
    if image.mode.startswith("I"):  # I;16 and its byte orders, I: Pillow would clip these at 255
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise MediaError(f"{path}: expected grey values of 16 bits, got {grey.min()} to {grey.max()}")
        return Image.fromarray(((grey * 2 + 257) // 514).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise MediaError(f"{path}: expected integer pixels, got an image of floats")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _checked(images: Tensor) -> Tensor:
    """float32 (B, 3, H, W) in [0, 1]."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images: expected (B, 3, H, W), got {got}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images: expected uint8 or float, got {images.dtype}")
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _as_given(images: Tensor, given: Tensor) -> Tensor:
    """float32 in [0, 1] as the type of `given`."""
    if given.dtype != torch.uint8:
        return images.to(given.dtype)
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def _uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def random_resized_crop(images: Tensor, generator: Generator, *, scale: tuple[float, float] = (0.5, 1.0),
                        ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> Tensor:  # fmt: skip
    """Of every image a random box, resized (bilinear) to the full size.

    scale: range of the box's share of the image's area. ratio: range of its width : height relative to the image's own,
    uniform in the logarithm, narrowed where a box of that area would not fit. The place is uniform.
    """
    pixels = _checked(images)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale: expected 0 < low <= high <= 1, got {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio: expected 0 < low <= high, got {ratio}")
    batch = len(images)
    if not batch:
        return images.clone()
    area = _uniform(generator, (batch,), *scale)
    low, high = (torch.tensor(math.log(r)).clamp(area.log(), -area.log()) for r in ratio)
    aspect = (low + torch.rand(batch, generator=generator) * (high - low)).exp()
    sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1).clamp_max(1)
    centre = (torch.rand(batch, 2, generator=generator) * 2 - 1) * (1 - sides)
    matrices = torch.cat([torch.diag_embed(sides), centre[:, :, None]], 2)
    grid = F.affine_grid(matrices.to(pixels.device), list(pixels.shape), align_corners=False)
    return _as_given(F.grid_sample(pixels, grid, padding_mode="border", align_corners=False), images)


def horizontal_flip(images: Tensor, generator: Generator, p: float = 0.5) -> Tensor:
    """Every image mirrored left to right with probability p."""
    _checked(images)
    flip = torch.rand(len(images), generator=generator) < p
    return torch.where(flip.to(images.device)[:, None, None, None], images.flip(3), images)


_GREY = torch.tensor([0.299, 0.587, 0.114])  # luma of Rec. 601
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])


def colour_jitter(images: Tensor, generator: Generator, *, brightness: float = 0.4, contrast: float = 0.4,
                  saturation: float = 0.4, hue: float = 0.1, p: float = 0.8) -> Tensor:  # fmt: skip
    """With probability p an image's hue, saturation, contrast and brightness change, in this order; clipped at the end.

    brightness, contrast, saturation: factors from U(1 - x, 1 + x), away from black, from the image's mean grey and from
    each pixel's grey. hue: the plane of chroma (YIQ) is turned by U(-hue, hue) of a full turn.
    """
    pixels = _checked(images)
    batch = len(images)
    applied = torch.rand(batch, generator=generator) < p
    draws = torch.rand(batch, 4, generator=generator) * 2 - 1
    draws = torch.where(applied[:, None], draws, 0)
    factors = 1 + draws[:, :3] * torch.tensor([brightness, contrast, saturation])
    bright, contrasting, saturated = factors.T[..., None, None]
    angle = draws[:, 3] * (hue * 2 * math.pi)
    turn = torch.zeros(batch, 3, 3)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 2, 1] = angle.sin()
    turn[:, 1, 2] = -turn[:, 2, 1]
    to_grey = _GREY.expand(3, 3)
    colour = (saturated * torch.eye(3) + (1 - saturated) * to_grey) @ (torch.linalg.inv(_YIQ) @ turn @ _YIQ)
    colour, contrasting, bright, grey = (x.to(pixels.device) for x in (colour, contrasting, bright, _GREY))
    out = (colour @ pixels.flatten(2)).view_as(pixels)
    mean = torch.einsum("c,bchw->b", grey, out)[:, None, None, None] / max(1, pixels[0:1, 0].numel())
    contrasting, bright = contrasting[..., None], bright[..., None]
    out = (bright * (contrasting * out + (1 - contrasting) * mean)).clamp(0, 1)
    changed = applied.to(images.device)[:, None, None, None]
    return torch.where(changed, _as_given(out, images), images)


def greyscale(images: Tensor, generator: Generator, p: float = 0.2) -> Tensor:
    """Every image replaced by its grey (all channels the luma) with probability p."""
    pixels = _checked(images)
    chosen = (torch.rand(len(images), generator=generator) < p).to(images.device)[:, None, None, None]
    grey = torch.einsum("c,bchw->bhw", _GREY.to(pixels.device), pixels)[:, None].expand_as(pixels)
    return torch.where(chosen, _as_given(grey, images), images)
