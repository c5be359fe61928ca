"""Evaluation protocols: the one function that runs any of them. What they are made of: `protocol_records`.

    from ssl_fast.evaluation import protocols
    result = protocols.run("ez_vsl", maps, ground_truth, prior=prior)
    result["figures"]["audio_visual"]["localization"]["ciou_top50"]

`Accumulator` does the same batch by batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from . import (
    detection,
    false_alarms,
    map_metrics,
    metrics,
    mixing,
    multi_source,
    prompted,
    robustness,
    segmentation,
    thresholds,
)
from .map_metrics import Counts, Rule, Upsampling
from .protocol_records import PROTOCOLS, UNIVERSAL, Protocol, protocol_of, published_image_id
from .results import table
from .thresholds import OWN, threshold_name

__all__ = [
    "FIGURES",
    "PROTOCOLS",
    "Accumulator",
    "Protocol",
    "Rule",
    "Upsampling",
    "in_range",
    "protocol_of",
    "published_image_id",
    "run",
    "score",
]

# ------------------------------------------------------------------------------------------------ per-sample values


def in_range(protocol: Protocol, maps, enlarge: Callable = lambda maps: maps) -> np.ndarray:
    """Cosines (N, h, w) in the units of the protocol's thresholds; up-sampled on the way, where `enlarge` does that."""
    maps = metrics.array(maps, "maps", 3)
    full = enlarge(maps) if protocol.tau is None else mixing.fixed_range(enlarge(maps / protocol.tau), protocol.tau)
    return mixing.NORMALISATIONS[protocol.normalisation](full)


