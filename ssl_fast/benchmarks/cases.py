"""What `ssl-fast bench` times: ops and losses with their sizes, arithmetic, inputs and plain scripts."""

import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .. import losses, ops
from ..ops.similarity import similarity_and_map
from . import eager
from .rivals import Rival, flash_maxsim, late_interaction_kernels, maxsim_cpu, token_mask

PASSES = ("forward", "forward+backward")


class FlopCount(typing.NamedTuple):
    """Arithmetic in units of 2 N N h w C (a product of all pairs), N N C, N h w C."""

    products: int = 0
    pairs: int = 0
    cells: int = 0

    def flops(self, batch: int, cells: int, channels: int, tokens: int = 1) -> int:
        audios = batch * tokens
        return channels * batch * (self.products * 2 * audios * cells + self.pairs * audios + self.cells * cells)


class Shape(typing.NamedTuple):
    """Sizes of a configuration: visual (batch, channels, height, width) and as many audios (batch, channels), or with
    tokens (batch, channels, tokens)."""

    batch: int
    height: int
    width: int
    channels: int
    tokens: int | None = None

    @property
    def products(self) -> tuple[int, int]:
        """Rows and columns of the matrix of all products."""
        return self.batch * self.height * self.width, self.batch * (self.tokens or 1)

    def flops(self, count: FlopCount) -> int:
        return count.flops(self.batch, self.height * self.width, self.channels, self.tokens or 1)


@dataclass(frozen=True)
class Case:
    """A timed function: `call(visuals, audios, backend)` with lists of `spaces` visual (N, C, h, w) and audio (N, C),
    or (N, C, T) with shapes that have tokens.

    forward, both: arithmetic of the forward pass, and of forward and backward together.
    output: dimensions of the result ("nm", "nhw", "" for a loss). frozen: how many of the last spaces need no gradient.
    picks: whether a maximum chooses single cells. streams: bound by memory, not by arithmetic.
    shapes: the sizes that are timed, in place of those that the options ask for.
    script: the same as a training script has it, see benchmarks/eager.py; None: not timed.
    rivals: by name, see benchmarks/rivals.py, of dot products or, with `normalized`, of cosines.
    ops: of a loss, the ops alone that it calls, `ops(visuals, audios, backend)` with the tensors that the loss goes on
        from; None: not timed.
    """

    call: Callable[..., Tensor]
    forward: FlopCount
    both: FlopCount
    output: str = ""
    spaces: int = 1
    frozen: int = 0
    picks: bool = False
    streams: bool = False
    shapes: tuple[Shape, ...] = ()
    script: eager.Script | None = None
    rivals: dict[str, Rival] = field(default_factory=dict)
    normalized: bool = True
    ops: Callable[..., tuple[Tensor, ...]] | None = None


def _pooled(visuals, audios, backend, pooling) -> Tensor:
    return ops.pooled_similarity(visuals[0], audios[0], pooling, backend=backend)


def _product(visuals, audios, backend) -> Tensor:
    return ops.product_log_scores(*visuals, *audios, tau=0.03, backend=backend)


def _paired(visuals, audios, backend, function) -> Tensor:
    return function(visuals[0], audios[0], backend=backend)


def _ops(visuals, audios, backend, pooling, maps, times=1) -> tuple[Tensor, ...]:
    """Pooled scores, and with `maps` those of the pairs."""
    if not maps:
        return (_pooled(visuals, audios, backend, pooling),)
    pairs = torch.arange(len(visuals[0]), device=visuals[0].device)
    each = (similarity_and_map(visuals[0], audios[0], pooling, pairs, backend=backend) for _ in range(times))
    return tuple(x for both in each for x in both)


def _ssl_tie(visuals, audios, backend) -> Tensor:
    """The transformed image has the same features: another would only be another input."""
    flip = partial(torch.flip, dims=(3,))
    return typing.cast(Tensor, losses.ssl_tie(visuals[0], audios[0], visuals[0], flip, backend=backend))


def _slavc_ops(visuals, audios, backend) -> tuple[Tensor, ...]:
    return (_product(visuals[:2], audios[2:], backend), _product(visuals[2:], audios[:2], backend))


def _slavc(visuals, audios, backend) -> Tensor:
    return losses.slavc(*visuals[:2], *audios[:2], momentum=(*visuals[2:], *audios[2:]), backend=backend)


def _ssl_align(visuals, audios, backend) -> Tensor:
    """Nine pairs of three views, s_L and s_A; projections are no part of the loss."""
    loss = losses.ssl_align(visuals, audios, torch.nn.Identity(), torch.nn.Identity(), backend=backend)
    return typing.cast(Tensor, loss)


def _tokens(visuals, audios, backend, heads) -> Tensor:
    tokens = ops.TokenMean(token_mask(audios[0]))
    return ops.pooled_similarity(
        visuals[0], audios[0], ops.Max(), tokens=tokens, heads=heads, normalize=False, backend=backend
    )


