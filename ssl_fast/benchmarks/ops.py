"""Microbenchmark of `ssl-fast bench`: every op and loss against its plain-PyTorch reference and torch.compile of that.

Before a configuration is timed, output and gradients of the kernels are compared with the reference in float64, beside
the reference in the same dtype; where the kernels err too much, it is reported as failed and not timed.

Time     All candidates and a bare torch.mm take turns in one process, in an order that rotates from round to round,
         after a warm-up. ms is the median of the rounds' wall time (on CUDA: events). x columns are medians of the
         ratios within each round, by wall time or, with --clock cpu, by the CPU time of the process, all its threads
         together: steadier on a shared machine (set OMP_WAIT_POLICY=passive, or threads that wait count as working).
Inputs   Raw features with one correlated cell per image; normalisation is part of what is timed. Ops get a fixed random
         upstream gradient, losses get 1. `forward` runs under no_grad.
GFLOP/s  Counts what the method needs, not what a kernel recomputes. With G = 2 N M h w C, M = N, a multiply-add as two:
             soft threshold  G forward, 3 G forward+backward          product     2 G, 6 G
             max             G, G + 4 N M C (one cell a pair)         cosine_map  4 N h w C, 10 N h w C
             mean            2 N M C + 4 N h w C, 6 N M C + 8 N h w C
             tokens          as max, with the M T tokens of all clips for M
         The dense ones leave out the normalisation, O(N h w C), and what a pooling does to each cosine. A loss counts
         the ops that it calls: `lvs` a soft threshold and a cosine map, `fnac` a max and the forward of a cosine map,
         `slavc` two products with gradients of one side each (4 G, 8 G), `ssl_align` three means of N x 3 N pairs.
Tokens   `tokens`, and `token_heads` with two heads, have sizes of their own, TOKEN_SHAPES: dot products, the maximum
         over cells (and heads), and the mean over the tokens that a mask keeps. rivals: other packages that compute the
         same forward, where they are installed.
mm       torch.mm of (N h w, C) by (C, M T), which is 1 G, into a ready buffer, same dtype. For `mean`, `cosine_map` and
         `ssl_align`, which stream, see gbytes_per_s: inputs (twice with backward), gradients and output over time.
Memory   peak_bytes: the most memory in use during one call, minus that before it (inputs, upstream gradient), minus the
         tensors that it returns (output, gradients). CUDA: torch's allocator. Linux: resident memory of a new process,
         after a small call of the same kind and with free heap given back; what libraries keep (thread stacks, packing
         buffers of a matrix product) counts. Elsewhere: null.
"""

import argparse
import itertools
import json
import statistics
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from .. import losses, ops
from ..files import replace_file
from ..ops import checks
from . import rivals, table
from .environment import header
from .measure import Stopwatch, in_fresh_process, peak_cuda, peak_resident, time_rounds

PASSES = ("forward", "forward+backward")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checks.DTYPES}
# What a few near-ties, decided one way in the dtype and the other way in float64, do to the gradient of a maximum.
TIE = 1e-2


class Disagreement(Exception):
    """The kernels and the reference do not compute the same thing."""


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
    rivals: name -> `rival(visual, audio)`, see benchmarks/rivals.py.
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
    rivals: dict[str, Callable] = field(default_factory=dict)


def _pooled(visuals, audios, backend, pooling) -> Tensor:
    return ops.pooled_similarity(visuals[0], audios[0], pooling, backend=backend)


def _product(visuals, audios, backend) -> Tensor:
    return ops.product_log_scores(*visuals, *audios, tau=0.03, backend=backend)


def _paired(visuals, audios, backend, function) -> Tensor:
    return function(visuals[0], audios[0], backend=backend)


def _slavc(visuals, audios, backend) -> Tensor:
    return losses.slavc(*visuals[:2], *audios[:2], momentum=(*visuals[2:], *audios[2:]), backend=backend)


def _ssl_align(visuals, audios, backend) -> Tensor:
    """Nine pairs of three views, s_L and s_A; projections are no part of the loss."""
    loss = losses.ssl_align(visuals, audios, torch.nn.Identity(), torch.nn.Identity(), backend=backend)
    return typing.cast(Tensor, loss)


def _tokens(visuals, audios, backend, heads) -> Tensor:
    tokens = ops.TokenMean(rivals.token_mask(audios[0]))
    return ops.pooled_similarity(
        visuals[0], audios[0], ops.Max(), tokens=tokens, heads=heads, normalize=False, backend=backend
    )