def score(
    protocol: Protocol,
    maps,
    ground_truth,
    *,
    prior=None,
    negatives: Mapping[str, np.ndarray] = {},
    threshold: float | None = None,
    own_threshold: bool = False,
    ids: Sequence[str] | None = None,
    sources: Sequence[multi_source.Sources] | None = None,
    window: tuple[int, int, int, int] | None = None,
    backend: str = "auto",
) -> dict[str, dict[str, np.ndarray]]:
    """Per-sample columns of a batch: {"audio_visual", and with a prior also "prior" and "mixed": {column: (N,)}}.

    maps (N, h, w) cosines; ground_truth (N, H, W) weights in [0, 1] or bool; prior (N, h', w') mean activations;
    negatives {kind: (N, h, w)}; threshold: the universal one, in the units of `in_range`; without it its rule and
    `pia_` are left out. own_threshold: it was chosen on these very samples; columns that depend on it then have
    `test_threshold` in their names (`thresholds.threshold_name`).
    sources: for each sample those of its image, for the figures of sources.
    window: left, top, right, bottom in pixels of the ground truth, ends excluded: the part that the maps show, see
    `map_metrics.counts_in_frames`.
    backend: "auto", "compiled" (RuntimeError where the kernel cannot be had: it needs up-sampling that is exact, and
    neither a prior nor detection) or "reference" (numpy).
    Columns: `iou_RULE`, `pointing`, `map_min`, `map_max`, `KIND_max`, `pia_KIND`, and those of the protocol's figures.
    Raises ValueError for a map with a NaN (naming the sample), shapes that do not match, a threshold that is not
    finite, and a window beyond the ground truth or with figures that rank its pixels.
    """
    if threshold is not None:
        thresholds.given(threshold)  # nothing is above a NaN
    if "sources" in protocol.figures and (sources is None or len(sources) != len(ground_truth)):
        got = None if sources is None else len(sources)
        raise ValueError(f"sources: expected those of {len(ground_truth)} samples for {protocol.name!r}, got {got}")
    if "prompted" in protocol.figures:
        prior = None  # its evaluator mixes nothing
    truth = metrics.weights(ground_truth)
    sounds = {"positive": metrics.check_maps(maps, ids)}
    sounds |= {kind: metrics.check_maps(values, ids, f"maps under {kind}") for kind, values in negatives.items()}
    low = dict(sounds) if prior is None else sounds | {"prior": metrics.check_maps(prior, ids, "prior")}
    for name, values in low.items():
        if len(values) != len(truth):
            raise ValueError(
                f"maps under {name}: expected {len(truth)} samples to match ground_truth, got {len(values)}"
            )
    height, width = truth.shape[1:]
    left, top, right, bottom = window or (0, 0, width, height)
    if window is not None and not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"window: expected a part of {width} x {height} pixels of ground truth, got {window}")
    if window is not None and {"sources", "prompted"} & {*protocol.figures}:
        raise ValueError(f"window: expected none for {protocol.name!r}, whose figures rank all pixels, got {window}")
    size, seen = (bottom - top, right - left), truth[:, top:bottom, left:right]
    rules = _rules(protocol, threshold, own_threshold)
    enlarge = {kind: protocol.positive if kind == "positive" else protocol.negative for kind in sounds}
    linear = {protocol.normalisation, protocol.after} <= mixing.LINEAR
    ranks = threshold is None and all(rule.ranks for rule in rules)
    out = {}
    if (
        prior is None
        and "detection" not in protocol.figures
        and (linear or ranks)
        and {up.arithmetic for up in enlarge.values()} == {"exact"}
    ):
        # a linear range may as well come before up-sampling, and no other one changes the order of pixels
        ranged = [
            mixing.NORMALISATIONS[protocol.after](in_range(protocol, values)) if linear else values
            for values in sounds.values()
        ]
        count = partial(map_metrics.counts, value=threshold, backend=backend)
        upsampling = [*enlarge.values()]
        found = map_metrics.counts_in_frames(partial(count, upsampling=upsampling), ranged, truth, rules, window)
        under = {}
        if "robustness" in protocol.figures:  # the kernel compares the first map alone with the ground truth
            under = {
                kind: map_metrics.counts_in_frames(
                    partial(count, upsampling=[enlarge[kind]]), [values], truth, [UNIVERSAL], window
                )
                for kind, values in zip(negatives, ranged[1:])
            }
        out["audio_visual"] = _columns(protocol, found, rules, [*negatives], truth, own_threshold, under)
        if sources is not None and "sources" in protocol.figures:
            full = protocol.positive(ranged[0], size)
            out["audio_visual"] |= multi_source.source_columns(full, sources)
    elif backend == "compiled":
        raise RuntimeError(f"backend='compiled': protocol {protocol.name!r} is not of exact up-sampling and rules only")
    else:
        full = {
            "audio_visual": [
                in_range(protocol, values, partial(enlarge[kind], size=size)) for kind, values in sounds.items()
            ]
        }
        if prior is not None:
            one = mixing.NORMALISATIONS[protocol.prior_normalisation](protocol.prior(low["prior"], size))
            mixed = [mixing.mix(values, one, protocol.alpha) for values in full["audio_visual"]]
            full |= {"prior": [one] * len(sounds), "mixed": mixed}
        for predictor, levels in full.items():
            after = [mixing.NORMALISATIONS[protocol.after](level) for level in levels]
            count = partial(map_metrics.counts_of_pixels, value=threshold)
            found = map_metrics.counts_in_frames(count, after, truth, rules, window)
            under = {}
            if "robustness" in protocol.figures:
                under = {
                    kind: map_metrics.counts_in_frames(count, [level], truth, [UNIVERSAL], window)
                    for kind, level in zip(negatives, after[1:])
                }
            out[predictor] = _columns(protocol, found, rules, [*negatives], truth, own_threshold, under)
            if "detection" in protocol.figures:
                out[predictor]["confidence"] = detection.confidence(levels[0])
            if sources is not None and "sources" in protocol.figures:
                out[predictor] |= multi_source.source_columns(after[0], sources)
    for predictor, key in (("audio_visual", "positive"), ("prior", "prior")):
        if key in low:
            out[predictor] |= {
                "pointing": metrics.points_at(low[key], seen),
                "map_min": low[key].min((1, 2)),
                "map_max": low[key].max((1, 2)),
            }
    out["audio_visual"] |= {f"{kind}_max": sounds[kind].max((1, 2)) for kind in negatives}
    if "prompted" in protocol.figures:
        out["audio_visual"] |= prompted.kept(sounds["positive"], truth)
    return out


