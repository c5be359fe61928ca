"""Who may use the server of `ssl-fast demo`: the names by which browsers may reach it, and its token."""

import hmac
import ipaddress
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from urllib.parse import parse_qs

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{1,5}))?")  # NAME or NAME:PORT; IPv6 in brackets


class Access:
    """Checks of requests to a server that was asked to listen at `host`, and does so at `address`, `port`.

    allowed: NAME or NAME:PORT by which browsers reach it, too, through a tunnel or a proxy; NAME stands for all its
    ports. token: letters, digits and - . _ ~, which each client has to know; None: none. ValueError for others.
    set_cookie: the header for a client that knows the token.
    """

    def __init__(self, host: str, address: str, port: int, allowed: Sequence[str] = (), token: str | None = None):
        if token is not None and not re.fullmatch("[A-Za-z0-9._~-]+", token):
            raise ValueError(f"--token: expected letters, digits and - . _ ~, got {token!r}")
        for name in allowed:
            if not _HOST.fullmatch(name.lower()):
                raise ValueError(f"--allow-host: expected NAME or NAME:PORT, IPv6 in brackets, got {name!r}")
        self.allowed = {name.lower() for name in allowed}
        names = [f"[{name}]" if ":" in name else name for name in (host.lower(), address, "localhost")]
        self.names, self.port, self.token = set(names), str(port), token
        self._cookie = f"ssl-fast-{port}"  # browsers send cookies to all ports of a name
        self.set_cookie = f"{self._cookie}={token}; Path=/; HttpOnly; SameSite=Strict" if token else ""
        self.everywhere = ipaddress.ip_address(address).is_unspecified
        self.exposed = not ipaddress.ip_address(address).is_loopback
        self.url = f"http://{'localhost' if self.everywhere else names[0]}:{port}/"

    def accepts_host(self, host: str) -> bool:
        """True for a Host header that names this server: of names only its own, localhost and those that are allowed,
        as others may be made to lead here by whoever owns them (DNS rebinding); any address where the server listens at
        all of them."""
        name, ports = _split(host)
        own = name in self.names or (self.everywhere and _is_address(name))
        return (own and self.port in ports) or self._allows(host)

    def accepts_origin(self, origin: str, host: str) -> bool:
        """True for the Origin header of a page that was reached by this Host, or by an allowed name: some proxies put
        their own Host in the place of the browser's. https: of a proxy."""
        scheme, _, name = origin.partition("://")
        return scheme in ("http", "https") and (name.lower() == host.lower() or self._allows(name))

    def _allows(self, host: str) -> bool:
        name, ports = _split(host)
        return not self.allowed.isdisjoint({name, *(f"{name}:{port}" for port in ports)})

    def accepts_token(self, query: str, cookies: Iterable[str]) -> bool:
        """True where the query of an address or one of the Cookie headers has the token, or there is none."""
        if self.token is None:
            return True
        pairs = [pair.strip().partition("=") for header in cookies for pair in header.split(";")]
        given = parse_qs(query).get("token", []) + [value for name, _, value in pairs if name == self._cookie]
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given)


def _split(host: str) -> tuple[str, set[str]]:
    """The name in a Host header and the ports that it may mean, as browsers leave out 80 and 443; no name where it is
    malformed."""
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return "", set()
    return match[1], {match[2]} if match[2] else {"80", "443"}


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name.strip("[]")))
    return False
