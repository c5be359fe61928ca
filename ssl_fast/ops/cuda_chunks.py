"""Chunks of images for the CUDA kernels of all pairs: features are packed as rows within a fixed workspace."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .kernels import CUDA_CACHED_ALPHA_BYTES, Launch, buffer, dtype_of, matrix_columns, rows_of, shape_of, tokens_of

# Rows, slopes and their products of one chunk of images take at most this in each space (one image at least): as much
# as may be cached, as without a cache a chunk still has to fill the GPU.
WORKSPACE_BYTES = max(32 * 2**20, CUDA_CACHED_ALPHA_BYTES)
K_BLOCK_BYTES = 64  # rows are filled up with zeros to a multiple of this


def _as_rows(features: Tensor) -> Tensor:
    """(N, C, h, w), channels last -> view (N * h * w, C)"""
    return features.permute(0, 2, 3, 1).view(-1, features.shape[1])


@dataclass(frozen=True)
class Chunk:
    """Some images of a space. Rows are in the workspace, which the next chunk takes over.

    first, images: number of the first image, and how many. rows: (images * cells, channels filled up), or (0, ...)
    where kernels pack for themselves and nothing else needs them. pairs: what kernels are given of the pairs of all
    audios with these cells.
    """

    first: int
    images: int
    rows: Tensor
    pairs: Any


class Space:
    """One space of cosines: all audios, and the images, chunk by chunk. The audios are packed in the launch that packs
    the first chunk.

    visual: (N, C, h, w); audio: (M, C) or (M, C, T), both dense; cell_norm: (N, h * w), 1 / |v|, which the forward pass
    writes. Without `normalized`, dot products: all norms are 1. heads, head: of the channels, one group of `heads`.
    """

    def __init__(
        self,
        launch: Launch,
        visual: Tensor,
        audio: Tensor,
        cell_norm: Tensor,
        normalized: bool = True,
        heads: int = 1,
        head: int = 0,
    ):
        self.launch, self.visual, self.cell_norm = launch, visual, cell_norm
        self.options = {"normalized": normalized, "heads": heads, "head": head}
        kernels, size = launch.kernels, visual.element_size()
        shape = shape_of(kernels, visual, 0)
        self.images, self.channels, self.cells = visual.shape[0], visual.shape[1] // heads, visual.shape[2:].numel()
        self.audios, self.k_blocks = rows_of(audio), -(-self.channels * size // K_BLOCK_BYTES)
        self.width = self.k_blocks * K_BLOCK_BYTES // size
        self.tf32 = visual.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
        whole = shape.channels_last and self.width == visual.shape[1] and visual.data_ptr() % 16 == 0
        self.in_place = bool(whole) and not self.tf32  # the features are rows as they are
        self.row_bytes = 0 if self.in_place else self.k_blocks * K_BLOCK_BYTES
        # gradients of rows can be smaller or larger than float16 goes
        self.gradient_dtype = torch.float32 if visual.dtype == torch.float16 else visual.dtype
        self.columns = matrix_columns(self.audios)
        self.packed_audios = (audio.new_zeros if self.columns > self.audios else audio.new_empty)(
            self.columns, self.width
        )
        self.matrix_bytes = self.columns * self.gradient_dtype.itemsize  # of a row
        self.audio_norm = cell_norm.new_empty(self.audios)
        self.sizes = {
            "dtype": dtype_of(kernels, visual.dtype),
            "tf32": self.tf32,
            "audios": self.audios,
            "cells": self.cells,
            "k_blocks": self.k_blocks,
        }
        plan = kernels.plan(**self.sizes, images=self.images)
        # a kernel can, as it loads an image
        self.packs_itself = plan["resident"] and not shape.channels_last and heads == 1
        tokens = tokens_of(audio)
        self.audio_shape = kernels.Shape(  # of clips as images, whose cells are the tokens; of rows as one image
            dtype=self.sizes["dtype"],
            channels_last=tokens == 1,
            images=self.audios // tokens if tokens > 1 else 1,
            audios=0,
            channels=self.channels,
            cells=tokens if tokens > 1 else self.audios,
            normalized=normalized,
            all_channels=audio.shape[1],
            first_channel=head * self.channels,
        )
        self.packing_of_audios = [
            kernels.Pack(
                self.audio_shape,
                k_blocks=self.k_blocks,
                features=buffer(audio),
                packed=buffer(self.packed_audios),
                inverse_norm=buffer(self.audio_norm),
                tf32=self.tf32,
            )
        ]

    def row_buffer(self, images: int) -> Tensor:
        """The rows of all images where they are in place, else room for those of `images`."""
        return _as_rows(self.visual) if self.in_place else self.visual.new_empty(images * self.cells, self.width)

    def chunk(
        self, rows: Tensor, first: int, images: int, *, read: bool, by_kernel: bool, take_lengths: bool
    ) -> tuple[Chunk, list[Any]]:
        """Images as kernels read them, and what is to be packed for that: if rows are `read`, these, into a
        `row_buffer`, and once the audios; with `take_lengths` lengths. `by_kernel`: the kernel packs the images."""
        kernels = self.launch.kernels
        begin = first * self.cells if self.in_place else 0
        rows = rows[begin : begin + images * self.cells]
        packing = []
        if read:
            packing, self.packing_of_audios = self.packing_of_audios, []
        pack_rows = read and not self.in_place
        if not by_kernel and (pack_rows or take_lengths):
            cells = kernels.Pack(
                shape_of(kernels, self.visual, 0, images, **self.options),
                k_blocks=self.k_blocks,
                features=buffer(self.visual, first),
                packed=buffer(rows) if pack_rows else None,
                inverse_norm=buffer(self.cell_norm, first) if take_lengths else None,
                tf32=self.tf32,
            )
            packing = [cells, *packing]
        normalized = self.options["normalized"]
        features = {"features": buffer(self.visual, first), "channels": self.channels, "normalized": normalized}
        pairs = kernels.Pairs(
            **self.sizes,
            **(features if by_kernel else {}),
            images=images,
            packed_audios=buffer(self.packed_audios),
            packed_cells=buffer(rows) if len(rows) else None,
            audio_norm=buffer(self.audio_norm),
            cell_norm=buffer(self.cell_norm, first),
        )
        return Chunk(first, images, rows, pairs), packing

    def matrix(self, images: int) -> Tensor:
        """Room for slopes, or for cosines of the same size: (images * cells, M filled up)"""
        return self.visual.new_empty(images * self.cells, self.columns, dtype=self.gradient_dtype)

    def unpacking_of_visual(self, chunk: Chunk, gradient: Tensor, grad_visual: Tensor, scale: Tensor | None = None):
        """For `unpack`: gradients of the features of a chunk, from those with respect to unit vectors, over their
        lengths; times `scale`."""
        return self._unpacking(
            shape_of(self.launch.kernels, self.visual, 0, chunk.images, **self.options),
            buffer(chunk.rows),
            buffer(self.cell_norm, chunk.first),
            gradient,
            buffer(grad_visual, chunk.first),
            scale,
        )

    def unpacking_of_audio(self, gradient: Tensor, grad_audio: Tensor):
        return self._unpacking(
            self.audio_shape, buffer(self.packed_audios), buffer(self.audio_norm), gradient, buffer(grad_audio)
        )

    def _unpacking(self, shape, rows, norm, gradient, features, scale=None):
        return self.launch.kernels.Unpack(
            shape,
            k_blocks=self.k_blocks,
            features=features,
            packed=rows,
            inverse_norm=norm,
            gradient=buffer(gradient),
            real_gradient=self.is_real(gradient),
            scale=buffer(scale),
        )

    def write_audio(self, gradient: Tensor, grad_audio: Tensor) -> None:
        unpack(self.launch, [self.unpacking_of_audio(gradient, grad_audio)])

    def is_real(self, x: Tensor) -> bool:
        """True for float32, or float64 where features are float64."""
        return x.dtype == self.cell_norm.dtype


def unpack(launch: Launch, gradients: list[Any]) -> None:
    """Gradients of features from those of rows, all in one launch."""
    if gradients:
        launch.kernels.unpack(gradients, **launch.args)


def for_chunks(
    spaces: Sequence[Space],
    body: Callable[..., None],
    *,
    row_bytes: int = 0,
    first_pass: bool = False,
    cached_images: int = 0,
    kernel_packs: bool = False,
    need_rows: bool = True,
) -> None:
    """Calls body(chunk of each space) for all images: as many at a time as fit the workspace with their rows, and with
    `row_bytes` for each row besides. What is packed is packed in one launch for all spaces. No chunk has both some of
    the first `cached_images` and others.

    first_pass: the kernel that body launches packs for itself where it can, and lengths are taken; nothing else needs
    rows. Later, kernel_packs: the same, of images that are not cached; need_rows: something else does need rows, of all
    images.
    """
    space = spaces[0]
    need_rows = need_rows and not first_pass
    by_kernel = space.packs_itself and (first_pass or kernel_packs)
    with_rows = need_rows or not by_kernel
    row_bytes += sum(space.row_bytes for space in spaces) if with_rows else 0
    most = max(1, min(space.images, len(spaces) * WORKSPACE_BYTES // (max(1, row_bytes) * space.cells)))
    step = most
    if most < space.images:
        step = space.launch.kernels.good_chunk(**space.sizes, most=most, spaces=len(spaces))
    rows = [space.row_buffer(most if with_rows else 0) for space in spaces]
    first = 0
    while first < space.images:
        cached = first < cached_images
        images = min(most, cached_images - first) if cached else min(step, space.images - first)
        multiplied = first_pass or not cached  # by the kernel that body launches
        how = {"read": multiplied or need_rows, "by_kernel": multiplied and by_kernel, "take_lengths": first_pass}
        chunks, packing = zip(*(space.chunk(one, first, images, **how) for space, one in zip(spaces, rows)))
        to_pack = [one for of_space in packing for one in of_space]
        if to_pack:
            space.launch.kernels.pack(to_pack, **space.launch.args)
        body(*chunks)
        first += images


class VisualGradient:
    """Gradients of a chunk's rows: where they are written, and the way from there to the gradient of the features."""

    def __init__(self, space: Space, grad_visual: Tensor):
        self.space, self.grad_visual = space, grad_visual
        self.in_place = space.in_place and space.gradient_dtype == grad_visual.dtype
        self.row_bytes = 0 if self.in_place else space.width * space.gradient_dtype.itemsize
        self.workspace = _as_rows(grad_visual) if self.in_place else None

    def rows(self, chunk: Chunk) -> Tensor:
        """(rows of the chunk, channels filled up), to be written."""
        if self.workspace is None or (not self.in_place and len(self.workspace) < len(chunk.rows)):
            self.workspace = torch.empty_like(chunk.rows, dtype=self.space.gradient_dtype)
        begin = chunk.first * self.space.cells if self.in_place else 0
        return self.workspace[begin : begin + len(chunk.rows)]

    def unpacking(self, chunk: Chunk, gradient: Tensor, scale: Tensor | None = None):
        return self.space.unpacking_of_visual(chunk, gradient, self.grad_visual, scale)

    def write(self, chunk: Chunk, gradient: Tensor) -> None:
        unpack(self.space.launch, [self.unpacking(chunk, gradient)])


