"""Sound files to waveforms: decoding, mixing to mono, resampling, cutting.

    from ssl_fast.data.io.audio import load_audio
    whole = load_audio("audio/clip.wav", sample_rate=16000)                 # the whole file, mono
    middle = load_audio("audio/clip.wav", sample_rate=16000, seconds=3)     # (48000,) float32

Files are read by libsndfile (wav of every width, flac, ogg, mp3), m4a and the sound of videos by PyAV (see video.py).
A file that cannot be used raises MediaError, which names it. What audio networks hear of a file, and spectrograms:
front_ends.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from .media import MediaError, check_file
from .video import CONTAINERS, decode_sound

# A float file may exceed full scale somewhat (it is clipped); beyond this it holds something else, say integers.
PEAK_LIMIT = 8.0
RATES = (1000, 768000)  # Hz; a header with a rate outside is damaged
_INTEGERS = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32")
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


def decode_audio(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """All samples of a sound file, float32 (samples, channels) with full scale 1, and its rate in Hz. Raises MediaError
    as load_audio does."""
    return decode_range(path)[:2]


def decode_range(path: str | os.PathLike, choose: Range = lambda samples, rate: None) -> tuple[np.ndarray, int, bool]:
    """Decode a part of a sound file: samples and rate as decode_audio gives them, and whether these are all samples.

    Of a wav of integers, whose samples cannot be wrong, choose(number of samples, rate) gives the first and the number
    of those that are read, or None for all; every other file is decoded whole.
    """
    path = Path(path)
    check_file(path)
    if path.suffix.lower() in CONTAINERS:
        (sound, rate), whole = decode_sound(path), True
    else:
        sound, rate, whole = _read(path, choose)
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


def _read(path: Path, choose: Range) -> tuple[np.ndarray, int, bool]:
    """decode_range of a file that libsndfile reads, its samples unchecked."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            integers = file.format in ("WAV", "WAVEX") and file.subtype in _INTEGERS
            chosen = choose(file.frames, file.samplerate) if integers else None
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
    """Samples as a 16-bit reader gives them: channels averaged and rounded up, full scale 32767."""
    whole = np.clip(np.rint(sound * 32768.0), -32768, 32767).astype(np.int64)
    whole = whole[:, 0] if channels == "first" else -(-whole.sum(1) // whole.shape[1])
    return (whole / 32767.0).astype(np.float32)


def _cut_off(path: Path, samples: int, promised: int) -> str:
    """Reason why a file that was decoded without complaint is incomplete, or "".

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
