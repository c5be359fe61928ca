"""Negative sounds of training: in each step silence, noise and off-screen sounds that are nobody's positive.

    from ssl_fast.training import recipe, train
    train(samples, recipe("ez_vsl", negatives={"silence": 1, "noise": 4, "offscreen": 8}, negatives_weight=2.0))

Silence and noise are those of evaluation (`data.negatives`), and all go through the front end of the set. An off-screen
sound is that of a sample whose image is not in the batch. Its category may be visible there, as that of any other
negative: training knows no categories, and a batch shows most of them.
"""

from __future__ import annotations

import math
import typing
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ..data import negatives as sounds
from ..data.datasets import SampleSet
from ..reproducibility import derived_seed

if typing.TYPE_CHECKING:
    from .recipes import Recipe


class Key(typing.NamedTuple):
    """One negative sound, as a data loader asks for it."""

    kind: str
    seed: int  # of noise
    source: int  # of off-screen sounds, the index of the sample


def read(text: str) -> dict[str, int]:
    """Counts from KIND=COUNT,KIND=COUNT ..., where a kind alone is one: silence,noise=4,offscreen=8. ValueError for
    what is no such list."""
    counts: dict[str, int] = {}
    for part in text.split(","):
        kind, equals, count = (piece.strip() for piece in part.partition("="))
        if not kind or kind in counts or (equals and not count.isdecimal()):
            raise ValueError(
                f"negatives: expected some of {', '.join(sounds.KINDS)}, each once, as silence,noise=4, got {part!r}"
            )
        counts[kind] = int(count) if equals else 1
    return counts


def check(counts: Mapping[str, int], weight: float) -> None:
    """ValueError for another kind of sound than there is, for a count below 1, and for a weight that is not above 0."""
    if unknown := [kind for kind in counts if kind not in sounds.KINDS]:
        raise ValueError(f"negatives: expected some of {', '.join(sounds.KINDS)}, got {unknown[0]!r}")
    for kind, count in counts.items():
        if type(count) is not int or count < 1:
            raise ValueError(f"negatives: {kind}: expected a number of sounds >= 1, got {count!r}")
    if not 0 < weight < math.inf:
        raise ValueError(f"negatives_weight: expected a number > 0, got {weight!r}")


def check_images(recipe: Recipe, image_ids: Sequence[typing.Hashable]) -> None:
    """ValueError where some batch may leave too few samples of other images, for the off-screen sounds of a recipe."""
    shown = sum(count for _, count in Counter(image_ids).most_common(recipe.batch_size))
    wanted, left = recipe.negatives.get("offscreen", 0), len(image_ids) - shown
    if left < wanted:
        raise ValueError(
            f"negatives: expected {wanted} samples or more whose images are not in the batch, for off-screen sounds; "
            f"of {len(image_ids)} samples a batch of {recipe.batch_size} may leave {left}"
        )


class NegativeSounds:
    """The negative sounds of a recipe, of every step.

    Each batch that a loss sees has as many as the recipe says: each of its `accumulation` parts, and in several
    processes, unless `gather` joins their batches to one, that of each process. `keys` are those of process `rank`,
    which with `gather` has a shard of the joined batch's. They depend on the seed, the step and the samples of its
    batch alone, not on how many processes share them.

    ValueError as of `check_images`.
    """

    def __init__(
        self, sample_set: SampleSet, recipe: Recipe, seed: int, *, gather: bool, rank: int = 0, processes: int = 1
    ):
        self.sample_set, self.counts, self.seed = sample_set, recipe.negatives, seed
        self.parts, self.gather, self.rank, self.processes = recipe.accumulation, gather, rank, processes
        if "offscreen" in self.counts:
            check_images(recipe, sample_set.image_ids)
            self._image = np.unique(sample_set.image_ids, return_inverse=True)[1]

    def keys(self, step: int, batch: Sequence[int]) -> list[Key]:
        """Keys of the sounds of this process in a step whose batch, of all processes, has the samples `batch`; those of
        its first part, then those of the next ones, of each as many."""
        found: list[Key] = []
        for part in range(self.parts):
            every = self._of_one_loss(step, part if self.gather else part * self.processes + self.rank, batch)
            rank, processes = (self.rank, self.processes) if self.gather else (0, 1)
            first, end = (len(every) * k // processes for k in (rank, rank + 1))  # as distributed.shard
            found += every[first:end]
        return found

    def _of_one_loss(self, step: int, number: int, batch: Sequence[int]) -> list[Key]:
        counts = {kind: self.counts.get(kind, 0) for kind in sounds.KINDS}
        found = [Key("silence", 0, -1)] * counts["silence"]
        found += [Key("noise", derived_seed(self.seed, 6, step, number, k), -1) for k in range(counts["noise"])]
        if counts["offscreen"]:
            shown = np.zeros(self._image.max() + 1, bool)
            shown[self._image[list(batch)]] = True
            others = np.flatnonzero(~shown[self._image])
            generator = np.random.default_rng(derived_seed(self.seed, 7, step, number))
            drawn = generator.choice(others, counts["offscreen"], replace=False)
            found += [Key("offscreen", 0, int(i)) for i in drawn]
        return found


def waveform(sample_set: SampleSet, key: Key) -> np.ndarray:
    """The sound of a key, (front_end.samples,) float32 in [-1, 1]."""
    if key.kind == "silence":
        return sounds.silence(sample_set.front_end)
    if key.kind == "noise":
        return sounds.noise(sample_set.front_end, key.seed)
    return sample_set.waveform(key.source)
