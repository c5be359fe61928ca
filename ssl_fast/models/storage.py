"""Checkpoints on disk: the project's own, one file, written atomically; the previous one stays beside it."""

import contextlib
import hashlib
import math
import os
import pickle
import typing
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..files import replacing
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


def save(state: dict, path: str | os.PathLike, keep: bool = True) -> None:
    """Write `state` (dicts, lists, numbers, strings, tensors) so that at no moment there is no complete checkpoint.

    What had the name becomes `previous(path)`, with `keep`. OSError names `path`.
    """
    with replacing(path, previous(path) if keep else None) as file:
        torch.save({"format": FORMAT, "versions": versions(), **state}, file)


def read_file(path: Path):
    """Content of a file of torch.save, on the CPU, read without running code and verified by the CRC-32 sums of its
    archive, which torch.load does not look at. CheckpointError, naming the file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        _verify(path)
        with torch.serialization.safe_globals(_numpy_values()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Validating sparse", UserWarning)  # which torch does anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle of other bytes fails in any way, IndexError and struct.error among them
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own text says how to run the code in it
            reason = "not plain weights; what could run code is not read"
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint ({reason})") from error


def _verify(path: Path) -> None:
    """ValueError or BadZipFile for an archive that is not what was written, and for one of TorchScript. Files from
    before torch 1.6 are no archives and have no sums; nor have those written without (set_crc32_options)."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("a TorchScript program; what could run code is not read")
        if any(one.CRC for one in archive.infolist()) and (wrong := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {wrong} in it is wrong")


def _numpy_values() -> list:
    """Allowed globals of a pickle: those of numpy's scalars and arrays of numbers, by the names of numpy 1 and 2. The
    released training programs store metrics as such beside the weights."""
    functions = {"_reconstruct": np.ones(1).__reduce__()[0], "scalar": np.float64(1).__reduce__()[0]}
    cores = ("numpy.core.multiarray", "numpy._core.multiarray")
    names = [(function, f"{core}.{name}") for name, function in functions.items() for core in cores]
    return [*names, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]


# Keys that weights lie under in files of other programs, and what stands before the names of weights that were taken
# from a wrapper: of DataParallel and DistributedDataParallel, of torch.compile, of a class that holds the net.
CONTAINERS = ("model", "model_state_dict", "state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def weights_of(state: object, container: str = "", depth: int = 4) -> tuple[str, dict[str, Tensor]] | None:
    """The key of CONTAINERS that weights lie under, also one in another ("" for bare weights), and the weights as they
    are named there; None for anything else."""
    if not isinstance(state, Mapping) or not state or not depth:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        return container, dict(state)
    found = (weights_of(state.get(key), key, depth - 1) for key in CONTAINERS)
    return next((one for one in found if one is not None), None)


def plain_name(key: str) -> str:
    """Name of a weight without what wrappers put before it, and torch.compile also before the names of parts."""
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key.replace("._orig_mod.", ".")


def fitted(weights: object, expected: Mapping[str, Tensor], exact: bool = False) -> dict[str, Tensor]:
    """Weights as those of `expected`: the same names and shapes, of its dtypes, dense, finite, with values.

    A missing num_batches_tracked, which torch has had since 0.4.1, is 0. exact: nothing is missing, and dtypes are the
    same already. ValueError that lists what does not fit.
    """
    if not isinstance(weights, Mapping):
        raise ValueError(f"expected weights by name, got {type(weights).__name__}")
    wrong, found = [f"unexpected {key}" for key in weights if key not in expected], {}
    for key, like in expected.items():
        count = key.endswith("num_batches_tracked")
        value = weights.get(key, torch.zeros((), dtype=like.dtype) if count and not exact else None)
        if value is None:
            wrong.append(f"{key}: missing")
        elif fault := _fault(value, like, exact):
            wrong.append(f"{key}: {fault}")
        elif key.endswith("running_var") and (value < 0).any():
            wrong.append(f"{key}: negative")
        else:
            found[key] = value.detach().to(like.dtype)
    if wrong:
        more = f"; and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise ValueError(f"{len(wrong)} weights do not fit: {'; '.join(sorted(wrong)[:20])}{more}")
    return found


def _fault(value: object, like: Tensor, exact: bool) -> str | None:
    """What keeps `value` from being used as a tensor like `like` (see `fitted`)."""
    if not isinstance(value, Tensor):
        return f"expected a tensor, got {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested or value.is_quantized or value.device.type != "cpu":
        return f"expected a dense tensor with values, got {value.layout} on the device {value.device}"
    if value.shape != like.shape:
        return f"expected {tuple(like.shape)}, got {tuple(value.shape)}"
    same = value.is_floating_point() if like.is_floating_point() else not value.is_complex()
    same = same and (value.dtype == torch.bool) == (like.dtype == torch.bool)
    if not same or (exact and value.dtype != like.dtype):
        return f"expected {like.dtype}, got {value.dtype}"
    if not value.to(torch.promote_types(like.dtype, torch.float32)).isfinite().all():
        return "not finite"
    return None


def load_torchvision(net: nn.Module, path: str | os.PathLike) -> list[str]:
    """Load torchvision's file of a ResNet-18 into a net of that layout; the keys of the file that it has no place for,
    which can only be the classifier's. CheckpointError that names the file for one that is missing, damaged or
    something else, and lists missing and unexpected keys and wrong shapes; ValueError for a net of another layout."""
    if not isinstance(net, ResNet18):
        raise ValueError(f"init: expected a net of torchvision's ResNet-18 for {path}, got {type(net).__name__}")
    found = weights_of(state := read_file(Path(path)))
    if found is None:
        got = type(state).__name__
        raise CheckpointError(f"{path}: expected the weights of torchvision's ResNet-18, got {got}")
    weights = {plain_name(key): value for key, value in found[1].items()}
    ignored = [key for key in ("fc.weight", "fc.bias") if weights.pop(key, None) is not None]
    try:
        net.load_torchvision(fitted(weights, net.state_dict()))
    except ValueError as error:
        raise CheckpointError(f"{path}: expected the weights of torchvision's ResNet-18: {error}") from error
    return ignored


_WEIGHTS = ("localizer", "loss", "momentum", "optimizer")  # in a state; all else there is plain


def checked(path: Path, state: object) -> dict:
    """State of this project that was read from `path`; CheckpointError for anything else, and where what is not weights
    is not what a run writes."""
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        if isinstance(state, dict) and "format" not in state:
            keys = ", ".join(map(str, list(state)[:5])) or "nothing"
            raise CheckpointError(
                f"{path}: expected a checkpoint of this project, or weights alone or under {', '.join(CONTAINERS)}, "
                f"got {keys:.200}"
            )
        found = state["format"] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {found!r:.80}")
    try:
        wrong = [str(key) for key, value in state.items() if not (key in _WEIGHTS or _plain({key: value}))]
        wrong = wrong or [key for key, fits in _FIGURES.items() if key in state and not fits(state[key])]
    except (RecursionError, OverflowError):
        wrong = ["nested too deeply, or with numbers too large"]
    if "history" in state and not wrong and len(state["history"]) != state.get("step"):
        wrong = ["history"]
    if wrong:
        raise CheckpointError(f"{path}: expected the state of a run, got other values in: {', '.join(wrong)[:200]}")
    return state


def _plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _number(value: typing.Any, kind: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _count(value: typing.Any) -> bool:
    return _number(value, int) and 0 <= value < 1 << 63


def _history(records: object) -> bool:
    """Records of steps 0, 1, ...; only what validation found may be no finite number."""
    return isinstance(records, list) and all(
        isinstance(record, dict)
        and record.get("step") == step
        and {"loss", "seconds"} <= record.keys()
        and all(_number(x) or (key.startswith("validation_") and isinstance(x, float)) for key, x in record.items())
        for step, record in enumerate(records)
    )


_FIGURES = {
    "recipe": lambda x: isinstance(x, dict),
    "seed": lambda x: x is None or _number(x, int),
    **dict.fromkeys(("step", "planned_steps", "samples", "threads"), _count),
    "ended": lambda x: isinstance(x, bool),
    "seconds": lambda x: _number(x) and x >= 0,
    **dict.fromkeys(("threshold", "token_threshold"), lambda x: x is None or _number(x)),
    "layout": lambda x: isinstance(x, str),
    "history": _history,
}


def load(path: str | os.PathLike, *, fall_back: bool = False) -> dict:
    """The state that `save` was given, on the CPU. CheckpointError, naming the file, for anything else.

    fall_back: where `path` cannot be read but the checkpoint before it can, warn (naming both) and return that; `path`
    is renamed, so that the next `save` does not put it in the place of the good one.
    """
    path = Path(path)
    try:
        return checked(path, read_file(path))
    except CheckpointError as error:
        if not fall_back or not previous(path).is_file():
            raise
        state = checked(previous(path), read_file(previous(path)))
        with contextlib.suppress(FileNotFoundError):  # killed before it was there, or renamed by another process
            os.replace(path, path.with_name(f"{path.stem}.damaged{path.suffix}"))
        warnings.warn(f"{error}; going on from the one before it, {previous(path)}", stacklevel=2)
        return state
