"""The one boundary where arguments of ops are checked, where the backend is chosen, and what a kernel call is given."""

import contextlib

import torch  # before the compiled module, which then shares torch's OpenMP runtime and thread pool
from torch import Tensor

try:
    from .. import _C as extension

    extension_error = None
except ImportError as error:  # told by `ssl-fast doctor` and by backend="compiled"
    extension = None
    extension_error = str(error)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in the order of csrc/params.h
# Alphas of a forward pass that are kept for its backward pass; those beyond are computed again.
KEPT_ALPHA_BYTES = 32 * 2**20


def use_compiled(backend: str, tensor: Tensor) -> bool:
    """Whether to run the compiled kernel; RuntimeError where `backend="compiled"` cannot be honoured."""
    if backend not in ("auto", "compiled", "reference"):
        raise ValueError(f"backend: expected 'auto', 'compiled' or 'reference', got {backend!r}")
    device = tensor.device.type
    reason = None
    if extension is None:
        reason = f"the compiled module did not load ({extension_error})"
    elif device == "cuda" and not extension.cuda_architectures:
        reason = "the compiled module was built without CUDA"
    elif device not in ("cpu", "meta", "cuda"):
        reason = f"there is no compiled kernel for device type {device!r}"
    if backend == "compiled" and reason:
        raise RuntimeError(f"backend='compiled': {reason}")
    return backend != "reference" and reason is None


def check_pair(visual: Tensor, audio: Tensor, names: tuple[str, str] = ("visual", "audio"), paired: bool = False) -> None:
    """visual (N, C, h, w) and audio (M, C), same dtype and device; with `paired`, M == N. ValueError or TypeError."""
    visual_name, audio_name = names
    if visual.dim() != 4 or min(visual.shape[1:]) < 1:
        raise ValueError(f"{visual_name}: expected (N, C, h, w) with C, h, w >= 1, got {tuple(visual.shape)}")
    rows = visual.shape[0] if paired else "M"
    if audio.dim() != 2 or audio.shape[1] != visual.shape[1] or (paired and audio.shape[0] != rows):
        raise ValueError(
            f"{audio_name}: expected ({rows}, {visual.shape[1]}) to match {visual_name}'s "
            f"{'(N, C, h, w)' if paired else f'C={visual.shape[1]}'}, got {tuple(audio.shape)}"
        )
    if visual.dtype not in DTYPES:
        raise TypeError(f"{visual_name}: expected float32, bfloat16, float16 or float64, got {visual.dtype}")
    if audio.dtype != visual.dtype:
        raise TypeError(f"{audio_name}: expected {visual.dtype} to match {visual_name}, got {audio.dtype}")
    if audio.device != visual.device:
        raise ValueError(f"{audio_name}: expected device {visual.device} to match {visual_name}, got {audio.device}")


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)  # is_autocast_available breaks the graphs of torch 2.11


def autocast_inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast, bring inputs to the autocast dtype as a matrix product would; float64 stays.

    The compiled kernels accumulate in float32 either way.
    """
    device = tensors[0].device.type
    if not _autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def without_autocast(tensor: Tensor):
    """A context in which products of this device are computed in the dtypes that they are given."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else contextlib.nullcontext()


# ---- kernel calls ----


def memory_format(visual: Tensor) -> torch.memory_format:
    """The layout in which a kernel reads this tensor (after a copy, where it has neither)."""
    last = visual.is_contiguous(memory_format=torch.channels_last) and not visual.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def kernel_shape(visual: Tensor, audios: int) -> tuple[int, ...]:
    """Shape of csrc/params.h. A map of one cell counts as channels last: its channels are contiguous."""
    images, channels, height, width = visual.shape
    last = memory_format(visual) == torch.channels_last or height * width == 1
    return DTYPES.index(visual.dtype), int(last), images, audios, channels, height * width


emulated = None  # a test puts the CUDA kernels here, compiled for the CPU: CPU tensors then go the way of CUDA tensors


def on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda or emulated is not None


@contextlib.contextmanager
def kernels_for(tensor: Tensor):
    """(the kernels of this tensor's device, keyword arguments that say where they run: threads, or the current stream)

    What torch computes in between is not subject to autocast.
    """
    with without_autocast(tensor):
        if emulated is not None:
            yield emulated, {}
        elif tensor.is_cuda:
            with torch.cuda.device(tensor.device):
                yield extension.cuda, {"stream": torch.cuda.current_stream().cuda_stream}
        else:
            yield extension, {"threads": torch.get_num_threads()}


def address(tensor: Tensor | None, index: int = 0) -> int:
    """Of tensor[index]; 0 of None."""
    if tensor is None:
        return 0
    return tensor.data_ptr() + (index * tensor.stride(0) * tensor.element_size() if index else 0)


def kept_shape(visual: Tensor, audios: int, keep: bool, maps: int = 1) -> tuple[int, int, int, int]:
    """(images, panels, cells, lanes): alphas of the first images, as many as the budget holds for all `maps`, in the
    kernel's order."""
    lanes = extension.panel(visual.dtype == torch.float64)
    panels = (audios + lanes - 1) // lanes
    cells = visual.shape[2] * visual.shape[3]
    per_image = maps * max(panels * cells * lanes, 1) * (8 if visual.dtype == torch.float64 else 4)
    images = min(visual.shape[0], KEPT_ALPHA_BYTES // per_image) if keep else 0
    return images, panels, cells, lanes


def check_kept(kept: Tensor, float64: bool) -> None:
    if kept.shape[3] != extension.panel(float64):
        raise RuntimeError("the instruction set was changed between the forward and the backward pass")
