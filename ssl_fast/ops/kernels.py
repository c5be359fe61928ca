"""The launch of a kernel: which module holds it, and what it is given of tensors (shape, layout, memory)."""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import extension, without_autocast
from .reference import accumulate_dtype

# Alphas of a forward pass that are cached for its backward pass; those beyond are computed again.
CACHED_ALPHA_BYTES = 32 * 2**20


def _cuda_cache_bytes() -> int:
    name = "SSL_FAST_CUDA_CACHE_MIB"
    text = os.environ.get(name, "256")
    if not text.isdecimal():
        raise ValueError(f"{name}: expected a whole number of MiB >= 0, got {text!r}")
    return int(text) * 2**20


CUDA_CACHED_ALPHA_BYTES = _cuda_cache_bytes()  # the same of the CUDA kernels
# 16 bits hold alphas in steps of 3e-5: of what is divided by less than this (beta, tau), they are computed again.
CACHED_DIVISOR = 1e-3
# Arithmetic below which a call runs on one thread: waking another costs up to 15 microseconds where it sleeps (the time
# of about 1.5 million of these operations), and milliseconds where its core has other work.
SERIAL_FLOPS = 4e6
# What an exponential, or a number that is read from memory or written, counts as in such arithmetic.
EXPONENTIAL_FLOPS, MEMORY_FLOPS = 64, 16
COLUMNS = 8  # rows of their matrices with a column for each audio are filled up to a multiple of this


class Launch(NamedTuple):
    """The place of a launch. kernels: a compiled module; args: keyword arguments of every launch, threads or stream."""

    kernels: Any
    args: dict[str, int]


def runs_on_cuda(tensor: Tensor) -> bool:
    """True if this tensor's kernels are those of csrc/cuda, which take images chunk by chunk."""
    return tensor.is_cuda


def launch_on(tensor: Tensor, flops: float = SERIAL_FLOPS) -> AbstractContextManager[Launch]:
    """A context with the launch for this tensor's device; on a CPU, that of so much arithmetic. What torch computes
    inside on CUDA is not subject to autocast."""
    if tensor.is_cuda:
        return _cuda_launch(tensor)
    return contextlib.nullcontext(Launch(extension, {"threads": threads_for(flops)}))


def threads_for(flops: float) -> int:
    """How many threads of a CPU share so much arithmetic."""
    return 1 if flops < SERIAL_FLOPS else torch.get_num_threads()


def product_flops(visual: Tensor, audios: int) -> int:
    """Arithmetic of the product of all cells with so many audios."""
    return 2 * visual.numel() * audios


def pass_flops(visual: Tensor) -> int:
    """The same of one pass over the images."""
    return MEMORY_FLOPS * visual.numel()


@contextlib.contextmanager
def _cuda_launch(tensor: Tensor) -> Iterator[Launch]:
    with without_autocast(tensor), torch.cuda.device(tensor.device):
        yield Launch(extension.cuda, {"stream": torch.cuda.current_stream().cuda_stream})


# ---- tensors as kernels see them ----


def memory_format(visual: Tensor) -> torch.memory_format:
    """The layout in which a kernel reads this tensor (after a copy, where it has neither)."""
    last = not visual.is_contiguous() and visual.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def dense(visual: Tensor) -> Tensor:
    """The same values in one of the two layouts that kernels read."""
    return visual if visual.is_contiguous() else visual.contiguous(memory_format=memory_format(visual))


@functools.cache
def dtype_of(kernels, dtype: torch.dtype):
    """The DType of csrc/params.h."""
    return getattr(kernels.DType, str(dtype).removeprefix("torch."))


def dense_audio(audio: Tensor) -> Tensor:
    """(M, C), or (M, C, T) in either order of channels and tokens, in one of the layouts that kernels read."""
    return audio if audio.dim() == 3 and audio.transpose(1, 2).is_contiguous() else audio.contiguous()


def rows_of(audio: Tensor) -> int:
    """M of (M, C); M * T of (M, C, T)."""
    return audio.shape[0] if audio.dim() == 2 else audio.shape[0] * audio.shape[2]


def tokens_of(audio: Tensor | None) -> int:
    """Tokens of a clip that lie side by side in memory; 1 where channels do."""
    if audio is None or audio.dim() == 2 or audio.transpose(1, 2).is_contiguous():
        return 1
    return audio.shape[2]


def shape_of(
    kernels,
    visual: Tensor,
    audios: int,
    images: int | None = None,
    normalized: bool = True,
    *,
    audio: Tensor | None = None,
    heads: int = 1,
    head: int = 0,
):
    """The Shape of csrc/params.h; images: of the first ones (None: all); normalized: cosines, else dot products; audio:
    needed where it may be (M, C, T); head: which of the groups of channels.

    A map of one cell counts as channels last: its channels are contiguous.
    """
    last = not visual.is_contiguous() and memory_format(visual) == torch.channels_last
    return _shape(kernels, visual.dtype, last, visual.shape, images, audios, normalized, tokens_of(audio), heads, head)


