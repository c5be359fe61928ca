"""Repeatable runs: versions, fingerprints, derived seeds."""

import hashlib
import platform
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from . import __version__


def versions() -> dict[str, str]:
    """Versions of this package, torch, numpy and Python, as results and checkpoints record them."""
    import torch

    return {
        "ssl_fast": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


class HasIds(Protocol):
    """Any set of samples with unique ids, as `data.datasets.SampleSet`."""

    ids: list[str]


def fingerprint(samples: HasIds | Sequence[str]) -> str:
    """Hash of the ids of a set (or of ids), in order, by which a checkpoint knows its training data."""
    ids: Any = getattr(samples, "ids", samples)
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def derived_seed(seed: int, purpose: int, number: int = 0, *more: int) -> int:
    """A 64-bit seed, another one for every (seed of the run, purpose, number, ...)."""
    return int(np.random.SeedSequence((seed, purpose, number, *more)).generate_state(1, np.uint64)[0])
