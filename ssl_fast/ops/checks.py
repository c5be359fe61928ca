"""The one boundary where arguments of ops are checked and the backend is chosen."""

import contextlib
import functools
import os
import warnings
from typing import Any

import torch  # before the compiled module, which then shares torch's OpenMP runtime and thread pool
from torch import Tensor
from torch.autograd import forward_ad

from .reference import unit

INTERFACE = 6  # of csrc/module.cpp
extension: Any = None
extension_error: str | None = None
try:
    from .. import _C as extension

    if getattr(extension, "interface", None) != INTERFACE:
        extension, extension_error = None, "it was built from other sources than these"
except ImportError as error:  # told by `ssl-fast doctor` and by the ops
    extension_error = str(error)

# Threads of torch's OpenMP pool are not forked with a process: its first parallel product would wait for them for ever.
# The compiled kernels see to this by themselves, torch does not.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
OLDEST_DRIVER = {12: "525", 13: "580"}  # for the kernels of a CUDA toolkit, by its major version
NO_CODE = ("cudaErrorNoKernelImageForDevice", "cudaErrorInvalidDeviceFunction", "cudaErrorUnsupportedPtxVersion")
INSTALL = "pip install --force-reinstall --no-deps ."
TRANSFORMED = "the kernels have a backward pass, and no rule for forward-mode derivatives or torch.func transforms"
# Private names of torch. Without this check torch.library would drop tangents, and derivatives would be 0.
_transforms_active = torch._C._are_functorch_transforms_active
_any_autocast = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)  # the quick question


def use_compiled(backend: str, tensor: Tensor) -> bool:
    """True if the compiled kernel is to run; RuntimeError where `backend="compiled"` cannot be honoured. Where "auto"
    has to do without, a warning says why, once in a process."""
    if backend not in ("auto", "compiled", "reference"):
        raise ValueError(f"backend: expected 'auto', 'compiled' or 'reference', got {backend!r}")
    if backend == "reference":
        return False
    device = tensor.device
    transformed = _transforms_active() or forward_ad._current_level >= 0
    if extension is not None and device.type in ("cpu", "meta") and not transformed:
        return True
    return has_kernels(backend, device.type, device.index, transformed)


def has_kernels(backend: str, device: str, index: int | None = None, transformed: bool = False) -> bool:
    """`use_compiled` of a device; backend "auto" or "compiled". transformed: the call is in a transform."""
    reason = TRANSFORMED if transformed else why_no_kernels(device, index)
    if reason is None:
        return True
    if backend == "compiled":
        raise RuntimeError(f"backend='compiled': {reason}")
    _warn_once(fallback_sentence(device, reason))
    return False


# torch.compiler.assume_constant_result, which would import torch._dynamo: torch.compile calls it, and does not trace it
has_kernels._dynamo_marked_constant = True


@functools.cache  # not left to the warning filters, which may show each
def _warn_once(sentence: str) -> None:
    warnings.warn(f"ssl_fast: {sentence}", RuntimeWarning, stacklevel=5)


def fallback_sentence(device: str, reason: str) -> str:
    if reason is TRANSFORMED:
        return f"transformed calls run plain PyTorch: {reason}"
    if extension is None:
        return f"all ops run plain PyTorch or numpy: {reason}"
    return f"{'CUDA' if device == 'cuda' else device} tensors run plain PyTorch: {reason}"


def why_no_kernels(device: str, index: int | None = None) -> str | None:
    """Why tensors of this device have no compiled kernels, and the command that mends it; None where they have."""
    if extension is None:
        return f"the compiled module did not load ({extension_error}); `{INSTALL}` in its source folder builds it"
    if device in ("cpu", "meta"):
        return None
    if device != "cuda" or torch.version.hip:
        return f"there is no compiled kernel for device type {device!r}{' of ROCm' if device == 'cuda' else ''}"
    if not extension.cuda_architectures:
        return (
            f"the package was built without CUDA kernels ({extension.no_cuda}); `SSL_FAST_CUDA=ON {INSTALL}` in its "
            "source folder builds them, or says why it cannot"
        )
    return None if index is None else _why_not_loaded(index)


_load_errors: dict[int, tuple[str, str, int, int] | None] = {}  # by device


