"""Fused kernels, losses, training and evaluation for visual sound source localization."""

import importlib
import pkgutil
from importlib import util

__version__ = "0.1.0"

# Imported when they are first used (`ssl_fast.losses.lvs`), and torch with them: `ssl-fast --help` needs none of them.
_MODULES = ("data", "distributed", "evaluation", "inference", "losses", "models", "ops", "recipes", "training")


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


# run from a source tree: the compiled module is in the installed package, if any
if util.find_spec("ssl_fast._C") is None:
    __path__ = pkgutil.extend_path(__path__, __name__)
