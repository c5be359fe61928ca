"""`ssl-fast demo`: serve a page for the browser that localizes sounds in images."""

import argparse
import secrets
import signal
import sys
import typing

from .localize import add_model, load_pipeline

if typing.TYPE_CHECKING:
    from ..demo.access import Access

HELP = "open a page for the browser that localizes sounds in images"
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="name or address to listen at (default: 127.0.0.1, for browsers on this machine only; 0.0.0.0: all "
        "addresses of this machine, for everyone who reaches one, unencrypted, and without a password but --token)",
    )
    add("--port", type=int, default=7860, metavar="N", help="default: 7860; 0: any free one")
    add(
        "--token",
        nargs="?",
        const="",
        metavar="TOKEN",
        help="only for browsers that open the page by an address with this token, which is printed (without TOKEN: a "
        "random one; a given one can be seen in the list of processes)",
    )
    add(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="also for browsers that reach the page by this name, through a tunnel or a proxy (repeatable; without "
        "PORT: by any port)",
    )


def run(args: argparse.Namespace) -> int:
    from ..demo.server import Server

    token = secrets.token_urlsafe(16) if args.token == "" else args.token
    with Server(load_pipeline(args), args.host, args.port, allowed_hosts=args.allow_host, token=token) as server:
        try:
            for number in _ENDS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # which nohup and shells set
                    signal.signal(number, _end)
            if server.access.exposed:
                print(f"ssl-fast demo: {_exposure(server.access)}", file=sys.stderr)
            print(f"{server.link}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nssl-fast demo: ended", flush=True)
    return 0


def _end(*_) -> None:
    """Handler of signals: ends the server as Ctrl-C does, so that it removes its temporary files. Python then waits for
    what is being computed; a second signal ends it at once."""
    for number in _ENDS:
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)
    raise KeyboardInterrupt


def _exposure(access: "Access") -> str:
    """What it means to listen beyond this machine."""
    where = "all addresses of this machine" if access.everywhere else access.url
    if access.token is None:
        return (
            f"listens at {where}: everyone who reaches it can use it, as there is no password (--token asks for one) "
            "and no TLS: uploads and answers travel unencrypted"
        )
    return f"listens at {where} without TLS: the token, uploads and answers travel unencrypted"
