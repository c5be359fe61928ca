"""`ssl-fast train`: train a localizer on a folder of images and sounds, or on a published training set."""

import argparse
import typing
from pathlib import Path

from .options import (
    add_device,
    add_quiet,
    add_split,
    add_threads,
    add_training_set,
    add_workers,
    check_device,
    natural,
    positive,
)

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet
    from ..data.neighbors import Neighbors
    from ..training.loop import Run
    from ..training.recipes import Recipe

HELP = "train a localizer on a folder of images and sounds (frames/, audio/)"


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of every command that trains.

    Options that decide the result have the default None: they come from the run that is resumed, or from
    `run_folder.DEFAULTS`.
    """
    add = parser.add_argument
    add(
        "--method",
        metavar="NAME",
        help="ssl_align (default), margin_nce, ez_vsl, lvs, slavc, fnac, ssl_tie, hard_positives, sspl",
    )
    add("--seed", type=natural, metavar="N", help="of weights, order, augmentation (default: 0)")
    add("--epochs", type=positive(int), metavar="N", help="default: the recipe's")
    add(
        "--loss",
        action="append",
        metavar="NAME=VALUE,...",
        help="options of the loss: margin=-0.2,tau=0.1 (default: the recipe's; all names: docs/losses.md, or give "
        "a wrong one)",
    )
    add(
        "--nce-epochs",
        type=natural,
        metavar="N",
        help="of fnac: first epochs without its L1 terms (default: the recipe's)",
    )
    add("--batch-size", type=positive(int), metavar="N", help="default: the recipe's")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        help="of the nets (default: auto, bfloat16 where the hardware has it)",
    )
    add(
        "--accumulation",
        type=positive(int),
        metavar="N",
        help="parts of a batch that go through the nets one by one, each with its own negatives (default: 1)",
    )
    add("--compile", action="store_const", const=True, help="the nets go through torch.compile")
    add(
        "--minutes",
        type=positive(float),
        metavar="X",
        help="budget of training time: a run that does not fit is shortened (default: none, the full length)",
    )
    add("--resume", action="store_true", help="go on with the run in --out")
    add_threads(parser, "1 for the narrow nets, else as torch chooses")
    add_device(parser)
    add(
        "--checkpoint-every",
        type=positive(float),
        default=20.0,
        metavar="S",
        help="seconds between checkpoints (default: 20)",
    )
    add_quiet(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="training samples")
    add_split(parser)
    add_training_set(parser)
    add(
        "--val",
        type=Path,
        metavar="DIR",
        help="samples, none of them trained on, that choose the "
        "best epoch: by success rate where they are annotated, else by loss",
    )
    add("--val-split", metavar="NAME", help="list of ids in --val")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--recipe", metavar="NAME", help="quickstart (default: narrow nets) or published (ResNet-18)")
    add("--front-end", metavar="NAME", help="how sounds become spectrograms (default: the recipe's)")
    add("--image-size", type=positive(int), metavar="N", help="pixels a side (default: the recipe's)")
    add(
        "--views",
        metavar="NAME,NAME",
        help="of ssl_align, which compares all pairs of them, and two of hard_positives and sspl: original, augmented, "
        "conceptual (default: the recipe's)",
    )
    add(
        "--init",
        type=Path,
        metavar="FILE",
        help="ImageNet ResNet-18 of torchvision that the image net starts from (default: from scratch)",
    )
    for modality, what in (("visual", "images"), ("audio", "sounds")):
        add(
            f"--neighbors-{modality}",
            type=Path,
            metavar="FILE",
            help=f"nearest neighbours of {what}, for conceptual views (published: ssl_align, hard_positives)",
        )
    add_workers(parser)
    add(
        "--gather",
        action="store_const",
        const=True,
        help="of several processes (torchrun): negatives "
        "are the samples of the whole batch (default: of the process's own share)",
    )
    add(
        "--sync-batch-norm",
        action="store_const",
        const=True,
        help="of several processes: batch norm over the whole batch (CUDA only)",
    )
    add_run_arguments(parser)


def set_threads(args: argparse.Namespace, recipe: "Recipe") -> None:
    """Check the device and set torch's threads for a training run.

    The narrow nets get one thread: their convolutions are so small that a second thread gains little, and where cores
    are shared with other programs it costs a lot, because threads that wait for each other spin. One thread also gives
    the same bits wherever there are several runs at once.
    """
    import torch

    check_device(args.device)
    if args.threads is None:
        args.threads = 1 if recipe.model.backbone == "small" else torch.get_num_threads()
    torch.set_num_threads(args.threads)


def loss_fields(args: argparse.Namespace) -> dict:
    """Fields of a recipe from the options of its loss."""
    from ..training import loss_options

    return {"loss": loss_options.read(args.loss) if args.loss else None, "nce_epochs": args.nce_epochs}


def run_training(args: argparse.Namespace, training_set: "SampleSet", recipe: "Recipe", **options) -> "Run":
    """Train with the options of a command, and print steps, loss and time; `options` as in `training.train`."""
    from ..stages import listed
    from ..training.loop import train

    run = train(
        training_set,
        recipe,
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        minutes=args.minutes,
        workers=getattr(args, "workers", 0),
        device=args.device,
        checkpoint_every=args.checkpoint_every,
        progress=not args.quiet,
        compile=bool(args.compile),
        **options,
    )
    if run.unused:
        print(f"{args.init}: not used are {', '.join(run.unused)}")
    short = f", shortened from {run.planned_steps} by --minutes {args.minutes:g}" if run.shortened else ""
    print(
        f"trained {recipe.method} for {run.steps} steps{short} in {run.seconds:.0f} s; "
        f"loss {run.final_loss:.3f}, of a collapsed net {run.chance:.3f}"
    )
    if run.stages:
        print(f"time of its steps: {listed(run.stages)}")
    return run


def run(args: argparse.Namespace) -> int:
    from .. import distributed
    from ..models import build, checkpoints, storage
    from ..stages import Stages
    from ..training import recipes, validation
    from ..training.loop import check_processes
    from . import results, run_folder, samples

    args = run_folder.open_run(args, args.out)
    recipe = recipes.recipe(
        args.method,
        args.recipe,
        epochs=args.epochs,
        batch_size=args.batch_size,
        precision=args.precision,
        accumulation=args.accumulation,
        front_end=args.front_end,
        image_size=args.image_size,
        views=None if args.views is None else tuple(args.views.split(",")),
        **loss_fields(args),
    )
    if args.val_split is not None and args.val is None:
        raise ValueError("--val-split: expected with --val")
    how = recipe.front_end, recipe.image_size
    training_set = samples.training_set(args, *how)
    recipe.steps(len(training_set))
    held_out = None
    if args.val is not None:
        held_out = samples.folder(args.val, args.val_split, *how, on_missing=args.on_missing)
        validation.check_validation(training_set, held_out, recipe)
    several = {"gather": bool(args.gather), "sync_batch_norm": bool(args.sync_batch_norm)}
    rank, processes = distributed.launched()
    check_processes(recipe, processes, args.device, **several)
    neighbors = _neighbors(args, training_set, recipe)
    if recipe.name == "published" and args.init is None:
        start = recipes.PUBLISHED_START[recipe.method]
        print(f"image net: from scratch, without --init; the published runs of {recipe.method} started from {start}")
    if args.init is not None:  # here only to see whether it fits
        storage.load_torchvision(build(recipe.model).visual_net, args.init)
    set_threads(args, recipe)
    stages = Stages()
    with distributed.torchrun(args.device):
        if rank == 0:
            run_folder.write_run(args)
        with stages("samples"):
            for found in (training_set, held_out):
                if found is not None and not (found is training_set and recipe.policy):  # policies need the files
                    samples.preload(found, args.quiet)
        with stages("training"):
            run = run_training(
                args,
                training_set,
                recipe,
                validation=held_out,
                board=True,
                init=args.init,
                neighbors=neighbors,
                **several,
            )
    if rank > 0:
        return 0
    best, notes = validation.best_record(run.history), list(run.notes)
    if best is not None:
        print(f"best epoch: {(best['step'] + 1) * recipe.epochs // run.planned_steps}, {args.out / storage.BEST}")
        notes.append("the epoch was chosen on the samples that it is evaluated on")
    file = checkpoints.file_of(args.out)
    if held_out is None or not held_out.has_ground_truth:
        print(f"checkpoint: {file}")
        return 0
    about = results.about_weights(file, recipe.method, args.seed, recipe.to_dict()) | results.about_run(run)
    return results.write_results(
        checkpoints.load(args.out).localizer,
        {Path(str(args.val)).resolve().name: held_out},
        None,
        args.out,
        about,
        run.history,
        quiet=args.quiet,
        workers=args.workers,
        notes=notes,
        stages=stages,
    )


def _neighbors(
    args: argparse.Namespace, training_set: "SampleSet", recipe: "Recipe"
) -> "tuple[Neighbors, Neighbors] | None":
    """Nearest neighbours of images and of sounds, None without. ValueError where they do not fit the set or the views
    of the recipe."""
    from ..data.neighbors import Neighbors
    from ..training.views import Views

    visual, audio = args.neighbors_visual, args.neighbors_audio
    if (visual is None) != (audio is None):
        raise ValueError("--neighbors-visual, --neighbors-audio: expected both or none of them")
    if visual is None and "conceptual" in recipe.views:
        raise ValueError(
            f"--neighbors-visual, --neighbors-audio: expected with the views {', '.join(recipe.views)}, got none; "
            "`ssl-fast mine` writes them, and --views original,augmented does without"
        )
    neighbors = None if visual is None else (Neighbors(visual), Neighbors(audio))
    Views(training_set, recipe, neighbors=neighbors)  # checks them
    return neighbors
