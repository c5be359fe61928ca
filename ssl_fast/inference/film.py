"""A map for each second of a video, or with audio tokens for the time of each token, and a film of them.

The map of second k is that of the frame in its middle and the sound around it, as long as the localizer was trained to
hear; that of a token is of the frame at its centre. Memory does not grow with the length of a video: frames and
pictures pass one by one, its sound lies in a temporary file; only of tokens all are kept, some kilobytes a second.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data.io.audio import check_samples, to_mono
from ..data.io.video import frames_at, frames_of_seconds, sound_blocks, write_film, write_gif
from ..files import naming
from ..progress import progress_bar
from .localize import Answer, LocalizationPipeline


def read_sound(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """What `decode_audio` gives of a video, float32 (samples, channels) and the rate in Hz, but mapped from a temporary
    file, which is gone when the array is. MediaError names the video."""
    with naming(tempfile.gettempdir()), tempfile.TemporaryFile() as file:
        position = channels = rate = 0
        for block, rate in sound_blocks(path):
            check_samples(path, block, rate, position)
            file.write(block.data)  # tofile() does not say why it could not
            position, channels = position + len(block), block.shape[1]
        file.flush()
        return np.memmap(file, np.float32, "r", shape=(position, channels)), rate


def localize(
    pipeline: LocalizationPipeline, path: str | os.PathLike, sound: np.ndarray, rate: int, progress: bool = False
) -> Iterator[Answer]:
    """An answer for each second of a video, one for a shorter video. sound, rate: as `read_sound(path)` gives them.
    MediaError names the file."""
    front_end = pipeline.front_end
    reach = front_end.seconds + 1  # of the sound around a frame: what is heard, and more than the resampling takes in
    step = Fraction(rate, front_end.sample_rate).limit_denominator(1000).numerator  # samples on which both rates meet
    for at, frame in progress_bar(frames_of_seconds(path), desc="maps", unit="s", disable=not progress):
        first = max(0, int((at - reach) * rate)) // step * step
        part = np.asarray(sound[first : int((at + reach) * rate)])
        mono = to_mono(path, part, rate, front_end.sample_rate, front_end.channels, front_end.reader)
        yield pipeline.localize(frame, pipeline.heard(mono, at - first / rate))


def localize_tokens(
    pipeline: LocalizationPipeline, path: str | os.PathLike, tokens: Tensor, times: np.ndarray, progress: bool = False
) -> Iterator[Answer]:
    """An answer for each audio token of a video, as `pipeline.tokens` gives them, at the frame that is shown then, or
    the last one. MediaError names the file."""
    frames = progress_bar(
        frames_at(path, times.tolist()), desc="maps", unit="token", total=len(times), disable=not progress
    )
    for k, (_, frame) in enumerate(frames):
        yield pipeline.localize_tokens(frame, tokens[:, k : k + 1])[0]


def write(
    out: Path,
    pictures: Iterable[np.ndarray],
    sound: np.ndarray,
    rate: int,
    total: int,
    progress: bool = False,
    step: Fraction = Fraction(1),
) -> None:
    """The sheets of all answers, uint8 (H, W, 3), one after the other, `step` seconds each: .gif, or .mp4 with the
    sound. total: how many there are."""
    bar = progress_bar(pictures, desc="pictures", unit="picture", total=total, disable=not progress)
    if out.suffix.lower() == ".mp4":
        write_film(out, bar, sound, rate, step)
    else:
        write_gif(out, bar, step)
