"""Videos (mp4, mov, mkv, webm, avi, mpg, ts and others): frames, and the sound. Read by PyAV
(`pip install "ssl_fast[video]"`).

The middle goes by time stamps, whatever the frame rate does: of the frames that are shown, the last one whose stamp is
not after the middle between the first stamp and the end of the last frame. Frames and samples that an edit list cuts
off do not count. The display matrix is applied: quarter turns and mirror images; any other is an error. Pixels stay as
they are stored, square or not. Of several streams of a kind the first counts; the cover of an album is no video.

Sound is placed by its time stamps: its first sample is that of the first picture's time. What comes earlier is left
out, and silence stands where the sound begins later. Samples that only an encoder added (priming, pre-skip, padding)
are left out as far as the file tells of them.

A file without pictures, sound, frames or samples, one that is cut off, one whose sound has gaps or changes its rate or
channels, and one whose sound and pictures do not begin and end together (within half a second; but see sound_blocks)
raise MediaError, which names it. A stream without a head (ts, mpg) that is cut between two packets cannot be told from
a whole one.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from ...optional import optional_module
from .lengths import check_container
from .media import MediaError, check_file

VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi"),
    *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
)
CONTAINERS = (*VIDEOS, ".m4a", ".m4b", ".mka", ".weba", ".caf")  # of sound alone, too
_RATE = 5  # pictures a second of films that are written, each shown for one: players stumble over less
APART = 0.5  # seconds that sound and pictures may begin or end apart
_HEADLESS = ("mpeg", "mpegts")  # formats of which FFmpeg guesses durations, often too short
JUMP = 0.1  # seconds that time stamps of sound may differ from the number of samples; some containers round coarsely


def pyav():
    """The module av; ValueError that tells how to install it."""
    optional_module("av", f"files of {', '.join(CONTAINERS)} are read by PyAV, which", '"ssl_fast[video]"')
    import av.error

    return av


def middle_frame(path: str | os.PathLike) -> np.ndarray:
    """The frame in the middle of a video, uint8 (H, W, 3) RGB, upright. Raises MediaError, which names the file."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        stamps, end = _shown(path, container, stream)
        middle = _stamp(stamps, Fraction(int(stamps[0]) + end, 2))
        if container.format.name != "avi":
            with contextlib.suppress(pyav().error.FFmpegError):  # FFmpeg cannot seek in every mpg
                container.seek(middle, stream=stream)
                for frame in container.decode(stream):
                    if frame.pts == middle and not frame.is_corrupt:
                        return _upright(path, frame)
                    if frame.pts is None or frame.pts >= middle:  # the index leads past it
                        break
        for stamp, frame in _frames(path, stamps):
            if stamp == middle:
                return _upright(path, frame)
        seconds = float(middle * stream.time_base)
        raise MediaError(f"{path}: the frame in the middle, at {seconds:.3f} s, cannot be decoded")


def frames_of_seconds(path: str | os.PathLike) -> Iterator[tuple[float, np.ndarray]]:
    """Frames in the middle of each whole second of a video (of a shorter one, of all of it): the time in seconds from
    the first frame, and the frame shown then, uint8 (H, W, 3) RGB, upright. Raises MediaError, which names the file."""
    return _frames_at(path, lambda length: [k + 0.5 for k in range(int(length + 0.01))] or [length / 2])


def frames_at(path: str | os.PathLike, times: Sequence[float]) -> Iterator[tuple[float, np.ndarray]]:
    """The same at given times, in ascending order, from 0 on; at times after the end, the last frame."""
    return _frames_at(path, lambda length: times)


