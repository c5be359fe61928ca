"""The embedded data set: procedural audio-visual scenes, generated on first use, cached, never downloaded.

    from ssl_fast.data import scenes
    train = scenes.load("train")                      # 4,000 images, one sound each
    duo = scenes.load("duo")                          # 300 images of two objects, both sounds: the interactive set
    small = scenes.load("train", scenes.Settings(train=64, size=64))
    one = scenes.scene(scenes.Settings(), "duo", 7)   # image, masks, boxes, categories, waveforms

Splits: `train` (one to three objects; the sound of one of them), `val` (half of one, half of two objects; for
choosing thresholds), the tests `single`, `duo` and `trio` (one, two, three objects), and `sequence`, two objects whose
sounds follow each other in longer clips. Every split but train has
one sample per visible object, so the samples of one image share its image id. Categories, variety and determinism:
see generator.py; files and cache: see store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..datasets import SampleSet
from ..io.front_ends import FRONT_ENDS, FrontEnd
from .generator import CATEGORIES, SPLITS, VERSION, Scene, Settings, clip_samples, scene, stretches
from .sounds import SAMPLE_RATE
from .store import Arrays, CacheError, default_cache, load_arrays, split_folder

__all__ = [
    "CATEGORIES",
    "SPLITS",
    "VERSION",
    "CacheError",
    "Scene",
    "Scenes",
    "Settings",
    "default_cache",
    "load",
    "scene",
    "split_folder",
]

_SPECTROGRAM_BATCH = 256  # clips at a time: bounds the memory of the transform


def load(
    split: str,
    settings: Settings = Settings(),
    *,
    cache: str | Path | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Scenes:
    """A split as a sample set in memory; generated where the cache does not have it.

    split: "train", "val", "single", "duo", "trio" or "sequence". cache: folder of the cache, default $SSL_FAST_CACHE or
    ~/.cache/ssl_fast. progress: show a bar while generating. workers: processes that generate; 0: this process; None:
    one per available core, at most 8, none for a small split.

    Raises ValueError for an unknown or empty split, CacheError (names the file, and the folder to delete) for a cache
    that is damaged or cannot be created, RuntimeError where a worker fails.
    """
    return Scenes(split, settings, load_arrays(split, settings, cache=cache, progress=progress, workers=workers))


class Scenes(SampleSet):
    """A split of scenes in memory: images as uint8, spectrograms computed once.

    Sample i is the sound of one visible object with the image that shows it; see SampleSet for what a sample set
    offers. Further: `split`, `settings`, `boxes` (len, 4) int32: left, top, right, bottom (exclusive) in pixels of
    each sample's sounding object, `spectrograms` (len, 1, F, T) float32, `heard` (len, 2) float64: seconds from and
    until which the object sounds, of `sequence` a part of the clip. What is heard of an image of `sequence` is the sum
    of the waveforms of its samples.
    """

    def __init__(self, split: str, settings: Settings, arrays: Arrays):
        self.split, self.settings = split, settings
        samples = clip_samples(settings, split)
        self.front_end: FrontEnd = replace(FRONT_ENDS["scenes"], seconds=samples / SAMPLE_RATE)
        if self.front_end.sample_rate != SAMPLE_RATE:
            raise ValueError(f"front end: expected {SAMPLE_RATE} Hz, got {self.front_end.sample_rate}")
        image, category = arrays.objects.T
        shown: list[set[str]] = [set() for _ in arrays.images]
        for i, c in zip(image, category):
            shown[i].add(CATEGORIES[c])
        self._image = image[arrays.sounds]  # of each sample
        self._images = torch.from_numpy(np.ascontiguousarray(arrays.images.transpose(0, 3, 1, 2)))
        self._masks = arrays.masks[arrays.sounds]
        self._waveforms = arrays.waveforms
        self.boxes = arrays.boxes[arrays.sounds]
        self.categories = [CATEGORIES[category[k]] for k in arrays.sounds]
        self.visible = [frozenset(shown[i]) for i in self._image]
        self.image_ids = [f"{split}-{i:05d}" for i in self._image]
        self.ids = [f"{image_id}-{name}" for image_id, name in zip(self.image_ids, self.categories)]
        self.heard = np.tile(np.array([0, samples]) / SAMPLE_RATE, (len(self.ids), 1))
        if split == "sequence":  # its objects all sound, and lie in the order of painting
            times = [stretches(settings, index) for index in range(len(arrays.images))]
            self.heard = np.concatenate(times) / SAMPLE_RATE
        self.has_ground_truth = True
        self.spectrograms = self._transform()

    def _transform(self) -> Tensor:
        waves = torch.from_numpy(self._waveforms)
        with torch.no_grad():
            batches = [self.front_end.spectrogram(part.float() / 32768) for part in waves.split(_SPECTROGRAM_BATCH)]
        return torch.cat(batches)[:, None]

    def __getitem__(self, index: int) -> dict:
        """dict(image (3, H, W) uint8, spectrogram (1, F, T) float32, index); views of the set's memory, not to be
        written to.
        """
        index = self._checked(index)
        return {"image": self._images[self._image[index]], "spectrogram": self.spectrograms[index], "index": index}

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        return [self[index] for index in indices]

    def ground_truth(self, index: int) -> np.ndarray:
        """(H, W) float32: 1 within the box of the sounding object, else 0."""
        left, top, right, bottom = self.boxes[self._checked(index)]
        truth = np.zeros(self._images.shape[2:], np.float32)
        truth[top:bottom, left:right] = 1
        return truth

    def mask(self, index: int) -> np.ndarray:
        """(H, W) bool: what is visible of the sounding object."""
        height, width = self._images.shape[2:]
        bits = np.unpackbits(self._masks[self._checked(index)], count=height * width)
        return bits.reshape(height, width).astype(bool)

    def waveform(self, index: int) -> np.ndarray:
        """(samples,) float32 in [-1, 1], 16 kHz."""
        return self._waveforms[self._checked(index)].astype(np.float32) / 32768
