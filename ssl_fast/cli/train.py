"""The runs of `ssl-fast quickstart | train`: what run.json remembers of them, and what they leave behind."""

import argparse
import json
from pathlib import Path

from ..stages import Stages, listed
from . import data as data_commands
from . import evaluate

# torch, numpy and what needs them are imported inside the functions: `ssl-fast --help` does without.

RUN = "run.json"
SCENE_TESTS = ("single", "duo", "trio")
USUAL_MINUTES = 4.0  # of training in a quickstart
PRELOAD_BYTES = 2 << 30  # folders that take less when decoded are decoded once, not in every epoch
# Arguments that a resumed run may have anew, since they change how a run goes and not what it is. Those of _KEPT are
# kept where they are not given.
_KEPT = ("minutes", "threads")
_FREE = {
    *_KEPT,
    "out",
    "resume",
    "workers",
    "device",
    "checkpoint_every",
    "quiet",
    "cache",
    "command",
    "traceback",
    "run",
}


_DEFAULTS = {"method": "ssl_align", "seed": 0, "recipe": "quickstart"}


def _remembered(args: argparse.Namespace) -> dict:
    arguments = {key: value for key, value in vars(args).items() if key not in _FREE}
    return {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}


def _open_run(args: argparse.Namespace, out: Path) -> argparse.Namespace:
    """The arguments of a run, which `out`/run.json remembers, so that --resume needs none of them again.

    ValueError where `out` holds a run and --resume was not asked for, where it holds none and it was, and where an
    option contradicts the run that is resumed.
    """
    file = out / RUN
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, got a file")
    holds_run = file.exists() or (out / "checkpoint.pt").exists()
    if holds_run and not args.resume:
        raise ValueError(f"--out {out}: holds another run; go on with it by --resume, or choose another folder")
    asked = _remembered(args)
    if args.resume:
        if not file.is_file():
            raise ValueError(f"--resume: expected a run in {out}, found no {RUN}")
        try:
            stored = json.loads(file.read_text())
            before, kept = stored["arguments"], {key: stored[key] for key in _KEPT}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: expected the arguments of a run, got {type(error).__name__}: {error}") from error
        if stored.get("command") != args.command:
            raise ValueError(f"{file}: belongs to ssl-fast {stored.get('command')}, asked to go on with {args.command}")
        for key, value in asked.items():
            if value is not None and value != before.get(key):
                option = f"--{key.replace('_', '-')}"
                raise ValueError(f"{option} {value}: the run in {out} has {option} {before.get(key)}; leave it out")
        kept = {key: value for key, value in kept.items() if getattr(args, key) is None}
        args = argparse.Namespace(**{**vars(args), **before, **kept})
    else:
        args = argparse.Namespace(**vars(args))
        for key, value in _DEFAULTS.items():
            if hasattr(args, key) and getattr(args, key) is None:
                setattr(args, key, value)
    from ..training.recipes import check_method

    check_method(args.method)
    args.out = out
    return args


def _remember(args: argparse.Namespace) -> None:
    """Write run.json; the run exists from now on."""
    from ..reproducibility import replace_file

    args.out.mkdir(parents=True, exist_ok=True)
    stored = {"command": args.command, "arguments": _remembered(args), **{key: getattr(args, key) for key in _KEPT}}
    replace_file(args.out / RUN, json.dumps(stored, indent=1) + "\n")


def check_device(name: str) -> None:
    import torch

    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a usable CUDA device, got none (see `ssl-fast doctor`)")


def _set_up(args: argparse.Namespace, recipe) -> None:
    """Check the device and set the threads of a training run.

    The narrow nets get one thread: their convolutions are so small that a second thread gains little, and where cores
    are shared with other programs it costs a lot, because threads that wait for each other spin. One thread also gives
    the same bits wherever there are several runs at once.
    """
    import torch

    check_device(args.device)
    if args.threads is None:
        args.threads = 1 if recipe.model.backbone == "small" else torch.get_num_threads()
    torch.set_num_threads(args.threads)


