"""Evaluation of a model on sets of (image, sound) samples, beside predictors that never hear the sound.

One pass over each set streams batches through the model and all baselines; only per-sample numbers are kept. How
maps become numbers is the `Protocol` that every result carries.
"""

import os
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..distributed import collect, shard
from ..reproducibility import fingerprint, samples_record, versions
from . import false_alarms, metrics, original, thresholds
from .baselines import BASELINES, Baseline
from .multi_source import Sources, by_image
from .predictors import Localizer, MapFunction, Predictor, batches, from_images, from_localizer, inference, predictor_of
from .protocols import Accumulator, Protocol, in_range, protocol_of, score
from .results import Results, flat_keys, table
from .retrieval import retrieval

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

NEGATIVES = ("silence", "noise", "offscreen")


# sample set, its name, kind, seed -> `data.negatives.Negatives`
Draw = Callable[["SampleSet", str, str, int], typing.Any]


def _checked(
    predictors: Mapping[str, Predictor], images: Tensor, sounds: dict[str, Tensor], ids: list[str]
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for name, predictor in predictors.items():
        maps = predictor(images, sounds, ids)
        for kind, values in maps.items():
            if len(metrics.check_maps(values, ids, f"maps of {name} under {kind} sound")) != len(images):
                raise ValueError(f"maps of {name} under {kind} sound: expected {len(images)}, got shape {values.shape}")
        yield name, maps


class _Passes:
    """Passes over the sets of one evaluation, and the arguments that they share."""

    def __init__(
        self,
        predictors: Mapping[str, Predictor],
        protocol: Protocol,
        own: bool,
        published: Sequence[Protocol],
        seeds: Sequence[int],
        prior: Baseline | None,
        **loading,
    ):
        self.predictors, self.protocol, self.own, self.loading = predictors, protocol, own, loading
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
        self,
        sample_set: "SampleSet",
        negatives: Mapping,
        thresholds: Mapping,
        title: str,
        frame_sizes: Sequence[tuple[int, int]] = (),
    ) -> tuple[dict[str, dict[str, np.ndarray]], tuple[int, int], dict]:
        """{predictor: {column: (N,) per-sample values, NaN where a sample has none}}, size of the images, and
        {published protocol: {predictor: what it computes}}. frame_sizes: (width, height) of each sample's frame, to
        have columns at that size, too."""
        out: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.predictors}
        totals = {
            protocol.name: {
                name: self._total(protocol, thresholds.get(name))
                for name in self.predictors
                if name in thresholds or name == "model" or not protocol.needs_threshold
            }
            for protocol in self.published
        }
        size, kinds, sounding = (0, 0), _kinds(negatives), sample_set.sounding
        images_of = by_image(sample_set.image_ids) if any("sources" in one.figures for one in self.published) else []
        for index, images, spectrograms in batches(sample_set, title=title, **self.loading):
            size, ids = _size(images), [sample_set.ids[i] for i in index]
            boxes, masks = _truths(sample_set, index, size, title)
            squashed = boxes
            if getattr(sample_set, "fit", "") == "crop" and any(one.squashed_truth for one in self.published):
                squashed = np.stack([sample_set.squashed_ground_truth(int(i)) for i in index])
            exact = _exact(boxes, masks) if any(one.exact_masks for one in self.published) else boxes
            sounds = {"positive": spectrograms} | {sound: draw(index) for sound, draw in negatives.items()}
            objects = None if self.prior is None else metrics.array(self.prior(images), "maps of the object prior")
            sources = None
            if images_of:
                known = dict(zip(map(int, index), boxes))
                sources = [
                    Sources(own, np.stack([_truth(sample_set, k, known) for k in every]))
                    for own, every in (images_of[i] for i in index)
                ]
            scored = {}
            for name, maps in _checked(self.predictors, images, sounds, ids):
                positive = maps.pop("positive")
                draws = [
                    {kind: maps[sound] for kind, sound in zip(kinds, _sounds(kinds, seed, self.seeds))}
                    for seed in self.seeds
                ]
                threshold = thresholds[name].value if name in thresholds else None
                scored[name] = positive, draws[0], threshold
                for column, values in self._score(positive, draws[0], boxes, masks, threshold).items():
                    out[name].setdefault(column, np.full(len(sample_set), np.nan))[index] = values
                for total in (by[name] for by in totals.values() if name in by):
                    truth = squashed if total.protocol.squashed_truth else boxes
                    truth = exact if total.protocol.exact_masks else truth
                    for draw in draws if total.threshold is not None else draws[:1]:  # samples of all draws together
                        total.update(
                            positive,
                            truth,
                            ids=ids,
                            sounding=truth.any((1, 2)) if sounding is None else np.array(sounding)[index],
                            negatives=draw,
                            image_ids=[sample_set.image_ids[i] for i in index],
                            prior=objects if name == "model" else None,
                            categories=[sample_set.categories[i] for i in index],
                            sources=sources,
                        )
            for frames in original.frames(sample_set, index, frame_sizes) if frame_sizes else ():
                rows = frames.rows
                for name, (positive, negative, threshold) in scored.items():
                    maps = positive[rows], {kind: values[rows] for kind, values in negative.items()}
                    columns = self._score(*maps, frames.truth, frames.masks, threshold, frames.window)
                    for column, values in original.columns(columns, frames).items():
                        out[name].setdefault(column, np.full(len(sample_set), np.nan))[index[rows]] = values
        return (
            out,
            size,
            {protocol: {name: total.compute() for name, total in by.items()} for protocol, by in totals.items()},
        )

    def _total(self, protocol: Protocol, chosen: false_alarms.UniversalThreshold | None) -> Accumulator:
        """chosen: the universal threshold, in cosines."""
        if chosen is None or not any(rule.universal for rule in protocol.rules):
            return Accumulator(protocol)
        threshold = float(in_range(protocol, np.full((1, 1, 1), chosen.value))[0, 0, 0])
        return Accumulator(protocol, threshold=threshold, own_threshold=self.own)

    def _score(
        self,
        positive: np.ndarray,
        negatives: dict[str, np.ndarray],
        boxes: np.ndarray,
        masks: list,
        threshold: float | None,
        window: tuple[int, int, int, int] | None = None,
    ) -> dict[str, np.ndarray]:
        chosen = {"threshold": threshold, "own_threshold": self.own, "window": window}
        out = score(self.protocol, positive, boxes, negatives=negatives, **chosen)["audio_visual"]
        have = np.array([mask is not None for mask in masks])
        if have.any():
            exact = np.stack([mask for mask in masks if mask is not None])
            columns = score(self.protocol, positive[have], exact, **chosen)["audio_visual"]
            for column in [column for column in columns if column.startswith("iou_")]:
                out[f"{column}_mask"] = np.full(len(have), np.nan)
                out[f"{column}_mask"][have] = columns[column]
        return out


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width


