"""Augmentation of batches of images and sounds in training, the field's policies, and SSL-TIE's transform.

    generator = torch.Generator().manual_seed(step)
    images = colour_jitter(random_resized_crop(images, generator), generator)
    policy = POLICIES["moco_v2"]
    square = policy.square(frame, 224, generator)                             # of one frame, before it is made small
    images = policy.colours(images, generator)                                # of a batch of squares

Images are (B, 3, H, W), uint8 in [0, 255] or float in [0, 1], and stay what they are. Every image or sound has its own
draw, and all draws are made on the CPU from the generator that is given: a seed decides them on any device.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from .io.images import Geometry


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


def random_resized_crop(
    images: Tensor,
    generator: Generator,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Random box of every image, resized (bilinear) to the full size.

    scale: range of the box's share of the image's area. ratio: range of its width : height relative to the image's own,
    uniform in the logarithm, narrowed where a box of that area would not fit. The position is uniform.
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


def _luma(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return torch.einsum("c,bchw->bhw", _GREY.to(pixels.device), pixels)[:, None]


def _turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """RGB in [0, 1] with the hue of HSV turned by (B, 1, 1, 1) of full turns."""
    red, green, blue = pixels.unbind(1)
    value, low = pixels.amax(1), pixels.amin(1)
    chroma = value - low
    scale = torch.where(chroma > 0, chroma, 1)
    hue = torch.where(value == blue, (red - green) / scale + 4, torch.zeros_like(value))
    hue = torch.where(value == green, (blue - red) / scale + 2, hue)
    hue = torch.where(value == red, (green - blue) / scale, hue) + 6 * turns[:, 0]
    sector = (torch.tensor([5.0, 3.0, 1.0], device=pixels.device)[:, None, None] + hue[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1)


def colour_jitter(
    images: Tensor,
    generator: Generator,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    p: float = 0.8,
) -> Tensor:
    """Jitter of colours as torchvision's ColorJitter: with probability p an image's brightness, contrast, saturation
    and hue change, one after the other in an order that is drawn for each image; clipped after each.

    brightness, contrast, saturation: factors from U(1 - x, 1 + x), below 0 none, away from black, from the image's mean
    grey and from each pixel's grey. hue: that of HSV is turned by U(-hue, hue) of a full turn.
    """
    pixels = _checked(images)
    batch = len(images)
    chosen = (torch.rand(batch, generator=generator) < p).nonzero()[:, 0]
    draws = torch.rand(batch, 4, generator=generator)[chosen] * 2 - 1
    order = torch.rand(batch, 4, generator=generator)[chosen].argsort(1)
    factors = (1 + draws[:, :3] * torch.tensor([brightness, contrast, saturation])).clamp_min(0)
    amounts = torch.cat([factors, draws[:, 3:] * hue], 1).to(pixels.device)[..., None, None, None]
    some = pixels[chosen.to(pixels.device)]
    for step in order.unbind(1):
        for kind in range(4):
            which = (step == kind).nonzero()[:, 0].to(pixels.device)
            if not len(which):
                continue
            one, amount = some[which], amounts[which, kind]
            if kind == 3:
                some[which] = _turn_hue(one, amount) if hue else one
            else:
                other = _luma(one) if kind else torch.zeros((), device=pixels.device)
                other = other.mean((2, 3), keepdim=True) if kind == 1 else other
                some[which] = (amount * one + (1 - amount) * other).clamp(0, 1)
    out = images.clone()
    out[chosen.to(images.device)] = _as_given(some, images)
    return out


def greyscale(images: Tensor, generator: Generator, p: float = 0.2) -> Tensor:
    """Every image replaced by its grey (all channels the luma) with probability p."""
    pixels = _checked(images)
    chosen = (torch.rand(len(images), generator=generator) < p).to(images.device)[:, None, None, None]
    grey = _luma(pixels).expand_as(pixels)
    return torch.where(chosen, _as_given(grey, images), images)


def gaussian_blur(
    images: Tensor, generator: Generator, *, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5
) -> Tensor:
    """Every image blurred with probability p by a Gaussian of U(*sigma) pixels, cut off at four times the largest
    sigma; the border's pixels are repeated outwards."""
    pixels = _checked(images)
    chosen = (torch.rand(len(images), generator=generator) < p).nonzero()[:, 0]
    widths = _uniform(generator, (len(images),), *sigma)[chosen]
    if not len(chosen):
        return images.clone()
    radius = math.ceil(4 * sigma[1])
    kernels = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / widths[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None].to(pixels.device)
    chosen = chosen.to(images.device)
    some = pixels[chosen].flatten(0, 1)[None]  # every channel with a kernel of its own: one convolution per axis
    some = F.pad(some, (radius,) * 4, mode="replicate")
    for kernel in (kernels[:, :, None], kernels[..., None]):
        some = F.conv2d(some, kernel, groups=len(kernels))
    out = images.clone()
    out[chosen] = _as_given(some.view(len(chosen), *pixels.shape[1:]), images)
    return out


