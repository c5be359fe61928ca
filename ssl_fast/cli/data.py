"""`ssl-fast data check | ceilings`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    one = actions.add_parser("check", help="read every file of a folder and name each that is missing or broken")
    one.add_argument("folder", type=Path, metavar="DIR")
    one.add_argument("--split", "--list", metavar="NAME", help="only the ids of this list")
    _set(one, "a published test set, or vggsound, or flickr with --train (default: a folder of frames/ and audio/)")
    one.add_argument("--train", action="store_true", help="the ids of --split of the training set, not the test set")
    one.add_argument("--negatives", type=Path, metavar="FILE", help="an Extended list (video,audio,label)")
    add_layout(one)
    one.add_argument("--quiet", action="store_true", help="no progress bars")
    one.set_defaults(run=check)
    two = actions.add_parser("ceilings", help="the best that any prediction of 50 %% of the pixels can reach on a set")
    two.add_argument("--list", dest="split", metavar="FILE", help="only the ids of this list")
    _set(two, "vgg-ss, vgg-ss-xml, flickr, is3 or s4", required=True)
    two.set_defaults(run=ceilings)


def add_training_set(parser: argparse.ArgumentParser) -> None:
    """What `training_set` takes, beside --data and --split."""
    parser.add_argument(
        "--set",
        dest="set_name",
        metavar="NAME",
        help="vggsound or flickr, in --data (default: a folder of frames/ and audio/)",
    )
    add_layout(parser)
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep decoded frames and sounds there, to be read instead of the files",
    )


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Where the files of a set lie, and what of it is left out."""
    parser.add_argument(
        "--layout", metavar="NAME", help="of the set's files: slavc, fnac, ssl-align, ssl-tie, mp4, is3, avsbench"
    )
    parser.add_argument("--exclude", metavar="NAME", help="list of ids to leave out, as those of the test set")


def _set(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    parser.add_argument("--set", dest="name", metavar="NAME", required=required, help=help)
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", required=required, help="as published; of XML the folder"
    )


def check(args: argparse.Namespace) -> int:
    from ..data import datasets, test_sets, training_sets
    from ..data.annotations import read

    progress = not args.quiet
    if args.name is None:
        if args.layout or args.negatives or args.exclude or args.train:
            raise ValueError("--layout, --negatives, --exclude, --train: expected with --set")
        found = datasets.check(args.folder, annotations=args.annotations, split=args.split, progress=progress)
    elif args.train or args.name in training_sets.LAYOUTS.keys() - test_sets.LAYOUTS.keys():
        if args.annotations or args.negatives or not args.split:
            raise ValueError(f"--set {args.name}: expected --split, and no --annotations and --negatives, to train on")
        found = training_sets.check(
            args.folder, args.name, args.split, layout=args.layout, exclude=args.exclude, progress=progress
        )
    else:
        if args.exclude:
            raise ValueError(f"--exclude: expected with a training set, got the test set {args.name}")
        path = args.annotations or args.folder / test_sets.ANNOTATIONS.get(args.name, "")
        annotations = read(args.name, path, ids=args.split, negatives=args.negatives)
        found = test_sets.check(args.folder, args.name, annotations, layout=args.layout, progress=progress)
    print(found)
    return 0 if found.ok else 1


def training_set(args: argparse.Namespace, front_end: str, size: int):
    """The samples to train on, of --data; what rules dropped or left out is told."""
    from ..data.datasets import FolderSet
    from ..data.training_sets import TrainingSet

    how = {"front_end": front_end, "size": size, "cache": args.cache}
    if args.set_name is None:
        if args.layout or args.exclude:
            raise ValueError("--layout, --exclude: expected with --set")
        found = FolderSet(args.data, split=args.split, **how)
    elif args.split is None:
        raise ValueError(f"--set {args.set_name}: expected its list of ids, --split")
    else:
        found = TrainingSet(args.data, args.set_name, args.split, layout=args.layout, exclude=args.exclude, **how)
    for note in found.notes:
        print(f"{args.data}: {note}")
    return found


def ceilings(args: argparse.Namespace) -> int:
    from ..data.annotations import read, weight_map
    from ..evaluation.ceilings import ceilings

    found = read(args.name, args.annotations, ids=args.split)
    if any(sample.boxes is None for sample in found.samples):
        raise ValueError(f"{args.annotations}: expected boxes, got masks")
    print(f"{args.name}: {len(found.samples)} samples, ground truth by {found.rule}; in percent")
    print(f"{'':14}{'IoU >= .5':>10}{'AUC':>8}")
    for name, row in ceilings(weight_map(sample.boxes, found.rule) for sample in found.samples).items():
        print(f"{name:<14}{100 * row.success:>10.2f}{100 * row.auc:>8.2f}")
    for note in found.report():
        print(f"  note: {note}")
    return 0
