"""A map for each second of a video, and a film of them.

The map of second k is that of the frame in its middle and the sound around it, as long as the localizer was trained to
hear.
"""

import os
from pathlib import Path

import numpy as np

from ..data.io.audio import to_mono
from ..data.io.video import frames_of_seconds, write_film
from ..progress import progress_bar
from .localize import Answer, LocalizationPipeline, scale_of


def localize(
    pipeline: LocalizationPipeline, path: str | os.PathLike, sound: np.ndarray, rate: int, progress: bool = False
) -> list[Answer]:
    """One answer for each second of a video, one for a shorter video. sound, rate: as `decode_audio(path)` gives them.
    MediaError names the file."""
    front_end, answers = pipeline.front_end, []
    mono = to_mono(path, sound, rate, front_end.sample_rate, front_end.channels, front_end.reader)
    for at, frame in progress_bar(frames_of_seconds(path), desc="maps", unit="s", disable=not progress):
        answers.append(pipeline.localize(frame, pipeline.heard(mono, at)))
    return answers


def write(out: Path, answers: list[Answer], sound: np.ndarray, rate: int, alpha: float, progress: bool = False) -> None:
    """The sheets of all seconds on one scale, one after the other: .gif, or .mp4 with the sound."""
    scale = scale_of(answers)
    bar = progress_bar(answers, desc="pictures", unit="picture", disable=not progress)
    pictures = [answer.sheet(alpha, scale) for answer in bar]
    if out.suffix.lower() == ".mp4":
        write_film(out, pictures, sound, rate)
        return
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(out, save_all=True, append_images=rest, duration=1000, loop=0)