def shift_and_flip(images: Tensor, generator: Generator, fraction: float = 1 / 12, vertical: bool = False) -> Tensor:
    """Images (B, 3, H, W) shifted by up to `fraction` of their sides, mirrored at the border; flipped left to right by
    a coin, and with `vertical` upside down by another."""
    batch, _, height, width = images.shape

    def source(size: int) -> Tensor:
        """(B, size): the position that every output row or column is taken from."""
        most = int(size * fraction)
        position = (torch.arange(size) + torch.randint(-most, most + 1, (batch, 1), generator=generator)).abs()
        return torch.where(position >= size, 2 * (size - 1) - position, position)

    def flipped(position: Tensor) -> Tensor:
        return torch.where(torch.rand(batch, 1, generator=generator) < 0.5, position.flip(1), position)

    rows, columns = source(height), source(width)
    columns = flipped(columns)
    rows = flipped(rows) if vertical else rows
    out = torch.empty_like(images)
    for i in range(batch):
        out[i] = images[i].index_select(1, rows[i]).index_select(2, columns[i])
    return out


def roll(spectrograms: Tensor, generator: Generator) -> Tensor:
    """Spectrograms (B, 1, F, T) shifted circularly in time."""
    batch, _, _, frames = spectrograms.shape
    source = (torch.arange(frames) + torch.randint(frames, (batch, 1), generator=generator)) % frames
    return spectrograms.gather(3, source[:, None, None].expand_as(spectrograms))


@dataclass(frozen=True)
class Masks:
    """One band of frequencies and one stretch of time of each spectrogram set to a constant.

    p: probability that a spectrogram is masked at all. bands, frames: widths are drawn uniformly from 0 up to these.
    value: what masked cells become, in units of the spectrogram; None: what digital silence is there.
    swapped_starts: starts are drawn along the whole other axis, as FNAC's program does, where a mask may end, or lie,
        beyond the spectrogram; else so that masks lie within.
    """

    bands: int
    frames: int
    value: float | None = None
    p: float = 1.0
    swapped_starts: bool = False

    def __call__(self, spectrograms: Tensor, generator: Generator, silence: float) -> Tensor:
        """Spectrograms (B, 1, F, T) -> the same masked; silence: see `FrontEnd.silence`."""
        batch, _, *sizes = spectrograms.shape
        applied = torch.rand(batch, 1, generator=generator) < self.p
        masked = []
        for size, other, most in zip(sizes, sizes[::-1], (self.bands, self.frames)):
            width = torch.randint(min(most, size) + 1, (batch, 1), generator=generator)
            starts = other if self.swapped_starts else size - width + 1
            start = (torch.rand(batch, 1, generator=generator, dtype=torch.float64) * starts).long()
            position = torch.arange(size)
            masked.append(applied & (position >= start) & (position < start + width))
        cells = (masked[0][:, None, :, None] | masked[1][:, None, None, :]).to(spectrograms.device)
        return spectrograms.masked_fill(cells, silence if self.value is None else self.value)


# SSL-TIE's SpecAugment masks mel power before decibels, where nothing becomes the floor; torchaudio draws widths below
# the 35 and 180 that it is given. FNAC masks with a logarithm of 0, which is far louder than any sound. The last is no
# program's: stretches of silence, of which nets with audio tokens learn that they are nowhere.
MASKS: dict[str, Masks] = {
    "ssl_tie": Masks(bands=34, frames=179, p=0.8),
    "fnac": Masks(bands=9, frames=9, value=0.0),
    "fnac_released": Masks(bands=9, frames=9, value=0.0, swapped_starts=True),
    "silence": Masks(bands=0, frames=24, p=0.5),
}


