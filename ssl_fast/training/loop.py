"""The training loop over any sample set, with checkpoints, bit-exact resume, and the best of its epochs.

Everything random in step k is drawn from (seed, k), and the order of the samples from (seed, epoch). So a run that was
killed and resumed from its checkpoint equals an uninterrupted one bit for bit, with the same number of threads and of
processes.
"""

import contextlib
import functools
import os
import signal
import threading
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .. import distributed
from ..models import Localizer, storage
from ..progress import progress_bar
from ..reproducibility import versions
from . import metrics_log
from .budget import PACE_AFTER, PACE_SECONDS, PACE_STEPS, pace, progress_of
from .callbacks import Callback
from .learner import Learner
from .negatives import NegativeSounds
from .recipes import Recipe
from .resume import resume_state, run_fingerprint
from .sampler import StepSampler, collate
from .validation import best_record, check_validation, validate
from .views import Neighbors, Views

if typing.TYPE_CHECKING:
    from ..data.datasets import SampleSet

F = typing.TypeVar("F", bound=Callable)


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after a complete step. `checkpoint` is the file that was written (None without `out`),
    `signal` the number of the signal, SIGINT where another process got it."""

    def __init__(self, step: int, checkpoint: Path | None, number: int):
        super().__init__(f"stopped after step {step}")
        self.step, self.checkpoint, self.signal = step, checkpoint, number or signal.SIGINT


@dataclass
class Run:
    """A training run, as `train` returns it.

    history: one record a step. chance: see `Learner.chance`. precision: of the nets. unused: keys of the files of
    weights `init` and `audio_init` that have no place in the nets. stages: seconds by part of a step, of all steps
    since the last resume; none on CUDA, where calls return before they are done. notes: what the figures of the run do
    not say.
    """

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
        """True where a time budget ended the run before its planned steps."""
        return self.steps < self.planned_steps

    @property
    def final_loss(self) -> float:
        """Mean loss of the last twentieth of the steps (at least one)."""
        last = self.history[-max(1, len(self.history) // 20) :]
        return sum(record["loss"] for record in last) / max(1, len(last))


def check_processes(recipe: Recipe, processes: int, device: str, gather: bool, sync_batch_norm: bool) -> None:
    """ValueError where the batch has no equal shards, and for options that need several processes or CUDA."""
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
    """Inside, the first SIGINT, SIGTERM or SIGHUP is only noted, the second acts as ever. Yields a function that gives
    the number of the one noted, else 0. A SIGHUP that nohup ignores stays ignored.

    Outside the main thread, where signals cannot be handled, none is noted.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def restore():
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def note(number, frame):
        received.append(number)
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()


def _ignore_signals(worker: int) -> None:
    """In a process that loads samples: Ctrl-C and the end of a terminal reach it too, while the step still needs it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _keep_global_generators(function: F) -> F:
    """Decorator: after a call torch's global generators, also that of the `device`, are as they were before it."""

    @functools.wraps(function)
    def wrapped(*args, device: str = "cpu", **options):
        devices = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            return function(*args, device=device, **options)

    return typing.cast(F, wrapped)


