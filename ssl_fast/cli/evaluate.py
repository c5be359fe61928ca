"""`ssl-fast evaluate`: evaluate a checkpoint, a function or a folder of maps on samples with ground truth."""

import argparse
import importlib
import sys
import typing
from pathlib import Path

from .options import (
    FIT,
    FITS,
    FRONT_ENDS,
    WEIGHTS,
    add_quiet,
    add_split,
    add_test_scenes,
    add_threads,
    add_weights_layout,
    add_workers,
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
    add("--layout", metavar="NAME", help="of the files of --set: slavc, fnac, ssl-align, is3, avsbench")
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
    add(
        "--front-end",
        metavar="NAME",
        help=f"how sounds become spectrograms: {FRONT_ENDS} (default: the checkpoint's, of --model ssl_align)",
    )
    add("--image-size", type=int, metavar="N", help="of --model and --maps: pixels a side (default: 224)")
    add("--fit", choices=FITS, help=f"{FIT} (default: the checkpoint's, of --model and --maps squash)")
    add(
        "--resampler",
        metavar="NAME",
        help="of --fit: pillow, torch (both antialiased) or torch_aliased, as SSL-Align and vssl_eval resize "
        "(default: the checkpoint's, of --model pillow)",
    )
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
        default="auto",
        help="similarity: projected (s_A), mean, max, pooled (default: projected "
        "where the model has projections, else max)",
    )
    add("--negatives", metavar="KIND,KIND", default="silence,noise,offscreen", help="default: all three; '' for none")
    add(
        "--seeds",
        default="0",
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

    from ..data.annotations import some
    from . import results, samples

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a folder, got a file")
    if (args.out / "metrics.json").exists():
        raise ValueError(f"--out {args.out}: holds results already; choose another folder")
    model, how, found = model_of(args)
    if args.scenes:
        if args.val is not None or args.split is not None or args.set_name is not None:
            raise ValueError("--val, --split, --set: expected with --data, the scenes have splits of their own")
        if found is not None and how["front_end"] != "scenes":
            heard = how["front_end"]
            raise ValueError(f"--scenes: expected weights that hear by the front end scenes, {found.path} by {heard}")
        tests, validation = samples.scene_tests(samples.scene_settings(None, args.test_scenes), args.quiet)
    else:
        if args.set_name is None:
            test = samples.folder(args.data, args.split, annotated=True, **how)
        else:
            test = published_set(args, **how)
        validation = None if args.val is None else samples.folder(args.val, None, **how)
        for one in filter(None, (test, validation)):
            samples.preload(one, args.quiet)
        tests = {args.set_name or args.data.resolve().name: test}
    options = options_of(args, tests)
    for name, one in tests.items() if how["fit"] == "crop" and not args.scenes else ():
        gone = [i for i in range(len(one)) if one.squashed_ground_truth(i).any() and not one.ground_truth(i).any()]
        if gone:
            ids = some([one.ids[i] for i in gone])
            options["notes"].append(
                f"set {name}: {len(gone)} of {len(one)} samples have no ground truth in the crop: {ids}"
            )
    about, history = {"model": args.model or str(args.maps), "reading": how}, []
    if found is not None:
        about = results.about_weights(found.path, found.recipe["method"], found.state.get("seed"), found.recipe)
        about |= {"layout": found.layout, "reading": how}
        history = found.state.get("history", [])
        if found.unused:
            options["notes"].append(f"{found.path}: keys that no map depends on: {', '.join(found.unused)}")
        trained = {"train_seconds": "seconds", "steps": "step", "planned_steps": "planned_steps"}
        about |= {name: found.state[key] for name, key in trained.items() if key in found.state}
        about["shortened"] = bool(found.state.get("ended")) and about["steps"] < about["planned_steps"]
    args.out.mkdir(parents=True, exist_ok=True)
    return results.write_results(
        model, tests, validation, args.out, about, history, quiet=args.quiet, workers=args.workers, **options
    )


def model_of(args: argparse.Namespace) -> "tuple[typing.Any, dict, Checkpoint | None]":
    """The model as `evaluation.evaluate` takes it, how sample sets are read for it (front_end, size, fit, resampler),
    and the checkpoint (None without)."""
    from ..models import checkpoints

    given = {name: getattr(args, name) for name in ("front_end", "fit", "resampler")}
    given = {name: value for name, value in given.items() if value is not None}
    if args.weights is not None:
        if args.image_size is not None:
            raise ValueError("--image-size: expected with --model or --maps; a checkpoint has its own")
        found = checkpoints.load(args.weights, args.weights_layout)
        how = found.reading
        if args.fit not in (None, how["fit"]):
            how["resampler"] = "pillow"
        return found.localizer, how | given, found
    if args.weights_layout is not None:
        raise ValueError("--weights-layout: expected with --weights")
    how = {"front_end": "ssl_align", "size": args.image_size or 224, "fit": "squash", "resampler": "pillow"} | given
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


def published_set(args: argparse.Namespace, size: int, **reading) -> "PublishedSet":
    """The published test set that --data and --set name. ValueError for a model of another image size."""
    from ..data.annotations import SIZE, read
    from ..data.test_sets import ANNOTATIONS, PublishedSet

    if size != SIZE:
        raise ValueError(f"--set: published sets have images of {SIZE} pixels, but the model was trained with {size}")
    path = args.annotations or args.data / ANNOTATIONS.get(args.set_name, "")
    annotations = read(args.set_name, path, ids=args.split, negatives=args.silent)
    return PublishedSet(args.data, args.set_name, annotations, layout=args.layout, **reading)


def options_of(args: argparse.Namespace, tests: dict) -> dict:
    """Keyword arguments of `results.write_results` that are this command's own."""
    from ..data.categories import broad_categories
    from ..data.negatives import SEEDS, negatives
    from ..data.sample_lists import read_ids
    from ..evaluation.protocols import protocol_of
    from ..models.object_prior import ObjectPrior

    broad = None
    has_classes = args.set_name not in (None, "flickr")
    if has_classes and "offscreen" in args.negatives:
        broad = broad_categories(args.set_name.removesuffix("-xml"))
    if args.seeds != "published" and not all(seed.isdecimal() for seed in args.seeds.split(",")):
        raise ValueError(f"--seeds: expected integers >= 0 with commas between, or published, got {args.seeds!r}")
    if args.object_weights is not None and not args.protocol:
        raise ValueError("--object-weights: expected with --protocol, which says how to mix")
    prior = None if args.object_weights is None else ObjectPrior(args.object_weights)
    seeds, notes = SEEDS if args.seeds == "published" else [int(seed) for seed in args.seeds.split(",")], []
    if args.draws is not None:
        args.draws.mkdir(parents=True, exist_ok=True)
    if args.train_list is not None:
        seen = set(read_ids(args.train_list))
        notes = [
            f"set {name}: {len(seen & set(one.ids))} of {len(one)} samples are in {args.train_list}"
            for name, one in tests.items()
        ]

    def draw(sample_set, name: str, kind: str, seed: int):
        file = None if args.draws is None else args.draws / f"{name}-{kind}-{seed}.json"
        return negatives(sample_set, kind, seed, broad=broad, path=file)

    return {
        "published": [protocol_of(name) for name in args.protocol.split(",") if name],
        "draw": draw,
        "notes": notes,
        "negatives": [kind for kind in args.negatives.split(",") if kind],
        "seeds": seeds,
        "prior": prior,
        "similarity": args.retrieval,
    }
