"""mp4 files written on the fly: the middle by closed forms, every orientation, every way to be broken."""

import gc
import multiprocessing
import re
import sys

import numpy as np
import pytest
import soundfile

from films import clip, film, turn
from ssl_fast.data.io import video
from ssl_fast.data.io.audio import MediaError, decode_audio
from ssl_fast.data.io.front_ends import FRONT_ENDS, FrontEnd
from ssl_fast.data.io.images import decode_image, load_image
from ssl_fast.data.io.video import frames_of_seconds

av = pytest.importorskip("av", reason="mp4 files are read and written by PyAV")


def tone(seconds, rate, hertz=440.0):
    """A tone that swells from 0 to 1/2: every moment has a level of its own."""
    time = np.arange(round(seconds * rate)) / rate
    return (time / seconds / 2 * np.sin(2 * np.pi * hertz * time))[:, None]


def greys(count):
    return [8 + 240 // count * i for i in range(count)]


# ---------------------------------------------------------------------------------------------------------------------
# The middle


@pytest.mark.parametrize("count", [1, 2, 3, 24, 25])
def test_the_middle_frame_at_a_constant_rate(tmp_path, count):
    """n frames last n / fps: the one shown at n / 2 / fps is number n // 2."""
    path = film(tmp_path / "a.mp4", greys(count))
    got = decode_image(path)
    assert got.dtype == np.uint8 and got.shape == (48, 64, 3)
    np.testing.assert_allclose(got, greys(count)[count // 2], atol=4)
    np.testing.assert_allclose(load_image(path, 16), greys(count)[count // 2], atol=4)


@pytest.mark.parametrize(
    "stamps, middle",
    [
        ([0, 0.1, 0.2, 0.3, 1.0, 2.0, 2.1], 4),  # half of 2.1 s and a last frame of unknown, short length
        ([0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5], 0),
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5, 3.0], 5),
    ],
)
def test_the_middle_goes_by_time_stamps(tmp_path, stamps, middle):
    path = film(tmp_path / "a.mp4", greys(7), stamps=stamps)
    np.testing.assert_allclose(decode_image(path), greys(7)[middle], atol=4)


def test_the_middle_far_from_key_frames(tmp_path):
    """Key frames every 12; the middle of 64 to 70 frames lies at every place between two."""
    for count in range(64, 71):
        path = film(tmp_path / f"{count}.mp4", [3 * i for i in range(count)])
        np.testing.assert_allclose(decode_image(path).mean(), 3 * (count // 2), atol=1.4)


def test_the_seconds_around_the_middle_are_heard(tmp_path):
    """Stereo at 48 kHz, the left a tone, the right silent; AAC changes it a little."""
    rate, seconds = 48000, 4.0
    left = tone(seconds, rate)
    path = film(tmp_path / "a.mp4", greys(20), fps=5, sound=np.hstack([left, 0 * left]), rate=rate)
    front_end = FrontEnd(name="x", seconds=1.0, hop=160)
    clip = front_end.clip(path)
    expected = tone(seconds, 16000)[:, 0] / 2
    assert clip.dtype == np.float32 and clip.shape == (64000,)
    np.testing.assert_allclose(clip[500:-500], expected[500:-500], atol=0.01)
    np.testing.assert_allclose(front_end.load(path), expected[24000:40000], atol=0.01)
    sound, at = decode_audio(path)
    assert sound.shape == (192000, 2) and at == 48000


def test_published_front_ends_hear_mp4(tmp_path):
    sound = tone(4.0, 16000)
    path = film(tmp_path / "a.mp4", greys(4), fps=1, sound=sound)
    np.testing.assert_allclose(FRONT_ENDS["published/ezvsl"].load(path), sound[8000:56000, 0], atol=0.01)
    film(path, greys(4), fps=1, sound=tone(4.0, 48000), rate=48000)
    with pytest.raises(MediaError, match="a.mp4: expected 16000 Hz, as ezvsl never resamples, got 48000"):
        FRONT_ENDS["published/ezvsl"].load(path)


@pytest.mark.parametrize(
    "matrix, turned",
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),  # x goes down, y to the left: clockwise
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x)),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
    ],
)
def test_frames_are_turned_upright(tmp_path, matrix, turned):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 240  # every corner has a grey of its own
    pixels[:24, 32:] = 160
    pixels[24:, :32] = 80
    path = turn(film(tmp_path / "a.mp4", [pixels] * 30), *matrix)
    expected = turned(pixels).astype(int)
    got = decode_image(path)
    assert got.shape == expected.shape
    assert (np.abs(got - expected) > 12).mean() < 0.05  # along the edges


def test_other_turns_are_refused(tmp_path):
    path = turn(film(tmp_path / "a.mp4", [100] * 3), 0.5, 0.5, -0.5, 0.5)
    with pytest.raises(MediaError, match="a.mp4: expected a display matrix of quarter turns, got 32768, 32768, -32768"):
        decode_image(path)


# ---------------------------------------------------------------------------------------------------------------------
# Broken files


def broken(folder, kind):
    path, sound = folder / f"{kind}.mp4", tone(2.0, 16000)
    if kind == "missing":
        return path
    if kind == "no bytes":
        path.touch()
    elif kind == "text":
        path.write_text("no film " * 100)
    elif kind == "no pictures":
        film(path, None, sound=sound)
    elif kind == "no sound":
        film(path, [100] * 50)
    elif kind == "no frames":
        film(path, [], sound=sound)
    elif kind == "short sound":
        film(path, [100] * 50, sound=tone(1.0, 16000))
    elif kind == "other codec":
        film(path, [100] * 50, sound=sound)
        path.write_bytes(path.read_bytes().replace(b"avc1", b"none"))
    elif kind == "late pictures":
        film(path, [100] * 50, stamps=[1 + i / 25 for i in range(50)], sound=sound)
    else:  # cut at the end, its head before or after what is cut
        noise = np.random.default_rng(0).integers(0, 256, (50, 48, 64, 3), np.uint8)
        film(path, list(noise), sound=sound, options={"movflags": "+faststart"} if kind == "cut" else {})
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    return path


NEITHER = (
    ("missing", "no such file"),
    ("no bytes", r"empty file \(0 bytes\)"),
    ("text", r"cannot be read as video \(Invalid data"),
    ("headless", r"truncated, its head tells of \d+ bytes, the file has \d+"),
)
BROKEN = (
    [(decode_image, *one) for one in NEITHER]
    + [(decode_audio, *one) for one in NEITHER]
    + [
        (decode_image, "no pictures", "expected pictures and sound, got no video stream"),
        (
            decode_image,
            "no frames",
            "expected pictures(, got a video stream of no frames| and sound, got no video stream)",
        ),
        (decode_image, "cut", r"truncated, its head tells of \d+ bytes, the file has \d+"),
        (decode_image, "other codec", "its video stream cannot be decoded"),
        (decode_audio, "no sound", "expected pictures and sound, got no audio stream"),
        (decode_audio, "cut", r"truncated, its head tells of \d+ bytes, the file has \d+"),
        (
            decode_audio,
            "short sound",
            "expected sound and pictures that end together, but sound ends at 1.00 s, pictures at 2.00 s",
        ),
        (
            decode_audio,
            "late pictures",
            "expected .* that begin together, but sound begins at 0.00 s, pictures at 1.00 s",
        ),
    ]
)


@pytest.mark.parametrize("read, kind, message", BROKEN)
def test_broken_files_are_named(tmp_path, read, kind, message):
    path = broken(tmp_path, kind)
    with pytest.raises(MediaError, match=f"^{re.escape(str(path))}: {message}"):
        read(path)


def test_titles_in_any_encoding(tmp_path):
    path = film(tmp_path / "a.mp4", [100] * 3, sound=tone(0.12, 16000))
    path.write_bytes(path.read_bytes().replace(b"VideoHandler", b"Vid\xe9oHandler"))
    np.testing.assert_allclose(decode_image(path), 100, atol=4)
    assert decode_audio(path)[0].shape == (1920, 1)


def test_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r'PyAV, which cannot be imported .*: pip install "ssl_fast\[video\]"'):
        video.middle_frame(tmp_path / "a.mp4")
    for suffix in video.CONTAINERS:
        (tmp_path / f"a{suffix}").write_text("not looked at")
        with pytest.raises(ValueError, match="PyAV"):
            FRONT_ENDS["ez_vsl"].load(tmp_path / f"a{suffix}")