def _truth(sample_set: "SampleSet", index: int, known: Mapping[int, np.ndarray]) -> np.ndarray:
    return known[index] if index in known else np.asarray(sample_set.ground_truth(int(index)), np.float32)


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


def _exact(boxes: np.ndarray, masks: list) -> np.ndarray:
    """bool (B, H, W): the masks; of a sample without one, in which there is nothing, the boxes."""
    return np.stack([truth > 0 if mask is None else mask for truth, mask in zip(boxes, masks)])


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
            truth, _ = _truths(sample_set, index, _size(images), "validation")
            total.update(predict(images, {"positive": spectrograms}, ids)["positive"], truth, ids=ids)
    iou = total.columns["audio_visual"]["iou_adaptive"].tolist() if own else []
    return float(np.mean(np.asarray(collect(iou, len(sample_set))) >= 0.5))


def _sounds(kinds: Iterable[str], seed: int, seeds: Sequence[int]) -> list[str]:
    """Names of the negatives of a seed: their kind or, where there are several seeds, KIND/SEED."""
    return [kind if len(seeds) == 1 else f"{kind}/{seed}" for kind in kinds]


def _kind(sound: str) -> str:
    return sound.partition("/")[0]


def _kinds(sounds: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(_kind, sounds)))


def _unknown(sample_set: "SampleSet") -> list[int]:
    """The samples that do not say which categories they show."""
    return [i for i, shown in enumerate(sample_set.visible) if sample_set.categories[i] is None or not shown]


