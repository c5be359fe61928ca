"""How fast the nearest neighbours of all samples are found, against the matrix products alone that it takes.

    OMP_WAIT_POLICY=passive python examples/bench_mining.py --threads 2 [--json FILE]

Times one block of queries after another, whole path: products, selection of k, order. Between them torch.mm of
the same block in tiles of the same shape, and nothing else, takes turns; `share` is the median of the ratios within a
round. CPU time is of all threads together, and suffers less from other processes. Then the same by parts. Features are
drawn from 300 clusters, as categories would make them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import faiss
import numpy as np
import torch

from ssl_fast.benchmarks.environment import conditions
from ssl_fast.benchmarks.measure import Stopwatch, peak_resident, time_rounds
from ssl_fast.data import neighbors
from ssl_fast.reproducibility import versions

PARTS = {"_search_in_heaps": "products and heaps", "_in_order": "order"}


def draw_features(samples: int, dimension: int, clusters: int = 300) -> np.ndarray:
    """(samples, dimension) float32."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, dimension), np.float32)
    features = rng.standard_normal((samples, dimension), np.float32)
    for start in range(0, samples, 4096):
        part = features[start : start + 4096]
        part += 0.6 * centres[rng.integers(0, clusters, len(part))]
    return features


def products(units: torch.Tensor, queries: int, columns: int):
    """A job: all products of the first `queries` rows, `columns` at a time."""
    buffer = torch.empty(queries * columns)

    def job():
        for start in range(0, len(units), columns):
            tile = units[start : start + columns]
            torch.mm(units[:queries], tile.T, out=buffer[: queries * len(tile)].view(queries, len(tile)))

    return job


def time_blocks(features: np.ndarray, k: int, rounds: int) -> dict:
    queries = min(neighbors._QUERIES, len(features))
    tiles = products(torch.nn.functional.normalize(torch.from_numpy(features)), queries, neighbors._COLUMNS)
    blocks, parts = [], dict.fromkeys(PARTS, 0.0)

    def mined():
        while True:
            try:
                return next(blocks[-1])
            except (StopIteration, IndexError):
                blocks.append(neighbors.nearest(features, k))

    def timed(name: str, own):
        def part(*given):
            start = time.process_time()
            result = own(*given)
            parts[name] += time.process_time() - start
            return result

        return part

    before, calls = {name: getattr(neighbors, name) for name in PARTS}, 0
    try:
        for name, own in before.items():
            setattr(neighbors, name, timed(name, own))
        mined()
        parts.update(dict.fromkeys(PARTS, 0.0))

        def counted():
            nonlocal calls
            calls += 1
            return mined()

        times = time_rounds({"torch.mm": tiles, "mining": counted}, Stopwatch("cpu"), rounds, 0)
    finally:
        for name, own in before.items():
            setattr(neighbors, name, own)
    row = {"parts_cpu_s": {title: parts[name] / calls for name, title in PARTS.items()}}
    work = 2e-9 * queries * features.size
    for i, clock in enumerate(("wall", "cpu")):
        for name, title in (("torch.mm", "mm"), ("mining", "mining")):
            row[f"{title}_{clock}_s"] = statistics.median(times[name][i])
            row[f"{title}_{clock}_gflops"] = work / row[f"{title}_{clock}_s"]
        row[f"share_{clock}"] = statistics.median(a / b for a, b in zip(times["torch.mm"][i], times["mining"][i]))
    return row | {"queries": queries, "whole_minutes": row["mining_wall_s"] * len(features) / queries / 60}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=144_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="torch's number unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    features = draw_features(options.samples, options.dimension)
    peak = peak_resident(lambda: next(neighbors.nearest(features, options.k)))
    row = time_blocks(features, options.k, options.rounds)
    print(
        f"{options.samples} x {options.dimension}, k = {options.k}, {torch.get_num_threads()} threads: blocks of "
        f"{row['queries']} queries"
    )
    print("| | s, wall | GFLOP/s | s, CPU | GFLOP/s |")
    print("|---|---|---|---|---|")
    for name in ("mm", "mining"):
        print(
            f"| {name} | "
            + " | ".join(
                f"{row[f'{name}_{clock}_s']:.3f} | {row[f'{name}_{clock}_gflops']:.0f}" for clock in ("wall", "cpu")
            )
            + " |"
        )
    print(
        f"share of torch.mm's rate: wall {row['share_wall']:.2f}, CPU {row['share_cpu']:.2f}; of the CPU time: "
        + ", ".join(f"{title} {seconds:.3f} s" for title, seconds in row["parts_cpu_s"].items())
    )
    print(f"all samples in {row['whole_minutes']:.1f} minutes; {peak / 2**20:.0f} MiB beyond the features")
    if options.json:
        record = {
            "versions": versions() | {"faiss": faiss.__version__},
            **conditions("cpu", "compiled"),
            "threads": torch.get_num_threads(),
            "samples": options.samples,
            "dimension": options.dimension,
            "k": options.k,
            "peak_mib": peak / 2**20,
            "blocks": row,
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
