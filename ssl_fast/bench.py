"""Microbenchmark behind `ssl-fast bench`: every op and loss against its plain-PyTorch reference and torch.compile of it.

Before a configuration is timed, output and gradients of the kernels and of the reference are compared with the reference in
float64; where the kernels err too much, the configuration is reported as failed and not timed.

Time      All candidates and a bare torch.mm take turns in one process, in an order that rotates from round to round, after a
          warm-up. ms is the median of the rounds' wall time (on CUDA: events); x columns are medians of the ratios within each
          round, by wall time or, with --clock cpu, by the CPU time of the process: all its threads, but not other processes, so
          on a shared machine that is the steadier one (set OMP_WAIT_POLICY=passive, or waiting threads count as working).
Inputs    Raw features with one correlated cell per image; normalisation is part of what is timed. Ops get a fixed random
          upstream gradient, losses get 1. `forward` runs under no_grad.
GFLOP/s   Counts what the method needs, not what a kernel recomputes. With G = 2 N M h w C, M = N, a multiply-add as two:
              soft threshold  G forward, 3 G forward+backward          product  2 G, 6 G
              max             G, G + 4 N M C (one cell a pair)         cosine_map  4 N h w C, 10 N h w C
              mean            2 N M C + 4 N h w C, 6 N M C + 8 N h w C
          The dense ones leave out the normalisation, O(N h w C), and what a pooling does to each cosine. A loss counts the ops
          that it calls: `lvs` a soft threshold and a cosine map, `fnac` a max and the forward of a cosine map, `slavc` two
          products, each with gradients of one side only (4 G, 8 G), `ssl_align` three means of N x 3 N pairs.
mm        torch.mm of (N h w, C) by (C, N), which is 1 G, into a ready buffer, same dtype. For `mean`, `cosine_map` and
          `ssl_align`, which stream, see gbytes_per_s instead: inputs (twice with backward), gradients and output over time.
Memory    peak_bytes: the highest memory in use during one call, minus that before it (the inputs and the upstream gradient),
          minus the tensors that the call returns (output and gradients). CUDA: torch's allocator. Linux: resident memory of a
          fresh process, warmed up with a small call of the same kind, free heap given back; exact to about 1 MiB, and what
          libraries keep for themselves (threads, packing buffers of a matrix product) counts. Elsewhere: null.
"""

import argparse
import datetime
import gc
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import __version__, losses, ops
from .ops import checks
from .peak_memory import in_fresh_process, peak_cuda, peak_resident

PASSES = ("forward", "forward+backward")
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checks.DTYPES}
TIE = 1e-2  # what a few near-ties, decided one way in float32 and the other way in float64, do to the gradient of a maximum


class Disagreement(Exception):
    """The kernels and the reference do not compute the same thing."""


class Work(NamedTuple):
    """Arithmetic in units of: all-pairs map products G = 2 N N h w C, N N C, N h w C."""

    products: int = 0
    pairs: int = 0
    cells: int = 0

    def flops(self, batch: int, cells: int, channels: int) -> int:
        return channels * batch * (self.products * 2 * batch * cells + self.pairs * batch + self.cells * cells)


@dataclass(frozen=True)
class Case:
    """What is timed: `call(visuals, audios, backend)` with lists of `spaces` visual (N, C, h, w) and audio (N, C).

    forward, both: arithmetic of the forward pass, and of forward and backward together.
    output: dimensions of the result ("nm", "nhw", "" for a loss). frozen: how many of the last spaces need no gradient.
    picks: whether a maximum chooses single cells. streams: bound by memory, not by arithmetic.
    """

    call: Callable[..., Tensor]
    forward: Work
    both: Work
    output: str = ""
    spaces: int = 1
    frozen: int = 0
    picks: bool = False
    streams: bool = False


def _pooled(visuals, audios, backend, pooling):
    return ops.pooled_similarity(visuals[0], audios[0], pooling, backend=backend)


def _loss(visuals, audios, backend, loss):
    return loss(visuals[0], audios[0], backend=backend)


def _slavc(visuals, audios, backend):
    return losses.slavc(*visuals[:2], *audios[:2], momentum=(*visuals[2:], *audios[2:]), backend=backend)


