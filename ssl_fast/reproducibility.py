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
    return hashlib.sha256(_bytes(ids)).hexdigest()[:16]


def samples_record(samples: HasIds) -> dict:
    """What results and checkpoints record of the samples of a set: how many were used of how many, the ids of those
    whose files are missing, and the SHA-256 of the ids that were used, sorted, a line each."""
    missing = list(getattr(samples, "missing", ()))
    digest = hashlib.sha256(_bytes(sorted(samples.ids))).hexdigest()
    return {"used": len(samples.ids), "listed": len(samples.ids) + len(missing), "missing": missing, "sha256": digest}


def _bytes(ids: Sequence[str]) -> bytes:
    return "\n".join(ids).encode(errors="surrogateescape")  # names of files need not be UTF-8


def derived_seed(seed: int, purpose: int, number: int = 0, *more: int) -> int:
    """A 64-bit seed, another one for every (seed of the run, purpose, number, ...)."""
    return int(np.random.SeedSequence((seed, purpose, number, *more)).generate_state(1, np.uint64)[0])