@pytest.mark.slow
def test_what_is_left_of_a_frame_does_not_hold_up_forked_processes(tmp_path):
    """Loaders fork: what threads of the parent should do never ends in them."""
    path = film(tmp_path / "a.mp4", greys=range(0, 50, 2), size=(640, 480))
    gc.disable()  # the frame's memory is still held when the child collects it
    try:
        video.middle_frame(path)
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        gc.enable()
        child.kill()


# ---------------------------------------------------------------------------------------------------------------------
# Each second, other containers, films that are written


@pytest.mark.parametrize("count, times", [(50, [0.5, 1.5]), (74, [0.5, 1.5]), (75, [0.5, 1.5, 2.5]), (10, [0.2])])
def test_the_frames_in_the_middle_of_each_second(tmp_path, count, times):
    """25 frames a second: the one shown at k + 1/2 s is number 25 k + 12; 10 frames are one part of a second."""
    values = [3 * i for i in range(count)]
    got = list(frames_of_seconds(film(tmp_path / "a.mp4", values)))
    assert [time for time, _ in got] == pytest.approx(times)
    for time, frame in got:
        np.testing.assert_allclose(frame.mean(), values[int(25 * time)], atol=1.4)


def test_a_frame_that_is_shown_for_seconds_answers_each(tmp_path):
    got = list(frames_of_seconds(film(tmp_path / "a.mp4", [20, 120, 220], stamps=[0, 0.6, 2.9])))
    np.testing.assert_allclose([frame.mean() for _, frame in got], [20, 120], atol=2)  # 2.94 s


