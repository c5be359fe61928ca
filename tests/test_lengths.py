"""Sounds and videos of every kind, whole, cut and damaged: what is decoded has its exact length, with a click where it
was put, or is refused by name. Files are written by libsndfile and FFmpeg and changed byte by byte."""

import functools
import re
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from films import clip
from ssl_fast.data.io.audio import MediaError, decode_audio
from ssl_fast.data.io.images import decode_image

RATE, SECONDS, CLICK = 16000, 2, 0.25  # Hz, and seconds


def click(rate=RATE, seconds=SECONDS):
    """Quiet noise with a click, float64 (n, 1)."""
    sound = np.random.default_rng(0).normal(0, 0.01, rate * seconds)
    sound[round(rate * CLICK) :][: rate // 1000] = 0.9
    return sound[:, None]


def mp3(mode):
    return {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": 0.5}


SOUNDS = {
    "8 bits.wav": {"subtype": "PCM_U8"},
    "16 bits.wav": {"subtype": "PCM_16"},
    "24 bits.wav": {"subtype": "PCM_24"},
    "32 bits.wav": {"subtype": "PCM_32"},
    "float.wav": {"subtype": "FLOAT"},
    "extensible.wav": {"format": "WAVEX", "subtype": "PCM_16"},
    "rf64.wav": {"format": "RF64", "subtype": "PCM_24"},
    "64.w64": {"format": "W64", "subtype": "PCM_16"},
    "a.aiff": {"subtype": "PCM_16"},
    "8 bits.aiff": {"subtype": "PCM_S8"},
    "a.au": {"subtype": "PCM_16"},
    "a.svx": {"format": "SVX", "subtype": "PCM_16"},
    "a.voc": {"format": "VOC", "subtype": "PCM_16"},
    "8 bits.flac": {"subtype": "PCM_S8"},
    "16 bits.flac": {"subtype": "PCM_16"},
    "24 bits.flac": {"subtype": "PCM_24"},
    "vorbis.ogg": {"subtype": "VORBIS"},
    "opus.ogg": {"subtype": "OPUS"},
    "constant.mp3": mp3("CONSTANT"),
    "variable.mp3": mp3("VARIABLE"),
}
VIDEOS = {
    "a.mp4": ("libx264", "aac", 44100),
    "pcm.mp4": ("libx264", "pcm_s16be", 48000),
    "pcm.mov": ("libx264", "pcm_s16le", 48000),
    "24 bits.mov": ("libx264", "pcm_s24le", 48000),
    "a.3gp": ("libx264", "aac", 16000),
    "a.mkv": ("libx264", "aac", 44100),
    "flac.mkv": ("libx264", "flac", 44100),
    "a.webm": ("libvpx-vp9", "libopus", 48000),
    "a.avi": ("libx264", "pcm_s16le", 44100),
    "a.ts": ("libx264", "aac", 48000),
    "a.m2ts": ("libx264", "ac3", 48000),
    "a.mpg": ("mpeg2video", "mp2", 44100),
    "a.m4a": (None, "aac", 44100),
    "a.mka": (None, "libopus", 48000),
    "a.caf": (None, "pcm_s16be", 44100),
}


@functools.cache
def content(name):
    """The bytes of a file of SOUNDS or VIDEOS."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if name in SOUNDS:
            soundfile.write(path, click(), RATE, **SOUNDS[name])
        else:
            video, audio, rate = VIDEOS[name]
            clip(path, video, audio, click(rate), rate)
        return path.read_bytes()


def written(folder, name):
    if name in VIDEOS:
        pytest.importorskip("av", reason="read and written by PyAV")
    (folder / name).write_bytes(content(name))
    return folder / name


def readers(path):
    has_pictures = VIDEOS.get(path.name, (None,))[0]
    return (decode_audio, decode_image) if has_pictures else (decode_audio,)


def refusal(path, read):
    """The message of the MediaError, which names the file; any other error fails the test."""
    with pytest.raises(MediaError) as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text


@pytest.mark.parametrize("name", [*SOUNDS, *VIDEOS])
def test_whole_files_are_exact(name, tmp_path):
    sound, rate = decode_audio(written(tmp_path, name))
    assert sound.dtype == np.float32 and sound.shape[1] == 1
    assert rate == (RATE if name in SOUNDS else VIDEOS[name][2])
    # mkv, ts and mpg do not tell how much of the last frame is padding
    padding = 0.03 if name in ("a.mkv", "a.ts", "a.m2ts", "a.mpg") else 0
    assert SECONDS * rate <= len(sound) <= (SECONDS + padding) * rate
    loud = np.flatnonzero(np.abs(sound[:, 0]) > 0.3)
    assert abs(loud[0] / rate - CLICK) < 0.001 and loud[-1] / rate < CLICK + 0.004
    if name in SOUNDS and "bits" in name:
        np.testing.assert_allclose(sound, click(), atol=1 / 128 if name.startswith("8") else 1 / 32767)


@pytest.mark.parametrize("name", [*SOUNDS, *VIDEOS])
def test_files_that_are_cut_are_refused(name, tmp_path):
    path = written(tmp_path, name)
    data = path.read_bytes()
    for size in (0, 4, 30, len(data) // 10, len(data) // 2 + 7, len(data) * 9 // 10):  # of ts not between two packets
        path.write_bytes(data[:size])
        for read in readers(path)[: 1 if name == "a.mpg" else 2]:  # mpg has no head, and its last picture no length
            refusal(path, read)


@pytest.mark.parametrize("name", [*SOUNDS, *VIDEOS])
def test_damaged_files_are_refused_or_have_their_length(name, tmp_path):
    """A byte is another: in the head, and at six places behind it."""
    path = written(tmp_path, name)
    data, whole, draw = path.read_bytes(), len(decode_audio(path)[0]), np.random.default_rng(0)
    accepted = []
    for at in (3, 9, 13, *draw.integers(len(data) // 10, len(data), 6)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        for read in readers(path):
            try:
                got = read(path)
            except MediaError as error:
                assert str(error).startswith(f"{path}: ")
            else:
                accepted.append(at)
                assert read is decode_image or abs(len(got[0]) - whole) <= 0.03 * whole
    if name.endswith((".flac", ".ogg")):  # which have checksums
        assert not [at for at in accepted if at > 13]


# ---------------------------------------------------------------------------------------------------------------------
# Headers that do not tell the truth, in both directions


def changed(folder, name, change):
    """A file of SOUNDS whose bytes went through `change`."""
    path = written(folder, name)
    path.write_bytes(change(path.read_bytes()))
    return path


def number(at, value, form):
    """Writes a number behind the first occurrence of `at`, or at this byte."""

    def change(data):
        begin = at if isinstance(at, int) else data.index(at) + len(at)
        return data[:begin] + struct.pack(form, value) + data[begin + struct.calcsize(form) :]

    return change


def flac_samples(count):
    """Writes the number of samples: 36 bits behind the rate, channels and bits of a sample."""
    return lambda data: (
        data[:21] + bytes([data[21] & 0xF0 | count >> 32]) + struct.pack(">I", count % 2**32) + data[26:]
    )


def page(data, number):
    """Where a page of an ogg file begins."""
    return [found.start() for found in re.finditer(b"OggS", data)][number]


FALSE = [
    ("16 bits.wav", number(b"data", 1000, "<I"), r"damaged \(Chunk size|damaged \(Unknown chunk"),
    (
        "16 bits.wav",
        number(b"data", 64002, "<I"),
        "truncated, its header tells of 64002 bytes of samples, 64000 are there",
    ),
    ("16 bits.wav", number(4, 40000, "<I"), "damaged, or of several sounds: 24036 unknown bytes follow byte 40008"),
    ("a.au", number(8, 1000, ">I"), "damaged, or of several sounds: 63000 unknown bytes follow byte 1024"),
    ("64.w64", lambda data: data + b"noise" * 100, "damaged, or of several sounds"),
    ("64.w64", lambda data: data[:-1], r"truncated, its header tells of (\d+) bytes, the file has"),
    ("a.voc", lambda data: data + b"noise" * 100, "damaged, or of several sounds"),
    ("a.voc", lambda data: data + data, "damaged, or of several sounds"),
    ("16 bits.flac", flac_samples(0), "its length is unknown"),
    ("16 bits.flac", flac_samples(20000), "damaged: its samples do not have the checksum"),
    ("16 bits.flac", flac_samples(2**35), "cannot be read as audio"),
    ("24 bits.flac", lambda data: data[:30] + b"?" + data[31:], "damaged: its samples do not have the checksum"),
    ("vorbis.ogg", lambda data: data[: page(data, 3)] + data[page(data, 4) :], "damaged, page 3 is missing"),
    ("vorbis.ogg", lambda data: data[: page(data, -1)], "truncated, its last page does not end the stream"),
    (
        "opus.ogg",
        lambda data: data[: page(data, 2)] + data[page(data, 3) :],
        "cannot be read as audio|damaged, page 2 is missing",
    ),
    ("opus.ogg", lambda data: data + data, "damaged, page 4 is missing"),
    ("constant.mp3", number(b"Info\0\0\0\x0f", 50, ">I"), "its header tells of 50 frames, 58 are there"),
    ("constant.mp3", number(b"Info\0\0\0\x0f", 70, ">I"), "truncated, its header tells of 70 frames, 58 are there"),
    ("variable.mp3", lambda data: data.replace(b"Xing", b"Zing"), "damaged Xing header"),
    ("variable.mp3", lambda data: data + data, "its header tells of 58 frames, 117 are there"),
    ("variable.mp3", lambda data: data + b"more", "damaged, or of several sounds: 4 unknown bytes"),
]


@pytest.mark.parametrize("name, change, message", FALSE)
def test_headers_that_are_not_true_are_refused(name, change, message, tmp_path):
    path = changed(tmp_path, name, change)
    assert re.search(message, refusal(path, decode_audio))


def test_a_header_does_not_ask_for_memory(tmp_path):
    """2^35 samples would be 128 GiB."""
    path = changed(tmp_path, "16 bits.flac", flac_samples(2**35))
    tracemalloc.start()
    refusal(path, decode_audio)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


ID3 = b"ID3\4\0\0\0\0\2\0" + b"TIT2\0\0\0\x14\0\0\0Info Xing \xff\xfb\x90".ljust(256, b"\0")
APE = b"APETAGEX" + struct.pack("<IIIIQ", 2000, 32, 0, 0, 0)


@pytest.mark.parametrize("name", ["constant.mp3", "variable.mp3", "16 bits.wav", "16 bits.flac"])
def test_tags_are_no_sound(name, tmp_path):
    path = written(tmp_path, name)
    whole, data = decode_audio(path)[0], path.read_bytes()
    for before in (b"", ID3)[: 1 if name.endswith(".wav") else 2]:
        for behind in (b"TAG".ljust(128, b"x"), APE, ID3, bytes(100)):
            path.write_bytes(before + data + behind)
            np.testing.assert_array_equal(decode_audio(path)[0], whole)


def without_table(data):
    """An mp3 without the frame that tells how many there are; an independent look at its size, of MPEG 2 layer III."""
    kbps = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[(data[2] >> 4) - 1]
    return data[72 * kbps * 1000 // RATE + (data[2] >> 1 & 1) :]


@pytest.mark.parametrize("name", ["constant.mp3", "variable.mp3"])
@pytest.mark.parametrize("before", [b"", ID3])
def test_an_mp3_without_a_table_is_heard_to_its_end(name, before, tmp_path):
    """Loud, then quiet: libsndfile goes by the size of the first frame. 1105 samples come from encoder and decoder."""
    path = tmp_path / name
    sound = np.random.default_rng(1).normal(0, 0.2, RATE * 6) * (np.arange(RATE * 6) < RATE)
    sound[RATE * 5 :][:16] = 0.9
    soundfile.write(path, sound, RATE, **SOUNDS[name])
    whole = decode_audio(path)[0]
    path.write_bytes(before + without_table(path.read_bytes()) + b"TAG".ljust(128, b"x"))
    got = decode_audio(path)[0]
    assert len(whole) == RATE * 6 and len(got) % 576 == 0 and RATE * 6 + 1105 <= len(got) < RATE * 6 + 1105 + 2 * 576
    np.testing.assert_allclose(got[1105:][: len(whole)], whole, atol=1e-4)


def test_an_mp3_with_the_table_of_another_encoder(tmp_path):
    """VBRI, 32 bytes behind the header of a frame of silence."""
    path = changed(tmp_path, "constant.mp3", without_table)
    whole, data = decode_audio(path)[0], path.read_bytes()
    for told, message in ((58, None), (60, "truncated, its header tells of 60 frames, 58 are there")):
        table = data[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), told)
        path.write_bytes(table.ljust(len(data) - len(without_table(data)), b"\0") + data)
        if message:
            assert message in refusal(path, decode_audio)
        else:
            np.testing.assert_array_equal(decode_audio(path)[0], whole)


def test_an_mp3_that_changes_its_rate_is_refused(tmp_path):
    parts = []
    for rate in (16000, 22050):
        soundfile.write(tmp_path / "a.mp3", click(rate), rate, **SOUNDS["constant.mp3"])
        parts.append((tmp_path / "a.mp3").read_bytes())
    (tmp_path / "a.mp3").write_bytes(without_table(parts[0]) + parts[1])
    message = refusal(tmp_path / "a.mp3", decode_audio)
    assert "expected frames of one kind, got layer 3, 16000 Hz, 1 channels and, at byte" in message


def test_formats_whose_length_cannot_be_checked_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", click(), RATE, format="NIST", subtype="PCM_16")
    assert "expected a sound of WAV, WAVEX, RF64" in refusal(tmp_path / "a.wav", decode_audio)


@pytest.mark.parametrize("name", ["16 bits.wav", "16 bits.flac", "vorbis.ogg", "constant.mp3", "a.mp4", "a.mkv"])
@pytest.mark.parametrize("called", ["caf\udce9", "a:b", "50%d", "a truncated file"])
def test_any_name(name, called, tmp_path):
    """One that is no UTF-8, or looks like a protocol, a pattern, or what libsndfile writes to its log."""
    path = written(tmp_path, name)
    whole, renamed = decode_audio(path)[0], tmp_path / f"{called}{path.suffix}"
    path.rename(renamed)
    np.testing.assert_array_equal(decode_audio(renamed)[0], whole)
    if name in VIDEOS:
        assert decode_image(renamed).shape == (48, 64, 3)
    renamed.write_bytes(renamed.read_bytes()[:-200])
    refusal(renamed, decode_audio)
