"""Checkpoints on disk: the project's own, one file, written atomically; the previous one stays beside it."""

import hashlib
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..reproducibility import versions
from .resnet import ResNet18

FORMAT = "ssl_fast checkpoint 1"
LAST, BEST = "checkpoint.pt", "best.pt"  # in the folder of a run


class CheckpointError(ValueError):
    """A file that is missing, damaged, or not a checkpoint of this project. The message names it."""


def previous(path: str | os.PathLike) -> Path:
    """Path of the checkpoint before `path`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def digest(path: Path) -> str:
    """SHA-256 of a file, by which results and runs name their weights."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(state: dict, path: str | os.PathLike) -> None:
    """Write `state` (dicts, lists, numbers, strings, tensors) so that at no moment there is no complete checkpoint.

    The file goes to a temporary name and to disk before it takes the name; what had the name becomes `previous(path)`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "versions": versions(), **state}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, previous(path))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path):
    """Content of a file of torch.save, on the CPU, read without running code. CheckpointError, naming the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals(_numpy_values()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of other bytes fails in any way, IndexError and struct.error among them
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own text says how to run the code in it
            reason = "not plain weights; what could run code is not read"
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint ({reason})") from error


def _numpy_values() -> list:
    """Allowed globals of a pickle: those of numpy's scalars and arrays of numbers, by the names of numpy 1 and 2. The
    released training programs store metrics as such beside the weights."""
    functions = {"_reconstruct": np.ones(1).__reduce__()[0], "scalar": np.float64(1).__reduce__()[0]}
    cores = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = [(function, f"{core}.{name}") for name, function in functions.items() for core in cores]
    return [*names, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


def load_torchvision(net: nn.Module, path: str | os.PathLike) -> list[str]:
    """Load torchvision's file of a ResNet-18 into a net of that layout; the keys of the file that it has no place for,
    which can only be the classifier's. CheckpointError that names the file for one that is missing, damaged or
    something else, and lists missing and unexpected keys and wrong shapes; ValueError for a net of another layout."""
    if not isinstance(net, ResNet18):
        raise ValueError(f"init: expected a net of torchvision's ResNet-18 for {path}, got {type(net).__name__}")
    state = read_file(Path(path))
    if not isinstance(state, Mapping) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        got = type(state).__name__
        raise CheckpointError(f"{path}: expected the weights of torchvision's ResNet-18, got {got}")
    try:
        return net.load_torchvision(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: expected the weights of torchvision's ResNet-18: {error}") from error


def checked(path: Path, state: object) -> dict:
    """State of this project that was read from `path`; CheckpointError for anything else."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format", "none") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {found!r}")
    return state


def load(path: str | os.PathLike, *, fall_back: bool = False) -> dict:
    """The state that `save` was given, on the CPU. CheckpointError, naming the file, for anything else.

    fall_back: where `path` cannot be read but the checkpoint before it can, warn (naming both) and return that.
    """
    path = Path(path)
    try:
        return checked(path, read_file(path))
    except CheckpointError as error:
        if not fall_back or not previous(path).is_file():
            raise
        state = checked(previous(path), read_file(previous(path)))
        warnings.warn(f"{error}; going on from the one before it, {previous(path)}", stacklevel=2)
        return state
