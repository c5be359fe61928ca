"""Training: one loop over any sample set, that stops and goes on without a trace, and keeps the best of its epochs.

Everything random in step k is drawn from (seed, k), and the order of the samples from (seed, epoch). So a run that was
killed and resumed from its checkpoint equals an uninterrupted one bit for bit, with the same number of threads and of
processes.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import signal
import threading
import time
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import distributed
from ..models import Localizer, storage
from ..progress import progress_bar
from ..reproducibility import derived_seed, fingerprint
from .learner import Learner
from .recipes import Recipe

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet
    from .views import Neighbors

HISTORY = "metrics.jsonl"
# Fraction of a time budget that passes before lateness counts: slow first steps must not change a run that is in time.
GRACE = 0.1
# The speed of a run is that of its first steps, without the very first, over so many steps and seconds at least.
PACE_AFTER, PACE_STEPS, PACE_SECONDS = 5, 20, 3.0


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after a complete step. `checkpoint` is the file that was written (None without `out`)."""

    def __init__(self, step: int, checkpoint: Path | None):
        super().__init__(f"stopped after step {step}")
        self.step, self.checkpoint = step, checkpoint


def progress_of(step: int, steps: int, seconds: float = 0.0, budget: float | None = None) -> float:
    """How much of a run is over, in [0, 1]: by steps, or by time where a budget of seconds leaves it behind.

    max(step / steps, (seconds - g) / (budget - g)) with g a tenth of the budget: a run that keeps the pace of its
    budget is driven by its steps alone, and so is the same every time; a slower one ends on time, all schedules over.
    """
    done = step / steps
    if budget is not None:
        grace = GRACE * budget
        done = max(done, (seconds - grace) / (budget - grace))
    return min(1.0, done)


def pace(steps: int, planned: int, seconds: float, speed: float, minutes: float, shortens: bool) -> str | None:
    """What to tell of a run that does not fit into `minutes`; None of one that does, or of one that is past them.

    seconds: of the `steps` so far. speed: steps a second. shortens: `minutes` end the run, and do not only say how long
    one takes as a rule.
    """
    whole = math.ceil((seconds + (planned - steps) / speed) / 60)
    fitting = steps + int((60 * minutes - seconds) * speed)
    if fitting >= planned or seconds >= 60 * minutes:
        return None
    then = f"--minutes {whole} would train it fully"
    if not shortens:
        about = "a minute" if whole == 1 else f"{whole} minutes"
        then = f"going on to the full length, about {about} (--minutes {minutes:g} would shorten it)"
    return f"at this speed {fitting:,} of {planned:,} steps fit into {minutes:g} minutes; {then}"


