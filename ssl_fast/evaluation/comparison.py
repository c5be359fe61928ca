"""Results of several evaluations compared on the samples that all of them have."""

import csv
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .metrics import THRESHOLDS
from .original import PREFIX
from .results import table

FILE = "per_sample.csv"
_TEXT = ("id", "image_id", "category")
_CHUNK = 1 << 23  # weights of resampled images in memory at once


class SampleTable(typing.NamedTuple):
    """Rows of a set in per_sample.csv."""

    ids: list[str]
    image_ids: list[str]
    columns: dict[str, np.ndarray]  # (N,) float64, NaN where the cell is empty; only columns that have a value


class Difference(typing.NamedTuple):
    value: float
    low: float
    high: float


def read(path: Path) -> dict[str, SampleTable]:
    """{set: samples} of a per_sample.csv, or of the folder that holds it, "SET (original)" at the size of the frames.
    ValueError names the file and the line."""
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"{path}: expected the {FILE} of an evaluation, got no such file")
    rows: dict[str, dict[str, dict[str, str]]] = {}
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.reader(file, strict=True)
            head = next(reader, [])
            if head[:3] != ["set", "id", "image_id"] or len(set(head)) != len(head):
                raise ValueError(
                    f"{path}: expected the columns set, id, image_id, ... of an evaluation, got {head!r:.200}"
                )
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if len(cells) != len(head):
                    raise ValueError(f"{where}: expected {len(head)} cells, got {len(cells)}")
                row = dict(zip(head, cells))
                name, identity = row.pop("set").removeprefix("'"), row["id"].removeprefix("'")
                if identity in rows.setdefault(name, {}):
                    raise ValueError(f"{where}: expected each sample of a set once, got {identity!r} twice")
                rows[name][identity] = row | {"": where}
    except csv.Error as error:
        raise ValueError(f"{path}: expected comma-separated values, got {error}") from error
    if not rows:
        raise ValueError(f"{path}: expected samples, got none")
    tables = {}
    for name, of_set in rows.items():
        tables[name] = _samples(of_set)
        if (original := _samples(of_set, PREFIX)).columns:
            tables[f"{name} (original)"] = original
    return tables


def _samples(rows: Mapping[str, Mapping[str, str]], prefix: str = "") -> SampleTable:
    """prefix: of the columns that are taken, without which they are."""
    columns = {
        column.removeprefix(prefix): np.array([_number(row[column], column, row[""]) for row in rows.values()])
        for column in next(iter(rows.values()))
        if column and column not in _TEXT and column.startswith(prefix) and (prefix or not column.startswith(PREFIX))
    }
    return SampleTable(
        list(rows),
        [row["image_id"].removeprefix("'") for row in rows.values()],
        {name: values for name, values in columns.items() if not np.isnan(values).all()},
    )


def _number(cell: str, column: str, where: str) -> float:
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value) or (
        column.removeprefix(PREFIX).startswith(("iou_", "pia_", "pointing")) and not (0 <= value <= 1 or not cell)
    ):
        of = " from 0 to 1" if math.isfinite(value) else ""
        raise ValueError(f"{where}: expected a number{of} in column {column}, got {cell!r}")
    return value


def common(tables: Sequence[SampleTable]) -> list[SampleTable]:
    """The samples that all tables have, in the order of the first, and of their columns those that all have; a cell
    that is empty in one table is in all.

    ValueError where there is no such sample, none with a value, or where one belongs to another image in another table.
    """
    shared = set.intersection(*(set(one.ids) for one in tables))
    if not shared:
        raise ValueError("expected samples that all results have, got none")
    ids = [identity for identity in tables[0].ids if identity in shared]
    columns = [name for name in tables[0].columns if all(name in one.columns for one in tables)]
    chosen = []
    for one in tables:
        place = {identity: i for i, identity in enumerate(one.ids)}
        index = [place[identity] for identity in ids]
        images = [one.image_ids[i] for i in index]
        chosen.append(SampleTable(ids, images, {name: one.columns[name][index] for name in columns}))
        for identity, first, image in zip(ids, chosen[0].image_ids, images):
            if image != first:
                raise ValueError(f"sample {identity!r}: expected one image in all results, got {first!r} and {image!r}")
    empty = {name: np.any([np.isnan(one.columns[name]) for one in chosen], 0) for name in columns}
    kept = [name for name in columns if not empty[name].all()]
    if not kept:
        raise ValueError("expected a column in which all results have values of the same samples, got none")
    return [
        one._replace(columns={name: np.where(empty[name], np.nan, one.columns[name]) for name in kept})
        for one in chosen
    ]


