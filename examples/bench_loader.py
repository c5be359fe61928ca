"""How fast files become batches: a per-item loop of the published kind against this package's sets.

    OMP_WAIT_POLICY=passive python examples/bench_loader.py [--workers 2] [--json FILE]

On files made for the purpose (JPEG of 640 x 480, 10 s of 16 kHz, 16 bits; all in memory after the first round), with
one thread a process. The loop does to an item what the released EZ-VSL, SLAVC and FNAC do: decode, shorter side to 246
by Pillow's bicubic, random crop and flip, to float, normalise; the whole sound read, tiled where it is short, 3 s of it
through scipy.signal.spectrogram in float64, logarithm. The package decodes and resizes to the square (by Pillow, or by
torch's kernel of the same filter), reads the 3 s that are heard, computes the spectrogram in float32, and makes floats
of batches. "cache": from a cache of decoded frames and sounds, filled before.

First table: one process, wall and CPU time of an item; candidates take turns, `x` is the median of the ratios within a
round. Then samples a second of a DataLoader with --workers processes, wall time, candidates taking turns.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import scipy.signal
import soundfile
import torch
from PIL import Image

from ssl_fast.benchmarks.environment import conditions
from ssl_fast.benchmarks.measure import Stopwatch, time_rounds
from ssl_fast.data.datasets import FolderSet
from ssl_fast.data.io.images import Geometry
from ssl_fast.reproducibility import versions

SIZE, SECONDS, RATE = 224, 3, 16000
CLOCKS = ("wall", "cpu")
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def make_files(folder: Path, count: int) -> None:
    """Smooth colours with grain, and noise."""
    rng = np.random.default_rng(0)
    for kind in ("frames", "audio"):
        (folder / kind).mkdir()
    for i in range(count):
        smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480), Image.BICUBIC)
        grain = rng.normal(0, 6, (480, 640, 3))
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"frames/{i}.jpg", quality=90)
        soundfile.write(folder / f"audio/{i}.wav", rng.uniform(-0.5, 0.5, 10 * RATE), RATE)


class PublishedLoop(torch.utils.data.Dataset):
    """Items as the released programs load them: image (3, 224, 224) float32, spectrogram (1, 257, 200) float64."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image(index), self.spectrogram(index)

    def image(self, index: int) -> torch.Tensor:
        frame = Image.open(self.folder / f"frames/{index}.jpg").convert("RGB")
        scale = int(1.1 * SIZE) / min(frame.size)
        frame = frame.resize([round(scale * side) for side in frame.size], Image.BICUBIC)
        left, top = (np.random.randint(side - SIZE + 1) for side in frame.size)
        frame = frame.crop((left, top, left + SIZE, top + SIZE))
        if np.random.rand() < 0.5:
            frame = frame.transpose(Image.FLIP_LEFT_RIGHT)
        pixels = np.array(frame, np.float32) / 255
        return torch.from_numpy(((pixels - MEAN) / STD).transpose(2, 0, 1).copy())

    def spectrogram(self, index: int) -> torch.Tensor:
        sound, rate = soundfile.read(self.folder / f"audio/{index}.wav")
        samples = SECONDS * rate
        if len(sound) < samples:
            sound = np.tile(sound, samples // len(sound) + 1)[:samples]
        start = (len(sound) - samples) // 2
        power = scipy.signal.spectrogram(sound[start : start + samples], rate, nperseg=512, noverlap=274)[2]
        return torch.from_numpy(np.log(power + 1e-7) / 12)[None]


def floats(samples: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the loop gives, of a batch of this package's samples."""
    images = torch.stack([sample["image"] for sample in samples]).float()
    mean, std = (torch.from_numpy(255 * values)[:, None, None] for values in (MEAN, STD))
    return images.sub_(mean).div_(std), torch.stack([sample["spectrogram"] for sample in samples])


def candidates(folder: Path, count: int) -> dict[str, tuple]:
    """name -> (set, function that makes a batch of samples)."""
    loop = PublishedLoop(folder, count)
    rows = {"published loop": (loop, torch.utils.data.default_collate)}
    for cache in (None, folder / "cache"):
        for resampler in ("pillow", "torch"):
            found = FolderSet(folder, front_end="ez_vsl", size=SIZE, cache=cache, resampler=resampler)
            np.testing.assert_allclose(found[0]["spectrogram"], loop.spectrogram(int(found.ids[0])), rtol=1e-5)
            [found[i] for i in range(count if cache else 0)]
            rows[f"files{' in the cache' * bool(cache)}, {resampler}"] = found, floats
    return rows


def ratio(loop: tuple, own: tuple) -> float:
    return statistics.median(a / b for a, b in zip(loop, own))


def in_one_process(rows: dict, batch: int, rounds: int) -> list[dict]:
    jobs = {
        name: functools.partial(lambda found, collate: collate([found[i] for i in range(batch)]), *row)
        for name, row in rows.items()
    }
    times = time_rounds(jobs, Stopwatch("cpu"), rounds, 0)
    out = []
    for name, clocks in times.items():
        out.append({"name": name})
        for clock, own, loop in zip(CLOCKS, clocks, times["published loop"]):
            out[-1] |= {f"{clock}_ms": 1000 * statistics.median(own) / batch, f"{clock}_x": ratio(loop, own)}
    return out


def by_workers(rows: dict, batch: int, rounds: int, workers: int) -> list[dict]:
    """Rates of a DataLoader over the whole set, its processes alive from round to round."""
    loaders = {
        name: torch.utils.data.DataLoader(
            found, batch, num_workers=workers, collate_fn=collate, persistent_workers=True
        )
        for name, (found, collate) in rows.items()
    }
    seconds = {name: [] for name in rows}
    for k in range(rounds + 1):
        for name, loader in loaders.items():
            begin = time.perf_counter()
            for _ in loader:
                pass
            if k:  # the first round starts the processes
                seconds[name].append(time.perf_counter() - begin)
    return [
        {
            "name": name,
            "samples_per_s": len(rows[name][0]) / statistics.median(own),
            "wall_x": ratio(seconds["published loop"], own),
        }
        for name, own in seconds.items()
    ]


def stages(rows: dict, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU time of the parts of an item, of the published loop and of this package."""
    loop, found, cached = (rows[name][0] for name in ("published loop", "files, torch", "files in the cache, torch"))
    frame, wave = found.frame(0), torch.from_numpy(found.waveform(0))
    parts = {
        "loop: image": lambda: loop.image(0),
        "loop: sound and spectrogram": lambda: loop.spectrogram(0),
        "JPEG by Pillow, nothing else": lambda: Image.open(loop.folder / "frames/0.jpg").load(),
        "frame": lambda: found.frame(0),
        "frame from the cache": lambda: cached.frame(0),
        "resize by pillow": lambda: Geometry().image(frame, SIZE),
        "resize by torch": lambda: Geometry().image(frame, SIZE, "torch"),
        "sound": lambda: found.waveform(0),
        "sound from the cache": lambda: cached.waveform(0),
        "spectrogram": lambda: found.front_end.spectrogram(wave),
    }
    return {
        name: 1000 * statistics.median(cpu)
        for name, (_, cpu) in time_rounds(parts, Stopwatch("cpu"), rounds, 0).items()
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=128, help="files of each kind")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--workers", type=int, default=2, help="processes of the second table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), options.items)
        rows = candidates(Path(folder), options.items)
        single = in_one_process(rows, options.batch, options.rounds)
        parts = stages(rows, 3 * options.rounds)
        several = by_workers(rows, options.batch, options.rounds, options.workers)
    print("| one process | ms, wall | x | ms, CPU | x |\n|---|---|---|---|---|")
    for row in single:
        print(
            f"| {row['name']} | {row['wall_ms']:.2f} | {row['wall_x']:.2f} | {row['cpu_ms']:.2f} | {row['cpu_x']:.2f} |"
        )
    print("\n" + ", ".join(f"{name} {value:.2f} ms" for name, value in parts.items()))
    print(f"\n| {options.workers} processes | samples/s | x |\n|---|---|---|")
    for row in several:
        print(f"| {row['name']} | {row['samples_per_s']:.0f} | {row['wall_x']:.2f} |")
    if options.json:
        record = {
            "versions": versions(),
            "cores": os.cpu_count(),
            **conditions("cpu", "compiled"),
            "items": options.items,
            "batch": options.batch,
            "one_process": single,
            "parts_cpu_ms": parts,
            "processes": {"workers": options.workers, "rows": several},
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
