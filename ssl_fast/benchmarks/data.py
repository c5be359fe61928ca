"""Samples a second of every stage between files and the trained net: `ssl-fast bench --data DIR`.

    image         a file decoded and resized, in one process with one thread
    sound         a file decoded, resampled and cut, likewise
    sample        all views of a sample as training has them loaded, likewise
    loader        whole batches of these from --workers processes, once their queues are full
    spectrogram   of a batch of waveforms, on --device
    augmentation  of a batch, from what was loaded to what the nets see: spectrograms, colours, masks; on --device
    step          of training on a batch, augmentation included, on --device

Rates are medians of rounds, which go through the set in the order of training. Files are read over and over, so they
come from memory: what the disk can do is another matter. A loader keeps up where its rate exceeds that of the step.
Conceptual views are timed with samples as their own neighbours.
"""

import argparse
import itertools
import json
import statistics
import typing
from collections.abc import Callable

import numpy as np
import torch

from ..data.datasets import FileSet
from ..data.io.images import fit_frame
from ..files import replace_file
from ..training.learner import Learner
from ..training.recipes import Recipe
from ..training.sampler import StepSampler, collate
from ..training.views import Themselves, Views
from .environment import conditions
from .measure import Stopwatch, time_rounds

CHUNK = 8  # samples in a round of the stages that go sample by sample


def run(found: FileSet, recipe: Recipe, options: argparse.Namespace, header: dict) -> int:
    """Time all stages for a set and a recipe; print the rates, and write header and rows as JSON where asked to.

    options: of `ssl-fast bench`. Gives the exit code, 0. ValueError for files that cannot be read.
    """
    rows = [{"stage": "loader", "processes": options.workers, **_loader(found, recipe, options)}]
    rows = _stages(found, recipe, options, rows)
    line = "| {} | {} | {} |" if options.markdown else "{:<14}{:>14}{:>14}"
    print(line.format("stage", "samples/s", "ms/sample") + ("\n|---|---:|---:|" if options.markdown else ""))
    for row in rows:
        print(line.format(row["stage"], f"{row['samples_per_s']:.1f}", f"{1000 / row['samples_per_s']:.3f}"))
    if options.json:
        about = {
            "data": str(options.data),
            "set": options.set_name,
            "samples": len(found),
            "recipe": recipe.to_dict(),
            "cache": options.cache is not None,
            "workers": options.workers,
        }
        replace_file(options.json, json.dumps({"header": header | about, "rows": rows}, indent=1) + "\n")
    return 0


def _row(samples: int, seconds: tuple, device: str = "cpu") -> dict:
    """seconds: of wall and CPU time, as `time_rounds` gives them."""
    wall, cpu = seconds
    return {
        "samples_per_s": samples / statistics.median(wall),
        "cpu_ms_per_sample": None if cpu[0] is None else 1000 * statistics.median(cpu) / samples,
        "rounds": len(wall),
        **conditions(device, "compiled"),
    }


def _order(found: FileSet, recipe: Recipe) -> StepSampler:
    return StepSampler(len(found), recipe.batch_size, steps=1 << 40, seed=0)


def _views(found: FileSet, recipe: Recipe) -> Views:
    return Views(found, recipe, 0, (Themselves(), Themselves()) if recipe.neighbors else None)


def _batches(found: FileSet, recipe: Recipe, workers: int, device: str) -> torch.utils.data.DataLoader:
    """The loader that training reads from, without an end."""
    return torch.utils.data.DataLoader(
        _views(found, recipe),
        batch_sampler=_order(found, recipe),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device == "cuda",
    )


def _loader(found: FileSet, recipe: Recipe, options: argparse.Namespace) -> dict:
    loader = _batches(found, recipe, options.workers, options.device)
    stream, turns = iter(loader), max(1, options.workers)
    for _ in range(turns * (loader.prefetch_factor or 1)):  # without workers nothing is prefetched
        next(stream)
    stopwatch = Stopwatch("cpu")
    walls = [stopwatch(lambda: [next(stream) for _ in range(turns)])[0] for _ in range(options.rounds)]
    return _row(turns * recipe.batch_size, (walls, [None]))  # the CPU time is that of other processes


def _stages(found: FileSet, recipe: Recipe, options: argparse.Namespace, loader_rows: list[dict]) -> list[dict]:
    """The rows of all stages in order, with those of the loader between them."""
    order = itertools.chain.from_iterable(_order(found, recipe))

    def each(job: Callable[[typing.Any], object]) -> Callable[[], object]:
        return lambda: [job(next(order)) for _ in range(CHUNK)]

    single = {
        "image": each(lambda key: fit_frame(found.frame(key[0]), found.size, found.fit, found.resampler)),
        "sound": each(lambda key: found.waveform(key[0])),
        "sample": each(_views(found, recipe).__getitem__),
    }
    indices, images, sounds, _ = next(iter(_batches(found, recipe, 0, options.device)))
    waveforms = torch.from_numpy(np.stack([found.waveform(i) for i in indices]))
    learner, generator = Learner(recipe, 0, options.device, front_end=found.front_end), torch.Generator().manual_seed(0)
    batched = {
        "spectrogram": lambda: found.front_end.spectrogram(waveforms.to(options.device)),
        "augmentation": lambda: learner.net_inputs(images, sounds, generator),
        "step": lambda: learner.step(0, images, sounds, 0.0, [found.ids[i] for i in indices]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first = time_rounds(single, Stopwatch("cpu"), options.rounds, options.least_seconds)
    torch.set_num_threads(threads)
    last = time_rounds(batched, Stopwatch(options.device), options.rounds, 0)
    return (
        [{"stage": name, **_row(CHUNK, seconds)} for name, seconds in first.items()]
        + loader_rows
        + [{"stage": name, **_row(len(indices), seconds, options.device)} for name, seconds in last.items()]
    )