class StepSampler(torch.utils.data.Sampler):
    """Batches of keys (index, epoch) from step `first` on. Every epoch is a permutation drawn from (seed, epoch),
    without the last batch if that is incomplete.

    Of process `rank` of `processes`: its shares of the batch's `parts`, which it must cut into equal ones.
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


def _collate(samples: list[dict]) -> tuple[list[int], Tensor, Tensor]:
    images, sounds = (torch.stack([sample[key] for sample in samples]) for key in ("image", "sound"))
    return [sample["index"] for sample in samples], images, sounds


@dataclass
class Run:
    """What `train` gives back. history: one record a step. chance: see `Learner.chance`. precision: of the nets.
    unused: keys of the file of weights `init` that have no place in the image net. stages: seconds by part of a step,
    of all steps since it was last resumed; none on CUDA, which works on while the next part begins. notes: what the
    figures of the run do not say."""

    localizer: Localizer
    recipe: Recipe
    seed: int
    steps: int
    planned_steps: int
    seconds: float
    chance: float
    precision: str
    history: list[dict] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def shortened(self) -> bool:
        """Whether a time budget ended the run before its planned steps."""
        return self.steps < self.planned_steps

    @property
    def final_loss(self) -> float:
        """Mean loss of the last twentieth of the steps (at least one)."""
        last = self.history[-max(1, len(self.history) // 20) :]
        return sum(record["loss"] for record in last) / max(1, len(last))


def _identity(
    sample_set: "SampleSet",
    recipe: Recipe,
    seed: int,
    validation: "SampleSet | None",
    compile: bool,
    init: str | os.PathLike | None,
    neighbors: "tuple[Neighbors, Neighbors] | None",
    gather: bool,
    sync_batch_norm: bool,
) -> dict:
    """What a run is, and must be again when it is resumed. init: the hash of that file. neighbors: the hash of some."""
    weights = None if init is None else storage.digest(Path(init))[:16]
    drawn, generator = range(min(len(sample_set), 1000)), torch.Generator().manual_seed(0)
    near = None if neighbors is None else [one.draw(index, generator) for one in neighbors for index in drawn]
    processes = distributed.place()[1]
    several = {"number": processes, "gather": gather, "sync_batch_norm": sync_batch_norm}
    return {
        "seed": seed,
        "recipe": recipe.to_dict(),
        "samples": len(sample_set),
        "data": fingerprint(sample_set),
        "validation": None if validation is None else fingerprint(validation),
        "compile": compile,
        "init": weights,
        "processes": None if processes == 1 else several,
        "neighbors": None if near is None else hashlib.sha256(str(near).encode()).hexdigest()[:16],
    }


def _validate(learner: Learner, sample_set: "SampleSet", workers: int) -> dict[str, float]:
    """What epochs are compared by: with ground truth the success rate (IoU >= .5 at the adaptive threshold of the
    default protocol), without the loss, where samples are their own neighbours. Each process validates its share."""
    from ..evaluation.evaluate import success_rate
    from .views import Themselves, Views

    learner.share_buffers()
    if sample_set.has_ground_truth:
        return {"validation_success": success_rate(learner.localizer, sample_set, workers=workers)}
    recipe, size = learner.recipe, learner.recipe.batch_size // learner.recipe.accumulation
    own = distributed.share(len(sample_set) // size)
    keys = [(index, 0) for index in range(own.start * size, own.stop * size)]
    themselves = (Themselves(), Themselves()) if "conceptual" in recipe.views else None
    loader = torch.utils.data.DataLoader(
        Views(sample_set, recipe, learner.seed, themselves),
        size,
        sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator(),
    )
    losses = learner.validation_losses((batch[1:] for batch in loader), own.start)
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


def check_processes(recipe: Recipe, processes: int, device: str, gather: bool, sync_batch_norm: bool) -> None:
    """ValueError where the batch has no equal shares, and for options that need several processes or CUDA."""
    for name, wanted in (("gather", gather), ("sync_batch_norm", sync_batch_norm)):
        if wanted and processes == 1:
            raise ValueError(f"{name}: expected several processes, as torchrun --nproc-per-node starts them, got one")
    if sync_batch_norm and torch.device(device).type != "cuda":
        raise ValueError(f"sync_batch_norm: expected a CUDA device, where torch.nn.SyncBatchNorm works, got {device}")
    least = processes * (1 if gather else 2)
    part = recipe.batch_size // recipe.accumulation
    if part % processes or part < least:
        parts = f" in {recipe.accumulation} parts" if recipe.accumulation > 1 else ""
        raise ValueError(
            f"batch_size: expected equal shares of {least // processes} or more for {processes} "
            f"processes, got {recipe.batch_size}{parts}"
        )


@contextlib.contextmanager
def _signals():
    """Inside, the first SIGINT or SIGTERM only sets a flag, the second acts as ever. Yields a function that reads it.

    Outside the main thread, where signals cannot be handled, the flag is never set.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore():
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number, frame):
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        restore()


class _History:
    """metrics.jsonl: one JSON record a step. Starts as the records of the checkpoint, then grows line by line.

    With `board`, the same numbers go to TensorBoard, where that is installed.
    """

    def __init__(self, path: Path | None, records: list[dict], board: bool):
        self.file = self.board = None
        if path is not None and board and importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(path.parent / "tensorboard", purge_step=len(records))
        if path is not None:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
            os.replace(temporary, path)
            self.file = open(path, "a", buffering=1)  # noqa: SIM115, `close` closes it

    def add(self, record: dict) -> None:
        if self.file:
            self.file.write(json.dumps(record) + "\n")
        if self.board:
            for name in record.keys() - {"step", "seconds"}:
                self.board.add_scalar(name, record[name], record["step"])

    def close(self) -> None:
        for one in filter(None, (self.file, self.board)):
            one.close()


