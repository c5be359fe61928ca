"""The server of `ssl-fast demo`: its answers, and what it makes of requests and files that are not as they should be."""

import base64
import dataclasses
import http.client
import io
import json
import os
import pickle
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from ssl_fast import cli
from ssl_fast.data import scenes
from ssl_fast.inference.demo import Server
from ssl_fast.inference.localize import Viewer
from ssl_fast.models import checkpoints

SCENE = 1  # of which the embedded model localizes both sounds, and nothing under silence
GOOD = {"image": f"scene-{SCENE}", "sound": f"scene-{SCENE}-0", "alpha": 0.4, "threshold": None}


def running(viewer, **options):
    server = Server(viewer, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def viewer():
    return Viewer(checkpoints.load(checkpoints.EMBEDDED))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder of temporary files, empty but while a file is uploaded."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(viewer, uploads):
    server = running(viewer)
    yield server
    server.shutdown()
    server.server_close()


def exchange(server, message: bytes, timeout: float = 20) -> tuple[int, dict, bytes]:
    """What comes back for the bytes of a request, which may be incomplete: status, headers (lower case), content."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(message)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}, content


def head(server, method="POST", path="/answer", **headers) -> bytes:
    """Request line and headers; a header that is None is left out."""
    headers = {"Host": f"127.0.0.1:{server.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


def ask(server, path, body=None, **headers):
    """(status, content of the JSON) of a whole request by an ordinary client."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET" if body is None else "POST", path, body, named)
    response = connection.getresponse()
    status, content = response.status, json.loads(response.read())
    connection.close()
    return status, content


def question(server, **changed):
    return ask(server, "/answer", json.dumps(GOOD | changed))


def upload(server, kind, name, content):
    return ask(server, f"/{kind}", content, X_Name=urllib.parse.quote(name))


def still_well(server):
    status, answer = question(server)
    assert status == 200 and answer["scores"]["found"] is True


def of_data_uri(uri: str, mime: str) -> io.BytesIO:
    start = f"data:{mime};base64,"
    assert uri.startswith(start)
    return io.BytesIO(base64.b64decode(uri[len(start) :], validate=True))


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(of_data_uri(uri, "image/jpeg"))).astype(int)


def noise_image(height=60, width=80) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image_file(form="PNG", image=None, **options) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(noise_image()) if image is None else image
    image.save(out, form, **options)
    return out.getvalue()


def sound_file(samples=None, rate=16000, form="WAV", subtype=None) -> bytes:
    out = io.BytesIO()
    tone = np.sin(np.arange(16000) / 20) / 2 if samples is None else samples
    soundfile.write(out, tone, rate, format=form, subtype=subtype)
    return out.getvalue()


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


# ---------------------------------------------------------------------------------------------------------------------
# Answers


def test_page(server):
    status, headers, content = exchange(server, head(server, "GET", "/"))
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    policy = headers["content-security-policy"]
    nonce = re.search("script-src 'nonce-([^']+)'", policy).group(1)
    assert content.decode().count(f'nonce="{nonce}"') == 2 and "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    outside = re.findall(r"""(?:https?:)?//[a-z][^\s"']*""", content.decode())
    assert not [address for address in outside if "." in address], outside
    assert "innerHTML" not in content.decode()
    assert exchange(server, head(server, "GET", "/"))[1]["content-security-policy"] != policy  # a nonce is used once


def test_about(server, viewer):
    status, about = ask(server, "/about")
    assert status == 200 and about["threshold"] == viewer.threshold and about["alpha"] == 0.4
    assert about["model"]["categories"] == list(scenes.CATEGORIES[:12]) and about["model"]["method"] == "ssl_align"
    assert about["colours"][0] == "#0d0887" and about["colours"][-1] == "#f0f921"  # plasma
    assert len(about["scenes"]) == 8 and len({one["id"] for one in about["scenes"]}) == 8
    for index, one in enumerate(about["scenes"]):
        drawn = scenes.scene(scenes.Settings(), "duo", index)
        assert one["categories"] == list(drawn.categories) == [sound["category"] for sound in one["sounds"]]
        assert one["offscreen"]["category"] not in one["categories"]
        small = np.asarray(Image.fromarray(pixels(one["picture"]).astype(np.uint8)).resize((112, 112), 4)).astype(int)
        assert np.abs(small - drawn.image).mean() < 6


