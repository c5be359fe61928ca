"""The loss in a whole training step of the nets: `ssl-fast bench --step`.

A step is the nets' forward pass on a batch of noise, the loss, both backward passes, and Adam. Candidates differ in the
loss alone, so nets and losses are timed apart, and a step is the sum of their medians: the loss's share, and how many
times as fast a step is, are not drowned in how the nets' time varies from step to step.

    nets    forward, backward from fixed gradients of the features, optimizer
    loss    forward and backward from features as the nets gave them. "compiled kernels": 16-bit features as they are
            where kernels multiply them, else widened, as `ssl-fast train` has it. "plain PyTorch": products in 16 bits,
            pooling in float32. "torch.compile": the same, compiled

Arithmetic, a multiply-add as two: of the nets, what torch counts; of the loss, three products of all pairs, as of a
program that keeps the maps,

    6 N^2 h w C T P    N images and sounds, h w cells, C channels, T audio tokens or 1, P pairs of views

Memory: on a CPU the peak of a step in a new process, beyond inputs, weights and the optimizer's state; on CUDA the
largest batch whose step fits.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..data.io.front_ends import front_end_named
from ..files import replace_file
from ..models import build
from ..models.localizers import blank
from ..ops.reference import accumulate_dtype
from ..progress import progress_bar
from ..training import recipes
from ..training.learner import multiplied_as_they_are
from ..training.recipes import Recipe
from . import table
from .environment import conditions, header, instruction_set, using
from .measure import (
    Stopwatch,
    in_fresh_process,
    milliseconds,
    out_of_memory,
    peak_resident,
    ratio,
    time_rounds,
    try_compiled,
)

# The losses of the others need more than features of these nets: momentum nets, transformed or similar images, a head.
METHODS = ("ssl_align", "margin_nce", "lvs", "ez_vsl", "fnac", "dense_av")
KERNELS, EAGER = "compiled kernels", "plain PyTorch"
Features = dict[str, Tensor]


def input_shapes(recipe: Recipe) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of one image and one spectrogram, as the nets take them."""
    return (3, recipe.image_size, recipe.image_size), (1, *front_end_named(recipe.front_end).shape)


def net_flops(recipe: Recipe) -> int:
    """Arithmetic of the nets for one sample, all views, forward and backward."""
    localizer = blank(recipe.model)
    images, spectrograms = (torch.empty(1, *shape, device="meta") for shape in input_shapes(recipe))
    with FlopCounterMode(display=False) as counter:
        features = localizer.visual_features(images) | localizer.audio_features(spectrograms)
        torch.autograd.backward(list(features.values()), [torch.empty_like(x) for x in features.values()])
    return len(recipe.views) * counter.get_total_flops()


def loss_flops(batch: int, cells: int, channels: int, tokens: int = 1, pairs: int = 1) -> int:
    """Arithmetic of a loss of all pairs of a batch, of so many pairs of views: its products, and those of the gradients
    of both sides."""
    return 6 * pairs * batch**2 * cells * channels * tokens


def flops(recipe: Recipe, batch: int) -> dict[str, int]:
    """ "nets" and "loss" of a step with the recipe's loss."""
    localizer = blank(recipe.model)
    images, spectrograms = (torch.empty(1, *shape, device="meta") for shape in input_shapes(recipe))
    visual, audio = localizer.visual_features(images), localizer.audio_features(spectrograms)
    _, channels, *size = visual["visual"].shape
    tokens = audio["audio"].shape[2] if localizer.has_tokens else 1
    loss = loss_flops(batch, size[0] * size[1], channels, tokens, len(recipe.views) ** 2)
    return {"nets": batch * net_flops(recipe), "loss": loss}


