"""Evaluation of a model on sets of (image, sound) samples, beside predictors that never hear the sound.

One pass over each set streams batches through the model and all baselines; only per-sample numbers are kept. How
maps become numbers is the `Protocol` that every result carries.
"""

import contextlib
import itertools
import os
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..distributed import collect, shard
from ..progress import progress_bar
from ..reproducibility import versions
from . import false_alarms, metrics
from .baselines import BASELINES, Baseline
from .protocols import Accumulator, Protocol, in_range, protocol_of, score
from .results import Results, flat_keys, table

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

NEGATIVES = ("silence", "noise", "offscreen")
RECALLS = (1, 5, 10)


class Localizer(typing.Protocol):
    """What `evaluate` asks of a model; images uint8 (B, 3, H, W), spectrograms (B, 1, F, T) of a `SampleSet`."""

    def normalize_images(self, images: Tensor) -> Tensor: ...
    def normalize_spectrograms(self, spectrograms: Tensor) -> Tensor: ...
    def visual_features(self, images: Tensor) -> dict[str, Tensor]: ...
    def audio_features(self, spectrograms: Tensor) -> dict[str, Tensor]: ...
    def maps(self, visual: dict[str, Tensor], audio: dict[str, Tensor]) -> Tensor: ...
    def retrieval(self, visual: dict[str, Tensor], audio: dict[str, Tensor], *, similarity: str) -> Tensor: ...


# images uint8 (B, 3, H, W), {"positive" or a kind of negative: spectrograms (B, 1, F, T)}, ids of the samples
# -> {the same keys: maps (B, h, w)}
Predictor = Callable[[Tensor, dict[str, Tensor], list[str]], dict[str, np.ndarray]]
# images uint8 (B, 3, H, W), spectrograms (B, 1, F, T) -> maps (B, h, w): a model that is no `Localizer`
MapFunction = Callable[[Tensor, Tensor], Tensor]
# sample set, its name, kind, seed -> `data.negatives.Negatives`
Draw = Callable[["SampleSet", str, str, int], typing.Any]


