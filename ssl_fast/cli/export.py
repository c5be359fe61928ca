"""`ssl-fast export`: write a localizer as a program of torch.export."""

import argparse

from .convert import add_files

HELP = "write a localizer that runs without this package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_files(parser, ".pt2")


def run(args: argparse.Namespace) -> int:
    from ..files import claimed
    from ..inference.export import export
    from ..models import checkpoints

    with claimed("TO", [args.out], inputs=[checkpoints.file_of(args.weights)], force=args.force):
        export(checkpoints.load(args.weights, args.weights_layout), args.out, args.force)
    print(args.out)
    return 0
