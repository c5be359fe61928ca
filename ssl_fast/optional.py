"""Packages that only some users need."""

import importlib
import typing


def optional_module(name: str, beginning: str, install: str, error: type[ValueError] = ValueError) -> typing.Any:
    """A module of an optional package. `error` where it cannot be imported: its text begins with `beginning`, gives the
    reason and ends with what pip is to install."""
    try:
        return importlib.import_module(name)
    except Exception as reason:  # a broken installation raises anything, as torchvision for another torch
        text = f"{beginning} cannot be imported ({type(reason).__name__}: {reason}): pip install {install}"
        raise error(text) from reason
