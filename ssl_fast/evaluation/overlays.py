"""Samples to look at: the same image under its two sounds and under sounds of nothing in it, best, worst and random
ones.

They are chosen from the per-sample values of an evaluation, pairs and random samples by a seed, never by how they look.
"""

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import metrics
from .evaluate import NEGATIVES, Draw, by_seed
from .predictors import Localizer, inference, predictor_of
from .results import Results

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet


@dataclass(frozen=True)
class Tile:
    """One image under one sound. image: uint8 (H, W, 3); map (h, w). ground_truth (H, W), all 0 for a negative."""

    image: np.ndarray
    map: np.ndarray
    ground_truth: np.ndarray
    sound: str  # "positive" or the kind of negative
    category: str | None  # of what is heard, where known
    sample: str  # id
    image_id: str
    iou: float | None = None  # adaptive threshold
    waveform: np.ndarray | None = None  # float32 (samples,) in [-1, 1]
    sample_rate: int = 16000


@dataclass(frozen=True)
class Row:
    """Tiles that belong together; with `common_scale` their colours mean the same values."""

    tiles: tuple[Tile, ...]
    common_scale: bool = False


def collect(
    localizer: Localizer,
    sample_set: "SampleSet",
    results: Results,
    name: str,
    *,
    pairs: int = 4,
    negatives: int = 3,
    extremes: int = 4,
    random: int = 4,
    seed: int = 0,
    draw: Draw = by_seed,
) -> dict[str, list[Row]]:
    """{"two_sounds", "negatives", "best", "worst", "random": rows} of the set that `results` calls `name`.

    Row of "two_sounds": all sounds of one image (none where no image has two, as where one sound is that of all its
    sources, or of all frames of a video). Row of "negatives": a sample's own sound, then those kinds of negative that
    were evaluated, on a common scale; in both cases images are drawn by `seed`.
    """
    rng = np.random.default_rng(seed)
    columns = results.samples[name]
    kinds = [kind for kind in NEGATIVES if f"{kind}_max" in columns]
    groups: dict[str, list[int]] = {}
    for i, image in enumerate(sample_set.image_ids):
        groups.setdefault(image, []).append(i)
    groups = {image: members for image, members in groups.items() if len(members) > 1}
    shuffled = [list(groups)[i] for i in rng.permutation(len(groups))]
    order = np.argsort(columns["iou_adaptive"], kind="stable")
    chosen = {"best": order[::-1][:extremes], "worst": order[:extremes], "random": rng.permutation(len(order))[:random]}
    seed = results["protocol"]["negatives_seed"]
    sounds = {kind: kind if len(results["seeds"]) == 1 else f"{kind}/{seed}" for kind in kinds}
    tile = _Tiles(localizer, sample_set, columns, sounds, lambda kind: draw(sample_set, name, kind, seed))
    compared = [groups[image] for image in shuffled[:pairs]]
    out = {
        "two_sounds": [Row(tuple(map(tile, one))) for one in compared if _several_sounds(sample_set, one)],
        "negatives": [
            Row((tile(i), *(tile(i, kind) for kind in kinds)), common_scale=True)
            for i in rng.permutation(len(sample_set))[:negatives].tolist()
            if kinds
        ],
    }
    return out | {section: [Row((tile(i),)) for i in members.tolist()] for section, members in chosen.items()}


def _several_sounds(sample_set: "SampleSet", members: Sequence[int]) -> bool:
    first, *others = map(sample_set.waveform, members)
    return any(not np.array_equal(first, other) for other in others)


class _Tiles:
    """Makes tiles of a set; each kind of negative is drawn once."""

    def __init__(
        self,
        localizer: Localizer,
        sample_set: "SampleSet",
        columns: Mapping[str, Sequence],
        sounds: Mapping[str, str],
        draw,
    ):
        self.predict, self.localizer = predictor_of(localizer), localizer
        self.set, self.columns, self.sounds, self.draw, self.drawn = sample_set, columns, sounds, draw, {}

    def __call__(self, i: int, kind: str = "positive") -> Tile:
        sample, name = self.set[i], self.set.ids[i]
        image, truth = sample["image"], np.asarray(self.set.ground_truth(i), np.float32)
        if kind == "positive":
            spectrogram, waveform = sample["spectrogram"][None], self.set.waveform(i)
            category, iou = self.set.categories[i], self.columns["iou_adaptive"][i]
        else:
            if kind not in self.drawn:
                self.drawn[kind] = self.draw(kind)
            drawn, truth, iou = self.drawn[kind], np.zeros_like(truth), None
            spectrogram, waveform = drawn.spectrograms([i]), drawn[i]
            category = None if drawn.sources is None else self.set.categories[drawn.sources[i]]
        with inference(self.localizer):
            sound = self.sounds.get(kind, kind)
            maps = self.predict(image[None], {sound: spectrogram}, [name])[sound]
        return Tile(
            image.permute(1, 2, 0).numpy(),
            metrics.check_maps(maps, [name])[0],
            truth,
            kind,
            category,
            name,
            self.set.image_ids[i],
            iou,
            waveform,
            self.set.front_end.sample_rate,
        )
