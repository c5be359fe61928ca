"""Sound files to waveforms, waveforms to the log spectrograms that the audio networks see.

    from ssl_fast.data.audio import FRONT_ENDS, load_audio
    front_end = FRONT_ENDS["ez_vsl"]
    waveform = front_end.load("audio/clip.wav")                             # (48000,) float32, the 3 s in the middle
    spectrogram = front_end.spectrogram(torch.from_numpy(waveform))         # (257, 200) float32
    whole = load_audio("audio/clip.wav", sample_rate=16000)                 # the whole file, mono

Files are read by libsndfile (wav of every width, flac, ogg, mp3), m4a and the sound of videos by PyAV (see video.py),
mixed to mono by the mean over channels, resampled. The published programs never resample; their segments and readers
are fields of `FrontEnd`. A file that cannot be used raises MediaError, which names it.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .media import MediaError, check_file
from .video import CONTAINERS, decode_sound

# A float file may exceed full scale somewhat (it is clipped); beyond this it holds something else, say integers.
PEAK_LIMIT = 8.0
_FAINTEST = 1e-10  # SSL-TIE's floor of mel power before decibels
RATES = (1000, 768000)  # Hz; a head that tells of another is damaged
_INTEGERS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
_CHOICES = {"offset": ("centre", "start"), "channels": ("mean", "first"), "reader": ("float", "int16")}


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """Which part of a file is heard and how it becomes a spectrogram.

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
        for name, allowed in _CHOICES.items():
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
        if self.mel:
            return self.window // 2 + 1, self.samples // self.hop + 1
        return (self.window // 2 + 1) // self.pool, ((self.samples - self.window) // self.hop + 1) // self.pool

    @property
    def silence(self) -> float:
        """What the spectrogram of digital silence consists of: its lowest value."""
        return 10 * math.log10(_FAINTEST) if self.mel else math.log(self.floor) / self.scale

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
        """The clip, of all samples of the file."""
        mono = to_mono(path, sound, rate, self.sample_rate, self.channels, self.reader)
        return mono if self.clip_seconds is None else cut(mono, round(self.clip_seconds * self.sample_rate), "start")

    @property
    def decoding(self) -> tuple:
        """What `clip` depends on, beside the file."""
        return self.sample_rate, self.clip_seconds, self.channels, self.reader

    def segment(self, clip: np.ndarray, shift: int = 0) -> np.ndarray:
        """What is heard of a clip: (samples,), from `shift` samples later (below 0: earlier) as far as the clip
        goes."""
        return np.ascontiguousarray(cut(clip, self.samples, self.offset, shift))

    def load(self, path: str | os.PathLike) -> np.ndarray:
        """The part of a file that is heard: (samples,) float32 in [-1, 1]. Raises MediaError, which names the file.

        The segment of `clip`, bit for bit; of a wav of integers that need no resampling only this part is read.
        """
        sound, rate, whole = _decode(path, self._heard)
        if whole:
            return self.segment(self._clip(path, sound, rate))
        return to_mono(path, sound, rate, self.sample_rate, self.channels, self.reader)

    def _heard(self, samples: int, rate: int) -> tuple[int, int] | None:
        """First and number of the samples of a file that `load` gives; None where they are no part of it as it is."""
        clip = samples if self.clip_seconds is None else round(self.clip_seconds * self.sample_rate)
        if rate != self.sample_rate or samples < clip or clip < self.samples:
            return None
        return (clip - self.samples) // 2 if self.offset == "centre" else 0, self.samples


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
    return (power.transpose(-1, -2) @ filters).transpose(-1, -2).clamp_min(_FAINTEST).log10().mul(10).float()


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
    )
}


def front_end_named(front_end: str | FrontEnd) -> FrontEnd:
    """A front end by its name; one that is a FrontEnd already is returned as it is."""
    if isinstance(front_end, FrontEnd):
        return front_end
    if front_end not in FRONT_ENDS:
        raise ValueError(f"front_end: expected a FrontEnd or one of {', '.join(FRONT_ENDS)}, got {front_end!r}")
    return FRONT_ENDS[front_end]


def load_audio(
    path: str | os.PathLike,
    *,
    sample_rate: int,
    seconds: float | None = None,
    offset: str = "centre",
    channels: str = "mean",
    reader: str = "float",
) -> np.ndarray:
    """A sound file as mono float32 (samples,) in [-1, 1] at `sample_rate` Hz.

    seconds: None for the whole file, else round(seconds * sample_rate) samples of its "centre" or "start" (`offset`); a
    shorter file is tiled. channels, reader: see FrontEnd. Order: mix, resample, clip to [-1, 1], cut.

    Raises MediaError, which names the file, for one that is missing, not audio, truncated, of no samples, with NaN or
    infinite samples, or far beyond full scale.
    """
    for name, value in (("offset", offset), ("channels", channels), ("reader", reader)):
        if value not in _CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(_CHOICES[name])}, got {value!r}")
    mono = to_mono(path, *decode_audio(path), sample_rate, channels, reader)
    return mono if seconds is None else np.ascontiguousarray(cut(mono, round(seconds * sample_rate), offset))


