"""Negative sounds: silence, noise, and what is not in the picture. A localizer should find nothing under them.

    from ssl_fast.data.negatives import negatives, negative_spectrograms
    offscreen = negatives(test, "offscreen", seed=0)
    offscreen[3], offscreen.sources[3]                  # waveform for sample 3, and the sample it was borrowed from
    spectrograms = negative_spectrograms(test, "noise") # (n, 1, F, T), through the set's own front end

Unlike the published programs (which skip the logarithm for most models, do not clip noise, and draw other negatives for
every model), negatives take the way of every other sound, and are decided by set and seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .datasets import SampleSet

KINDS = ("silence", "noise", "offscreen")
_BATCH = 256  # waveforms at a time: bounds the memory of the transform


class Negatives(Sequence):
    """One negative waveform for each sample of a set, made when asked for: (samples,) float32 in [-1, 1].

    silence: zeros. noise: N(0, 1) clipped to [-1, 1], of its own seed for each sample. offscreen: the sound of another
    sample of the set, drawn uniformly among those whose category is not visible in this sample's image.
    `sources`: for offscreen, the index of the sample that each sound is borrowed from, int64 (n,); else None.

    ValueError for an unknown kind; for offscreen also where a sample does not say what it shows or what it sounds like,
    and where nothing else is heard in the set; it names the sample.
    """

    def __init__(self, sample_set: SampleSet, kind: str, seed: int = 0):
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.set, self.kind, self.seed = sample_set, kind, seed
        self.sources = _draw(sample_set, seed) if kind == "offscreen" else None

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)} to {len(self) - 1}, got {index}")
        index = int(index) % len(self)
        if self.sources is not None:
            return self.set.waveform(int(self.sources[index]))
        samples = self.set.front_end.samples
        if self.kind == "silence":
            return np.zeros(samples, np.float32)
        return np.random.default_rng([self.seed, index]).standard_normal(samples, np.float32).clip(-1, 1)

    def spectrograms(self, indices: Sequence[int] | None = None) -> Tensor:
        """(len(indices), 1, F, T) float32 of the samples at `indices` (all unless given)."""
        indices = range(len(self)) if indices is None else [int(i) for i in indices]
        if self.kind == "silence":
            one = self._transform([0]) if len(self) else torch.zeros(1, 1, *self.set.front_end.shape)
            return one.expand(len(indices), -1, -1, -1)
        parts = [self._transform(indices[k : k + _BATCH]) for k in range(0, len(indices), _BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, 1, *self.set.front_end.shape)

    def _transform(self, indices: Sequence[int]) -> Tensor:
        with torch.no_grad():
            waveforms = torch.from_numpy(np.stack([self[i] for i in indices]))
            return self.set.front_end.spectrogram(waveforms)[:, None]


def negatives(sample_set: SampleSet, kind: str, seed: int = 0) -> Negatives:
    """The negative waveform of every sample of a set; kind: "silence" | "noise" | "offscreen"."""
    return Negatives(sample_set, kind, seed)


def negative_spectrograms(sample_set: SampleSet, kind: str, seed: int = 0) -> Tensor:
    """The negative spectrogram of every sample, (n, 1, F, T) float32, at once (a set too large for that: in parts by
    `negatives(...).spectrograms(indices)`)."""
    return negatives(sample_set, kind, seed).spectrograms()


def _draw(sample_set: SampleSet, seed: int) -> np.ndarray:
    """For every sample the index of one whose category is not visible, int64 (n,)."""
    for name, category, visible in zip(sample_set.ids, sample_set.categories, sample_set.visible):
        if category is None or not visible:
            unknown = "its category" if category is None else "what its image shows"
            raise ValueError(f"sample {name!r}: expected to know {unknown}, for off-screen sounds; it is not annotated")
    categories = np.array(sample_set.categories)
    candidates: dict[frozenset[str], np.ndarray] = {}  # images show few different sets of things
    sources = np.zeros(len(sample_set), np.int64)
    for i, visible in enumerate(sample_set.visible):
        if visible not in candidates:
            candidates[visible] = np.flatnonzero(~np.isin(categories, list(visible)))
        if not len(candidates[visible]):
            shown = ", ".join(sorted(visible))
            raise ValueError(f"sample {sample_set.ids[i]!r}: expected a sound of another category in the set, but all "
                             f"are of what it shows ({shown})")  # fmt: skip
        sources[i] = np.random.default_rng([seed, i]).choice(candidates[visible])
    return sources
