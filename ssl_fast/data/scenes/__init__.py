"""Scenes with sound that are generated: `load` gives them as a sample set (see dataset.py)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .dataset import CATEGORIES, CacheError, Scenes, Settings, load, scene

__all__ = ["CATEGORIES", "CacheError", "Scenes", "Settings", "load", "scene"]


def __getattr__(name: str):  # dataset imports torch, which the processes that generate scenes do without
    if name in __all__:
        return getattr(importlib.import_module(".dataset", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
