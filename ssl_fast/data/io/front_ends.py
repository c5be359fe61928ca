"""Front ends: the part of a sound file that an audio network hears, and its log spectrogram.

    from ssl_fast.data.io.front_ends import FRONT_ENDS, front_end_named
    front_end = FRONT_ENDS["ez_vsl"]
    waveform = front_end.load("audio/clip.wav")                             # (48000,) float32, the 3 s in the middle
    spectrogram = front_end.spectrogram(torch.from_numpy(waveform))         # (257, 200) float32
    published = front_end_named("published/sslalign_ezvsl")                 # to the last digit as that program

FRONT_ENDS holds two families. Those to train with resample, and keep the precision of samples. Those under
"published/" are the pipelines of the released programs, to the last digit: none of them resamples, all take it for
granted that files have 16 kHz, and here others are an error.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .audio import CHOICES, cut, decode_audio, decode_range, to_mono
from .media import MediaError

_MEL_FLOOR = 1e-10  # SSL-TIE's, of mel power before decibels


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Segment of a sound file that a network hears, and its log spectrogram.

    name: of the front end. sample_rate: Hz. seconds: length that is heard. offset: "centre" or "start" of the clip; a
    shorter clip is tiled. clip_seconds: the file is first cut, or tiled, to so many seconds from its start (None: the
    whole file is the clip). channels: "mean" of all, or the "first". reader: "float", or "int16": after mixing rounded
    up to 16 bits and divided by 32767, as EZ-VSL, SLAVC and FNAC do.

    window, hop: samples of a frame and between frames. floor: added to the power before the logarithm. scale: divides
    it. pool: the log spectrogram is averaged over pool x pool; what does not fill a square at the end is left out. mel:
    SSL-TIE's decibels of mel power instead of the log of the power spectrum, without floor, scale and pool.
    """

    name: str
    seconds: float
    hop: int
    sample_rate: int = 16000
    window: int = 512
    floor: float = 1e-7
    scale: float = 12.0
    pool: int = 1
    mel: bool = False
    offset: str = "centre"
    clip_seconds: float | None = None
    channels: str = "mean"
    reader: str = "float"

    def __post_init__(self):
        for name in ("sample_rate", "window", "hop", "pool"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected an integer >= 1, got {value!r}")
        for name in ("seconds", "floor", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected > 0, got {getattr(self, name)!r}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.clip_seconds is not None and not self.seconds <= self.clip_seconds < math.inf:
            raise ValueError(f"clip_seconds: expected at least the {self.seconds} s heard, got {self.clip_seconds!r}")
        if self.window % 2:
            raise ValueError(f"window: expected an even number of samples, got {self.window}")
        if min(self.shape) < 1:
            raise ValueError(
                f"seconds: expected {self.pool} frames or more, of {self.window} samples with a hop of "
                f"{self.hop}, got {self.samples} samples"
            )

    @property
    def samples(self) -> int:
        """Length of a waveform."""
        return round(self.seconds * self.sample_rate)

    @property
    def shape(self) -> tuple[int, int]:
        """(F, T) of the spectrogram of `samples` samples."""
        return (self.window // 2 + 1) // (1 if self.mel else self.pool), self.frame_count(self.samples)

    def frame_count(self, samples: int) -> int:
        """Frames of the spectrogram of so many samples; below 1: of too few."""
        return samples // self.hop + 1 if self.mel else ((samples - self.window) // self.hop + 1) // self.pool

    def seconds_of_frames(self, frames: np.ndarray) -> np.ndarray:
        """Seconds into the waveform on which frames of the spectrogram (0, 1, ..., or between them) are centred."""
        centres = (frames * self.pool + (self.pool - 1) / 2) * self.hop
        return (centres + (0 if self.mel else self.window / 2)) / self.sample_rate

    @property
    def silence(self) -> float:
        """Value of all cells in the spectrogram of digital silence, the lowest there is."""
        return 10 * math.log10(_MEL_FLOOR) if self.mel else math.log(self.floor) / self.scale

    @property
    def quiet(self) -> float:
        """Value up to which a cell counts as silent, 1 dB above `silence`: a frame none of whose cells is above it has
        a power density of at most .26 `floor` everywhere. By `floor` 1e-7 that is white noise some 45 dB below full
        scale, or a tone some 58 dB below it."""
        return self.silence + (1 if self.mel else math.log(10) / 10 / self.scale)

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """Waveforms (..., samples) -> log(psd + floor) / scale, pooled: (..., F, T) float32, on the waveforms' device.

        psd is what `scipy.signal.spectrogram(x, sample_rate, nperseg=window, noverlap=window - hop)` returns: of every
        frame the mean is removed, then a periodic Tukey window (.25) and the one-sided density; no padding. Computed in
        the waveforms' dtype. Any length from `pool` frames up is taken.

        Raises TypeError for what is not a float32 or float64 tensor, ValueError for waveforms that are too short.
        """
        if not isinstance(waveforms, Tensor) or waveforms.dtype not in (torch.float32, torch.float64):
            got = waveforms.dtype if isinstance(waveforms, Tensor) else type(waveforms).__name__
            raise TypeError(f"waveforms: expected a float32 or float64 tensor, got {got}")
        least = self.window + (self.pool - 1) * self.hop
        if waveforms.ndim < 1 or waveforms.shape[-1] < least:
            raise ValueError(f"waveforms: expected (..., {least}) or longer, got {tuple(waveforms.shape)}")
        if self.mel:
            return _mel(waveforms, self)
        taper = _tukey(self.window).to(waveforms)
        frames = waveforms.contiguous().unfold(-1, self.window, self.hop)
        spectrum = torch.fft.rfft((frames - frames.mean(-1, keepdim=True)).mul_(taper))
        power = spectrum.real.square().add_(spectrum.imag.square()).div_(self.sample_rate * taper.square().sum())
        power[..., 1:-1].mul_(2)  # one-sided: all but the mean and the Nyquist frequency stand for two
        log = power.add_(self.floor).log_().div_(self.scale).transpose(-1, -2).float()
        if self.pool > 1:
            leading, (bands, times) = log.shape[:-2], log.shape[-2:]
            log = torch.nn.functional.avg_pool2d(log.reshape(-1, 1, bands, times), self.pool)
            log = log.reshape(*leading, *log.shape[-2:])
        return log.contiguous()

    def clip(self, path: str | os.PathLike) -> np.ndarray:
        """The clip in a file: mono float32 in [-1, 1], whole or `clip_seconds` long. MediaError names the file."""
        return self._clip(path, *decode_audio(path))

    def _clip(self, path: str | os.PathLike, sound: np.ndarray, rate: int) -> np.ndarray:
        """The clip, cut from all samples of the file."""
        mono = to_mono(path, sound, rate, self.sample_rate, self.channels, self.reader)
        return mono if self.clip_seconds is None else cut(mono, round(self.clip_seconds * self.sample_rate), "start")

    @property
    def decoding(self) -> tuple:
        """Cache key of `clip`, beside the file: all fields that it depends on."""
        return self.sample_rate, self.clip_seconds, self.channels, self.reader

    def segment(self, clip: np.ndarray, shift: int = 0) -> np.ndarray:
        """Segment of a clip that is heard: (samples,), from `shift` samples later (below 0: earlier) as far as the clip
        goes."""
        return np.ascontiguousarray(cut(clip, self.samples, self.offset, shift))

    def load(self, path: str | os.PathLike) -> np.ndarray:
        """The part of a file that is heard: (samples,) float32 in [-1, 1]. Raises MediaError, which names the file.

        The segment of `clip`, bit for bit; of a wav of integers that need no resampling only this part is read.
        """
        sound, rate, whole = decode_range(path, self._loaded_range)
        if whole:
            return self.segment(self._clip(path, sound, rate))
        return to_mono(path, sound, rate, self.sample_rate, self.channels, self.reader)

    def _loaded_range(self, samples: int, rate: int) -> tuple[int, int] | None:
        """First and number of the samples of a file that `load` gives; None where they are no part of it as it is."""
        clip = samples if self.clip_seconds is None else round(self.clip_seconds * self.sample_rate)
        if rate != self.sample_rate or samples < clip or clip < self.samples:
            return None
        return (clip - self.samples) // 2 if self.offset == "centre" else 0, self.samples


@dataclass(frozen=True, kw_only=True)
class PublishedFrontEnd(FrontEnd):
    """A FrontEnd (`seconds` from the start or the centre of the clip) with what only single programs do.

    roll: the `seconds` are turned round, so that the middle of the file comes to their middle (SSL-Align and vssl_eval
    for models of 3 s). It goes by the length of the whole file, as published: of one that is longer, the middle then
    holds a splice. frames: so many frames from the middle of the spectrogram are kept (None: all).
    """

    roll: bool = False
    frames: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(F, T) of the spectrogram of `samples` samples."""
        bands, times = super().shape
        return bands, times if self.frames is None else min(times, self.frames)

    def _clip(self, path: str | os.PathLike, sound: np.ndarray, rate: int) -> np.ndarray:
        """FrontEnd's clip; with `roll` the part that is heard. MediaError, which names the file, also for one of
        another rate."""
        if rate != self.sample_rate:
            program = self.name.removeprefix("published/")
            raise MediaError(f"{path}: expected {self.sample_rate} Hz, as {program} never resamples, got {rate}")
        clip = super()._clip(path, sound, rate)
        return np.roll(self.segment(clip), self.samples // 2 - len(sound) // 2) if self.roll else clip

    @property
    def decoding(self) -> tuple:
        return *super().decoding, self.roll, self.samples

    def _loaded_range(self, samples: int, rate: int) -> tuple[int, int] | None:
        """FrontEnd's range; None with `roll`, which goes by the length of the whole file."""
        return None if self.roll else super()._loaded_range(samples, rate)

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """Waveforms (..., samples) float32 or float64 -> (..., F, T) float32; see FrontEnd."""
        whole = super().spectrogram(waveforms)
        if self.frames is None:
            return whole
        first = max(0, round((whole.shape[-1] - self.frames) / 2))  # half to even, as torchvision crops
        return whole[..., first : first + self.frames].contiguous()


@lru_cache(maxsize=16)
def _tukey(window: int, taper: float = 0.25) -> Tensor:
    """Periodic Tukey window, float64: half a cosine rises over the first taper/2 of it and falls over the last."""
    n = torch.arange(window, dtype=torch.float64)
    to_edge = torch.minimum(n, window - n) / (taper * window / 2)
    return 0.5 - 0.5 * torch.cos(math.pi * to_edge.clamp_max(1))


def _mel(waveforms: Tensor, front_end: FrontEnd) -> Tensor:
    """10 log10(max(mel power, 1e-10)) of frames that are centred, with reflected ends: (..., samples) -> (..., F, T).

    Power is that of the Hann window's unit energy; as many mel filters as there are frequencies, so that 28 of the 257
    lie between two of them and always give -100 dB.
    """
    from torchaudio.functional import spectrogram

    window = torch.hann_window(front_end.window, dtype=waveforms.dtype, device=waveforms.device)
    power = spectrogram(waveforms, 0, window, front_end.window, front_end.hop, front_end.window, 2, normalized=True)
    filters = _filters(front_end.window // 2 + 1, front_end.sample_rate).to(power)
    return (power.transpose(-1, -2) @ filters).transpose(-1, -2).clamp_min(_MEL_FLOOR).log10().mul(10).float()


@lru_cache(maxsize=4)
def _filters(bands: int, sample_rate: int) -> Tensor:
    """(frequencies, filters) float32: `bands` triangles, evenly spaced in HTK's mel from 0 to half the rate."""
    from torchaudio.functional import melscale_fbanks

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the empty ones
        return melscale_fbanks(bands, 0.0, sample_rate / 2, bands, sample_rate)


# Segments as the programs of these names cut them. Two fields differ from what the programs do, and can be set: stereo
# is mixed (SSL-Align, SSL-TIE: channels="first"; LVS knows mono only); samples keep their precision (EZ-VSL, SLAVC,
# FNAC: reader="int16").
_CENTRE = {"seconds": 3.0, "hop": 238}
_PYAV = {"hop": 238, "reader": "int16"}  # PyAV's 16 bits
_ALIGN = PublishedFrontEnd(name="published/sslalign", seconds=3.0, hop=159, clip_seconds=10.0, channels="first")
_ALIGN_EZVSL = PublishedFrontEnd(
    name="published/sslalign_ezvsl", seconds=10.0, offset="start", roll=True, frames=200, **_PYAV
)
# By their names, which checkpoints and results store: never rename one.
FRONT_ENDS: dict[str, FrontEnd] = {
    front_end.name: front_end
    for front_end in (
        FrontEnd(name="ez_vsl", **_CENTRE),
        FrontEnd(name="slavc", **_CENTRE),
        FrontEnd(name="fnac", **_CENTRE),
        FrontEnd(name="lvs", seconds=10.0, hop=238, offset="start"),
        FrontEnd(name="ssl_align", seconds=3.0, hop=159, clip_seconds=10.0),
        FrontEnd(name="ssl_tie", seconds=10.0, hop=239, offset="start", mel=True),
        FrontEnd(name="scenes", seconds=1.0, hop=238, pool=2),
        PublishedFrontEnd(name="published/ezvsl", seconds=3.0, **_PYAV),  # and SLAVC
        PublishedFrontEnd(name="published/fnac", seconds=3.0, **_PYAV),
        # LVS, which fails on stereo; here it is mixed
        PublishedFrontEnd(name="published/lvs", seconds=10.0, hop=238, offset="start"),
        _ALIGN,
        _ALIGN_EZVSL,
        # SSL-Align on AVSBench, whose clips last 5 s
        replace(_ALIGN, name="published/sslalign_avs", clip_seconds=5.0),
        replace(_ALIGN_EZVSL, name="published/sslalign_ezvsl_avs", seconds=5.0),
        # vssl_eval for FNAC: the first 3 s, turned round by the length of the whole file
        PublishedFrontEnd(name="published/vssleval_fnac", seconds=3.0, offset="start", roll=True, **_PYAV),
        PublishedFrontEnd(name="published/ssltie", seconds=10.0, hop=239, offset="start", channels="first", mel=True),
    )
}


def front_end_named(front_end: str | FrontEnd) -> FrontEnd:
    """A front end by its name; one that is a FrontEnd already is returned as it is."""
    if isinstance(front_end, FrontEnd):
        return front_end
    if front_end not in FRONT_ENDS:
        raise ValueError(f"front_end: expected a FrontEnd or one of {', '.join(FRONT_ENDS)}, got {front_end!r}")
    return FRONT_ENDS[front_end]


def file_spectrogram(front_end: FrontEnd, path: str | os.PathLike) -> Tensor:
    """Spectrogram of a sound file, (1, F, T) float32, computed in float64 as the published programs do. MediaError
    names the file."""
    return front_end.spectrogram(torch.from_numpy(front_end.load(path)).double())[None]
