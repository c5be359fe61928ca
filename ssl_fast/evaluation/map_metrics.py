"""Counts of pixels from low-resolution maps: up-sampling, threshold rules and intersections, in one pass per map.

Here are the rules as data, the plain numpy path, made of the functions of `metrics`, and the call of the kernel.
"""

import functools
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from ..ops import checks
from . import metrics

_RANKED, _VALUED = ("exact", ">", ">=", "> or >= 1"), (">", ">=")
COMPARISONS = {"fraction": _RANKED, "truth": _RANKED, "value": _VALUED}  # by the kind of a rule
_COMPARISON_NAMES = {"exact": "exact", ">": "above", ">=": "at_least"}  # of csrc/params.h, which has no other


@dataclass(frozen=True)
class Upsampling:
    """Up-sampling of a map to the size of the ground truth (`metrics.upsample`)."""

    interpolation: str = "bilinear"
    align_corners: bool = False
    arithmetic: str = "exact"

    def __call__(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return metrics.upsample(maps, size, **asdict(self))


@dataclass(frozen=True)
class Rule:
    """Rule that makes a map a binary prediction.

    kind: "fraction": a share of the pixels; "truth": as many as have ground truth > 0; "value": those above a value.
    comparison: "exact": that many pixels, ties in row-major order, a constant map predicts everything (not for
        values); ">" or ">=": against the value, or as published against the value at that ascending index;
        "> or >= 1": as ">", and all pixels of at least 1 (LVS, SSL-TIE: they set what is above to 1, then all below 1
        to 0, so that the plateau of a maximum and constant maps from 1 on are predicted).
    fraction: of "fraction", and of "truth" where there is no ground truth.
    value: of "value"; None stands for the universal threshold.
    """

    name: str
    kind: str = "fraction"
    comparison: str = "exact"
    fraction: float = 0.5
    value: float | None = None

    def __post_init__(self):
        if self.comparison not in COMPARISONS.get(self.kind, ()):
            raise ValueError(
                f"rule {self.name!r}: expected kind and comparison among {COMPARISONS}, "
                f"got {self.kind!r}, {self.comparison!r}"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"rule {self.name!r}: expected a finite value, got {self.value}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"rule {self.name!r}: expected a fraction in (0, 1], got {self.fraction}")

    @property
    def universal(self) -> bool:
        return self.kind == "value" and self.value is None

    def of_part(self, part: int, frame: int, objects: int) -> "Rule":
        """This rule for a map of `part` of the `frame` pixels of an image, of which `objects` have ground truth: as
        many are predicted as of the whole image, at most all."""
        if self.kind == "value":
            return self
        count = objects if self.kind == "truth" and objects else self.pixel_count(frame)
        return replace(self, kind="fraction", fraction=(min(count, part) - 0.5) / part)  # rounded up to that count

    @property
    def ranks(self) -> bool:
        """Whether the order of the pixels decides, and not their values."""
        return self.kind != "value" and self.comparison != "> or >= 1"

    def pixel_count(self, pixels: int) -> int:
        """Number of pixels, of so many, that `fraction` stands for; as published, those from ascending index
        int((1 - fraction) · pixels) on."""
        if self.comparison == "exact":
            return metrics.fraction_count(self.fraction, pixels)
        return max(1, pixels - int(pixels * (1 - self.fraction)))

    def predict(self, maps: np.ndarray, objects: np.ndarray, value: float | None = None) -> np.ndarray:
        """(N, H, W), (N,) pixels of ground truth -> bool (N, H, W). value: the universal threshold."""
        maps = metrics.array(maps, "maps", 3)
        if self.kind == "value":
            threshold = typing.cast(float, value if self.value is None else self.value)
            return metrics.above(maps, threshold, strict=self.comparison == ">")
        pixels = math.prod(maps.shape[1:])
        counts = np.full(len(maps), self.pixel_count(pixels))
        if self.kind == "truth":
            counts = np.where(objects > 0, objects, counts)
        if self.comparison == "exact":
            return metrics.largest(maps, counts)
        above = metrics.at_index(maps, pixels - counts, strict=self.comparison != ">=")
        return above | (maps >= 1) if self.comparison == "> or >= 1" else above


class Counts(typing.NamedTuple):
    """Counts for N images with K maps each (the first one is compared with the ground truth) under R rules."""

    hit: np.ndarray  # float64 (N, R): sum of weights of ground truth under the prediction
    false: np.ndarray  # float64 (N, R): predicted pixels without ground truth
    weight: np.ndarray  # float64 (N,): sum of weights
    objects: np.ndarray  # int64 (N,): pixels with ground truth
    shared: np.ndarray | None  # int64 (N, K, K): pixels strictly above `value` in both maps; None without a value

    def iou(self, empty: float) -> np.ndarray:
        """Consensus IoU (N, R); `empty` where nothing is predicted and nothing there."""
        return metrics.ratio(self.hit, self.weight[:, None] + self.false, empty)

    def map_iou(self, first: int, second: int) -> np.ndarray:
        """IoU (N,) of two maps above `value`, which must have been given; 1 for two empty ones."""
        shared = typing.cast(np.ndarray, self.shared)
        both = shared[:, first, second]
        return metrics.ratio(both, shared[:, first, first] + shared[:, second, second] - both, empty=1.0)


def counts_of_pixels(
    full: Sequence[np.ndarray], truth: np.ndarray, rules: Sequence[Rule], value: float | None = None
) -> Counts:
    """K maps (N, H, W) at the size of the ground truth (N, H, W) -> `Counts`. value: the universal threshold."""
    full = [metrics.array(maps, "full", 3) for maps in full]
    truth = metrics.check_truth(truth, full[0].shape)
    objects = np.array([np.count_nonzero(image) for image in truth], np.int64)
    weight = truth.sum((1, 2), dtype=np.float64)
    overlaps = [metrics.overlap(rule.predict(full[0], objects, value), truth)[:2] for rule in rules]
    hit, false = np.moveaxis(np.array(overlaps).reshape(len(rules), 2, len(truth)), 1, 0)
    shared = None
    if value is not None:
        above = np.stack([metrics.rows(metrics.above(maps, value)) for maps in full], 1)
        shared = np.stack([(above[:, k, None] & above).sum(2, dtype=np.int64) for k in range(len(full))], 1)
    return Counts(hit.T, false.T, weight, objects, shared)


@functools.lru_cache(maxsize=64)
def _taps(cells: int, pixels: int, upsampling: Upsampling) -> tuple[np.ndarray, np.ndarray]:
    """The interpolation matrix without its zeros: first cell (pixels,) and weights (pixels, taps)."""
    matrix = metrics.interpolation_matrix(cells, pixels, upsampling.interpolation, upsampling.align_corners)
    used = matrix != 0
    first = used.argmax(1)
    taps = int((cells - used[:, ::-1].argmax(1) - first).max())
    first = np.minimum(first, cells - taps)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(taps), 1)


def _compiled(
    maps: Sequence[np.ndarray],
    truth: np.ndarray,
    rules: Sequence[Rule],
    value: float | None,
    upsampling: Sequence[Upsampling],
) -> Counts:
    extension = checks.extension

    def buffer(array: np.ndarray) -> tuple[int, int]:
        return array.ctypes.data, array.nbytes

    low = np.ascontiguousarray(np.stack(maps, 1))  # stacking keeps the order of transposed maps
    truth = np.ascontiguousarray(truth, bool if truth.dtype == bool else np.float32)
    n, k = low.shape[:2]
    shared = None if value is None else np.empty((n, k, k), np.int64)
    hit, false = np.empty((n, len(rules))), np.empty((n, len(rules)))
    found = Counts(hit, false, np.empty(n), np.empty(n, np.int64), shared)
    axes = [
        [_taps(low.shape[axis], truth.shape[axis - 1], up) for axis in (2, 3)] for up in (upsampling[0], upsampling[-1])
    ]
    pixels = math.prod(truth.shape[1:])
    extension.map_metrics(
        (*low.shape, *truth.shape[1:]),
        low=buffer(low),
        truth=buffer(truth),
        bytes=truth.dtype == bool,
        resize=[[(buffer(first), buffer(weight), weight.shape[1]) for first, weight in pair] for pair in axes],
        rules=[
            (
                getattr(extension.RuleKind, rule.kind),
                getattr(extension.Comparison, _COMPARISON_NAMES[rule.comparison]),
                rule.pixel_count(pixels),
                0.0 if rule.kind != "value" else rule.value if rule.value is not None else value,
            )
            for rule in rules
        ],
        value=value or 0.0,
        hit=buffer(found.hit),
        outside=buffer(found.false),
        weight=buffer(found.weight),
        objects=buffer(found.objects),
        shared=None if found.shared is None else buffer(found.shared),
        threads=torch.get_num_threads(),
    )
    if (found.objects < 0).any():
        metrics.refuse_truth(found.objects < 0)
    return found


def counts(
    maps: Sequence,
    ground_truth,
    rules: Sequence[Rule],
    value: float | None = None,
    *,
    upsampling: Sequence[Upsampling],
    backend: str = "auto",
) -> Counts:
    """K maps (N, h, w), each with its up-sampling, and ground truth (N, H, W) -> `Counts`.

    `counts_of_pixels` of the up-sampled maps. The compiled kernel does the same without an up-sampled map in memory,
    where up-sampling is exact, maps are float32 of one size, and all but the first are up-sampled alike; it is fastest
    with ground truth of dtype bool. Both round once from float64 and agree number for number; only sums of float64 in
    another order could differ, where a pixel lies within 1e-16 of the border between two floats.
    value: the universal threshold. backend: "auto", "compiled" (RuntimeError where it cannot be had) or "reference".
    """
    if backend not in ("auto", "compiled", "reference"):
        raise ValueError(f"backend: expected 'auto', 'compiled' or 'reference', got {backend!r}")
    maps, truth = [metrics.check_maps(m) for m in maps], metrics.weights(ground_truth)
    if any(len(m) != len(truth) for m in maps):
        raise ValueError(
            f"maps: expected {len(truth)} samples each to match ground_truth, got {[len(m) for m in maps]}"
        )
    if (value is None and any(rule.universal for rule in rules)) or (value is not None and not math.isfinite(value)):
        raise ValueError(f"value: expected the universal threshold of the rules, a finite number, got {value}")
    reason = None
    if not {rule.comparison for rule in rules} <= _COMPARISON_NAMES.keys():
        reason = f"expected comparisons among {list(_COMPARISON_NAMES)}, got {[rule.comparison for rule in rules]}"
    elif {up.arithmetic for up in upsampling} != {"exact"} or len({*upsampling[1:]}) > 1:
        reason = f"expected exact up-sampling, alike for all but the first map, got {upsampling}"
    elif {(m.dtype, m.shape) for m in maps} != {(np.dtype(np.float32), maps[0].shape)}:
        reason = f"expected float32 maps of one size, got {[(m.dtype.name, m.shape) for m in maps]}"
    if backend == "compiled" and reason:
        raise RuntimeError(f"backend='compiled': {reason}")
    if backend != "reference" and not reason and checks.has_kernels(backend, "cpu"):
        return _compiled(maps, truth, rules, value, upsampling)
    return counts_of_pixels([enlarge(m, truth.shape[1:]) for m, enlarge in zip(maps, upsampling)], truth, rules, value)


def counts_in_frames(
    count: Callable[[list[np.ndarray], np.ndarray, Sequence[Rule]], Counts],
    maps: Sequence[np.ndarray],
    ground_truth: np.ndarray,
    rules: Sequence[Rule],
    window: tuple[int, int, int, int] | None,
) -> Counts:
    """`count(maps, ground_truth, rules)`, of maps that show but a window of the ground truth (N, H, W): nothing is
    predicted outside of it, and rules predict as many pixels as of all H x W (`Rule.of_part`).

    window: left, top, right, bottom in pixels, ends excluded; None: all.
    """
    if window is None:
        return count([*maps], ground_truth, rules)
    left, top, right, bottom = window
    found = []
    for i, truth in enumerate(metrics.check_truth(ground_truth)):
        objects, part = int(np.count_nonzero(truth)), truth[None, top:bottom, left:right]
        own = [rule.of_part(part.size, truth.size, objects) for rule in rules]
        one = count([m[i : i + 1] for m in maps], part, own)
        found.append(one._replace(weight=truth.sum(dtype=np.float64)[None], objects=np.array([objects])))
    *columns, shared = zip(*found)
    return Counts(*map(np.concatenate, columns), shared=None if shared[0] is None else np.concatenate(shared))