@functools.lru_cache(maxsize=256)  # making one takes longer than finding it
def _shape(kernels, dtype, last, size, images, audios, normalized, tokens, heads, head):
    count, channels, height, width = size
    return kernels.Shape(
        dtype=dtype_of(kernels, dtype),
        channels_last=last or height * width == 1,
        images=count if images is None else images,
        audios=audios,
        channels=channels // heads,
        cells=height * width,
        normalized=normalized,
        all_channels=channels,
        first_channel=head * (channels // heads),
        tokens=tokens,
    )


def buffer(tensor: Tensor | None, first: int = 0) -> tuple[int, int] | None:
    """(address, bytes) of tensor[first:], which is contiguous from there on; None for None."""
    if tensor is None:
        return None
    skipped = first * tensor.stride(0) * tensor.element_size() if first else 0
    return tensor.data_ptr() + skipped, tensor.nbytes - skipped


def features_of(
    kernels,
    visual: Tensor,
    audio: Tensor,
    inverse_norm: Tensor,
    alphas: Tensor,
    grad_visual: Tensor | None = None,
    grad_audio: Tensor | None = None,
):
    """The Features of csrc/params.h, for the CPU kernels: one space of cosines, and its gradients (None: not
    wanted)."""
    return kernels.Features(
        visual=buffer(visual),
        audio=buffer(audio),
        inverse_norm=buffer(inverse_norm),
        cached_alphas=buffer(alphas),
        grad_visual=buffer(grad_visual),
        grad_audio=buffer(grad_audio),
    )


def _empty_like(visual: Tensor) -> Tensor:
    if visual.is_contiguous():
        return torch.empty_like(visual)
    return torch.empty_like(visual, memory_format=memory_format(visual))


def empty_gradients(visual: Tensor, audio: Tensor, need_visual: bool, need_audio: bool) -> tuple[Tensor, Tensor]:
    """Room for the gradients of visual (N, C, h, w) and audio, both `dense`; (0,) for one that is not needed."""
    return (
        _empty_like(visual) if need_visual else visual.new_empty(0),
        torch.empty_like(dense_audio(audio)) if need_audio else audio.new_empty(0),
    )


# ---- alphas cached for the backward pass ----


def padded_audios(audios: int, float64: bool) -> int:
    """Audios in whole panels of the CPU kernels."""
    lanes = extension.panel(float64)
    return (audios + lanes - 1) // lanes * lanes


def matrix_columns(audios: int) -> int:
    """Columns of a matrix of the CUDA kernels with one for each audio."""
    return (audios + COLUMNS - 1) // COLUMNS * COLUMNS


def cache_rows(visual: Tensor, audios: int) -> int:
    """Rows of the alphas of one image in a cache."""
    cells, float64 = visual.shape[2] * visual.shape[3], visual.dtype == torch.float64
    return cells if runs_on_cuda(visual) else padded_audios(audios, float64) // extension.panel(float64) * cells


def empty_cache(visual: Tensor, audios: int, cached: bool, maps: int = 1, heads: int = 1) -> Tensor:
    """Room for alphas of the first images, as many as the budget holds for all `maps`, in the kernel's order: on a CPU
    (images * panels * cells, lanes) real, on CUDA (images * cells, M filled up), int16 fixed point where features have
    16 bits. (Of two maps, those of float16 are float32.) The images of a head follow those of the head before it.

    The images are no axis of their own: a compiled graph would be specialised to 0, 1 or all of them.
    """
    dtype, float64 = accumulate_dtype(visual), visual.dtype == torch.float64
    rows = cache_rows(visual, audios)
    if runs_on_cuda(visual):
        columns, budget = matrix_columns(audios), CUDA_CACHED_ALPHA_BYTES
        if visual.dtype == torch.bfloat16 or (visual.dtype == torch.float16 and maps == 1):
            dtype = torch.int16
    else:
        columns, budget = extension.panel(float64), CACHED_ALPHA_BYTES
    bytes_per_image = maps * max(rows * columns, 1) * dtype.itemsize
    images = min(heads * visual.shape[0], budget // bytes_per_image) if cached else 0
    return visual.new_empty(images * rows, columns, dtype=dtype)


def cached_images(alphas: Tensor, visual: Tensor, audios: int) -> int:
    """Number of images that cached alphas belong to."""
    rows, columns = alphas.shape
    panels = 1 if runs_on_cuda(visual) else -(-audios // columns)
    return rows // max(panels * visual.shape[2] * visual.shape[3], 1)


def check_cache(alphas: Tensor, visual: Tensor) -> None:
    if not runs_on_cuda(visual) and alphas.shape[1] != extension.panel(visual.dtype == torch.float64):
        raise RuntimeError("the instruction set was changed between the forward and the backward pass")