def _ssl_align(visuals, audios, backend):
    """Nine pairs of three views, s_L and s_A; projections are no part of the loss."""
    return losses.ssl_align(visuals, audios, torch.nn.Identity(), torch.nn.Identity(), backend=backend)


SOFT, PICK = (Work(1), Work(3)), (Work(1), Work(1, 4))
CASES = {
    "soft_threshold": Case(partial(_pooled, pooling=ops.SoftThreshold()), *SOFT, "nm"),
    "max": Case(partial(_pooled, pooling=ops.Max()), *PICK, "nm", picks=True),
    "product": Case(lambda v, a, backend: ops.product_log_scores(*v, *a, tau=0.03, backend=backend), Work(2), Work(6), "nm", 2),
    "mean": Case(partial(_pooled, pooling=ops.Mean()), Work(0, 2, 4), Work(0, 6, 8), "nm", streams=True),
    "cosine_map": Case(lambda v, a, backend: ops.cosine_map(v[0], a[0], backend=backend), Work(0, 0, 4), Work(0, 0, 10), "nhw",
                       streams=True),
    "ssl_align": Case(_ssl_align, Work(0, 18, 12), Work(0, 54, 24), spaces=3, streams=True),
    "margin_nce": Case(partial(_loss, loss=losses.margin_nce), *SOFT),
    "lvs": Case(partial(_loss, loss=losses.lvs), Work(1, 0, 4), Work(3, 0, 10)),
    "ez_vsl": Case(partial(_loss, loss=losses.ez_vsl), *PICK, picks=True),
    "slavc": Case(_slavc, Work(4), Work(8), spaces=4, frozen=2),
    "fnac": Case(partial(_loss, loss=losses.fnac), Work(1, 0, 4), Work(1, 4, 4), picks=True),
}  # fmt: skip


@dataclass
class Inputs:
    visuals: list[Tensor]
    audios: list[Tensor]
    upstream: Tensor | None
    frozen: int

    def __post_init__(self):
        self.online = len(self.visuals) - self.frozen
        self.wanted = [x.requires_grad_() for x in (*self.visuals[:self.online], *self.audios[:self.online])]

    def job(self, call: Callable, name: str) -> Callable[[], tuple]:
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


