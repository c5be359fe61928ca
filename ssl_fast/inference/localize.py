"""Localization of one sound in one image: the three maps of the IPOL note on SLAVC, and whether anything there sounds.

from ssl_fast.inference.localize import LocalizationPipeline
from ssl_fast.models import checkpoints
pipeline = LocalizationPipeline(checkpoints.load("runs/mine"))
answer = pipeline.localize(pipeline.read_image("frame.jpg"), pipeline.read_sound("clip.wav"))
answer.audio_visual, answer.prior, answer.mixed(.4), answer.scores()
answer.sheet(alpha=.4)                                  # uint8 (H, W, 3), to be looked at
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..data.io.audio import cut
from ..data.io.front_ends import FrontEnd
from ..data.io.images import Geometry, decode_image
from ..evaluation import baselines, detection, metrics, mixing, pictures
from ..models.checkpoints import Checkpoint
from .sheets import Panel, sheet

ALPHA = 0.4  # weight of the audio-visual map in the mixture, as published
CONTEXT, PART = 16, 512  # tokens of the sound: beside a part that is heard at once, and in it
SIZE = 224  # pixels a side of what scores and mixtures are computed on, as published
SIDE = 448  # pixels of the longer side of a picture


@dataclass(frozen=True)
class Answer:
    """Maps and scores of an image under a sound.

    image: uint8 (H, W, 3). audio_visual: float32 (h, w), cosines; of slavc the mean of its two. prior: float32, where
    there are objects, whatever is heard. threshold: the universal one, None where none is known. names: of the
    localizer's method and of the prior. box: the part of the image that was seen, left, top, right, bottom as fractions
    of its width and height; the maps cover that part, and nothing is known of the rest.
    """

    image: np.ndarray
    audio_visual: np.ndarray
    prior: np.ndarray
    threshold: float | None
    names: tuple[str, str]
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)

    def mixed(self, alpha: float = ALPHA) -> np.ndarray:
        """(224, 224) float32 in [0, 1]: alpha · audio-visual + (1 - alpha) · prior (IPOL note, eq. 7), each first
        brought to its own minimum and maximum, as EZ-VSL does. ValueError for an alpha beyond [0, 1]."""
        own, prior = (mixing.min_max(metrics.upsample(one[None], SIZE)) for one in (self.audio_visual, self.prior))
        return mixing.mix(own, prior, alpha)[0]

    def scores(self) -> dict[str, float | bool | None]:
        """maximum and minimum of the map; x, y: where the maximum is, fractions of the width and height; confidence:
        mean of the highest quarter (SLAVC); with a threshold also area, the share above it of what was seen, and found,
        whether there is any; else these are None."""
        full = metrics.upsample(self.audio_visual[None], SIZE)
        y, x = np.unravel_index(self.audio_visual.argmax(), self.audio_visual.shape)
        height, width = self.audio_visual.shape
        left, top, right, bottom = self.box
        area = None if self.threshold is None else float((full > self.threshold).mean())
        return {
            "maximum": float(full.max()),
            "minimum": float(full.min()),
            "x": left + (right - left) * (x + 0.5) / width,
            "y": top + (bottom - top) * (y + 0.5) / height,
            "confidence": float(detection.confidence(full)[0]),
            "threshold": self.threshold,
            "area": area,
            "found": None if area is None else area > 0,
        }

    def panels(self, alpha: float = ALPHA, scale: tuple[float, float] | None = None) -> list[Panel]:
        """The three maps over the image. scale: cosines of the lowest and highest colour of the first (default: see
        `scale_of`)."""
        mixed, low, high = self.mixed(alpha), float(self.prior.min()), float(self.prior.max())
        return [
            self.first_panel(scale or scale_of([self.audio_visual], self.threshold)),
            self._panel(f"object prior: {self.names[1]}", self.prior, low, high),
            self._panel(f"mixture, alpha {alpha:g}", mixed, 0.0, 1.0),
        ]

    def first_panel(self, scale: tuple[float, float]) -> Panel:
        """The first of `panels` alone."""
        return self._panel(f"{self.names[0]}: cosine", self.audio_visual, *scale, self.threshold)

    def _panel(self, title: str, values: np.ndarray, low: float, high: float, threshold: float | None = None) -> Panel:
        height, width = pictures.enlarged(self.image, SIDE).shape[:2]
        left, top = math.floor(self.box[0] * width), math.floor(self.box[1] * height)
        right, bottom = math.ceil(self.box[2] * width), math.ceil(self.box[3] * height)
        seen = metrics.upsample(values[None], (bottom - top, right - left))[0]
        whole = np.full((height, width), low, np.float32)
        whole[top:bottom, left:right] = seen
        picture = pictures.heat(self.image, whole, low, high, SIDE)
        part = picture[top:bottom, left:right]
        if threshold is not None:
            pictures.outline(part, seen > threshold, (255, 255, 255))
        pictures.ring(part, values)
        return Panel(title, pictures.to_bytes(picture), low, high, threshold)

    def sheet(self, alpha: float = ALPHA, scale: tuple[float, float] | None = None) -> np.ndarray:
        """The image and its three maps with colour bars, uint8 (H, W, 3); what is above the universal threshold is
        outlined."""
        return sheet(pictures.enlarged(self.image, SIDE), self.panels(alpha, scale))


def scale_of(maps: list[np.ndarray], threshold: float | None) -> tuple[float, float]:
    """Cosines of the lowest and the highest colour, of maps that are compared.

    With a threshold what is below it stays in the darker half: it is the middle of a scale that reaches the maximum,
    or a little beyond the threshold where that is higher. Without one, minimum and maximum.
    """
    highest = max(float(one.max()) for one in maps)
    if threshold is None:
        return min(float(one.min()) for one in maps), highest
    high = max(highest, threshold + 0.1)
    return 2 * threshold - high, high


class LocalizationPipeline:
    """A localizer with its front end, object prior and threshold, for one image and one sound at a time.

    found: the localizer. prior: images uint8 (B, 3, H, W) -> (B, h, w), where there are objects, such as
    `models.object_prior.ObjectPrior`, and its name; None: the local contrast of the image. threshold: the universal
    one, if it is not the checkpoint's, which has another one for the maps of audio tokens.
    """

    def __init__(
        self,
        found: Checkpoint,
        prior: Callable[[Tensor], Tensor] | None = None,
        prior_name: str = "",
        threshold: float | None = None,
    ):
        self.found, self.front_end = found, found.front_end
        self.prior = baselines.objectness if prior is None else prior
        self.names = found.recipe["method"], prior_name or ("local contrast" if prior is None else "given")
        self.threshold = found.threshold if threshold is None else threshold
        if self.threshold is not None and not np.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a finite cosine, got {threshold}")
        self.token_threshold = found.token_threshold if threshold is None else threshold

    def read_image(self, path: str | os.PathLike) -> np.ndarray:
        """uint8 (H, W, 3) of any file that Pillow reads, or the middle frame of a video. MediaError names the file."""
        return decode_image(path)

    def read_sound(self, path: str | os.PathLike) -> np.ndarray:
        """The part of a sound file, or of the sound of a video, that fits the front end (see `heard`). MediaError names
        the file."""
        return self.front_end.load(path)

    def heard(self, waveform: np.ndarray, second: float | None = None) -> np.ndarray:
        """The part of a waveform (n,) that fits the front end, around `second` (default: where the front end has it);
        a shorter one is repeated."""
        if second is None:
            return self.front_end.segment(waveform)
        shift = round(second * self.front_end.sample_rate) - len(waveform) // 2
        return np.ascontiguousarray(cut(waveform, self.front_end.samples, "centre", shift))

    def localize(self, image: np.ndarray, waveform: np.ndarray) -> Answer:
        """image: uint8 (H, W, 3), any size. waveform: float32 (front_end.samples,) in [-1, 1], see `heard`.
        ValueError for another shape or dtype."""
        pixels, geometry = self._pixels(image)
        if waveform.dtype != np.float32 or waveform.shape != (self.front_end.samples,):
            got = f"{waveform.dtype} {waveform.shape}"
            raise ValueError(f"waveform: expected float32 ({self.front_end.samples},), got {got}")
        with torch.inference_mode():
            maps = self.found.maps(pixels, torch.from_numpy(waveform)[None])
            prior = self.prior(pixels)
        maps, prior = metrics.check_maps(maps)[0], metrics.check_maps(prior, name="prior")[0]
        return Answer(image, maps, prior, self.threshold, self.names, geometry.box)

    def _pixels(self, image: np.ndarray) -> tuple[Tensor, Geometry]:
        """What the localizer sees, (1, 3, S, S) uint8, and where in the image that is."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image: expected uint8 (H, W, 3), got {image.dtype} {image.shape}")
        reading, (height, width) = self.found.reading, image.shape[:2]
        geometry = Geometry.of_fit(reading["fit"], width, height, reading["size"])
        return geometry.image(image, reading["size"], reading["resampler"])[None], geometry

    def tokens(self, waveform: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Audio tokens of a waveform, float32 (n,) in [-1, 1] of any length: (C, T) float32, and the seconds (T,) on
        which they are centred. Heard in parts, whose values are those of the whole. ValueError for a localizer without
        tokens, and for a waveform that is too short for one."""
        front_end, sound = self.front_end, torch.from_numpy(waveform)
        frames = front_end.frame_count(len(waveform)) if len(waveform) >= front_end.window else 0
        times = front_end.seconds_of_frames(self.found.localizer.token_times(frames) * frames - 0.5)
        apart = self._token_samples
        return torch.cat([*self._parts(sound, apart, len(times))], 1), times

    @property
    def _token_samples(self) -> int:
        """Samples from one audio token to the next."""
        return self.found.localizer.audio_net.columns(1)[2] * self.front_end.pool * self.front_end.hop

    @property
    def token_step(self) -> Fraction:
        """Seconds from one audio token to the next."""
        return Fraction(self._token_samples, self.front_end.sample_rate)

    def _parts(self, sound: Tensor, apart: int, count: int) -> Iterator[Tensor]:
        """Tokens (C, t) of a sound of `count` tokens, PART at a time, each part with CONTEXT on both sides."""
        net, front_end = self.found.localizer, self.front_end
        for first in range(0, count, PART):
            begin, end = max(0, first - CONTEXT), first + PART + CONTEXT
            part = sound[begin * apart : None if end >= count else end * apart + front_end.window]
            with torch.inference_mode():
                # of all frames, also where a published one keeps those in the middle of a clip
                spectrogram = net.normalize_spectrograms(FrontEnd.spectrogram(front_end, part)[None, None])
                yield net.audio_features(spectrogram)["audio"][0, :, first - begin :][:, : min(PART, count - first)]

    def localize_tokens(self, image: np.ndarray, tokens: Tensor) -> list[Answer]:
        """The image, as in `localize`, under each of the audio tokens (C, T): T answers."""
        pixels, geometry = self._pixels(image)
        net = self.found.localizer
        with torch.inference_mode():
            visual = net.visual_features(net.normalize_images(pixels))
            maps, prior = net.token_maps(visual, {"audio": tokens[None]})[0], self.prior(pixels)
        maps, prior = metrics.check_maps(maps), metrics.check_maps(prior, name="prior")[0]
        return [Answer(image, one, prior, self.token_threshold, self.names, geometry.box) for one in maps]


Viewer = LocalizationPipeline  # deprecated: its former name