@pytest.mark.parametrize("position", [0, 1])
def test_answer_is_the_viewers(server, viewer, position):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    waveform = drawn.waveforms[position].astype(np.float32) / 32768
    expected = viewer.localize(drawn.image, waveform)
    status, answer = question(server, sound=f"scene-{SCENE}-{position}", alpha=0.7)
    assert status == 200 and answer["scores"] == pytest.approx(expected.scores(), abs=1e-6)
    panels = expected.panels(0.7)
    assert [panel["title"] for panel in answer["panels"]] == [panel.title for panel in panels]
    for got, panel in zip(answer["panels"], panels):
        assert (got["low"], got["high"]) == pytest.approx((panel.low, panel.high), abs=1e-6)
        assert np.abs(pixels(got["picture"]) - panel.picture).mean() < 3
    with soundfile.SoundFile(of_data_uri(answer["heard"], "audio/wav")) as file:
        assert file.samplerate == 16000
        np.testing.assert_allclose(file.read(dtype="float32"), waveform, atol=2 / 32768)


def test_two_sounds_move_the_maximum(server):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    for position, (left, top, right, bottom) in zip(drawn.sounding, drawn.boxes):
        scores = question(server, sound=f"scene-{SCENE}-{position}")[1]["scores"]
        assert left <= scores["x"] * 112 < right and top <= scores["y"] * 112 < bottom and scores["found"] is True


def test_sounds_of_nothing_in_the_image(server, viewer):
    drawn = scenes.scene(scenes.Settings(), "duo", SCENE)
    silent = question(server, sound="silence")[1]
    assert silent["scores"]["found"] is False and silent["scores"]["area"] == 0
    expected = viewer.localize(drawn.image, np.zeros(16000, np.float32)).scores()
    assert silent["scores"] == pytest.approx(expected, abs=1e-6)
    noise = question(server, sound="noise")[1]
    assert noise["scores"]["found"] is False
    heard, _ = soundfile.read(of_data_uri(noise["heard"], "audio/wav"))
    assert heard.std() > 0.5 and np.abs(heard).max() <= 1
    offscreen = ask(server, "/about")[1]["scenes"][SCENE]["offscreen"]["id"]
    assert question(server, sound=offscreen)[1]["scores"]["found"] is False


def test_sliders(server, viewer):
    own, low, high = (question(server, threshold=t)[1] for t in (None, -1, 1))
    assert own["scores"]["threshold"] == viewer.threshold == own["panels"][0]["threshold"]
    assert low["scores"]["area"] == 1 and low["scores"]["found"] is True
    assert high["scores"]["area"] == 0 and high["scores"]["found"] is False
    assert own["scores"]["maximum"] == low["scores"]["maximum"] == high["scores"]["maximum"]
    mixtures = [question(server, alpha=alpha)[1]["panels"] for alpha in (0, 1)]
    assert mixtures[0][2]["title"] == "mixture, alpha 0" and mixtures[1][2]["title"] == "mixture, alpha 1"
    assert mixtures[0][0]["picture"] == mixtures[1][0]["picture"]
    assert np.abs(pixels(mixtures[0][2]["picture"]) - pixels(mixtures[1][2]["picture"])).mean() > 5


def test_sliders_do_not_run_the_net_again(viewer):
    class Counting(Viewer):
        count = 0

        def localize(self, image, waveform):
            self.count += 1
            return super().localize(image, waveform)

    counting = Counting(viewer.found)
    with running(counting) as server:
        for alpha in (0, 0.5, 1):
            assert question(server, alpha=alpha, threshold=alpha)[0] == 200
        assert counting.count == 1
        server.shutdown()


def test_a_model_without_threshold(viewer):
    deaf = Viewer(dataclasses.replace(viewer.found, threshold=None))
    with running(deaf) as server:
        assert ask(server, "/about")[1]["threshold"] is None
        assert question(server)[1]["scores"]["found"] is None
        assert question(server, threshold=0)[1]["scores"]["found"] is True
        server.shutdown()


def test_front_end_of_another_rate_and_length(viewer):
    recipe = viewer.found.recipe | {"front_end": dataclasses.replace(viewer.front_end, sample_rate=8000, seconds=2.5)}
    with running(Viewer(dataclasses.replace(viewer.found, recipe=recipe))) as server:
        heard, rate = soundfile.read(of_data_uri(question(server)[1]["heard"], "audio/wav"))
        assert rate == 8000 and len(heard) == 20000 and heard.std() > 0.01
        np.testing.assert_array_equal(heard[:8000], heard[8000:16000])  # of one second, repeated
        server.shutdown()