def again(path, target, begin=0.0):
    """The packets of a film in another container, unchanged; from `begin`, in seconds, on, as ffmpeg copies them, all
    pictures, those of before at times below 0."""
    import av

    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        streams = {
            one.index: container.add_stream_from_template(one)
            for one in source.streams
            if not (one.type == "video" and target.suffix in (".m4a", ".mka"))
        }
        for packet in source.demux():
            if packet.dts is not None and packet.stream.index in streams:
                first = round(begin / packet.time_base)
                if packet.stream.type == "audio" and packet.pts + packet.duration < first:
                    continue
                packet.pts, packet.dts, packet.stream = (
                    packet.pts - first,
                    packet.dts - first,
                    streams[packet.stream.index],
                )
                container.mux(packet)
    return target


def assert_heard(sound, expected):
    """The same samples; mkv does not tell where the padding begins."""
    np.testing.assert_allclose(sound[: len(expected)], expected, atol=1e-5)
    assert len(expected) <= len(sound) < len(expected) + 1024


@pytest.mark.parametrize("suffix", [".mkv", ".mov", ".m4v"])
def test_other_containers_hold_the_same(tmp_path, suffix):
    source = film(tmp_path / "a.mp4", greys(25), sound=tone(1, 16000).astype(np.float32))
    target = again(source, tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(decode_image(target), decode_image(source))
    (sound, rate), (expected, _) = decode_audio(target), decode_audio(source)
    assert rate == 16000
    assert_heard(sound, expected)


@pytest.mark.parametrize("suffix", [".m4a", ".mka"])
def test_sound_alone(tmp_path, suffix):
    source = film(tmp_path / "a.mp4", greys(25), sound=tone(1, 16000).astype(np.float32))
    target = again(source, tmp_path / f"b{suffix}")
    primed = (
        1024 if suffix == ".mka" else 0
    )  # a copy whose head says nothing of the samples that the encoder began with
    assert_heard(decode_audio(target)[0][primed:], decode_audio(source)[0])
    with pytest.raises(MediaError, match=f"b{suffix}: expected pictures and sound, got no video stream"):
        decode_image(target)


@pytest.mark.parametrize("name", ["a.caf", "a.m4a", "a.mov"])
def test_lossless_sound_has_all_of_its_samples(name, tmp_path):
    """Also of the last packet, which is shorter than the others."""
    expected = np.round(impulse(44100) * 2**15) / 2**15
    video = "libx264" if name == "a.mov" else None
    sound, rate = decode_audio(clip(tmp_path / name, video, "alac", expected, 44100))
    assert rate == 44100
    np.testing.assert_allclose(sound, expected, atol=2**-15)


def test_lossless_sound_of_libsndfile_has_all_of_its_samples(tmp_path):
    expected = tone(1, 16000)[:15001]
    soundfile.write(tmp_path / "a.caf", expected, 16000, "ALAC_16")
    np.testing.assert_allclose(decode_audio(tmp_path / "a.caf")[0], expected, atol=2**-15)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_part_of_a_film_that_begins_within_a_frame(tmp_path, suffix):
    """Its edit list is longer than its frames by up to one of them, and it is whole."""
    source = film(tmp_path / "a.mp4", greys(75), sound=tone(3, 16000).astype(np.float32))
    for begin in (0.3, 0.34, 0.62, 0.73, 0.94, 1.01):
        target = again(source, tmp_path / f"b{suffix}", begin)
        assert abs(decode_image(target).mean() - greys(75)[round((begin * 25 + 75) / 2)]) <= 2 * 3 + 2
        assert abs(len(decode_audio(target)[0]) / 16000 - (3 - begin)) < 0.1


def test_an_mp4_of_fragments(tmp_path):
    path = film(tmp_path / "a.mp4", greys(50), sound=tone(2, 16000), options={"movflags": "+dash"})
    np.testing.assert_allclose(decode_image(path), greys(50)[25], atol=4)
    assert len(decode_audio(path)[0]) == 32000
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moof") - 4])
    with pytest.raises(MediaError, match="a.mp4: truncated, its head tells of 2.08 s, "):
        decode_image(path)


def test_an_mp4_cut_between_two_packets_is_an_error(tmp_path):
    path = film(tmp_path / "a.mp4", greys(10), sound=tone(0.4, 16000), options={"movflags": "+faststart"})
    with av.open(str(path)) as container:
        ends = sorted({packet.pos + packet.size for packet in container.demux() if packet.size})
    data = path.read_bytes()
    assert ends.pop() == len(data) and len(ends) > 15
    for end in ends:
        path.write_bytes(data[:end])
        for decode in (decode_image, decode_audio):
            with pytest.raises(MediaError, match=rf"a.mp4: truncated, its head tells of {len(data)} bytes, .* {end}$"):
                decode(path)


def test_a_truncated_mkv_is_an_error(tmp_path):
    draw = np.random.default_rng(0)
    frames = list(draw.integers(0, 255, (75, 48, 64, 3), np.uint8))
    target = again(film(tmp_path / "a.mp4", frames, sound=tone(3, 16000).astype(np.float32)), tmp_path / "b.mkv")
    target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    for decode in (decode_image, decode_audio, lambda path: list(frames_of_seconds(path))):
        with pytest.raises(MediaError, match=r"b.mkv: truncated, its head tells of (\d+) bytes, the file has \d+"):
            decode(target)


def impulse(rate):
    """2 s with a click at .25 s."""
    sound = np.zeros((2 * rate, 1))
    sound[rate // 4 :][:40] = 0.9
    return sound


KINDS = {
    "a.mp4": ("libx264", "aac", 48000),
    "a.mov": ("libx264", "pcm_s16le", 48000),
    "a.mkv": ("libx264", "aac", 44100),
    "a.webm": ("libvpx-vp9", "libopus", 48000),
    "a.ts": ("libx264", "aac", 48000),
    "a.mpg": ("mpeg2video", "mp2", 48000),
    "a.vob": ("mpeg2video", "ac3", 48000),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("starts, at", [((0, 0.3), 0.55), ((0.2, 0), 0.05), ((1, 1), 0.25)])
def test_sound_is_heard_when_its_picture_is_seen(name, starts, at, tmp_path):
    """Time 0 is the first picture: silence before a sound that begins later, and no sound of before."""
    codecs, rate = KINDS[name][:2], KINDS[name][2]
    path = clip(tmp_path / name, *codecs, impulse(rate), rate, starts=starts)
    sound, got = decode_audio(path)
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 0.3)
    assert got == rate and abs(loud[0] / rate - at) < 0.002  # mkv and webm count milliseconds
    assert abs(len(sound) / rate - (2 + starts[1] - starts[0])) < 0.022
    np.testing.assert_allclose(decode_image(path), 125, atol=8)  # picture 25 of 50, wherever the first stands


@pytest.mark.parametrize("name", [name for name in KINDS if name != "a.mov"])
def test_gaps_in_the_sound_are_refused(name, tmp_path):
    codecs, rate = KINDS[name][:2], KINDS[name][2]
    path = clip(tmp_path / name, *codecs, np.vstack([impulse(rate)] * 2), rate, gap=2 * rate)
    with pytest.raises(MediaError, match=r"expected sound without gaps, got \d\.\d\d s next to \d\.\d\d s"):
        decode_audio(path)


@pytest.mark.parametrize("name, video", [("a.avi", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")])
def test_frames_in_the_order_in_which_they_are_shown(name, video, tmp_path):
    """Frames lie in another order in the file, which avi does not tell; in ts seeking leads past them."""
    path = clip(tmp_path / name, video, "pcm_s16le" if name == "a.avi" else "aac", impulse(44100), 44100)
    np.testing.assert_allclose(decode_image(path).mean(), 125, atol=4)
    got = list(frames_of_seconds(path))
    np.testing.assert_allclose([frame.mean() for _, frame in got], [60, 185], atol=6)


def test_sound_that_changes_its_rate_is_refused(tmp_path):
    """The packets of two recordings in one stream."""
    import av

    with av.open(str(tmp_path / "a.mka"), "w") as target:
        stream = None
        for k, rate in enumerate((48000, 44100)):
            with av.open(str(clip(tmp_path / "part.mka", None, "mp2", impulse(rate), rate))) as source:
                stream = stream or target.add_stream_from_template(source.streams.audio[0])
                for packet in source.demux():
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + 2016 * k, packet.dts + 2016 * k  # ms
                        packet.stream = stream
                        target.mux(packet)
    message = "a.mka: expected sound of one kind, got 48000 Hz, mono and, at 2.0. s, 44100 Hz, mono"
    with pytest.raises(MediaError, match=message):
        decode_audio(tmp_path / "a.mka")


def test_a_cover_is_no_video(tmp_path):
    """An m4a with a picture of the album: its sound is read, and there is no frame of it."""
    import av

    original = clip(tmp_path / "a.m4a", None, "aac", impulse(44100), 44100)
    with av.open(str(original)) as source, av.open(str(tmp_path / "b.m4a"), "w", format="mp4") as target:
        audio = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8), format="rgb24")
        target.mux(cover.encode(frame.reformat(format="yuvj420p", threads=1)))
        target.mux(cover.encode(None))
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = audio
                target.mux(packet)
    sound, _ = decode_audio(tmp_path / "b.m4a")
    assert sound.shape == (88200, 1) and np.flatnonzero(np.abs(sound[:, 0]) > 0.3)[0] == pytest.approx(11025, abs=20)
    with pytest.raises(MediaError, match="b.m4a: expected pictures and sound, got no video stream"):
        decode_image(tmp_path / "b.m4a")


def test_a_webm_that_was_streamed(tmp_path):
    """Its head tells of no length."""
    path = clip(tmp_path / "a.webm", "libvpx-vp9", "libopus", impulse(48000), 48000, options={"live": "1"})
    assert path.read_bytes()[:100].count(b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff")
    assert decode_audio(path)[0].shape == (96000, 1)
    np.testing.assert_allclose(decode_image(path), 125, atol=8)


@pytest.mark.parametrize("count", [1, 3])
def test_a_gif_that_is_written_shows_each_picture_for_a_second(tmp_path, count):
    from PIL import Image

    pictures = [np.full((35, 51, 3), colour, np.uint8) for colour in ((30, 200, 90), (255, 0, 0), (1, 2, 3))][:count]
    video.write_gif(tmp_path / "a.gif", iter(pictures))
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == count and image.info["loop"] == 0
        for k, picture in enumerate(pictures):
            image.seek(k)
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), picture)
            assert count == 1 or image.info["duration"] == 1000


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_film_that_is_written_shows_each_picture_for_a_second(tmp_path, channels):
    pictures = [np.full((35, 51, 3), grey, np.uint8) for grey in (30, 200, 90)]
    sound = np.repeat(tone(4, 16000), channels, 1).astype(np.float32)
    video.write_film(tmp_path / "a.mp4", pictures, sound, 16000)
    got = list(frames_of_seconds(tmp_path / "a.mp4"))
    assert [frame.shape for _, frame in got] == [(34, 50, 3)] * 3
    np.testing.assert_allclose([frame.mean() for _, frame in got], [30, 200, 90], atol=3)
    heard, rate = decode_audio(tmp_path / "a.mp4")
    assert rate == 16000 and heard.shape == (48000, min(channels, 2))
    assert np.corrcoef(heard[4000:44000, 0], sound[4000:44000, 0])[0, 1] > 0.98
