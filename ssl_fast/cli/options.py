"""Types of option values, and the options that several commands share."""

import argparse
import json
import typing
from collections.abc import Callable
from pathlib import Path

FITS = ("squash", "crop")  # of data.io.images, whose import would load torch
FIT = (
    "how frames become squares: squash both sides, or resize the shorter side and crop the middle, boxes along with it"
)
# of data.io.front_ends
FRONT_ENDS = (
    "ez_vsl, slavc, fnac, lvs, ssl_align, ssl_tie, scenes; as the released programs read, of 16 kHz only: published/ "
    "with ezvsl, fnac, lvs, sslalign, sslalign_ezvsl, sslalign_avs, sslalign_ezvsl_avs, ssltie, vssleval_fnac"
)
# of data.annotations
SETS = (
    "vgg-ss, vgg-ss-xml, flickr, is3, is3-plus, s4, ms3, vpo-ss, vpo-ms, vggsound-single, vggsound-duet, music-solo, "
    "music-duet, vgg-instruments, vgg-instruments-duet, ade20k-speech or ade20k-sound"
)
WEIGHTS = "a checkpoint, ours or a published program's, or the folder of a run or of save_pretrained"


MOST_THREADS = 1024  # or processes
MOST = 2**31 - 1  # of an integer option: torch, numpy and C take no larger sizes or counts


def positive(kind: type) -> Callable[[str], int | float]:
    """The type of an option that takes an int or a float above 0."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            number = "integer" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"expected a positive {number}, got {text!r}")
        if kind is int and value > MOST:
            raise argparse.ArgumentTypeError(f"expected an integer up to {MOST}, got {text!r}")
        return value

    return parse


_KINDS = {str: "a text", int: "an integer", float: "a number"}


def value_of(action: argparse.Action, value: object) -> typing.Any:
    """A value that a file has for an option, as the command line gives it. ValueError or ArgumentTypeError, which say
    what was expected, for one that the option does not take."""
    got = f"got {json.dumps(value, default=str):.80}"
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, {got}")
        return action.const if value else action.default
    if isinstance(action, argparse._AppendAction):
        if not isinstance(value, list):
            raise ValueError(f"expected a list of texts, {got}")
        return [_value_of(action, one, got) for one in value]
    return _value_of(action, value, got)


def _value_of(action: argparse.Action, value: object, got: str) -> typing.Any:
    made = typing.cast(Callable, action.type or str)(str(value))
    kind = str if isinstance(made, Path) else type(made)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise ValueError(f"expected {_KINDS[kind]}, {got}")
    if action.choices is not None and made not in action.choices:
        raise ValueError(f"expected one of {', '.join(action.choices)}, {got}")
    return made


def refuse(args: argparse.Namespace, names: str, why: str) -> None:
    """ValueError for options that were given though they have no effect. names: of the attributes, with blanks."""
    values = {name: getattr(args, name) for name in names.split()}
    given = [name for name, value in values.items() if value is not None and value is not False]
    if given:
        raise ValueError(f"{', '.join(map(flag, given))}: {why}")


def flag(name: str) -> str:
    """The option whose attribute in the namespace has this name."""
    return f"--{name.removesuffix('_name').replace('_', '-')}"


def unique(option: str, values: list) -> list:
    """The values of an option, each given once: ValueError for the others."""
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{option}: expected each once, got {twice[0]} twice")
    return values


def natural(text: str) -> int:
    """The type of an option that takes an integer >= 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer >= 0, got {text!r}")
    return int(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options in TOML, as epochs = 20, which the command line overrides; a run writes its own, config.toml",
    )


def add_force(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--force", action="store_true", help=f"replace {what}, where there is one already")


def add_split(parser: argparse._ActionsContainer, *more_names: str) -> None:
    help = "list of ids in --data: NAME.txt, .csv or .tsv there, or a path (default: all)"
    parser.add_argument("--split", *more_names, metavar="NAME", help=help)


def add_layout(parser: argparse._ActionsContainer) -> None:
    """Options for the layout of a published set's files, and for ids to leave out of it."""
    parser.add_argument(
        "--layout",
        metavar="NAME",
        help="of the set's files: slavc, fnac, ssl-align, ssl-tie, mp4, is3, avsbench, avgn, no-prior, denseav "
        "(default: the one that is there)",
    )
    parser.add_argument("--exclude", metavar="NAME", help="list of ids to leave out, as those of the test set")


def add_on_missing(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--on-missing",
        choices=("error", "list"),
        help="where files of samples are not there: an error, or go on with the other samples and list those that are "
        "missing (default: error; a broken file always is one)",
    )


def add_training_set(parser: argparse._ActionsContainer) -> None:
    """Options of `samples.training_set`, beside --data and --split."""
    parser.add_argument(
        "--set",
        dest="set_name",
        metavar="NAME",
        help="vggsound or flickr, in --data (default: a folder of frames/ and audio/)",
    )
    add_layout(parser)
    add_on_missing(parser)
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep decoded frames and sounds there, to be read instead of the files",
    )


def add_test_scenes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-scenes", type=positive(int), metavar="N", help="images of each test split (default: 150 to 300)"
    )


def add_weights_layout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights-layout",
        metavar="NAME",
        help="of the checkpoint, where its keys do not tell: ezvsl, fnac, margin, slavc, "
        "slavc_momentum, lvs, sslalign, ssltie",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=workers, default=0, metavar="N", help="processes that load samples (default: 0)"
    )


def threads(text: str) -> int:
    """The type of an option that takes a number of threads: OpenMP crashes where the system has no more of them."""
    return _few(int(positive(int)(text)))


def workers(text: str) -> int:
    """The type of an option that takes a number of processes, all of which are started at once."""
    return _few(natural(text))


def _few(number: int) -> int:
    if number > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_THREADS}, got {number}")
    return number


def add_threads(parser: argparse.ArgumentParser, default: str = "as torch chooses") -> None:
    parser.add_argument("--threads", type=threads, metavar="N", help=f"threads of torch (default: {default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", default="cpu", help="cpu (default) or cuda")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def check_device(name: str) -> None:
    """ValueError for another --device than cpu and cuda, and for cuda where there is no usable one."""
    import torch

    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a usable CUDA device, got none (see `ssl-fast doctor`)")