# ---------------------------------------------------------------------------------------------------------------------
# Uploads


def test_uploads_are_answered_like_files(server, viewer, uploads, tmp_path):
    picture, tone = tmp_path / "a.png", tmp_path / "b.wav"
    picture.write_bytes(image_file())
    tone.write_bytes(sound_file(rate=44100))
    image, sound = upload(server, "image", "a.png", picture.read_bytes()), upload(server, "sound", "b.wav", tone.read_bytes())
    assert image[0] == sound[0] == 200 and image[1]["id"] != sound[1]["id"]
    assert pixels(image[1]["preview"]).shape == (336, 448, 3)
    expected = viewer.localize(viewer.read_image(picture), viewer.read_sound(tone))
    answer = question(server, image=image[1]["id"], sound=sound[1]["id"])[1]
    assert answer["scores"] == pytest.approx(expected.scores(), abs=1e-6)
    assert answer["heard"] == sound[1]["preview"] and not list(uploads.iterdir())


def test_large_image_is_kept_small(server):
    ramp = Image.fromarray(np.linspace(0, 255, 3000, dtype=np.uint8)[:, None, None].repeat(1000, 1).repeat(3, 2))
    status, kept = upload(server, "image", "large.jpg", image_file("JPEG", ramp))
    assert status == 200 and pixels(kept["preview"]).shape == (448, 149, 3)
    held = server.desk.uploads[kept["id"]].content
    assert held.shape == (640, 213, 3)
    assert np.abs(held[:, 100, 0].astype(int) - np.linspace(0, 255, 640)).max() < 4


TURNED = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, 6, 0)
FRAMES = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
VALID = {
    "cmyk jpeg": ("image", "a.jpg", lambda: image_file("JPEG", Image.new("CMYK", (40, 30), (0, 255, 255, 0))), (255, 0, 0)),
    "animated gif": ("image", "a.gif", lambda: image_file("GIF", FRAMES[0], save_all=True, append_images=FRAMES[1:]),
                     (255, 0, 0)),
    "16-bit png": ("image", "a.png", lambda: image_file("PNG", Image.fromarray(np.full((30, 40), 32896, np.uint16))),
                   (128, 128, 128)),
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
}  # fmt: skip


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
    "half an hour": ("sound", "a.flac", lambda: sound_file(np.zeros(8000 * 1800, np.int16), 8000, "FLAC"),
                     "at most 10 minutes, got 1800 s"),
    "many channels": ("sound", "a.flac", lambda: flac_of(599 * 48000, 8), "at most 60 million samples"),
    "less than told": ("sound", "a.flac", lambda: flac_of(100 * 48000, 1), "cannot be read"),
    "absurd rate": ("sound", "a.wav", lambda: sound_file(rate=2_000_000_000), "got 2000000000"),
    "truncated wav": ("sound", "a.wav", lambda: sound_file()[:9999], "truncated"),
    "loud": ("sound", "a.wav", lambda: sound_file(np.full(900, 99.0), subtype="FLOAT"), "full scale"),
    "a path for a name": ("image", "../../etc/passwd.png", lambda: b"root", "passwd.png: cannot be read"),
    "windows path": ("image", r"C:\secret\a.png", lambda: b"root", "a.png: cannot be read"),
    "markup and control characters": ("image", "<b>\r\n\0\x1b[1m\u202eonclick=1.png", lambda: b"x",
                                      "<b>[1monclick=1.png: cannot be read"),
    "huge name": ("image", "x" * 5000 + ".png", lambda: b"x", "xxx.png: cannot be read"),
}  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------------------------
# Requests

