"""Callbacks of the loop, and the trackers of --log: what they were told is read back from what they have written."""

import json
import struct
import types
import warnings
from pathlib import Path

import pytest

from ssl_fast.cli import main as cli
from ssl_fast.training import Callback, loop, trackers
from test_cli import fails
from test_training import Crash, crash_at, one_thread, run, tiny  # noqa: F401
from training_toys import Others, after_step, folder

TINY = "--batch-size 4 --epochs 2 --threads 1 --image-size 32 --method ez_vsl --quiet".split()


class Told(Callback):
    def __init__(self):
        self.calls = []

    def on_start(self, run):
        self.calls.append(("start", run.steps))

    def on_step(self, learner, record):
        self.calls.append(("step", record["step"]))

    def on_epoch(self, learner, record):
        self.calls.append(("epoch", record["step"], "validation_loss" in record))

    def on_end(self, run):
        self.calls.append(("end", run.steps))


def test_callbacks_hear_of_steps_epochs_and_resume(tmp_path):
    first, second = Told(), Told()
    options = {"out": tmp_path, "validation": Others(16), "checkpoint_every": 1e-9}
    with pytest.raises(Crash):
        run(tiny(epochs=2), callbacks=[first, crash_at(6)], **options)
    run(tiny(epochs=2), callbacks=[second], resume=True, **options)
    steps = [("step", k) for k in range(10)]
    assert first.calls == [("start", 0), *steps[:5], ("epoch", 4, True), *steps[5:7]]
    assert second.calls == [("start", 6), *steps[6:], ("epoch", 9, True), ("end", 10)]