def _rules(protocol: Protocol, threshold: float | None, own: bool) -> list[Rule]:
    """The rules under the names of their columns, without those that lack their threshold."""
    return [
        replace(rule, name=threshold_name(rule.name, own)) if rule.universal else rule
        for rule in protocol.rules
        if not (rule.universal and threshold is None)
    ]


def _columns(
    protocol: Protocol,
    found: Counts,
    rules: Sequence[Rule],
    kinds: Sequence[str],
    truth: np.ndarray,
    own: bool,
    under: Mapping[str, Counts],
) -> dict[str, np.ndarray]:
    """under: {kind: its maps against the ground truth at the universal threshold}, for robustness."""
    pixels = truth[0].size if len(truth) else 1
    out = {f"iou_{rule.name}": iou for rule, iou in zip(rules, found.iou(protocol.empty).T)}
    alarms = {}
    if found.shared is not None:
        alarms |= {f"pia_{kind}": found.shared[:, k, k] / pixels for k, kind in enumerate(kinds, 1)}
    if "false_alarms" in protocol.figures and found.shared is not None:
        alarms |= {f"overlap_{kind}": found.map_iou(0, k) for k, kind in enumerate(kinds, 1)}
        alarms |= {
            f"overlap_{a}_{b}": found.map_iou(j, k)
            for j, a in enumerate(kinds, 1)
            for k, b in enumerate(kinds, 1)
            if j < k
        }
    out |= {threshold_name(name, own): values for name, values in alarms.items()}
    if "detection" in protocol.figures:
        out["area"] = found.weight
    for family in ("segmentation", "robustness", "sources"):
        if family in protocol.figures and (found.weight != found.objects).any():
            i = int((found.weight != found.objects).argmax())
            raise ValueError(f"ground_truth: expected 0 and 1 for {family}, sample {i} has weights between")
    if "sources" in protocol.figures:
        for r, rule in enumerate(rules):
            values = multi_source.binary_aps(found.hit[:, r], found.false[:, r], found.weight, pixels)
            out |= {f"{name}_{rule.name}": v for name, v in zip(multi_source.BINARY, values)}
    if not {"segmentation", "robustness"}.isdisjoint(protocol.figures):
        predictions = {rule.name: (found.hit[:, r], found.false[:, r]) for r, rule in enumerate(rules)}
        predictions |= {
            threshold_name(f"{UNIVERSAL.name}_{kind}", own): (one.hit[:, 0], one.false[:, 0])
            for kind, one in under.items()
        }
        for name, (hit, false) in predictions.items():
            values = segmentation.per_sample(hit, false, found.weight, pixels)
            out |= {f"segmentation_{key}_{name}": v for key, v in values._asdict().items()}
    return out


# ------------------------------------------------------------------------------------------------ figures of a set


def _detection(columns: Mapping, rules: Sequence[str], sounding: np.ndarray) -> dict:
    return {
        rule: detection.figures(columns["confidence"], columns[f"iou_{rule}"], sounding, columns["area"])
        for rule in rules
    }


def _segmentations(columns: Mapping, name: str) -> segmentation.Segmentation:
    return segmentation.Segmentation(
        *(columns[f"segmentation_{key}_{name}"] for key in segmentation.Segmentation._fields)
    )


def _of_kinds(columns: Mapping, start: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(start).removesuffix(f"_{OWN}"): v for key, v in columns.items() if key.startswith(start)}


def _robustness(columns: Mapping, own: bool) -> dict:
    areas = _of_kinds(columns, "pia_")
    negatives = {kind: _segmentations(columns, threshold_name(f"{UNIVERSAL.name}_{kind}", own)) for kind in areas}
    figures = robustness.figures(_segmentations(columns, threshold_name(UNIVERSAL.name, own)), negatives, areas)
    return {name if name == "n_object" else threshold_name(name, own): value for name, value in figures.items()}


def _false_alarms(columns: Mapping, own: bool) -> dict:
    areas, overlaps = (_of_kinds(columns, start) for start in ("pia_", "overlap_"))
    if not areas:
        raise ValueError("negatives: expected maps under at least one kind of negative for false alarms, got none")
    figures = false_alarms.figures(columns[f"iou_{threshold_name(UNIVERSAL.name, own)}"], areas, overlaps)
    return {threshold_name(name, own): value for name, value in figures.items()}


