"""Evaluation of a localizer on sets of (image, sound) samples, beside predictors that never hear the sound.

One pass over each set streams batches through the model and all baselines; only per-sample numbers are kept. What is compared with what, and
how, is the `Protocol` that every result carries.
"""

import contextlib
import csv
import json
import os
import platform
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import metrics
from .baselines import BASELINES, Baseline

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

NEGATIVES = ("silence", "noise", "offscreen")
RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Protocol:
    """How maps become numbers. `default` is ours: bilinear up-sampling to the image with cell centres aligned, exact pixel counts, IoU >= .5,
    ground truth = filled boxes (exact masks, where a set has them, as a second column)."""

    name: str = "default"
    interpolation: str = "bilinear"
    align_corners: bool = False
    fraction: float = .5            # of the pixels, for the top-fraction rule
    negatives_seed: int = 0         # of the noise and of the draw of off-screen sounds

    @property
    def top(self) -> str:
        return f"top{round(100 * self.fraction)}"


class Localizer(typing.Protocol):
    """What `evaluate` asks of a model; images and spectrograms as a `SampleSet` gives them, batched."""

    def normalize_images(self, images: Tensor) -> Tensor: ...
    def normalize_spectrograms(self, spectrograms: Tensor) -> Tensor: ...
    def visual_features(self, images: Tensor) -> dict[str, Tensor]: ...
    def audio_features(self, spectrograms: Tensor) -> dict[str, Tensor]: ...
    def maps(self, visual: dict[str, Tensor], audio: dict[str, Tensor]) -> Tensor: ...
    def retrieval(self, visual: dict[str, Tensor], audio: dict[str, Tensor]) -> Tensor: ...


# uint8 images (B, 3, H, W), {"positive" or a kind of negative: spectrograms (B, 1, F, T)} -> {the same keys: maps (B, h, w)}
Predictor = typing.Callable[[Tensor, dict[str, Tensor]], dict[str, np.ndarray]]


def from_localizer(localizer: Localizer) -> Predictor:
    """The visual features are computed once for all the sounds that an image is tried with."""
    device = _device(localizer)

    def predict(images: Tensor, sounds: dict[str, Tensor]) -> dict[str, np.ndarray]:
        visual = localizer.visual_features(localizer.normalize_images(images.to(device)))
        return {kind: metrics.array(localizer.maps(visual, localizer.audio_features(localizer.normalize_spectrograms(sound.to(device)))),
                                    f"maps under {kind} sound", 3) for kind, sound in sounds.items()}
    return predict


def from_images(baseline: Baseline) -> Predictor:
    """A baseline: one map of the image, whatever the sound."""
    def predict(images: Tensor, sounds: dict[str, Tensor]) -> dict[str, np.ndarray]:
        maps = metrics.array(baseline(images), "baseline maps", 3)
        return dict.fromkeys(sounds, maps)
    return predict


class Results(dict):
    """The figures as nested plain dicts, lists, floats and ints (what `metrics.json` holds), and the per-sample values beside them.

    Flat keys: `SET_METRIC` for every set; `iiou_adaptive`, `interactive_pointing`, `pia_KIND` ... of the interactive set;
    `retrieval_a2i_r1` ... by class; `baseline_NAME_METRIC` on the interactive set. `samples[set][column]` holds N values of the model.
    """

    def __init__(self, *args, samples: dict[str, dict[str, list]] | None = None, **entries):
        super().__init__(*args, **entries)
        self.samples = samples or {}

    def write_json(self, path) -> None:
        """Written to a temporary file beside `path`, then renamed. A NaN is an error, not a value."""
        _replace(path, json.dumps(self, indent=1, allow_nan=False) + "\n")

    def write_csv(self, path) -> None:
        """per_sample.csv: one row per test sample, columns of all sets (empty where a set has no such value)."""
        import io
        columns = list(dict.fromkeys(name for columns in self.samples.values() for name in columns))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["set", *columns])
        for name, values in self.samples.items():
            rows = zip(*([_cell(v) for v in values[c]] if c in values else [""] * len(values["id"]) for c in columns))
            writer.writerows([name, *row] for row in rows)
        _replace(path, text.getvalue())


