"""Trackers of experiments, as callbacks: TensorBoard, wandb, trackio (`train --log NAME`).

    with trackers.opened(["tensorboard"], "runs/mine", run_id="3f2a", resume=False) as callbacks:
        train(..., out="runs/mine", callbacks=callbacks)

Each gets the recipe and the seed as hyperparameters, the records of metrics.jsonl by the number of their step, with
samples per second, and figures that are known at the end under "final/".
"""

import contextlib
import os
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..files import naming
from ..optional import optional_module
from . import metrics_log
from .callbacks import Callback

if typing.TYPE_CHECKING:
    from .learner import Learner
    from .loop import Run

PROJECT = "ssl_fast"  # of wandb, without WANDB_PROJECT, and of trackio


class Tracker(Callback):
    """What all trackers do; subclasses have `_open`, `_log`, `_figures` and `_close`.

    folder: of the run, as `train` has it. run_id: other than those of other runs, and of a resumed run the same.
    resume: as of `train`. Steps that metrics.jsonl has already are not logged again.
    A tracker that cannot begin is a ValueError. One that fails later is left out from then on with a warning: the files
    of the run have all that it would have got.
    """

    name: str

    def __init__(self, folder: str | os.PathLike, run_id: str, resume: bool = False):
        self.folder, self.run_id, self.resume = Path(folder), run_id, resume
        self.begun = self.failed = False

    def on_start(self, run: "Run") -> None:
        self.first = _steps(self.folder / metrics_log.FILE) if self.resume else 0
        self.batch_size, self.seconds = run.recipe.batch_size, run.seconds
        try:
            self._open(run.recipe.to_dict() | {"seed": run.seed})
        except Exception as error:  # of code of others: anything
            raise ValueError(f"{self.name}: {type(error).__name__}: {error}") from error
        self.begun = True

    def on_step(self, learner: "Learner", record: dict) -> None:
        seconds, self.seconds = record["seconds"] - self.seconds, record["seconds"]
        values = {key: value for key, value in record.items() if key != "step"}
        if seconds > 0:
            values["samples_per_second"] = self.batch_size / seconds
        if record["step"] >= self.first:
            self._guarded(self._log, values, record["step"])

    def figures(self, figures: Mapping[str, float], steps: int) -> None:
        """Figures of a run of so many steps, as an evaluation has found them."""
        self._guarded(self._figures, {f"final/{name}": value for name, value in figures.items()}, steps)

    def close(self, complete: bool) -> None:
        """End, with all that was logged delivered. complete: whether the run is."""
        if self.begun:
            self._guarded(self._close, complete)

    def _guarded(self, call: Callable, *args) -> None:
        if self.failed:
            return
        try:
            call(*args)
        except Exception as error:  # of code of others: anything
            self.failed = True
            text = f"{self.name}: {type(error).__name__}: {error}; going on without it, {metrics_log.FILE} has all"
            warnings.warn(text, stacklevel=2)

    def _open(self, config: dict) -> None:
        raise NotImplementedError

    def _log(self, values: dict, step: int) -> None:
        raise NotImplementedError

    def _figures(self, values: dict, steps: int) -> None:
        raise NotImplementedError

    def _close(self, complete: bool) -> None:
        raise NotImplementedError


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run."""

    name = "tensorboard"

    def _open(self, config: dict) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.writer = SummaryWriter(self.folder / self.name, flush_secs=10)
        for summary in hparams(_flat(config), {}):  # by add_hparams in a file of their own, which hides this one
            self.writer._get_file_writer().add_summary(summary)

    def _log(self, values: dict, step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def _figures(self, values: dict, steps: int) -> None:
        self._log(values, steps)

    def _close(self, complete: bool) -> None:
        self.writer.close()


class Wandb(Tracker):
    """A run of wandb, by its own settings: WANDB_MODE, WANDB_PROJECT and others. Its files are in the run's folder."""

    name = "wandb"

    def _open(self, config: dict) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        project = os.environ.get("WANDB_PROJECT") or PROJECT
        name = self.folder.resolve().name
        self.run = wandb.init(
            project=project, name=name, id=self.run_id, dir=self.folder, config=config, resume="allow"
        )

    def _log(self, values: dict, step: int) -> None:
        self.run.log(values, step=step)

    def _figures(self, values: dict, steps: int) -> None:
        self.run.summary.update(values)

    def _close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class Trackio(Tracker):
    """A run of trackio, where it keeps them: TRACKIO_DIR, TRACKIO_SPACE_ID and others."""

    name = "trackio"

    def _open(self, config: dict) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        name = f"{self.folder.resolve().name}-{self.run_id[:8]}"  # it knows runs by their names
        self.run = trackio.init(PROJECT, name=name, config=config, resume="allow", embed=False)

    def _log(self, values: dict, step: int) -> None:
        self.run.log(values, step=step)

    def _figures(self, values: dict, steps: int) -> None:
        self._log(values, steps)

    def _close(self, complete: bool) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        trackio.finish()  # by its own finish a run would be finished once more as Python ends


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (TensorBoard, Wandb, Trackio)}
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check(names: Sequence[str]) -> None:
    """ValueError, which names the package, for a tracker that cannot be imported."""
    for name in names:
        optional_module(_MODULES[name], f"{name}:", name)


@contextlib.contextmanager
def opened(
    names: Sequence[str], folder: str | os.PathLike, run_id: str, resume: bool = False
) -> Iterator[list[Tracker]]:
    """Inside, trackers of these names, to be given to `train`; see Tracker. They are closed at the end."""
    found = [TRACKERS[name](folder, run_id, resume) for name in names]
    complete = False
    try:
        yield found
        complete = True
    finally:
        for one in found:
            one.close(complete)


def _steps(file: Path) -> int:
    """Records in a metrics.jsonl, 0 where there is none; of a killed run the last may be a part of one."""
    if not file.exists():
        return 0
    with naming(file), open(file, "rb") as lines:
        return sum(line.endswith(b"\n") for line in lines)


def _flat(values: Mapping, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Nested dicts as one, by names with dots; lists and None as text."""
    out = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:
            out[prefix + key] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return out