# Families of figures by name: (columns of a predictor, names of its rules, labels) -> figures.
FIGURES: dict[str, Callable] = {
    "localization": lambda columns, rules, labels: table(columns, labels["image_ids"] or None),
    "detection": lambda columns, rules, labels: _detection(columns, rules, np.array(labels["sounding"])),
    "segmentation": lambda columns, rules, labels: {
        rule: segmentation.figures(_segmentations(columns, rule)) for rule in rules
    },
    "robustness": lambda columns, rules, labels: _robustness(columns, labels["own_threshold"]),
    "false_alarms": lambda columns, rules, labels: _false_alarms(columns, labels["own_threshold"]),
    "sources": lambda columns, rules, labels: multi_source.figures(
        columns, rules, labels["image_ids"], labels["categories"], labels["protocol"].successes
    ),
    "prompted": lambda columns, rules, labels: prompted.figures(
        columns, labels["categories"], labels["protocol"].positive
    ),
}


class Accumulator:
    """Runs a protocol batch by batch and keeps per-sample numbers; of "prompted" also the maps before up-sampling.

    threshold: the universal one, of protocols whose rules or figures ask for it. own_threshold: it was chosen on the
    very samples that are tested; columns and figures that depend on it then have `test_threshold` in their names.
    """

    def __init__(
        self,
        protocol: str | Protocol,
        *,
        threshold: float | None = None,
        own_threshold: bool = False,
        backend: str = "auto",
    ):
        self.protocol, self.threshold, self.own_threshold = protocol_of(protocol), threshold, own_threshold
        self.backend = backend
        self._batches: list[dict[str, dict[str, np.ndarray]]] = []
        self.labels: dict[str, list] = {"image_ids": [], "sounding": [], "categories": []}
        if not {*self.protocol.figures} <= FIGURES.keys():
            raise ValueError(
                f"protocol {self.protocol.name!r}, figures: expected some of {list(FIGURES)}, "
                f"got {self.protocol.figures}"
            )
        if threshold is None and self.protocol.needs_threshold:
            raise ValueError(f"threshold: expected the universal one for protocol {self.protocol.name!r}, got None")

    def update(
        self,
        maps,
        ground_truth,
        *,
        image_ids: Sequence[str] | None = None,
        sounding=None,
        categories: Sequence[str | None] | None = None,
        **options,
    ) -> None:
        """Arguments of `score`; image_ids (N,): samples of one image, for IIoU and figures of sources; sounding (N,):
        whether the source is visible, for detection; categories (N,): of the sources, or of what the prompts name."""
        for name, given, needed in (
            ("image_ids", image_ids, self.protocol.grouped),
            ("sounding", sounding, "detection" in self.protocol.figures),
            ("categories", categories, "prompted" in self.protocol.figures),
        ):
            if given is None and (needed or self.labels[name]):
                raise ValueError(f"{name}: expected {len(maps)} values for protocol {self.protocol.name!r}, got None")
            if given is not None and len(given) != len(maps):
                raise ValueError(f"{name}: expected {len(maps)} values, one per map, got {len(given)}")
            if given is not None and needed and None in given:
                raise ValueError(f"{name}: expected a value for each map, sample {list(given).index(None)} has None")
            if given is not None and len(self.labels[name]) != self.n:
                raise ValueError(f"{name}: expected None as in the first batch, got {len(given)} values")
        batch = score(
            self.protocol,
            maps,
            ground_truth,
            threshold=self.threshold,
            own_threshold=self.own_threshold,
            backend=self.backend,
            **options,
        )
        first = self._batches[0] if self._batches else batch
        for predictor in first | batch:
            expected, got = (sorted(columns.get(predictor, ())) for columns in (first, batch))
            if expected != got:
                raise ValueError(
                    f"update: expected the columns {expected} of {predictor!r} as in the first batch, got {got}"
                )
        self._batches.append(batch)
        self.labels["image_ids"].extend(() if image_ids is None else image_ids)
        self.labels["sounding"].extend(() if sounding is None else metrics.array(sounding, "sounding", 1) > 0)
        self.labels["categories"].extend(() if categories is None else categories)

    @property
    def n(self) -> int:
        return sum(len(batch["audio_visual"]["map_max"]) for batch in self._batches)

    @property
    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """{predictor: {column: (n,)}} of all batches."""
        return {
            predictor: {key: np.concatenate([batch[predictor][key] for batch in self._batches]) for key in columns}
            for predictor, columns in (self._batches[0] if self._batches else {}).items()
        }

    def compute(self) -> dict:
        """{"protocol", "n", "threshold", "own_threshold", "left_out" (rules without their threshold), "figures":
        {predictor: {family: figures}}}; many of them for each rule. ValueError without a sample."""
        if not self.n:
            raise ValueError("compute: expected at least one sample, got none")
        left_out = [rule.name for rule in self.protocol.rules if rule.universal and self.threshold is None]
        rules = [rule.name for rule in _rules(self.protocol, self.threshold, self.own_threshold)]
        labels = {**self.labels, "own_threshold": self.own_threshold, "protocol": self.protocol}
        figures = {
            predictor: {family: FIGURES[family](columns, rules, labels) for family in self.protocol.figures}
            for predictor, columns in self.columns.items()
        }
        return {
            "protocol": self.protocol.record(),
            "n": self.n,
            "threshold": self.threshold,
            "own_threshold": self.own_threshold,
            "left_out": left_out,
            "figures": figures,
        }