def _train(args: argparse.Namespace, training_set, recipe, **options):
    from ..training import loop as training

    run = training.train(
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


def quickstart(args: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from ..data.scenes import dataset as scenes
    from ..models import checkpoints
    from ..training import recipes

    method = args.method or _DEFAULTS["method"]
    recipes.check_method(method)
    seed = _DEFAULTS["seed"] if args.seed is None else args.seed
    args = _open_run(args, args.out or Path("runs") / f"quickstart-{method}-seed{seed}")
    settings = scene_settings(args.scenes, args.test_scenes)
    recipe = recipes.recipe(
        args.method,
        epochs=args.epochs,
        batch_size=args.batch_size,
        precision=args.precision,
        accumulation=args.accumulation,
        vertical_flip=True,  # scenes look the same upside down
    )
    recipe.steps(settings.train)  # too few scenes are an error before anything is made
    _set_up(args, recipe)
    _remember(args)
    stages = Stages()
    with stages("scenes"):
        training_set = scenes.load("train", settings, progress=not args.quiet)
    with ThreadPoolExecutor(1) as background:  # training of narrow nets leaves a core free
        loading = background.submit(scene_tests, settings, quiet=True)
        with stages("training"):
            run = _train(args, training_set, recipe, usual_minutes=USUAL_MINUTES)
        with stages("scenes"):
            tests, validation = loading.result()
    about = describe(checkpoints.file_of(args.out), recipe.method, args.seed, recipe.to_dict()) | _about_run(run)
    return evaluate.write(
        run.localizer, tests, validation, args.out, about, run.history, quiet=args.quiet, notes=run.notes, stages=stages
    )


def scene_settings(train: int | None, test: int | None):
    from ..data.scenes.dataset import Settings

    sizes = {"train": train, **dict.fromkeys(("val", *SCENE_TESTS), test)}
    return Settings(**{split: size for split, size in sizes.items() if size is not None})


def scene_tests(settings, quiet: bool):
    from ..data.scenes import dataset as scenes

    tests = {split: scenes.load(split, settings, progress=not quiet) for split in SCENE_TESTS}
    return tests, scenes.load("val", settings, progress=not quiet)


def train(args: argparse.Namespace) -> int:
    from .. import distributed
    from ..models import build, checkpoints, storage
    from ..training import loop as training
    from ..training import recipes

    args = _open_run(args, args.out)
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
    )
    if args.val_split is not None and args.val is None:
        raise ValueError("--val-split: expected with --val")
    how = recipe.front_end, recipe.image_size
    training_set = data_commands.training_set(args, *how)
    recipe.steps(len(training_set))
    validation = None
    if args.val is not None:
        validation = folder(args.val, args.val_split, *how)
        training.check_validation(training_set, validation, recipe)
    several = {"gather": bool(args.gather), "sync_batch_norm": bool(args.sync_batch_norm)}
    rank, processes = distributed.launched()
    training.check_processes(recipe, processes, args.device, **several)
    neighbors = _neighbors(args, training_set, recipe)
    if args.init is not None:  # here only to see whether it fits
        storage.load_torchvision(build(recipe.model).visual_net, args.init)
    _set_up(args, recipe)
    stages = Stages()
    with distributed.torchrun(args.device):
        if rank == 0:
            _remember(args)
        with stages("samples"):
            for found in (training_set, validation):
                if found is not None and not (found is training_set and recipe.policy):  # policies need the files
                    preload(found, args.quiet)
        with stages("training"):
            run = _train(
                args,
                training_set,
                recipe,
                validation=validation,
                board=True,
                init=args.init,
                neighbors=neighbors,
                **several,
            )
    if rank > 0:
        return 0
    best, notes = training.best_record(run.history), list(run.notes)
    if best is not None:
        print(f"best epoch: {(best['step'] + 1) * recipe.epochs // run.planned_steps}, {args.out / storage.BEST}")
        notes.append("the epoch was chosen on the samples that it is evaluated on")
    if validation is None or not validation.has_ground_truth:
        print(f"checkpoint: {checkpoints.file_of(args.out)}")
        return 0
    localizer = checkpoints.load(args.out).localizer
    about = describe(checkpoints.file_of(args.out), recipe.method, args.seed, recipe.to_dict()) | _about_run(run)
    tests = {Path(args.val).resolve().name: validation}
    return evaluate.write(
        localizer,
        tests,
        None,
        args.out,
        about,
        run.history,
        quiet=args.quiet,
        workers=args.workers,
        notes=notes,
        stages=stages,
    )


def _neighbors(args: argparse.Namespace, training_set, recipe):
    """Those of images and of sounds, None without; an error where they do not fit the set or the recipe's views."""
    from ..data.neighbors import Neighbors
    from ..training.views import Views

    files = args.neighbors_visual, args.neighbors_audio
    if files.count(None) == 1:
        raise ValueError("--neighbors-visual, --neighbors-audio: expected both or none of them")
    neighbors = None if None in files else tuple(map(Neighbors, files))
    return Views(training_set, recipe, neighbors=neighbors).neighbors


def folder(path, split: str | None, front_end: str, image_size: int, annotated: bool = False):
    """The samples of a folder; `annotated`: ValueError without ground truth."""
    from ..data.datasets import FolderSet

    found = FolderSet(path, front_end=front_end, size=image_size, split=split)
    if annotated and not found.has_ground_truth:
        raise ValueError(f"{path}: expected boxes or masks of all samples in annotations.json, to evaluate against")
    for note in found.notes:
        print(f"{path}: {note}")
    return found


def preload(found, quiet: bool) -> None:
    """Decodes the samples once, if they fit into memory."""
    if found.preloaded_bytes <= PRELOAD_BYTES:
        found.preload(progress=not quiet)


def describe(checkpoint: Path, method: str, seed: int, recipe: dict) -> dict:
    import torch

    from ..models.storage import digest

    return {
        "method": method,
        "seed": seed,
        "weights": str(checkpoint),
        "weights_sha256": digest(checkpoint),
        "recipe": recipe,
        "threads": torch.get_num_threads(),
    }


def _about_run(run) -> dict:
    return {
        "train_seconds": run.seconds,
        "steps": run.steps,
        "planned_steps": run.planned_steps,
        "shortened": run.shortened,
        "final_loss": run.final_loss,
        "chance": run.chance,
        "precision": run.precision,
        "step_seconds": run.stages,
    }
