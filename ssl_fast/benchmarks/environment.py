"""Machine, versions and settings that a benchmark was run with, as its header records them."""

import argparse
import contextlib
import datetime
import os
import platform
import statistics
import subprocess
from pathlib import Path

import torch

from ..ops import checks
from ..reproducibility import processor_name, versions
from .measure import Stopwatch, time_rounds


def _git_commit() -> str | None:
    """Commit of the sources, "-dirty" with local changes; None where this file is not under version control."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def copy_gbytes_per_s(device: str) -> float:
    """Bandwidth of copying 256 MiB, reads and writes together."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    samples = time_rounds({"copy": lambda: target.copy_(source)}, Stopwatch(device), 5, 0)
    return 2 * source.nbytes / statistics.median(samples["copy"][0]) / 1e9


def instruction_set() -> str | None:
    """The one that the CPU kernels use; None without them."""
    return checks.extension.instruction_set() if checks.extension else None


@contextlib.contextmanager
def using(name: str | None):
    """Inside, the CPU kernels use this instruction set (None: the one that they do)."""
    before = instruction_set()
    try:
        if name:
            checks.extension.use_instruction_set(name)
        yield
    finally:
        if name:
            checks.extension.use_instruction_set(before)


def conditions(device: str, backend: str) -> dict:
    """Of each record: the instruction set in use, None where no CPU kernel runs, and the mean number of processes that
    ran or wanted to over the last minute."""
    return {
        "instruction_set": instruction_set() if (device, backend) == ("cpu", "compiled") else None,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def header(options: argparse.Namespace) -> dict:
    """Header of results as JSON, for options as `cli.bench.resolve` gives them."""
    cuda = options.device == "cuda"
    prefixes = ("MALLOC_", "THP_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_", "OMP_", "MKL_", "KMP_", "GOMP_")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "cpu": processor_name(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
        },
        "versions": versions() | {"cuda": torch.version.cuda if cuda else None},
        "commit": _git_commit(),
        "backend": options.backend,
        "extension_error": checks.extension_error,
        **conditions("cpu", "compiled"),
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "compile": options.compile_modes,
        "rounds": options.rounds,
        "flush_l2": options.flush_l2,
        "tf32": options.tf32,
        "copy_gbytes_per_s": copy_gbytes_per_s(options.device),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)},
    }
