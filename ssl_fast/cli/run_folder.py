"""The folder of a run: who writes it, and run.json, the arguments it was started with, which --resume reads."""

import argparse
import contextlib
import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

RUN = "run.json"
# All that a run writes. What of it is in the folder of a new one belongs to another run.
FILES = (
    RUN,
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
)
DEFAULTS = {"method": "ssl_align", "seed": 0, "recipe": "quickstart"}
# A resumed run may have other values of these options, since they change how it is computed and not its result. Those
# of _STORED keep their value where they are not given again.
_STORED = ("minutes", "threads")
_MAY_CHANGE = {
    *_STORED,
    "out",
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
    values = dict(vars(args))
    values["resume"] = args.resume or (int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and _launched(out))
    if values["resume"]:
        run = _read(out)
        if run["command"] != args.command:
            raise ValueError(f"{out / RUN}: belongs to ssl-fast {run['command']}, asked to go on with {args.command}")
        lacking = {key: None for key in DEFAULTS if key in values and key not in run["arguments"]}
        before, stored = (_parsed(out / RUN, one, add_arguments) for one in (lacking | run["arguments"], run["stored"]))
        for key, value in _fixed(args).items():
            if value is not None and value != run["arguments"].get(key):
                option, had = f"--{key.replace('_', '-')}", run["arguments"].get(key)
                raise ValueError(f"{option} {value}: the run in {out} has {option} {had}; leave it out")
        keys = ("backbone", "audio_backbone")
        nets, named = ([one[key] for key in keys if one.get(key)] for one in (before, vars(args)))
        try:
            check_allowed(nets, named)
        except ValueError as error:
            raise ValueError(f"{out / RUN}: {error}, or name it by its option again") from error
        values |= before | {key: value for key, value in stored.items() if values[key] is None}
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
        run["stored"] = {key: run[key] for key in _STORED}
        if not isinstance(run["arguments"], dict) or not isinstance(run["command"], str):
            raise TypeError("arguments or command of another type")
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
            parsed[key] = _value(action, value)
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{file}: {key[:80]}: expected a value of this option, got {value!r:.80}") from error
    return parsed


def _value(action: argparse.Action, value: object):
    if value is None and action.dest not in DEFAULTS:
        return None
    if action.nargs == 0:
        made = stored = action.const
    elif isinstance(action, argparse._AppendAction):
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise TypeError("no list of texts")
        return value
    else:
        if not isinstance(value, (str, int, float)):
            raise TypeError("no text or number")
        made = typing.cast(Callable, action.type or str)(str(value))
        stored = str(made) if isinstance(made, Path) else made
    if type(stored) is not type(value) or stored != value or (action.choices and made not in action.choices):
        raise ValueError("not as it was written")
    return made


@contextlib.contextmanager
def held(args: argparse.Namespace) -> Iterator[None]:
    """Inside, this process alone writes the folder of a run, which exists from now on, with its run.json."""
    from ..files import claimed, replace_file, sweep

    files = [args.out / name for name in FILES]
    with claimed("--out", folder=args.out):
        if not args.resume:
            _check_free(args.out, args.force)
            for option, name in (("--init", "init"), ("--audio-init", "audio_init")):
                init = getattr(args, name, None)
                if init is not None and any(file.exists() and file.samefile(init) for file in files):
                    raise ValueError(f"{option} {init}: expected a file that is not replaced in --out")
        for file in files:
            sweep(file)
            if args.force and file.is_dir():
                shutil.rmtree(file)
            elif args.force:
                file.unlink(missing_ok=True)
        run = {"command": args.command, "arguments": _fixed(args), "launch": _launch()}
        replace_file(args.out / RUN, json.dumps(run | {key: getattr(args, key) for key in _STORED}, indent=1) + "\n")
        yield
