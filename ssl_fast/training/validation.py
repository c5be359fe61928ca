"""Validation of epochs, and the choice of the best one."""

import typing

import torch

from .. import distributed
from ..evaluation.evaluate import success_rate
from .learner import Learner
from .recipes import Recipe
from .sampler import collate
from .views import Themselves, Views

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet


def validate(learner: Learner, sample_set: "SampleSet", workers: int) -> dict[str, float]:
    """The figure that epochs are compared by: with ground truth the success rate (IoU >= .5 at the adaptive threshold
    of the default protocol), without the loss, where samples are their own neighbours. Each process validates a shard.
    """
    learner.broadcast_buffers()
    if sample_set.has_ground_truth:
        return {"validation_success": success_rate(learner.localizer, sample_set, workers=workers)}
    recipe, size = learner.recipe, learner.recipe.batch_size // learner.recipe.accumulation
    own = distributed.shard(len(sample_set) // size)
    keys = [(index, 0) for index in range(own.start * size, own.stop * size)]
    themselves = (Themselves(), Themselves()) if recipe.neighbors else None
    loader = torch.utils.data.DataLoader(
        Views(sample_set, recipe, learner.seed, themselves),
        size,
        sampler=keys,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator(),
    )
    losses = learner.validation_losses((batch[1:3] for batch in loader), own.start)
    losses = distributed.collect(losses, len(sample_set) // size)
    return {"validation_loss": sum(losses) / len(losses)}


def best_record(history: list[dict]) -> dict | None:
    """The record of the best validation so far, the first of equals; None without any."""

    def merit(record: dict) -> float:
        return record["validation_success"] if "validation_success" in record else -record["validation_loss"]

    validated = [record for record in history if record.keys() & {"validation_success", "validation_loss"}]
    return max(validated, key=merit, default=None)


def check_validation(sample_set: "SampleSet", validation: "SampleSet", recipe: Recipe) -> None:
    """ValueError for samples that are trained on too, and for too few of them."""
    both = sorted(set(sample_set.ids) & set(validation.ids))
    if both:
        raise ValueError(
            f"validation: expected samples that are not trained on, {len(both)} of {len(validation)} are: "
            f"{', '.join(both[:3])} ..."
        )
    least = 1 if validation.has_ground_truth else recipe.batch_size // recipe.accumulation
    if len(validation) < least:
        raise ValueError(f"validation: expected {least} samples or more, got {len(validation)}")
