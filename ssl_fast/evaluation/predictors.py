"""Predictors: localizers, functions, folders of maps and baselines behind one call, and the batches they are given."""

import contextlib
import itertools
import os
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..progress import progress_bar
from . import metrics
from .baselines import Baseline


class Localizer(typing.Protocol):
    """Interface of the models that `evaluate` takes; images uint8 (B, 3, H, W), spectrograms (B, 1, F, T) of a
    `SampleSet`."""

    def normalize_images(self, images: Tensor) -> Tensor: ...
    def normalize_spectrograms(self, spectrograms: Tensor) -> Tensor: ...
    def visual_features(self, images: Tensor) -> dict[str, Tensor]: ...
    def audio_features(self, spectrograms: Tensor) -> dict[str, Tensor]: ...
    def maps(self, visual: dict[str, Tensor], audio: dict[str, Tensor]) -> Tensor: ...
    def retrieval(self, visual: dict[str, Tensor], audio: dict[str, Tensor], *, similarity: str) -> Tensor: ...


# images uint8 (B, 3, H, W), {"positive" or a kind of negative: spectrograms (B, 1, F, T)}, ids of the samples
# -> {the same keys: maps (B, h, w)}
Predictor = Callable[[Tensor, dict[str, Tensor], list[str]], dict[str, np.ndarray]]
# images uint8 (B, 3, H, W), spectrograms (B, 1, F, T) -> maps (B, h, w): a model that is no `Localizer`
MapFunction = Callable[[Tensor, Tensor], Tensor]


def _device(localizer) -> torch.device:
    if not isinstance(localizer, nn.Module):
        return torch.device("cpu")
    tensor = next(itertools.chain(localizer.parameters(), localizer.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def visual_features(localizer: Localizer, images: Tensor) -> dict[str, Tensor]:
    return localizer.visual_features(localizer.normalize_images(images.to(_device(localizer))))


def audio_features(localizer: Localizer, spectrograms: Tensor) -> dict[str, Tensor]:
    return localizer.audio_features(localizer.normalize_spectrograms(spectrograms.to(_device(localizer))))


def from_localizer(localizer: Localizer) -> Predictor:
    """Predictor of a localizer; visual features are computed once for all sounds of an image."""

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        visual = visual_features(localizer, images)
        return {
            kind: metrics.array(localizer.maps(visual, audio_features(localizer, sound)), "maps")
            for kind, sound in sounds.items()
        }

    return predict


def from_images(baseline: Baseline) -> Predictor:
    """Predictor of a baseline: one map of the image, whatever the sound."""

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        return dict.fromkeys(sounds, metrics.array(baseline(images), "maps"))

    return predict


def from_function(function: MapFunction) -> Predictor:
    """Predictor of a function."""

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        return {kind: metrics.array(function(images, sound), "maps") for kind, sound in sounds.items()}

    return predict


def from_folder(folder: str | os.PathLike) -> Predictor:
    """Maps computed elsewhere: FOLDER/ID.npy (h, w) under a sample's own sound, FOLDER/KIND/ID.npy under a negative, or
    FOLDER/KIND/SEED/ID.npy where there are several draws."""

    def load(path: Path) -> np.ndarray:
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: expected a map as .npy, got: {error}") from None
        if values.ndim != 2 or values.dtype.kind != "f":
            raise ValueError(f"{path}: expected floats (h, w), got {values.dtype} {values.shape}")
        return values

    def predict(images: Tensor, sounds: dict[str, Tensor], ids: list[str]) -> dict[str, np.ndarray]:
        out = {}
        for kind in sounds:
            maps = [load(Path(folder, *(() if kind == "positive" else (kind,)), f"{sample}.npy")) for sample in ids]
            for sample, one in zip(ids, maps):
                if one.shape != maps[0].shape:
                    raise ValueError(
                        f"{folder}: expected maps of one size, {maps[0].shape} as of {ids[0]!r}, "
                        f"got {one.shape} of {sample!r}"
                    )
            out[kind] = np.stack(maps)
        return out

    return predict


def predictor_of(model: Localizer | MapFunction | str | os.PathLike) -> Predictor:
    if isinstance(model, (str, os.PathLike)):
        return from_folder(model)
    if hasattr(model, "visual_features"):
        return from_localizer(typing.cast(Localizer, model))
    if callable(model):
        return from_function(model)
    raise TypeError(
        f"model: expected a localizer, a function of images and spectrograms, or a folder of maps, "
        f"got {type(model).__name__}"
    )


@contextlib.contextmanager
def inference(localizer):
    """Evaluation mode without gradients; each module's own training flag comes back afterwards."""
    modules = [(m, m.training) for m in localizer.modules()] if isinstance(localizer, nn.Module) else []
    try:
        for module, _ in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, training in modules:
            module.training = training


def _collate(samples: list[dict]) -> tuple[Tensor, Tensor, Tensor]:
    index, images, spectrograms = (
        torch.stack([torch.as_tensor(sample[key]) for sample in samples]) for key in ("index", "image", "spectrogram")
    )
    return index, images, spectrograms


def batches(
    sample_set: torch.utils.data.Dataset, batch_size: int, *, workers: int = 0, progress: bool = False, title: str = ""
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Batches of a `SampleSet` or a subset of one in order: indices (B,), images uint8 (B, 3, H, W), spectrograms
    (B, 1, F, T).

    Leaves torch's random state alone.
    """
    loader = torch.utils.data.DataLoader(
        sample_set, batch_size, num_workers=workers, collate_fn=_collate, generator=torch.Generator()
    )
    for index, images, spectrograms in progress_bar(
        loader, desc=title, unit="batch", leave=False, disable=not progress
    ):
        yield index.numpy(), images, spectrograms
