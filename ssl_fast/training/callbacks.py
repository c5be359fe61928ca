"""What `training.train` calls while it trains: subclass `Callback` for a tracker, or a rule, of your own."""

import typing

if typing.TYPE_CHECKING:
    from .learner import Learner
    from .loop import Run


class Callback:
    """Does nothing. Every process of a run calls its own; what a method raises ends the run.

    record: that of the step as metrics.jsonl has it: "step" (from 0), "epoch", "loss", "learning_rate", "seconds" of
    training so far, without those of callbacks, and in the last step of an epoch the figures of validation.
    """

    def on_start(self, run: "Run") -> None:
        """Before the first step. run.steps: those of the checkpoint that a resumed run goes on from, else 0."""

    def on_step(self, learner: "Learner", record: dict) -> None:
        """After every step, its validation and best.pt, before any checkpoint.pt with it."""

    def on_epoch(self, learner: "Learner", record: dict) -> None:
        """After the last step of an epoch, after its validation and its `on_step`."""

    def on_end(self, run: "Run") -> None:
        """After the last step and its checkpoint; not of a run that was stopped."""
