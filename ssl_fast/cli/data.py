"""`ssl-fast data prepare | check | ceilings`: make frames and sounds of downloads; check the files of a set; print the
ceilings of its annotations."""

import argparse
import os
from pathlib import Path

from .options import SETS, add_layout, add_on_missing, add_quiet, positive, refuse

HELP = "look after folders of images and sounds, and published sets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    downloads = actions.add_parser(
        "prepare",
        help="make the frames and sounds that train and evaluate read of downloaded videos, or of images and sounds; "
        "after an interruption the same command goes on",
    )
    _add_prepare(downloads)
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


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "source", type=Path, metavar="SOURCE", help="a folder of videos (mp4 and others), or of images and their sounds"
    )
    add("out", type=Path, metavar="OUT", help="the folder to write frames/, audio/ and the manifest to")
    add(
        "--set",
        dest="name",
        choices=("vggsound", "flickr"),
        help="ids are those of this set, by the names of files (default: their paths in SOURCE)",
    )
    add("--list", metavar="FILE", help="only the ids of this list, as vggsound.csv; tells which of them are not there")
    add(
        "--sample-rate",
        type=positive(int),
        default=16000,
        metavar="HZ",
        help="of the sounds that are written (default: 16000, which the published programs take for granted)",
    )
    add("--min-seconds", type=positive(float), metavar="S", help="leave out what has less sound")
    add("--workers", type=positive(int), metavar="N", help="processes (default: one a core)")
    add("--verify", action="store_true", help="compare the hashes of all files that are there, not only their sizes")
    add(
        "--on-missing",
        choices=("error", "list"),
        help="where sources are left out, or listed ids are not there: exit code 1, or 0 if there is some sample "
        "(default: error; all others are prepared, whichever it is)",
    )
    add_quiet(parser)


def _set(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    parser.add_argument("--set", dest="name", metavar="NAME", required=required, help=help)
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", required=required, help="as published; of XML the folder"
    )


def run(args: argparse.Namespace) -> int:
    return {"prepare": prepare, "check": check, "ceilings": ceilings}[args.action](args)


def prepare(args: argparse.Namespace) -> int:
    from ..data.prepare import prepare

    found = prepare(
        args.source,
        args.out,
        set_name=args.name,
        listed=args.list,
        sample_rate=args.sample_rate,
        min_seconds=args.min_seconds,
        workers=args.workers or len(os.sched_getaffinity(0)),
        verify=args.verify,
        progress=not args.quiet,
    )
    print(found)
    return 1 if not found.ids or ((found.left_out or found.missing) and args.on_missing != "list") else 0


def check(args: argparse.Namespace) -> int:
    from ..data import datasets, test_sets, training_sets

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
        annotations = test_sets.annotations_of(args.folder, args.name, args.annotations, args.split, args.negatives)
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