@dataclass
class Step:
    """The parts of a training step of a batch of `batch` samples, on a device, the nets' arithmetic in `dtype`."""

    recipe: Recipe
    batch: int
    device: str
    dtype: torch.dtype

    def __post_init__(self):
        torch.manual_seed(0)
        self.localizer = build(self.recipe.model).to(self.device)
        self.loss = self.recipe.build_loss().to(self.device)
        self.weights = [*self.localizer.parameters(), *self.loss.parameters()]
        self.optimizer = torch.optim.Adam(self.weights, lr=1e-4, fused=True)
        self.resize(self.batch)

    def resize(self, batch: int) -> None:
        self.batch, views = batch, len(self.recipe.views)
        images, sounds = (torch.randn(views * batch, *shape, device=self.device) for shape in input_shapes(self.recipe))
        self.inputs = images.contiguous(memory_format=torch.channels_last), sounds

    def features(self) -> Features:
        """Raw features of all views, in the dtype that the nets gave them."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            return self.localizer.visual_features(self.inputs[0]) | self.localizer.audio_features(self.inputs[1])

    def loss_of(self, features: Features, backend: str) -> Tensor:
        if backend != "reference":
            features = {
                name: x if multiplied_as_they_are(x) else x.to(accumulate_dtype(x)) for name, x in features.items()
            }
        options: dict[str, typing.Any] = {"backend": backend}
        if self.recipe.method == "ssl_align":
            split = {name: x.chunk(len(self.recipe.views)) for name, x in features.items()}
            if "visual_projected" in split:
                options |= {f"projected_{kind}s": split[f"{kind}_projected"] for kind in ("visual", "audio")}
            return self.loss(split["visual"], split["audio"], **options)
        if self.recipe.method == "dense_av":  # of each clip, the last quarter is silent
            samples, _, tokens = features["audio"].shape
            silent = torch.arange(tokens, device=self.device) >= tokens - tokens // 4
            options["silent"] = silent.expand(samples, -1)
        return self.loss(features["visual"], features["audio"], **options)

    def whole(self, backend: str) -> tuple[()]:
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_of(self.features(), backend).backward()
        self.optimizer.step()
        return ()

    def nets(self, gradients: Features) -> None:
        """Everything but the loss, whose gradients are given."""
        self.optimizer.zero_grad(set_to_none=True)
        features = self.features()
        torch.autograd.backward([features[name] for name in gradients], list(gradients.values()))
        self.optimizer.step()


def loss_jobs(step: Step, backend: str, modes: Sequence[str]) -> tuple[dict[str, Callable | str], Features]:
    """By name of the candidate: a function that computes the loss of given features and its gradients -> (loss,
    *gradients), or why there is none. Also the features' gradients by plain PyTorch."""
    leaves = {name: x.detach().requires_grad_() for name, x in step.features().items()}
    wanted = [*leaves.values(), *step.loss.parameters()]
    calls: dict[str, Callable] = {KERNELS: partial(step.loss_of, backend="auto")} if backend == "compiled" else {}
    eager = calls[EAGER] = partial(step.loss_of, backend="reference")

    def job(call: Callable) -> tuple[Tensor, ...]:
        loss = call(leaves)
        return loss.detach(), *torch.autograd.grad(loss, wanted)

    jobs: dict[str, Callable | str] = {name: partial(job, call) for name, call in calls.items()}
    gradients = {name: x.clone() for name, x in zip(leaves, job(eager)[1:])}
    torch.compiler.reset()
    for mode in modes:
        call = try_compiled(eager, mode, job)
        jobs[f"torch.compile {mode}"] = partial(job, call) if callable(call) else call
    return jobs, gradients


def _peak_here(
    recipe: Recipe, batch: int, dtype: torch.dtype, backend: str, threads: int, instructions: str | None
) -> int:
    """peak_resident of a whole step, to be run in a fresh process."""
    torch.set_num_threads(threads)
    with using(instructions):
        step = Step(recipe, 2, "cpu", dtype)
        step.whole(backend)
        step.resize(batch)
        return peak_resident(partial(step.whole, backend))


