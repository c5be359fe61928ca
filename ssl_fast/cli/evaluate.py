"""`ssl-fast evaluate`: which model, on what; and what every evaluation leaves behind."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from ..stages import Stages, listed

# torch, numpy and what needs them are imported inside the functions: `ssl-fast --help` does without. So this is no
# module of the package evaluation, which imports them.

WEIGHTS = {"type": Path, "metavar": "FILE", "help": "a checkpoint, ours or a published program's, or a run's folder"}
WEIGHTS_LAYOUT = {
    "metavar": "NAME",
    "help": "of --weights, where its keys do not tell: ezvsl, fnac, margin, slavc, "
    "slavc_momentum, lvs, sslalign, ssltie",
}


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
        "--split",
        "--list",
        metavar="NAME",
        help="list of ids in --data: NAME.txt or NAME.csv there, or a path (default: all)",
    )
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
    model.add_argument("--weights", **WEIGHTS)
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
    add("--weights-layout", **WEIGHTS_LAYOUT)
    add("--front-end", metavar="NAME", help="of --model: how sounds become spectrograms (default: ssl_align)")
    add("--image-size", type=int, metavar="N", help="of --model and --maps: pixels a side (default: 224)")
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
        "--train-list", type=Path, metavar="FILE", help="ids that the model was trained on: how many are tested is told"
    )


def model_of(args: argparse.Namespace) -> tuple:
    """What `evaluate` takes, its recipe's (front end, image size), and the checkpoint (None without one)."""
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


def published_set(args: argparse.Namespace, front_end: str, image_size: int):
    from ..data.annotations import SIZE, read
    from ..data.test_sets import ANNOTATIONS, PublishedSet

    if image_size != SIZE:
        raise ValueError(
            f"--set: published sets have images of {SIZE} pixels, but the model was trained with {image_size}"
        )
    path = args.annotations or args.data / ANNOTATIONS.get(args.set_name, "")
    annotations = read(args.set_name, path, ids=args.split, negatives=args.silent)
    return PublishedSet(args.data, args.set_name, annotations, front_end=front_end, layout=args.layout)


def options_of(args: argparse.Namespace, tests: dict) -> dict:
    """Keyword arguments of `write` that `ssl-fast evaluate` decides."""
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


def write(
    model,
    tests: dict,
    validation,
    out: Path,
    about: dict,
    history: list,
    *,
    quiet: bool,
    notes: Sequence[str] = (),
    stages: Stages | None = None,
    **options,
) -> int:
    """Evaluates, and writes metrics.json, per_sample.csv and report.html; options as in `evaluate`.

    stages: of the command so far, which those here are added to.
    """
    from ..evaluation import ceilings, evaluate, overlays, report
    from ..evaluation.results import shortened
    from ..reproducibility import fingerprint

    for note in notes:
        print(note)
    stages = stages or Stages()
    with stages("evaluation"):
        results = evaluate(model, tests, validation=validation, progress=not quiet, **options)
        results["notes"] += notes
        results.update(about, data={name: fingerprint(one) for name, one in tests.items()})
        if options.get("published"):
            results["ceilings"] = {
                name: {
                    rule: row._asdict()
                    for rule, row in ceilings.ceilings(one.ground_truth(i) for i in range(len(one))).items()
                }
                for name, one in tests.items()
            }
    results["seconds"] = dict(stages.seconds)
    results.write_json(out / "metrics.json")
    results.write_csv(out / "per_sample.csv")
    main = results["interactive_on"]
    drawn = {"draw": options["draw"]} if "draw" in options else {}
    with stages("report"):
        shown = overlays.collect(model, tests[main], results, main, **drawn)
        report.write_report(out / "report.html", results, overlays=shown, history=history, config=about)
    print(summary(results))
    print(f"time: {listed(stages.seconds)}")
    if (note := shortened(results)) is not None:
        print(f"*** {note} ***")
    print(f"report: {(out / 'report.html').resolve()}")
    return 0


def summary(results) -> str:
    """The figures that matter most, as text: all sets, the interactive one with its baselines, retrieval, false
    alarms."""
    columns = {
        "ciou_adaptive": "cIoU",
        "auc_adaptive": "AUC",
        "ciou_top50": "cIoU top50",
        "iiou_adaptive": "IIoU",
        "interactive_pointing": "interactive pointing",
    }
    main, name = results["interactive_on"], results.get("method", "model")
    order = sorted(results["sets"], key=lambda one: one == main)  # the interactive set last, its baselines below it
    rows = {f"{one}: {name}": results["sets"][one]["model"] for one in order}
    rows |= {f"{main}: {baseline}": row for baseline, row in results["sets"][main]["baselines"].items()}
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"  {title:>6}" for title in columns.values())]
    for title, row in rows.items():
        cells = (f"{row[key]:>{max(6, len(head))}.3f}" for key, head in columns.items())
        lines.append(f"{title:<{width}}  " + "  ".join(cells))
    retrieval = results["retrieval"]
    hit = "class" if "class" in retrieval else "instance"
    for way, title in (("a2i", "sound to image"), ("i2a", "image to sound")) if retrieval else ():
        rates = ", ".join(f"R@{k[1:]} {rate:.3f}" for k, rate in retrieval[hit][way].items())
        lines.append(f"retrieval on {retrieval['set']}, by {hit}: {title} {rates}")
    alarms = {key.split("_")[1]: rate for key, rate in results["sets"][main]["model"].items() if key.startswith("pia_")}
    if alarms:
        rates = ", ".join(f"{kind} {rate:.3f}" for kind, rate in alarms.items())
        lines.append(f"false alarms on {main}, share of the image: {rates}")
    return "\n".join(lines)
