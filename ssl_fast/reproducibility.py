"""Repeatable runs: versions, fingerprints, derived seeds."""

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path
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


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor as Linux names it; on ARM, where it gives numbers alone: "aarch64, CPU implementer 0x41, CPU part
    0xd0c". Without `cpuinfo`, the architecture."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = [f"{key} {found[key]}" for key in ("CPU implementer", "CPU part") if key in found]
    return found.get("model name") or ", ".join([platform.machine(), *numbers])


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