def largest(fits: Callable[[int], bool], first: int) -> int | None:
    """The largest batch that fits, to a thirty-second; None if two samples do not."""
    good, bad = 1, first
    while fits(bad):
        good, bad = bad, 2 * bad
    while bad - good > max(1, good // 32):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good if good > 1 else None


def _fits_cuda(recipe: Recipe, dtype: torch.dtype, backend: str, batch: int) -> bool:
    try:
        step = Step(recipe, batch, "cuda", dtype)
        for _ in range(2):
            step.whole(backend)
        torch.cuda.synchronize()
        return True
    except torch.OutOfMemoryError:
        return False
    finally:
        step = None
        gc.collect()
        torch.cuda.empty_cache()


def measure(
    recipe: Recipe, batch: int, dtype: torch.dtype, options: argparse.Namespace
) -> tuple[list[dict], list[str]]:
    """A row for each candidate, and what was left out and why."""
    device, threads = options.device, torch.get_num_threads()
    step = Step(recipe, batch, device, dtype)
    found, gradients = loss_jobs(step, options.backend, options.compile_modes)
    jobs = {name: job for name, job in found.items() if callable(job)}
    left_out = [f"{name}: {why}" for name, why in found.items() if name not in jobs]
    losses = {name: float(job()[0]) for name, job in jobs.items()}
    samples = time_rounds({"nets": partial(step.nets, gradients)}, Stopwatch(device), options.rounds, 0)
    samples |= time_rounds(jobs, Stopwatch(device), options.rounds, options.least_seconds)
    del step, found, jobs, gradients
    torch.compiler.reset()  # graphs have memory, too
    clock, arithmetic = 1 if options.clock == "cpu" else 0, flops(recipe, batch)

    def median(name: str) -> float:
        return statistics.median(samples[name][clock])

    rows = []
    for name, value in losses.items():
        row = {
            "method": recipe.method,
            "recipe": recipe.name,
            "batch": batch,
            "views": len(recipe.views),
            "dtype": str(dtype).removeprefix("torch."),
            "device": device,
            "loss": name,
            "value": value,
            "rounds": len(samples["nets"][0]),
            "loss_rounds": len(samples[name][0]),
            "clock": options.clock,
            "net_flops": arithmetic["nets"],
            "loss_flops": arithmetic["loss"],
            "share": median(name) / (median("nets") + median(name)),
            "loss_speedup": ratio(samples[EAGER][clock], samples[name][clock]),
            "step_speedup": (median("nets") + median(EAGER)) / (median("nets") + median(name)),
            "peak_bytes": None,
            "largest_batch": None,
            **conditions(device, options.backend),
        }
        for key, part in (("nets", "nets"), ("loss", name)):
            wall, cpu = samples[part]
            row |= {f"{key}_ms": milliseconds(wall), f"{key}_cpu_ms": milliseconds(cpu)}
        backend = {KERNELS: "auto", EAGER: "reference"}.get(name)
        if backend and device == "cuda":
            row["largest_batch"] = largest(partial(_fits_cuda, recipe, dtype, backend), batch)
        elif backend and sys.platform.startswith("linux"):
            row["peak_bytes"] = in_fresh_process(_peak_here, recipe, batch, dtype, backend, threads, instruction_set())
        rows.append(row)
    return rows, left_out


def _number(x: float | None, digits: int) -> str:
    return "-" if x is None else f"{x:.{digits}f}"


COLUMNS = {  # title: width, text of a row
    "method": (10, lambda r: r["method"]),
    "batch": (5, lambda r: str(r["batch"])),
    "dtype": (8, lambda r: r["dtype"]),
    "set": (12, lambda r: r["instruction_set"] or "-"),
    "loss": (26, lambda r: r["loss"]),
    "nets ms": (9, lambda r: _number(r["nets_cpu_ms" if r["clock"] == "cpu" else "nets_ms"], 1)),
    "loss ms": (9, lambda r: _number(r["loss_cpu_ms" if r["clock"] == "cpu" else "loss_ms"], 2)),
    "% of step": (9, lambda r: _number(100 * r["share"], 3)),
    "% by arithmetic": (15, lambda r: _number(100 * r["loss_flops"] / (r["net_flops"] + r["loss_flops"]), 3)),
    "x loss": (6, lambda r: _number(r["loss_speedup"], 2)),
    "x step": (7, lambda r: _number(r["step_speedup"], 4)),
    "peak MiB": (8, lambda r: _number(None if r["peak_bytes"] is None else r["peak_bytes"] / 2**20, 0)),
    "largest batch": (13, lambda r: str(r["largest_batch"] or "-")),
}


def run(options: argparse.Namespace) -> int:
    """Time the steps that `options` ask for, as `cli.bench.resolve` gives them; print the table, write it as JSON.

    Exit code: 0; 1 where a step does not fit into memory. ValueError for a method or recipe without such a step.
    """
    methods = options.method.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"--method: expected some of {', '.join(METHODS)} with --step, got {', '.join(unknown)}")
    wanted = [recipes.recipe(name, options.recipe) for name in methods]
    head = header(options) | {"recipes": [recipe.to_dict() for recipe in wanted]}
    result = {"header": head, "rows": [], "left_out": [], "failures": []}
    print(
        f"{table.machine(head)}. ms: medians of {table.CLOCKS[options.clock]}; x loss, x step: against plain PyTorch; "
        "peak MiB: of the whole step, beyond inputs, weights and the optimizer's state.\n"
    )
    line = " | ".join if options.markdown else "  ".join

    def show(cells: list[str]) -> None:
        text = line(cells if options.markdown else [x.rjust(width) for x, (width, _) in zip(cells, COLUMNS.values())])
        bar.write(f"| {text} |" if options.markdown else text, file=sys.stdout)

    cases = list(itertools.product(wanted, options.dtype, options.batch, options.instruction_sets))
    with progress_bar(cases, disable=options.quiet, desc="steps") as bar:
        show(list(COLUMNS))
        if options.markdown:
            show(["---"] + ["---:"] * (len(COLUMNS) - 1))
        for recipe, dtype, batch, instructions in bar:
            rows, left_out = [], []
            try:
                with out_of_memory(), using(instructions):
                    rows, left_out = measure(recipe, batch, getattr(torch, dtype), options)
            except torch.OutOfMemoryError as error:
                result["failures"].append(f"{recipe.method} {dtype} batch {batch}: {error}")
                bar.write(f"ssl-fast bench: {result['failures'][-1]}", file=sys.stderr)
            result["rows"] += rows
            result["left_out"] += left_out
            for text in left_out:
                bar.write(f"not timed: {text}", file=sys.stdout)
            for row in rows:
                show([text(row) for _, text in COLUMNS.values()])
            sys.stdout.flush()
            if options.json:
                replace_file(options.json, json.dumps(result, indent=1) + "\n")
    return 1 if result["failures"] else 0