def _frames_at(
    path: str | os.PathLike, choose: Callable[[float], Sequence[float]]
) -> Iterator[tuple[float, np.ndarray]]:
    """Frames at the times that `choose` takes of a video of so many seconds."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        (stamps, end), unit = _shown(path, container, stream), stream.time_base
    times = choose(float((end - stamps[0]) * unit))
    wanted: dict[int, list[float]] = {}
    for time in times:
        wanted.setdefault(_stamp(stamps, stamps[0] + time / unit), []).append(time)
    for stamp, frame in _frames(path, stamps):
        if stamp in wanted:
            pixels = _upright(path, frame)
            yield from ((time, pixels) for time in wanted.pop(stamp))
    if wanted:
        raise MediaError(f"{path}: the frame at {min(min(wanted.values())):.1f} s cannot be decoded")


def write_film(
    path: str | os.PathLike, pictures: Iterable[np.ndarray], sound: np.ndarray, rate: int, step: Fraction = Fraction(1)
) -> None:
    """An mp4 file that shows each picture, uint8 (H, W, 3) of one size, for `step` seconds, written as they come;
    sound: float32 (samples, channels) in [-1, 1] of `rate` Hz, of which the first two channels are kept and not more
    than there is to see."""
    av = pyav()
    pictures = iter(pictures)
    first = next(pictures)
    height, width = (side // 2 * 2 for side in first.shape[:2])  # what H.264 can halve
    layout = "mono" if sound.shape[1] == 1 else "stereo"
    copies = max(1, round(step * _RATE))
    with av.open(f"file:{os.fspath(path)}", "w") as container:
        video = container.add_stream("libx264", rate=copies / step, options={"crf": "18"})
        video.height, video.width = height, width
        video.pix_fmt, video.codec_context.thread_count = "yuv420p", 1
        audio = container.add_stream("aac", rate=rate, layout=layout)
        for k, picture in enumerate(itertools.chain([first], pictures)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
            frame = frame.reformat(format="yuv420p", threads=1)
            frame.time_base = step / copies
            for frame.pts in range(k * copies, (k + 1) * copies):
                container.mux(video.encode(frame))
            first = int(k * step * rate)
            part = sound[first : int((k + 1) * step * rate), :2]
            if len(part):
                heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(part.T), "fltp", layout)
                heard.sample_rate, heard.pts = rate, first
                container.mux(audio.encode(heard))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def write_gif(path: str | os.PathLike, pictures: Iterable[np.ndarray], step: Fraction = Fraction(1)) -> None:
    """A gif file that shows each picture, uint8 (H, W, 3) of one size, for `step` seconds, of which the format keeps
    two decimals, again and again; written as they come, as Pillow would hold all of them."""
    from PIL import Image

    av = pyav()
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(f"file:{os.fspath(path)}", "w", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=1 / step)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "pal8"
        for k, picture in enumerate(itertools.chain([first], pictures)):
            indices = Image.fromarray(picture).quantize()
            colours = np.full((256, 4), 255, np.uint8)  # opacity first
            used = np.asarray(indices.getpalette(), np.uint8).reshape(-1, 3)
            colours[: len(used), 1:] = used
            pixels = np.asarray(indices), colours
            frame = av.VideoFrame.from_ndarray(pixels, format="pal8")  # pyright: ignore[reportArgumentType]
            frame.pts, frame.time_base = k, step
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode_sound(path: str | os.PathLike, apart: list[str] | None = None) -> tuple[np.ndarray, int]:
    """All samples of the sound of a video, or of a file like m4a, float32 (samples, channels), and its rate in Hz.
    apart: see sound_blocks. Raises MediaError, which names the file."""
    blocks = list(sound_blocks(path, apart))
    return np.concatenate([block for block, _ in blocks]), blocks[0][1]


def sound_blocks(path: str | os.PathLike, apart: list[str] | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """What decode_sound gives, as it is decoded: some thousand samples at a time, each time with the rate.

    apart: a list to which it is added where sound and pictures do not begin or end together, which without it is a
    MediaError. Other ends are one all the same where no head tells a length: nothing else would show a cut.
    """
    with _opened(path) as container:
        stream, pictures = _stream(path, container, "audio"), next(iter(_streams(container, "video")), None)
        begin, origin = _seconds(stream, stream.start_time), pictures and _seconds(pictures, pictures.start_time)
        _check_together(path, "begin", begin, origin, apart)
        position, stop, rate, most, ends = None, None, 0, 0, {}  # position: samples since the first picture
        for time, rate, sound in _decoded(path, container, stream, ends):
            if position is None:
                zero = time if origin is None else origin
                position = round((time - zero) * rate)
                if position > 0:
                    yield np.zeros((position, sound.shape[1]), np.float32), rate
                if stream.duration is not None and container.format.name not in _HEADLESS:  # padding follows
                    stop = round((float(stream.duration * stream.time_base) + (begin or 0.0) - zero) * rate)
            part = sound[max(0, -position) : None if stop is None else max(0, stop - position)]
            position, most = position + len(sound), max(most, len(sound))
            if len(part):
                yield part, rate
        if position is None or position <= 0:
            raise MediaError(f"{path}: expected audio, got a file of no samples")
        if stop is not None and position - stop > most:  # more than the padding of a frame
            told, came = stop / rate, position / rate
            raise MediaError(f"{path}: damaged, its head tells of {told:.2f} s of sound, there are {came:.2f} s")
        told = container.duration is not None and container.format.name not in _HEADLESS
        end = pictures and ends.get(pictures.index)
        _check_together(path, "end", ends[stream.index], end, apart if told else None)


def _decoded(path: str | os.PathLike, container, stream, ends: dict[int, float]) -> Iterator:
    """Time in seconds, rate in Hz and samples, float32 (n, channels), of each frame of a sound; `ends` as of _packets.
    MediaError where they do not follow each other, or change their rate or channels."""
    form, due = None, _seconds(stream, stream.start_time) or 0.0
    for packet in _packets(path, container, stream, ends):
        for frame in packet.decode():
            time = due if frame.time is None else frame.time
            got = f"{frame.sample_rate} Hz, {frame.layout.name}"
            if form not in (None, got):
                raise MediaError(f"{path}: expected sound of one kind, got {form} and, at {time:.2f} s, {got}")
            if form and abs(time - due) > JUMP:
                raise MediaError(f"{path}: expected sound without gaps, got {time:.2f} s next to {due:.2f} s")
            form, due = got, time + frame.samples / frame.sample_rate
            yield time, frame.sample_rate, _samples(frame)
    if form and ends[stream.index] - due > JUMP:
        raise MediaError(f"{path}: damaged, of {ends[stream.index]:.2f} s of sound {due:.2f} s could be decoded")


@contextlib.contextmanager
def _opened(path: str | os.PathLike) -> Iterator:
    """The file, open; what FFmpeg or PyAV says against it as a MediaError."""
    av = pyav()
    check_file(Path(path))
    check_container(Path(path))
    try:
        # titles may be in any encoding; from 19 on PyAV takes care of that
        options: dict = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
        with av.open(f"file:{os.fspath(path)}", **options) as container:  # names may look like those of protocols
            yield container
    except MediaError:
        raise
    except Exception as error:  # of many types, over damaged files
        reason = error.strerror if isinstance(error, av.error.FFmpegError) else str(error) or type(error).__name__
        raise MediaError(f"{path}: cannot be read as video ({reason})") from error


def _streams(container, kind: str) -> list:
    """The streams of a kind; without pictures that only belong to a sound, such as covers."""
    from av.stream import Disposition

    return [one for one in getattr(container.streams, kind) if not one.disposition & Disposition.attached_pic]


def _stream(path: str | os.PathLike, container, kind: str):
    from av.codec.context import Flags2

    stream = next(iter(_streams(container, kind)), None)
    if stream is None:
        raise MediaError(f"{path}: expected pictures and sound, got no {kind} stream")
    if stream.codec_context is None:
        raise MediaError(f"{path}: its {kind} stream cannot be decoded (no such codec)")
    stream.codec_context.thread_count = 1  # loading is spread over processes
    if container.format.name == "caf" and stream.codec_context.name == "alac":
        # its last packet is short by what follows the end; FFmpeg would cut off as much once more
        stream.codec_context.flags2 |= Flags2.skip_manual
    return stream


def _shown(path: str | os.PathLike, container, stream) -> tuple[np.ndarray, int]:
    """Time stamps of the frames that are shown, in order, and the end of the last one."""
    stamps, durations = array("q"), array("q")
    for packet in _packets(path, container, stream, {}):
        if packet.size and not packet.is_discard:
            if packet.pts is None:
                raise MediaError(f"{path}: expected pictures, got a video stream of no times")
            stamps.append(packet.pts)
            durations.append(packet.duration or 0)
    if not stamps:
        raise MediaError(f"{path}: expected pictures, got a video stream of no frames")
    order = np.argsort(stamps)
    return np.asarray(stamps)[order], stamps[order[-1]] + durations[order[-1]]


def _stamp(stamps: np.ndarray, when: Fraction | float) -> int:
    """The last of the time stamps that is not after `when`."""
    return int(stamps[bisect.bisect(stamps, when) - 1])


def _frames(path: str | os.PathLike, stamps: np.ndarray) -> Iterator:
    """Time stamp and frame of a video, from its beginning: opened anew, since after a seek to the beginning the first
    frames may be missing. avi has no stamps of its own, and those that FFmpeg infers may be in the wrong order."""
    with _opened(path) as container:
        stream = _stream(path, container, "video")
        for k, frame in enumerate(container.decode(stream)):
            if not frame.is_corrupt:
                yield (stamps[k] if container.format.name == "avi" else frame.pts), frame


def _packets(path: str | os.PathLike, container, stream, ends: dict[int, float]) -> Iterator:
    """The packets of a stream, in the end an empty one that flushes its decoder. `ends`: filled with the seconds at
    which each stream of the file ends.

    MediaError where a packet of any stream is incomplete, or the file ends before its head says.
    """
    starts: dict[int, float] = {}
    count = 0
    for packet in container.demux():
        key, stamp = packet.stream.index, packet.dts if packet.pts is None else packet.pts
        if packet.is_corrupt:
            raise MediaError(f"{path}: truncated or damaged, a packet of {packet.stream.type} is incomplete")
        if stamp is not None:
            start, end = (float(time * packet.time_base) for time in (stamp, stamp + (packet.duration or 0)))
            starts[key], ends[key] = min(start, starts.get(key, start)), max(end, ends.get(key, end))
        if key == stream.index:
            count += 1
            yield packet
    if container.format.name in _HEADLESS:
        return  # a length that was guessed of these very packets, with that of a last frame, which itself may tell none
    if stream.duration is not None and stream.index in ends:
        # that of an index of fragments counts from time 0, not from the first picture
        told = float((stream.duration + min(0, stream.start_time or 0)) * stream.time_base)
        found = ends[stream.index]
        # a packet: an edit list may begin within the first; avi counts pauses as packets
        slack = JUMP if container.format.name == "avi" else (found - starts[stream.index]) / count
    elif container.duration is not None and ends:  # mkv and webm tell the length of the longest stream
        told, found, slack = container.duration / 1e6, max(ends.values()), JUMP
    else:
        return
    if found < told - slack:
        raise MediaError(f"{path}: truncated, its head tells of {told:.2f} s, {found:.2f} s are there")


def _seconds(stream, stamp: int | None) -> float | None:
    return None if stamp is None else float(stamp * stream.time_base)


def _check_together(
    path: str | os.PathLike, what: str, sound: float | None, pictures: float | None, apart: list[str] | None
) -> None:
    """MediaError, or a line in `apart`, where sound and pictures do not begin (end) together; None is unknown."""
    if sound is not None and pictures is not None and abs(sound - pictures) > APART:
        got = f"sound {what}s at {sound:.2f} s, pictures at {pictures:.2f} s"
        if apart is None:
            raise MediaError(f"{path}: expected sound and pictures that {what} together, but {got}")
        apart.append(got)


def _samples(frame) -> np.ndarray:
    """The samples of a frame of sound, float32 (n, channels) with full scale 1."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, frame.layout.nb_channels)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return np.ascontiguousarray(values, np.float32)


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