@dataclass(frozen=True)
class Policy:
    """A published way to augment frames: a crop and a flip of each frame, then colours, grey and blur of the squares.

    zoom: the shorter side becomes floor(zoom * size) pixels (bicubic), of which a square of `size` is cut out anywhere;
        None: a box of an area in `scale` (relative to the frame) and a width : height in `ratio` becomes the square
        (bilinear, antialiased), as torchvision's RandomResizedCrop has it.
    jitter: options of `colour_jitter`; None: no jitter. grey, blur, flip: probabilities. grey_first: before the jitter.
    """

    zoom: float | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: dict | None = None
    grey: float = 0.0
    blur: float = 0.0
    flip: float = 0.5
    grey_first: bool = False

    def square(self, frame: np.ndarray, size: int, generator: Generator) -> Tensor:
        """A frame (H, W, 3) uint8, cropped and flipped by a draw -> (3, size, size) uint8."""
        height, width = frame.shape[:2]
        geometry = self.geometry(width, height, size, generator)
        return geometry.image(frame, size, "pillow" if self.zoom else "pillow_bilinear")

    def geometry(self, width: int, height: int, size: int, generator: Generator) -> Geometry:
        """A draw for a frame of width x height pixels that becomes a square of `size`."""
        flip = torch.rand(1, generator=generator).item() < self.flip
        if self.zoom is None:
            return Geometry.of_pixels(*self._box(width, height, generator), width, height, flip)
        shorter = int(self.zoom * size)
        wide, high = (int(shorter * side / min(width, height)) for side in (width, height))
        left, top = (int(torch.randint(side - size + 1, (1,), generator=generator)) for side in (wide, high))
        return Geometry.of_pixels(left, top, left + size, top + size, wide, high, flip)

    def _box(self, width: int, height: int, generator: Generator) -> tuple[int, int, int, int]:
        """Ten tries at a box of whole pixels that fits; else the largest in the middle of a ratio that is allowed."""
        low, high = self.ratio
        for area, logarithm, across, down in torch.rand(10, 4, generator=generator).tolist():
            area = width * height * (self.scale[0] + area * (self.scale[1] - self.scale[0]))
            aspect = low * (high / low) ** logarithm
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(across * (width - w + 1)), int(down * (height - h + 1))
                return left, top, left + w, top + h
        w, h = min(width, max(1, round(height * high))), min(height, max(1, round(width / low)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def colours(self, images: Tensor, generator: Generator) -> Tensor:
        """Images (B, 3, H, W), uint8 or float, with jitter, grey and blur, in this order unless `grey_first`; rounded
        once at the end."""
        if self.jitter is None and not self.grey and not self.blur:
            return images
        pixels = _checked(images)
        if self.grey_first:
            pixels = greyscale(pixels, generator, self.grey)
        if self.jitter is not None:
            pixels = colour_jitter(pixels, generator, **self.jitter)
        if not self.grey_first:
            pixels = greyscale(pixels, generator, self.grey)
        if self.blur:
            pixels = gaussian_blur(pixels, generator, p=self.blur)
        return _as_given(pixels, images)


_MOCO_V2 = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8}
POLICIES: dict[str, Policy] = {
    "ez_vsl": Policy(zoom=1.1),  # and SLAVC, FNAC, LVS
    "moco_v1": Policy(scale=(0.2, 1.0), jitter=_MOCO_V2 | {"hue": 0.4, "p": 1.0}, grey=0.2, grey_first=True),
    "moco_v2": Policy(scale=(0.3, 1.0), jitter=_MOCO_V2, grey=0.2, blur=0.5),  # as SSL-TIE has it; MoCo's own: .2
    "simclr": Policy(
        scale=(0.08, 1.0),
        jitter={"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "p": 0.8},
        grey=0.2,
        blur=0.5,
    ),
}


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


class ReleasedEquivariance:
    """SSL-TIE's transform as its program computes it, by kornia 0.5.6, drawn once for a batch: flip and halving by a
    coin for all, rotation by whole degrees, up to 30, for each.

    Called on square images (B, C, H, H) or maps (B, 1, h, h), float, it resizes them to 224 x 224 (bilinear), turns
    and, by the coin, halves the content about pixel (112, 112) with 0 outside, resizes to the side they had, by the
    coin to half of it, and flips. Halving so shrinks both content and canvas: images of 224 become 112 with 56 pixels
    of content in the middle, maps of 14 x 14 become 7 x 7.
    """

    def __init__(self, batch: int, generator: Generator, degrees: int = 30):
        angle = torch.randint(-degrees, degrees + 1, (batch,), generator=generator) * (math.pi / 180)
        self.flip, self.half = (torch.rand(2, generator=generator) < 0.5).tolist()
        zoom = 2.0 if self.half else 1.0
        sine, cosine = angle.sin() * zoom, angle.cos() * zoom
        # of indices of pixels, relative to the middle (223 / 2) as a fraction of it, which grid_sample goes by
        matrix = torch.stack([cosine, -sine, sine, cosine], 1).view(batch, 2, 2)
        middle = torch.full((2, 1), 112 / 111.5 - 1)
        self.matrices = torch.cat([matrix, middle - matrix @ middle], 2)

    def __call__(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        full = F.interpolate(x, (224, 224), mode="bilinear") if side != 224 else x
        grid = F.affine_grid(self.matrices.to(x), list(full.shape), align_corners=True)
        turned = F.grid_sample(full, grid, padding_mode="zeros", align_corners=True)
        side = -(-side // 2) if self.half else side
        turned = F.interpolate(turned, (side, side), mode="bilinear") if side != 224 else turned
        return turned.flip(3) if self.flip else turned


# SSL-TIE's, by name: content halved once on the same canvas, or as released.
TRANSFORMS = {"single_shrink": Equivariance, "released": ReleasedEquivariance}