def run(
    protocol: str | Protocol,
    maps,
    ground_truth,
    *,
    prior=None,
    negatives: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]] = (),
    image_ids: Sequence[str] | None = None,
    sounding=None,
    categories: Sequence[str | None] | None = None,
    threshold: float | None = None,
    ids: Sequence[str] | None = None,
    batch: int = 64,
    backend: str = "auto",
) -> dict:
    """A protocol on maps (N, h, w): `Accumulator.compute`, and `universal_threshold` with the quartiles it was chosen
    from.

    negatives: {kind: (N, h, w)}, or one such mapping for each draw (seed); the samples of all draws are pooled, each
    draw beside the positives. threshold: the universal one; without it, it is taken from these very negatives, and
    what depends on it has `test_threshold` in its name. Other arguments as in `score` and `Accumulator.update`;
    samples with the same image_id are the sources of one image.
    """
    protocol, maps, ground_truth = protocol_of(protocol), metrics.array(maps, "maps", 3), metrics.weights(ground_truth)
    prior = None if prior is None else metrics.array(prior, "prior", 3)
    draws = [
        {kind: metrics.array(values, f"maps under {kind}", 3) for kind, values in draw.items()}
        for draw in ([negatives] if isinstance(negatives, Mapping) else [*negatives] or [{}])
    ]
    chosen = None
    if threshold is None and draws[0] and any(rule.universal for rule in protocol.rules):
        chosen = false_alarms.universal_threshold(
            {
                kind: np.concatenate(
                    [
                        in_range(protocol, metrics.check_maps(draw[kind], ids, f"maps under {kind}")).max((1, 2))
                        for draw in draws
                    ]
                )
                for kind in draws[0]
            }
        )
        threshold = chosen.value
    total = Accumulator(protocol, threshold=threshold, own_threshold=chosen is not None, backend=backend)
    images = None
    if "sources" in protocol.figures and image_ids is not None:
        images = multi_source.by_image(image_ids)
    for draw in draws:
        for start in range(0, len(maps), batch):
            part = slice(start, start + batch)
            own = {"prior": prior, "image_ids": image_ids, "sounding": sounding, "categories": categories, "ids": ids}
            total.update(
                maps[part],
                ground_truth[part],
                negatives={kind: v[part] for kind, v in draw.items()},
                sources=images and [multi_source.Sources(k, ground_truth[every]) for k, every in images[part]],
                **{name: None if values is None else values[part] for name, values in own.items()},
            )
    return total.compute() | {"universal_threshold": None if chosen is None else chosen._asdict()}
