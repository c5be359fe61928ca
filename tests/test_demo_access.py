"""Who may use the server of `ssl-fast demo`: names, token, and what the command says of it."""

import json
import re

import pytest

import demo_clients
from demo_clients import GOOD, exchange, head, running, still_well
from ssl_fast.cli import demo
from ssl_fast.cli import main as cli
from ssl_fast.demo.access import Access
from ssl_fast.demo.server import Server

uploads, server = demo_clients.uploads, demo_clients.server  # fixtures
TOKEN = "s3cret._~-"
WHOLE = json.dumps(GOOD).encode()


def local(*allowed, port=7860, host="127.0.0.1", address="127.0.0.1") -> Access:
    return Access(host, address, port, allowed)


@pytest.mark.parametrize(
    "access, accepted, refused",
    [
        (
            local(),
            "127.0.0.1:7860 localhost:7860 LocalHost:7860",
            "localhost:9000 localhost [::1]:7860 evil.example:7860",
        ),
        (local(port=80), "127.0.0.1 localhost:80", "localhost:7860"),
        (local("localhost:9000"), "localhost:9000 127.0.0.1:7860", "127.0.0.1:9000 localhost:9001 localhost"),
        (
            local("Demo.example"),
            "demo.example DEMO.example:8080",
            "demo.example.evil:80 xdemo.example sub.demo.example",
        ),
        (local("demo.example:443"), "demo.example demo.example:443", "demo.example:8443"),
        (local("[::1]:9000", "a_b"), "[::1]:9000 a_b:1", "[::1]:7860 [::1] ::1 ::1:9000"),
        (local(host="::1", address="::1"), "[::1]:7860 localhost:7860", "[::2]:7860 127.0.0.1:7860"),
        (
            local(host="0.0.0.0", address="0.0.0.0"),
            "192.0.2.7:7860 [2001:db8::7]:7860",
            "192.0.2.7:80 evil.example:7860",
        ),
        (local(host="0.0.0.0", address="0.0.0.0", port=80), "192.0.2.7 192.0.2.7:80", "192.0.2.7:443 evil.example"),
    ],
)
def test_names(access, accepted, refused):
    assert [host for host in accepted.split() if not access.accepts_host(host)] == []
    malformed = [
        "",
        ":7860",
        "localhost:",
        "localhost:7860 ",
        "localhost:7860\r\n x",
        "a b:7860",
        "[]:7860",
        "*",
        "²:7860",
    ]
    assert [host for host in [*refused.split(), *malformed] if access.accepts_host(host)] == []


def test_origins():
    access = local("demo.example")
    for origin in ("http://127.0.0.1:7860", "https://demo.example", "http://demo.example:9000"):
        assert access.accepts_origin(origin, "127.0.0.1:7860")  # of a proxy that puts its own Host
    for origin in ("null", "", "http://evil.example", "http://127.0.0.1:1", "file://127.0.0.1:7860", "127.0.0.1:7860"):
        assert not access.accepts_origin(origin, "127.0.0.1:7860")


def test_page_through_a_proxy(pipeline):
    with running(pipeline, allowed_hosts=["demo.example", "localhost:9000"]) as server:
        for host, origin, status in (
            ("demo.example", "https://demo.example", 200),
            ("localhost:9000", "http://localhost:9000", 200),
            (f"127.0.0.1:{server.port}", "https://demo.example", 200),
            ("demo.example", "https://evil.example", 403),
            ("localhost:9001", "http://localhost:9001", 403),
        ):
            message = head(server, Host=host, Origin=origin, Content_Length=len(WHOLE)) + WHOLE
            assert exchange(server, message)[0] == status
        server.shutdown()


def test_token(pipeline, uploads):
    with running(pipeline, token=TOKEN) as server:
        assert server.link == f"{server.url}?token={TOKEN}"
        name, others = f"ssl-fast-{server.port}", "a=b; " * 3

        def status(method="GET", path="/", body=b"", **headers):
            length = {"Content_Length": len(body)} if body else {}
            return exchange(server, head(server, method, path, **length, **headers) + body)[0]

        for path in ("/", "/about", "/nothing", "/?token=", "/?token=s3cret", f"/?token={TOKEN}x", f"/?Token={TOKEN}"):
            assert status(path=path) == 403
        assert status(path="/?token=%C3%A4%FF") == status(Cookie=f"{name}=\xe4\xff") == status("PUT") == 403
        assert status("POST", "/image", b"x", X_Name="a.png") == status("POST", "/answer", WHOLE) == 403
        for cookie in (f"{name}=", f"{name}={TOKEN}x", f"other={TOKEN}", f"{name} {TOKEN}", TOKEN, f"x{name}={TOKEN}"):
            assert status(Cookie=cookie) == 403
        code, headers, _ = exchange(server, head(server, "GET", f"/?token={TOKEN}"))
        cookie, *attributes = headers["set-cookie"].split("; ")
        assert code == 200 and {"HttpOnly", "SameSite=Strict", "Path=/"} == set(attributes)
        assert status(Cookie=cookie) == status(path="/about", Cookie=f"{others}{cookie};x=y") == 200
        assert status("POST", "/answer", WHOLE, Cookie=cookie) == 200
        assert status("POST", "/answer", WHOLE, Cookie=cookie, Origin="http://evil.example") == 403
        assert status(path="/nothing", Cookie=cookie) == 404 and status(Host="evil.example", Cookie=cookie) == 403
        refusal = exchange(server, head(server, "GET", "/"))
        assert TOKEN.encode() not in refusal[2] and "set-cookie" not in refusal[1] and not list(uploads.iterdir())
        server.shutdown()


def test_no_token(server):
    code, headers, _ = exchange(server, head(server, "GET", f"/?token={TOKEN}"))  # an address of another start
    assert code == 200 and "set-cookie" not in headers and server.link == server.url
    still_well(server)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--host", ""], ["--host: expected a name or an address, got ''", "0.0.0.0"]),
        (["--host", "a..b"], ["--host a..b"]),
        (["--token", "a b"], ["--token: expected letters, digits and - . _ ~, got 'a b'"]),
        (
            ["--allow-host", "http://demo.example/"],
            ["--allow-host: expected NAME or NAME:PORT", "'http://demo.example/'"],
        ),
        (["--allow-host", "demo.example", "--allow-host", "*"], ["--allow-host", "'*'"]),
    ],
)
def test_command_refuses(options, words, capsys):
    assert cli.main(["demo", "--port", "0", *options]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words)


@pytest.mark.parametrize(
    "options, warning, address",
    [
        ([], "", r"http://127\.0\.0\.1:\d+/  "),
        (["--token"], "", r"http://127\.0\.0\.1:\d+/\?token=[\w-]{22}  "),
        (["--token", TOKEN], "", r"http://127\.0\.0\.1:\d+/\?token=s3cret\._~-  "),
        (
            ["--host", "0.0.0.0"],
            "all addresses of this machine: everyone .* no password .*--token.* no TLS",
            r"http://localhost:",
        ),
        (["--host", "0"], "all addresses of this machine: everyone", r"http://localhost:"),
        (
            ["--host", "0.0.0.0", "--token"],
            "all addresses of this machine without TLS: the token",
            r"http://.*\?token=",
        ),
    ],
)
def test_command_tells_who_can_reach_it(options, warning, address, monkeypatch, capsys):
    def ends(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", ends)
    monkeypatch.setattr(demo, "_ENDS", ())
    assert cli.main(["demo", "--port", "0", *options]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert re.match(address, lines[1]) and lines[-1] == "ssl-fast demo: ended"
    assert re.search(warning, err) and err.count("\n") == bool(warning)
