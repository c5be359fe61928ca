"""The folder of a run: who writes it, and the arguments it was started with, run.json for --resume and config.toml."""

import argparse
import contextlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from . import config_file
from .options import flag, value_of

RUN = "run.json"
# All that a run writes. What of it is in the folder of a new one belongs to another run.
FILES = (
    RUN,
    config_file.FILE,
    "checkpoint.pt",
    "checkpoint.previous.pt",
    "checkpoint.damaged.pt",
    "best.pt",
    "best.previous.pt",
    "metrics.jsonl",
    "metrics.json",
    "per_sample.csv",
    "per_time.csv",
    "report.html",
    "tensorboard",
    "wandb",
)
DEFAULTS = {"method": "ssl_align", "seed": 0, "recipe": "quickstart"}
# A resumed run may have other values of these options, since they change how it is computed and not its result. Those
# of _STORED keep their value where they are not given again.
_STORED = ("minutes", "threads", "log")
_MAY_CHANGE = {
    *_STORED,
    "out",
    "config",
    "run_id",
    "resume",
    "force",
    "workers",
    "device",
    "checkpoint_every",
    "quiet",
    "cache",
    "command",
    "traceback",
}


def _fixed(args: argparse.Namespace) -> dict:
    """The arguments that a resumed run must not change, as JSON has them."""
    arguments = {key: value for key, value in vars(args).items() if key not in _MAY_CHANGE}
    return {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}


def open_run(args: argparse.Namespace, out: Path, add_arguments: Callable) -> argparse.Namespace:
    """The arguments of a run in `out`: with --resume those in its run.json, else `args` with defaults filled in.

    add_arguments: of the command. Processes that torchrun has started anew go on with the run, as by --resume.
    ValueError where `out` holds a run and --resume was not asked for, where it holds none and it was, where an option
    contradicts the run that is resumed, and for a run.json that no run has written.
    """
    from ..models.backbones import check_allowed

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, got a file")
    if args.resume and args.force:
        raise ValueError("--resume, --force: expected one of them")
    values = vars(args) | {"run_id": uuid.uuid4().hex}  # by which trackers know a run
    values["resume"] = args.resume or (int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and _launched(out))
    if values["resume"]:
        run = _read(out)
        if run["command"] != args.command:
            raise ValueError(f"{out / RUN}: belongs to ssl-fast {run['command']}, asked to go on with {args.command}")
        lacking = {key: None for key in DEFAULTS if key in values and key not in run["arguments"]}
        before, stored = (_parsed(out / RUN, one, add_arguments) for one in (lacking | run["arguments"], run["stored"]))
        for key, value in _fixed(args).items():
            if value is not None and value != run["arguments"].get(key):
                option, had = flag(key), run["arguments"].get(key)
                raise ValueError(f"{option} {value}: the run in {out} has {option} {had}; leave it out")
        keys = ("backbone", "audio_backbone")
        nets, named = ([one[key] for key in keys if one.get(key)] for one in (before, vars(args)))
        try:
            check_allowed(nets, named)
        except ValueError as error:
            raise ValueError(f"{out / RUN}: {error}, or name it by its option again") from error
        values |= before | {key: value for key, value in stored.items() if values[key] is None}
        values["run_id"] = run["id"] or values["run_id"]
    else:
        _check_free(out, args.force)
        values |= {key: value for key, value in DEFAULTS.items() if key in values and values[key] is None}
    from ..training.recipes import check_method

    check_method(values["method"])
    return argparse.Namespace(**values | {"out": out})


def _check_free(out: Path, force: bool) -> None:
    if not force and (there := [name for name in FILES if (out / name).exists()]):
        raise ValueError(
            f"--out {out}: holds another run ({', '.join(there)}); go on with it by --resume, choose another folder, "
            "or replace it by --force"
        )
    if force and not (out / RUN).exists() and (there := [name for name in FILES if (out / name).is_dir()]):
        raise ValueError(f"--out {out}: holds {', '.join(there)}, but no {RUN} of a run; choose another folder")


def _launch() -> str | None:
    """What the processes of one torchrun have in common, also after a restart; None without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"torchrun {os.getppid()}" if name == "none" else name  # none: of no name


def _launched(out: Path) -> bool:
    """Whether this torchrun has started the run in `out`."""
    return (out / RUN).is_file() and _read(out).get("launch") == _launch()


def _read(out: Path) -> dict:
    """run.json, its _STORED put together under "stored". ValueError that names it."""
    file = out / RUN
    if not file.is_file():
        raise ValueError(f"--resume: expected a run in {out}, found no {RUN}")
    try:
        run = json.loads(file.read_text())
        run = {"log": None, "id": None} | run  # of runs before these fields
        run["stored"] = {key: run[key] for key in _STORED}
        kinds = {"arguments": dict, "command": str, "id": (str, type(None))}
        if not all(isinstance(run[key], kind) for key, kind in kinds.items()):
            raise TypeError("arguments, command or id of another type")
        return run
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: expected the arguments of a run, got {type(error).__name__}: {error}") from error


def _parsed(file: Path, arguments: dict, add_arguments: Callable) -> dict:
    """Arguments as JSON has them -> as the parser of the command gives them. ValueError where it would not."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    actions, parsed = {action.dest: action for action in parser._actions}, {}
    for key, value in arguments.items():
        action = actions.get(key)
        try:
            if action is None:
                raise ValueError("no such option")
            parsed[key] = None if value is None and key not in DEFAULTS else value_of(action, value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{file}: {key[:80]}: expected a value of this option, got {value!r:.80}") from error
    return parsed


@contextlib.contextmanager
def held(args: argparse.Namespace, add_arguments: Callable) -> Iterator[None]:
    """Inside, this process alone writes the folder of a run, which exists from now on, with its run.json and
    config.toml. add_arguments: of the command."""
    from .. import __version__
    from ..files import claimed, replace_file, sweep

    files = [args.out / name for name in FILES]
    with claimed("--out", folder=args.out):
        if not args.resume:
            _check_free(args.out, args.force)
            for option in ("config", "init", "audio-init"):
                read = getattr(args, option.replace("-", "_"), None)
                if read is not None and any(file.exists() and file.samefile(read) for file in files):
                    raise ValueError(f"--{option} {read}: expected a file that is not replaced in --out")
        for file in reversed(files):  # run.json last, by which the others are those of a run
            sweep(file)
            if args.force and file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif args.force:
                file.unlink(missing_ok=True)
        run = {"command": args.command, "arguments": _fixed(args), "launch": _launch(), "id": args.run_id}
        replace_file(args.out / RUN, json.dumps(run | {key: getattr(args, key) for key in _STORED}, indent=1) + "\n")
        options = config_file.text(args, add_arguments, __version__)
        try:
            options.encode()
        except UnicodeEncodeError:
            warnings.warn(f"{args.out}: no {config_file.FILE}, as TOML takes names of UTF-8 alone", stacklevel=2)
        else:
            replace_file(args.out / config_file.FILE, options)
        yield