def resume_state(out: str | os.PathLike, expected: dict) -> dict | None:
    """The checkpoint in `out` (or the one before it, with a warning); None where there is none yet.

    ValueError where it belongs to a run of another identity than `expected`.
    """
    path = Path(out) / storage.LAST
    if not path.exists() and not storage.previous(path).exists():
        return None
    state = storage.load(path, fall_back=True)
    for name, value in expected.items():
        if name == "recipe":  # compare as JSON does, where a tuple is a list
            changed = sorted(k for k in value if json.dumps(value[k]) != json.dumps(state[name].get(k)))
            if changed:
                got = ", ".join(f"{k}={state[name].get(k)!r}" for k in changed)
                asked = ", ".join(f"{k}={value[k]!r}" for k in changed)
                raise ValueError(f"{path}: belongs to a run with {got}, asked to go on with {asked}")
        elif state.get(name) != value:
            raise ValueError(
                f"{path}: belongs to a run with {name}={state.get(name)!r}, asked to go on with {name}={value!r}"
            )
    return state


def train(
    sample_set: "SampleSet",
    recipe: Recipe,
    *,
    seed: int = 0,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    minutes: float | None = None,
    usual_minutes: float | None = None,
    workers: int = 0,
    device: str = "cpu",
    checkpoint_every: float = 20.0,
    progress: bool = True,
    on_step=None,
    validation: "SampleSet | None" = None,
    compile: bool = False,
    board: bool = False,
    init: str | os.PathLike | None = None,
    neighbors: "tuple[Neighbors, Neighbors] | None" = None,
    gather: bool = False,
    sync_batch_norm: bool = False,
) -> Run:
    """Train a localizer from scratch by `recipe`.

    out: folder for `checkpoint.pt` and `metrics.jsonl`; None writes nothing. resume: go on from the checkpoint there
        (from the start where there is none yet). minutes: budget of training time, all parts of a resumed run together;
        a run that does not fit is shortened, schedules and all. usual_minutes: without `minutes`, what the whole run
        should take. A run whose first steps are too slow for either says so in a line on stdout. workers: processes
        that load samples.
    checkpoint_every: seconds of training between checkpoints; one more is written at the end and on Ctrl-C.
    on_step: called with (Learner, record) after every step, before any checkpoint of it.
    validation: samples, none of them trained on, that each epoch is tried on: by the success rate where they have
        ground truth, else by the loss. The best epoch is kept as `best.pt`.
    compile: the nets go through torch.compile. board: with `out`, curves for TensorBoard too, where it is installed.
    init: torchvision's file of an ImageNet ResNet-18, which the image net starts from. neighbors: of images and of
        sounds, for conceptual views, see data.views.Neighbors.
    In a torch.distributed process group all its processes call this, and each takes an equal share of every batch; the
        first alone writes files. gather: negatives are the samples of the whole batch, else of the share.
        sync_batch_norm: batch norm over the whole batch, CUDA only.
    Raises Interrupted on SIGINT or SIGTERM, TrainingError, CheckpointError, ValueError for a checkpoint of another run.
    torch's global generator is left as it was found.
    """
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.device(device).type == "cuda" else []):
        return _train(
            sample_set,
            recipe,
            seed,
            None if out is None else Path(out),
            resume,
            minutes,
            usual_minutes,
            workers,
            device,
            checkpoint_every,
            progress,
            on_step,
            validation,
            compile,
            board,
            init,
            neighbors,
            gather,
            sync_batch_norm,
        )


