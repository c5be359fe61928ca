"""Negative sounds: silence, noise, and off-screen sounds. A localizer should find nothing under them.

    from ssl_fast.data.negatives import negatives, negative_spectrograms
    offscreen = negatives(test, "offscreen", seed=0)
    offscreen[3], offscreen.sources[3]                  # waveform for sample 3, and the sample it was borrowed from
    spectrograms = negative_spectrograms(test, "noise") # (n, 1, F, T), through the set's own front end

    from ssl_fast.data.categories import broad_categories
    negatives(test, "offscreen", seed=1234, broad=broad_categories("vgg-ss"), path="offscreen-1234.json")

Unlike the published programs (which skip the logarithm for most models, do not clip noise, and draw other negatives for
every model), negatives go through the front end as every other sound, and set and seed alone decide them. A file stores
the draws, so that other evaluations use the same: {"kind", "seed", "draws": {ID: {"file", "offset"}}}, in the order of
the set; "file" is the id of the sample whose sound it is (null for silence and noise), "offset" where in it the front
end begins to look for its part, in seconds (always 0).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import replace_file
from .datasets import SampleSet
from .io.front_ends import FrontEnd
from .sample_lists import DataError, read_json, short

KINDS = ("silence", "noise", "offscreen")
SEEDS = (1234, 2345, 3456, 4567, 5678, 6789, 7890, 8901, 9012, 9999)  # of vssl_eval, whose figures pool all ten
_BATCH = 256  # waveforms at a time: bounds the memory of the transform


def silence(front_end: FrontEnd) -> np.ndarray:
    """Digital silence: zeros (front_end.samples,) float32."""
    return np.zeros(front_end.samples, np.float32)


def noise(front_end: FrontEnd, *seed: int) -> np.ndarray:
    """White noise: N(0, 1) clipped to [-1, 1], (front_end.samples,) float32, another one for each `seed`."""
    return np.random.default_rng(seed).standard_normal(front_end.samples, np.float32).clip(-1, 1)


class Negatives(Sequence):
    """One negative waveform for each sample of a set, made when asked for: (samples,) float32 in [-1, 1].

    silence: zeros. noise: N(0, 1) clipped to [-1, 1], of its own seed for each sample. offscreen: the sound of another
    sample of the set, drawn uniformly among those whose category is not visible in this sample's image.
    `sources`: for offscreen, the index of the sample that each sound is borrowed from, int64 (n,); else None.

    broad: {category: broad category}; off screen then means of another broad category than all that is visible, of
    which first one is drawn uniformly, then a sample of it (vssl_eval). path: a file that holds the draws: read where
    it exists, else written.

    ValueError for an unknown kind; for offscreen also where a sample does not say what it shows or what it sounds like,
    where `broad` does not know it, and where nothing else is heard in the set; it names the sample. DataError for a
    file that is of another kind, seed or set, or holds sounds that are not off screen.
    """

    def __init__(
        self,
        sample_set: SampleSet,
        kind: str,
        seed: int = 0,
        *,
        broad: Mapping[str, str] | None = None,
        path: str | os.PathLike | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        self.set, self.kind, self.seed, self.sources = sample_set, kind, seed, None
        known = path is not None and Path(path).exists()
        files = _read(Path(path), self) if path is not None and known else None
        if kind == "offscreen":
            categories, visible = _groups(sample_set, broad)
            self.sources = _draw(sample_set, seed, categories, visible, broad is not None) if files is None else files
            wrong = [i for i, source in enumerate(self.sources) if categories[source] in visible[i]]
            if wrong:
                name, source = (sample_set.ids[i] for i in (wrong[0], self.sources[wrong[0]]))
                raise DataError(f"{path}: {len(wrong)} sounds are not off screen: for {name!r} that of {source!r}")
        if path is not None and not known:
            names = [None] * len(self) if self.sources is None else [sample_set.ids[i] for i in self.sources]
            draws = {name: {"file": file, "offset": 0.0} for name, file in zip(sample_set.ids, names)}
            record = {"kind": kind, "seed": seed, "draws": draws}
            replace_file(path, json.dumps(record, indent=0))

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> np.ndarray:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected -{len(self)} to {len(self) - 1}, got {index}")
        index = int(index) % len(self)
        if self.sources is not None:
            return self.set.own_waveform(int(self.sources[index]))
        if self.kind == "silence":
            return silence(self.set.front_end)
        return noise(self.set.front_end, self.seed, index)

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


def negatives(
    sample_set: SampleSet,
    kind: str,
    seed: int = 0,
    *,
    broad: Mapping[str, str] | None = None,
    path: str | os.PathLike | None = None,
) -> Negatives:
    """The negative waveform of every sample of a set; kind: "silence" | "noise" | "offscreen"; see Negatives."""
    return Negatives(sample_set, kind, seed, broad=broad, path=path)


def negative_spectrograms(sample_set: SampleSet, kind: str, seed: int = 0) -> Tensor:
    """The negative spectrogram of every sample, (n, 1, F, T) float32, at once (a set too large for that: in parts by
    `negatives(...).spectrograms(indices)`)."""
    return negatives(sample_set, kind, seed).spectrograms()


def _groups(sample_set: SampleSet, broad: Mapping[str, str] | None) -> tuple[list[str], list[frozenset[str]]]:
    """Category of the sound and visible categories of every sample, or their `broad` ones."""
    sounding: list[str] = []
    for name, category, visible in zip(sample_set.ids, sample_set.categories, sample_set.visible):
        if category is None or not visible:
            unknown = "its category" if category is None else "what its image shows"
            raise ValueError(f"sample {name!r}: expected to know {unknown}, for off-screen sounds; it is not annotated")
        strange = [] if broad is None else sorted((visible | {category}) - broad.keys())
        if strange:
            raise ValueError(f"sample {name!r}: expected categories that have a broad one, got {strange[0]!r}")
        sounding.append(category)
    if broad is None:
        return sounding, sample_set.visible
    return [broad[one] for one in sounding], [frozenset(broad[one] for one in shown) for shown in sample_set.visible]


def _draw(
    sample_set: SampleSet, seed: int, categories: Sequence[str], visible: Sequence[frozenset[str]], group_first: bool
) -> np.ndarray:
    """Index of an off-screen sound for every sample, int64 (n,): a sample whose category is not visible.

    Uniform among these samples or, `group_first`, among their categories, then among the samples of one."""
    groups = np.array(categories)
    candidates: dict[frozenset[str], list[np.ndarray]] = {}  # images show few different sets of things
    sources = np.zeros(len(sample_set), np.int64)
    for i, shown in enumerate(visible):
        if shown not in candidates:
            allowed = np.flatnonzero(~np.isin(groups, list(shown)))
            if not len(allowed):
                raise ValueError(
                    f"sample {sample_set.ids[i]!r}: expected a sound of another category in the set, but "
                    f"all are of what it shows ({', '.join(sorted(shown))})"
                )
            parts = [allowed[groups[allowed] == one] for one in np.unique(groups[allowed])]
            candidates[shown] = parts if group_first else [allowed]
        rng, parts = np.random.default_rng([seed, i]), candidates[shown]
        sources[i] = rng.choice(parts[rng.integers(len(parts))] if group_first else parts[0])
    return sources


def _read(path: Path, wanted: Negatives) -> np.ndarray | None:
    """The indices of the samples whose sounds a file of draws lends, int64 (n,); None for silence and noise."""
    record = read_json(path, "kind, seed and draws as JSON")
    try:
        draws = record["draws"]
        files = [(draw["file"], draw["offset"]) for draw in draws.values()]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: expected kind, seed and draws as JSON, got {error!r}") from error
    for name in ("kind", "seed"):
        if record.get(name) != getattr(wanted, name):
            raise DataError(f"{path}: {name}: expected {getattr(wanted, name)!r}, got {short(record.get(name))}")
    ids = wanted.set.ids
    if list(draws) != ids:
        first = next((a for a, b in zip(draws, ids) if a != b), "the end")
        raise DataError(
            f"{path}: expected draws for the {len(ids)} samples of the set in their order, "
            f"got {len(draws)} that differ from {first!r} on"
        )
    index = {name: i for i, name in enumerate(ids)} if wanted.kind == "offscreen" else {None: 0}
    for name, (file, offset) in zip(ids, files):
        if not isinstance(file, str | None) or file not in index or offset != 0:
            raise DataError(
                f"{path}: {name!r}: expected the sound of a sample of the set from 0 s on (null for "
                f"silence and noise), got {short(file)} from {short(offset)}"
            )
    return np.array([index[file] for file, _ in files], np.int64) if wanted.kind == "offscreen" else None
