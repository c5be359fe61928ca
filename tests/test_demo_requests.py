"""Answers of the server of `ssl-fast demo` to requests that are not as they should be, and to many at once."""

import json
import socket
import struct
import threading
import time

import pytest
from PIL import Image

import demo_clients
from demo_clients import GOOD, ask, exchange, head, image_file, question, running, sound_file, still_well, upload
from ssl_fast.inference.localize import LocalizationPipeline

uploads, server = demo_clients.uploads, demo_clients.server  # fixtures

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
    "threshold beyond cosines": (GOOD | {"threshold": -1.5}, 400, "threshold: expected a number from -1 to 1, got"),
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
FORM_FILE = b'--b\r\nContent-Disposition: form-data; name="f"; filename="../../pwn\0.png"\r\n\r\nabc\r\n--b--\r\n'
FORM = {"Content_Type": "multipart/form-data; boundary=b", "Content_Length": len(FORM_FILE)}
BAD_REQUESTS = {
    "too large a file": (
        {"path": "/image", "X_Name": "a.png", "Content_Length": 21_000_000},
        b"",
        413,
        "at most 20000000",
    ),
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
    "NUL": ({"method": "GET", "path": "/\0"}, b"", 404, "nothing at this address"),
    "encoded NUL": ({"method": "GET", "path": "/about%00"}, b"", 404, "nothing at this address"),
    "whole address": ({"method": "GET", "path": "http://evil.example/about"}, b"", 404, "nothing at this address"),
    "length with a sign": ({"Content_Length": f"+{len(WHOLE)}"}, WHOLE, 400, "Content-Length: expected one number"),
    "list of lengths": ({"Content_Length": f"{len(WHOLE)}, 3"}, WHOLE, 400, "Content-Length: expected one number"),
    "folded host": ({"Host": "evil.example\r\n 127.0.0.1", **LENGTH}, WHOLE, 403, "Host: expected"),
    "two hosts": ({"Host": "evil.example\r\nHost: evil.example", **LENGTH}, WHOLE, 403, "Host: expected"),
    "a form": ({"path": "/image", "X_Name": "..%2f%00a.png", **FORM}, FORM_FILE, 400, "a.png: cannot be read"),
    "a form alone": ({"path": "/image", **FORM}, FORM_FILE, 400, "X-Name: expected"),
    "compressed": ({"Content_Encoding": "gzip", **LENGTH}, WHOLE[::-1], 400, "expected JSON"),
    "long path": ({"method": "GET", "path": "/" + "a" * 70_000}, b"", 414, "address is too long"),
    "bad version": ({"path": "/ HTTP/x"}, b"", 400, "bad request"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests(server, uploads, case):
    parts, body, status, phrase = BAD_REQUESTS[case]
    got, headers, content = exchange(server, head(server, **parts) + body)
    assert got == status and phrase.lower() in json.loads(content)["error"].lower(), content
    assert headers["content-type"] == "application/json; charset=utf-8" and "access-control-allow-origin" not in headers
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
    assert not list(uploads.iterdir()) and (status == 405) == ("allow" in headers)
    still_well(server)


@pytest.mark.parametrize("message", [b"\x16\x03\x01\x02\0\x01\xfc\x03\r\n\r\n", b"GET\r\n\r\n", b"a b c d\r\n\r\n"])
def test_what_is_no_request(server, message):
    assert exchange(server, message)[0] == 400
    still_well(server)


def test_head_has_no_content(server):
    status, headers, content = exchange(server, head(server, "HEAD", "/"))
    assert status == 405 and headers["allow"] == "GET" and content == b""


def test_ranges_are_not_served(server):
    whole = exchange(server, head(server, "GET", "/about"))[2]
    for asked in ("bytes=0-1", "bytes=-5", "bytes=0-9,5-7,2-3", "bytes=7-3", f"bytes={'9' * 30}-", "lines=x"):
        status, headers, content = exchange(server, head(server, "GET", "/about", Range=asked))
        assert status == 200 and content == whole and "content-range" not in headers


def test_same_origin_is_served(server):
    for host in (f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"LOCALHOST:{server.port}"):
        message = head(server, Host=host, Origin=f"http://{host}", **LENGTH) + WHOLE
        assert exchange(server, message)[0] == 200


def test_hosts_of_a_server_that_listens_everywhere(pipeline):
    with running(pipeline, host="0.0.0.0") as server:
        for host, status in (
            (f"192.0.2.7:{server.port}", 200),
            (f"localhost:{server.port}", 200),
            ("192.0.2.7:1", 403),
            (f"evil.example:{server.port}", 403),
            ("192.0.2.7", 403),
            ("", 403),
        ):
            assert exchange(server, head(server, "GET", "/about", Host=host))[0] == status
        server.shutdown()


def test_refused_before_the_body_is_sent(server):
    """A client that sends all of a file that is too large before it reads gets the message nonetheless."""
    message = head(server, path="/image", X_Name="a.png", Content_Length=21_000_000)
    assert exchange(server, message + bytes(21_000_000))[0] == 413
    still_well(server)


@pytest.mark.slow
@pytest.mark.parametrize("part", [b"POST /ans", b"POST /answer HTTP/1.1\r\nHost: ", None, b"GET"])
def test_slow_clients(pipeline, uploads, part):
    with running(pipeline, deadline=0.6) as server:
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
            title = answer["panels"][2]["title"]
            if (status, answer["scores"], title) != (200, expected[position], f"mixture, alpha {alpha}"):
                wrong.append((position, alpha, status))

    threads = [threading.Thread(target=client, args=(position,)) for position in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_too_many_requests_at_once(pipeline):
    leave = threading.Event()

    class Waiting(LocalizationPipeline):
        def localize(self, image, waveform):
            assert leave.wait(60)
            return super().localize(image, waveform)

    with running(Waiting(pipeline.found)) as server:
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


def test_many_uploads_at_once(server, uploads):
    content, got = image_file("BMP", Image.new("RGB", (1000, 1000))), []
    threads = [
        threading.Thread(target=lambda: got.append(upload(server, "image", "a.bmp", content))) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 50 and {status for status, _ in got} <= {200, 503} and 200 in dict(got)
    assert all("id" in answer if status == 200 else "try again" in answer["error"] for status, answer in got)
    assert not list(uploads.iterdir())
    still_well(server)


def test_clients_that_are_gone(server, uploads, capfd):
    """Connections that are reset in the middle of a request or of its answer."""
    capfd.readouterr()
    messages = [
        b"",
        b"GET / HT",
        head(server, "GET", "/")[:-2],
        head(server, "GET", "/about"),
        head(server, path="/image", X_Name="a.png", Content_Length=5000) + b"some",
        head(server, path="/image", X_Name="a.png", Content_Length=30_000_000) + b"some",
        head(server, **LENGTH) + WHOLE,
    ]
    for wait in (0, 0.02):
        for message in messages:
            with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close: reset
                connection.sendall(message)
                time.sleep(wait)
    until = time.monotonic() + 20
    while list(uploads.iterdir()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not list(uploads.iterdir())
    still_well(server)
    assert capfd.readouterr() == ("", "")


def test_idle_connections_do_not_pile_up(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(40)]
    for connection in idle[-4:]:
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.0 503 ") and b"32 other connections: try again" in answer
    for connection in idle:
        connection.close()
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            return still_well(server)
        except (OSError, ValueError):  # the threads of the closed ones are still ending
            time.sleep(0.05)
    still_well(server)


def test_failure_is_told_and_survived(pipeline, capfd, uploads):
    class Failing(LocalizationPipeline):
        def localize(self, image, waveform):
            if not waveform.any():
                raise ZeroDivisionError("a secret of the server")
            return super().localize(image, waveform)

        def read_sound(self, path):
            raise KeyError(str(path))

    with running(Failing(pipeline.found)) as server:
        capfd.readouterr()
        for status, answer in (question(server, sound="silence"), upload(server, "sound", "a.wav", sound_file())):
            assert status == 500 and "failed" in answer["error"] and "secret" not in answer["error"]
            assert "/" not in answer["error"]
        err = capfd.readouterr().err
        assert "Traceback" in err and "ZeroDivisionError" in err and not list(uploads.iterdir())
        still_well(server)
        assert capfd.readouterr() == ("", "")  # nothing is logged of good requests
        server.shutdown()
