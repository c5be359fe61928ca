"""Fused kernels, losses, training and evaluation for visual sound source localization."""

from importlib import metadata, util

import torch  # noqa: F401  first: the compiled module then shares torch's OpenMP runtime and thread pool

__version__ = "0.1.0"

if util.find_spec("ssl_fast._C") is None:  # run from a source tree: the compiled module is in the installed package
    try:
        __path__.append(str(metadata.distribution("ssl_fast").locate_file("ssl_fast")))
    except metadata.PackageNotFoundError:
        pass  # not installed at all: `ssl-fast doctor` and backend="compiled" say so
