"""The command line: `ssl-fast quickstart | train | evaluate | localize | demo | convert | export | mine | data | bench
| doctor`.

Exit codes: 0; 1 where a computation failed; 2 for bad input, with one line on stderr that names it; 130 after Ctrl-C.
"""

import argparse
import contextlib
import sys
import warnings
from pathlib import Path

from . import data as data_commands
from . import evaluate as evaluation_commands
from . import localize as use
from . import mine as mining
from . import train as runs

# torch, numpy and what needs them are imported inside the functions that use them: `ssl-fast --help` does without.

# ---------------------------------------------------------------------------------------------------------------------
# Arguments


def _positive(kind):
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            number = "integer" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a positive {number}, got {text!r}")
        return value

    return parse


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


_THREADS = {"type": _positive(int), "metavar": "N"}
_WORKERS = {"type": _natural, "default": 0, "metavar": "N", "help": "processes that load samples (default: 0)"}
_TEST_SCENES = {"type": _positive(int), "metavar": "N", "help": "images of each test split (default: 150 to 300)"}
_SPLIT = {"metavar": "NAME", "help": "list of ids in --data: NAME.txt or NAME.csv there, or a path (default: all)"}
_QUIET = {"action": "store_true", "help": "no progress bars"}


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes.

    Options that decide the result have the default None: they come from the run that is resumed, or from `_DEFAULTS`.
    """
    add = parser.add_argument
    add("--method", metavar="NAME", help="ssl_align (default), margin_nce, ez_vsl, lvs, slavc, fnac, ssl_tie")
    add("--seed", type=_natural, metavar="N", help="of weights, order, augmentation (default: 0)")
    add("--epochs", type=_positive(int), metavar="N", help="default: the recipe's")
    add("--batch-size", type=_positive(int), metavar="N", help="default: the recipe's")
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        help="of the nets (default: auto, bfloat16 where the hardware has it)",
    )
    add(
        "--accumulation",
        type=_positive(int),
        metavar="N",
        help="parts of a batch that go through the nets one by one, each with its own negatives (default: 1)",
    )
    add("--compile", action="store_const", const=True, help="the nets go through torch.compile")
    add(
        "--minutes",
        type=_positive(float),
        metavar="X",
        help="budget of training time: a run that does not fit is shortened (default: none, the full length)",
    )
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--threads", help="threads of torch (default: 1 for the narrow nets, else as torch chooses)", **_THREADS)
    add("--device", metavar="NAME", default="cpu", help="cpu (default) or cuda")
    add(
        "--checkpoint-every",
        type=_positive(float),
        default=20.0,
        metavar="S",
        help="seconds between checkpoints (default: 20)",
    )
    add("--quiet", **_QUIET)


_BENCH = "time every op and loss against plain PyTorch and torch.compile, or (--data) the way of samples into training"


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ssl-fast", description="Train and evaluate visual sound source localizers.")
    top.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        one.set_defaults(run=run)
        return one

    quick = command(
        "quickstart", runs.quickstart, "train a localizer on the embedded scenes, evaluate it, write a report"
    )
    quick.add_argument("--out", type=Path, metavar="DIR", help="default: runs/quickstart-METHOD-seedN")
    quick.add_argument("--scenes", type=_positive(int), metavar="N", help="training images (default: 4000)")
    quick.add_argument("--test-scenes", **_TEST_SCENES)
    _run_arguments(quick)

    folder = command("train", runs.train, "train a localizer on a folder of images and sounds (frames/, audio/)")
    folder.add_argument("--data", type=Path, required=True, metavar="DIR", help="training samples")
    folder.add_argument("--split", **_SPLIT)
    data_commands.add_training_set(folder)
    folder.add_argument(
        "--val",
        type=Path,
        metavar="DIR",
        help="samples, none of them trained on, that choose the "
        "best epoch: by success rate where they are annotated, else by loss",
    )
    folder.add_argument("--val-split", metavar="NAME", help="list of ids in --val")
    folder.add_argument("--out", type=Path, required=True, metavar="DIR")
    folder.add_argument("--recipe", metavar="NAME", help="quickstart (default: narrow nets) or published (ResNet-18)")
    folder.add_argument("--front-end", metavar="NAME", help="how sounds become spectrograms (default: the recipe's)")
    folder.add_argument("--image-size", type=_positive(int), metavar="N", help="pixels a side (default: the recipe's)")
    folder.add_argument(
        "--views",
        metavar="NAME,NAME",
        help="of ssl_align, which compares all pairs of them: original, augmented, conceptual (default: the recipe's)",
    )
    folder.add_argument(
        "--init",
        type=Path,
        metavar="FILE",
        help="ImageNet ResNet-18 of torchvision that the image net starts from (default: from scratch)",
    )
    for modality, what in (("visual", "images"), ("audio", "sounds")):
        folder.add_argument(
            f"--neighbors-{modality}",
            type=Path,
            metavar="FILE",
            help=f"nearest neighbours of {what}, for conceptual views (the published recipe of ssl_align has them)",
        )
    folder.add_argument("--workers", **_WORKERS)
    folder.add_argument(
        "--gather",
        action="store_const",
        const=True,
        help="of several processes (torchrun): negatives "
        "are the samples of the whole batch (default: of the process's own share)",
    )
    folder.add_argument(
        "--sync-batch-norm",
        action="store_const",
        const=True,
        help="of several processes: batch norm over the whole batch (CUDA only)",
    )
    _run_arguments(folder)

    test = command("evaluate", evaluate, "evaluate a checkpoint on a folder or on the embedded scenes")
    evaluation_commands.add_arguments(test)
    test.add_argument("--out", type=Path, required=True, metavar="DIR")
    test.add_argument("--val", type=Path, metavar="DIR", help="samples whose negatives choose the universal threshold")
    test.add_argument("--test-scenes", **_TEST_SCENES)
    test.add_argument("--workers", **_WORKERS)
    test.add_argument("--threads", help="threads of torch (default: as torch chooses)", **_THREADS)
    test.add_argument("--quiet", **_QUIET)

    near = command("mine", mine, "find the nearest neighbours of all training samples, for conceptual positives")
    mining.add_arguments(near)
    near.add_argument("--workers", **_WORKERS)
    near.add_argument("--threads", help="threads of torch (default: as torch chooses)", **_THREADS)
    near.add_argument("--device", metavar="NAME", default="cpu", help="cpu (default) or cuda")
    near.add_argument("--quiet", **_QUIET)

    use.add_localize(command("localize", use.localize, "show where in an image a sound comes from, or in a video"))
    use.add_demo(command("demo", use.demo, "open a page for the browser that localizes sounds in images"))
    use.add_convert(
        command("convert", use.convert, "write a checkpoint, ours or a published one, in the project's format")
    )
    use.add_export(command("export", use.export, "write a localizer that runs without this package"))

    data_commands.add_arguments(command("data", None, "look after folders of images and sounds, and published sets"))

    timing = commands.add_parser("bench", help=_BENCH, add_help=False)  # its own parser, made when it is called
    timing.set_defaults(run=bench)
    command("doctor", doctor, "what is installed, what was built, what is in use, and why something is not")
    return top


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        args, rest = parser().parse_known_args(argv)
        if args.command == "bench":
            args.rest = rest
        elif rest:
            parser().error(f"unrecognized arguments: {' '.join(rest)}")
    except SystemExit as stop:  # argparse has printed the help (0) or the error (2)
        return int(stop.code or 0)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from ..distributed import launched

    rank, processes = launched()

    def tell(error: object) -> None:
        if args.traceback:
            raise error
        text = str(error)
        if text.startswith("Caught ") and "worker process" in text:  # a whole traceback, whose last line is the error
            text = text.strip().splitlines()[-1].partition(": ")[2]
        print(f"ssl-fast {args.command}: {' '.join(text.split())}", file=sys.stderr)

    try:
        if processes > 1 and args.command != "train":
            raise ValueError(f"expected one process, got {processes} from torchrun; only train takes several")
        with _surroundings(args, silent=rank > 0):
            return args.run(args)
    except KeyboardInterrupt as stop:
        saved = getattr(stop, "checkpoint", None)
        where = f" after step {stop.step}; go on with: {_resume_line(args, saved.parent, processes)}" if saved else ""
        if rank == 0:
            print(f"\nssl-fast {args.command}: interrupted{where}", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        tell(error)
        return 2
    except RuntimeError as error:
        from ..data.scenes.dataset import CacheError
        from ..training.learner import TrainingError

        if not isinstance(error, (CacheError, TrainingError)):
            raise
        tell(error)
        return 1


@contextlib.contextmanager
def _surroundings(args: argparse.Namespace, silent: bool):
    """Warnings are told in one line; torch's threads are put back at the end. silent: nothing is written to stdout."""
    import torch

    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None) if silent else contextlib.nullcontext():
            if silent:
                args.quiet = True
            warnings.showwarning = lambda text, *_, **__: print(f"ssl-fast {args.command}: {text}", file=sys.stderr)
            yield
    finally:
        torch.set_num_threads(threads)


