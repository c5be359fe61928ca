"""`ssl-fast evaluate`: evaluate a checkpoint, a function or a folder of maps on samples with ground truth."""

import argparse
import importlib
import sys
import typing
from pathlib import Path

from .options import (
    WEIGHTS,
    add_on_missing,
    add_quiet,
    add_split,
    add_test_scenes,
    add_threads,
    add_weights_layout,
    add_workers,
    positive,
    refuse,
    unique,
)

if typing.TYPE_CHECKING:
    from ..data.test_sets import PublishedSet
    from ..models.checkpoints import Checkpoint

HELP = "evaluate a checkpoint on a folder or on the embedded scenes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="annotated samples (frames/, audio/, annotations.json), or with --set a published set",
    )
    what.add_argument("--scenes", action="store_true", help="the embedded scenes")
    add_split(parser, "--list")
    add("--set", dest="set_name", metavar="NAME", help="vgg-ss, vgg-ss-xml, flickr, is3 or s4, in --data")
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="of --set, as published; of XML the folder (default: in --data)",
    )
    add(
        "--layout",
        metavar="NAME",
        help="of the files of --set: slavc, fnac, ssl-align, ssl-tie, is3, avsbench (default: the one that is there)",
    )
    add_on_missing(parser)
    add("--silent", type=Path, metavar="FILE", help="an Extended list (video,audio,label) of --set")
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--weights", type=Path, metavar="FILE", help=WEIGHTS)
    model.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="a Python function (images uint8 (B, 3, H, W), spectrograms (B, 1, F, T)) -> maps (B, h, w)",
    )
    model.add_argument(
        "--maps",
        type=Path,
        metavar="DIR",
        help="maps computed elsewhere: ID.npy, and KIND/ID.npy under negative sounds",
    )
    add_weights_layout(parser)
    add("--front-end", metavar="NAME", help="of --model: how sounds become spectrograms (default: ssl_align)")
    add("--image-size", type=positive(int), metavar="N", help="of --model and --maps: pixels a side (default: 224)")
    add("--protocol", metavar="NAME,NAME", default="", help="published protocols to run on the same maps")
    add(
        "--object-weights",
        type=Path,
        metavar="FILE",
        help="torchvision's ResNet-18 of ImageNet: the object prior that --protocol mixes with the maps",
    )
    add(
        "--retrieval",
        metavar="NAME",
        help="similarity: projected (s_A), mean, max, pooled (default: projected "
        "where the model has projections, else max)",
    )
    add("--negatives", metavar="KIND,KIND", default="silence,noise,offscreen", help="default: all three; '' for none")
    add(
        "--seeds",
        metavar="N,N",
        help="of noise and off-screen sounds (default: 0), or published: the ten of "
        "vssl_eval. Protocols with a universal threshold take all draws, tables the first",
    )
    add(
        "--draws",
        type=Path,
        metavar="DIR",
        help="folder of files that say which negatives were drawn: read, or written",
    )
    add(
        "--train-list",
        type=Path,
        metavar="FILE",
        help="ids that the model was trained on: the results say how many of them are tested",
    )
    add("--out", type=Path, required=True, metavar="DIR")
    add("--val", type=Path, metavar="DIR", help="samples whose negatives choose the universal threshold")
    add_test_scenes(parser)
    add_workers(parser)
    add_threads(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from . import results, samples

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a folder, got a file")
    if (args.out / "metrics.json").exists():
        raise ValueError(f"--out {args.out}: holds results already; choose another folder")
    if args.set_name is None:
        refuse(args, "annotations layout silent", "expected with --set")
    if args.weights is None:
        refuse(args, "retrieval", "expected with --weights; of a function or of maps there are no features")
    if not args.negatives:
        refuse(args, "draws seeds", "expected with --negatives")
    if args.scenes:
        refuse(args, "val split set_name on_missing", "expected with --data, the scenes have splits of their own")
    else:
        refuse(args, "test_scenes", "expected with --scenes")
    model, how, found = model_of(args)
    if args.scenes:
        if found is not None and how[0] != "scenes":
            raise ValueError(f"--scenes: expected weights that hear by the front end scenes, {found.path} by {how[0]}")
        tests, validation = samples.scene_tests(samples.scene_settings(None, args.test_scenes), args.quiet)
    else:
        if args.set_name is None:
            test = samples.folder(args.data, args.split, *how, annotated=True, on_missing=args.on_missing)
        else:
            test = published_set(args, *how)
        validation = None if args.val is None else samples.folder(args.val, None, *how, on_missing=args.on_missing)
        for one in filter(None, (test, validation)):
            samples.preload(one, args.quiet)
        tests = {args.set_name or args.data.resolve().name: test}
    options = options_of(args, tests)
    about, history = {"model": args.model or str(args.maps)}, []
    if found is not None:
        about = results.about_weights(found.path, found.recipe["method"], found.state.get("seed"), found.recipe)
        about["layout"], history = found.layout, found.state.get("history", [])
        if found.unused:
            options["notes"].append(f"{found.path}: keys that no map depends on: {', '.join(found.unused)}")
        trained = {"train_seconds": "seconds", "steps": "step", "planned_steps": "planned_steps"}
        about |= {name: found.state[key] for name, key in trained.items() if key in found.state}
        about["shortened"] = bool(found.state.get("ended")) and about["steps"] < about["planned_steps"]
    args.out.mkdir(parents=True, exist_ok=True)
    return results.write_results(
        model, tests, validation, args.out, about, history, quiet=args.quiet, workers=args.workers, **options
    )


def model_of(args: argparse.Namespace) -> "tuple[typing.Any, tuple[str, int], Checkpoint | None]":
    """The model as `evaluation.evaluate` takes it, its (front end, image size), and the checkpoint (None without)."""
    from ..models import checkpoints

    if args.weights is not None:
        if args.front_end is not None or args.image_size is not None:
            raise ValueError("--front-end, --image-size: expected with --model or --maps; a checkpoint has its own")
        found = checkpoints.load(args.weights, args.weights_layout)
        return found.localizer, (found.recipe["front_end"], found.image_size), found
    if args.weights_layout is not None:
        raise ValueError("--weights-layout: expected with --weights")
    how = args.front_end or "ssl_align", args.image_size or 224
    if args.maps is not None:
        if not args.maps.is_dir():
            raise ValueError(
                f"--maps {args.maps}: expected a folder, got {'a file' if args.maps.exists() else 'nothing'}"
            )
        return args.maps, how, None
    return _function(args.model), how, None


def _function(name: str):
    module, _, attribute = name.partition(":")
    sys.path.insert(0, "")  # modules beside the user
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--model {name}: expected MODULE:NAME of a function, got: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"--model {name}: expected a function, got {type(found).__name__}")
    return found