def to_mono(
    path: str | os.PathLike,
    sound: np.ndarray,
    rate: int,
    sample_rate: int,
    channels: str = "mean",
    reader: str = "float",
) -> np.ndarray:
    """Samples (n, channels) of a file at `rate` Hz, float32 -> mono (samples,) at `sample_rate`: mixed, resampled,
    clipped to [-1, 1]. MediaError, which names the file, where no sample is left."""
    if reader == "int16":
        mono = _to_int16(sound, channels)
    else:
        mono = sound[:, 0] if channels == "first" else reduce(np.add, sound.T) / sound.shape[1]  # not the slow mean(1)
    mono = np.clip(resample(mono, rate, sample_rate), -1, 1)
    if not len(mono):  # a few samples of a much higher rate
        raise MediaError(f"{path}: {len(sound)} samples at {rate} Hz are none at {sample_rate} Hz")
    return mono


def decode_audio(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """All samples of a sound file, float32 (samples, channels) with full scale 1, and its rate in Hz. Raises MediaError
    as load_audio does."""
    return _decode(path)[:2]


def _decode(path: str | os.PathLike, part: Callable = lambda samples, rate: None) -> tuple[np.ndarray, int, bool]:
    """See decode_audio, and whether these are all samples: of a wav of integers, whose samples cannot be wrong,
    part(samples, rate) may choose the first and the number of those that are read."""
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in CONTAINERS:
        (sound, rate), whole = decode_sound(path), True
    else:
        sound, rate, whole = _read(path, part)
    if not len(sound):
        raise MediaError(f"{path}: expected audio, got a file of no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{path}: expected a rate of {RATES[0]} to {RATES[1]} Hz, got {rate}")
    if not whole:
        return sound, rate, whole
    if not np.isfinite(sound).all():
        at, channel = np.argwhere(~np.isfinite(sound))[0]
        raise MediaError(f"{path}: expected finite samples, got {sound[at, channel]} at {at / rate:.3f} s")
    peak = float(np.abs(sound).max())
    if peak > PEAK_LIMIT:
        raise MediaError(f"{path}: expected samples within full scale, [-1, 1], got a peak of {peak:g}")
    return sound, rate, whole


def _read(path: Path, part: Callable) -> tuple[np.ndarray, int, bool]:
    """What _decode returns, of a file of libsndfile's, its samples unchecked."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            integers = file.format in ("WAV", "WAVEX") and file.subtype in _INTEGERS
            chosen = part(file.frames, file.samplerate) if integers else None
            if chosen is not None:
                file.seek(chosen[0])
            promised = file.frames if chosen is None else chosen[1]
            # 16 bits as they are: libsndfile takes several times as long to make floats of them
            kind = "int16" if file.subtype == "PCM_16" else "float32"
            sound, rate = file.read(-1 if chosen is None else promised, kind, always_2d=True), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError) as error:  # ValueError: only read in a stream
        reason = str(error).strip().splitlines()[0].replace(f"Error opening {str(path)!r}: ", "").rstrip(".")
        if "does not exist" in reason:  # what the mp3 reader says of any other file
            reason = "Format not recognised"
        raise MediaError(f"{path}: cannot be read as audio ({reason})") from error
    cut_off = _cut_off(path, len(sound), promised)
    if cut_off:
        raise MediaError(f"{path}: truncated, {cut_off}")
    return sound.astype(np.float32) / 32768 if kind == "int16" else sound, rate, chosen is None


def resample(mono: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """float32 (samples,) from `rate` to `sample_rate` Hz by torchaudio's windowed sinc.

    The sinc's table grows with both terms of the reduced ratio, so an odd ratio gives way to the nearest one with a
    denominator up to 1000: exact for all usual rates, else off by less than a millionth.
    """
    if rate == sample_rate:
        return mono
    from torchaudio.functional import resample as sinc

    ratio = Fraction(rate, sample_rate).limit_denominator(1000)
    return sinc(torch.from_numpy(np.ascontiguousarray(mono)), ratio.numerator, ratio.denominator).numpy()


def cut(mono: np.ndarray, samples: int, offset: str = "centre", shift: int = 0) -> np.ndarray:
    """`samples` from the "centre" or the "start" of (n,) samples, `shift` later within them; tiled where n is
    smaller."""
    if len(mono) < samples:
        mono = np.tile(mono, -(-samples // len(mono)))[:samples]
    start = ((len(mono) - samples) // 2 if offset == "centre" else 0) + shift
    start = min(max(start, 0), len(mono) - samples)
    return mono[start : start + samples]


def _to_int16(sound: np.ndarray, channels: str) -> np.ndarray:
    """Samples as a 16-bit reader gives them: channels averaged and rounded up, one is 32767."""
    whole = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int64)
    whole = whole[:, 0] if channels == "first" else -(-whole.sum(1) // whole.shape[1])
    return (whole / 32767.0).astype(np.float32)


def _cut_off(path: Path, samples: int, promised: int) -> str:
    """Why a file that was decoded without complaint is incomplete, or "".

    libsndfile takes what it finds. A wav's length stands in its head (unless it was streamed), the last page of an ogg
    tells its own; the number of samples of an mp3 is a guess unless it begins with a table of contents.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(4096)
        file.seek(max(0, size - 131072))  # two pages of ogg at the most
        tail = file.read()
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        length = int.from_bytes(head[4:8], "little") + 8
        if size + 1 < length < 0x7FFF0000:  # an odd chunk may lack its padding; streams have no or a huge length
            return f"its header tells of {length} bytes, the file has {size}"
    elif head[:4] == b"OggS":
        page = tail[max(0, tail.rfind(b"OggS")) :]
        segments = page[26] if len(page) > 26 else 255
        if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            return "its last page is incomplete"
    guessed = (head[:3] == b"ID3" or head[:1] == b"\xff") and b"Xing" not in head and b"Info" not in head
    if samples < promised and not guessed:
        return f"its header tells of {promised} samples, {samples} could be decoded"
    return ""