def _cell(value):
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else int(value) if isinstance(value, bool) else value


def _replace(path, text: str) -> None:
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


# ---------------------------------------------------------------------------------------------------------------- running

def _device(localizer) -> torch.device:
    tensor = next((t for t in (*localizer.parameters(), *localizer.buffers())), None) if isinstance(localizer, nn.Module) else None
    return torch.device("cpu") if tensor is None else tensor.device


@contextlib.contextmanager
def inference(localizer):
    """Evaluation mode without gradients; each module's own training flag comes back afterwards."""
    modules = [(m, m.training) for m in localizer.modules()] if isinstance(localizer, nn.Module) else []
    try:
        for module, _ in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modules:
            module.training = training


def _collate(samples: list[dict]) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.stack([torch.as_tensor(s[key]) for s in samples]) for key in ("index", "image", "spectrogram"))


def batches(sample_set: "SampleSet", batch_size: int, *, workers: int = 0, progress: bool = False, title: str = "",
            ) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """(indices (B,), images uint8 (B, 3, H, W), spectrograms (B, 1, F, T)) in the order of the set; leaves torch's random state alone."""
    from tqdm import tqdm
    loader = torch.utils.data.DataLoader(sample_set, batch_size, num_workers=workers, collate_fn=_collate, generator=torch.Generator())
    for index, images, spectrograms in tqdm(loader, desc=title, unit="batch", leave=False, disable=not progress):
        yield index.numpy(), images, spectrograms


def _sounds(spectrograms: Tensor | None, negatives: Mapping[str, typing.Any], index: np.ndarray) -> dict[str, Tensor]:
    positive = {} if spectrograms is None else {"positive": spectrograms}
    return positive | {kind: drawn[torch.from_numpy(index)] for kind, drawn in negatives.items()}