def test_what_callbacks_take_is_no_training_time(monkeypatch):
    """So that a slow tracker does not shorten a run of --minutes."""
    clock = [0.0]
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def slow(learner, record):
        clock[0] += 100

    done = run(tiny(epochs=1), callbacks=[after_step(slow)], minutes=1)
    assert (done.steps, done.seconds, done.shortened) == (5, 0.0, False)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def scalars(out):
    """Of all event files: {tag: {step: values}}."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = {}
    for file in sorted((out / "tensorboard").iterdir()):
        events = accumulator.EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            for one in events.Scalars(tag):
                found.setdefault(tag, {}).setdefault(one.step, []).append(one.value)
    return found


def test_tensorboard_has_each_step_once_and_the_figures(tmp_path, monkeypatch):
    """Of a run that is killed between two checkpoints and resumed from the command line."""
    pytest.importorskip("tensorboard")
    media = folder(tmp_path / "media").root
    out, log = tmp_path / "run", trackers.TensorBoard._log

    def killed(self, values, step):
        log(self, values, step)
        if step == 3:
            raise KeyboardInterrupt  # without a checkpoint

    argv = ["train", "--out", str(out), "--data", str(media), "--log", "tensorboard", *TINY]
    monkeypatch.setattr(trackers.TensorBoard, "_log", killed)
    assert cli.main(argv) == 130 and not (out / "checkpoint.pt").exists() and len(records(out)) == 4
    monkeypatch.undo()
    assert cli.main(["train", "--out", str(out), "--data", str(media), "--resume", "--quiet"]) == 0
    found, expected = scalars(out), records(out)
    assert len(expected) == 6
    for name in ("loss", "learning_rate", "gradient_norm"):
        assert sorted(found[name]) == list(range(6)) and all(len(values) == 1 for values in found[name].values())
        assert [found[name][k][0] for k in range(6)] == pytest.approx([x[name] for x in expected], rel=1e-6)
    spent = expected[5]["seconds"] - expected[4]["seconds"]
    assert found["samples_per_second"][5][0] == pytest.approx(4 / spent, rel=1e-4)
    assert found["final/final_loss"][6][0] == pytest.approx(expected[-1]["loss"], rel=1e-6)


def test_tensorboard_has_the_recipe_and_the_figures_of_validation(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams import plugin_data_pb2

    with trackers.opened(["tensorboard"], tmp_path, "1") as callbacks:
        one = tiny("slavc", epochs=2)
        done = run(one, out=tmp_path, validation=Others(16), callbacks=callbacks, seed=3)
        callbacks[0].figures({"iiou": 0.25}, done.steps)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert told["seed"].number_value == 3 and told["learning_rate"].number_value == one.learning_rate
    assert told["model.width"].number_value == 4 and told["loss.negatives"].string_value == "both"
    figures = {x.step: x.value for x in events.Scalars("validation_loss")}
    assert figures == pytest.approx({k: done.history[k]["validation_loss"] for k in (4, 9)}, rel=1e-6)
    assert [(x.step, x.value) for x in events.Scalars("final/iiou")] == [(10, 0.25)]


def logged(content):
    """The records of a .wandb file, a log of LevelDB behind 7 bytes: blocks of 32 KiB with parts of records, before
    each its CRC (4 bytes), length (2) and type (whole, first, middle, last)."""
    at, record = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_offline_has_the_steps(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"MODE": "offline", "SILENT": "true", "PROJECT": "sounds"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    with trackers.opened(["wandb"], tmp_path, "abc123") as callbacks:
        done = run(tiny(epochs=1), out=tmp_path, callbacks=callbacks)
        callbacks[0].figures({"iiou": 0.25}, done.steps)
    assert wandb.run is None
    wandb.teardown()  # its service has then written all
    (file,) = tmp_path.glob("wandb/offline-run-*-abc123/run-abc123.wandb")
    steps, summary, about = {}, {}, None
    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            steps[record.history.step.num] = row
        for item in record.summary.update:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
        about = record.run if record.HasField("run") else about
    assert [steps[k]["loss"] for k in range(5)] == [record["loss"] for record in done.history] and len(steps) == 5
    assert (about.project, about.run_id, about.display_name) == ("sounds", "abc123", tmp_path.name)
    config = {item.key: json.loads(item.value_json) for item in about.config.update}
    assert config["batch_size"] == 8 and config["model"]["width"] == 4 and config["seed"] == 0
    assert summary["final/iiou"] == 0.25


def test_trackio_goes_on_with_its_run(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage

    for module in (trackio.utils, sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    out, options = tmp_path / "run", {"out": tmp_path / "run", "checkpoint_every": 1e-9}
    with pytest.raises(Crash), trackers.opened(["trackio"], out, "abcdefghij") as callbacks:
        run(tiny(epochs=1), callbacks=[*callbacks, crash_at(2)], **options)
    with trackers.opened(["trackio"], out, "abcdefghij", resume=True) as callbacks:
        done = run(tiny(epochs=1), callbacks=callbacks, resume=True, **options)
        callbacks[0].figures({"iiou": 0.25}, done.steps)
    store, name = sqlite_storage.SQLiteStorage, "run-abcdefgh"
    assert len(store.get_runs("ssl_fast")) == 1 and store.get_run_config("ssl_fast", name)["batch_size"] == 8
    rows = store.get_logs("ssl_fast", name)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5] and rows[5]["final/iiou"] == 0.25
    assert [row["loss"] for row in rows[:5]] == [record["loss"] for record in done.history]


class Failing(trackers.Tracker):
    name = "failing"

    def _open(self, config):
        self.logged = []

    def _log(self, values, step):
        if step == 2:
            raise ConnectionError("no route to host")
        self.logged.append(step)

    def _close(self, complete):
        raise AssertionError("closed after it failed")


def test_a_tracker_that_fails_does_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "failing", Failing)
    with pytest.warns(UserWarning) as told, trackers.opened(["failing"], tmp_path, "1") as (tracker,):
        done = run(tiny(epochs=1), out=tmp_path, callbacks=[tracker])
        tracker.figures({"iiou": 1.0}, 5)
    assert [str(one.message) for one in told if "failing" in str(one.message)] == [
        "failing: ConnectionError: no route to host; going on without it, metrics.jsonl has all"
    ]
    assert tracker.logged == [0, 1] and done.steps == 5 and len(records(tmp_path)) == 5


def test_a_tracker_that_cannot_begin_or_is_not_there_is_an_error(tmp_path, monkeypatch, capsys):
    media, log = folder(tmp_path / "media").root, ["--log", "tensorboard"]
    argv = ["train", "--data", media, "--out", tmp_path / "run", *TINY, *log]
    fails(capsys, [*argv, *log], "--log: expected each once, got tensorboard twice")
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
        fails(capsys, argv, "--log tensorboard: cannot be imported (", "): pip install tensorboard")
    assert not (tmp_path / "run").exists()

    def refused(self, config):
        raise RuntimeError("no key")

    monkeypatch.setattr(trackers.TensorBoard, "_open", refused)
    fails(capsys, argv, "tensorboard: RuntimeError: no key")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_run_without_trackers_writes_nothing_for_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny(epochs=1), out=tmp_path)
    assert {path.name for path in Path(tmp_path).iterdir()} == {"checkpoint.pt", "metrics.jsonl"}
