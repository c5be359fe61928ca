"""Uploads to the server of `ssl-fast demo`: good and bad files."""

import pickle
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import demo_clients
from demo_clients import image_file, pixels, question, sound_file, still_well, upload

uploads, server = demo_clients.uploads, demo_clients.server  # fixtures


def png_of(width: int, height: int) -> bytes:
    """A PNG of few bytes that declares a large size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(b"\0" * 1_000_000, 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def flac_of(frames: int, channels: int) -> bytes:
    """A FLAC of a tenth of a second at 48 kHz whose header tells of so many frames."""
    content = bytearray(sound_file(np.zeros((4800, channels), np.int16), 48000, "FLAC"))
    told = int.from_bytes(content[18:26], "big") >> 36 << 36 | frames
    content[18:26] = told.to_bytes(8, "big")
    return bytes(content)


def tiled_tiff(side: int) -> bytes:
    """A TIFF of 64 x 64 pixels, in the corner of one tile."""
    data = zlib.compress(bytes(side * side), 9)
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times again."""
    content = image_file("JPEG", progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * count + content[-2:]


def test_uploads_are_answered_like_files(server, pipeline, uploads, tmp_path):
    picture, tone = tmp_path / "a.png", tmp_path / "b.wav"
    picture.write_bytes(image_file())
    tone.write_bytes(sound_file(rate=44100))
    image = upload(server, "image", "a.png", picture.read_bytes())
    sound = upload(server, "sound", "b.wav", tone.read_bytes())
    assert image[0] == sound[0] == 200 and image[1]["id"] != sound[1]["id"]
    assert pixels(image[1]["preview"]).shape == (336, 448, 3)
    expected = pipeline.localize(pipeline.read_image(picture), pipeline.read_sound(tone))
    answer = question(server, image=image[1]["id"], sound=sound[1]["id"])[1]
    assert answer["scores"] == pytest.approx(expected.scores(), abs=1e-6)
    assert answer["heard"] == sound[1]["preview"] and not list(uploads.iterdir())


def test_large_image_is_kept_small(server):
    ramp = Image.fromarray(np.linspace(0, 255, 3000, dtype=np.uint8)[:, None, None].repeat(1000, 1).repeat(3, 2))
    status, kept = upload(server, "image", "large.jpg", image_file("JPEG", ramp))
    assert status == 200 and pixels(kept["preview"]).shape == (448, 149, 3)
    stored = server.session.uploads[kept["id"]].content
    assert stored.shape == (640, 213, 3)
    assert np.abs(stored[:, 100, 0].astype(int) - np.linspace(0, 255, 640)).max() < 4


TURNED = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, 6, 0)
FRAMES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
VALID = {
    "cmyk jpeg": (
        "image",
        "a.jpg",
        lambda: image_file("JPEG", Image.new("CMYK", (40, 30), (0, 255, 255, 0))),
        (255, 0, 0),
    ),
    "animated gif": (
        "image",
        "a.gif",
        lambda: image_file("GIF", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
        (255, 0, 0),
    ),
    "16-bit png": (
        "image",
        "a.png",
        lambda: image_file("PNG", Image.fromarray(np.full((30, 40), 32896, np.uint16))),
        (128, 128, 128),
    ),
    "progressive jpeg": ("image", "a.jpeg", lambda: image_file("JPEG", FRAMES[1], progressive=True), (0, 255, 0)),
    "turned by EXIF": ("image", "a.jpg", lambda: image_file("JPEG", FRAMES[2], exif=TURNED), (0, 0, 255)),
    "bmp": ("image", "a.BMP", lambda: image_file("BMP", FRAMES[1]), (0, 255, 0)),
    "tiff": ("image", "a.tif", lambda: image_file("TIFF", FRAMES[2]), (0, 0, 255)),
    "webp": ("image", "a.webp", lambda: image_file("WEBP", FRAMES[2], lossless=True), (0, 0, 255)),
    "one pixel": ("image", "a.png", lambda: image_file("PNG", FRAMES[0].resize((1, 1))), (255, 0, 0)),
    "a path for a name": ("image", "../../etc/passwd.png", lambda: image_file("PNG", FRAMES[0]), (255, 0, 0)),
    "flac": ("sound", "a.flac", lambda: sound_file(form="FLAC"), None),
    "ogg": ("sound", "a.ogg", lambda: sound_file(form="OGG"), None),
    "opus": ("sound", "a.opus", lambda: sound_file(form="OGG", subtype="OPUS", rate=48000), None),
    "mp3": ("sound", "a.mp3", lambda: sound_file(form="MP3"), None),
    "float wav, short, stereo": ("sound", "a.wav", lambda: sound_file(np.full((40, 2), 0.5), subtype="FLOAT"), None),
}


@pytest.mark.parametrize("case", VALID)
def test_valid_uploads(server, uploads, case):
    kind, name, content, colour = VALID[case]
    status, kept = upload(server, kind, name, content())
    assert status == 200 and kept["name"] == name.rpartition("/")[2] and re.fullmatch("[0-9a-f]{32}", kept["id"])
    if case == "turned by EXIF":
        assert pixels(kept["preview"]).shape == (448, 336, 3)
    if colour is not None:
        assert np.abs(pixels(kept["preview"]) - colour).max() <= 4
    status, answer = question(server, **{kind: kept["id"]})
    assert status == 200 and np.isfinite(answer["scores"]["maximum"]) and not list(uploads.iterdir())


def long_mp3() -> bytes:
    """10 minutes of frames of 144 bytes, 36 ms each, behind one of 1,440 bytes."""
    large, small = (b"\xff\xfb" + bytes([bitrate, 0xC0]) for bitrate in (0xE8, 0x18))  # 32 kHz, mono
    return large + bytes(1440 - 4) + 16_750 * (small + bytes(144 - 4))


BAD_FILES = {
    "empty": ("image", "a.png", lambda: b"", "0 bytes"),
    "wrong suffix": ("image", "a.txt", image_file, "a.txt: expected a file name of image (.jpg, .jpeg, .png"),
    "svg": ("image", "a.svg", lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", ".jpg, .jpeg"),
    "video": ("image", "a.mp4", image_file, ".jpg, .jpeg"),
    "sound as image": ("image", "a.wav", sound_file, ".jpg, .jpeg"),
    "no suffix": ("sound", "a", sound_file, "a: expected a file name of sound (.wav, .flac"),
    "suffix alone": ("sound", ".wav", sound_file, ".wav: expected a file name of sound"),
    "no name": ("sound", "", sound_file, "X-Name: expected"),
    "pickle": ("image", "a.png", lambda: pickle.dumps({"a": 1}), "a.png: cannot be read as an image"),
    "postscript": ("image", "a.png", lambda: image_file("EPS"), "expected an image of JPEG"),
    "rare format": ("image", "a.png", lambda: image_file("PPM"), "got PPM"),
    "bomb": ("image", "a.png", lambda: png_of(20000, 20000), "at most 40 million pixels"),
    "smaller bomb": ("image", "a.png", lambda: png_of(10000, 10000), "got 10000 x 10000"),
    "thin bomb": ("image", "a.png", lambda: png_of(1, 40_000_000), "got 1 x 40,000,000"),
    "mp3 that is longer than its first frame lets expect": (
        "sound",
        "a.mp3",
        long_mp3,
        "at most 10 minutes, got 603 s",
    ),
    "long bomb": ("image", "a.png", lambda: png_of(40_000_001, 1), "got 40000001 x 1"),
    "fewer pixels than told": ("image", "a.png", lambda: png_of(5000, 5000), "cannot be read as an image"),
    "tiles": ("image", "a.tif", lambda: tiled_tiff(5000), "expected a TIFF of strips"),
    "scans": ("image", "a.jpg", lambda: jpeg_of_scans(100), "at most 64 scans, got 1"),
    "truncated jpeg": ("image", "a.jpg", lambda: image_file("JPEG")[:2000], "truncated"),
    "floats": ("image", "a.tiff", lambda: image_file("TIFF", Image.new("F", (9, 9))), "image of floats"),
    "text": ("sound", "a.wav", lambda: b"no sound at all" * 9, "a.wav: cannot be read as a sound"),
    "image as sound": ("sound", "a.wav", image_file, "a.wav: cannot be read as a sound"),
    "no samples": ("sound", "a.wav", lambda: sound_file(np.zeros(0)), "no samples"),
    "not a number": ("sound", "a.wav", lambda: sound_file(np.array([0, np.nan] * 900), subtype="FLOAT"), "got nan"),
    "stream": ("sound", "a.wav", lambda: sound_file(subtype="GSM610"), "only read in a stream"),
    "rare sound": ("sound", "a.wav", lambda: sound_file(form="AIFF"), "got AIFF"),
    "half an hour": (
        "sound",
        "a.flac",
        lambda: sound_file(np.zeros(8000 * 1800, np.int16), 8000, "FLAC"),
        "at most 10 minutes, got 1800 s",
    ),
    "many channels": ("sound", "a.flac", lambda: flac_of(599 * 48000, 8), "at most 60 million samples"),
    "less than told": ("sound", "a.flac", lambda: flac_of(100 * 48000, 1), "cannot be read"),
    "absurd rate": ("sound", "a.wav", lambda: sound_file(rate=2_000_000_000), "got 2000000000"),
    "truncated wav": ("sound", "a.wav", lambda: sound_file()[:9999], "truncated"),
    "loud": ("sound", "a.wav", lambda: sound_file(np.full(900, 99.0), subtype="FLOAT"), "full scale"),
    "a path for a name": ("image", "../../etc/passwd.png", lambda: b"root", "passwd.png: cannot be read"),
    "windows path": ("image", r"C:\secret\a.png", lambda: b"root", "a.png: cannot be read"),
    "markup and control characters": (
        "image",
        "<b>\r\n\0\x1b[1m\u202eonclick=1.png",
        lambda: b"x",
        "<b>[1monclick=1.png: cannot be read",
    ),
    "huge name": ("image", "x" * 5000 + ".png", lambda: b"x", "xxx.png: cannot be read"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(server, uploads, case):
    kind, name, content, phrase = BAD_FILES[case]
    status, answer = upload(server, kind, name, content())
    assert status == 400 and phrase in answer["error"], answer
    message = answer["error"]
    assert str(uploads) not in message and "/" not in message and "etc" not in message and "secret" not in message
    assert len(message) < 300 and message.isprintable()
    assert not list(uploads.iterdir())
    still_well(server)


def test_damaged_files_get_a_message(server, uploads):
    rng = np.random.default_rng(5)
    whole = [("image", f"a.{form.lower()}", image_file(form)) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
    whole += [("sound", f"a.{form.lower()}", sound_file(form=form)) for form in ("WAV", "FLAC", "OGG", "MP3")]
    for kind, name, content in whole:
        for _ in range(6):
            damaged = np.frombuffer(content, np.uint8).copy()
            at = rng.integers(0, rng.choice([64, len(damaged)]), 8)
            damaged[at] = rng.integers(0, 256, 8)
            status, answer = upload(server, kind, name, damaged.tobytes())
            assert status in (200, 400), (name, answer)
            assert status == 200 or answer["error"].startswith(name)
    assert not list(uploads.iterdir())
    still_well(server)


def test_only_the_last_uploads_are_kept(server):
    kept = [upload(server, "image", "a.png", image_file())[1]["id"]]
    assert question(server, image=kept[0])[0] == 200
    for k in range(16):
        kind, name, content = ("image", "a.png", image_file()) if k % 2 else ("sound", "a.wav", sound_file())
        kept.append(upload(server, kind, name, content)[1]["id"])
    assert len(set(kept)) == 17
    status, answer = question(server, image=kept[0])
    assert status == 410 and "no longer kept" in answer["error"] and "choose its file again" in answer["error"]
    assert question(server, sound=kept[1])[0] == question(server, image=kept[2])[0] == 200