BAD_QUESTIONS = {
    "unknown id": (GOOD | {"image": "scene-99"}, 400, 'image: unknown id "scene-99"'),
    "unknown upload": (GOOD | {"sound": "0" * 32}, 410, "no longer kept"),
    "sound as image": (GOOD | {"image": "silence"}, 400, "image: this is the id of a sound"),
    "image as sound": (GOOD | {"sound": "scene-0"}, 400, "sound: this is the id of an image"),
    "path as id": (GOOD | {"image": "/etc/passwd"}, 400, "image: unknown id"),
    "list as id": (GOOD | {"image": ["scene-0"]}, 400, "image: unknown id a list"),
    "null as id": (GOOD | {"sound": None}, 400, "sound: unknown id null"),
    "long id": (GOOD | {"sound": "x" * 5000}, 400, "sound: unknown id"),
    "alpha too high": (GOOD | {"alpha": 1.01}, 400, "alpha: expected a number from 0 to 1, got 1.01"),
    "alpha below 0": (GOOD | {"alpha": -1e-9}, 400, "alpha: expected a number from 0 to 1"),
    "alpha NaN": (GOOD | {"alpha": float("nan")}, 400, "alpha: expected a number from 0 to 1, got NaN"),
    "alpha infinite": (GOOD | {"alpha": float("inf")}, 400, "alpha: expected a number"),
    "alpha a string": (GOOD | {"alpha": "0.4"}, 400, 'alpha: expected a number from 0 to 1, got "0.4"'),
    "alpha true": (GOOD | {"alpha": True}, 400, "alpha: expected a number from 0 to 1, got true"),
    "alpha null": (GOOD | {"alpha": None}, 400, "alpha: expected a number"),
    "alpha huge": (GOOD | {"alpha": 10**400}, 400, "alpha: expected a number"),
    "alpha missing": ({key: value for key, value in GOOD.items() if key != "alpha"}, 400, "alpha: missing"),
    "threshold missing": ({key: value for key, value in GOOD.items() if key != "threshold"}, 400, "threshold: missing"),
    "threshold beyond cosines": (GOOD | {"threshold": -1.5}, 400, "threshold: expected a number from -1 to 1, got -1.5"),
    "threshold NaN": (GOOD | {"threshold": float("nan")}, 400, "threshold: expected a number"),
    "a list": ([GOOD], 400, "expected a JSON object, got a list"),
    "a number": (3, 400, "expected a JSON object, got 3"),
    "not JSON": ('{"image": ', 400, "expected JSON"),
    "not UTF-8": (b'{"image": "\xff\xfe"}', 400, "expected JSON"),
    "deep": ("[" * 9000, 400, "expected JSON"),
    "deep and whole": ('{"a":' * 900 + "1" + "}" * 900, 400, "image: missing"),
    "endless number": ('{"alpha": 1' + "0" * 9000 + "}", 400, "expected JSON"),
    "long": (GOOD | {"more": "x" * 10_000}, 413, "at most 10000 bytes"),
    "empty": ("", 400, "0 bytes"),
}


@pytest.mark.parametrize("case", BAD_QUESTIONS)
def test_bad_questions(server, case):
    asked, status, phrase = BAD_QUESTIONS[case]
    got, answer = ask(server, "/answer", asked if isinstance(asked, (str, bytes)) else json.dumps(asked))
    assert got == status and phrase in answer["error"] and len(answer["error"]) < 200, answer
    still_well(server)


