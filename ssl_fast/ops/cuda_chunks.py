"""How features reach the CUDA kernels of all pairs: as rows, chunk of images by chunk, within a fixed workspace."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .checks import address, kernel_shape

# Rows, slopes and their products of one chunk of images take at most this (one image at least).
WORKSPACE_BYTES = 32 * 2**20
SLAB_BYTES = 64  # rows are filled up with zeros to a multiple of this
COLUMNS = 8  # rows of matrices with a column for each audio are filled up with zeros to a multiple of this


def _as_rows(features: Tensor) -> Tensor:
    """(N, C, h, w), channels last -> view (N * h * w, C)"""
    return features.permute(0, 2, 3, 1).view(-1, features.shape[1])


def _first(count: int, rows: Tensor) -> Tensor:
    return rows if rows.shape[0] == count else rows[:count]


class Pairs:
    """All audios with all cells of a chunk of images.

    visual: (N, C, h, w) as `memory_format` gives it, audio: (M, C) contiguous, cell_norm: (N, h * w), 1 / |v|, which
    the forward pass writes; kernels, where: as `kernels_for` gives them.
    """

    def __init__(self, visual: Tensor, audio: Tensor, cell_norm: Tensor, kernels, where: dict):
        self.visual, self.cell_norm, self.kernels, self.where = visual, cell_norm, kernels, where
        self.dtype, self.channels_last, self.images, _, self.channels, self.cells = kernel_shape(visual, 0)
        size, self.audios = visual.element_size(), audio.shape[0]
        self.slabs = -(-self.channels * size // SLAB_BYTES)
        self.width = self.slabs * SLAB_BYTES // size
        self.tf32 = visual.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        whole = self.channels_last and self.width == self.channels and visual.data_ptr() % 16 == 0
        self.in_place = bool(whole) and not self.tf32
        self.row_bytes = 0 if self.in_place else self.slabs * SLAB_BYTES
        # gradients of rows can be smaller than float16 goes
        self.gradient_dtype = torch.float32 if visual.dtype == torch.float16 else visual.dtype
        self.columns = self.audios + -self.audios % COLUMNS
        self.audio_rows = (audio.new_zeros if self.columns > self.audios else audio.new_empty)(self.columns, self.width)
        self.matrix_bytes = self.columns * self.gradient_dtype.itemsize  # of a row
        self.audio_norm = cell_norm.new_empty(self.audios)
        kernels.pack(
            self._shape_of_audio(),
            slabs=self.slabs,
            features=address(audio),
            rows=address(self.audio_rows),
            inverse_norm=address(self.audio_norm),
            tf32=self.tf32,
            **where,
        )

    def _shape_of_audio(self):
        return self.dtype, 1, 1, 0, self.channels, self.audios

    def hold(self, step: int) -> None:
        """Room for the rows of `step` images."""
        self.buffer = self.rows = None  # gone before there is another one
        if self.in_place:
            self.buffer = _as_rows(self.visual)
        else:
            self.buffer = self.rows = self.visual.new_empty(step * self.cells, self.width)

    def told(self, images: int, addresses: tuple[int, int, int, int]) -> tuple:
        """What the kernels are told of the pairs with some images: csrc/cuda/bindings.h"""
        return (self.dtype, self.tf32, self.audios, images, self.cells, self.slabs), addresses

    def pack(self, first: int, count: int, new_norms: bool) -> None:
        self.count = count * self.cells
        if self.in_place:
            self.rows = self.buffer[first * self.cells : first * self.cells + self.count]
        else:
            self.rows = _first(self.count, self.rows)
        rows, norm = address(self.rows), address(self.cell_norm, first)
        self.shape = self.dtype, self.channels_last, count, 0, self.channels, self.cells
        self.addresses = address(self.audio_rows), rows, address(self.audio_norm), norm
        self.pairs = self.told(count, self.addresses)
        if new_norms or not self.in_place:
            self.kernels.pack(
                self.shape,
                slabs=self.slabs,
                features=address(self.visual, first),
                rows=0 if self.in_place else rows,
                inverse_norm=norm if new_norms else 0,
                tf32=self.tf32,
                **self.where,
            )

    def matrix(self) -> Tensor:
        """Room for slopes, or for cosines of the same size: (rows of the chunk, M filled up)"""
        return self.rows.new_empty(self.count, self.columns, dtype=self.gradient_dtype)

    def write_audio(self, gradient: Tensor, grad_audio: Tensor) -> None:
        self.write(self._shape_of_audio(), *self.addresses[::2], gradient, address(grad_audio))

    def write(self, shape, rows, norm, gradient, to):
        """From gradients with respect to the unit vectors of rows, over their lengths, to those of the features."""
        self.kernels.unpack(
            shape,
            slabs=self.slabs,
            features=to,
            rows=rows,
            inverse_norm=norm,
            gradient=address(gradient),
            real_gradient=self.is_real(gradient),
            **self.where,
        )

    def is_real(self, x: Tensor) -> bool:
        return x.dtype == self.cell_norm.dtype


def chunks(*spaces: Pairs, row_bytes: int = 0, new_norms: bool = False) -> Iterator[tuple[int, int]]:
    """Number of the first image and how many, for chunk after chunk that the spaces then hold: as many images as fit
    the workspace with their rows, and with `row_bytes` for each row besides. With `new_norms`, their lengths are taken
    too."""
    images, cells = spaces[0].images, spaces[0].cells
    row_bytes += sum(space.row_bytes for space in spaces)
    step = max(1, min(images, WORKSPACE_BYTES // (max(1, row_bytes) * cells)))
    if step < images:
        step = spaces[0].kernels.good_chunk(spaces[0].told(0, (0, 0, 0, 0)), step)
    for space in spaces:
        space.hold(step)
    for first in range(0, images, step):
        count = min(step, images - first)
        for space in spaces:
            space.pack(first, count, new_norms)
        yield first, count


class VisualGradient:
    """A place for the gradient of a chunk's rows, and the way from there to the gradient of the features."""

    def __init__(self, pairs: Pairs, grad_visual: Tensor):
        self.pairs, self.grad_visual = pairs, grad_visual
        self.in_place = pairs.in_place and pairs.gradient_dtype == grad_visual.dtype
        self.row_bytes = 0 if self.in_place else pairs.width * pairs.gradient_dtype.itemsize
        self.rows = _as_rows(grad_visual) if self.in_place else None

    def of_chunk(self, first: int) -> Tensor:
        """(rows of the chunk, channels filled up), to be written"""
        pairs = self.pairs
        if self.in_place:
            return self.rows[first * pairs.cells : first * pairs.cells + pairs.count]
        if self.rows is None:
            self.rows = torch.empty_like(pairs.rows, dtype=pairs.gradient_dtype)
        self.rows = _first(pairs.count, self.rows)
        return self.rows

    def write(self, first: int, gradient: Tensor) -> None:
        pairs = self.pairs
        pairs.write(pairs.shape, *pairs.addresses[1::2], gradient, address(self.grad_visual, first))


