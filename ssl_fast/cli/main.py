"""The parser of `ssl-fast COMMAND`, dispatch to the module of a command, and exit codes.

Exit codes: 0; 1 where a computation failed; 2 for bad input, with one line on stderr that names it; 130 after Ctrl-C,
143 and 129 after SIGTERM and SIGHUP; 141 where nobody reads stdout any more (`ssl-fast doctor |
true`), as of programs that SIGPIPE ends. A stderr that nobody reads changes none of them.
"""

import argparse
import contextlib
import os
import shlex
import signal
import sys
import threading
import typing
import warnings
from pathlib import Path

from ..terminal import PrintableStream, printable
from . import (
    bench,
    compare,
    config_file,
    convert,
    data,
    demo,
    doctor,
    evaluate,
    export,
    localize,
    mine,
    quickstart,
    train,
)

COMMANDS = {
    "quickstart": quickstart,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "mine": mine,
    "localize": localize,
    "demo": demo,
    "convert": convert,
    "export": export,
    "data": data,
    "bench": bench,
    "doctor": doctor,
}
STDOUT_CLOSED = 141


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:  # which may quote file names that a shell put there
        super().error(printable(message))

    def parse_known_args(self, args=None, namespace=None):
        if not any(action.dest == "config" for action in self._actions):
            return super().parse_known_args(args, namespace)
        return config_file.parse(self, super().parse_known_args, args, namespace)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="ssl-fast", description="Train and evaluate visual sound source localizers.")
    top.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = module.HELP
        module.add_arguments(commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}."))
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command; its exit code. argv: without the program's name (None: those of the process)."""
    if sys.stderr is None:  # closed by the shell; print(file=None) would write to stdout
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    try:
        try:
            args = parser().parse_args(argv)
        except SystemExit as stop:  # argparse has printed the help (0) or the error (2)
            code = int(stop.code or 0)
        else:
            code = _run(args)
        _say("", end="")
        _flush_stdout()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is left in the buffer
        return STDOUT_CLOSED
    except KeyboardInterrupt:  # while modules are imported
        _say("\nssl-fast: interrupted")
        return 130


def _say(text: str, end: str = "\n") -> None:
    """Print to stderr, where somebody reads it."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, also for what Python writes as it ends


def _flush_stdout() -> None:
    """Raise BrokenPipeError now, which Python would print as it ends. Other errors are left to Python."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def _run(args: argparse.Namespace) -> int:
    from ..distributed import launched

    rank, processes = launched()

    def report(error: Exception) -> None:
        if args.traceback:
            raise error
        text = str(error)
        if text.startswith("Caught ") and "worker process" in text:  # a whole traceback, whose last line is the error
            text = text.strip().splitlines()[-1].partition(": ")[2]
        _say(f"ssl-fast {args.command}: {_line(text)}")

    try:
        if processes > 1 and args.command != "train":
            raise ValueError(f"expected one process, got {processes} from torchrun; only train takes several")
        with _stoppable(processes), _runtime(args, silent=rank > 0):
            return COMMANDS[args.command].run(args)
    except KeyboardInterrupt as stop:
        saved, step = getattr(stop, "checkpoint", None), getattr(stop, "step", None)  # of training.Interrupted
        where = f" after step {step}; go on with: {_resume_line(args, saved.parent, processes)}" if saved else ""
        if rank == 0:
            _say(f"\nssl-fast {args.command}: interrupted{printable(where)}")
        return 128 + getattr(stop, "signal", signal.SIGINT)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        report(error)
        return 2
    except RuntimeError as error:
        from ..data.scenes.dataset import CacheError
        from ..training.learner import TrainingError

        if not isinstance(error, (CacheError, TrainingError)):
            raise
        report(error)
        return 1


def _line(text: object) -> str:
    return printable(" ".join(str(text).split()))


class _Stopped(KeyboardInterrupt):
    """Of a command that got the signal of this number."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = number


def _stop(number: int, frame: object) -> typing.NoReturn:
    raise _Stopped(number)


@contextlib.contextmanager
def _stoppable(processes: int):
    """Inside, SIGTERM and SIGHUP end the command as Ctrl-C does, so that it removes what it has not completed.

    Not those that somebody handles or ignores, as nohup does, and not of several processes, which may wait for each
    other in calls that no handler ends.
    """
    main = processes == 1 and threading.current_thread() is threading.main_thread()
    ends = [n for n in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(n) is signal.SIG_DFL]
    for number in ends:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _runtime(args: argparse.Namespace, silent: bool):
    """Inside, a warning is one line on stderr, on stdout what does not print is escaped, and Python programs that are
    started do not look for modules in the current folder (before 3.11 they do); at the end torch has the number of
    threads that it had before.

    silent: nothing is written to stdout.
    """
    import torch

    threads, safe = torch.get_num_threads(), os.environ.get("PYTHONSAFEPATH", "")
    os.environ["PYTHONSAFEPATH"] = "1"
    stdout = None if silent or sys.stdout is None else PrintableStream(sys.stdout)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(typing.cast(typing.TextIO | None, stdout)):
            if silent:
                args.quiet = True
            warnings.showwarning = lambda text, *_, **__: _say(f"ssl-fast {args.command}: {_line(text)}")
            yield
    finally:
        torch.set_num_threads(threads)
        os.environ["PYTHONSAFEPATH"] = safe


def _resume_line(args: argparse.Namespace, out: Path, processes: int) -> str:
    options = {"out": out, "data": getattr(args, "data", None)}
    for name, default in (("device", "cpu"), ("workers", 0), ("cache", None)):  # which the run does not keep
        options[name] = None if getattr(args, name, default) == default else getattr(args, name)
    given = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items() if value is not None)
    start = "ssl-fast" if processes == 1 else f"torchrun --nproc-per-node {processes} -m ssl_fast"
    return f"{start} {args.command} --resume {given}"