def figures(samples: SampleTable) -> dict[str, float]:
    """Rates of `results.table` of the samples, without those whose threshold depends on what samples there are."""
    columns = {name: values > 0 if name == "pointing" else values for name, values in samples.columns.items()}
    rates = table(columns, samples.image_ids)
    return {name: rate for name, rate in rates.items() if name != "counts" and "test_threshold" not in name}


def _image_sums(samples: SampleTable) -> dict[str, np.ndarray]:
    """(2, G) for each figure: by image the sum, and the number, of what the figure is the mean of."""
    index: dict[str, int] = {}
    image = np.array([index.setdefault(name, len(index)) for name in samples.image_ids])

    def add(values: np.ndarray, owner: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(owner, weight, len(index)) for weight in (values, np.ones(len(values)))])

    def area(iou: np.ndarray) -> np.ndarray:  # of each sample, what `metrics.auc` is the mean of
        hits = iou >= THRESHOLDS[:, None]
        return (hits.sum(0) - hits[0] / 2 - hits[-1] / 2) / 20

    sums = {}
    for column, values in samples.columns.items():
        have = ~np.isnan(values)
        values, owner = values[have], image[have]
        rule = column.removeprefix("iou_")
        if column.startswith("pia_"):
            sums[column] = add(values, owner)
        elif column == "pointing" or column.startswith("iou_"):
            lowest = np.full(len(index), np.inf)
            np.minimum.at(lowest, owner, values)
            groups = np.flatnonzero(np.isfinite(lowest))
            lowest = lowest[groups]
            if column == "pointing":
                sums |= {"pointing": add(values, owner), "interactive_pointing": add(lowest, groups)}
                continue
            sums |= {
                f"ciou_{rule}": add(values >= 0.5, owner),
                f"auc_{rule}": add(area(values), owner),
                f"mean_iou_{rule}": add(values, owner),
                f"iiou_{rule}": add(lowest >= 0.5, groups),
                f"iauc_{rule}": add(area(lowest), groups),
            }
    return sums


def differences(
    first: SampleTable, second: SampleTable, *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Difference]:
    """Figures of the second minus those of the first, both of the same samples (see `common`), with 95 % intervals.

    Paired bootstrap: the images, with all of their samples, are drawn again `resamples` times, the same ones for both;
    low and high are the 2.5 and 97.5 percentiles of the difference.
    """
    names = [name for name in figures(first) if name in figures(second)]
    sums = [_image_sums(one) for one in (first, second)]
    stacked = np.concatenate([np.stack([one[name] for name in names]) for one in sums])  # (2 figures, 2, G)
    images, generator = stacked.shape[2], np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, step := max(1, _CHUNK // images)):
        count = min(step, resamples - start)
        weights = generator.multinomial(images, np.full(images, 1 / images), size=count)
        total, number = (weights.astype(np.float64) @ part.T for part in stacked.transpose(1, 0, 2))
        rates = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
        drawn.append(rates[:, len(names) :] - rates[:, : len(names)])
    low, high = np.nanpercentile(np.concatenate(drawn), (2.5, 97.5), axis=0)
    own, other = figures(first), figures(second)
    return {
        name: Difference(other[name] - own[name], float(below), float(above))
        for name, below, above in zip(names, low, high)
    }


def compare(results: Mapping[str, Mapping[str, SampleTable]], *, resamples: int = 10_000, seed: int = 0) -> dict:
    """{set: {n, images, fell_away: {result: ids that not all have}, figures: {result: {figure: rate}}, differences:
    {result: {figure: Difference of it to the first result}}}} of all sets that all results have."""
    names = [name for name in next(iter(results.values())) if all(name in one for one in results.values())]
    if not names:
        has = "; ".join(f"{title} has {', '.join(one)}" for title, one in results.items())
        raise ValueError(f"expected a set that all results have: {has}")
    out = {}
    for name in names:
        try:
            chosen = dict(zip(results, common([one[name] for one in results.values()])))
            if not figures(next(iter(chosen.values()))):
                raise ValueError("expected figures that do not depend on what samples there are, got none")
        except ValueError as error:
            raise ValueError(f"set {name}: {error}") from error
        first, *others = chosen
        kept = set(chosen[first].ids)
        out[name] = {
            "n": len(kept),
            "images": len(set(chosen[first].image_ids)),
            "fell_away": {
                title: [identity for identity in one[name].ids if identity not in kept]
                for title, one in results.items()
            },
            "figures": {title: figures(one) for title, one in chosen.items()},
            "differences": {
                title: differences(chosen[first], chosen[title], resamples=resamples, seed=seed) for title in others
            },
        }
    return out