def _train(
    sample_set,
    recipe,
    seed,
    out,
    resume,
    minutes,
    usual_minutes,
    workers,
    device,
    checkpoint_every,
    progress,
    on_step,
    validation,
    compile,
    board,
    init,
    neighbors,
    gather,
    sync_batch_norm,
) -> Run:
    from .views import Views

    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes: expected > 0, got {minutes}")
    planned, budget = recipe.steps(len(sample_set)), None if minutes is None else 60 * minutes
    per_epoch = len(sample_set) // recipe.batch_size
    views = Views(sample_set, recipe, seed, neighbors)
    if validation is not None:
        check_validation(sample_set, validation, recipe)
    rank, processes = distributed.place()
    check_processes(recipe, processes, device, gather, sync_batch_norm)
    learner = Learner(
        recipe,
        seed,
        device,
        compile,
        front_end=sample_set.front_end,
        init=init,
        gather=gather,
        sync_batch_norm=sync_batch_norm,
    )
    run = Run(
        learner.localizer,
        recipe,
        seed,
        steps=0,
        planned_steps=planned,
        seconds=0.0,
        chance=learner.chance(),
        precision=str(learner.precision).removeprefix("torch."),
        unused=learner.unused,
    )
    identity = _identity(sample_set, recipe, seed, validation, compile, init, neighbors, gather, sync_batch_norm)
    state = resume_state(out, identity) if resume and out is not None else None
    if state is not None:
        learner.load(state)
        run.steps, run.seconds, run.history = state["step"], state["seconds"], state["history"]
        if state.get("ended") and progress_of(run.steps, planned, run.seconds, budget) < 1:
            run.notes.append(
                f"--minutes had ended this run and its schedules after {run.steps:,} of {planned:,} steps; "
                "they went on from there with another budget, which is not a run of full length"
            )
    if distributed.total(run.steps, learner.device) != processes * run.steps:  # folders of several machines
        raise ValueError(f"{out}: expected the checkpoint that the other processes have, got one of step {run.steps}")
    out = out if rank == 0 else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)

    def checkpoint(name: str = storage.LAST, ended: bool = False) -> Path | None:
        if out is None:
            return None
        about = {
            "step": run.steps,
            "planned_steps": planned,
            "ended": ended,
            "seconds": run.seconds,
            "history": run.history,
            "threads": torch.get_num_threads(),
        }
        storage.save(identity | about | learner.state(), out / name)
        return out / name

    history = _History(None if out is None else out / HISTORY, run.history, board)
    sampler = StepSampler(
        len(sample_set),
        recipe.batch_size,
        planned,
        seed,
        run.steps,
        parts=recipe.accumulation,
        rank=rank,
        processes=processes,
    )
    loader = torch.utils.data.DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(0),
        pin_memory=learner.device.type == "cuda",
    )
    bar = progress_bar(
        total=planned, initial=run.steps, unit="step", desc=recipe.method, disable=not progress or rank > 0
    )
    smooth, began, saved = None, time.monotonic() - run.seconds, run.seconds
    first, start = run.steps + PACE_AFTER, None  # of the steps whose speed is measured
    told = (minutes or usual_minutes) is None or rank > 0
    try:
        with _signals() as stopped, contextlib.closing(history), contextlib.closing(bar):
            for indices, images, sounds in learner.stages.waiting("data", loader):
                done = progress_of(run.steps, planned, run.seconds, budget)
                if done >= 1:
                    bar.total = run.steps
                    break
                record = {"step": run.steps, "epoch": run.steps / per_epoch}
                record |= learner.step(run.steps, images, sounds, done, [sample_set.ids[i] for i in indices])
                run.steps += 1  # all go by the clock of the first, and stop together
                run.seconds = distributed.total(time.monotonic() - began if rank == 0 else 0.0, learner.device)
                record["seconds"] = round(run.seconds, 3)
                run.history.append(record)
                if run.steps == first:
                    start = run.seconds
                elif not told and run.steps >= first + PACE_STEPS and run.seconds >= start + PACE_SECONDS:
                    told, speed = True, (run.steps - first) / (run.seconds - start)
                    note = pace(run.steps, planned, run.seconds, speed, minutes or usual_minutes, minutes is not None)
                    if note:
                        bar.clear()
                        print(note, flush=True)
                if validation is not None and run.steps % per_epoch == 0:
                    record |= _validate(learner, validation, workers)
                    began = time.monotonic() - run.seconds  # validation is no training
                    if best_record(run.history) is record:
                        checkpoint(storage.BEST)
                history.add(record)
                smooth = record["loss"] if smooth is None else 0.95 * smooth + 0.05 * record["loss"]
                bar.set_postfix_str(f"loss {smooth:.3f} (chance {run.chance:.2f})", refresh=False)
                bar.update()
                if on_step is not None:
                    on_step(learner, record)
                if distributed.total(stopped(), learner.device):
                    raise Interrupted(run.steps, checkpoint())
                if run.seconds - saved >= checkpoint_every:
                    checkpoint()
                    saved = run.seconds
                    began = time.monotonic() - run.seconds  # writing is no training
            if stopped():  # after the last step
                raise Interrupted(run.steps, checkpoint())
    finally:
        learner.localizer.eval()
        if learner.device.type == "cpu":
            run.stages = learner.stages.seconds
    checkpoint(ended=True)
    return run
