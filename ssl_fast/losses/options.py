"""The keyword options of losses, as their signatures say them."""

import inspect
import typing
from collections.abc import Callable, Sequence


def option_types(function: Callable, exclude: Sequence[str] = ()) -> dict[str, typing.Any]:
    """The annotation of each keyword option of `function`, by name: float, bool, a Literal, a tuple, Pooling ..."""
    hints = typing.get_type_hints(function)
    return {name: hints.get(name) for name in options_of(function, {}, exclude)}


def options_of(function: Callable, given: dict, exclude: Sequence[str] = ()) -> dict:
    """Keyword options of `function`: defaults, overridden by `given`; TypeError for names it does not have."""
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in exclude}
    unknown = sorted(given.keys() - defaults.keys())
    if unknown:
        raise TypeError(f"{function.__name__}: expected options among {', '.join(defaults)}, got {', '.join(unknown)}")
    return defaults | given


def check_choice(name: str, value: str, function: Callable) -> None:
    """ValueError for a value of an option of `function` that its annotation, a Literal, does not list."""
    allowed = typing.get_args(function.__annotations__[name])
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {allowed}, got {value!r}")
