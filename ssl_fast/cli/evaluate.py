"""`ssl-fast evaluate`: evaluate a checkpoint, a function or a folder of maps on samples with ground truth."""

import argparse
import typing
from collections.abc import Mapping
from pathlib import Path

from .options import (
    FIT,
    FITS,
    FRONT_ENDS,
    SETS,
    WEIGHTS,
    add_force,
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
    from ..data.datasets import FileSet, SampleSet
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
    add(
        "--over-time",
        action="store_true",
        help="with --scenes and --weights: also scenes whose sounds change, at every .1 s",
    )
    add_split(parser, "--list")
    add(
        "--set",
        dest="set_name",
        metavar="NAME",
        help=f"{SETS}, in --data; of AVSBench's csv --split is test (default), val or train",
    )
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="of --set, as published; of XML the folder (default: in --data)",
    )
    add(
        "--layout",
        metavar="NAME",
        help="of the files of --set: slavc, fnac, ssl-align, ssl-tie, is3, avsbench, avgn, no-prior, denseav (default: "
        "the one that is there)",
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
    add(
        "--front-end",
        metavar="NAME",
        help=f"how sounds become spectrograms: {FRONT_ENDS} (default: the checkpoint's, of --model ssl_align)",
    )
    add("--image-size", type=positive(int), metavar="N", help="of --model and --maps: pixels a side (default: 224)")
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
        "--alpha",
        type=float,
        metavar="X",
        help="weight of the model's maps where --protocol mixes them with the object prior, 0 to 1 (default: the "
        "protocol's)",
    )
    add(
        "--retrieval",
        metavar="NAME",
        help="similarity: projected (s_A), mean, max, pooled (default: projected "
        "where the model has projections, else max)",
    )
    add(
        "--resolution",
        choices=("square", "original"),
        default="square",
        help="of the figures: of the squares that the model sees, or of these and beside them at each frame's own size "
        "(default: square)",
    )
    add(
        "--negatives",
        metavar="KIND,KIND",
        default="silence,noise,offscreen",
        help="silence, noise, offscreen (default: all three; '' for none)",
    )
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
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
    add_force(parser, "the results in --out")
    threshold = parser.add_mutually_exclusive_group()
    threshold.add_argument(
        "--val",
        type=Path,
        metavar="DIR",
        help="samples whose negatives choose the universal threshold (default: those that are tested, which the names "
        "of all figures that depend on it then say)",
    )
    threshold.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="the model's universal threshold, in the units of its maps (cosines)",
    )
    threshold.add_argument(
        "--threshold-from",
        type=Path,
        metavar="RESULT",
        help="metrics.json, or its folder, of an evaluation of the same model on other samples, whose universal "
        "thresholds are used",
    )
    add("--val-set", metavar="NAME", help="published set in --val, as of --set (default: a folder of your own)")
    add("--val-split", metavar="NAME", help="list of ids in --val (default: all)")
    add("--val-annotations", type=Path, metavar="FILE", help="of --val-set, as published (default: in --val)")
    add("--val-layout", metavar="NAME", help="of the files of --val-set, as --layout")
    add_test_scenes(parser)
    add_workers(parser)
    add_threads(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> int:
    from ..files import claimed
    from . import results

    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a folder, got a file")
    with claimed("--out", [args.out / name for name in results.FILES], folder=args.out, force=args.force):
        return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    import torch

    from ..evaluation import thresholds
    from ..evaluation.evaluate import check_protocols
    from . import results, samples

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.set_name is None:
        refuse(args, "annotations layout silent", "expected with --set")
    if args.val_set is None:
        refuse(args, "val_annotations val_layout", "expected with --val-set")
    if args.val is None:
        refuse(args, "val_set val_split", "expected with --val")
    if args.weights is None:
        refuse(args, "retrieval over_time", "expected with --weights; of a function or of maps there are no features")
    if not args.negatives:
        refuse(args, "draws seeds val", "expected with --negatives")
    if args.scenes:
        names = "val threshold threshold_from split set_name on_missing"
        refuse(args, names, "expected with --data, the scenes have splits and validation of their own")
        refuse(args, "image_size fit resampler", "expected with --data, the scenes are squares of one size")
        if args.resolution == "original":
            raise ValueError("--resolution original: expected with --data, the scenes have no size but the model's")
        if args.weights is None:
            refuse(args, "front_end", "expected with --data or --weights, --model and --maps get the scenes' own")
    else:
        refuse(args, "test_scenes over_time", "expected with --scenes")
    model, how, found = model_of(args)
    settings = samples.scene_settings(None, args.test_scenes, None if found is None else how["size"])
    if args.scenes:
        how |= {"size": settings.size} if found is not None else {"front_end": "scenes", "size": settings.size}
    about, history, notes = {"model": args.model or str(args.maps), "reading": how}, [], []
    if found is not None:
        about = results.about_weights(found.path, found.recipe["method"], found.state.get("seed"), found.recipe)
        about |= {"layout": found.layout, "reading": how}
        history = found.state.get("history", [])
        if found.unused:
            notes.append(f"{found.path}: keys that no map depends on: {', '.join(found.unused)}")
        trained = {"train_seconds": "seconds", "steps": "step", "planned_steps": "planned_steps"}
        about |= {name: found.state[key] for name, key in trained.items() if key in found.state}
        about["shortened"] = bool(found.state.get("ended")) and about["steps"] < about["planned_steps"]
    threshold = None if args.threshold is None else thresholds.given(args.threshold)
    if args.threshold_from is not None:
        threshold = thresholds.read(args.threshold_from)
        notes += filter(None, [thresholds.check_model(threshold.origin, about)])
    sequence = None
    if args.scenes:
        if found is not None and how["front_end"] != "scenes":
            heard = how["front_end"]
            raise ValueError(f"--scenes: expected weights that hear by the front end scenes, {found.path} by {heard}")
        tests, validation, sequence = samples.scene_tests(settings, args.quiet, args.over_time)
        files = []
    else:
        if args.set_name is None:
            test = samples.folder(args.data, args.split, annotated=True, on_missing=args.on_missing, **how)
        else:
            test = published_set(args, **how)
        validation = validation_set(args, **how)
        files = [one for one in (test, validation) if one is not None]
        tests = {args.set_name or args.data.resolve().name: test}
        notes += _lost_in_crop(tests)
    options = options_of(args, tests, validation)
    options["notes"] += notes
    check_protocols(options["published"], tests, options["negatives"])
    for one in files:  # last of all, as it takes minutes
        samples.preload(one, args.quiet)
    if validation is not None and args.val is not None:
        validation = {args.val_set or args.val.resolve().name: validation}
    return results.write_results(
        model,
        tests,
        validation,
        args.out,
        about,
        history,
        quiet=args.quiet,
        workers=args.workers,
        threshold=threshold,
        sequence=sequence,
        **options,
    )


def _lost_in_crop(tests: "Mapping[str, FileSet]") -> list[str]:
    """Notes about samples whose ground truth lies outside of what the model sees."""
    from ..data.sample_lists import some

    notes = []
    for name, one in tests.items():
        whole = range(len(one) if one.fit == "crop" else 0)
        gone = [i for i in whole if one.squashed_ground_truth(i).any() and not one.ground_truth(i).any()]
        if gone:
            ids = some([one.ids[i] for i in gone])
            notes.append(f"set {name}: {len(gone)} of {len(one)} samples have no ground truth in the crop: {ids}")
    return notes


def model_of(args: argparse.Namespace) -> "tuple[typing.Any, dict, Checkpoint | None]":
    """The model as `evaluation.evaluate` takes it, how sample sets are read for it (front_end, size, fit, resampler),
    and the checkpoint (None without)."""
    from ..models import checkpoints
    from ..models.backbones import imported

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
    return imported("--model", args.model), how, None


def published_set(args: argparse.Namespace, size: int, **reading) -> "PublishedSet":
    """The published test set that --data and --set name. ValueError for a model of another image size."""
    files = args.data, args.annotations, args.split, args.silent
    how = reading | {"layout": args.layout, "on_missing": args.on_missing or "error"}
    return _published("--set", args.set_name, *files, size, **how)


def validation_set(args: argparse.Namespace, size: int, **reading) -> "FileSet | None":
    """The samples of --val, None without."""
    from . import samples

    if args.val is None:
        return None
    if args.val_set is None:
        return samples.folder(args.val, args.val_split, on_missing=args.on_missing, size=size, **reading)
    files = args.val, args.val_annotations, args.val_split, None
    how = reading | {"layout": args.val_layout, "on_missing": args.on_missing or "error"}
    return _published("--val-set", args.val_set, *files, size, **how)


def _published(
    option: str,
    name: str,
    root: Path,
    annotations: Path | None,
    ids: str | None,
    silent: Path | None,
    size: int,
    **reading,
) -> "PublishedSet":
    from ..data.annotations import SIZE
    from ..data.test_sets import PublishedSet, annotations_of

    if size != SIZE:
        raise ValueError(
            f"{option}: published sets have images of {SIZE} pixels, but the model was trained with {size}"
        )
    published = PublishedSet(root, name, annotations_of(root, name, annotations, ids, silent), **reading)
    for note in published.notes:
        print(f"{root}: {note}")
    return published


def _broad(set_name: str | None, negatives: str) -> dict[str, str] | None:
    """Broad categories that off-screen sounds of a published set are drawn by."""
    from ..data.categories import BROAD_OF, broad_categories

    if set_name not in BROAD_OF or "offscreen" not in negatives:
        return None
    return broad_categories(BROAD_OF[set_name])


def options_of(args: argparse.Namespace, tests: dict, validation: "SampleSet | None") -> dict:
    """Keyword arguments of `results.write_results` that are this command's own."""
    from dataclasses import replace

    from ..data.negatives import SEEDS, negatives
    from ..data.sample_lists import normal_id, read_ids
    from ..evaluation.protocols import protocol_of
    from ..models.object_prior import ObjectPrior

    broad, broad_of_validation = (_broad(name, args.negatives) for name in (args.set_name, args.val_set))
    given = "0" if args.seeds is None else args.seeds
    if given != "published" and not all(seed.isdecimal() for seed in given.split(",")):
        raise ValueError(f"--seeds: expected integers >= 0 with commas between, or published, got {given!r}")
    if args.object_weights is not None and not args.protocol:
        raise ValueError("--object-weights: expected with --protocol, which says how to mix")
    if args.alpha is not None and args.object_weights is None:
        raise ValueError("--alpha: expected with --object-weights, the prior that it is the weight against")
    if args.alpha is not None and not 0 <= args.alpha <= 1:
        raise ValueError(f"--alpha: expected a weight from 0 to 1, got {args.alpha}")
    published = [protocol_of(name) for name in unique("--protocol", args.protocol.split(",")) if name]
    if args.alpha is not None:
        published = [replace(protocol, alpha=args.alpha) for protocol in published]
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
        own = broad
        if sample_set is validation:
            own, name = broad_of_validation, name if name == "validation" else f"validation-{name}"
        file = None if args.draws is None else args.draws / f"{name}-{kind}-{seed}.json"
        return negatives(sample_set, kind, seed, broad=own, path=file)

    return {
        "published": published,
        "draw": draw,
        "notes": notes,
        "negatives": [kind for kind in unique("--negatives", args.negatives.split(",")) if kind],
        "seeds": seeds,
        "prior": prior,
        "similarity": args.retrieval or "auto",
        "original_size": args.resolution == "original",
    }
