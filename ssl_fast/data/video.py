"""mp4 files: the frame in the middle, and the sound. Read by PyAV (`pip install "ssl_fast[video]"`).

The middle goes by time stamps, whatever the frame rate does: of the frames that are shown, the last one whose stamp is
not after the middle between the first stamp and the end of the last frame. Frames and samples that an edit list cuts
off do not count. The display matrix is applied: quarter turns and mirror images; any other is an error. Pixels stay as
they are stored, square or not. Of several streams of a kind the first counts.

A file without pictures, sound, frames or samples, one that is cut off, and one whose sound and pictures do not begin
and end together (within half a second) raise MediaError, which names it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .media import MediaError, check_file

VIDEOS = (".mp4",)
APART = 0.5  # seconds that sound and pictures may begin or end apart


def pyav():
    """The module av; ValueError that tells how to install it."""
    try:
        import av
    except ImportError as error:
        raise ValueError('mp4 files are read by PyAV, which is not installed: pip install "ssl_fast[video]"') from error
    return av


def middle_frame(path: str | os.PathLike) -> np.ndarray:
    """The frame in the middle of an mp4 file, uint8 (H, W, 3) RGB, upright. Raises MediaError, which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        shown = sorted((packet.pts, packet.duration or 0) for packet in _packets(path, container, stream)
                       if not packet.is_discard)  # fmt: skip
        if not shown:
            raise MediaError(f"{path}: expected pictures, got a video stream of no frames")
        (first, _), (last, duration) = shown[0], shown[-1]
        middle = max(stamp for stamp, _ in shown if 2 * stamp <= first + last + duration)
        for start in (middle, first):  # where the index leads past it, from the beginning
            container.seek(start, stream=stream)
            for frame in container.decode(stream):
                if frame.pts == middle and not frame.is_corrupt:
                    return _upright(path, frame)
                if frame.pts is None or frame.pts >= middle:
                    break
        seconds = float(middle * stream.time_base)
        raise MediaError(f"{path}: the frame in the middle, at {seconds:.3f} s, cannot be decoded")


def decode_sound(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """All samples of the sound of an mp4 file, float32 (samples, channels), and its rate in Hz. Raises MediaError,
    which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "audio")
        for pictures in container.streams.video[:1]:
            spans = [_span(one) for one in (stream, pictures)]
            if None not in spans and max(abs(a - b) for a, b in zip(*spans)) > APART:
                sound, seen = ("{:.2f} to {:.2f} s".format(*span) for span in spans)
                raise MediaError(f"{path}: expected sound and pictures of the same time, got sound of {sound} and "
                                 f"pictures of {seen}")  # fmt: skip
        rate = stream.codec_context.sample_rate
        for _ in _packets(path, container, stream):
            pass
        container.seek(0)
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
        with av.open(os.fspath(path), metadata_errors="replace") as container:  # titles may be in any encoding
            yield container
    except av.FFmpegError as error:
        raise MediaError(f"{path}: cannot be read as video ({error.strerror})") from error


def _stream(path: str | os.PathLike, container, kind: str):
    stream = next(iter(getattr(container.streams, kind)), None)
    if stream is None:
        raise MediaError(f"{path}: expected pictures and sound, got no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} stream cannot be decoded (no such codec)")
    stream.codec_context.thread_count = 1  # loading is spread over processes
    return stream


def _packets(path: str | os.PathLike, container, stream) -> Iterator:
    """The packets of a stream; MediaError where one is incomplete or there are fewer than the file's head tells."""
    count = 0
    for packet in container.demux(stream):
        if not packet.size:  # the end
            continue
        if packet.is_corrupt:
            break
        count += 1
        yield packet
    if count < stream.frames:
        raise MediaError(f"{path}: truncated, its head tells of {stream.frames} packets of {stream.type}, "
                         f"{count} are complete")  # fmt: skip


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
