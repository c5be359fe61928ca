"""`ssl-fast data check | ceilings`: check the files of a set; print the ceilings of its annotations."""

import argparse
from pathlib import Path

from .options import SETS, add_layout, add_on_missing, add_quiet, refuse

HELP = "look after folders of images and sounds, and published sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    files = actions.add_parser("check", help="read every file of a folder and name each that is missing or broken")
    files.add_argument("folder", type=Path, metavar="DIR")
    files.add_argument("--split", "--list", metavar="NAME", help="only the ids of this list")
    _set(files, "a published test set, or vggsound, or flickr with --train (default: a folder of frames/ and audio/)")
    files.add_argument("--train", action="store_true", help="the ids of --split of the training set, not the test set")
    files.add_argument("--negatives", type=Path, metavar="FILE", help="an Extended list (video,audio,label)")
    add_layout(files)
    add_on_missing(files)
    add_quiet(files)
    bounds = actions.add_parser(
        "ceilings", help="the best that any prediction of 50 %% of the pixels can reach on a set"
    )
    bounds.add_argument("--list", dest="split", metavar="FILE", help="only the ids of this list")
    _set(bounds, SETS, required=True)


def _set(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    parser.add_argument("--set", dest="name", metavar="NAME", required=required, help=help)
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", required=required, help="as published; of XML the folder"
    )


def run(args: argparse.Namespace) -> int:
    return {"check": check, "ceilings": ceilings}[args.action](args)


def check(args: argparse.Namespace) -> int:
    from ..data import datasets, test_sets, training_sets
    from ..data.annotations import read
    from ..data.sample_lists import find_list

    progress = not args.quiet
    if args.name is None:
        refuse(args, "layout negatives exclude train", "expected with --set")
        found = datasets.check(args.folder, annotations=args.annotations, split=args.split, progress=progress)
    elif args.train or args.name in training_sets.LAYOUTS.keys() - test_sets.LAYOUTS.keys():
        refuse(args, "annotations negatives", f"expected with a test set, got the training set {args.name}")
        if not args.split:
            raise ValueError(f"--set {args.name}: expected its list of ids, --split, to train on")
        found = training_sets.check(
            args.folder, args.name, args.split, layout=args.layout, exclude=args.exclude, progress=progress
        )
    else:
        refuse(args, "exclude", f"expected with a training set, got the test set {args.name}")
        path = args.annotations or test_sets.annotation_file(args.folder, args.name)
        ids = None if args.split is None else find_list(args.folder, args.split)
        annotations = read(args.name, path, ids=ids, negatives=args.negatives)
        found = test_sets.check(args.folder, args.name, annotations, layout=args.layout, progress=progress)
    print(found)
    return 1 if found.broken or not found.ids or (found.missing and args.on_missing != "list") else 0


def ceilings(args: argparse.Namespace) -> int:
    from ..data.annotations import read, weight_map
    from ..evaluation.ceilings import ceilings

    found = read(args.name, args.annotations, ids=args.split)
    boxes = [sample.boxes for sample in found.samples if sample.boxes is not None]
    if len(boxes) < len(found.samples):
        raise ValueError(f"{args.annotations}: expected boxes, got masks")
    print(f"{args.name}: {len(found.samples)} samples, ground truth by {found.rule}; in percent")
    print(f"{'':14}{'IoU >= .5':>10}{'AUC':>8}")
    for name, row in ceilings(weight_map(one, found.rule) for one in boxes).items():
        print(f"{name:<14}{100 * row.success:>10.2f}{100 * row.auc:>8.2f}")
    for note in found.report():
        print(f"  note: {note}")
    return 0
