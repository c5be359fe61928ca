"""Image files to RGB tensors, and their boxes and masks along with them.

    from ssl_fast.data.io.images import Geometry, decode_image, load_image
    image = load_image("frames/clip.jpg", 224)                  # uint8 (3, 224, 224), aspect ratio not kept
    frame = decode_image("frames/clip.jpg")                     # uint8 (H, W, 3), as it is
    geometry = Geometry((0.1, 0.0, 0.8, 0.9), flip=True)        # 70 % of its width, 90 % of its height, mirrored
    image, boxes = geometry.image(frame, 224), geometry.boxes(boxes)

Rules of decoding: the EXIF orientation is applied; grey and palette images become RGB, CMYK too by (1 - C)(1 - K);
transparent pixels are laid over white; 16-bit grey is divided by 257 and rounded; of several frames the first counts.
Images of floats, truncated, empty and unreadable files raise MediaError, which names the file. Of a video it is the
frame in the middle (see video.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .media import MediaError, check_file
from .video import CONTAINERS, middle_frame

FITS = ("squash", "centre_crop")
RESAMPLERS = ("pillow", "torch")


def decode_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, by the rules above. Raises MediaError, which names the file."""
    return np.array(_open(path))


@dataclass(frozen=True)
class Geometry:
    """Crop and flip that make a frame a square: a box of it is resized to the whole square, which then may be mirrored.

    box: left, top, right, bottom as fractions of the frame's width and height. flip: left to right.
    ValueError for a box without area or beyond the frame.
    """

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    flip: bool = False

    def __post_init__(self):
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"box: expected 0 <= left < right <= 1 and 0 <= top < bottom <= 1, got {self.box}")

    @classmethod
    def of_pixels(
        cls, left: float, top: float, right: float, bottom: float, width: int, height: int, flip: bool = False
    ) -> Geometry:
        """The box in pixels of a frame of width x height."""
        return cls((left / width, top / height, right / width, bottom / height), flip)

    @classmethod
    def centre(cls, width: int, height: int) -> Geometry:
        """The largest square in the middle of a frame of width x height pixels."""
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return cls.of_pixels(left, top, left + side, top + side, width, height)

    def image(self, frame: np.ndarray, size: int, resampler: str = "pillow") -> Tensor:
        """A frame (H, W, 3) uint8 -> (3, size, size) uint8, in one resampling by an antialiased bicubic filter.

        resampler: "pillow" as published programs have it; "torch" the same filter in torch's vector instructions, which
        differs by 1 of 255 at the most and takes a quarter of the time; for whole frames only.
        """
        if resampler not in RESAMPLERS or (resampler == "torch" and self != Geometry()):
            raise ValueError(
                f"resampler: expected one of {', '.join(RESAMPLERS)}, torch for whole frames only, "
                f"got {resampler!r} for {self}"
            )
        if resampler == "torch":
            pixels = torch.from_numpy(frame).permute(2, 0, 1)[None]
            return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)[0].contiguous()
        return torch.from_numpy(self._square(frame, size, "BICUBIC").transpose(2, 0, 1).copy())

    def mask(self, mask: np.ndarray, size: int) -> np.ndarray:
        """A mask (H, W), bool or uint8 with 255 for true -> (size, size) bool: averaged over each target pixel, true
        from one half on."""
        grey = mask.astype(np.uint8) * 255 if mask.dtype == bool else mask
        return self._square(grey, size, "BOX") >= 128

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (k, 4), fractions of the frame -> (n, 4), fractions of the square: clipped to it, and n <= k as those
        of which nothing is left are dropped."""
        left, top, right, bottom = self.box
        inside = (boxes - (left, top, left, top)) / (right - left, bottom - top, right - left, bottom - top)
        inside = inside.clip(0, 1)
        if self.flip:
            inside[:, [0, 2]] = 1 - inside[:, [2, 0]]
        return inside[(inside[:, :2] < inside[:, 2:]).all(1)]

    def _square(self, pixels: np.ndarray, size: int, resampling: str) -> np.ndarray:
        from PIL import Image

        height, width = pixels.shape[:2]
        box = tuple(part * side for part, side in zip(self.box, (width, height) * 2))
        image = Image.fromarray(pixels).resize((size, size), Image.Resampling[resampling], box=box)
        square = np.asarray(image)
        return square[:, ::-1] if self.flip else square


def load_image(path: str | os.PathLike, size: int, fit: str = "squash", resampler: str = "pillow") -> Tensor:
    """An image file as uint8 (3, size, size) RGB, resized with an antialiased bicubic filter.

    fit: "squash" resizes both sides to `size`, whatever the aspect ratio, so that coordinates in fractions of the frame
    stay right. "centre_crop" resizes the shorter side and crops the middle; boxes have to be moved along, as
    `Geometry.centre` does. resampler: see `Geometry.image`.
    """
    if fit not in FITS:
        raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
    frame = decode_image(path)
    geometry = Geometry.centre(frame.shape[1], frame.shape[0]) if fit == "centre_crop" else Geometry()
    return geometry.image(frame, size, resampler)


def load_mask(path: str | os.PathLike, size: int) -> np.ndarray:
    """A mask image (white on black) as bool (size, size): averaged over each target pixel, true from one half on.

    Raises MediaError, which names the file; also for a mask that would vanish since its values are 0 and 1, not 255.
    """
    grey = np.asarray(_open(path).convert("L"))
    highest = grey.max()
    if 0 < highest < 128:
        raise MediaError(f"{path}: expected a mask with values 0 and 255, got a maximum of {highest}")
    return Geometry().mask(grey, size)


def _open(path: str | os.PathLike):
    """Pillow image of mode RGB, fully decoded."""
    from PIL import Image, ImageOps

    path = Path(path)
    check_file(path)
    if path.suffix.lower() in CONTAINERS:
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