def _resume_line(args: argparse.Namespace, out: Path, processes: int) -> str:
    data = f" --data {args.data}" if args.command == "train" else ""
    start = "ssl-fast" if processes == 1 else f"torchrun --nproc-per-node {processes} -m ssl_fast"
    return f"{start} {args.command} --resume --out {out}{data}"


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def evaluate(args: argparse.Namespace) -> int:
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out}: expected a folder, got a file")
    if (args.out / "metrics.json").exists():
        raise ValueError(f"--out {args.out}: holds results already; choose another folder")
    model, how, found = evaluation_commands.model_of(args)
    if args.scenes:
        if args.val is not None or args.split is not None or args.set_name is not None:
            raise ValueError("--val, --split, --set: expected with --data, the scenes have splits of their own")
        if found is not None and how[0] != "scenes":
            raise ValueError(f"--scenes: expected weights that hear by the front end scenes, {found.path} by {how[0]}")
        tests, validation = runs.scene_tests(runs.scene_settings(None, args.test_scenes), args.quiet)
    else:
        if args.set_name is None:
            test = runs.folder(args.data, args.split, *how, annotated=True)
        else:
            test = evaluation_commands.published_set(args, *how)
        validation = None if args.val is None else runs.folder(args.val, None, *how)
        for one in filter(None, (test, validation)):
            runs.preload(one, args.quiet)
        tests = {args.set_name or args.data.resolve().name: test}
    options = evaluation_commands.options_of(args, tests)
    about, history = {"model": args.model or str(args.maps)}, []
    if found is not None:
        about = runs.describe(found.path, found.recipe["method"], found.state.get("seed"), found.recipe)
        about["layout"], history = found.layout, found.state.get("history", [])
        if found.unused:
            options["notes"].append(f"{found.path}: keys that no map depends on: {', '.join(found.unused)}")
        trained = {"train_seconds": "seconds", "steps": "step", "planned_steps": "planned_steps"}
        about |= {name: found.state[key] for name, key in trained.items() if key in found.state}
        about["shortened"] = bool(found.state.get("ended")) and about["steps"] < about["planned_steps"]
    args.out.mkdir(parents=True, exist_ok=True)
    return evaluation_commands.write(
        model, tests, validation, args.out, about, history, quiet=args.quiet, workers=args.workers, **options
    )


def mine(args: argparse.Namespace) -> int:
    runs.check_device(args.device)
    return mining.run(args)


def bench(args: argparse.Namespace) -> int:
    from ..benchmarks import ops as bench

    timing = argparse.ArgumentParser(prog="ssl-fast bench", description=f"{_BENCH[0].upper()}{_BENCH[1:]}.")
    bench.add_arguments(timing)
    try:
        options = timing.parse_args(args.rest)
    except SystemExit as stop:
        return int(stop.code or 0)
    return bench.run(options)


def doctor(args: argparse.Namespace) -> int:
    from . import doctor

    return doctor.main()