def _predict(predictors: Mapping[str, Predictor], images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> Iterator[tuple[str, dict]]:
    for name, predictor in predictors.items():
        maps = predictor(images, sounds)
        checked: dict[int, np.ndarray] = {}     # a baseline hands out one array under several keys
        for kind, values in maps.items():
            if id(values) not in checked:
                checked[id(values)] = metrics.check_maps(values, ids, f"{name}, {kind} sound")
                if len(values) != len(images):
                    raise ValueError(f"{name}, {kind} sound: expected {len(images)} maps, got {len(values)}")
        yield name, {kind: checked[id(values)] for kind, values in maps.items()}


def _thresholds(predictors, sample_set, negatives, run) -> dict[str, metrics.UniversalThreshold]:
    """Universal threshold of each predictor from the maxima of its low-resolution maps under the negatives of one set."""
    maxima = {name: {kind: [] for kind in negatives} for name in predictors}
    for index, images, _ in run(sample_set, "threshold"):
        for name, maps in _predict(predictors, images, _sounds(None, negatives, index), [sample_set.ids[i] for i in index]):
            for kind, values in maps.items():
                maxima[name][kind].append(values.max((1, 2)))
    return {name: metrics.universal_threshold({kind: np.concatenate(v) for kind, v in kinds.items()}) for name, kinds in maxima.items()}


def _score(maps: dict[str, np.ndarray], boxes: np.ndarray, masks: list, threshold: float | None, protocol: Protocol, u: str) -> dict:
    """Per-sample values of one batch: {column: (B,)}."""
    size = boxes.shape[1:]
    full: dict[int, np.ndarray] = {}

    def upsampled(kind):
        key = id(maps[kind])
        if key not in full:
            full[key] = metrics.upsample(maps[kind], size, interpolation=protocol.interpolation, align_corners=protocol.align_corners)
        return full[key]

    positive = upsampled("positive")
    fixed = {protocol.top: metrics.top_fraction(positive, protocol.fraction)}
    if threshold is not None:
        fixed[u] = metrics.above(positive, threshold)

    def against(truth, positive, fixed):
        rules = {"adaptive": metrics.adaptive(positive, truth)} | fixed
        return {f"iou_{rule}": metrics.consensus_iou(prediction, truth) for rule, prediction in rules.items()}

    out = against(boxes, positive, fixed)
    have = np.array([m is not None for m in masks])
    if have.any():
        truth = np.stack([m for m in masks if m is not None])
        for column, values in against(truth, positive[have], {k: v[have] for k, v in fixed.items()}).items():
            out[f"{column}_mask"] = np.full(len(have), np.nan)
            out[f"{column}_mask"][have] = values
    out["pointing"] = metrics.pointing(maps["positive"], boxes)
    out["map_min"], out["map_max"] = (getattr(maps["positive"], f)((1, 2)) for f in ("min", "max"))
    for kind in maps:
        if kind != "positive":
            out[f"{kind}_max"] = maps[kind].max((1, 2))
            if threshold is not None:
                out[f"pia_{kind}{_suffix(u)}"] = metrics.pia(upsampled(kind), threshold)
    return out


def _suffix(u: str) -> str:
    return "" if u == "universal" else f"_{u}"


def _measure(predictors, sample_set, name, negatives, thresholds, protocol, u, run) -> tuple[dict[str, dict], tuple]:
    columns: dict[str, dict] = {p: {} for p in predictors}
    size = None
    for index, images, spectrograms in run(sample_set, name):
        size = tuple(images.shape[-2:])
        ids = [sample_set.ids[i] for i in index]
        boxes = [np.asarray(sample_set.ground_truth(int(i)), np.float32) for i in index]
        masks = [sample_set.mask(int(i)) for i in index]
        for i, truth, mask in zip(ids, boxes, masks):
            if truth.shape != size or (mask is not None and mask.shape != size):
                raise ValueError(f"set {name!r}, sample {i!r}: expected ground truth of the image's size {size}, got {truth.shape}"
                                 + ("" if mask is None else f" and a mask of {mask.shape}"))
        for predictor, maps in _predict(predictors, images, _sounds(spectrograms, negatives, index), ids):
            threshold = thresholds[predictor].value if thresholds else None
            for column, values in _score(maps, np.stack(boxes), masks, threshold, protocol, u).items():
                # a column that appears late (masks) counts as absent before
                columns[predictor].setdefault(column, np.full(len(sample_set), np.nan))[index] = values
    return columns, size


def table(columns: Mapping[str, np.ndarray], image_ids: Sequence[str]) -> dict:
    """Per-sample columns of one predictor -> its figures: rates and means in [0, 1], `counts` the number of successes behind each rate."""
    out: dict[str, float] = {}
    counts: dict[str, int] = {}
    for column, values in columns.items():
        if not column.startswith("iou_"):
            continue
        have = ~np.isnan(values)
        values, images = values[have], [image for image, h in zip(image_ids, have) if h]
        rule = column.removeprefix("iou_")
        group = metrics.interactive(values, images)
        out |= {f"ciou_{rule}": metrics.success_rate(values), f"auc_{rule}": metrics.auc(values), f"mean_iou_{rule}": float(values.mean()),
                f"iiou_{rule}": group.iiou, f"iauc_{rule}": group.iauc}
        counts |= {f"ciou_{rule}": int((values >= .5).sum()), f"iiou_{rule}": round(group.iiou * group.groups)}
        if not have.all():
            counts |= {f"n_{rule}": len(values), f"images_{rule}": group.groups}
    out |= {"pointing": float(columns["pointing"].mean()),
            "interactive_pointing": metrics.interactive_pointing(columns["pointing"], image_ids)}
    counts |= {"pointing": int(columns["pointing"].sum()), "interactive_pointing": round(out["interactive_pointing"] * len(set(image_ids)))}
    out |= {column: float(values.mean()) for column, values in columns.items() if column.startswith("pia_")}
    return out | {"counts": counts}


def _five(values: np.ndarray) -> list[float]:
    return [float(v) for v in np.percentile(values, (0, 25, 50, 75, 100))]


def retrieval(localizer: Localizer, sample_set: "SampleSet", *, batch_size: int = 64, workers: int = 0, progress: bool = False) -> dict:
    """R@k both ways over all samples of a set: {"n", "instance": {"a2i": {"r1": ...}, "i2a": ...}, "class": ...}.

    Instance: the right item has the query's image id. Class: the sound's category is among those visible in the image; left out
    where a sample has no category. The score is the localizer's own (`Localizer.retrieval`).
    """
    device = _device(localizer)

    def run(title):
        return batches(sample_set, batch_size, workers=workers, progress=progress, title=title)

    with inference(localizer):
        parts = [localizer.audio_features(localizer.normalize_spectrograms(s.to(device))) for _, _, s in run("retrieval, audio")]
        audio = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        scores = np.concatenate([metrics.array(localizer.retrieval(localizer.visual_features(localizer.normalize_images(i.to(device))), audio),
                                               "retrieval scores", 2) for _, i, _ in run("retrieval, images")])
    out: dict = {"n": len(sample_set)}
    labels = {"instance": (sample_set.image_ids, sample_set.image_ids)}
    if None not in sample_set.categories:
        seen = [frozenset(visible) | {category} for visible, category in zip(sample_set.visible, sample_set.categories)]
        labels["class"] = (seen, sample_set.categories)
    for hit, (images, sounds) in labels.items():
        both = {"a2i": metrics.recall_at(scores.T, sounds, images, RECALLS), "i2a": metrics.recall_at(scores, images, sounds, RECALLS)}
        out[hit] = {way: {f"r{k}": rate for k, rate in recalls.items()} for way, recalls in both.items()}
    return out


def _negatives(sample_set, name: str, kinds: Sequence[str], seed: int, notes: list[str]) -> dict[str, typing.Any]:
    from ..data.negatives import negative_spectrograms
    out = {}
    for kind in kinds:
        if kind == "offscreen" and (None in sample_set.categories or not all(sample_set.visible)):
            notes.append(f"set {name}: no off-screen sound, because not every sample says what is visible")
            continue
        out[kind] = negative_spectrograms(sample_set, kind, seed)
    return out


def versions() -> dict[str, str]:
    from .. import __version__
    return {"ssl_fast": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


def _check_set(name: str, sample_set, truth: bool) -> None:
    if not len(sample_set):
        raise ValueError(f"set {name!r}: expected samples, got an empty set")
    if truth and not sample_set.has_ground_truth:
        raise ValueError(f"set {name!r}: expected ground truth (boxes or masks) to evaluate against, it has none")


def evaluate(localizer: Localizer, test_sets: Mapping[str, "SampleSet"], *, validation: "SampleSet | None" = None, batch_size: int = 64,
             progress: bool = True, protocol: Protocol = Protocol(), baselines: Mapping[str, Baseline] | None = None,
             negatives: Sequence[str] = NEGATIVES, interactive_on: str | None = None, retrieval_on: str | None = None,
             workers: int = 0) -> Results:
    """Run a localizer over every sample of `test_sets` under its own sound and under its negatives, and all baselines beside it.

    validation: the universal threshold (paper 004) is chosen on its negatives. Without it the threshold comes from each test set's own
        negatives, and whatever depends on it is named `..._test_threshold`.
    baselines: {name: images -> maps}, default `BASELINES`; {} for none.   negatives: kinds of negative sound; () for none.
    interactive_on, retrieval_on: names of the sets behind the flat keys (default: "duo" and "single" where present, else the first set).
    Raises ValueError for an empty set, a set without ground truth, a map with a NaN (naming the sample), unknown names.
    """
    if not test_sets:
        raise ValueError("test_sets: expected at least one set, got none")
    for name, sample_set in {**test_sets, **({} if validation is None else {"validation": validation})}.items():
        _check_set(name, sample_set, truth=sample_set is not validation)
    unknown = [kind for kind in negatives if kind not in NEGATIVES]
    if unknown:
        raise ValueError(f"negatives: expected kinds among {NEGATIVES}, got {unknown}")
    interactive_on = _pick("interactive_on", interactive_on, "duo", test_sets)
    retrieval_on = _pick("retrieval_on", retrieval_on, "single", test_sets)
    predictors = {"model": from_localizer(localizer)}
    predictors |= {name: from_images(fn) for name, fn in (BASELINES if baselines is None else baselines).items()}
    notes: list[str] = []
    samples, tables, chosen, thresholds = {}, {}, {}, {}
    u = "universal" if validation is not None else "test_threshold"

    def run(sample_set, title):
        return batches(sample_set, batch_size, workers=workers, progress=progress, title=title)

    with inference(localizer):
        if validation is not None:
            drawn = _negatives(validation, "validation", negatives, protocol.negatives_seed, notes)
            thresholds = _thresholds(predictors, validation, drawn, run) if drawn else {}
            chosen["validation"] = thresholds
        for name, sample_set in test_sets.items():
            drawn = _negatives(sample_set, name, negatives, protocol.negatives_seed, notes)
            if validation is None:
                thresholds = chosen[name] = _thresholds(predictors, sample_set, drawn, run) if drawn else {}
            columns, size = _measure(predictors, sample_set, name, drawn, thresholds, protocol, u, run)
            groups = [sample_set.image_ids.count(image) for image in dict.fromkeys(sample_set.image_ids)]
            rows = {predictor: table(values, sample_set.image_ids) for predictor, values in columns.items()}
            maxima = {kind: columns["model"]["map_max" if kind == "positive" else f"{kind}_max"] for kind in ("positive", *drawn)}
            tables[name] = {"n": len(sample_set), "images": len(groups), "interactive_images": sum(g > 1 for g in groups), "size": list(size),
                            "model": rows.pop("model"), "baselines": rows, "map_maxima": {kind: _five(v) for kind, v in maxima.items()}}
            samples[name] = {"id": list(sample_set.ids), "image_id": list(sample_set.image_ids), "category": list(sample_set.categories),
                             **{c: (v > 0).tolist() if c == "pointing" else v.tolist() for c, v in columns["model"].items()}}
        recalls = retrieval(localizer, test_sets[retrieval_on], batch_size=batch_size, workers=workers, progress=progress)
    if "class" not in recalls:
        notes.append(f"set {retrieval_on}: no retrieval by class, because not every sample has a category")
    results = Results({"protocol": asdict(protocol), "versions": versions(), "interactive_on": interactive_on, "sets": tables,
                       "retrieval": {"set": retrieval_on, **recalls},
                       "universal_threshold": {"chosen_on": "validation" if validation is not None else "test", "by_set": {
                           name: {p: t._asdict() for p, t in by.items()} for name, by in chosen.items()}}, "notes": notes}, samples=samples)
    results.update(flat_keys(results))
    return results


def _pick(argument: str, name: str | None, preferred: str, test_sets: Mapping) -> str:
    if name is not None and name not in test_sets:
        raise ValueError(f"{argument}: expected one of {list(test_sets)}, got {name!r}")
    return name or (preferred if preferred in test_sets else next(iter(test_sets)))


def flat_keys(results: Mapping) -> dict[str, float]:
    """The numbers of the nested tables under the flat names that `Results` describes."""
    def rates(row):
        return {key: value for key, value in row.items() if key != "counts"}

    main = results["sets"][results["interactive_on"]]
    flat = {f"{name}_{key}": value for name, one in results["sets"].items() for key, value in rates(one["model"]).items()}
    flat |= {key: value for key, value in rates(main["model"]).items() if key.startswith(("iiou_", "iauc_", "interactive_", "pia_"))}
    flat |= {f"baseline_{name}_{key}": value for name, row in main["baselines"].items() for key, value in rates(row).items()}
    flat |= {f"retrieval_{way}_{k}{suffix}": rate for hit, suffix in (("class", ""), ("instance", "_instance"))
             for way, recalls in results["retrieval"].get(hit, {}).items() for k, rate in recalls.items()}
    return flat
