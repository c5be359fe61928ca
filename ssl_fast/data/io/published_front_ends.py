"""How the published programs hear a file, each pipeline a record, to the last digit.

    from ssl_fast.data.front_ends import PUBLISHED, run
    run(PUBLISHED["sslalign_ezvsl"], "audio/clip.wav")          # (1, 257, 200) float32, what the audio network sees

The records are front ends like those of `audio.FRONT_ENDS` (`FolderSet(..., front_end=PUBLISHED["ezvsl"])`), which are
the ones to train with: those resample, and keep what 16-bit readers round. None of the published programs resamples;
all take it for granted that files have 16 kHz, and here others are an error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .audio import FrontEnd, MediaError


@dataclass(frozen=True, kw_only=True)
class PublishedFrontEnd(FrontEnd):
    """A FrontEnd (`seconds` from the start or the centre of the clip) with what only single programs do.

    roll: the `seconds` are turned round, so that the middle of the file comes to their middle (SSL-Align for models of
    3 s). It goes by the length of the whole file, as published: of one that is longer, the middle then holds a splice.
    frames: so many frames from the middle of the spectrogram are kept (None: all).
    """

    roll: bool = False
    frames: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(F, T) of the spectrogram of `samples` samples."""
        bands, times = super().shape
        return bands, times if self.frames is None else min(times, self.frames)

    def _clip(self, path: str | os.PathLike, sound: np.ndarray, rate: int) -> np.ndarray:
        """See FrontEnd; with `roll` the part that is heard. MediaError, which names the file, also for one of another
        rate."""
        if rate != self.sample_rate:
            raise MediaError(f"{path}: expected {self.sample_rate} Hz, as {self.name} never resamples, got {rate}")
        clip = super()._clip(path, sound, rate)
        return np.roll(self.segment(clip), self.samples // 2 - len(sound) // 2) if self.roll else clip

    @property
    def decoding(self) -> tuple:
        return *super().decoding, self.roll, self.samples

    def _heard(self, samples: int, rate: int) -> tuple[int, int] | None:
        """See FrontEnd; a roll goes by the length of the whole file."""
        return None if self.roll else super()._heard(samples, rate)

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """Waveforms (..., samples) float32 or float64 -> (..., F, T) float32; see FrontEnd."""
        whole = super().spectrogram(waveforms)
        if self.frames is None:
            return whole
        first = max(0, round((whole.shape[-1] - self.frames) / 2))  # half to even, as torchvision crops
        return whole[..., first : first + self.frames].contiguous()


def run(front_end: FrontEnd, path: str | os.PathLike) -> Tensor:
    """A sound file -> (1, F, T) float32, computed in float64 as the published programs do. Raises MediaError."""
    return front_end.spectrogram(torch.from_numpy(front_end.load(path)).double())[None]


_PYAV = {"hop": 238, "reader": "int16"}  # PyAV's 16 bits
_ALIGN = PublishedFrontEnd(name="sslalign", seconds=3.0, hop=159, clip_seconds=10.0, channels="first")
_ALIGN_EZVSL = PublishedFrontEnd(name="sslalign_ezvsl", seconds=10.0, offset="start", roll=True, frames=200, **_PYAV)
PUBLISHED: dict[str, PublishedFrontEnd] = {
    front_end.name: front_end
    for front_end in (
        PublishedFrontEnd(name="ezvsl", seconds=3.0, **_PYAV),  # and SLAVC
        PublishedFrontEnd(name="fnac", seconds=3.0, **_PYAV),
        PublishedFrontEnd(name="lvs", seconds=10.0, hop=238, offset="start"),  # which fails on stereo; here it is mixed
        _ALIGN,
        _ALIGN_EZVSL,
        # SSL-Align on AVSBench, whose clips last 5 s
        replace(_ALIGN, name="sslalign_avs", clip_seconds=5.0),
        replace(_ALIGN_EZVSL, name="sslalign_ezvsl_avs", seconds=5.0),
        PublishedFrontEnd(name="ssltie", seconds=10.0, hop=239, offset="start", channels="first", mel=True),
    )
}
