"""How fast maps become numbers: the published steps image by image, the plain numpy path, and the compiled kernel.

    OMP_WAIT_POLICY=passive python examples/bench_evaluator.py --threads 2 [--json FILE]

First table: one map (7 x 7 to 224 x 224, top 50 %, IoU with boxes), wall time and CPU time (of all threads together,
which other processes on the machine hardly disturb) per map; candidates take turns, `x` is the median of the ratios
within a round. Before that their predictions are compared: the loop rounds at every step, so a near-tie may put a pixel
on the other side.
Then the whole protocol of vssl_eval with exact up-sampling: every image under its own sound and under three negatives
from each of ten draws, adaptive and universal threshold, pIA, agreement of maps, all figures; the maps are drawn
beforehand, the ground truth is painted from boxes on the way. Wall and CPU time, and what memory that took.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads would count as working

import numpy as np
import torch
import torch.nn.functional as F

from ssl_fast.benchmarks.environment import conditions
from ssl_fast.benchmarks.measure import Stopwatch, peak_resident, time_rounds
from ssl_fast.evaluation import PROTOCOLS, Rule, Upsampling, false_alarms
from ssl_fast.evaluation.map_metrics import counts
from ssl_fast.evaluation.protocols import Accumulator
from ssl_fast.reproducibility import versions

SIDE, CELLS = 224, 7
KINDS = ("silence", "noise", "offscreen")
INTERPOLATIONS = ("bilinear", "bicubic")


def draw_maps(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Cosines (..., 7, 7)."""
    return np.tanh(rng.standard_normal((*shape, CELLS, CELLS), np.float32) * 0.4)


def draw_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) int: top, left, bottom, right in pixels."""
    start, size = rng.integers(0, 120, (count, 2)), rng.integers(24, 105, (count, 2))
    return np.concatenate([start, start + size], 1)


def paint(boxes: np.ndarray) -> np.ndarray:
    truth = np.zeros((len(boxes), SIDE, SIDE), bool)
    for image, (top, left, bottom, right) in zip(truth, boxes):
        image[top:bottom, left:right] = True
    return truth


def published_loop(maps: np.ndarray, truth: np.ndarray, interpolation: str) -> np.ndarray:
    """IoU (N,) by what EZ-VSL's evaluator does to each image: enlarge, scale to [0, 1], sort, threshold, and sum over
    ground truth of float64 for the IoU, its numerator and its denominator."""
    out = []
    for low, own in zip(torch.from_numpy(maps)[:, None, None], truth):
        heat = F.interpolate(low, size=(SIDE, SIDE), mode=interpolation, align_corners=False).numpy()[0, 0]
        low, high = heat.min(), heat.max()
        heat = (heat - low) / (high - low)
        threshold = np.sort(heat.flatten())[int(heat.size * 0.5)]
        mask = np.zeros((SIDE, SIDE))
        mask[heat >= threshold] = 1
        iou = np.sum(mask * own) / (np.sum(own) + np.sum(mask * (own == 0)))
        out.append((iou, np.sum(mask * own), np.sum(own) + np.sum(mask * (own == 0))))
    return np.array(out)[:, 0]


def by_map(count: int, rounds: int) -> list[dict]:
    rng = np.random.default_rng(0)
    maps, truth = draw_maps(rng, count), paint(draw_boxes(rng, count))
    doubles, rows = truth.astype(np.float64), []  # the released evaluators' ground truth is of float64
    for interpolation in INTERPOLATIONS:
        upsampling = [Upsampling(interpolation)]

        def ours(backend):
            return counts([maps], truth, [Rule("top50")], upsampling=upsampling, backend=backend).iou(1.0)[:, 0]

        jobs = {
            "published steps": lambda: published_loop(maps, doubles, interpolation),
            "plain numpy": lambda: ours("reference"),
            "compiled": lambda: ours("compiled"),
        }
        values = {name: job() for name, job in jobs.items()}
        assert (values["plain numpy"] == values["compiled"]).all()
        assert np.abs(values["published steps"] - values["compiled"]).max() < 5 / truth.sum((1, 2)).min()
        times = time_rounds(jobs, Stopwatch("cpu"), rounds, 0)
        for name, clocks in times.items():
            row = {"interpolation": interpolation, "name": name}
            for clock, own, loop in zip(("wall", "cpu"), clocks, times["published steps"]):
                row |= {
                    f"{clock}_us": 1e6 * statistics.median(own) / count,
                    f"{clock}_x": statistics.median(a / b for a, b in zip(loop, own)),
                }
            rows.append(row)
    return rows


def whole_protocol(images: int, draws: int, batch: int) -> dict:
    rng = np.random.default_rng(1)
    protocol = PROTOCOLS["vssl_eval"].exact()
    maps, boxes = draw_maps(rng, images), draw_boxes(rng, images)
    negatives = {kind: 0.8 * draw_maps(rng, draws, images) for kind in KINDS}
    found: dict = {}

    def job():
        maxima = {kind: values.max((2, 3)).reshape(-1) for kind, values in negatives.items()}
        total = Accumulator(protocol, threshold=false_alarms.universal_threshold(maxima).value, backend="compiled")
        for start in range(0, images, batch):
            part = slice(start, start + batch)
            truth = paint(boxes[part])
            for draw in range(draws):
                total.update(maps[part], truth, negatives={kind: v[draw, part] for kind, v in negatives.items()})
        found.update(total.compute()["figures"]["audio_visual"])

    wall, cpu = time.perf_counter(), time.process_time()
    peak = peak_resident(job)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    evaluated = images * draws * (1 + len(KINDS))
    return {
        "protocol": protocol.name,
        "images": images,
        "draws": draws,
        "maps": evaluated,
        "wall_s": wall,
        "cpu_s": cpu,
        "us_per_map": 1e6 * wall / evaluated,
        "peak_mib": peak / 2**20,
        "f_loc": found["false_alarms"]["f_loc"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5158, help="of the whole protocol (VGG-SS has 5158)")
    parser.add_argument("--draws", type=int, default=10, help="of negatives for each image")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--maps", type=int, default=128, help="of the table by map")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="torch's number unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = by_map(options.maps, options.rounds)
    print(f"| up-sampling | steps | us, wall ({torch.get_num_threads()} threads) | x | us, CPU | x |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['interpolation']} | {row['name']} | {row['wall_us']:.0f} | {row['wall_x']:.1f} | "
            f"{row['cpu_us']:.0f} | {row['cpu_x']:.1f} |"
        )
    whole = whole_protocol(options.images, options.draws, options.batch)
    print(
        f"\n{whole['protocol']}: {whole['maps']:,} maps of {whole['images']:,} images in {whole['wall_s']:.1f} s on "
        f"{torch.get_num_threads()} threads ({whole['cpu_s']:.1f} s of CPU time, {whole['us_per_map']:.0f} us per "
        f"map, {whole['peak_mib']:.0f} MiB)"
    )
    if options.json:
        record = {
            "versions": versions(),
            **conditions("cpu", "compiled"),
            "threads": torch.get_num_threads(),
            "by_map": rows,
            "whole_protocol": whole,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
