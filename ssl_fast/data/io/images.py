"""Image files to RGB tensors, and their boxes and masks along with them.

    from ssl_fast.data.io.images import Geometry, decode_image, load_image
    image = load_image("frames/clip.jpg", 224)                  # uint8 (3, 224, 224), aspect ratio not kept
    image = load_image("frames/clip.jpg", 224, fit="crop")      # ... the middle of the frame, aspect ratio kept
    frame = decode_image("frames/clip.jpg")                     # uint8 (H, W, 3), as it is
    geometry = Geometry((0.1, 0.0, 0.8, 0.9), flip=True)        # 70 % of its width, 90 % of its height, mirrored
    image, boxes = geometry.image(frame, 224), geometry.boxes(boxes)

Rules of decoding: the EXIF orientation is applied; grey and palette images become RGB, CMYK too by (1 - C)(1 - K);
transparent pixels are laid over white; 16-bit grey is divided by 257 and rounded; of several frames the first counts.
Images of floats, of more than PIXELS or with more than SIDE of them a side (by their header, before they are decoded),
truncated, empty and unreadable files raise MediaError, which names the file. HEIC is read where pillow-heif is
installed. Of a video it is the frame in the middle (see video.py).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...optional import optional_module
from .media import MediaError, check_file
from .video import CONTAINERS, middle_frame

FITS = ("squash", "crop")  # see fit_frame
RESAMPLERS = ("pillow", "torch", "torch_aliased")  # see Geometry.image
SQUARE = 8192  # pixels a side of what images are resized to, at most
PIXELS, SIDE = 89_478_485, 65_535  # of an image: what Pillow decodes without a warning, and JPEG's longest side
_TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), 2))  # EXIF orientation -> PIL.Image.Transpose that undoes it
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def decode_image(path: str | os.PathLike) -> np.ndarray:
    """An image file as uint8 (H, W, 3) RGB, by the rules above. Raises MediaError, which names the file."""
    return np.array(_open(path))


def frame_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of what `decode_image` gives, of an image by its header alone. MediaError names the file."""
    path = Path(path)
    if path.suffix.lower() in CONTAINERS:
        height, width = middle_frame(path).shape[:2]
        return width, height
    with _opened(path) as image:
        turned = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)  # Pillow itself turns TIFF
        return image.size[::-1] if turned else image.size


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) of a size in pixels: those, or one number for both."""
    return size if isinstance(size, tuple) else (size, size)


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
    def centre(cls, width: int, height: int, size: int) -> Geometry:
        """The square in the middle of a frame of width x height pixels whose shorter side becomes `size`. It begins at
        a whole pixel of the resized frame, where torchvision's Resize and CenterCrop have it."""
        wide, high = (int(size * side / min(width, height)) for side in (width, height))
        left, top = (round((side - size) / 2) for side in (wide, high))
        return cls.of_pixels(left, top, left + size, top + size, wide, high)

    @classmethod
    def of_fit(cls, fit: str, width: int, height: int, size: int) -> Geometry:
        """Of a frame of width x height pixels that becomes a square of `size` by `fit`, see `fit_frame`."""
        if fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}")
        return cls.centre(width, height, size) if fit == "crop" else cls()

    def image(self, frame: np.ndarray, size: int, resampler: str = "pillow") -> Tensor:
        """A frame (H, W, 3) uint8 -> (3, size, size) uint8, in one resampling by a bicubic filter.

        resampler: "pillow", antialiased, as most published programs have it; "torch" the same filter in torch's vector
        instructions, which differs by 1 of 255 at the most and takes a quarter of the time; "torch_aliased" torch's
        bicubic without antialiasing, as SSL-Align and vssl_eval resize tensors, here rounded to 8 bits and clipped
        where it overshoots. These two for whole frames only. "pillow_bilinear": an antialiased bilinear filter that
        looks at the box alone, rounded to whole pixels, as torchvision crops and then resizes.
        """
        if resampler == "pillow_bilinear":
            height, width = frame.shape[:2]
            left, top, right, bottom = (round(part * side) for part, side in zip(self.box, (width, height) * 2))
            cut = Geometry(flip=self.flip)._square(frame[top:bottom, left:right], size, "BILINEAR")
            return torch.from_numpy(cut.transpose(2, 0, 1).copy())
        if resampler not in RESAMPLERS or (resampler != "pillow" and self != Geometry()):
            raise ValueError(
                f"resampler: expected one of {', '.join(RESAMPLERS)}, those of torch for whole frames only, "
                f"got {resampler!r} for {self}"
            )
        if resampler != "pillow":
            pixels, antialias = torch.from_numpy(frame).permute(2, 0, 1)[None], resampler == "torch"
            pixels = pixels if antialias else pixels.float()
            square = F.interpolate(pixels, (size, size), mode="bicubic", antialias=antialias)[0]
            return square.round().clamp(0, 255).to(torch.uint8).contiguous()
        return torch.from_numpy(self._square(frame, size, "BICUBIC").transpose(2, 0, 1).copy())

    def mask(self, mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
        """A mask (H, W), bool or uint8 with 255 for true -> (size, size) bool, of (width, height) of that: averaged
        over each target pixel, true from one half on."""
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

    def window(self, width: int, height: int) -> tuple[int, int, int, int]:
        """left, top, right, bottom, ends excluded, of those pixels of a frame of width x height whose centres the
        square shows."""
        left, top, right, bottom = (math.ceil(part * side - 0.5) for part, side in zip(self.box, (width, height) * 2))
        return left, top, right, bottom

    def pixels(self, boxes: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
        """Boxes (k, 4), fractions of the frame -> (n, 4) int, pixels of the square of `size`, or of (width, height)
        that the box becomes, truncated, ends excluded; those without a pixel are dropped."""
        scaled = self.boxes(boxes) * np.tile(sides(size), 2)
        # 121.99999999999999 of 122 is rounding on the way; of squares of whole frames, as published programs have it,
        # nothing is computed
        if self != Geometry() or isinstance(size, tuple):
            scaled = np.where(np.abs(scaled - scaled.round()) < 1e-9, scaled.round(), scaled)
        found = scaled.astype(int)
        return found[(found[:, :2] < found[:, 2:]).all(1)]

    def _square(self, pixels: np.ndarray, size: int | tuple[int, int], resampling: str) -> np.ndarray:
        from PIL import Image

        height, width = pixels.shape[:2]
        box = tuple(part * side for part, side in zip(self.box, (width, height) * 2))
        image = Image.fromarray(np.ascontiguousarray(pixels)).resize(sides(size), Image.Resampling[resampling], box=box)
        square = np.asarray(image)
        return square[:, ::-1] if self.flip else square


def fit_frame(frame: np.ndarray, size: int, fit: str = "squash", resampler: str = "pillow") -> Tensor:
    """A frame (H, W, 3) uint8 -> (3, size, size) uint8.

    fit: "squash" resizes both sides to `size`, whatever the aspect ratio, so that coordinates in fractions of the frame
    stay right. "crop" resizes the shorter side and crops the middle; boxes have to be moved along, by
    `Geometry.of_fit`. resampler: see `Geometry.image`.
    """
    height, width = frame.shape[:2]
    return Geometry.of_fit(fit, width, height, size).image(frame, size, resampler)


def load_image(path: str | os.PathLike, size: int, fit: str = "squash", resampler: str = "pillow") -> Tensor:
    """An image file as uint8 (3, size, size) RGB; fit, resampler: see `fit_frame`. MediaError names the file."""
    return fit_frame(decode_image(path), size, fit, resampler)


def load_mask(
    path: str | os.PathLike, size: int | tuple[int, int], geometry: Geometry = Geometry(), label: int | None = None
) -> np.ndarray:
    """A mask image (white on black) as bool (size, size), of (width, height) of that, cut as the frame is: averaged
    over each target pixel, true from one half on. label: the image holds the labels of ADE20K instead,
    red // 10 * 256 + green, and the mask is where this one is.

    Raises MediaError, which names the file; also for a mask that would vanish since its values are 0 and 1, not 255,
    one that is transparent somewhere, and labels without colours.
    """
    with _opened(Path(path)) as image:
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise MediaError(f"{path}: expected a mask that is black where nothing is, got transparent pixels")
        if label is not None and image.mode in ("1", "L", "LA", "I;16", "I"):
            raise MediaError(f"{path}: expected labels in red and green, got an image of grey values")
    if label is not None:
        red, green, _ = decode_image(path).transpose(2, 0, 1).astype(np.int32)
        return geometry.mask(red // 10 * 256 + green == label, size)
    grey = np.asarray(_open(path).convert("L"))
    highest = grey.max()
    if 0 < highest < 128:
        raise MediaError(f"{path}: expected a mask with values 0 and 255, got a maximum of {highest}")
    return geometry.mask(grey, size)


def _open(path: str | os.PathLike):
    """Pillow image of mode RGB, fully decoded."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() in CONTAINERS:
        return Image.fromarray(middle_frame(path))
    with _opened(path) as image:
        image.load()
        if image.format in _COMPLETE and not _COMPLETE[image.format](path, image):
            raise MediaError(f"{path}: cannot be read as an image (truncated: pixels are missing)")
        turn = _TURNS.get(_orientation(image))
        image = image if turn is None else image.transpose(turn)
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator:
    """The file as a Pillow image of at most PIXELS that is not decoded yet. Whatever is raised inside becomes a
    MediaError, as plug-ins raise errors of all types over damaged files."""
    from PIL import Image

    check_file(path)
    limits = f"expected an image of at most {PIXELS // 10**6} million pixels and {SIDE:,} a side"
    try:
        _register_heif(path)
        with Image.open(path) as image:
            width, height = image.size
            if not 0 < width * height <= PIXELS or max(width, height) > SIDE:
                raise MediaError(f"{path}: {limits}, got {width:,} x {height:,}")
            if image.format == "EPS":
                raise MediaError(f"{path}: cannot be read as an image (EPS is a program, which is not run)")
            yield image
    except MediaError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(f"{path}: {limits} ({error})") from error
    except Exception as error:
        reason = "Format not recognised" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise MediaError(f"{path}: cannot be read as an image ({reason or type(error).__name__})") from error


def _register_heif(path: Path) -> None:
    """Give HEIC to pillow-heif; MediaError that tells how to install it."""
    with open(path, "rb") as file:
        head = file.read(64)
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS or b"avif" in head:
        return
    beginning = f"{path}: HEIC is read by pillow-heif, which"
    optional_module("pillow_heif", beginning, '"ssl_fast[heif]"', MediaError).register_heif_opener()


def _orientation(image) -> int:
    """The orientation tag (1: upright). An image whose EXIF cannot be read has none, as in every viewer; but an odd tag
    before it, over which Pillow gives up, is passed over."""
    with contextlib.suppress(Exception):
        if (value := image.getexif().get(0x0112)) is not None:
            return value
    with contextlib.suppress(Exception):
        tiff = image.info["exif"].removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[tiff[:2]]
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        for k in range(struct.unpack_from(f"{order}H", tiff, at)[0]):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, at + 2 + 12 * k)
            if (tag, kind, count) == (0x0112, 3, 1):
                return value
    return 1


def _png_is_complete(path: Path, image) -> bool:
    """Whether a PNG has data for all of its rows. Pillow leaves missing ones at 0, so that where the last row has other
    values, and comes last, all are there."""
    width, height = image.size
    if not image.info.get("interlace") and np.asarray(image.crop((0, height - 1, width, height))).any():
        return True
    missing, inflate = 0, zlib.decompressobj()
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            data = file.read(length + 4)[:length]  # without the check sum, which Pillow has compared
            if kind == b"IHDR":
                depth, colours, interlace = data[8], {2: 3, 4: 2, 6: 4}.get(data[9], 1), data[12]
                grids = _ADAM7 if interlace else ((0, 0, 1, 1),)
                sides = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in grids]
                missing = sum(h * (1 + -(-w * depth * colours // 8)) for w, h in sides if w > 0 and h > 0)
            while kind == b"IDAT" and data and missing > 0 and not inflate.eof:
                missing -= len(inflate.decompress(data, 1 << 20))
                data = inflate.unconsumed_tail
    return missing <= 0 or missing <= len(inflate.flush())


def _jpeg_is_complete(path: Path, image) -> bool:
    """Whether a JPEG has data for all of its blocks before its end marker. Where it has not, libjpeg makes the others
    flat. So where the last one is flat, the file is decoded once more with bytes put before the first scan's end, which
    show only if that is read too early. Not of progressive files, whose last scans add detail alone."""
    from PIL import Image

    width, height = image.size
    last = np.asarray(image.crop((max(0, width - 8), max(0, height - 8), width, height)))
    if image.info.get("progressive") or np.ptp(last, (0, 1)).any():
        return True
    data, at = path.read_bytes(), 2
    while data[at + 1] != 0xDA:  # start of scan
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    end = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.S).search(data, at + 2)
    if end is None:
        return True
    more = b"".join(b"\x55" * 64 + bytes((0xFF, 0xD0 + k % 8)) for k in range(16))  # and restart markers of all numbers
    with Image.open(io.BytesIO(data[: end.start()] + more + data[end.start() :])) as longer:
        return np.array_equal(np.asarray(longer), np.asarray(image))


_COMPLETE = {"PNG": _png_is_complete, "JPEG": _jpeg_is_complete, "MPO": _jpeg_is_complete}