WHOLE = json.dumps(GOOD).encode()
LENGTH = {"Content_Length": len(WHOLE)}
BAD_REQUESTS = {
    "too large a file": ({"path": "/image", "X_Name": "a.png", "Content_Length": 21_000_000}, b"", 413, "at most 20000000"),
    "absurdly large": ({"path": "/image", "X_Name": "a.png", "Content_Length": "9" * 18}, b"", 413, "at most 20000000"),
    "no length": ({}, WHOLE, 411, "Content-Length: missing"),
    "no length of a file": ({"path": "/sound", "X_Name": "a.wav"}, b"x", 411, "Content-Length: missing"),
    "chunks": ({"Transfer_Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n", 411, "Content-Length: missing"),
    "chunks and length": ({"Transfer_Encoding": "chunked", **LENGTH}, WHOLE, 411, "Content-Length"),
    "negative length": ({"Content_Length": -5}, b"", 400, "Content-Length: expected one number"),
    "length in words": ({"Content_Length": "many"}, b"", 400, "Content-Length: expected one number"),
    "length of 5000 digits": ({"Content_Length": "1" * 5000}, b"", 400, "Content-Length: expected one number"),
    "two lengths": ({"Content_Length": f"{len(WHOLE)}\r\nContent-Length: 3"}, WHOLE, 400, "expected one number"),
    "other host": ({"Host": "evil.example", **LENGTH}, WHOLE, 403, "Host: expected"),
    "other port": ({"Host": "127.0.0.1:1", **LENGTH}, WHOLE, 403, "Host: expected"),
    "no host": ({"Host": None, **LENGTH}, WHOLE, 403, "Host: expected"),
    "page of another host": ({"method": "GET", "path": "/", "Host": "evil.example"}, b"", 403, "Host: expected"),
    "other site": ({"Origin": "http://evil.example", **LENGTH}, WHOLE, 403, "other sites"),
    "no site": ({"Origin": "null", **LENGTH}, WHOLE, 403, "other sites"),
    "same host, other port": ({"Origin": "http://127.0.0.1:1", **LENGTH}, WHOLE, 403, "other sites"),
    "unknown path": ({"method": "GET", "path": "/favicon.ico"}, b"", 404, "nothing at this address"),
    "traversal": ({"method": "GET", "path": "/../../../../etc/passwd"}, b"", 404, "nothing at this address"),
    "encoded traversal": ({"method": "GET", "path": "/%2e%2e/%2e%2e/etc/passwd"}, b"", 404, "nothing at this address"),
    "source": ({"method": "GET", "path": "/page.html"}, b"", 404, "nothing at this address"),
    "post to nowhere": ({"path": "/upload", **LENGTH}, WHOLE, 404, "nothing at this address"),
    "put": ({"method": "PUT", **LENGTH}, WHOLE, 405, "expected POST, got PUT"),
    "delete": ({"method": "DELETE", "path": "/about"}, b"", 405, "expected GET, got DELETE"),
    "options": ({"method": "OPTIONS", "path": "/image"}, b"", 405, "expected POST"),
    "post of the page": ({"path": "/", **LENGTH}, WHOLE, 405, "expected GET, got POST"),
    "get of an answer": ({"method": "GET"}, b"", 405, "expected POST, got GET"),
    "huge header": ({"X_Name": "a" * 70_000}, b"", 431, "too long"),
    "many headers": ({f"X_{k}": k for k in range(200)}, b"", 431, "Too many headers"),
    "long path": ({"method": "GET", "path": "/" + "a" * 70_000}, b"", 414, "address is too long"),
    "bad version": ({"path": "/ HTTP/x"}, b"", 400, "bad request"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(server, uploads, case):
    parts, body, status, phrase = BAD_REQUESTS[case]
    got, headers, content = exchange(server, head(server, **parts) + body)
    assert got == status and phrase.lower() in json.loads(content)["error"].lower(), content
    assert headers["content-type"] == "application/json; charset=utf-8" and "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert not list(uploads.iterdir()) and (status == 405) == ("allow" in headers)
    still_well(server)


@pytest.mark.parametrize("message", [b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", b"GET\r\n\r\n", b"a b c d e\r\n\r\n"])
def test_what_is_no_request(server, message):
    assert exchange(server, message)[0] == 400
    still_well(server)


def test_head_has_no_content(server):
    status, headers, content = exchange(server, head(server, "HEAD", "/"))
    assert status == 405 and headers["allow"] == "GET" and content == b""


def test_same_origin_is_served(server):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"LOCALHOST:{server.port}"):
        message = head(server, Host=host, Origin=f"http://{host}", **LENGTH) + WHOLE
        assert exchange(server, message)[0] == 200


def test_hosts_of_a_server_that_listens_everywhere(viewer):
    with running(viewer, host="0.0.0.0") as server:
        for host, status in ((f"192.0.2.7:{server.port}", 200), (f"localhost:{server.port}", 200), ("192.0.2.7:1", 403),
                             (f"evil.example:{server.port}", 403), ("192.0.2.7", 403), ("", 403)):  # fmt: skip
            assert exchange(server, head(server, "GET", "/about", Host=host))[0] == status
        server.shutdown()


def test_refused_before_the_body_is_sent(server):
    """A client that sends all of a file that is too large before it reads gets the message nonetheless."""
    message = head(server, path="/image", X_Name="a.png", Content_Length=21_000_000)
    assert exchange(server, message + bytes(21_000_000))[0] == 413
    still_well(server)


@pytest.mark.parametrize("part", [b"POST /ans", b"POST /answer HTTP/1.1\r\nHost: ", None, b"GET"])
def test_slow_clients(viewer, uploads, part):
    with running(viewer, deadline=0.6) as server:
        part = part or head(server, path="/image", X_Name="a.png", Content_Length=5000) + b"some"
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
            connection.sendall(part)
            answer = b""
            for _ in range(12):  # each byte comes well before the deadline, the whole does not
                time.sleep(0.1)
                try:
                    connection.sendall(b"x")
                except OSError:
                    break
            while piece := connection.recv(65536):
                answer += piece
        assert b" 408 " in answer.split(b"\r\n")[0] and b"did not arrive within 0.6 s" in answer
        assert time.monotonic() - start < 5 and not list(uploads.iterdir())
        still_well(server)
        server.shutdown()


def test_file_that_is_cut_off(server, uploads):
    message = head(server, path="/image", X_Name="a.png", Content_Length=5000) + b"some"
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        assert b"expected 5000 bytes, got 4" in connection.recv(65536) + connection.recv(65536)
    assert not list(uploads.iterdir())
    still_well(server)


def test_two_clients_at_once(server):
    expected = {position: question(server, sound=f"scene-0-{position}")[1]["scores"] for position in (0, 1)}
    wrong = []

    def client(position):
        for alpha in (0.1, 0.2, 0.3, 0.4):
            status, answer = question(server, sound=f"scene-0-{position}", alpha=alpha)
            if status != 200 or answer["scores"] != expected[position] or f"{alpha:g}" not in answer["panels"][2]["title"]:
                wrong.append((position, alpha, status))

    threads = [threading.Thread(target=client, args=(position,)) for position in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_too_many_requests_at_once(viewer):
    leave = threading.Event()

    class Waiting(Viewer):
        def localize(self, image, waveform):
            assert leave.wait(60)
            return super().localize(image, waveform)

    with running(Waiting(viewer.found)) as server:
        got, refused = [], threading.Semaphore(0)

        def client():
            got.append(question(server))
            refused.release()

        threads = [threading.Thread(target=client) for _ in range(7)]
        for thread in threads:
            thread.start()
        assert all(refused.acquire(timeout=60) for _ in range(3))  # four wait, and the others need not
        assert got == [(503, {"error": "the server works on 4 other requests: try again"})] * 3
        assert ask(server, "/about")[0] == 200
        leave.set()
        for thread in threads:
            thread.join()
        assert [status for status, _ in got[3:]] == [200] * 4
        still_well(server)
        server.shutdown()


def test_idle_connections_do_not_pile_up(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(40)]
    assert all(connection.recv(100).startswith(b"HTTP/1.0 503 ") for connection in idle[-4:])
    for connection in idle:
        connection.close()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            return still_well(server)
        except (OSError, ValueError):  # the threads of the closed ones are still ending
            time.sleep(0.05)
    still_well(server)


def test_failure_is_told_and_survived(viewer, capfd, uploads):
    class Failing(Viewer):
        def localize(self, image, waveform):
            if not waveform.any():
                raise ZeroDivisionError("a secret of the server")
            return super().localize(image, waveform)

        def read_sound(self, path):
            raise KeyError(str(path))

    with running(Failing(viewer.found)) as server:
        capfd.readouterr()
        for status, answer in (question(server, sound="silence"), upload(server, "sound", "a.wav", sound_file())):
            assert status == 500 and "failed" in answer["error"] and "secret" not in answer["error"]
            assert "/" not in answer["error"]
        err = capfd.readouterr().err
        assert "Traceback" in err and "ZeroDivisionError" in err and not list(uploads.iterdir())
        still_well(server)
        assert capfd.readouterr() == ("", "")  # nothing is logged of good requests
        server.shutdown()


# ---------------------------------------------------------------------------------------------------------------------
# Command


def test_command_ends_with_ctrl_c(tmp_path):
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, "-m", "ssl_fast", "demo", "--port", "0"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment)  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        assert "embedded quickstart model" in lines[0]
        host, port = re.match(r"http://([\d.]+):(\d+)/", lines[1]).groups()
        assert host == "127.0.0.1"
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and err == ""


@pytest.mark.parametrize("port", ["taken", "70000", "-1"])
def test_command_without_a_port(capsys, port):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1]) if port == "taken" else port
        assert cli.main(["demo", f"--port={port}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"--port {port}" in err


def test_command_with_an_unknown_host(capsys):
    assert cli.main(["demo", "--host", "no.such.host.invalid", "--port", "0"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no.such.host.invalid" in err
