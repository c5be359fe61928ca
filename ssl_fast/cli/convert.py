"""`ssl-fast convert`: write what a checkpoint needs to localize, without optimizer and history."""

import argparse
from pathlib import Path

from .options import WEIGHTS, add_force, add_weights_layout

HELP = "write a checkpoint, ours or a published one, in the project's format"


def add_files(parser: argparse.ArgumentParser, formats: str) -> None:
    """The file that is read, and the one that is written."""
    parser.add_argument("weights", type=Path, metavar="FROM", help=WEIGHTS)
    parser.add_argument("out", type=Path, metavar="TO", help=f"new file: {formats}")
    add_weights_layout(parser)
    add_force(parser, "TO")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, ".pt or .safetensors")
    parser.add_argument("--half", action="store_true", help="weights as float16, half the size")


def run(args: argparse.Namespace) -> int:
    from ..files import claimed
    from ..models import checkpoints

    with claimed("TO", [args.out], inputs=[checkpoints.file_of(args.weights)], force=args.force):
        found = checkpoints.load(args.weights, args.weights_layout)
        checkpoints.write(found, args.out, args.half, args.force)
    left_out = f"; without keys that no map depends on: {', '.join(found.unused)}" if found.unused else ""
    print(f"{found.path}: {found.recipe['method']}, layout {found.layout}{left_out}")
    return 0
