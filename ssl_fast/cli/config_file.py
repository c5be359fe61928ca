"""Files of options: what `--config FILE.toml` reads, and the config.toml of a run.

Keys are the names of options without their dashes, and values mean what they mean on the command line.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from ..terminal import printable
from .options import value_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports], of a dependency of Python 3.10

FILE = "config.toml"  # in the folder of a run
_NOT_IN_FILES = ("help", "config", "resume", "force")
_NOT_WRITTEN = (*_NOT_IN_FILES, "out", "quiet")


def read(file: Path, parser: argparse.ArgumentParser) -> dict[str, object]:
    """Values of the parser's options by their names in the namespace. ValueError, which names the file and the key or
    line, for what is no TOML, for keys that are no options, and values that an option does not take; OSError."""
    try:
        content = tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected options in TOML, NAME = VALUE, got {error}") from error
    actions = {
        name.removeprefix("--"): action
        for action in parser._actions
        for name in action.option_strings
        if action.dest not in _NOT_IN_FILES
    }
    found = {}
    for key, value in content.items():
        if key in _NOT_IN_FILES:
            raise ValueError(f"{file}: {key}: expected on the command line alone")
        if key not in actions:
            near = difflib.get_close_matches(key.replace("_", "-"), actions, 3)
            names = f"one of {', '.join(near)}" if near else f"an option of `{parser.prog}` without its dashes"
            raise ValueError(f"{file}: {key[:80]}: expected {names}")
        try:
            found[actions[key].dest] = value_of(actions[key], value)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"{file}: {key}: {error}") from error
    return found


def parse(parser: argparse.ArgumentParser, parse_known: Callable, args, namespace):
    """What `parse_known`, the parser's parse_known_args, gives with the values in the file of --config, where it is
    given, as defaults."""
    required = [action for action in parser._actions if action.required]
    for action in required:  # until it is known what the file has
        action.required = False
    given, _ = parse_known(args, None)
    values = {}
    if given.config is not None:
        try:
            values = read(given.config, parser)
            _check_backbones(given, values)
        except (ValueError, OSError) as error:
            parser.exit(2, f"{parser.prog}: {printable(' '.join(str(error).split()))}\n")
    for action in required:
        action.required = action.dest not in values
    # argparse would append the lists of the command line to those of the file
    lists = [action.dest for action in parser._actions if isinstance(action, argparse._AppendAction)]
    parser.set_defaults(**{key: x for key, x in values.items() if not (key in lists and getattr(given, key))})
    return parse_known(args, namespace)


def _check_backbones(given: argparse.Namespace, values: dict[str, object]) -> None:
    """ValueError for code that a file names, as of a run of somebody else, and neither the command line nor
    SSL_FAST_BACKBONES."""
    keys = ("backbone", "audio_backbone")
    named = [getattr(given, key) for key in keys]
    nets = [str(values[key]) for key, name in zip(keys, named) if key in values and name is None]
    if nets:
        from ..models.backbones import check_allowed

        try:
            check_allowed(nets, [name for name in named if name is not None])
        except ValueError as error:
            raise ValueError(f"{given.config}: {error}, or name it by its option, too") from error


def text(args: argparse.Namespace, add_arguments: Callable, version: str) -> str:
    """The options of a run, as `read` reads them. add_arguments: of its command."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    lines = [f"# ssl-fast {args.command} --config THIS_FILE --out DIR; written by ssl_fast {version}"]
    for action in parser._actions:
        value = getattr(args, action.dest)
        if action.dest not in _NOT_WRITTEN and value is not None and value is not False:
            lines.append(f"{action.option_strings[0].removeprefix('--')} = {toml(value)}")
    return "\n".join(lines) + "\n"


def toml(value: object) -> str:
    """A bool, number, text, path or list of such as a value in TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML escapes as JSON, and DEL
