"""Options of losses as data: read from text, checked against the signature of the loss, made into what it takes."""

import dataclasses
import math
import typing
from collections.abc import Sequence

from .. import ops
from ..losses import LOSSES
from ..ops.poolings import KERNEL_POOLINGS, Pooling

POOLINGS = {"mean": ops.Mean, **KERNEL_POOLINGS}
_POSITIVE = ("tau", "beta", "scale")
# Values of options, and the options that then have no effect.
_IDLE = (
    ("paired", True, ("pooling",)),
    ("hard_negative", False, ("epsilon_negative",)),
    ("tri_map", False, ("epsilon_negative",)),
)


def loss_options(method: str) -> dict[str, typing.Any]:
    """The options that a recipe may give the loss of `method`, by name, with their annotations in its signature."""
    types = LOSSES[method].option_types()
    fixed = ("backend", "return_terms", "heads", "normalize")  # the last two by the localizer
    return {name: kind for name, kind in types.items() if name not in fixed}


def read(texts: Sequence[str]) -> dict:
    """Options from NAME=VALUE,NAME=VALUE ..., where numbers, true and false are what they say:

    margin=-0.2,symmetric=true      weights=100,100,0       pooling=soft_threshold,pooling.beta=0.1
    """
    values: dict[str, list] = {}
    for part in ",".join(texts).split(","):
        name, equals, value = (text.strip() for text in part.partition("="))
        if not equals and values:  # one more number of the option before
            name, value = list(values)[-1], name
        elif not equals or not name or name in values:
            raise ValueError(f"loss: expected NAME=VALUE,NAME=VALUE with each name once, got {part!r}")
        values.setdefault(name, []).append(_literal(value))
    options: dict[str, typing.Any] = {}
    for name, found in values.items():
        value = found[0] if len(found) == 1 else tuple(found)
        if name == "pooling" or name.startswith("pooling."):
            options.setdefault("pooling", {})[name.partition(".")[2] or "name"] = value
        else:
            options[name] = value
    return options


def _literal(text: str) -> float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def check(method: str, options: dict) -> None:
    """ValueError for an option that the loss of `method` does not have, for a value not of its type or range, and for
    an option that has no effect beside another."""
    types = loss_options(method)
    for name, value in options.items():
        if name not in types:
            taken = ", ".join(f"{one} ({_described(one, kind)})" for one, kind in types.items())
            raise ValueError(f"loss: {method} has no option {name!r}, it takes {taken or 'none'}")
        if types[name] is Pooling:
            pooling(value)
        elif not _fits(name, value, types[name]):
            raise ValueError(f"loss: {name}: expected {_described(name, types[name])}, got {value!r}")
    for name, value, idle in _IDLE:
        if options.get(name) is value and (found := [one for one in idle if one in options]):
            raise ValueError(f"loss: {', '.join(found)}: no effect with {name}={str(value).lower()}")


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _fits(name: str, value, kind) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is float:
        in_range = {**dict.fromkeys(_POSITIVE, lambda x: x > 0), "mean_weight": lambda x: 0 <= x <= 1}
        return _is_number(value) and in_range.get(name, math.isfinite)(value)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == len(typing.get_args(kind)) and all(map(_is_number, value))
    return value in typing.get_args(kind)


def _described(name: str, kind) -> str:
    if kind is bool:
        return "true or false"
    if kind is float:
        return "a number" + (" > 0" if name in _POSITIVE else " within [0, 1]" if name == "mean_weight" else "")
    if kind is Pooling:
        return " or ".join(POOLINGS)
    if typing.get_origin(kind) is tuple:
        return f"{len(typing.get_args(kind))} numbers"
    return " or ".join(typing.get_args(kind))


def pooling(spec: dict) -> Pooling:
    """{"name": name in POOLINGS, **its options, numbers}"""
    options = dict(spec) if isinstance(spec, dict) else {}
    name = options.pop("name", None)
    if name not in POOLINGS:
        raise ValueError(
            f"pooling: expected a name (in Python a dict with it) among {', '.join(POOLINGS)}, got {spec!r}"
        )
    taken = [one.name for one in dataclasses.fields(POOLINGS[name]) if one.type is float]
    for option, value in options.items():
        if option not in taken or not _is_number(value):
            expected = f"numbers for {' and '.join(taken)}" if taken else "no options"
            raise ValueError(f"pooling: expected {expected} with {name!r}, got {option}={value!r}")
    return POOLINGS[name](**options)