def _negatives(
    sample_set: "SampleSet", name: str, kinds: Sequence[str], draw: Draw, seeds: Sequence[int], notes: list[str] | None
) -> dict[str, Callable]:
    """{sound: indices -> spectrograms (B, 1, F, T)}. Where categories are unknown, off-screen is left out with a note,
    or without `notes` a ValueError."""
    if "offscreen" in kinds and (unknown := _unknown(sample_set)):
        without = f"{len(unknown)} of {len(sample_set)} samples do not say which categories they show"
        if notes is None:
            raise ValueError(
                f"set {name}: expected categories, for off-screen sounds, on which the universal threshold depends; "
                f"{without}, as {sample_set.ids[unknown[0]]!r}: annotate them, or leave offscreen out of the negatives"
            )
        notes.append(f"set {name}: no off-screen sounds, because {without}")
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


def _pick(argument: str, name: str | None, preferred: str, test_sets: Mapping) -> str:
    if name is not None and name not in test_sets:
        raise ValueError(f"{argument}: expected one of {list(test_sets)}, got {name!r}")
    return name or (preferred if preferred in test_sets else next(iter(test_sets)))


def _check(test_sets: Mapping, validation: Mapping, negatives: Sequence[str]) -> None:
    if not test_sets:
        raise ValueError("test_sets: expected at least one set, got none")
    if len(validation) > 1:
        raise ValueError(f"validation: expected one set, got {list(validation)}")
    for name, sample_set in [*test_sets.items(), *validation.items()]:
        if not len(sample_set):
            raise ValueError(f"set {name!r}: expected samples, got an empty set")
    for name, sample_set in test_sets.items():
        if not sample_set.has_ground_truth:
            raise ValueError(f"set {name!r}: expected ground truth (boxes or masks) to evaluate against, it has none")
        both = sorted({name for held_out in validation.values() for name in held_out.ids} & set(sample_set.ids))
        if both:
            raise ValueError(
                f"validation: expected samples that are not tested, {len(both)} are in set {name!r}: "
                f"{', '.join(map(repr, both[:3]))}{' ...' if len(both) > 3 else ''}"
            )
    unknown = [kind for kind in negatives if kind not in NEGATIVES]
    if unknown:
        raise ValueError(f"negatives: expected kinds among {NEGATIVES}, got {unknown}")


def check_protocols(published: Sequence[Protocol], test_sets: Mapping, negatives: Sequence[str]) -> None:
    """ValueError where a set has not what the figures of a protocol are made of: told now, not after a pass.

    published, test_sets, negatives: as in `evaluate`."""
    for name, sample_set in test_sets.items():
        for protocol in published:
            _check_protocol(protocol, name, sample_set, negatives)


def _check_protocol(protocol: Protocol, name: str, sample_set: "SampleSet", negatives: Sequence[str]) -> None:
    def refuse(expected: str, got: str, index: int | None = None):
        where = "" if index is None else f", sample {sample_set.ids[index]!r}"
        raise ValueError(f"set {name!r}{where}: expected {expected} for protocol {protocol.name!r}, got {got}")

    figures = {*protocol.figures}
    if protocol.needs_threshold and not negatives:
        refuse("negative sounds", "none")
    if protocol.needs_threshold and not {*negatives} - {"offscreen"} and (unknown := _unknown(sample_set)):
        refuse("the categories that off-screen sounds need", "none", unknown[0])
    if "prompted" in figures and None in sample_set.categories:
        refuse("the category that is prompted", "none", sample_set.categories.index(None))
    if "sources" in figures:
        by_image(sample_set.image_ids)
        if sample_set.of_videos:
            refuse("single images", "several frames of each video")
        if sample_set.sounding is not None and False in sample_set.sounding:
            refuse("a source in the image", "a silent sample", sample_set.sounding.index(False))
    if protocol.exact_masks:
        for i in range(len(sample_set)):
            if sample_set.mask(i) is None and sample_set.ground_truth(i).any():
                refuse("a mask", "boxes", i)
    elif {"segmentation", "robustness", "sources"} & figures:
        for i in range(len(sample_set)):
            truth = sample_set.ground_truth(i)
            if ((truth > 0) & (truth < 1)).any():
                refuse("ground truth of 0 and 1", "weights between", i)


