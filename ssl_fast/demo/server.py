"""HTTP server of `ssl-fast demo`: a page in the browser that shows where in an image a sound comes from.

    from ssl_fast.demo.server import Server
    with Server(pipeline, port=0) as server:        # a localize.LocalizationPipeline; any free port
        print(server.url)
        server.serve_forever()

GET / is the page, GET /about what it offers. With a token, /?token=TOKEN answers with a cookie that all other requests
need. POST /image and /sound take the bytes of a file, its percent-encoded name in X-Name, and give an id. POST /answer
takes {"image": id, "sound": id, "alpha": 0 to 1, "threshold": a cosine, or null for the model's own} and gives panels,
scores and the sound. All but the page is JSON; errors: {"error": message}.

The page is for whoever sits at this machine, or knows the token. Requests by pages of other sites are refused (see
access.py), and no path is made of what a client sends. An uploaded file is a temporary one until it is decoded (see
uploads.py); one thread decodes and computes (see session.py).
"""

import atexit
import io
import json
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

from ..inference.localize import LocalizationPipeline
from ..terminal import printable
from .access import Access
from .session import SUFFIXES, DemoSession, RequestError
from .uploads import UploadFolders

ROUTES = {"/": "GET", "/about": "GET", "/image": "POST", "/sound": "POST", "/answer": "POST"}
UPLOAD_BYTES, ANSWER_BYTES = 20_000_000, 10_000  # of a file, of the JSON that /answer takes; at most
PENDING, CONNECTIONS = 4, 32  # requests that are computed or wait for it, and connections; at once
THREADS = 128  # of connections, with those that are only told that there are too many
DEADLINE = 30.0  # seconds in which a request has to arrive, and then its answer to be taken
LINGER = 2.0  # seconds in which the rest of a refused request is thrown away: clients may read only after it
NAME = 80  # characters of a file's name in messages
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Connection": "close",
}
POLICY = (
    "default-src 'none'; img-src data:; media-src data:; connect-src 'self'; style-src 'nonce-{0}'; "
    "script-src 'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def clean_name(text: str) -> str:
    """A file's name for messages, of a percent-encoded one from a client: without folders and what does not print."""
    name = re.split(r"[/\\]", unquote(text))[-1]
    name = "".join(c for c in name if not unicodedata.category(c).startswith(("C", "Zl", "Zp"))).strip()
    return name if len(name) <= NAME else f"{name[: NAME - 21]}…{name[-20:]}"


class Server(ThreadingHTTPServer):
    """Serves the page at `url` until shutdown(); `link` is its address with the token. deadline: seconds in which a
    request has to arrive. allowed_hosts, token: see access.Access.

    ValueError for a host or port that cannot be had, and for hosts and tokens of another form.
    """

    daemon_threads, request_queue_size = True, CONNECTIONS

    def __init__(
        self,
        pipeline: LocalizationPipeline,
        host: str = "127.0.0.1",
        port: int = 0,
        deadline: float = DEADLINE,
        allowed_hosts: Sequence[str] = (),
        token: str | None = None,
    ):
        if not host:  # which would listen everywhere
            raise ValueError("--host: expected a name or an address, got ''; 0.0.0.0 stands for all of this machine")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: of a name that is none
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"--host {host} --port {port}: {reason} (--port 0 takes any free one)") from error
        address, self.port = str(self.server_address[0]), self.server_address[1]
        try:
            self.access = Access(host, address, self.port, allowed_hosts, token)
        except ValueError:
            super().server_close()
            raise
        self.url = self.access.url
        self.link = self.url if token is None else f"{self.url}?token={token}"
        self.deadline = deadline
        self.threads, self.connections = threading.Semaphore(THREADS), threading.Semaphore(CONNECTIONS)
        self.pending = threading.Semaphore(PENDING)
        self.uploads = UploadFolders()
        self.worker = ThreadPoolExecutor(1)  # a single thread: bounds memory, and torch's threads are made once
        self.session = DemoSession(pipeline)
        self.about = json.dumps(self.session.about() | {"upload": UPLOAD_BYTES}).encode()
        self.page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's looks up the host's name, which may take long

    def server_close(self) -> None:
        super().server_close()
        if hasattr(self, "worker"):  # not where the port could not be had
            self.worker.shutdown(wait=False, cancel_futures=True)
            self.uploads.remove()
            # a reference until no other thread runs: one that freed the model's tensors while Python ends would abort
            # the program
            atexit.register(id, self.session)

    def process_request(self, request: socket.socket, client_address: tuple) -> None:
        if not self.threads.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self.threads.release()
            raise

    def process_request_thread(self, request: socket.socket, client_address: tuple) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.threads.release()

    def compute(self, task: Callable[..., dict], *args) -> dict:
        """task(*args), in the worker thread. RequestError where too many wait for it already."""
        if not self.pending.acquire(blocking=False):
            raise RequestError(503, f"the server works on {PENDING} other requests: try again")
        try:
            return self.worker.submit(task, *args).result()
        except CancelledError as error:
            raise RequestError(503, "the server was ended") from error
        finally:
            self.pending.release()


class DeadlineReader(io.RawIOBase):
    """Reader of a socket until a deadline, `seconds` from now on; then it raises TimeoutError."""

    def __init__(self, connection: socket.socket, seconds: float):
        self.connection, self.end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        try:
            return self.connection.recv_into(buffer)
        except TimeoutError:
            raise
        except OSError as error:  # the network's, such as "no route to host"
            raise ConnectionError from error


