"""Samples that commands train and evaluate on: folders, published sets, the embedded scenes."""

import argparse
import os
import typing

if typing.TYPE_CHECKING:
    from ..data.datasets import FileSet, FolderSet
    from ..data.scenes.dataset import Scenes, Settings
    from ..data.training_sets import TrainingSet

from .options import refuse

SCENE_TESTS = ("single", "duo", "trio")
PRELOAD_BYTES = 2 << 30  # folders that take less when decoded are decoded once, not in every epoch


def training_set(args: argparse.Namespace, **reading) -> "FolderSet | TrainingSet":
    """The samples to train on, of --data and the options of `options.add_training_set`, read as a recipe or checkpoint
    has it (`reading`). Prints how many were dropped or left out, and why. ValueError for options that do not go
    together, and for files that do not fit."""
    from ..data.datasets import FolderSet
    from ..data.training_sets import TrainingSet

    how = reading | {"cache": args.cache, "on_missing": args.on_missing or "error"}
    if args.set_name is None:
        refuse(args, "layout exclude", "expected with --set")
        found = FolderSet(args.data, split=args.split, **how)
    elif args.split is None:
        raise ValueError(f"--set {args.set_name}: expected its list of ids, --split")
    else:
        found = TrainingSet(args.data, args.set_name, args.split, layout=args.layout, exclude=args.exclude, **how)
    for note in found.notes:
        print(f"{args.data}: {note}")
    return found


def folder(
    path: str | os.PathLike, split: str | None, *, annotated: bool = False, on_missing: str | None = None, **reading
) -> "FolderSet":
    """The samples of a folder, read as a recipe or checkpoint has it; `annotated`: ValueError without ground truth.
    on_missing: that of the options."""
    from ..data.datasets import FolderSet

    found = FolderSet(path, split=split, on_missing=on_missing or "error", **reading)
    if annotated and not found.has_ground_truth:
        raise ValueError(f"{path}: expected boxes or masks of all samples in annotations.json, to evaluate against")
    for note in found.notes:
        print(f"{path}: {note}")
    return found


def preload(found: "FileSet", quiet: bool) -> None:
    """Decode the samples once, if they fit into memory."""
    if found.preloaded_bytes <= PRELOAD_BYTES:
        found.preload(progress=not quiet)


def scene_settings(train: int | None, test: int | None, size: int | None = None) -> "Settings":
    """Settings of the embedded scenes with so many images in the training split and in each of the others, of so many
    pixels a side; None: the usual number."""
    from ..data.scenes.dataset import Settings

    sizes = {"size": size, "train": train, **dict.fromkeys(("val", *SCENE_TESTS, "sequence"), test)}
    return Settings(**{name: value for name, value in sizes.items() if value is not None})


def scene_tests(
    settings: "Settings", quiet: bool, over_time: bool = False
) -> "tuple[dict[str, Scenes], Scenes, Scenes | None]":
    """{split: scenes} to test on, the scenes for validation, and `over_time` those whose sounds change."""
    from ..data.scenes import dataset as scenes

    tests = {split: scenes.load(split, settings, progress=not quiet) for split in SCENE_TESTS}
    sequence = scenes.load("sequence", settings, progress=not quiet) if over_time else None
    return tests, scenes.load("val", settings, progress=not quiet), sequence
