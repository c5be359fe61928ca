"""Sound files to waveforms: decoding, mixing to mono, resampling, cutting.

    from ssl_fast.data.io.audio import load_audio
    whole = load_audio("audio/clip.wav", sample_rate=16000)                 # the whole file, mono
    middle = load_audio("audio/clip.wav", sample_rate=16000, seconds=3)     # (48000,) float32

Files are read by libsndfile (wav of every width, rf64, w64, aiff, au, voc, flac, ogg, mp3), those of video.CONTAINERS
by PyAV (see video.py). A file that cannot be used raises MediaError, which names it; so does one whose length is not
what its header tells (see lengths.py). What audio networks hear of a file, and spectrograms: front_ends.py.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .lengths import check_flac, check_log, check_ogg, mp3_stream
from .media import MediaError, check_file
from .video import CONTAINERS, decode_sound

# A float file may exceed full scale somewhat (it is clipped); beyond this it holds something else, say integers.
PEAK_LIMIT = 8.0
RATES = (1000, 768000)  # Hz; a header with a rate outside is damaged
# Formats whose length can be checked
FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "SVX", "VOC", "FLAC", "OGG", "MP3")
BLOCK = 1 << 22  # values that are read at once, of all channels
_INTEGERS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
# Integers as they are: libsndfile takes several times as long to make floats of them
_STORED = {"PCM_S8": "int16", "PCM_16": "int16", "PCM_24": "int32"}
CHOICES = {"offset": ("centre", "start"), "channels": ("mean", "first"), "reader": ("float", "int16")}
Range = Callable[[int, int], tuple[int, int] | None]  # samples of a file, rate -> first and number of those to read


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
    shorter file is tiled. channels, reader: see front_ends.FrontEnd. Order: mix, resample, clip to [-1, 1], cut.

    Raises MediaError, which names the file, for one that is missing, not audio, truncated, of no samples, with NaN or
    infinite samples, or far beyond full scale.
    """
    for name, value in (("offset", offset), ("channels", channels), ("reader", reader)):
        if value not in CHOICES[name]:
            raise ValueError(f"{name}: expected one of {', '.join(CHOICES[name])}, got {value!r}")
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


def decode_audio(path: str | os.PathLike, apart: list[str] | None = None) -> tuple[np.ndarray, int]:
    """All samples of a sound file, float32 (samples, channels) with full scale 1, and its rate in Hz. apart: of videos,
    see video.sound_blocks. Raises MediaError as load_audio does."""
    return decode_range(path, apart=apart)[:2]


def decode_range(
    path: str | os.PathLike, choose: Range = lambda samples, rate: None, apart: list[str] | None = None
) -> tuple[np.ndarray, int, bool]:
    """Decode a part of a sound file: samples and rate as decode_audio gives them, and whether these are all samples.

    Of a wav of integers, whose samples cannot be wrong, choose(number of samples, rate) gives the first and the number
    of those that are read, or None for all; every other file is decoded whole.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in CONTAINERS:
        (sound, rate), whole = decode_sound(path, apart), True
    else:
        sound, rate, whole = _read(path, choose)
    if not len(sound):
        raise MediaError(f"{path}: expected audio, got a file of no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{path}: expected a rate of {RATES[0]} to {RATES[1]} Hz, got {rate}")
    if not whole:
        return sound, rate, whole
    check_samples(path, sound, rate)
    return sound, rate, whole


def check_samples(path: str | os.PathLike, sound: np.ndarray, rate: int, first: int = 0) -> None:
    """MediaError, which names the file, where samples (n, channels) are not finite, or far beyond full scale. first:
    how many of the file come before them."""
    if not np.isfinite(sound).all():
        at, channel = np.argwhere(~np.isfinite(sound))[0]
        raise MediaError(f"{path}: expected finite samples, got {sound[at, channel]} at {(first + at) / rate:.3f} s")
    peak = float(np.abs(sound).max())
    if peak > PEAK_LIMIT:
        raise MediaError(f"{path}: expected samples within full scale, [-1, 1], got a peak of {peak:g}")


def _read(path: Path, choose: Range) -> tuple[np.ndarray, int, bool]:
    """decode_range of a file that libsndfile reads, its samples unchecked."""
    import soundfile

    try:
        with contextlib.ExitStack() as opened:
            name: Any = os.fsencode(path)  # a str would have to be UTF-8
            file = opened.enter_context(soundfile.SoundFile(name))
            rate, promised, part = file.samplerate, file.frames, None
            if file.format not in FORMATS or (file.subtype.startswith("MPEG") and file.format != "MP3"):
                got = f"{file.format} of {file.subtype}"
                raise MediaError(f"{path}: expected a sound of {', '.join(FORMATS)}, got {got}")
            check_log(path, file.extra_info)
            if file.format in ("WAV", "WAVEX") and file.subtype in _INTEGERS:
                part = choose(promised, rate)
                if part is not None:
                    first, promised = part
                    file.seek(first)
            elif file.format == "OGG":
                check_ogg(path)
            elif file.format == "FLAC" and promised >= 1 << 36:  # more than its header could hold: that says zero
                raise MediaError(f"{path}: its length is unknown: its header does not tell the number of samples")
            elif file.format == "MP3" and (frames := mp3_stream(path)) is not None:
                promised = frames[1]
                file = opened.enter_context(soundfile.SoundFile(io.BytesIO(frames[0])))
            sound = _blocks(file, promised)
            if file.format == "FLAC":
                check_flac(path, sound, file.subtype)
    except MediaError:
        raise
    except Exception as error:  # of many types, over damaged files
        reason = re.sub("^Error opening .*: ", "", str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        if "does not exist" in reason:  # what the mp3 reader says of any other file
            reason = "Format not recognised"
        raise MediaError(f"{path}: cannot be read as audio ({reason})") from error
    if len(sound) != promised:
        cut = "truncated, " if len(sound) < promised else ""
        raise MediaError(f"{path}: {cut}its header tells of {promised} samples, {len(sound)} could be decoded")
    if sound.dtype != np.float32:
        sound = sound.astype(np.float32) / -float(np.iinfo(sound.dtype).min)
    return sound, rate, part is None


def _blocks(file, promised: int) -> np.ndarray:
    """At most `promised` samples (n, channels) of an open soundfile, of the type in which libsndfile is fastest.

    Block by block: what a damaged header promises may not fit into memory.
    """
    dtype, left, blocks = _STORED.get(file.subtype, "float32"), promised, []
    while not blocks or (left > 0 and len(blocks[-1])):
        blocks.append(file.read(min(left, BLOCK // file.channels + 1), dtype, always_2d=True))
        left -= len(blocks[-1])
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


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
    """Samples as a 16-bit reader gives them: channels averaged and rounded up, full scale 32767."""
    whole = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int64)
    whole = whole[:, 0] if channels == "first" else -(-whole.sum(1) // whole.shape[1])
    return (whole / 32767.0).astype(np.float32)
