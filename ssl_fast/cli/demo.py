"""`ssl-fast demo`: serve a page for the browser that localizes sounds in images."""

import argparse

from .localize import add_model, load_pipeline

HELP = "open a page for the browser that localizes sounds in images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_model(parser)
    add(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="name or address to listen at (default: 127.0.0.1, for "
        "browsers on this machine only; 0.0.0.0 lets in everyone who reaches it, without a password)",
    )
    add("--port", type=int, default=7860, metavar="N", help="default: 7860; 0: any free one")


def run(args: argparse.Namespace) -> int:
    from ..demo.server import Server

    with Server(load_pipeline(args), args.host, args.port) as server:
        print(f"{server.url}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
