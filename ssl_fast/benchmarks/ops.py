"""Microbenchmark of `ssl-fast bench`: every op and loss against plain PyTorch, torch.compile and other packages.

Before a configuration is timed, output and gradients of the kernels are compared with the reference in float64, beside
the reference in the same dtype; where the kernels err too much, it is reported as failed and not timed.

Candidates, beside the kernels, all on the same features:
    reference        the plain PyTorch that the package falls back on: products in the dtype of the features, pooling in
                     float32
    amp              of 16-bit features, the lines of a training script under torch.autocast, products and pooling as
                     those of the reference (benchmarks/eager.py)
    low_precision    these lines with everything in 16 bits. "errors" are those of the outputs of the kernels and of
                     these three against float64: what is fast may be wrong
    compiled         the reference through torch.compile
    max_autotune     the reference through torch.compile(mode="max-autotune")
    rivals           other packages that compute the same, where they are installed, checked as the kernels are

Time     All candidates and a bare torch.mm take turns in one process, in an order that rotates from round to round;
         each timed call follows an untimed one, see `measure.time_rounds`. ms is the median of the rounds' wall time
         (on CUDA: events). x columns are medians of the ratios within each round, by wall time or, with --clock cpu, by
         the CPU time of the process, all its threads together: steadier on a shared machine (set
         OMP_WAIT_POLICY=passive, or threads that wait count as working).
         Each row has both times, the instruction set in use, and the load of the machine when it was done.
Inputs   Raw features with one correlated cell per image; normalisation is part of what is timed. Ops get a fixed random
         upstream gradient, losses get 1. `forward` runs under no_grad.
GFLOP/s  Counts what the method needs, not what a kernel recomputes. With G = 2 N M h w C, M = N, a multiply-add as two:
             soft threshold  G forward, 3 G forward+backward          product     2 G, 6 G
             max             G, G + 4 N M C (one cell a pair)         cosine_map  4 N h w C, 10 N h w C
             mean            2 N M C + 4 N h w C, 6 N M C + 8 N h w C
             tokens          as max, with the M T tokens of all clips for M
         The dense ones leave out the normalisation, O(N h w C), and what a pooling does to each cosine. A loss counts
         the ops that it calls: `lvs` a soft threshold and a cosine map, `fnac` a max and the forward of a cosine map,
         `slavc` two products with gradients of one side each (4 G, 8 G), `ssl_tie` twice what `lvs` does, `ssl_align`
         three means of N x 3 N pairs.
Tokens   `tokens`, and `token_heads` with two heads, have sizes of their own, TOKEN_SHAPES: dot products, the maximum
         over cells (and heads), and the mean over the tokens that a mask keeps.
Losses   "loss / ops" is the time of a loss over that of the ops that it calls, with random upstream gradients: what
         stands between them, as cross-entropy, costs the rest.
Dispatch "us outside", on a CPU: wall time of a call that is not spent in compiled kernels, but in Python, dispatch,
         autograd and other ops of torch.
Faults   "faults" and "system ms", on a CPU: first touches of fresh pages in a call, and the CPU time that all its
         threads spend in the operating system, most of it to serve them (0 where whole ticks are counted and a call is
         shorter). Gradients are new memory in each call, of the kernels as of plain PyTorch; torch.mm writes into a
         ready buffer. Outputs of 4 MiB and more of the kernels ask for huge pages, 2 MiB instead of 4 KiB.
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
from functools import partial

import torch

from ..files import replace_file
from ..ops import checks
from ..progress import progress_bar
from . import rivals, table
from .agreement import Disagreement, Expected, compare, expected_results
from .cases import CASES, PASSES, Case, FlopCount, Inputs, Shape, make_inputs
from .environment import conditions, header, instruction_set, using
from .measure import (
    Stopwatch,
    in_fresh_process,
    milliseconds,
    out_of_memory,
    page_faults,
    peak_cuda,
    peak_resident,
    quartiles,
    ratio,
    seconds_outside,
    time_rounds,
    try_compiled,
)

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in checks.DTYPES}


def _peaks_here(
    name: str, backend: str, shape: Shape, dtype: torch.dtype, threads: int, instructions: str | None = None
) -> list[int]:
    """peak_resident of both passes of CASES[name], to be run in a fresh process."""
    torch.set_num_threads(threads)
    with using(instructions):
        return _peaks_of(name, backend, shape, dtype)


def _peaks_of(name: str, backend: str, shape: Shape, dtype: torch.dtype) -> list[int]:
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
    arguments = name, backend, shape, inputs.visuals[0].dtype, torch.get_num_threads(), instruction_set()
    return in_fresh_process(_peaks_here, *arguments) or [None, None]


def measure(name: str, shape: Shape, dtype: torch.dtype, options: argparse.Namespace) -> list[dict]:
    """The two rows (passes) of one op. Raises Disagreement."""
    case, device = CASES[name], options.device
    inputs = make_inputs(case, shape, dtype, device)
    fast, reference = (partial(case.call, backend=backend) for backend in (options.backend, "reference"))
    expected = expected_results(case, inputs)
    results = inputs.job(fast, PASSES[1])()
    compare(case, results, expected, dtype)
    calls = {"fast": fast, "reference": reference, **_scripts(case, dtype, device)}
    errors = {key: expected[0].error(inputs.job(call, PASSES[0])()[0]) for key, call in calls.items()}
    others = _rivals(case, inputs, expected)
    del results, expected  # as large as features in float64
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
            **_timings(case, shape, which, inputs, calls, mm, others, options),
            "errors": errors,
            "peak_bytes": peak,
            "reference_peak_bytes": reference_peak,
            **conditions(device, options.backend),
        }
        for which, peak, reference_peak in zip(PASSES, *peaks)
    ]


def _scripts(case: Case, dtype: torch.dtype, device: str) -> dict[str, Callable]:
    """The eager candidates of 16-bit features, by the prefix of their fields."""
    script = case.script
    if script is None or dtype.itemsize != 2:
        return {}

    def amp(visuals, audios):
        with torch.autocast(device, dtype):
            return script(visuals, audios, torch.float32)

    return {"amp": amp, "low_precision": lambda visuals, audios: script(visuals, audios, dtype)}


def _rivals(case: Case, inputs: Inputs, expected: list[Expected]) -> dict[str, dict[str, Callable | str]]:
    """By name and pass: the function to be timed, or why there is none."""
    if not case.rivals:
        return {}
    visual, audio = inputs.visuals[0].detach(), inputs.audios[0].detach()
    kept = rivals.token_mask(audio) if audio.dim() == 3 else audio.new_ones(len(audio), 1, dtype=torch.bool)
    images = visual.flatten(2).transpose(1, 2).contiguous().requires_grad_()
    clips = (audio if audio.dim() == 3 else audio[..., None]).transpose(1, 2).contiguous().requires_grad_()
    found = {}
    for name, rival in case.rivals.items():
        scores = rival(images, clips, kept, case.normalized)
        found[name] = dict.fromkeys(PASSES, scores)
        if callable(scores):  # another kernel may run without gradients
            found[name] = {which: _checked(case, scores, (images, clips), inputs, which, expected) for which in PASSES}
    return found


def _checked(case, scores, leaves, inputs, which, expected) -> Callable | str:
    """A pass of a rival, whose results agree; or why there is none."""

    def forward():
        with torch.no_grad():
            return (scores(),)

    def both():
        output = scores()
        return output, *torch.autograd.grad(output, leaves, inputs.upstream)

    job = forward if which == PASSES[0] else both
    try:
        if job is both and not scores().requires_grad:
            return "no backward pass"
        output, *gradients = job()
        shaped = [x.mT.reshape(own.shape) for x, own in zip(gradients, inputs.wanted)]
        compare(case, [output, *shaped], expected[: 1 + len(shaped)], inputs.visuals[0].dtype)
    except Disagreement as error:
        return f"wrong at this size: {error}"
    except rivals.errors() as error:
        return f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
    return job


def _timings(case, shape, which, inputs, calls, mm, others, options) -> dict:
    jobs = {key: inputs.job(call, which) for key, call in calls.items()} | {"mm": mm}
    compiled = {"compiled": "default", "max_autotune": "max-autotune"}
    notes = dict.fromkeys(compiled)
    torch.compiler.reset()  # else the ninth shape would silently run uncompiled
    for key, mode in compiled.items():
        if mode not in options.compile_modes:
            notes[key] = table.NOT_ASKED
            continue
        call = try_compiled(calls["reference"], mode, lambda call: inputs.job(call, which)())
        if callable(call):
            jobs[key] = inputs.job(call, which)
        else:
            notes[key] = call
    jobs |= {name: passes[which] for name, passes in others.items() if callable(passes[which])}
    if case.ops is not None:
        jobs["ops"] = inputs.ops_job(partial(case.ops, backend=options.backend), which)
    samples = time_rounds(jobs, Stopwatch(options.device, options.flush_l2), options.rounds, options.least_seconds)
    row: dict[str, typing.Any] = {"rounds": len(samples["fast"][0])}
    clock = 1 if options.clock == "cpu" else 0
    row |= {f"{key}_note": note for key, note in notes.items()}
    for key in ("fast", "reference", "amp", "low_precision", "compiled", "max_autotune", "mm"):
        prefix = "" if key == "fast" else f"{key}_"
        wall, cpu = samples.get(key, ((None,), (None,)))
        row |= {f"{prefix}ms": milliseconds(wall), f"{prefix}cpu_ms": milliseconds(cpu)}
        row[f"{prefix}quartiles_ms"] = quartiles(wall)
    for key in ("reference", "amp", "low_precision", "compiled", "max_autotune"):
        prefix = "" if key == "reference" else f"{key}_"
        ratios = [ratio(*pair) for pair in zip(samples[key], samples["fast"])] if key in samples else [None, None]
        row |= {
            f"{prefix}speedup": ratios[clock],
            f"{prefix}speedup_wall": ratios[0],
            f"{prefix}speedup_cpu": ratios[1],
        }
    row["rivals"] = {
        name: {"ms": milliseconds(samples[name][0]), "speedup": ratio(samples[name][clock], samples["fast"][clock])}
        if name in jobs
        else {"note": passes[which]}
        for name, passes in others.items()
    }
    count = case.forward if which == "forward" else case.both
    flops, mm_flops = (shape.flops(one) for one in (count, FlopCount(1)))
    read = sum(x.nbytes for x in (*inputs.visuals, *inputs.audios))
    traffic = read + (4 if inputs.upstream is None else inputs.upstream.nbytes)
    if which == PASSES[1]:
        traffic += read + sum(x.nbytes for x in inputs.wanted)
    mm_ratio = ratio(samples["mm"][clock], samples["fast"][clock])
    return row | {
        "flops": flops,
        "gflops": flops / row["ms"] / 1e6,
        "mm_gflops": mm_flops / row["mm_ms"] / 1e6,
        "loss_per_ops": ratio(samples["fast"][clock], samples["ops"][clock]) if "ops" in samples else None,
        **_outside_of_kernels(jobs["fast"], options),
        "mm_fraction": None if case.streams or mm_ratio is None else flops / mm_flops * mm_ratio,
        "gbytes_per_s": traffic / row["ms"] / 1e6,
    }


def _outside_of_kernels(job: Callable, options: argparse.Namespace) -> dict:
    """What `job` takes besides arithmetic, medians of as many calls as there are rounds: microseconds that are not
    spent in compiled kernels; page faults, and milliseconds of CPU time in the operating system, which serves them."""
    if options.device == "cuda":
        return dict.fromkeys(("dispatch_us", "page_faults", "system_ms"))
    faults, seconds = zip(*page_faults(job, options.rounds))
    return {
        "dispatch_us": 1e6 * statistics.median(seconds_outside(job, options.rounds))
        if options.backend == "compiled"
        else None,
        "page_faults": statistics.median(faults),
        "system_ms": milliseconds(seconds),
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
        (name, dtype, shape, instructions)
        for name in options.ops
        for dtype in options.dtype
        for shape in CASES[name].shapes or grid
        for instructions in options.instruction_sets
    ]
    bar = progress_bar(configurations, disable=options.quiet, desc="configurations")
    for name, dtype, shape, instructions in bar:
        rows = []
        try:
            with out_of_memory(), using(instructions):
                rows = measure(name, shape, DTYPES[dtype], options)
        except (Disagreement, torch.OutOfMemoryError) as error:
            under = f" {instructions}" if instructions else ""
            where = f"batch {shape.batch} map {shape.height}x{shape.width}{under}"
            result["failures"].append(f"{name} {dtype} {where}: {error}")
            bar.write(f"ssl-fast bench: {result['failures'][-1]}", file=sys.stderr)
        result["rows"] += rows
        for row in rows if not options.markdown else ():
            bar.write(table.line(row), file=sys.stdout)
        sys.stdout.flush()
        if options.json:
            replace_file(options.json, json.dumps(result, indent=1) + "\n")
    if options.markdown:
        print(table.markdown(result["rows"]))
    for text in table.left_out(result["rows"]):
        print(text)
    return 1 if result["failures"] else 0
