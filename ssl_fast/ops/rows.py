"""How features reach the CUDA kernels of all pairs: as rows, chunk of images by chunk, within a fixed workspace."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import DTYPES, address, kernel_shape

# Rows, slopes and their products of one chunk of images take at most this (one image at least).
WORKSPACE_BYTES = 32 * 2**20
SLAB_BYTES = 64  # rows are filled up with zeros to a multiple of this
COLUMNS = 8  # rows of matrices with a column for each audio are filled up to a multiple of this


def as_rows(vectors: Tensor) -> Tensor:
    """(n, cells, C) of any strides -> (n * cells, C filled up), contiguous and aligned to 16 bytes; a view where it can be."""
    n, cells, channels = vectors.shape
    per_slab = SLAB_BYTES // vectors.element_size()
    width = -(-channels // per_slab) * per_slab
    if width == channels and vectors.is_contiguous() and vectors.data_ptr() % 16 == 0:
        return vectors.view(n * cells, width)
    rows = vectors.new_empty(n, cells, width)
    rows[..., :channels] = vectors
    rows[..., channels:] = 0
    return rows.view(n * cells, width)


def by_cell(visual: Tensor) -> Tensor:
    """(N, C, h, w), channels first or last -> view (N, h * w, C)"""
    return visual.flatten(2).transpose(1, 2)


def _slabs(rows: Tensor) -> int:
    return rows.shape[1] * rows.element_size() // SLAB_BYTES


@dataclass
class Chunk:
    images: slice
    rows: Tensor  # of the cells of these images
    norm: Tensor  # (n, cells): 1 / |v|
    pairs: tuple  # what the kernels are told of them: csrc/cuda/bindings.h


class Pairs:
    """All audios with all cells.

    visual: (N, C, h, w) as `memory_format` gives it, audio: (M, C) contiguous, cell_norm: (N, h * w), 1 / |v|, which the
    forward pass writes; kernels, where: as `kernels_for` gives them.
    """

    def __init__(self, visual: Tensor, audio: Tensor, cell_norm: Tensor, kernels, where: dict):
        self.visual, self.cell_norm, self.kernels, self.where = visual, cell_norm, kernels, where
        self.audio_norm, filled_up = cell_norm.new_empty(len(audio)), -len(audio) % COLUMNS
        self.audio_rows = as_rows(torch.nn.functional.pad(audio, (0, 0, 0, filled_up))[:, None])
        self._write_norm(audio[:, :, None, None], self.audio_norm)

    def _write_norm(self, features: Tensor, norm: Tensor) -> None:
        self.kernels.mean(kernel_shape(features, 0), visual=address(features), inverse_norm=address(norm), out=0, **self.where)

    def write_cell_norm(self) -> None:
        self._write_norm(self.visual, self.cell_norm)

    def chunk(self, images: slice) -> Chunk:
        part, norm = by_cell(self.visual[images]), self.cell_norm[images]
        rows = as_rows(part)
        tf32 = rows.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        sizes = (DTYPES.index(rows.dtype), int(tf32), len(self.audio_norm), *part.shape[:2], _slabs(rows))
        return Chunk(images, rows, norm, (sizes, tuple(map(address, (self.audio_rows, rows, self.audio_norm, norm)))))

    def matrix(self, chunk: Chunk, dtype: torch.dtype) -> Tensor:
        """(rows of the chunk, M filled up)"""
        return chunk.rows.new_empty(len(chunk.rows), len(self.audio_rows), dtype=dtype)

    def project(self, gradient: Tensor, rows: Tensor, norm: Tensor) -> None:
        """In place: gradient with respect to unit vectors, over their lengths -> with respect to the raw rows."""
        self.kernels.project(dtype=DTYPES.index(rows.dtype), real_gradient=int(gradient.dtype == norm.dtype), count=len(gradient),
                             slabs=_slabs(rows), rows=address(rows),
                             inverse_norm=address(norm), gradient=address(gradient), **self.where)

    def audio_sums(self) -> Tensor:
        return self.audio_norm.new_zeros(self.audio_rows.shape)

    def write_audio(self, sums: Tensor, grad_audio: Tensor) -> None:
        sums = sums[: len(grad_audio)]
        self.project(sums, self.audio_rows, self.audio_norm)
        grad_audio.copy_(sums[:, : grad_audio.shape[1]])


def for_chunks(spaces: tuple[Pairs, ...], function: Callable, row_bytes: int = 0) -> None:
    """Calls function(a chunk of each of the spaces), images after images: as many at a time as fit the workspace with
    their rows, and with `row_bytes` for each row that the function takes. It must keep none of them."""
    visual = spaces[0].visual
    row_bytes += sum(space.audio_rows[0].nbytes for space in spaces)
    step = max(1, WORKSPACE_BYTES // (row_bytes * visual[0, 0].numel()))
    for first in range(0, len(visual), step):
        images = slice(first, min(first + step, len(visual)))
        function(*(space.chunk(images) for space in spaces))


class DenseGradients:
    """Both gradients (None: not wanted) from slopes dS/dalpha / (|v| |a|) of all cells, (rows, M) chunk by chunk."""

    def __init__(self, pairs: Pairs, grad_visual: Tensor | None, grad_audio: Tensor | None):
        self.pairs, self.grad_visual, self.grad_audio = pairs, grad_visual, grad_audio
        # slopes can be smaller than float16 goes
        self.dtype = torch.float32 if pairs.visual.dtype == torch.float16 else pairs.visual.dtype
        self.audio_rows, self.sums = pairs.audio_rows.to(self.dtype), pairs.audio_sums()
        self.row_bytes = (len(self.audio_rows) + 2 * self.audio_rows.shape[1]) * self.audio_rows.element_size()

    def slopes(self, chunk: Chunk) -> Tensor:
        return self.pairs.matrix(chunk, self.dtype)

    def add(self, chunk: Chunk, slopes: Tensor) -> None:
        if self.grad_visual is not None:
            gradient = slopes @ self.audio_rows
            self.pairs.project(gradient, chunk.rows, chunk.norm)
            target = by_cell(self.grad_visual[chunk.images])
            target.copy_(gradient.view(*target.shape[:2], -1)[..., : target.shape[2]])
        if self.grad_audio is not None:
            self.sums += slopes.t() @ chunk.rows.to(self.dtype)

    def finish(self) -> None:
        if self.grad_audio is not None:
            self.pairs.write_audio(self.sums, self.grad_audio)
