"""Image files to RGB tensors.

    from ssl_fast.data.images import load_image
    image = load_image("frames/clip.jpg", 224)                  # uint8 (3, 224, 224), aspect ratio not kept

Rules of decoding: the EXIF orientation is applied; grey and palette images become RGB, CMYK too by (1 - C)(1 - K);
transparent pixels are laid over white; 16-bit grey is divided by 257 and rounded; of several frames the first counts.
Images of floats, truncated, empty and unreadable files raise MediaError, which names the file. Of an mp4 file it is the
frame in the middle (see video.py).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .media import MediaError, check_file
from .video import VIDEOS, middle_frame

FITS = ("squash", "centre_crop")
RESAMPLERS = ("pillow", "torch")


def decode_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, by the rules above. Raises MediaError, which names the file."""
    return np.array(_open(path))


def load_image(path: str | os.PathLike, size: int, fit: str = "squash", resampler: str = "pillow") -> Tensor:
    """An image file as uint8 (3, size, size) RGB; see `resize`. Raises MediaError, which names the file."""
    if fit not in FITS:
        raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
    return resize(_open(path), size, fit, resampler)


def resize(image, size: int, fit: str = "squash", resampler: str = "pillow") -> Tensor:
    """A Pillow image of mode RGB, or uint8 (H, W, 3), to uint8 (3, size, size), by an antialiased bicubic filter.

    fit: "squash" resizes both sides to `size`, whatever the aspect ratio, so that coordinates in fractions of the frame
    stay right. "centre_crop" resizes the shorter side and crops the middle; boxes have to be moved along.
    resampler: "pillow" as published programs have it; "torch" the same filter in torch's vector instructions, which
    differs by 1 of 255 at the most and takes a quarter of the time; for "squash" only.
    """
    from PIL import Image

    if resampler not in RESAMPLERS or (resampler == "torch" and fit != "squash"):
        raise ValueError(f"resampler: expected one of {', '.join(RESAMPLERS)}, torch for squash only, "
                         f"got {resampler!r} for {fit}")  # fmt: skip
    if resampler == "torch":
        pixels = torch.from_numpy(np.array(image, copy=isinstance(image, Image.Image)))
        return torch.nn.functional.interpolate(pixels.permute(2, 0, 1)[None], (size, size), mode="bicubic",
                                               antialias=True)[0].contiguous()  # fmt: skip
    image, box = Image.fromarray(image) if isinstance(image, np.ndarray) else image, None
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
    if path.suffix.lower() in VIDEOS:
        return Image.fromarray(middle_frame(path))
    try:
        with Image.open(path) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
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
    return image if image.mode == "RGB" else image.convert("RGB")