def float16_of(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """float32 matrix -> float16 one, times the power of two that brings its largest number to [2^14, 2^15), and the
    reciprocal of that power, float32 (1,). Where it has NaN or infinity, the power is 1."""
    largest = torch.linalg.vector_norm(slopes.view(1, -1), float("inf"), dim=1)
    exponent = largest.view(torch.int32) >> 23  # biased by 127, as the two powers' below
    power = torch.where(exponent == 255, 127, (268 - exponent).clamp(1, 253))
    scale, reciprocal = ((x << 23).view(torch.float32) for x in (power, 254 - power))
    return torch.mul(slopes, scale, out=torch.empty_like(slopes, dtype=torch.float16)), reciprocal


def add_product(sums: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """sums = beta * sums + a @ b; float32 sums of 16-bit matrices are accumulated in float32, on tensor cores."""
    if sums.dtype == a.dtype:
        torch.addmm(sums, a, b, beta=beta, out=sums)
    else:
        torch.addmm(sums, a, b, sums.dtype, beta=beta, out=sums)


class DenseGradients:
    """Both gradients (None: not wanted) from slopes dS/dalpha / (|v| |a|) of all cells, (rows, M) chunk by chunk."""

    def __init__(self, space: Space, grad_visual: Tensor | None, grad_audio: Tensor | None):
        self.space, self.grad_audio = space, grad_audio
        self.visual = None if grad_visual is None else VisualGradient(space, grad_visual)
        self.scaled = space.visual.dtype == torch.float16
        self.sums: Tensor | None = None
        self.scale: Tensor | None = None  # of a chunk; lives until its products are unpacked
        self.row_bytes = space.matrix_bytes + (self.visual.row_bytes if self.visual else 0)
        if self.scaled:  # the slopes, converted
            self.row_bytes += space.columns * torch.float16.itemsize

    def unpacking(self, chunk: Chunk, slopes: Tensor) -> list[Any]:
        """Multiplies the slopes of a chunk, and returns what is to be unpacked of the products."""
        if self.scaled:
            slopes, self.scale = float16_of(slopes)
        if self.grad_audio is not None:
            self._add_to_sums(slopes.t(), chunk.rows)
        if not self.visual:
            return []
        rows = self.visual.rows(chunk)
        add_product(rows, slopes, self.space.packed_audios, beta=0)
        return [self.visual.unpacking(chunk, rows, self.scale)]

    def _add_to_sums(self, slopes, rows):
        sums = self.sums
        if sums is None or self.scale is not None:
            sums = self.space.cell_norm.new_empty(slopes.shape[0], rows.shape[1])
        add_product(sums, slopes, rows, beta=int(sums is self.sums))
        if self.scale is not None:
            sums = sums.mul_(self.scale) if self.sums is None else self.sums.addcmul_(sums, self.scale)
        self.sums = sums

    def unpacking_of_audio(self) -> list[Any]:
        """The same of the audios' gradients, once all chunks were multiplied."""
        if self.sums is None or self.grad_audio is None:
            return []
        return [self.space.unpacking_of_audio(self.sums, self.grad_audio)]

    def add(self, chunk: Chunk, slopes: Tensor) -> None:
        unpack(self.space.launch, self.unpacking(chunk, slopes))

    def finish(self) -> None:
        unpack(self.space.launch, self.unpacking_of_audio())
