"""Batches of a run: the order of its samples from (seed, epoch), and how samples become a batch."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..reproducibility import derived_seed


class StepSampler(torch.utils.data.Sampler):
    """Batches of keys (index, epoch) from step `first` on. Every epoch is a permutation drawn from (seed, epoch),
    without the last batch if that is incomplete.

    rank, processes: the batches hold the shard of this process, an equal one of each of the batch's `parts`.
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
    ):
        self.samples, self.batch_size, self.steps, self.seed, self.first = samples, batch_size, steps, seed, first
        self.parts, self.rank, self.processes = parts, rank, processes

    def __len__(self) -> int:
        return max(0, self.steps - self.first)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.samples // self.batch_size
        order = None
        for step in range(self.first, self.steps):
            epoch, k = divmod(step, per_epoch)
            if k == 0 or order is None:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, 1, epoch))
                order = torch.randperm(self.samples, generator=generator)
            batch = order[k * self.batch_size : (k + 1) * self.batch_size].view(self.parts, self.processes, -1)
            yield [(index, epoch) for index in batch[:, self.rank].flatten().tolist()]


def collate(samples: list[dict]) -> tuple[list[int], Tensor, Tensor]:
    """Batch of B items of `views.Views`: indices of the samples, images (B, V, 3, S, S), sounds (B, V, ...)."""
    images, sounds = (torch.stack([sample[key] for sample in samples]) for key in ("image", "sound"))
    return [sample["index"] for sample in samples], images, sounds