@_keep_global_generators
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
    callbacks: Sequence[Callback] = (),
    validation: "SampleSet | None" = None,
    compile: bool = False,
    init: str | os.PathLike | None = None,
    audio_init: str | os.PathLike | None = None,
    neighbors: tuple[Neighbors, Neighbors] | None = None,
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
    callbacks: what is called before, while and after it trains, as `trackers` of experiments.
    validation: samples, none of them trained on, that each epoch is tried on: by the success rate where they have
        ground truth, else by the loss. The best epoch is kept as `best.pt`.
    compile: the nets go through torch.compile.
    init, audio_init: files of weights that the image net and the audio net start from, as torchvision's of an ImageNet
        ResNet-18, see `models.checkpoints.load_backbone`. neighbors: of images and of sounds, for conceptual views, see
        training.views.Neighbors.
    In a torch.distributed process group all its processes call this, and each takes an equal shard of every batch; the
        first alone writes files. gather: negatives are the samples of the whole batch, else of the shard.
        sync_batch_norm: batch norm over the whole batch, CUDA only.
    Raises Interrupted on SIGINT, SIGTERM or SIGHUP, TrainingError, CheckpointError, ValueError for a checkpoint of
    another run and, on all processes, where one of them cannot train or is of another run. torch's global generator is
    left as it was found.
    """
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes: expected > 0, got {minutes}")
    folder = None if out is None else Path(out)
    planned, budget = recipe.steps(len(sample_set)), None if minutes is None else 60 * minutes
    per_epoch = len(sample_set) // recipe.batch_size
    rank, processes = distributed.rank_and_world_size()
    with distributed.together():
        views = Views(sample_set, recipe, seed, neighbors)
        if validation is not None:
            check_validation(sample_set, validation, recipe)
        check_processes(recipe, processes, device, gather, sync_batch_norm)
        negatives = NegativeSounds(sample_set, recipe, seed, gather=gather, rank=rank, processes=processes)
        fingerprint = run_fingerprint(
            sample_set, recipe, seed, validation, compile, (init, audio_init), neighbors, gather, sync_batch_norm
        )
        contents = [one and one.content() for one in (sample_set, validation)] if processes > 1 else []
    software = {name: version for name, version in versions().items() if name != "python"}
    options = {"minutes": minutes, "resume": resume, "device": torch.device(device).type}
    same = fingerprint | recipe.to_dict() | {"recipe": recipe.name, "content": contents} | software | options
    same.pop("files")  # long; `data` is of the ids that are used
    distributed.check_same(same)
    learner = Learner(
        recipe,
        seed,
        device,
        compile,
        front_end=sample_set.front_end,
        init=init,
        audio_init=audio_init,
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
    state = None
    with distributed.together():
        if resume and folder is not None:
            state = resume_state(folder, fingerprint | {"planned_steps": planned})
        if folder is not None and state is not None:
            try:
                learner.load(state)
            except ValueError as error:
                raise storage.CheckpointError(f"{folder / storage.LAST}: {error}") from error
    if state is not None:
        run.steps, run.seconds, run.history = state["step"], state["seconds"], state["history"]
        if state.get("ended") and progress_of(run.steps, planned, run.seconds, budget) < 1:
            run.notes.append(
                f"--minutes had ended this run and its schedules after {run.steps:,} of {planned:,} steps; "
                "they went on from there with another budget, which is not a run of full length"
            )
    if distributed.total(run.steps, learner.device) != processes * run.steps:  # folders of several machines
        raise ValueError(f"{out}: expected the checkpoint that the other processes have, got one of step {run.steps}")
    if rank > 0:
        folder = None  # the first process alone writes files
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with distributed.together():
        for callback in callbacks:
            callback.on_start(run)

    def checkpoint(name: str = storage.LAST, ended: bool = False) -> Path | None:
        if folder is None:
            return None
        about = {
            "step": run.steps,
            "planned_steps": planned,
            "ended": ended,
            "seconds": run.seconds,
            "history": run.history,
            "threads": torch.get_num_threads(),
        }
        storage.save(fingerprint | about | learner.state(), folder / name)
        return folder / name

    log = metrics_log.MetricsLog(None if folder is None else folder / metrics_log.FILE, run.history)
    sampler = StepSampler(
        len(sample_set),
        recipe.batch_size,
        planned,
        seed,
        run.steps,
        parts=recipe.accumulation,
        rank=rank,
        processes=processes,
        negatives=negatives,
    )
    loader = torch.utils.data.DataLoader(
        views,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
        pin_memory=learner.device.type == "cuda",
        worker_init_fn=_ignore_signals,
    )
    bar = progress_bar(
        total=planned, initial=run.steps, unit="step", desc=recipe.method, disable=not progress or rank > 0
    )
    smooth, began, saved = None, time.monotonic() - run.seconds, run.seconds
    pace_from, pace_began = run.steps + PACE_AFTER, 0.0  # step and second from which on the speed is measured
    wanted_minutes = None if rank > 0 else minutes or usual_minutes  # None: the speed is not, or no longer, of interest
    try:
        with _signals() as stopped, contextlib.closing(log), contextlib.closing(bar):
            for indices, images, sounds, negative in learner.stages.waiting("data", loader):
                done = progress_of(run.steps, planned, run.seconds, budget)
                if done >= 1:
                    bar.total = run.steps
                    break
                record = {"step": run.steps, "epoch": run.steps / per_epoch}
                ids = [sample_set.ids[i] for i in indices]
                record |= learner.step(run.steps, images, sounds, done, ids, negative)
                run.steps += 1  # all go by the clock of the first, and stop together
                run.seconds = distributed.total(time.monotonic() - began if rank == 0 else 0.0, learner.device)
                record["seconds"] = round(run.seconds, 3)
                run.history.append(record)
                if run.steps == pace_from:
                    pace_began = run.seconds
                elif (
                    wanted_minutes is not None
                    and run.steps >= pace_from + PACE_STEPS
                    and run.seconds >= pace_began + PACE_SECONDS
                ):
                    speed = (run.steps - pace_from) / (run.seconds - pace_began)
                    note = pace(run.steps, planned, run.seconds, speed, wanted_minutes, minutes is not None)
                    wanted_minutes = None
                    if note:
                        bar.clear()
                        print(note, flush=True)
                if validation is not None and run.steps % per_epoch == 0:
                    record |= validate(learner, validation, workers)
                    began = time.monotonic() - run.seconds  # validation is no training
                    if best_record(run.history) is record:
                        checkpoint(storage.BEST)
                log.add(record)
                smooth = record["loss"] if smooth is None else 0.95 * smooth + 0.05 * record["loss"]
                for callback in callbacks:
                    callback.on_step(learner, record)
                    if run.steps % per_epoch == 0:
                        callback.on_epoch(learner, record)
                    began = time.monotonic() - run.seconds  # callbacks are no training
                if distributed.total(stopped(), learner.device):
                    raise Interrupted(run.steps, checkpoint(), stopped())
                bar.set_postfix_str(f"loss {smooth:.3f} (chance {run.chance:.2f})", refresh=False)
                bar.update()
                if run.seconds - saved >= checkpoint_every:
                    checkpoint()
                    saved = run.seconds
                    began = time.monotonic() - run.seconds  # writing is no training
            if stopped():  # after the last step
                raise Interrupted(run.steps, checkpoint(), stopped())
    finally:
        learner.localizer.eval()
        if learner.device.type == "cpu":
            run.stages = learner.stages.seconds
    checkpoint(ended=True)
    for callback in callbacks:
        callback.on_end(run)
    return run