def _why_not_loaded(index: int) -> str | None:
    """Asks the module whether one of its kernels loads on this CUDA device; once, unless the error may pass."""
    error = _load_errors[index] if index in _load_errors else extension.cuda_error(index)
    if error is None or error[0] in ("cudaErrorInsufficientDriver", *NO_CODE):
        _load_errors[index] = error
    if error is None:
        return None
    name, text, built, driver = error
    release = f"CUDA {built // 1000}.{built % 1000 // 10}"
    supported = f"CUDA {driver // 1000}.{driver % 1000 // 10}"
    if name == "cudaErrorInsufficientDriver" and driver:
        oldest = OLDEST_DRIVER.get(built // 1000, f"of CUDA {built // 1000}")
        return (
            f"driver too old: {release} kernels need driver {oldest} or newer, found one of {supported}: update the "
            "driver"
        )
    if name not in NO_CODE:
        return f"no kernel loads on cuda:{index}: {text} ({name})"
    properties = torch.cuda.get_device_properties(index)
    found = f"{properties.name} (sm_{properties.major}{properties.minor})"
    if properties.major < 8:
        return f"the kernels need sm_80 or newer, found {found}"
    build = (
        f"`SSL_FAST_CUDA_ARCHS={properties.major}{properties.minor} {INSTALL}` in the source folder builds them for it"
    )
    if name == "cudaErrorUnsupportedPtxVersion":
        return (
            f"the driver, of {supported}, cannot compile the PTX of {release} for {found}: update the driver, or "
            f"{build}"
        )
    return f"the kernels were built for {extension.cuda_architectures}, found {found}; {build}"


def check_tensor(name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")


def check_pair(
    visual: Tensor,
    audio: Tensor,
    names: tuple[str, str] = ("visual", "audio"),
    paired: bool = False,
    tokens: bool = False,
) -> None:
    """visual (N, C, h, w) and audio (M, C), with `tokens` also (M, C, T), of the same dtype and device; with `paired`,
    M == N. ValueError or TypeError."""
    visual_name, audio_name = names
    check_tensor(visual_name, visual)
    check_tensor(audio_name, audio)
    if visual.dim() != 4 or min(visual.shape[1:]) < 1:
        raise ValueError(f"{visual_name}: expected (N, C, h, w) with C, h, w >= 1, got {tuple(visual.shape)}")
    rows = visual.shape[0] if paired else "M"
    dims = (2, 3) if tokens else (2,)
    if audio.dim() not in dims or audio.shape[1] != visual.shape[1] or (paired and audio.shape[0] != rows):
        expected = f"({rows}, {visual.shape[1]}{', T' if tokens and audio.dim() > 2 else ''})"
        raise ValueError(
            f"{audio_name}: expected {expected} to match {visual_name}'s "
            f"{'(N, C, h, w)' if paired else f'C={visual.shape[1]}'}, got {tuple(audio.shape)}"
        )
    if visual.dtype not in DTYPES:
        raise TypeError(f"{visual_name}: expected float32, bfloat16, float16 or float64, got {visual.dtype}")
    if audio.dtype != visual.dtype and (audio.dtype not in DTYPES or computed_dtype(audio) != computed_dtype(visual)):
        raise TypeError(f"{audio_name}: expected {visual.dtype} to match {visual_name}, got {audio.dtype}")
    if audio.device != visual.device:
        raise ValueError(f"{audio_name}: expected device {visual.device} to match {visual_name}, got {audio.device}")


def _autocasts(device: str) -> bool:
    # is_autocast_available breaks the graphs of torch 2.11
    return device != "meta" and torch.is_autocast_enabled(device)


def computed_dtype(features: Tensor) -> torch.dtype:
    """The dtype that `autocast_inputs` gives features."""
    device = features.device.type
    autocasts = _autocasts(device) and features.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocasts else features.dtype


def autocast_inputs(*features: Tensor, normalize: bool = True) -> tuple[Tensor, ...]:
    """Under autocast, features (B, C, ...) of another dtype become unit vectors in the autocast dtype, as lengths can
    leave its range; float64 stays. As where `F.normalize` stands before a matrix product. Without `normalize` they are
    cast as they are, as where it does not.

    The compiled kernels accumulate in float32 either way.
    """
    if not torch.compiler.is_compiling() and not _any_autocast():
        return features

    def cast(x: Tensor) -> Tensor:
        dtype = computed_dtype(x)
        return x if x.dtype == dtype else unit(x, dtype) if normalize else x.to(dtype)

    return tuple(map(cast, features))


def without_autocast(tensor: Tensor):
    """A context in which products of this device are computed in the dtypes that they are given."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else contextlib.nullcontext()
