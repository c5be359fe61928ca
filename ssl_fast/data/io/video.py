"""Videos (mp4, mov, mkv, webm): frames, and the sound. Read by PyAV (`pip install "ssl_fast[video]"`).

The middle goes by time stamps, whatever the frame rate does: of the frames that are shown, the last one whose stamp is
not after the middle between the first stamp and the end of the last frame. Frames and samples that an edit list cuts
off do not count. The display matrix is applied: quarter turns and mirror images; any other is an error. Pixels stay as
they are stored, square or not. Of several streams of a kind the first counts.

A file without pictures, sound, frames or samples, one that is cut off, and one whose sound and pictures do not begin
and end together (within half a second) raise MediaError, which names it.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from .media import MediaError, check_file

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm")
CONTAINERS = (*VIDEOS, ".m4a", ".mka")  # of sound alone, too
_RATE = 5  # pictures a second of films that are written, each shown for one: players stumble over less
APART = 0.5  # seconds that sound and pictures may begin or end apart


def pyav():
    """The module av; ValueError that tells how to install it."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError(
            'videos and m4a files are read by PyAV, which is not installed: pip install "ssl_fast[video]"'
        ) from error
    return av


def middle_frame(path: str | os.PathLike) -> np.ndarray:
    """The frame in the middle of a video, uint8 (H, W, 3) RGB, upright. Raises MediaError, which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        shown = _shown(path, container, stream)
        (first, _), (last, duration) = shown[0], shown[-1]
        middle = _stamp(shown, first + (last + duration - first) / 2)
        for start in (middle, first):  # where the index leads past it, from the beginning
            container.seek(start, stream=stream)
            for frame in container.decode(stream):
                if frame.pts == middle and not frame.is_corrupt:
                    return _upright(path, frame)
                if frame.pts is None or frame.pts >= middle:
                    break
        seconds = float(middle * stream.time_base)
        raise MediaError(f"{path}: the frame in the middle, at {seconds:.3f} s, cannot be decoded")


def frames_of_seconds(path: str | os.PathLike) -> Iterator[tuple[float, np.ndarray]]:
    """Frames in the middle of each whole second of a video (of a shorter one, of all of it): the time in seconds from
    the first frame, and the frame shown then, uint8 (H, W, 3) RGB, upright. Raises MediaError, which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        shown = _shown(path, container, stream)
        (first, _), (last, duration) = shown[0], shown[-1]
        length = float((last + duration - first) * stream.time_base)
        times = [k + 0.5 for k in range(int(length + 0.01))] or [length / 2]
        wanted: dict[int, list[float]] = {}
        for time in times:
            wanted.setdefault(_stamp(shown, first + time / stream.time_base), []).append(time)
        container.seek(first, stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted and not frame.is_corrupt:
                pixels = _upright(path, frame)
                yield from ((time, pixels) for time in wanted.pop(frame.pts))
        if wanted:
            raise MediaError(f"{path}: the frame at {min(min(wanted.values())):.1f} s cannot be decoded")


def write_film(path: str | os.PathLike, pictures: Sequence[np.ndarray], sound: np.ndarray, rate: int) -> None:
    """An mp4 file that shows each picture, uint8 (H, W, 3) of one size, for a second; sound: float32 (samples,
    channels) in [-1, 1] of `rate` Hz, of which the first two channels are kept and not more than there is to see."""
    av = pyav()
    height, width = (side // 2 * 2 for side in pictures[0].shape[:2])  # what H.264 can halve
    sound = sound[: len(pictures) * rate, :2]
    with av.open(os.fspath(path), "w") as container:
        video = container.add_stream("libx264", rate=_RATE, options={"crf": "18"})
        video.width, video.height, video.pix_fmt, video.codec_context.thread_count = width, height, "yuv420p", 1
        layout = "mono" if sound.shape[1] == 1 else "stereo"
        audio = container.add_stream("aac", rate=rate, layout=layout)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.time_base = Fraction(1, _RATE)
            for frame.pts in range(k * _RATE, (k + 1) * _RATE):
                container.mux(video.encode(frame))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.T), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def decode_sound(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """All samples of the sound of an mp4 file, float32 (samples, channels), and its rate in Hz. Raises MediaError,
    which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "audio")
        for pictures in container.streams.video[:1]:
            spans = [_span(one) for one in (stream, pictures)]
            known = [span for span in spans if span is not None]
            if len(known) == 2 and max(abs(a - b) for a, b in zip(*known)) > APART:
                sound, seen = ("{:.2f} to {:.2f} s".format(*span) for span in known)
                raise MediaError(
                    f"{path}: expected sound and pictures of the same time, got sound of {sound} and pictures of {seen}"
                )
        rate = stream.codec_context.sample_rate
        for _ in _packets(path, container, stream):
            pass
    with _opened(path) as container:  # anew: after a seek the first packets may be lost
        stream = _stream(path, container, "audio")
        resampler = pyav().AudioResampler(format="fltp")  # another type of sample, nothing else
        parts = [part.to_ndarray() for frame in (*container.decode(stream), None) for part in resampler.resample(frame)]
        end = None if stream.duration is None else round(stream.duration * stream.time_base * rate)  # then padding
    sound = np.concatenate(parts, 1)[:, :end] if parts else np.zeros((1, 0), np.float32)
    return np.ascontiguousarray(sound.T), rate


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator:
    """The file, open; what FFmpeg says against it as a MediaError."""
    av = pyav()
    check_file(Path(path))
    try:
        # titles may be in any encoding; from 19 on PyAV takes care of that
        options: dict = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        with av.open(os.fspath(path), **options) as container:
            yield container
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read as video ({error.strerror})") from error


def _stream(path: str | os.PathLike, container, kind: str):
    stream = next(iter(getattr(container.streams, kind)), None)
    if stream is None:
        raise MediaError(f"{path}: expected pictures and sound, got no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} stream cannot be decoded (no such codec)")
    stream.codec_context.thread_count = 1  # loading is spread over processes
    return stream


def _shown(path: str | os.PathLike, container, stream) -> list[tuple[int, int]]:
    """Time stamp and duration of every frame that is shown, in order."""
    shown = [
        (packet.pts, packet.duration or 0) for packet in _packets(path, container, stream) if not packet.is_discard
    ]
    if not shown or None in (stamp for stamp, _ in shown):
        raise MediaError(f"{path}: expected pictures, got a video stream of {'no frames' if not shown else 'no times'}")
    return sorted(shown)


def _stamp(shown: list[tuple[int, int]], when: Fraction | float) -> int:
    """Time stamp of the last of the frames that are shown, (stamp, duration) each, that is not after `when`."""
    return shown[bisect.bisect(shown, when, key=lambda one: one[0]) - 1][0]


def _packets(path: str | os.PathLike, container, stream) -> Iterator:
    """The packets of a stream; MediaError where one is incomplete or there are fewer than the file's head tells."""
    count, end = 0, 0.0
    for packet in container.demux(stream):
        if not packet.size:  # the end
            continue
        if packet.is_corrupt:
            break
        count += 1
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * stream.time_base))
        yield packet
    whole = None if stream.duration is not None or container.duration is None else container.duration / 1e6
    if whole is not None and end < whole - APART:  # mkv and webm tell the length of the file alone
        raise MediaError(f"{path}: truncated, or of {stream.type} that ends early: at {end:.2f} of {whole:.2f} s")
    if count < stream.frames:
        raise MediaError(
            f"{path}: truncated, its head tells of {stream.frames} packets of {stream.type}, {count} are complete"
        )


def _span(stream) -> tuple[float, float] | None:
    """Seconds at which a stream begins and ends by the head of the file; None where that does not tell."""
    if stream.start_time is None or stream.duration is None:
        return None
    return float(stream.start_time * stream.time_base), float((stream.start_time + stream.duration) * stream.time_base)


def _upright(path: str | os.PathLike, frame) -> np.ndarray:
    """The pixels of a frame, turned as its display matrix says: (x, y) goes to (a x + c y, b x + d y)."""
    pixels = frame.to_ndarray(format="rgb24", threads=1)  # threads of its own would be missed after a fork
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    if a and d and not (b or c):
        across, down = a, d
    elif b and c and not (a or d):
        pixels, across, down = pixels.transpose(1, 0, 2), c, b
    else:
        raise MediaError(f"{path}: expected a display matrix of quarter turns, got {a}, {b}, {c}, {d} (of 65536)")
    return np.ascontiguousarray(pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])