def _device(localizer) -> torch.device:
    if not isinstance(localizer, nn.Module):
        return torch.device("cpu")
    tensor = next(itertools.chain(localizer.parameters(), localizer.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _visual(localizer: Localizer, images: Tensor) -> dict[str, Tensor]:
    return localizer.visual_features(localizer.normalize_images(images.to(_device(localizer))))


def _audio(localizer: Localizer, spectrograms: Tensor) -> dict[str, Tensor]:
    return localizer.audio_features(localizer.normalize_spectrograms(spectrograms.to(_device(localizer))))


def from_localizer(localizer: Localizer) -> Predictor:
    """The visual features are computed once for all the sounds that an image is tried with."""

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        visual = _visual(localizer, images)
        return {
            kind: metrics.array(localizer.maps(visual, _audio(localizer, sound)), "maps")
            for kind, sound in sounds.items()
        }

    return predict


def from_images(baseline: Baseline) -> Predictor:
    """A baseline: one map of the image, whatever the sound."""

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        return dict.fromkeys(sounds, metrics.array(baseline(images), "maps"))

    return predict


def from_function(function: MapFunction) -> Predictor:
    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        return {kind: metrics.array(function(images, sound), "maps") for kind, sound in sounds.items()}

    return predict


def from_folder(folder: str | os.PathLike) -> Predictor:
    """Maps computed elsewhere: FOLDER/ID.npy (h, w) under a sample's own sound, FOLDER/KIND/ID.npy under a negative, or
    FOLDER/KIND/SEED/ID.npy where there are several draws."""

    def load(path: Path) -> np.ndarray:
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected a map as .npy, got: {error}") from None
        if values.ndim != 2 or values.dtype.kind != "f":
            raise ValueError(f"{path}: expected floats (h, w), got {values.dtype} {values.shape}")
        return values

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        out = {}
        for kind in sounds:
            maps = [load(Path(folder, *(() if kind == "positive" else (kind,)), f"{sample}.npy")) for sample in ids]
            for sample, one in zip(ids, maps):
                if one.shape != maps[0].shape:
                    raise ValueError(
                        f"{folder}: expected maps of one size, {maps[0].shape} as of {ids[0]!r}, "
                        f"got {one.shape} of {sample!r}"
                    )
            out[kind] = np.stack(maps)
        return out

    return predict


def predictor_of(model: "Localizer | MapFunction | str | os.PathLike") -> Predictor:
    if isinstance(model, (str, os.PathLike)):
        return from_folder(model)
    if hasattr(model, "visual_features"):
        return from_localizer(model)
    if callable(model):
        return from_function(model)
    raise TypeError(
        f"model: expected a localizer, a function of images and spectrograms, or a folder of maps, "
        f"got {type(model).__name__}"
    )


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
    keys = "index", "image", "spectrogram"
    return tuple(torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in keys)


def batches(
    sample_set: "SampleSet", batch_size: int, *, workers: int = 0, progress: bool = False, title: str = ""
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """(indices (B,), images uint8 (B, 3, H, W), spectrograms (B, 1, F, T)) in the set's order.

    Leaves torch's random state alone.
    """
    loader = torch.utils.data.DataLoader(
        sample_set, batch_size, num_workers=workers, collate_fn=_collate, generator=torch.Generator()
    )
    for index, images, spectrograms in progress_bar(
        loader, desc=title, unit="batch", leave=False, disable=not progress
    ):
        yield index.numpy(), images, spectrograms


def _checked(
    predictors: Mapping[str, Predictor], images: Tensor, sounds: dict[str, Tensor], ids: list[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name, predictor in predictors.items():
        maps = predictor(images, sounds, ids)
        for kind, values in maps.items():
            if len(metrics.check_maps(values, ids, f"maps of {name} under {kind} sound")) != len(images):
                raise ValueError(f"maps of {name} under {kind} sound: expected {len(images)}, got shape {values.shape}")
        yield name, maps


class _Run:
    """What the passes of one evaluation have in common."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        protocol: Protocol,
        rule: str,
        published: Sequence[Protocol],
        seeds: Sequence[int],
        prior: Baseline | None,
        **loading,
    ):
        self.predictors, self.protocol, self.rule, self.loading = predictors, protocol, rule, loading
        self.published, self.seeds, self.prior = published, seeds, prior

    def thresholds(
        self, sample_set: "SampleSet", negatives: Mapping, title: str
    ) -> dict[str, false_alarms.UniversalThreshold]:
        """Universal threshold of each predictor, from the maxima of its low-resolution maps under a set's negatives, of
        all seeds together."""
        if not negatives:
            return {}
        maxima = {name: {_kind(sound): [] for sound in negatives} for name in self.predictors}
        for index, images, _ in batches(sample_set, title=f"{title}, threshold", **self.loading):
            sounds = {sound: draw(index) for sound, draw in negatives.items()}
            for name, maps in _checked(self.predictors, images, sounds, [sample_set.ids[i] for i in index]):
                for sound, values in maps.items():
                    maxima[name][_kind(sound)].append(in_range(self.protocol, values).max((1, 2)))
        return {
            name: false_alarms.universal_threshold({kind: np.concatenate(values) for kind, values in kinds.items()})
            for name, kinds in maxima.items()
        }

    def columns(
        self, sample_set: "SampleSet", negatives: Mapping, thresholds: Mapping, title: str
    ) -> tuple[dict[str, dict[str, np.ndarray]], tuple[int, int], dict]:
        """{predictor: {column: (N,) per-sample values, NaN where a sample has none}}, size of the images, and
        {published protocol: {predictor: what it computes}}."""
        out: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.predictors}
        totals = {
            protocol.name: {name: self._total(protocol, thresholds.get(name)) for name in self.predictors}
            for protocol in self.published
        }
        size, kinds = (0, 0), dict.fromkeys(map(_kind, negatives))
        for index, images, spectrograms in batches(sample_set, title=title, **self.loading):
            size, ids = tuple(images.shape[-2:]), [sample_set.ids[i] for i in index]
            boxes, masks = _truths(sample_set, index, size, title)
            sounds = {"positive": spectrograms} | {sound: draw(index) for sound, draw in negatives.items()}
            objects = None if self.prior is None else metrics.array(self.prior(images), "maps of the object prior")
            for name, maps in _checked(self.predictors, images, sounds, ids):
                positive = maps.pop("positive")
                draws = [
                    {kind: maps[sound] for kind, sound in zip(kinds, _sounds(kinds, seed, self.seeds))}
                    for seed in self.seeds
                ]
                threshold = thresholds[name].value if thresholds else None
                for column, values in self._score(positive, draws[0], boxes, masks, threshold).items():
                    out[name].setdefault(column, np.full(len(sample_set), np.nan))[index] = values
                for total in (by[name] for by in totals.values()):
                    for draw in draws if total.threshold is not None else draws[:1]:  # samples of all draws together
                        total.update(
                            positive,
                            boxes,
                            ids=ids,
                            sounding=boxes.any((1, 2)),
                            negatives=draw,
                            image_ids=[sample_set.image_ids[i] for i in index],
                            prior=objects if name == "model" else None,
                        )
        return (
            out,
            size,
            {protocol: {name: total.compute() for name, total in by.items()} for protocol, by in totals.items()},
        )

    def _total(self, protocol: Protocol, chosen: false_alarms.UniversalThreshold | None) -> Accumulator:
        """chosen: the universal threshold, in cosines."""
        if chosen is None or not any(rule.universal for rule in protocol.rules):
            return Accumulator(protocol)
        return Accumulator(protocol, threshold=float(in_range(protocol, np.full((1, 1, 1), chosen.value))[0, 0, 0]))

    def _score(
        self,
        positive: np.ndarray,
        negatives: dict[str, np.ndarray],
        boxes: np.ndarray,
        masks: list,
        threshold: float | None,
    ) -> dict[str, np.ndarray]:
        out = score(self.protocol, positive, boxes, negatives=negatives, threshold=threshold)["audio_visual"]
        have = np.array([mask is not None for mask in masks])
        if have.any():
            exact = np.stack([mask for mask in masks if mask is not None])
            columns = score(self.protocol, positive[have], exact, threshold=threshold)["audio_visual"]
            for column in [column for column in columns if column.startswith("iou_")]:
                out[f"{column}_mask"] = np.full(len(have), np.nan)
                out[f"{column}_mask"][have] = columns[column]
        return {self._named(column): values for column, values in out.items()}

    def _named(self, column: str) -> str:
        """Where the threshold is not from validation data, names say so."""
        if self.rule != "universal" and column.startswith("pia_"):
            return f"{column}_{self.rule}"
        return column.replace("iou_universal", f"iou_{self.rule}")


def _truths(sample_set: "SampleSet", index: np.ndarray, size: tuple[int, int], title: str) -> tuple[np.ndarray, list]:
    boxes = [np.asarray(sample_set.ground_truth(int(i)), np.float32) for i in index]
    masks = [sample_set.mask(int(i)) for i in index]
    for i, truth, mask in zip(index, boxes, masks):
        if truth.shape != size or (mask is not None and mask.shape != size):
            raise ValueError(
                f"set {title!r}, sample {sample_set.ids[i]!r}: expected ground truth of the image's "
                f"size {size}, got {truth.shape}" + ("" if mask is None else f", mask {mask.shape}")
            )
    return np.stack(boxes), masks


def success_rate(localizer: Localizer, sample_set: "SampleSet", *, batch_size: int = 64, workers: int = 0) -> float:
    """Share of the samples with IoU >= .5 at the adaptive threshold of the default protocol, and no more than that.

    Of several processes all call this, and each predicts the maps of its share of the samples.
    """
    own = shard(len(sample_set))
    total, predict = Accumulator("default"), from_localizer(localizer)
    with inference(localizer):
        part = torch.utils.data.Subset(sample_set, own)
        for index, images, spectrograms in batches(part, batch_size, workers=workers):
            ids = [sample_set.ids[i] for i in index]
            truth, _ = _truths(sample_set, index, tuple(images.shape[-2:]), "validation")
            total.update(predict(images, {"positive": spectrograms}, ids)["positive"], truth, ids=ids)
    iou = total.columns["audio_visual"]["iou_adaptive"] if own else []
    return float(np.mean(np.asarray(collect(iou, len(sample_set))) >= 0.5))


def _sounds(kinds: Iterable[str], seed: int, seeds: Sequence[int]) -> list[str]:
    """What the negatives of a seed are called: by their kind and, where there are several seeds, KIND/SEED."""
    return [kind if len(seeds) == 1 else f"{kind}/{seed}" for kind in kinds]


def _kind(sound: str) -> str:
    return sound.partition("/")[0]


def _negatives(
    sample_set: "SampleSet", name: str, kinds: Sequence[str], draw: Draw, seeds: Sequence[int], notes: list[str]
) -> dict[str, Callable]:
    """{sound: indices -> spectrograms (B, 1, F, T)}; off-screen left out, with a note, where categories are unknown."""
    if "offscreen" in kinds and (None in sample_set.categories or not all(sample_set.visible)):
        notes.append(f"set {name}: no off-screen sounds, because not every sample says which categories it shows")
        kinds = [kind for kind in kinds if kind != "offscreen"]
    return {
        sound: draw(sample_set, name, kind, seed).spectrograms
        for seed in seeds
        for kind, sound in zip(kinds, _sounds(kinds, seed, seeds))
    }


def by_seed(sample_set: "SampleSet", name: str, kind: str, seed: int):
    """Negatives by set, kind and seed alone."""
    from ..data.negatives import negatives

    return negatives(sample_set, kind, seed)


def retrieval(
    localizer: Localizer,
    sample_set: "SampleSet",
    *,
    similarity: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """R@k both ways among all samples of a set, by the localizer's score of that name.

    -> {"n": N, "instance": {"a2i": {"r1": ...}, "i2a": ...}, "class": ...}. Instance: right is what has the query's
    image id. Class: the sound's category is among those visible in the image; left out where a sample has no category.
    Memory: the N x N scores and the sounds' features; images are streamed.
    """
    loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    with inference(localizer):
        parts = [_audio(localizer, sounds) for _, _, sounds in batches(sample_set, title="sounds", **loading)]
        audio = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        rows = [
            localizer.retrieval(_visual(localizer, images), audio, similarity=similarity)
            for _, images, _ in batches(sample_set, title="retrieval", **loading)
        ]
        scores = np.concatenate([metrics.array(row, "retrieval scores", 2) for row in rows])
    labels = {"instance": (sample_set.image_ids, sample_set.image_ids)}
    if None not in sample_set.categories:
        shown = [frozenset(visible) | {own} for visible, own in zip(sample_set.visible, sample_set.categories)]
        labels["class"] = (shown, sample_set.categories)
    out: dict = {"n": len(sample_set)}
    for hit, (images, sounds) in labels.items():
        recalls = {
            "a2i": metrics.recall_at(scores.T, sounds, images, RECALLS),
            "i2a": metrics.recall_at(scores, images, sounds, RECALLS),
        }
        out[hit] = {way: {f"r{k}": rate for k, rate in recall.items()} for way, recall in recalls.items()}
    return out


def _pick(argument: str, name: str | None, preferred: str, test_sets: Mapping) -> str:
    if name is not None and name not in test_sets:
        raise ValueError(f"{argument}: expected one of {list(test_sets)}, got {name!r}")
    return name or (preferred if preferred in test_sets else next(iter(test_sets)))


def _check(test_sets: Mapping, validation, negatives: Sequence[str]) -> None:
    if not test_sets:
        raise ValueError("test_sets: expected at least one set, got none")
    for name, sample_set in [*test_sets.items(), *([] if validation is None else [("validation", validation)])]:
        if not len(sample_set):
            raise ValueError(f"set {name!r}: expected samples, got an empty set")
    for name, sample_set in test_sets.items():
        if not sample_set.has_ground_truth:
            raise ValueError(f"set {name!r}: expected ground truth (boxes or masks) to evaluate against, it has none")
        both = [] if validation is None else sorted(set(validation.ids) & set(sample_set.ids))
        if both:
            raise ValueError(
                f"validation: expected samples that are not tested, {len(both)} are in set {name!r}: "
                f"{', '.join(map(repr, both[:3]))}{' ...' if len(both) > 3 else ''}"
            )
    unknown = [kind for kind in negatives if kind not in NEGATIVES]
    if unknown:
        raise ValueError(f"negatives: expected kinds among {NEGATIVES}, got {unknown}")


def evaluate(
    localizer: "Localizer | MapFunction | str | os.PathLike",
    test_sets: Mapping[str, "SampleSet"],
    *,
    validation: "SampleSet | None" = None,
    batch_size: int = 64,
    progress: bool = True,
    protocol: Protocol = Protocol(),
    published: Sequence[str | Protocol] = (),
    prior: Baseline | None = None,
    baselines: Mapping[str, Baseline] | None = None,
    negatives: Sequence[str] = NEGATIVES,
    seeds: Sequence[int] | None = None,
    draw: Draw = by_seed,
    interactive_on: str | None = None,
    retrieval_on: str | None = None,
    similarity: str = "auto",
    workers: int = 0,
) -> Results:
    """Run a localizer over every sample of `test_sets`, under its own sound and under its negatives, and all
    baselines beside it.

    localizer: or a function (images, spectrograms) -> maps, or a folder of maps (`from_folder`); these have no
    retrieval. validation: the universal threshold (vssl_eval) is chosen on its negatives. Without it the threshold
    comes from each
        test set's own negatives, and whatever depends on it has `test_threshold` in its name instead of `universal`.
    published: further protocols, by name or record, run on the same maps: `results["protocols"]`.
    prior: images -> object maps, which these protocols mix with the model's (`models.object_prior`).
    baselines: {name: images -> maps}, `BASELINES` unless given; {} for none.
    negatives: kinds of negative sound, () for none; seeds: of their draws (default: the protocol's). The default
        protocol takes the first, protocols with a universal threshold the samples of all draws together.
    draw: how negatives are drawn.
    interactive_on, retrieval_on: sets behind the flat keys ("duo" and "single" where present, else the first set).
    similarity: of images and sounds for retrieval, of those that the localizer has.
    workers: processes that load the samples (for sets that decode files).
    Raises ValueError for an empty set, a set without ground truth, a validation sample that is tested, a map with a NaN
    (naming the sample), unknown names.
    """
    _check(test_sets, validation, negatives)
    interactive_on = _pick("interactive_on", interactive_on, "duo", test_sets)
    retrieval_on = _pick("retrieval_on", retrieval_on, "single", test_sets)
    published = [protocol_of(one) for one in published]
    seeds = [protocol.negatives_seed] if seeds is None else list(dict.fromkeys(seeds))
    protocol = replace(protocol, negatives_seed=seeds[0])
    predictors = {"model": predictor_of(localizer)}
    baselines = BASELINES if baselines is None else baselines
    predictors |= {name: from_images(baseline) for name, baseline in baselines.items()}
    loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    rule = "universal" if validation is not None else "test_threshold"
    run = _Run(predictors, protocol, rule, published, seeds, prior, **loading)
    notes: list[str] = []
    samples, tables, chosen, thresholds, computed = {}, {}, {}, {}, {}
    with inference(localizer):
        if validation is not None:
            drawn = _negatives(validation, "validation", negatives, draw, seeds, notes)
            thresholds = chosen["validation"] = run.thresholds(validation, drawn, "validation")
        for name, sample_set in test_sets.items():
            drawn = _negatives(sample_set, name, negatives, draw, seeds, notes)
            if validation is None:
                thresholds = chosen[name] = run.thresholds(sample_set, drawn, name)
            columns, size, computed[name] = run.columns(sample_set, drawn, thresholds, name)
            tables[name] = _set_table(sample_set, columns, size, dict.fromkeys(map(_kind, drawn)))
            values = {column: v > 0 if column == "pointing" else v for column, v in columns["model"].items()}
            samples[name] = {
                "id": list(sample_set.ids),
                "image_id": list(sample_set.image_ids),
                "category": list(sample_set.categories),
                **{column: v.tolist() for column, v in values.items()},
            }
        recalls = {}
        if hasattr(localizer, "retrieval"):
            recalls = {
                "similarity": similarity,
                **retrieval(localizer, test_sets[retrieval_on], similarity=similarity, **loading),
            }
        else:
            notes.append("no retrieval, because the model gives maps alone")
    if recalls and "class" not in recalls:
        notes.append(f"set {retrieval_on}: no retrieval by class, because not every sample has a category")
    results = Results(
        {
            "protocol": protocol.record(),
            "seeds": seeds,
            "versions": versions(),
            "notes": notes,
            "interactive_on": interactive_on,
            "sets": tables,
            "protocols": computed,
            "retrieval": {"set": retrieval_on, **recalls} if recalls else {},
            "universal_threshold": {
                "chosen_on": "validation" if validation is not None else "test",
                "by_set": {
                    name: {predictor: t._asdict() for predictor, t in by.items()} for name, by in chosen.items()
                },
            },
        },
        samples=samples,
    )
    results.update(flat_keys(results))
    return results


def _set_table(sample_set: "SampleSet", columns: dict[str, dict], size: tuple[int, int], kinds: Iterable[str]) -> dict:
    rows = {name: table(values, sample_set.image_ids) for name, values in columns.items()}
    sounds = Counter(sample_set.image_ids)
    maxima = {"positive": columns["model"]["map_max"]} | {kind: columns["model"][f"{kind}_max"] for kind in kinds}
    return {
        "n": len(sample_set),
        "images": len(sounds),
        "interactive_images": sum(n > 1 for n in sounds.values()),
        "size": list(size),
        "model": rows.pop("model"),
        "baselines": rows,
        "map_maxima": {kind: np.percentile(v, (0, 25, 50, 75, 100)).tolist() for kind, v in maxima.items()},
    }
