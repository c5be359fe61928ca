"""A map for each second of a video, and a film of them.

Second k is answered by the frame in its middle and the sound around that, as long as the localizer was trained to hear.
"""

import os
from pathlib import Path

from tqdm import tqdm

from ..data.audio import decode_audio, load_audio
from ..data.video import frames_of_seconds, write_film
from .localize import Answer, Viewer, scale_of


def localize(viewer: Viewer, path: str | os.PathLike, progress: bool = False) -> list[Answer]:
    """Of each second of a video, one of a shorter one. MediaError names the file."""
    front_end, answers = viewer.front_end, []
    sound = load_audio(path, sample_rate=front_end.sample_rate, channels=front_end.channels, reader=front_end.reader)
    for at, frame in tqdm(frames_of_seconds(path), unit="s", disable=not progress):
        answers.append(viewer.localize(frame, viewer.heard(sound, at)))
    return answers


def write(out: Path, answers: list[Answer], viewer: Viewer, path: str | os.PathLike, alpha: float,
          progress: bool = False) -> None:  # fmt: skip
    """The sheets of all seconds on one scale, one after the other: .gif, or .mp4 with the sound of `path`."""
    scale = scale_of(answers)
    pictures = [answer.sheet(alpha, scale) for answer in tqdm(answers, unit="picture", disable=not progress)]
    if out.suffix.lower() == ".mp4":
        write_film(out, pictures, *decode_audio(path))
        return
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(out, save_all=True, append_images=rest, duration=1000, loop=0)
