"""The arguments of a run of the command line, which its folder remembers in run.json."""

import argparse
import json
from pathlib import Path

RUN = "run.json"
DEFAULTS = {"method": "ssl_align", "seed": 0, "recipe": "quickstart"}
# Arguments that a resumed run may have anew, since they change how a run goes and not what it is. Those of _KEPT are
# kept where they are not given.
_KEPT = ("minutes", "threads")
_FREE = {*_KEPT, "out", "resume", "workers", "device", "checkpoint_every", "quiet", "cache", "command", "traceback",
         "run"}  # fmt: skip


class UsageError(ValueError):
    """Bad input, told to the user in one line."""


def _remembered(args: argparse.Namespace) -> dict:
    arguments = {key: value for key, value in vars(args).items() if key not in _FREE}
    return {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}


def open_run(args: argparse.Namespace, out: Path) -> argparse.Namespace:
    """The arguments of a run, which `out`/run.json remembers, so that --resume needs none of them again.

    UsageError where `out` holds a run and --resume was not asked for, where it holds none and it was, and where an
    option contradicts the run that is resumed.
    """
    file = out / RUN
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, got a file")
    holds_run = file.exists() or (out / "checkpoint.pt").exists()
    if holds_run and not args.resume:
        raise UsageError(f"--out {out}: holds another run; go on with it by --resume, or choose another folder")
    asked = _remembered(args)
    if args.resume:
        if not file.is_file():
            raise UsageError(f"--resume: expected a run in {out}, found no {RUN}")
        try:
            stored = json.loads(file.read_text())
            before, kept = stored["arguments"], {key: stored[key] for key in _KEPT}
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file}: expected the arguments of a run, got {type(error).__name__}: {error}") from error
        if stored.get("command") != args.command:
            raise UsageError(f"{file}: belongs to ssl-fast {stored.get('command')}, asked to go on with {args.command}")
        for key, value in asked.items():
            if value is not None and value != before.get(key):
                option = f"--{key.replace('_', '-')}"
                raise UsageError(f"{option} {value}: the run in {out} has {option} {before.get(key)}; leave it out")
        kept = {key: value for key, value in kept.items() if getattr(args, key) is None}
        args = argparse.Namespace(**{**vars(args), **before, **kept})
    else:
        args = argparse.Namespace(**vars(args))
        for key, value in DEFAULTS.items():
            if hasattr(args, key) and getattr(args, key) is None:
                setattr(args, key, value)
    from .recipes import check_method

    check_method(args.method)
    args.out = out
    return args


def remember(args: argparse.Namespace) -> None:
    """Write run.json; the run exists from now on."""
    from .evaluation.results import replace_file

    args.out.mkdir(parents=True, exist_ok=True)
    stored = {"command": args.command, "arguments": _remembered(args), **{key: getattr(args, key) for key in _KEPT}}
    replace_file(args.out / RUN, json.dumps(stored, indent=1) + "\n")