def _foreign(
    threshold: float | thresholds.Thresholds, test_sets: Mapping, validation: Mapping
) -> thresholds.Thresholds:
    """Checked thresholds that are not chosen here."""
    if validation:
        raise ValueError("threshold: expected without validation, which chooses one")
    if not isinstance(threshold, thresholds.Thresholds):
        return thresholds.given(threshold)
    for name, sample_set in test_sets.items():
        if threshold.origin.get("fingerprint") == fingerprint(sorted(sample_set.ids)):
            raise ValueError(f"threshold: expected one that was chosen on other samples than those of set {name!r}")
    return threshold


def evaluate(
    localizer: Localizer | MapFunction | str | os.PathLike,
    test_sets: Mapping[str, "SampleSet"],
    *,
    validation: "SampleSet | Mapping[str, SampleSet] | None" = None,
    threshold: float | thresholds.Thresholds | None = None,
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
    original_size: bool = False,
    workers: int = 0,
) -> Results:
    """Run a localizer over every sample of `test_sets`, under its own sound and under its negatives, and all
    baselines beside it.

    localizer: or a function (images, spectrograms) -> maps, or a folder of maps (`from_folder`); these have no
        retrieval.
    validation: a set, or {its name: it}: the universal threshold (vssl_eval) is chosen on its negatives.
    threshold: the universal threshold itself: the model's in cosines (baselines then have none), or those of another
        evaluation (`thresholds.read`). Without validation and threshold it comes from each test set's own negatives,
        and whatever depends on it has `test_threshold` in its name. Its origin is in `results["universal_threshold"]`.
    published: further protocols, by name or record, run on the same maps: `results["protocols"]`.
    prior: images -> object maps, which these protocols mix with the model's (`models.object_prior`).
    baselines: {name: images -> maps}, `BASELINES` unless given; {} for none.
    negatives: kinds of negative sound, () for none; seeds: of their draws (default: the protocol's). The default
        protocol takes the first, protocols with a universal threshold the samples of all draws together.
    draw: how negatives are drawn.
    interactive_on, retrieval_on: sets behind the flat keys ("duo" and "single" where present, else the first set).
    similarity: of images and sounds for retrieval, of those that the localizer has.
    original_size: also the figures of the default protocol at the size of the frames, see `evaluation.original`.
    workers: processes that load the samples (for sets that decode files).
    Raises ValueError for an empty set, a set without ground truth, a validation sample that is tested, validation
    samples without categories where off-screen sounds are among the negatives, a set that has not what a protocol needs
    (masks, categories, ...), a map with a NaN (naming the sample), unknown names, and `original_size` of sets whose
    frames have no ground truth at their own size.
    """
    if validation is None:
        validation = {}
    elif not isinstance(validation, Mapping):
        validation = {"validation": validation}
    _check(test_sets, validation, negatives)
    sizes = {name: original.sizes(one) if original_size else [] for name, one in test_sets.items()}
    if threshold is not None:
        threshold = _foreign(threshold, test_sets, validation)
    interactive_on = _pick("interactive_on", interactive_on, "duo", test_sets)
    retrieval_on = _pick("retrieval_on", retrieval_on, "single", test_sets)
    published = [protocol_of(one) for one in published]
    check_protocols(published, test_sets, negatives)
    seeds = [protocol.negatives_seed] if seeds is None else list(dict.fromkeys(seeds))
    protocol = replace(protocol, negatives_seed=seeds[0])
    predictors = {"model": predictor_of(localizer)}
    baselines = BASELINES if baselines is None else baselines
    predictors |= {name: from_images(baseline) for name, baseline in baselines.items()}
    loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    own = threshold is None and not validation
    passes = _Passes(predictors, protocol, own, published, seeds, prior, **loading)
    notes: list[str] = []
    samples, tables, chosen, origins, used, computed = {}, {}, {}, {}, {}, {}
    chosen_on = "test"
    if original_size and published:
        names = ", ".join(one.name for one in published)
        notes.append(f"figures of the protocols {names} are of squares alone, on which they are defined")
    if threshold is not None:
        chosen_on = "results" if threshold.origin else "given"
        used, origins[chosen_on] = threshold.values, threshold.origin
        notes += [
            f"set {name}: its universal threshold was chosen on {threshold.origin.get('n', 'some')} samples of {name}, "
            "too; whether those that are tested are among them is not recorded"
            for name in test_sets
            if name == threshold.origin.get("set")
        ]
        chosen[chosen_on] = {name: one for name, one in used.items() if name in predictors}
        if lacking := [name for name in predictors if name not in used]:
            notes.append(f"no universal threshold is known of {', '.join(lacking)}: no figures that depend on it")
    with inference(localizer):
        for name, sample_set in validation.items():
            chosen_on = "validation"
            drawn = _negatives(sample_set, name, negatives, draw, seeds, None)
            used = chosen[chosen_on] = passes.thresholds(sample_set, drawn, name)
            origins[chosen_on] = thresholds.origin(name, sample_set, _kinds(drawn), seeds)
        for name, sample_set in test_sets.items():
            drawn = _negatives(sample_set, name, negatives, draw, seeds, notes)
            if own:
                used = chosen[name] = passes.thresholds(sample_set, drawn, name)
                origins[name] = thresholds.origin(name, sample_set, _kinds(drawn), seeds)
            if None in sample_set.categories and any("sources" in one.figures for one in published):
                notes.append(f"set {name}: no class-aware AP, because not every sample has a category")
            columns, size, computed[name] = passes.columns(sample_set, drawn, used, name, sizes[name])
            tables[name] = _set_table(sample_set, columns, size, _kinds(drawn))
            if original_size:
                tables[name]["original"] = original.figures(columns, tables[name], sample_set.image_ids, sizes[name])
            values = {column: v > 0 if column.endswith("pointing") else v for column, v in columns["model"].items()}
            samples[name] = {
                "id": list(sample_set.ids),
                "image_id": list(sample_set.image_ids),
                "category": list(sample_set.categories),
                **{column: v.tolist() for column, v in values.items()},
            }
        recalls = {}
        if hasattr(localizer, "retrieval"):
            model = typing.cast(Localizer, localizer)
            recalls = {
                "similarity": similarity,
                **retrieval(model, test_sets[retrieval_on], similarity=similarity, **loading),
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
                "chosen_on": chosen_on,
                "by_set": {
                    name: {predictor: t._asdict() for predictor, t in by.items()} for name, by in chosen.items()
                },
                "origins": origins,
            },
        },
        samples=samples,
    )
    results.update(flat_keys(results))
    return results