class DenseGradients:
    """Both gradients (None: not wanted) from slopes dS/dalpha / (|v| |a|) of all cells, (rows, M) chunk by chunk."""

    def __init__(self, pairs: Pairs, grad_visual: Tensor | None, grad_audio: Tensor | None):
        self.pairs, self.grad_audio = pairs, grad_audio
        self.visual = None if grad_visual is None else VisualGradient(pairs, grad_visual)
        self.audio_rows, self.matrix, self.sums = pairs.audio_rows.to(pairs.gradient_dtype), None, None
        self.row_bytes = pairs.matrix_bytes
        if self.visual:
            self.row_bytes += self.visual.row_bytes
        if pairs.gradient_dtype != pairs.visual.dtype:  # the rows, converted
            self.row_bytes += pairs.width * pairs.gradient_dtype.itemsize

    def slopes(self) -> Tensor:
        """Of the chunk, to be written."""
        if self.matrix is None:
            self.matrix = self.pairs.matrix()
        self.matrix = _first(self.pairs.count, self.matrix)
        return self.matrix

    def add(self, first: int, slopes: Tensor) -> None:
        if self.visual:
            gradient = self.visual.of_chunk(first)
            self.visual.write(first, torch.mm(slopes, self.audio_rows, out=gradient))
        if self.grad_audio is not None:
            part = torch.mm(slopes.t(), self.pairs.rows.to(slopes.dtype))
            self.sums = part if self.sums is None else self.sums.to(self.pairs.cell_norm.dtype).add_(part)

    def finish(self) -> None:
        if self.grad_audio is not None:
            self.pairs.write_audio(self.sums, self.grad_audio)