# by number of heads: sizes of DenseAV (two heads) and of late interaction
TOKEN_SHAPES = {
    1: (Shape(128, 7, 7, 512, 100), Shape(64, 8, 4, 128, 128)),
    2: (Shape(64, 14, 14, 512, 50), Shape(32, 14, 14, 768, 250)),
}
DENSE, PICK = (FlopCount(1), FlopCount(3)), (FlopCount(1), FlopCount(1, 4))
TRITON = {"late-interaction-kernels": late_interaction_kernels, "flash-maxsim": flash_maxsim}
CASES = {
    "soft_threshold": Case(partial(_pooled, pooling=ops.SoftThreshold()), *DENSE, "nm", script=eager.soft_threshold),
    "max": Case(partial(_pooled, pooling=ops.Max()), *PICK, "nm", picks=True, script=eager.maximum, rivals=TRITON),
    "product": Case(_product, FlopCount(2), FlopCount(6), "nm", spaces=2, script=eager.product),
    "mean": Case(
        partial(_pooled, pooling=ops.Mean()),
        FlopCount(0, 2, 4),
        FlopCount(0, 6, 8),
        "nm",
        streams=True,
        script=eager.mean,
    ),
    "cosine_map": Case(
        partial(_paired, function=ops.cosine_map),
        FlopCount(0, 0, 4),
        FlopCount(0, 0, 10),
        "nhw",
        streams=True,
        script=eager.cosine_map,
    ),
    "ssl_align": Case(_ssl_align, FlopCount(0, 18, 12), FlopCount(0, 54, 24), spaces=3, streams=True),
    "margin_nce": Case(
        partial(_paired, function=losses.margin_nce), *DENSE, ops=partial(_ops, pooling=ops.SoftThreshold(), maps=False)
    ),
    "lvs": Case(
        partial(_paired, function=losses.lvs),
        FlopCount(1, 0, 4),
        FlopCount(3, 0, 10),
        ops=partial(_ops, pooling=ops.SoftThreshold(), maps=True),
    ),
    "ez_vsl": Case(
        partial(_paired, function=losses.ez_vsl), *PICK, picks=True, ops=partial(_ops, pooling=ops.Max(), maps=False)
    ),
    "slavc": Case(_slavc, FlopCount(4), FlopCount(8), spaces=4, frozen=2, ops=_slavc_ops),
    "fnac": Case(
        partial(_paired, function=losses.fnac),
        FlopCount(1, 0, 4),
        FlopCount(1, 4, 4),
        picks=True,
        ops=partial(_ops, pooling=ops.Max(), maps=True),
    ),
    "ssl_tie": Case(
        _ssl_tie,
        FlopCount(2, 0, 8),
        FlopCount(6, 0, 20),
        ops=partial(_ops, pooling=ops.SoftThreshold(), maps=True, times=2),
    ),
    "tokens": Case(
        partial(_tokens, heads=1),
        *PICK,
        "nm",
        picks=True,
        shapes=TOKEN_SHAPES[1],
        script=partial(eager.tokens, heads=1),
        rivals=TRITON | {"maxsim-cpu": maxsim_cpu},
        normalized=False,
    ),
    "token_heads": Case(
        partial(_tokens, heads=2),
        *PICK,
        "nm",
        picks=True,
        shapes=TOKEN_SHAPES[2],
        script=partial(eager.tokens, heads=2),
    ),
}


@dataclass
class Inputs:
    visuals: list[Tensor]
    audios: list[Tensor]
    upstream: Tensor | None
    frozen: int

    def __post_init__(self):
        self.online = len(self.visuals) - self.frozen
        self.wanted = [x.requires_grad_() for x in (*self.visuals[: self.online], *self.audios[: self.online])]

    def job(self, call: Callable, name: str) -> Callable[[], tuple[Tensor, ...]]:
        """A function that runs one pass of `call` and returns (output,) or (output, *gradients)."""

        def forward():
            with torch.no_grad():
                return (call(self.visuals, self.audios),)

        def both():
            output = call(self.visuals, self.audios)
            return output, *torch.autograd.grad(output, self.wanted, self.upstream)

        return forward if name == "forward" else both

    def ops_job(self, call: Callable, name: str) -> Callable[[], tuple[Tensor, ...]]:
        """The same of the ops of a loss, whose tensors get random upstream gradients."""
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            shapes = [x.shape for x in call(self.visuals, self.audios)]
        upstream = [torch.randn(shape, generator=generator).to(self.visuals[0].device) for shape in shapes]

        def both():
            of_outputs = zip(call(self.visuals, self.audios), upstream)
            pairs = [(x, grad.to(x.dtype)) for x, grad in of_outputs if x.requires_grad]
            outputs, gradients = zip(*pairs)
            return *outputs, *torch.autograd.grad(outputs, self.wanted, gradients)

        return self.job(call, name) if name == "forward" else both

    def double(self) -> "Inputs":
        visuals, audios = ([x.detach().double() for x in features] for features in (self.visuals, self.audios))
        return Inputs(visuals, audios, None if self.upstream is None else self.upstream.double(), self.frozen)


def make_inputs(case: Case, shape: Shape, dtype: torch.dtype, device: str) -> Inputs:
    batch, height, width, channels, tokens = shape
    generator, image = torch.Generator().manual_seed(0), torch.arange(batch)
    visuals, audios = [], []
    for _ in range(case.spaces):
        visual = torch.randn(batch, channels, height, width, generator=generator)
        audio = torch.randn(batch, channels, *(() if tokens is None else (tokens,)), generator=generator)
        heard = audio if tokens is None else audio[..., 0]
        visual[image, :, image % height, image // height % width] += 1.2 * heard
        visuals.append(visual.to(device, dtype))
        audios.append(audio.to(device, dtype))
    upstream = None
    if case.output:
        sizes = {"n": batch, "m": batch, "h": height, "w": width}
        upstream = torch.randn([sizes[name] for name in case.output], generator=generator)
        upstream = upstream.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    return Inputs(visuals, audios, upstream, case.frozen)
