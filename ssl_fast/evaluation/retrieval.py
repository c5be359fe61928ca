"""Retrieval between images and sounds: recall at k among all samples of a set."""

import typing
from collections.abc import Sequence

import numpy as np
import torch

from . import metrics
from .predictors import Localizer, audio_features, batches, inference, visual_features

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

RECALLS = (1, 5, 10)


def retrieval(
    localizer: Localizer,
    sample_set: "SampleSet",
    *,
    similarity: str = "auto",
    batch_size: int = 64,
    workers: int = 0,
    progress: bool = False,
) -> dict:
    """R@k both ways among all samples of a set, by the localizer's score of that name.

    -> {"n": N, "instance": {"a2i": {"r1": ...}, "i2a": ...}, "class": ...}. Instance: right is what has the query's
    image id. Class: the sound's category is among those visible in the image; left out where a sample has no category.
    Memory: the N x N scores and the sounds' features; images are streamed.
    """
    loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
    with inference(localizer):
        parts = [audio_features(localizer, sounds) for _, _, sounds in batches(sample_set, title="sounds", **loading)]
        audio = {key: torch.cat([torch.as_tensor(part[key]) for part in parts]) for key in parts[0]}
        rows = [
            localizer.retrieval(visual_features(localizer, images), audio, similarity=similarity)
            for _, images, _ in batches(sample_set, title="retrieval", **loading)
        ]
        scores = np.concatenate([metrics.array(row, "retrieval scores", 2) for row in rows])
    labels: dict[str, tuple[Sequence, Sequence]] = {"instance": (sample_set.image_ids, sample_set.image_ids)}
    if None not in sample_set.categories:
        shown = [frozenset(visible) | {own} for visible, own in zip(sample_set.visible, sample_set.categories)]
        labels["class"] = (shown, sample_set.categories)
    out: dict = {"n": len(sample_set)}
    for hit, (images, sounds) in labels.items():
        recalls = {
            "a2i": metrics.recall_at(scores.T, sounds, images, RECALLS),
            "i2a": metrics.recall_at(scores, images, sounds, RECALLS),
        }
        out[hit] = {way: {f"r{k}": rate for k, rate in recall.items()} for way, recall in recalls.items()}
    return out
