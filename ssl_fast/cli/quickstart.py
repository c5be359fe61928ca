"""`ssl-fast quickstart`: train a localizer on the embedded scenes, evaluate it, write a report."""

import argparse
import typing
from pathlib import Path

from . import train
from .options import add_test_scenes, positive

if typing.TYPE_CHECKING:
    from ..data.scenes.dataset import Settings
    from ..training.recipes import Recipe
    from ..training.trackers import Tracker

HELP = "train a localizer on the embedded scenes, evaluate it, write a report"
USUAL_MINUTES = 4.0  # of training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="default: runs/quickstart-METHOD-seedN")
    add("--scenes", type=positive(int), metavar="N", help="training images (default: 4000)")
    add_test_scenes(parser)
    train.add_run_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..training import negatives, recipes
    from . import run_folder
    from .samples import scene_settings

    method = args.method or run_folder.DEFAULTS["method"]
    recipes.check_method(method)
    seed = run_folder.DEFAULTS["seed"] if args.seed is None else args.seed
    args = run_folder.open_run(args, args.out or Path("runs") / f"quickstart-{method}-seed{seed}", add_arguments)
    recipe = recipes.recipe(
        args.method,
        epochs=args.epochs,
        batch_size=args.batch_size,
        precision=args.precision,
        accumulation=args.accumulation,
        vertical_flip=True,  # scenes look the same upside down
        **train.backbone_fields(args),
        **train.loss_fields(args),
    )
    settings = scene_settings(args.scenes, args.test_scenes, recipe.image_size)
    recipe.steps(settings.train)  # too few scenes are an error before anything is made
    negatives.check_images(recipe, range(settings.train))
    train.set_threads(args, recipe)
    train.check_backbones(args, recipe)
    train.check_trackers(args)
    with run_folder.held(args, add_arguments), train.open_trackers(args) as callbacks:
        return _run(args, settings, recipe, callbacks)


def _run(args: argparse.Namespace, settings: "Settings", recipe: "Recipe", callbacks: "list[Tracker]") -> int:
    from concurrent.futures import ThreadPoolExecutor

    from ..data.scenes import dataset as scenes
    from ..models import checkpoints
    from ..stages import Stages
    from . import results
    from .samples import scene_tests

    stages = Stages()
    with stages("scenes"):
        training_set = scenes.load("train", settings, progress=not args.quiet)
    with ThreadPoolExecutor(1) as background:  # training of narrow nets leaves a core free
        loading = background.submit(scene_tests, settings, quiet=True, over_time=recipe.model.has_tokens)
        with stages("training"):
            run = train.run_training(args, training_set, recipe, usual_minutes=USUAL_MINUTES, callbacks=callbacks)
        with stages("scenes"):
            tests, validation, sequence = loading.result()
    about = results.about_weights(checkpoints.file_of(args.out), recipe.method, args.seed, recipe.to_dict())
    code = results.write_results(
        run.localizer,
        tests,
        validation,
        args.out,
        about | results.about_run(run),
        run.history,
        quiet=args.quiet,
        notes=run.notes,
        stages=stages,
        sequence=sequence,
    )
    train.track_figures(args, callbacks, run, evaluated=True)
    return code
