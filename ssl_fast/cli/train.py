"""`ssl-fast train`: train a localizer on a folder of images and sounds, or on a published training set."""

import argparse
import contextlib
import json
import typing
from pathlib import Path

from .options import (
    FIT,
    FITS,
    FRONT_ENDS,
    add_config,
    add_device,
    add_force,
    add_quiet,
    add_split,
    add_threads,
    add_training_set,
    add_workers,
    check_device,
    natural,
    positive,
    unique,
)

if typing.TYPE_CHECKING:
    from ..data.datasets import FolderSet, SampleSet
    from ..data.neighbors import Neighbors
    from ..stages import Stages
    from ..training.loop import Run
    from ..training.recipes import Recipe
    from ..training.trackers import Tracker
    from ..training.views import Themselves

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
        help="ssl_align (default), margin_nce, ez_vsl, lvs, slavc, fnac, ssl_tie, hard_positives, sspl, dense_av",
    )
    for modality, prefix in (("images", ""), ("sounds", "audio-")):
        add(
            f"--{prefix}backbone",
            metavar="NAME",
            help=f"net of {modality}: timm:NAME, or MODULE:NAME of a function that gives a torch module; with its own "
            "normalisation and image size (default: the recipe's)",
        )
    add("--seed", type=natural, metavar="N", help="of weights, order, augmentation (default: 0)")
    add("--epochs", type=positive(int), metavar="N", help="default: the recipe's")
    add(
        "--loss",
        action="append",
        metavar="NAME=VALUE,...",
        help="options of the loss, as margin=-0.2,tau=0.1 (default: the recipe's; a wrong name lists all)",
    )
    add(
        "--nce-epochs",
        type=natural,
        metavar="N",
        help="of fnac: first epochs without its L1 terms (default: the recipe's; published: 5 as in its scripts, where "
        "its program has 3)",
    )
    add(
        "--negatives",
        metavar="KIND=N,...",
        help="so many sounds of silence, noise and offscreen that are nobody's positive, beside each batch, as "
        "silence,noise=4,offscreen=8 (default: none)",
    )
    add("--negatives-weight", type=positive(float), metavar="X", help="how often each of them counts (default: 1)")
    add("--batch-size", type=positive(int), metavar="N", help="default: the recipe's")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the nets (default: auto, bfloat16 where the hardware has it; float16 for GPUs without it)",
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
    add_config(parser)
    add("--resume", action="store_true", help="go on with the run in --out")
    add_force(parser, "the run in --out by a new one")
    add_threads(parser, "1 for the narrow nets, else as torch chooses")
    add_device(parser)
    add(
        "--checkpoint-every",
        type=positive(float),
        default=20.0,
        metavar="S",
        help="seconds between checkpoints (default: 20)",
    )
    add(
        "--log",
        action="append",
        choices=("tensorboard", "wandb", "trackio"),
        help="also tell this tracker of experiments; may be given several times",
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
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    add("--recipe", metavar="NAME", help="quickstart (default: narrow nets) or published (ResNet-18)")
    add("--front-end", metavar="NAME", help=f"how sounds become spectrograms: {FRONT_ENDS} (default: the recipe's)")
    add("--image-size", type=positive(int), metavar="N", help="pixels a side (default: the recipe's)")
    add("--fit", choices=FITS, help=f"{FIT} (default: the recipe's)")
    add(
        "--views",
        metavar="NAME,NAME",
        help="of ssl_align, which compares all pairs of them, and two of hard_positives and sspl: original, augmented, "
        "conceptual (default: the recipe's)",
    )
    add(
        "--augmentation",
        metavar="NAME",
        help="none; of squares shift, crop; of whole frames ez_vsl, moco_v1, moco_v2, simclr (default: the recipe's)",
    )
    add(
        "--masks",
        metavar="NAME",
        help="of spectrograms: none, ssl_tie, fnac, fnac_released, silence (default: the recipe's)",
    )
    add("--transform", metavar="NAME", help="of ssl_tie: single_shrink (default) or released, which halves twice")
    add("--audio-mix", metavar="NAME", help="none (default), or ssl_tie: its audmix variant, with --neighbors-audio")
    add(
        "--init",
        type=Path,
        metavar="FILE",
        help="weights that the image net starts from: torchvision's ImageNet ResNet-18, timm's file of a net of timm "
        "(default: from scratch)",
    )
    add("--audio-init", type=Path, metavar="FILE", help="weights that the audio net starts from, as --init")
    add(
        "--freeze",
        metavar="NAME,NAME",
        help="nets that are not trained, visual or audio, and stay in evaluation mode (default: none)",
    )
    for modality, what in (("visual", "images"), ("audio", "sounds")):
        add(
            f"--neighbors-{modality}",
            type=Path,
            metavar="FILE",
            help=f"nearest neighbours of {what}, for conceptual views (published: ssl_align, hard_positives)"
            + (" and --audio-mix" if modality == "audio" else ""),
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
        args.threads = 1 if set(recipe.model.backbones) == {"small"} else torch.get_num_threads()
    torch.set_num_threads(args.threads)


def loss_fields(args: argparse.Namespace) -> dict:
    """Fields of a recipe from the options of its loss."""
    from ..training import loss_options, negatives

    return {
        "loss": loss_options.read(args.loss) if args.loss else None,
        "nce_epochs": args.nce_epochs,
        "negatives": negatives.read(args.negatives) if args.negatives is not None else None,
        "negatives_weight": args.negatives_weight,
    }


def backbone_fields(args: argparse.Namespace) -> dict:
    """Arguments of `recipes.recipe` about the nets."""
    frozen = tuple(filter(None, (getattr(args, "freeze", None) or "").split(",")))
    return {"backbone": args.backbone, "audio_backbone": args.audio_backbone, "frozen": frozen}


def check_backbones(args: argparse.Namespace, recipe: "Recipe") -> None:
    """ValueError where files of weights do not fit the nets, or external backbones not what they will be given, before
    anything is written; and for frozen nets that would stay as they were drawn."""
    from ..data.io.front_ends import front_end_named
    from ..models import build
    from ..models.backbones import TIMM, is_module_path, probe
    from ..models.checkpoints import load_backbone

    starts = [
        (getattr(args, name, None), option) for name, option in (("init", "--init"), ("audio_init", "--audio-init"))
    ]
    for modality, backbone, (path, option) in zip(("visual", "audio"), recipe.model.backbones, starts):
        if modality in recipe.model.frozen and path is None and not is_module_path(backbone):
            raise ValueError(f"--freeze {modality}: expected with {option}, or {backbone} keeps its random weights")
        if path is None and backbone.startswith(TIMM):
            print(f"{modality} net: {backbone} with random weights, without {option}")
    if not recipe.model.is_external and not any(path for path, _ in starts):
        return
    localizer = build(recipe.model)
    for net, (path, _) in zip((localizer.visual_net, localizer.audio_net), starts):
        if path is not None:
            load_backbone(net, path)
    if recipe.model.is_external:
        probe(localizer, recipe.image_size, front_end_named(recipe.front_end).shape)


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
        files = " and ".join(str(path) for path in (args.init, args.audio_init) if path is not None)
        print(f"{files}: not used are {', '.join(run.unused)}")
    short = f", shortened from {run.planned_steps} by --minutes {args.minutes:g}" if run.shortened else ""
    print(
        f"trained {recipe.method} for {run.steps} steps{short} in {run.seconds:.0f} s; "
        f"loss {run.final_loss:.3f}, of a collapsed net {run.chance:.3f}"
    )
    if run.stages:
        print(f"time of its steps: {listed(run.stages)}")
    return run


def check_trackers(args: argparse.Namespace) -> None:
    """ValueError for a tracker of --log that is given twice or not installed."""
    from ..training import trackers

    try:
        trackers.check(unique("--log", args.log or []))
    except ValueError as error:
        raise ValueError(f"--log {error}") from error


def open_trackers(args: argparse.Namespace) -> "contextlib.AbstractContextManager[list[Tracker]]":
    from ..training import trackers

    return trackers.opened(args.log or [], args.out, args.run_id, args.resume)


def track_figures(args: argparse.Namespace, trackers: "list[Tracker]", run: "Run", evaluated: bool) -> None:
    """The final figures of a run to its trackers. evaluated: whether it has written metrics.json."""
    figures = {"final_loss": run.final_loss, "train_seconds": run.seconds}
    if evaluated:
        results = json.loads((args.out / "metrics.json").read_text())
        figures |= {key: value for key, value in results.items() if isinstance(value, float)}
    for tracker in trackers:
        tracker.figures(figures, run.steps)


def run(args: argparse.Namespace) -> int:
    from .. import distributed
    from ..stages import Stages
    from ..training import negatives, recipes, validation
    from ..training.loop import check_processes
    from . import run_folder, samples

    with contextlib.ExitStack() as stack:
        stack.enter_context(distributed.torchrun(args.device))
        rank, processes = distributed.launched()
        with distributed.together():  # no process waits for one that cannot train
            args = run_folder.open_run(args, args.out, add_arguments)
            check_trackers(args)
            recipe = recipes.recipe(
                args.method,
                args.recipe,
                epochs=args.epochs,
                batch_size=args.batch_size,
                precision=args.precision,
                accumulation=args.accumulation,
                front_end=args.front_end,
                image_size=args.image_size,
                fit=args.fit,
                resampler="pillow" if args.fit == "crop" else None,
                augmentation=args.augmentation,
                masks=args.masks,
                transform=args.transform,
                audio_mix=args.audio_mix,
                views=None if args.views is None else tuple(args.views.split(",")),
                **backbone_fields(args),
                **loss_fields(args),
            )
            if args.val_split is not None and args.val is None:
                raise ValueError("--val-split: expected with --val")
            training_set = samples.training_set(args, **recipe.reading)
            recipe.steps(len(training_set))
            negatives.check_images(recipe, training_set.image_ids)
            held_out = None
            if args.val is not None:
                held_out = samples.folder(args.val, args.val_split, on_missing=args.on_missing, **recipe.reading)
                validation.check_validation(training_set, held_out, recipe)
            several = {"gather": bool(args.gather), "sync_batch_norm": bool(args.sync_batch_norm)}
            check_processes(recipe, processes, args.device, **several)
            neighbors = _neighbors(args, training_set, recipe)
            check_backbones(args, recipe)
            set_threads(args, recipe)
        if recipe.name == "published" and args.init is None:
            start = recipes.PUBLISHED_START[recipe.method]
            print(
                f"image net: from scratch, without --init; the published runs of {recipe.method} started from {start}"
            )
        with distributed.together():
            if rank == 0:
                stack.enter_context(run_folder.held(args, add_arguments))
        callbacks = [] if rank > 0 else stack.enter_context(open_trackers(args))
        stages = Stages()
        with stages("samples"), distributed.together():
            for found in (training_set, held_out):
                if found is not None and not (found is training_set and recipe.policy):  # policies need the files
                    samples.preload(found, args.quiet)
        with stages("training"):
            run = run_training(
                args,
                training_set,
                recipe,
                validation=held_out,
                callbacks=callbacks,
                init=args.init,
                audio_init=args.audio_init,
                neighbors=neighbors,
                **several,
            )
        if rank > 0:
            return 0
        code = _finish(args, recipe, run, held_out, stages)
        track_figures(args, callbacks, run, evaluated=held_out is not None and held_out.has_ground_truth)
        return code


def _finish(
    args: argparse.Namespace, recipe: "Recipe", run: "Run", held_out: "FolderSet | None", stages: "Stages"
) -> int:
    """Name the best epoch, and evaluate it where the samples that chose it have ground truth."""
    from ..models import checkpoints, storage
    from ..training import validation
    from . import results

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
        checkpoints.load(args.out, allowed=recipe.model.backbones).localizer,
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
) -> "tuple[Themselves | Neighbors, Neighbors] | None":
    """Nearest neighbours of images and of sounds, None without. ValueError where they do not fit the set or the views
    of the recipe."""
    from ..data.neighbors import Neighbors
    from ..training.views import Themselves, Views

    visual, audio = args.neighbors_visual, args.neighbors_audio
    if (visual is None) != (audio is None) and recipe.neighbors != ("audio",):
        raise ValueError("--neighbors-visual, --neighbors-audio: expected both or none of them")
    if visual is None and "conceptual" in recipe.views:
        raise ValueError(
            f"--neighbors-visual, --neighbors-audio: expected with the views {', '.join(recipe.views)}, got none; "
            "`ssl-fast mine` writes them, and --views original,augmented does without"
        )
    if audio is None and recipe.neighbors == ("audio",):
        raise ValueError("--neighbors-audio: expected with --audio-mix, got none; `ssl-fast mine` writes them")
    if visual is not None and recipe.neighbors == ("audio",):
        raise ValueError("--neighbors-visual: expected with conceptual views, got mixed sounds alone")

    def read(path: Path, modality: str) -> Neighbors:
        found = Neighbors(path)
        if found.modality not in (None, modality):
            raise ValueError(
                f"--neighbors-{modality} {path}: expected {modality} neighbours, got {found.modality} ones"
            )
        return found

    neighbors = None
    if audio is not None:
        neighbors = (Themselves() if visual is None else read(visual, "visual"), read(audio, "audio"))
    Views(training_set, recipe, neighbors=neighbors)  # checks them
    return neighbors
