"""Helpers for the tests of `ssl-fast demo`: servers, clients, and files that are as they should be."""

import base64
import http.client
import io
import json
import socket
import tempfile
import threading
import urllib.parse

import numpy as np
import pytest
import soundfile
from PIL import Image

from ssl_fast.demo.server import Server

SCENE = 1  # of which the embedded model localizes both sounds, and nothing under silence
GOOD = {"image": f"scene-{SCENE}", "sound": f"scene-{SCENE}-0", "alpha": 0.4, "threshold": None}


def running(pipeline, **options):
    server = Server(pipeline, **options)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """The folder of temporary files, empty but while a file is uploaded."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(pipeline, uploads):
    server = running(pipeline)
    yield server
    server.shutdown()
    server.server_close()


def exchange(server, message: bytes, timeout: float = 20) -> tuple[int, dict, bytes]:
    """Send the bytes of a request, which may be incomplete; status, headers (lower case) and content that come back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout) as connection:
        connection.sendall(message)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}, content


def head(server, method="POST", path="/answer", **headers) -> bytes:
    """Request line and headers; a header that is None is left out. server: None where Host is given."""
    headers = {"Host": server and f"127.0.0.1:{server.port}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


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