# by number of heads: sizes of DenseAV (two heads) and of late interaction
TOKEN_SHAPES = {
    1: (Shape(128, 7, 7, 512, 100), Shape(64, 8, 4, 128, 128)),
    2: (Shape(64, 14, 14, 512, 50), Shape(32, 14, 14, 768, 250)),
}
DENSE, PICK = (FlopCount(1), FlopCount(3)), (FlopCount(1), FlopCount(1, 4))
CASES = {
    "soft_threshold": Case(partial(_pooled, pooling=ops.SoftThreshold()), *DENSE, "nm"),
    "max": Case(partial(_pooled, pooling=ops.Max()), *PICK, "nm", picks=True),
    "product": Case(_product, FlopCount(2), FlopCount(6), "nm", spaces=2),
    "mean": Case(partial(_pooled, pooling=ops.Mean()), FlopCount(0, 2, 4), FlopCount(0, 6, 8), "nm", streams=True),
    "cosine_map": Case(
        partial(_paired, function=ops.cosine_map), FlopCount(0, 0, 4), FlopCount(0, 0, 10), "nhw", streams=True
    ),
    "ssl_align": Case(_ssl_align, FlopCount(0, 18, 12), FlopCount(0, 54, 24), spaces=3, streams=True),
    "margin_nce": Case(partial(_paired, function=losses.margin_nce), *DENSE),
    "lvs": Case(partial(_paired, function=losses.lvs), FlopCount(1, 0, 4), FlopCount(3, 0, 10)),
    "ez_vsl": Case(partial(_paired, function=losses.ez_vsl), *PICK, picks=True),
    "slavc": Case(_slavc, FlopCount(4), FlopCount(8), spaces=4, frozen=2),
    "fnac": Case(partial(_paired, function=losses.fnac), FlopCount(1, 0, 4), FlopCount(1, 4, 4), picks=True),
    "tokens": Case(
        partial(_tokens, heads=1),
        *PICK,
        "nm",
        picks=True,
        shapes=TOKEN_SHAPES[1],
        rivals={"maxsim-cpu": rivals.maxsim_cpu},
    ),
    "token_heads": Case(partial(_tokens, heads=2), *PICK, "nm", picks=True, shapes=TOKEN_SHAPES[2]),
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


def verify(case: Case, fast: Callable, inputs: Inputs) -> None:
    """Disagreement where `fast` errs more than twice what the reference errs in this dtype, both against float64."""
    reference = partial(case.call, backend="reference")
    jobs = inputs.job(fast, PASSES[1]), inputs.job(reference, PASSES[1]), inputs.double().job(reference, PASSES[1])
    names = ["output", *(f"gradient of {kind} {k}" for kind in ("visual", "audio") for k in range(inputs.online))]
    epsilon = torch.finfo(inputs.visuals[0].dtype).eps
    for name, *values in zip(names, *(job() for job in jobs), strict=True):
        result, expected, truth = (x.detach() for x in values)
        if result.shape != expected.shape or result.dtype != expected.dtype:
            raise Disagreement(
                f"{name}: expected {tuple(expected.shape)} {expected.dtype} as the reference returns, "
                f"got {tuple(result.shape)} {result.dtype}"
            )
        scale = truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
        error, own_error = (float((x - truth).norm() / scale) for x in (result, expected))
        allowed = 2 * own_error + max(epsilon, 1e-5 if name == "output" else TIE if case.picks else 1e-4)
        if not error <= allowed:  # NaN disagrees too
            raise Disagreement(f"{name}: expected an error of at most {allowed:.1e} against float64, got {error:.1e}")


def _ratio(numerator: tuple, denominator: tuple) -> float | None:
    if numerator[0] is None:
        return None
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def _milliseconds(seconds: tuple) -> float | None:
    return None if seconds[0] is None else 1000 * statistics.median(seconds)


def _quartiles(seconds: tuple) -> list[float] | None:
    if seconds[0] is None:
        return None
    first, third = seconds * 2 if len(seconds) == 1 else statistics.quantiles(seconds, n=4, method="inclusive")[::2]
    return [1000 * first, 1000 * third]


def _peaks_here(name: str, backend: str, shape: Shape, dtype: torch.dtype, threads: int) -> list[int]:
    """peak_resident of both passes of CASES[name], to be run in a fresh process."""
    torch.set_num_threads(threads)
    call = partial(CASES[name].call, backend=backend)
    tokens = None if shape.tokens is None else min(shape.tokens, 4)
    small = Shape(min(shape.batch, 4), min(shape.height, 3), min(shape.width, 3), shape.channels, tokens)
    make_inputs(CASES[name], small, dtype, "cpu").job(call, PASSES[1])()
    inputs = make_inputs(CASES[name], shape, dtype, "cpu")
    return [peak_resident(inputs.job(call, which)) for which in PASSES]


def _peaks(name: str, backend: str, shape: Shape, inputs: Inputs, device: str) -> list[int | None]:
    if device == "cuda":
        return [peak_cuda(inputs.job(partial(CASES[name].call, backend=backend), which)) for which in PASSES]
    if not sys.platform.startswith("linux"):
        return [None, None]
    arguments = name, backend, shape, inputs.visuals[0].dtype, torch.get_num_threads()
    return in_fresh_process(_peaks_here, *arguments) or [None, None]


def measure(name: str, shape: Shape, dtype: torch.dtype, options: argparse.Namespace) -> list[dict]:
    """The two rows (passes) of one op. Raises Disagreement."""
    case, device = CASES[name], options.device
    inputs = make_inputs(case, shape, dtype, device)
    fast, reference = (partial(case.call, backend=backend) for backend in (options.backend, "reference"))
    verify(case, fast, inputs)
    peaks = [_peaks(name, backend, shape, inputs, device) for backend in (options.backend, "reference")]
    left, right = (torch.randn(rows, shape.channels, device=device).to(dtype) for rows in shape.products)
    mm = partial(torch.mm, left, right.t(), out=left.new_empty(shape.products))
    return [
        {
            "op": name,
            **shape._asdict(),
            "dtype": str(dtype).removeprefix("torch."),
            "device": device,
            "pass": which,
            **_timings(case, shape, which, inputs, fast, reference, mm, options),
            "peak_bytes": peak,
            "reference_peak_bytes": reference_peak,
        }
        for which, peak, reference_peak in zip(PASSES, *peaks)
    ]


def _timings(case, shape, which, inputs, fast, reference, mm, options) -> dict:
    jobs = {"fast": inputs.job(fast, which), "reference": inputs.job(reference, which), "mm": mm}
    note = "skipped: --no-compile" if options.no_compile else None
    if not options.no_compile:
        torch.compiler.reset()  # else the ninth shape would silently run uncompiled
        jobs["compiled"] = inputs.job(torch.compile(reference, fullgraph=True, dynamic=False), which)
        try:
            jobs["compiled"]()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # dynamo's and inductor's errors, a missing C++ compiler among them
            del jobs["compiled"]
            note = f"failed: {error}".splitlines()[0][:200]
    others = {}
    if which == PASSES[0]:
        for name, rival in case.rivals.items():
            others[name] = rival(inputs.visuals[0].detach(), inputs.audios[0].detach())
            if callable(others[name]):
                jobs[name] = others[name]
    samples = time_rounds(jobs, Stopwatch(options.device, options.flush_l2), options.rounds, options.least_seconds)
    row, clock = {"rounds": len(samples["fast"][0]), "compiled_note": note}, 1 if options.clock == "cpu" else 0
    for key, job in (("", "fast"), ("reference_", "reference"), ("compiled_", "compiled"), ("mm_", "mm")):
        wall, cpu = samples.get(job, ((None,), (None,)))
        row |= {f"{key}ms": _milliseconds(wall), f"{key}cpu_ms": _milliseconds(cpu)}
        row[f"{key}quartiles_ms"] = _quartiles(wall)
    for key, job in (("", "reference"), ("compiled_", "compiled")):
        ratios = [_ratio(*pair) for pair in zip(samples[job], samples["fast"])] if job in samples else [None, None]
        row |= {f"{key}speedup": ratios[clock], f"{key}speedup_wall": ratios[0], f"{key}speedup_cpu": ratios[1]}
    row["rivals"] = {
        name: {"ms": _milliseconds(samples[name][0]), "speedup": _ratio(samples[name][clock], samples["fast"][clock])}
        if name in samples
        else {"note": note}
        for name, note in others.items()
    }
    count = case.forward if which == "forward" else case.both
    flops, mm_flops = (shape.flops(one) for one in (count, FlopCount(1)))
    read = sum(x.nbytes for x in (*inputs.visuals, *inputs.audios))
    traffic = read + (4 if inputs.upstream is None else inputs.upstream.nbytes)
    if which == PASSES[1]:
        traffic += read + sum(x.nbytes for x in inputs.wanted)
    mm_ratio = _ratio(samples["mm"][clock], samples["fast"][clock])
    return row | {
        "flops": flops,
        "gflops": flops / row["ms"] / 1e6,
        "mm_gflops": mm_flops / row["mm_ms"] / 1e6,
        "mm_fraction": None if case.streams or mm_ratio is None else flops / mm_flops * mm_ratio,
        "gbytes_per_s": traffic / row["ms"] / 1e6,
    }


def run(options: argparse.Namespace) -> int:
    """Time all configurations of `options`, as `cli.bench.resolve` gives them; print the table, write it as JSON.

    Exit code: 0; 1 where a configuration failed (kernels and reference disagree, out of memory).
    """
    result = {"header": header(options), "rows": [], "failures": []}
    titles = "" if options.markdown else "\n" + table.line()
    print(table.caption(result["header"], options.channels) + "\n" + titles, flush=True)
    grid = [
        Shape(batch, height, width, options.channels)
        for batch, (height, width) in itertools.product(options.batch, options.maps)
    ]
    configurations = [
        (name, dtype, shape) for name in options.ops for dtype in options.dtype for shape in CASES[name].shapes or grid
    ]
    for name, dtype, shape in configurations:
        rows = []
        try:
            rows = measure(name, shape, DTYPES[dtype], options)
        except (Disagreement, torch.OutOfMemoryError) as error:
            where = f"batch {shape.batch} map {shape.height}x{shape.width}"
            result["failures"].append(f"{name} {dtype} {where}: {error}")
            print(f"ssl-fast bench: {result['failures'][-1]}", file=sys.stderr)
        result["rows"] += rows
        for row in rows if not options.markdown else ():
            print(table.line(row), flush=True)
        if options.json:
            replace_file(options.json, json.dumps(result, indent=1) + "\n")
    if options.markdown:
        print(table.markdown(result["rows"]))
    return 1 if result["failures"] else 0