class Handler(BaseHTTPRequestHandler):
    """One request; then the connection is closed."""

    server: Server

    server_version, sys_version = "ssl-fast", ""
    requestline = command = path = ""  # of what is refused before these are known
    unread = True  # some of the request may still be under way
    cookie = ""  # which the answer sets

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(DeadlineReader(self.connection, self.server.deadline))

    def handle(self) -> None:
        if not self.server.connections.acquire(blocking=False):
            return self.send_error(503, f"the server has {CONNECTIONS} other connections: try again")
        try:
            self._handle()
        finally:
            self.server.connections.release()

    def _handle(self) -> None:
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if len(self.raw_requestline) > 65536:
                raise RequestError(414, "the address is too long")
            if self.raw_requestline and self.parse_request():
                self._reply()
        except RequestError as refusal:
            self.send_error(refusal.status, str(refusal))
        except TimeoutError:
            self.send_error(408, f"the request did not arrive within {self.server.deadline:g} s")
        except ConnectionError:  # nobody is left to be answered
            pass
        except Exception:
            print(printable(traceback.format_exc(), keep="\n"), file=sys.stderr)
            self.send_error(500, "the server failed over this request; why is told where it was started")

    def finish(self) -> None:
        with suppress(OSError):
            if self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                rest = DeadlineReader(self.connection, LINGER)
                while rest.read(65536):
                    pass
        super().finish()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Send {"error": message}. BaseHTTPRequestHandler calls it, too: then the message quotes the client."""
        self._send(code, json.dumps({"error": (message or self.responses[code][0])[:500]}).encode())

    def log_message(self, *_) -> None:
        pass

    def _send(self, status: int, content: bytes, kind: str = "application/json", nonce: str = "none") -> None:
        headers = HEADERS | {
            "Content-Type": f"{kind}; charset=utf-8",
            "Content-Length": str(len(content)),
            "Content-Security-Policy": POLICY.format(nonce),
        }
        if status == 405:
            headers["Allow"] = ROUTES[self.path]
        if self.cookie:
            headers["Set-Cookie"] = self.cookie
        self.request_version = "HTTP/1.0"  # one without a version would get no headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.connection.settimeout(self.server.deadline)
        with suppress(OSError):  # the client is gone, or takes nothing
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def _reply(self) -> None:
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        self.unread = self.command != "GET"
        access = self.server.access
        if len(hosts) != 1 or not access.accepts_host(hosts[0]):
            got = ", ".join(hosts)[:80] or "none"
            raise RequestError(403, f"Host: expected that of {access.url} or one of --allow-host, got {got}")
        self.path, _, query = self.path.partition("?")
        if not access.accepts_token(query, self.headers.get_all("Cookie", [])):
            raise RequestError(403, "token: expected the address that `ssl-fast demo` printed, with its token")
        self.cookie = access.set_cookie
        if self.path not in ROUTES:
            raise RequestError(404, "there is nothing at this address")
        if self.command != ROUTES[self.path]:
            raise RequestError(405, f"expected {ROUTES[self.path]}, got {self.command}")
        if self.command == "POST" and origin is not None and not access.accepts_origin(origin, hosts[0]):
            raise RequestError(403, "Origin: requests by pages of other sites are refused")
        if self.path == "/":
            nonce = secrets.token_urlsafe(16)
            self._send(200, self.server.page.replace("NONCE", nonce).encode(), "text/html", nonce)
        elif self.path == "/about":
            self._send(200, self.server.about)
        else:
            answer = self._answer() if self.path == "/answer" else self._upload(self.path[1:])
            self._send(200, json.dumps(answer, allow_nan=False).encode())

    def _answer(self) -> dict:
        body = b"".join(self._body(ANSWER_BYTES))
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, "expected JSON, got something else") from error
        return self.server.compute(self.server.session.answer, request)

    def _upload(self, kind: str) -> dict:
        """Pass the file in the request to the session; gives what its `upload` gives."""
        name = clean_name(self.headers.get("X-Name", ""))
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES[kind]:
            raise RequestError(400, f"{name or 'X-Name'}: expected a file name of {kind} ({', '.join(SUFFIXES[kind])})")
        with self.server.uploads.folder() as folder:
            path = folder / f"upload{suffix}"
            with open(path, "wb") as file:
                file.writelines(self._body(UPLOAD_BYTES))
            return self.server.compute(self.server.session.upload, kind, path, name)

    def _body(self, limit: int) -> Iterator[bytes]:
        """The body of the request, in parts. RequestError for a length that is missing, too large or not true."""
        lengths = self.headers.get_all("Content-Length", [])
        if not lengths or "Transfer-Encoding" in self.headers:
            raise RequestError(411, "Content-Length: missing")
        if len(lengths) > 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
            raise RequestError(400, "Content-Length: expected one number")
        length = left = int(lengths[0])
        if length > limit:
            raise RequestError(413, f"expected at most {limit} bytes, got {length}")
        if not length:
            raise RequestError(400, "expected content, got 0 bytes")
        while left:
            part = self.rfile.read(min(left, 65536))
            if not part:
                raise RequestError(400, f"expected {length} bytes, got {length - left}")
            left -= len(part)
            yield part
        self.unread = False