def make_inputs(case: Case, batch: int, height: int, width: int, channels: int, dtype: torch.dtype, device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    image = torch.arange(batch)
    visuals, audios = [], []
    for _ in range(case.spaces):
        visual = torch.randn(batch, channels, height, width, generator=generator)
        audio = torch.randn(batch, channels, generator=generator)
        visual[image, :, image % height, image // height % width] += 1.2 * audio
        visuals.append(visual.to(device, dtype))
        audios.append(audio.to(device, dtype))
    sizes = {"n": batch, "m": batch, "h": height, "w": width}
    upstream = torch.randn([sizes[name] for name in case.output], generator=generator) if case.output else None
    if upstream is not None:
        upstream = upstream.to(device, torch.float64 if dtype == torch.float64 else torch.float32)
    return Inputs(visuals, audios, upstream, case.frozen)


def verify(case: Case, fast: Callable, inputs: Inputs) -> None:
    """Disagreement where `fast` errs more than twice what the reference errs in the same dtype, both against float64."""
    reference = partial(case.call, backend="reference")
    values = (inputs.job(fast, PASSES[1])(), inputs.job(reference, PASSES[1])(), inputs.double().job(reference, PASSES[1])())
    names = [f"{kind} {k}" for kind in ("gradient of visual", "gradient of audio") for k in range(inputs.online)]
    epsilon = torch.finfo(inputs.visuals[0].dtype).eps
    for name, result, expected, truth in zip(["output", *names], *values, strict=True):
        if result.shape != expected.shape or result.dtype != expected.dtype:
            raise Disagreement(f"{name}: expected {tuple(expected.shape)} {expected.dtype} as the reference returns, "
                               f"got {tuple(result.shape)} {result.dtype}")  # fmt: skip
        scale = truth.norm().clamp_min(torch.finfo(torch.float64).tiny)
        error, allowed = (float((x - truth).norm() / scale) for x in (result, expected))
        allowed = 2 * allowed + max(epsilon, 1e-5 if name == "output" else TIE if case.picks else 1e-4)
        if not error <= allowed:  # NaN disagrees too
            raise Disagreement(f"{name}: expected an error of at most {allowed:.1e} against float64, got {error:.1e}")


# ---------------------------------------------------------------------------------------------------------------------
# Time


class Stopwatch:
    """Seconds of wall time and of CPU time (None on CUDA) that one call of `job` takes."""

    def __init__(self, device: str, flush_l2: bool = False):
        self.cuda = device == "cuda"
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size if self.cuda and flush_l2 else 0
        self.flush = torch.empty(size, dtype=torch.uint8, device=device) if size else None

    def __call__(self, job: Callable[[], object]) -> tuple[float, float | None]:
        if not self.cuda:
            wall, cpu = time.perf_counter(), time.process_time()
            result = job()  # noqa: F841  named, so that freeing the result is not timed
            return time.perf_counter() - wall, time.process_time() - cpu
        if self.flush is not None:
            self.flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        job()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1000, None


def time_rounds(jobs: dict[str, Callable], stopwatch: Stopwatch, rounds: int, least_seconds: float) -> dict[str, tuple]:
    """name -> (wall seconds, CPU seconds) of each round. At least `rounds` rounds, up to ten times that for short jobs."""
    names, samples = list(jobs), {name: [] for name in jobs}
    for name in names * 2:
        stopwatch(jobs[name])
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + least_seconds
        for k in range(10 * rounds):
            if k >= rounds and time.perf_counter() > end:
                break
            turn = k % len(names)
            for name in names[turn:] + names[:turn]:
                samples[name].append(stopwatch(jobs[name]))
    finally:
        gc.enable()
    return {name: tuple(zip(*sample)) for name, sample in samples.items()}


def _ratio(numerator: tuple, denominator: tuple) -> float | None:
    if numerator[0] is None:
        return None
    return statistics.median(n / d for n, d in zip(numerator, denominator, strict=True))


def _milliseconds(seconds: tuple) -> float | None:
    return None if seconds[0] is None else 1000 * statistics.median(seconds)


def _quartiles(seconds: tuple) -> list[float]:
    if len(seconds) < 2:
        return [1000 * seconds[0]] * 2
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return [1000 * first, 1000 * third]


def _peaks_here(name: str, backend: str, shape: tuple, dtype: torch.dtype, threads: int) -> list[int]:
    """peak_resident of both passes of CASES[name]; to be run in a fresh process."""
    torch.set_num_threads(threads)
    call = partial(CASES[name].call, backend=backend)
    batch, height, width, channels = shape
    warm_up = make_inputs(CASES[name], min(batch, 4), min(height, 3), min(width, 3), channels, dtype, "cpu")
    warm_up.job(call, PASSES[1])()
    inputs = make_inputs(CASES[name], *shape, dtype, "cpu")
    return [peak_resident(inputs.job(call, which)) for which in PASSES]


# ---------------------------------------------------------------------------------------------------------------------
# One configuration


def measure(name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, options: argparse.Namespace) -> list[dict]:
    """The two rows (passes) of one op at shape (batch, height, width, channels). Raises Disagreement."""
    case, device, (batch, height, width, channels) = CASES[name], options.device, shape
    inputs = make_inputs(case, *shape, dtype, device)
    fast, reference = (partial(case.call, backend=backend) for backend in (options.backend, "reference"))
    verify(case, fast, inputs)
    peaks = {}
    for key, call in (("", fast), ("reference_", reference)):
        if device == "cuda":
            peaks[key] = [peak_cuda(inputs.job(call, which)) for which in PASSES]
        elif sys.platform.startswith("linux"):
            peaks[key] = in_fresh_process(_peaks_here, name, call.keywords["backend"], shape, dtype, torch.get_num_threads())
    flat = torch.randn(batch * height * width, channels, device=device).to(dtype)
    right = torch.randn(channels, batch, device=device).to(dtype)
    product = torch.empty(flat.shape[0], batch, device=device, dtype=dtype)
    return [_row(name, shape, which, inputs, fast, reference, partial(torch.mm, flat, right, out=product), peaks, options)
            for which in PASSES]


def _row(name, shape, which, inputs, fast, reference, mm, peaks, options) -> dict:
    case, (batch, height, width, channels) = CASES[name], shape
    jobs = {"fast": inputs.job(fast, which), "reference": inputs.job(reference, which), "mm": mm}
    compiled_note = "skipped: --no-compile" if options.no_compile else None
    if not options.no_compile:
        torch.compiler.reset()  # else the ninth shape would silently run uncompiled
        jobs["compiled"] = inputs.job(torch.compile(reference, fullgraph=True, dynamic=False), which)
        try:
            jobs["compiled"]()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # dynamo's and inductor's errors, a missing C++ compiler among them
            del jobs["compiled"]
            compiled_note = f"failed: {error}".splitlines()[0][:200]
    samples = time_rounds(jobs, Stopwatch(options.device, options.flush_l2), options.rounds, options.least_seconds)
    clock = 1 if options.clock == "cpu" else 0
    row = {"op": name, "batch": batch, "height": height, "width": width, "channels": channels,
           "dtype": str(inputs.visuals[0].dtype).removeprefix("torch."), "device": options.device, "pass": which,
           "rounds": len(samples["fast"][0]), "compiled_note": compiled_note}  # fmt: skip
    for key, job in (("", "fast"), ("reference_", "reference"), ("compiled_", "compiled"), ("mm_", "mm")):
        wall, cpu = samples.get(job, ((None,), (None,)))
        row[f"{key}ms"], row[f"{key}cpu_ms"] = _milliseconds(wall), _milliseconds(cpu)
        row[f"{key}quartiles_ms"] = None if wall[0] is None else _quartiles(wall)
    for key, job in (("", "reference"), ("compiled_", "compiled")):
        wall, cpu = (_ratio(*pair) if job in samples else None for pair in zip(samples.get(job, ((), ())), samples["fast"]))
        row |= {f"{key}speedup": (wall, cpu)[clock], f"{key}speedup_wall": wall, f"{key}speedup_cpu": cpu}
    work = case.forward if which == "forward" else case.both
    flops, mm_flops = (w.flops(batch, height * width, channels) for w in (work, Work(1)))
    features = [*inputs.visuals, *inputs.audios]
    output_bytes = inputs.upstream.nbytes if inputs.upstream is not None else 4
    traffic = output_bytes + sum(x.nbytes for x in features)
    if which == PASSES[1]:
        traffic += sum(x.nbytes for x in features) + sum(x.nbytes for x in inputs.wanted)
    row |= {"flops": flops, "gflops": flops / row["ms"] / 1e6, "mm_gflops": mm_flops / row["mm_ms"] / 1e6,
            "mm_fraction": None if case.streams else flops / mm_flops * _ratio(samples["mm"][clock], samples["fast"][clock]),
            "gbytes_per_s": traffic / row["ms"] / 1e6}  # fmt: skip
    for key in ("", "reference_"):
        row[f"{key}peak_bytes"] = peaks[key][PASSES.index(which)] if peaks.get(key) else None
    return row


# ---------------------------------------------------------------------------------------------------------------------
# Report


def _git_commit() -> str | None:
    """Commit of the sources, "-dirty" with local changes; None where this file is not under version control."""
    here = Path(__file__)
    try:
        for arguments in (("ls-files", "--error-unmatch", here.name), ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")):
            done = subprocess.run(["git", "-C", here.parent, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def copy_gbytes_per_s(device: str) -> float:
    """Read and write bandwidth of copying 256 MiB."""
    source = torch.ones(64 << 20, device=device)
    target = torch.empty_like(source)
    samples = time_rounds({"copy": lambda: target.copy_(source)}, Stopwatch(device), 5, 0)
    return 2 * source.nbytes / statistics.median(samples["copy"][0]) / 1e9


def header(options: argparse.Namespace) -> dict:
    cuda = options.device == "cuda"
    variables = [name for name in os.environ if name.startswith(("OMP_", "MKL_", "KMP_", "GOMP_", "MALLOC_", "THP_", "PYTORCH_"))]
    instruction_set = getattr(checks.extension, "instruction_set", None)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "gpu": torch.cuda.get_device_name() if cuda else None,
                    "system": platform.platform(), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None},
        "versions": {"ssl_fast": __version__, "torch": torch.__version__, "cuda": torch.version.cuda if cuda else None,
                     "python": platform.python_version()},
        "commit": _git_commit(), "backend": options.backend, "extension_error": checks.extension_error,
        "instruction_set": instruction_set() if instruction_set else None, "threads": torch.get_num_threads(),
        "clock": options.clock, "compile": not options.no_compile, "rounds": options.rounds, "flush_l2": options.flush_l2,
        "tf32": options.tf32, "copy_gbytes_per_s": copy_gbytes_per_s(options.device),
        "environment": {name: os.environ[name] for name in sorted([*variables, "GLIBC_TUNABLES", "LD_PRELOAD"])
                        if name in os.environ},
    }  # fmt: skip


def _number(x: float | None, scale: float = 1) -> str:
    if x is None:
        return "-"
    x *= scale
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


COLUMNS = {  # title: width, text of a row
    "op": (14, lambda r: r["op"]), "batch": (5, lambda r: str(r["batch"])), "map": (5, lambda r: f"{r['height']}x{r['width']}"),
    "dtype": (8, lambda r: r["dtype"]), "pass": (7, lambda r: r["pass"].replace("forward", "fwd").replace("backward", "bwd")),
    "ms": (13, lambda r: f"{_number(r['ms'])} ± {_number((r['quartiles_ms'][1] - r['quartiles_ms'][0]) / 2)}"),
    "x reference": (11, lambda r: _number(r["speedup"])), "x torch.compile": (15, lambda r: _number(r["compiled_speedup"])),
    "GFLOP/s": (7, lambda r: _number(r["gflops"])), "% of mm": (7, lambda r: _number(r["mm_fraction"], 100)),
    "GB/s": (5, lambda r: "-" if r["mm_fraction"] is not None else _number(r["gbytes_per_s"])),
    "peak MiB": (8, lambda r: _number(r["peak_bytes"], 2**-20)),
    "reference": (9, lambda r: _number(r["reference_peak_bytes"], 2**-20)),
}  # fmt: skip


def _line(row: dict | None = None) -> str:
    return "  ".join((text(row) if row else title).rjust(width) for title, (width, text) in COLUMNS.items())


def markdown(rows: list[dict]) -> str:
    lines = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)], *([text(row) for _, text in COLUMNS.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def caption(head: dict, channels: int) -> str:
    machine, versions = head["machine"], head["versions"]
    where = machine["gpu"] or f"{head['threads']} threads of {machine['cpu']} ({machine['cores']} cores)"
    kernels = "compiled kernels" if head["backend"] == "compiled" else "NO COMPILED KERNELS: the reference against itself"
    kernels += f", {head['instruction_set']}" if head["instruction_set"] and not machine["gpu"] else ""
    clock = "wall time" if head["clock"] == "wall" else "CPU time"
    return (f"ssl_fast {versions['ssl_fast']} ({kernels}), torch {versions['torch']}, {where}, C = {channels}. ms: median wall time ± half "
            f"the interquartile range; x and %: medians of ratios of {clock} within interleaved rounds; copying reaches "
            f"{head['copy_gbytes_per_s']:.0f} GB/s; peaks: beyond inputs, output and gradients.")  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Command line


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _batches(text: str) -> list[int]:
    values = [_positive(part) for part in text.split(",")]
    if min(values) < 2:
        raise argparse.ArgumentTypeError(f"expected batches >= 2 (a positive and a negative), got {text!r}")
    return values


def _maps(text: str) -> list[tuple[int, int]]:
    """"7,14" or "7x9": heights and widths."""
    sides = [[_positive(side) for side in part.split("x")] for part in text.split(",")]
    if any(len(side) > 2 for side in sides):
        raise argparse.ArgumentTypeError(f"expected sizes as 7 or 7x9, got {text!r}")
    return [(side[0], side[-1]) for side in sides]


def _names(choices, text: str) -> list[str]:
    if unknown := [name for name in text.split(",") if name not in choices]:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(choices)}; got {', '.join(map(repr, unknown))}")
    return text.split(",")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", type=Path, metavar="FILE", help="write header and rows there, after each configuration")
    add("--markdown", action="store_true", help="print a Markdown table")
    add("--ops", type=partial(_names, CASES), default=list(CASES), metavar="A,B", help=f"among {', '.join(CASES)} (default: all)")
    add("--batch", type=_batches, metavar="N,N", help="default: 32,128,256; on CUDA 256,1024; with --quick 64")
    add("--maps", type=_maps, metavar="P,P", help="map sizes, 7 or 7x9; default: 7,14; with --quick 7")
    add("--channels", type=_positive, default=512, metavar="C")
    add("--dtype", type=partial(_names, DTYPES), metavar="A,B",
        help=f"among {', '.join(DTYPES)}; default: float32, on CUDA also bfloat16")
    add("--rounds", type=_positive, metavar="N", help="least number of rounds (default: 9; with --quick 3)")
    add("--threads", type=_positive, metavar="N", help="threads of torch (default: as torch chooses)")
    add("--clock", choices=("wall", "cpu"), default="wall", help="clock of the ratios; cpu: on a shared machine")
    add("--no-compile", action="store_true", help="do not time torch.compile, which takes up to a minute a row to compile")
    add("--flush-l2", action="store_true", help="CUDA: empty the L2 cache before each call")
    add("--tf32", action="store_true", help="CUDA: allow TF32 in float32 products, for all candidates")
    add("--quick", action="store_true", help="one small size, few rounds, no torch.compile")


def _resolve(args: argparse.Namespace) -> argparse.Namespace:
    """args with its defaults filled in. ValueError for what cannot be run here."""
    options = argparse.Namespace(**vars(args))
    cuda = options.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a usable CUDA device, got none (see `ssl-fast doctor`)")
    if not cuda and (options.flush_l2 or options.tf32):
        raise ValueError("--flush-l2, --tf32: expected --device cuda, got --device cpu")
    if cuda and options.clock == "cpu":
        raise ValueError("--clock cpu: expected --device cpu, got --device cuda")
    if options.json and not options.json.parent.is_dir():
        raise ValueError(f"--json {options.json}: expected an existing folder, got none at {options.json.parent}")
    options.batch = options.batch or ([64] if options.quick else [256, 1024] if cuda else [32, 128, 256])
    options.maps = options.maps or ([(7, 7)] if options.quick else [(7, 7), (14, 14)])
    options.dtype = options.dtype or (["float32", "bfloat16"] if cuda and not options.quick else ["float32"])
    options.rounds = options.rounds or (3 if options.quick else 9)
    options.least_seconds = 0.1 if options.quick else 0.5
    options.no_compile = options.no_compile or options.quick
    options.backend = "compiled" if checks.use_compiled("auto", torch.empty(0, device=options.device)) else "reference"
    return options


def run(args: argparse.Namespace) -> int:
    """Exit code: 0; 1 where a configuration failed (kernels disagree with the reference, out of memory); 2 for bad arguments."""
    try:
        options = _resolve(args)
    except ValueError as error:
        print(f"ssl-fast bench: {error}", file=sys.stderr)
        return 2
    threads, tf32 = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32
    torch.set_num_threads(options.threads or threads)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    try:
        return _run(options)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _run(options: argparse.Namespace) -> int:
    result = {"header": header(options), "rows": [], "failures": []}
    print(caption(result["header"], options.channels), "" if options.markdown else "\n" + _line(), sep="\n", flush=True)
    for name, dtype, batch, (height, width) in itertools.product(options.ops, options.dtype, options.batch, options.maps):
        try:
            rows = measure(name, (batch, height, width, options.channels), DTYPES[dtype], options)
        except (Disagreement, torch.OutOfMemoryError) as error:
            failure = f"{name} {dtype} batch {batch} map {height}x{width}: {error}"
            print(f"ssl-fast bench: {failure}", file=sys.stderr)
            result["failures"].append(failure)
            rows = []
        result["rows"] += rows
        if not options.markdown:
            print(*map(_line, rows), sep="\n", end="\n" if rows else "", flush=True)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.markdown:
        print(markdown(result["rows"]))
    return 1 if result["failures"] else 0
