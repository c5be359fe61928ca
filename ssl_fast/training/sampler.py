"""Batches of a run: the order of its samples from (seed, epoch), and how samples become a batch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..reproducibility import derived_seed
from .negatives import Key, NegativeSounds


class StepSampler(torch.utils.data.Sampler):
    """Batches of keys (index, epoch) from step `first` on. Every epoch is a permutation drawn from (seed, epoch),
    without the last batch if that is incomplete.

    rank, processes: the batches hold the shard of this process, an equal one of each of the batch's `parts`.
    negatives: those of each step, whose keys follow.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        steps: int,
        seed: int,
        first: int = 0,
        *,
        parts: int = 1,
        rank: int = 0,
        processes: int = 1,
        negatives: NegativeSounds | None = None,
    ):
        self.samples, self.batch_size, self.steps, self.seed, self.first = samples, batch_size, steps, seed, first
        self.parts, self.rank, self.processes, self.negatives = parts, rank, processes, negatives

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int] | Key]]:
        per_epoch = self.samples // self.batch_size
        order = None
        for step in range(self.first, self.steps):
            epoch, k = divmod(step, per_epoch)
            if k == 0 or order is None:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, 1, epoch))
                order = torch.randperm(self.samples, generator=generator)
            whole = order[k * self.batch_size : (k + 1) * self.batch_size]
            own = whole.view(self.parts, self.processes, -1)[:, self.rank].flatten().tolist()
            further = [] if self.negatives is None else self.negatives.keys(step, whole.tolist())
            yield [*((index, epoch) for index in own), *further]


def collate(items: list[dict]) -> tuple[list[int], Tensor, Tensor, Tensor | None]:
    """Items of `views.Views`, B samples and K negative sounds: indices of the samples, images (B, V, 3, S, S), sounds
    (B, V, ...), and negative waveforms (K, n), None without any."""
    samples = [item for item in items if "negative" not in item]
    images, sounds = (torch.stack([sample[key] for sample in samples]) for key in ("image", "sound"))
    negatives = [item["negative"] for item in items if "negative" in item]
    stacked = torch.from_numpy(np.stack(negatives)) if negatives else None
    return [sample["index"] for sample in samples], images, sounds, stacked
