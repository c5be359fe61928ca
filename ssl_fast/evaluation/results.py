"""Results of an evaluation: per-sample columns to tables, tables to flat keys, both to files."""

import csv
import io
import json
from collections.abc import Mapping, Sequence

import numpy as np

from ..files import replace_file
from . import metrics


class Results(dict):
    """The figures as nested plain dicts, lists, floats and ints (what `metrics.json` holds), beside them the
    per-sample values.

    Nested: `sets[SET]` = {n, samples (see reproducibility.samples_record), images, interactive_images, size, model:
    table, baselines: {NAME: table}, map_maxima: {sound: five numbers}, and with `original_size` original: see
    `original.figures`},
    `retrieval` = {set, n, class and instance: {a2i, i2a: {r1, r5, r10}}} or {},
    `protocols[SET][NAME][model and baselines]` of further protocols,
    `universal_threshold` = {chosen_on: "validation", "test", "results" or "given"; by_set: {that, or of "test" SET:
    {predictor: {value, third_quartiles}}}; origins: {the same: {set, n, negatives, seeds, fingerprint}}},
    `protocol`, `versions`, `notes` (what was left out and why).
    Flat: `SET_METRIC`, and at the size of the frames `SET_original_METRIC`, for every set; `iiou_adaptive`,
    `interactive_pointing`, `pia_KIND`, `auroc_KIND`, `max_difference_KIND` ... of the interactive set;
    `baseline_NAME_METRIC` on that set; `retrieval_a2i_r1` ... by class and `retrieval_a2i_r1_instance` ... by image.
    `samples[SET][column]` is the list of the model's N values.
    """

    def __init__(self, *args, samples: Mapping[str, dict[str, list]] | None = None, **entries):
        super().__init__(*args, **entries)
        self.samples = dict(samples or {})

    def write_json(self, path) -> None:
        """metrics.json, written beside `path` and renamed. ValueError where a value is NaN or infinite."""
        replace_file(path, json.dumps(self, indent=1, allow_nan=False) + "\n")

    def write_csv(self, path) -> None:
        """per_sample.csv: one row per test sample; a cell is empty where a sample or set has no such value. All digits
        of numbers are there, as an IoU in a large frame may lie that close to a threshold. Text that a spreadsheet
        would run as a formula (from =, +, -, @, a tab or a carriage return on), and text that begins with an
        apostrophe, has an apostrophe before it: `removeprefix("'")` gives the id back."""
        columns = list(dict.fromkeys(column for values in self.samples.values() for column in values))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["set", *columns])
        for name, values in self.samples.items():
            for i in range(len(values["id"])):
                writer.writerow(
                    [_cell(name), *(_cell(values[column][i]) if column in values else "" for column in columns)]
                )
        replace_file(path, text.getvalue())


def samples_of(one: Mapping) -> str:
    """How many samples the figures of a set are of (`sets[SET]`), and of how many where files are missing."""
    listed = one.get("samples", {}).get("listed", one["n"])
    return f"{one['n']} samples" if listed == one["n"] else f"{one['n']:,} of {listed:,} samples"


def shortened(results: Mapping) -> str | None:
    """Note that a time budget ended the training of what was evaluated; None for a run of full length."""
    if not results.get("shortened"):
        return None
    return (
        f"shortened run: --minutes ended the training after {results['steps']:,} of {results['planned_steps']:,} "
        "steps; expect better figures at full length"
    )


def _cell(value):
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "'")) else value
    return value


def table(columns: Mapping[str, np.ndarray], image_ids: Sequence[str] | None) -> dict:
    """Per-sample columns (N,) of one predictor -> its figures.

    For each column `iou_RULE`: success rate `ciou_RULE`, `auc_RULE`, `mean_iou_RULE`, and by image `iiou_RULE` and
    `iauc_RULE`; then `pointing` and `interactive_pointing` where there is such a column, and the mean of each `pia_`
    column, all in [0, 1]. Without image_ids none by image. `counts` holds the number of successes behind each rate and,
    where a column has values for some samples only (NaN elsewhere: masks), `n_RULE` and `images_RULE`.
    """
    rates: dict[str, float] = {}
    counts: dict[str, int] = {}
    for column, values in columns.items():
        if not column.startswith("iou_"):
            continue
        rule, have = column.removeprefix("iou_"), ~np.isnan(values)
        values = values[have]
        rates |= {
            f"ciou_{rule}": metrics.success_rate(values),
            f"auc_{rule}": metrics.auc(values),
            f"mean_iou_{rule}": float(values.mean()),
        }
        counts[f"ciou_{rule}"] = round(rates[f"ciou_{rule}"] * len(values))
        if not have.all():
            counts[f"n_{rule}"] = len(values)
        if image_ids is not None:
            group = metrics.interactive(values, [image for image, h in zip(image_ids, have) if h])
            rates |= {f"iiou_{rule}": group.iiou, f"iauc_{rule}": group.iauc}
            counts[f"iiou_{rule}"] = round(group.iiou * group.groups)
            if not have.all():
                counts[f"images_{rule}"] = group.groups
    if "pointing" in columns:
        rates["pointing"] = float(columns["pointing"].mean())
        counts["pointing"] = int(columns["pointing"].sum())
        if image_ids is not None:
            rates["interactive_pointing"] = metrics.interactive_pointing(columns["pointing"], image_ids)
            counts["interactive_pointing"] = round(rates["interactive_pointing"] * len(set(image_ids)))
    rates |= {column: float(values.mean()) for column, values in columns.items() if column.startswith("pia_")}
    return rates | {"counts": counts}


def flat_keys(results: Mapping) -> dict[str, float]:
    """The main figures of the nested tables under the flat names that `Results` describes (without those on masks)."""

    def rates(row, *starts):
        return {key: rate for key, rate in row.items() if key.startswith(starts) and not key.endswith("_mask")}

    interactive = results["sets"][results["interactive_on"]]
    flat = {
        f"{name}_{key}": rate
        for one_set, one in results["sets"].items()
        for name, row in ((one_set, one["model"]), (f"{one_set}_original", one.get("original", {}).get("model", {})))
        for key, rate in rates(row, "ciou_", "auc_", "mean_iou_", "pointing").items()
    }
    flat |= rates(interactive["model"], "iiou_", "iauc_", "interactive_", "pia_", "max_difference_", "auroc_")
    flat |= {
        f"baseline_{name}_{key}": rate
        for name, row in interactive["baselines"].items()
        for key, rate in rates(row, "ciou_", "iiou_", "pointing", "interactive_").items()
    }
    flat |= {
        f"retrieval_{way}_{k}{suffix}": rate
        for hit, suffix in (("class", ""), ("instance", "_instance"))
        for way, recalls in results["retrieval"].get(hit, {}).items()
        for k, rate in recalls.items()
    }
    return flat
