"""Runs that are killed, between steps and while they write, go on as if nothing had been."""

import os
import signal
import subprocess
import sys
import warnings

import pytest

from test_training import assert_same, one_thread, run, tiny, weights  # noqa: F401

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_training import run, tiny
from training_toys import after_step
def on_step(learner, record):
    if record["step"] == 8:
        os.kill(os.getpid(), signal.SIGKILL)
run(tiny("ez_vsl"), seed=2, out={out!r}, checkpoint_every=1e-9, callbacks=[after_step(on_step)])
"""


@pytest.mark.slow
def test_resume_after_sigkill(tmp_path):
    script = KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 9  # one line more than the checkpoint knows
    resumed = run(tiny("ez_vsl"), seed=2, out=tmp_path, resume=True)
    whole = run(tiny("ez_vsl"), seed=2)
    assert_same(weights(resumed.localizer), weights(whole.localizer))
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 15


KILLED_WRITING = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_training import run, tiny
calls = 0
def at(real):
    def call(*arguments):
        global calls
        calls += 1
        if calls == {call}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call
os.fsync, os.replace = at(os.fsync), at(os.replace)
run(tiny("ez_vsl"), seed=2, out={out!r}, checkpoint_every=1e-9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("call", [11, 12, 13])
def test_resume_after_sigkill_while_a_checkpoint_is_written(call, tmp_path):
    """Killed before the new file is on disk, before the old one gives up its name, and before the new one takes it."""
    script = KILLED_WRITING.format(tests=os.path.dirname(__file__), call=call, out=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "checkpoint.pt").exists() == (call < 13)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        resumed = run(tiny("ez_vsl"), seed=2, out=tmp_path, resume=True)
    assert any("going on from the one before it" in str(w.message) for w in told) == (call == 13)
    assert_same(weights(resumed.localizer), weights(run(tiny("ez_vsl"), seed=2).localizer))
