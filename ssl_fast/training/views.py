"""Views of each sample in a training step: of its image and its sound, or of its neighbours'.

    from ssl_fast.training.views import Views
    how = recipe("ssl_align", "published")
    views = Views(FolderSet("vggsound", **how.reading), how, seed=0, neighbors=(visual, audio))
    views[7, 3]                                      # of sample 7 in epoch 3: dict(image, sound, index)

Crops, flips, time shifts and neighbours are drawn here, each from (seed, epoch, index) alone: neither the process that
loads a sample nor what was loaded before it matters. Colours and masks are left to `ssl_fast.training.learner`, in
batches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Generator, Tensor

from ..data.datasets import SampleSet
from ..data.io.images import fit_frame
from ..reproducibility import derived_seed
from . import negatives
from .recipes import Recipe


class Neighbors(Protocol):
    """Nearest neighbours of every sample of a set, in one modality, such as `data.neighbors.Neighbors`."""

    def check(self, sample_set: SampleSet) -> None:
        """ValueError where they are not those of this set."""
        ...

    def draw(self, index: int, generator: Generator) -> int:
        """One neighbour of sample `index`."""
        ...

    def draw_from_queue(self, index: int, generator: Generator, size: int) -> int:
        """The nearest to sample `index` among `size` random samples, itself perhaps one of them."""
        ...


class Themselves:
    """Neighbours of samples for which none were searched: each is its own."""

    def check(self, sample_set: SampleSet) -> None:
        pass

    def draw(self, index: int, generator: Generator) -> int:
        return index

    def draw_from_queue(self, index: int, generator: Generator, size: int) -> int:
        return index


QUEUE = 4000  # of SSL-TIE's audmix


class Views(torch.utils.data.Dataset):
    """Samples of a set as a recipe's views show them.

    views[index, epoch] -> dict(image uint8 (V, 3, S, S), sound float32, index int) for V = len(recipe.views).
    With a policy for frames (`recipe.policy`), S is the recipe's image size, every image is resampled once from what
    `frame` of the set gives (or from the set's images, where it has no `frame`), and sounds are waveforms (V, n) of
    `clip`, if the set has that. Else images and sounds are the set's own, and sounds are spectrograms (V, 1, F, T).

    views[negatives.Key] -> dict(negative (n,) float32), the waveform of a negative sound.

    neighbors: of images and of sounds, for conceptual views; for mixed sounds (`recipe.audio_mix`) those of images do
    not matter. ValueError for views that need them without them, for them without such views or of another set, and for
    a time shift or mixed sounds of a set without `clip`.
    """

    def __init__(
        self, sample_set: SampleSet, recipe: Recipe, seed: int = 0, neighbors: tuple[Neighbors, Neighbors] | None = None
    ):
        if bool(recipe.neighbors) != (neighbors is not None):
            needed = {(): "none", ("audio",): "those of sounds"}.get(recipe.neighbors, "those of images and of sounds")
            views = f"{', '.join(recipe.views)}{', mixed sounds' if recipe.audio_mix != 'none' else ''}"
            raise ValueError(
                f"neighbors: expected {needed} with the views {views}, got {'some' if neighbors else 'none'}"
            )
        for option in ("time_shift", "audio_mix"):
            if getattr(recipe, option) not in (None, "none") and not hasattr(sample_set, "clip"):
                got = type(sample_set).__name__
                raise ValueError(f"{option}: expected a set that has the whole clips, got {got}")
        for one in neighbors or ():
            one.check(sample_set)
        self.sample_set, self.recipe, self.seed = sample_set, recipe, seed
        self.neighbors: tuple[Neighbors, ...] = neighbors or ()

    def __len__(self) -> int:
        return len(self.sample_set)

    def __getitem__(self, key: tuple[int, int] | negatives.Key) -> dict:
        if isinstance(key, negatives.Key):
            return {"negative": negatives.waveform(self.sample_set, key)}
        index, epoch = key
        if self.recipe.policy is None and not self.neighbors:
            # all views are the sample's own, and nothing is drawn
            sample, views = self.sample_set[index], len(self.recipe.views)
            image, sound = (torch.as_tensor(sample[key]) for key in ("image", "spectrogram"))
            return {
                "image": image.expand(views, *image.shape),
                "sound": sound.expand(views, *sound.shape),
                "index": index,
            }
        generator = Generator().manual_seed(derived_seed(self.seed, 5, epoch, index))
        policy, size = self.recipe.policy, self.recipe.image_size
        sample = functools.cache(self.sample_set.__getitem__)  # views of one sample read and decode it once
        whole = getattr(self.sample_set, "frame", lambda i: sample(i)["image"].permute(1, 2, 0).numpy())
        frame = functools.cache(whole)
        clip = functools.cache(cast(Callable[[int], Any], getattr(self.sample_set, "clip", lambda i: None)))

        def image_of(i: int, augmented: bool) -> Tensor:
            if policy is None:
                return torch.as_tensor(sample(i)["image"])
            if not augmented:
                return fit_frame(frame(i), size, self.recipe.fit, self.recipe.resampler)
            return policy.square(frame(i), size, generator)

        def sound_of(i: int, augmented: bool) -> Tensor:
            waveform = None if policy is None else clip(i)
            if waveform is None:
                return torch.as_tensor(sample(i)["spectrogram"])
            mixing = augmented and epoch > 0 and self.recipe.audio_mix != "none"
            if mixing and torch.rand((), generator=generator).item() < 0.1 + 0.01 * epoch:
                other = clip(self.neighbors[1].draw_from_queue(i, generator, QUEUE))[: len(waveform)]
                waveform = (1 - 0.01 * epoch) * waveform[: len(other)] + 0.01 * epoch * other
            shift = self._shift(generator) if augmented else 0
            return torch.from_numpy(self.sample_set.front_end.segment(waveform, shift))

        images, sounds = [], []
        for kind in self.recipe.views:
            pair = [one.draw(index, generator) for one in self.neighbors] if kind == "conceptual" else (index, index)
            images.append(image_of(pair[0], kind == "augmented"))
            sounds.append(sound_of(pair[1], kind == "augmented"))
        return {"image": torch.stack(images), "sound": torch.stack(sounds), "index": index}

    def _shift(self, generator: Generator) -> int:
        """Samples by which an augmented view hears later (below 0: earlier)."""
        if self.recipe.time_shift is None:
            return 0
        low, high = self.recipe.time_shift
        sign, size = torch.rand(2, generator=generator).tolist()
        seconds = low + size * (high - low)
        return round((seconds if sign < 0.5 else -seconds) * self.sample_set.front_end.sample_rate)
