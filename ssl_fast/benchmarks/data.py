"""`ssl-fast bench --data DIR`: samples a second of every stage between files and the trained net.

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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..cli import data as data_commands
from ..data.io.images import Geometry
from ..training import recipes
from ..training.learner import Learner
from ..training.loop import StepSampler, _collate
from ..training.views import Themselves, Views
from .measure import Stopwatch, time_rounds

CHUNK = 8  # samples of a round of the stages that go sample by sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "training data", "of the other options, --device, --json, --batch, --rounds, --threads and --markdown count"
    )
    group.add_argument("--data", type=Path, metavar="DIR", help="time its way into training instead of the ops")
    group.add_argument("--split", metavar="NAME", help="list of ids in --data")
    data_commands.add_training_set(group)
    group.add_argument("--method", metavar="NAME", default="ssl_align", help="default: ssl_align")
    group.add_argument("--recipe", metavar="NAME", default="published", help="quickstart or published (default)")
    group.add_argument("--workers", type=int, metavar="N", default=2, help="processes that load samples (default: 2)")


def run(options: argparse.Namespace, header: dict) -> int:
    """Prints the rates, and writes header and rows as JSON where asked to. ValueError for data that cannot be read."""
    if options.workers < 0 or len(options.batch or [0]) > 1:
        raise ValueError(f"--workers, --batch: expected one number >= 0, got {options.workers} and {options.batch}")
    recipe = recipes.recipe(options.method, options.recipe, batch_size=options.batch and options.batch[0])
    found = data_commands.training_set(options, recipe.front_end, recipe.image_size)
    recipe.steps(len(found))
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
        options.json.write_text(json.dumps({"header": header | about, "rows": rows}, indent=1) + "\n")
    return 0


def _row(samples: int, seconds: tuple[float, ...]) -> dict:
    return {"samples_per_s": samples / statistics.median(seconds), "rounds": len(seconds)}


def _order(found, recipe) -> StepSampler:
    return StepSampler(len(found), recipe.batch_size, steps=1 << 40, seed=0)


def _views(found, recipe) -> Views:
    return Views(found, recipe, 0, (Themselves(), Themselves()) if "conceptual" in recipe.views else None)


def _batches(found, recipe, workers: int, device: str) -> torch.utils.data.DataLoader:
    """What training reads from, without an end."""
    return torch.utils.data.DataLoader(
        _views(found, recipe),
        batch_sampler=_order(found, recipe),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=device == "cuda",
    )


def _loader(found, recipe, options: argparse.Namespace) -> dict:
    loader = _batches(found, recipe, options.workers, options.device)
    stream, turns = iter(loader), max(1, options.workers)
    for _ in range(turns * loader.prefetch_factor if options.workers else 1):
        next(stream)
    stopwatch = Stopwatch("cpu")
    seconds = [stopwatch(lambda: [next(stream) for _ in range(turns)])[0] for _ in range(options.rounds)]
    return _row(turns * recipe.batch_size, seconds)


def _stages(found, recipe, options: argparse.Namespace, rows: list[dict]) -> list[dict]:
    """The rows of all stages, those of the loader given."""
    order = itertools.chain.from_iterable(_order(found, recipe))

    def each(job: Callable[[tuple[int, int]], object]) -> Callable[[], object]:
        return lambda: [job(next(order)) for _ in range(CHUNK)]

    single = {
        "image": each(lambda key: Geometry().image(found.frame(key[0]), found.size, found.resampler)),
        "sound": each(lambda key: found.waveform(key[0])),
        "sample": each(_views(found, recipe).__getitem__),
    }
    indices, images, sounds = next(iter(_batches(found, recipe, 0, options.device)))
    waveforms = torch.from_numpy(np.stack([found.waveform(i) for i in indices]))
    learner, generator = Learner(recipe, 0, options.device, front_end=found.front_end), torch.Generator().manual_seed(0)
    batched = {
        "spectrogram": lambda: found.front_end.spectrogram(waveforms.to(options.device)),
        "augmentation": lambda: learner.seen(images, sounds, generator),
        "step": lambda: learner.step(0, images, sounds, 0.0, [found.ids[i] for i in indices]),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    first = time_rounds(single, Stopwatch("cpu"), options.rounds, options.least_seconds)
    torch.set_num_threads(threads)
    last = time_rounds(batched, Stopwatch(options.device), options.rounds, 0)
    return (
        [{"stage": name, **_row(CHUNK, wall)} for name, (wall, _) in first.items()]
        + rows
        + [{"stage": name, **_row(len(indices), wall)} for name, (wall, _) in last.items()]
    )