def published_set(args: argparse.Namespace, front_end: str, image_size: int) -> "PublishedSet":
    """The published test set that --data and --set name. ValueError for a model of another image size."""
    from ..data.annotations import SIZE, read
    from ..data.sample_lists import find_list
    from ..data.test_sets import PublishedSet, annotation_file

    if image_size != SIZE:
        raise ValueError(
            f"--set: published sets have images of {SIZE} pixels, but the model was trained with {image_size}"
        )
    path = args.annotations or annotation_file(args.data, args.set_name)
    ids = None if args.split is None else find_list(args.data, args.split)
    annotations = read(args.set_name, path, ids=ids, negatives=args.silent)
    how = {"front_end": front_end, "layout": args.layout, "on_missing": args.on_missing or "error"}
    found = PublishedSet(args.data, args.set_name, annotations, **how)
    for note in found.notes:
        print(f"{args.data}: {note}")
    return found


def options_of(args: argparse.Namespace, tests: dict) -> dict:
    """Keyword arguments of `results.write_results` that are this command's own."""
    from ..data.categories import broad_categories
    from ..data.negatives import SEEDS, negatives
    from ..data.sample_lists import normal_id, read_ids
    from ..evaluation.protocols import protocol_of
    from ..models.object_prior import ObjectPrior

    broad = None
    has_classes = args.set_name not in (None, "flickr")
    if has_classes and "offscreen" in args.negatives:
        broad = broad_categories(args.set_name.removesuffix("-xml"))
    given = "0" if args.seeds is None else args.seeds
    if given != "published" and not all(seed.isdecimal() for seed in given.split(",")):
        raise ValueError(f"--seeds: expected integers >= 0 with commas between, or published, got {given!r}")
    if args.object_weights is not None and not args.protocol:
        raise ValueError("--object-weights: expected with --protocol, which says how to mix")
    prior = None if args.object_weights is None else ObjectPrior(args.object_weights)
    seeds, notes = SEEDS if given == "published" else unique("--seeds", list(map(int, given.split(",")))), []
    if args.draws is not None:
        args.draws.mkdir(parents=True, exist_ok=True)
    if args.train_list is not None:
        seen = set(map(normal_id, read_ids(args.train_list)))
        notes = [
            f"set {name}: {len(seen & set(one.ids))} of {len(one)} samples are in {args.train_list}"
            for name, one in tests.items()
        ]

    def draw(sample_set, name: str, kind: str, seed: int):
        file = None if args.draws is None else args.draws / f"{name}-{kind}-{seed}.json"
        return negatives(sample_set, kind, seed, broad=broad, path=file)

    return {
        "published": [protocol_of(name) for name in unique("--protocol", args.protocol.split(",")) if name],
        "draw": draw,
        "notes": notes,
        "negatives": [kind for kind in unique("--negatives", args.negatives.split(",")) if kind],
        "seeds": seeds,
        "prior": prior,
        "similarity": args.retrieval or "auto",
    }
