"""run.json in the folder of a run: the arguments that it was started with, which --resume reads."""

import argparse
import json
from pathlib import Path

RUN = "run.json"
DEFAULTS = {"method": "ssl_align", "seed": 0, "recipe": "quickstart"}
# A resumed run may have other values of these options, since they change how it is computed and not its result. Those
# of _STORED keep their value where they are not given again.
_STORED = ("minutes", "threads")
_MAY_CHANGE = {
    *_STORED,
    "out",
    "resume",
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


def open_run(args: argparse.Namespace, out: Path) -> argparse.Namespace:
    """The arguments of a run in `out`: with --resume those in its run.json, else `args` with defaults filled in.

    ValueError where `out` holds a run and --resume was not asked for, where it holds none and it was, and where an
    option contradicts the run that is resumed.
    """
    file = out / RUN
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: expected a folder, got a file")
    holds_run = file.exists() or (out / "checkpoint.pt").exists()
    if holds_run and not args.resume:
        raise ValueError(f"--out {out}: holds another run; go on with it by --resume, or choose another folder")
    values = dict(vars(args))
    if args.resume:
        if not file.is_file():
            raise ValueError(f"--resume: expected a run in {out}, found no {RUN}")
        try:
            run = json.loads(file.read_text())
            before, stored = run["arguments"], {key: run[key] for key in _STORED}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: expected the arguments of a run, got {type(error).__name__}: {error}") from error
        if run.get("command") != args.command:
            raise ValueError(f"{file}: belongs to ssl-fast {run.get('command')}, asked to go on with {args.command}")
        for key, value in _fixed(args).items():
            if value is not None and value != before.get(key):
                option = f"--{key.replace('_', '-')}"
                raise ValueError(f"{option} {value}: the run in {out} has {option} {before.get(key)}; leave it out")
        values |= before | {key: value for key, value in stored.items() if values[key] is None}
    else:
        values |= {key: value for key, value in DEFAULTS.items() if key in values and values[key] is None}
    from ..training.recipes import check_method

    check_method(values["method"])
    return argparse.Namespace(**values | {"out": out})


def write_run(args: argparse.Namespace) -> None:
    """Write run.json; the run exists from now on."""
    from ..reproducibility import replace_file

    args.out.mkdir(parents=True, exist_ok=True)
    run = {"command": args.command, "arguments": _fixed(args), **{key: getattr(args, key) for key in _STORED}}
    replace_file(args.out / RUN, json.dumps(run, indent=1) + "\n")