def _separation(columns: Mapping, kinds: Iterable[str], sounding: np.ndarray) -> dict[str, float]:
    """Of the samples whose sound is one of something in the image."""
    if not sounding.any():
        return {}
    negatives = {kind: columns[f"{kind}_max"][sounding] for kind in kinds}
    return false_alarms.separation(columns["map_max"][sounding], negatives)


def _set_table(sample_set: "SampleSet", columns: dict[str, dict], size: tuple[int, int], kinds: Sequence[str]) -> dict:
    sounding = np.array(sample_set.sounding or [True] * len(sample_set))
    rows = {
        name: table(values, sample_set.image_ids) | _separation(values, kinds, sounding)
        for name, values in columns.items()
    }
    sounds, silent = Counter(sample_set.image_ids), (sample_set.sounding or []).count(False)
    maxima = {"positive": columns["model"]["map_max"]} | {kind: columns["model"][f"{kind}_max"] for kind in kinds}
    return {
        "n": len(sample_set),
        "samples": samples_record(sample_set),
        **({"n_silent": silent} if silent else {}),
        "images": len(sounds),
        "interactive_images": sum(n > 1 for n in sounds.values()),
        "size": list(size),
        "model": rows.pop("model"),
        "baselines": rows,
        "map_maxima": {kind: np.percentile(v, (0, 25, 50, 75, 100)).tolist() for kind, v in maxima.items()},
    }
