"""Time budget of a run: its progress, the line of one that is too slow, the time of its parts."""

import time

import pytest

from ssl_fast.training import loop as training
from ssl_fast.training.budget import pace, progress_of
from ssl_fast.training.loop import train
from test_training import assert_same, figures, one_thread, run, tiny, weights  # noqa: F401
from training_toys import ToySet


def test_progress_is_that_of_the_steps_while_time_keeps_pace():
    # 100 steps in 80 of 100 s, the first one slow: 5 s
    seconds = [0.0] + [5 + 75 * k / 99 for k in range(100)]
    assert [progress_of(k, 100, seconds[k], 100.0) for k in range(101)] == [k / 100 for k in range(101)]


def test_progress_is_that_of_time_where_it_is_short():
    assert progress_of(10, 100, 55.0, 100.0) == pytest.approx((55 - 10) / 90)
    assert progress_of(10, 100, 100.0, 100.0) == 1.0
    assert progress_of(10, 100, 1e6) == 0.1  # no budget
    assert progress_of(120, 100) == 1.0


def test_what_is_told_of_a_run_that_does_not_fit():
    assert pace(30, 2250, 3.2, 9.375, 4.0, False) is None  # 3.2 s and 2220 steps at 9.375: exactly 4 minutes
    assert pace(30, 2250, 6.0, 5.5, 4.0, False) == (
        "at this speed 1,317 of 2,250 steps fit into 4 minutes; "  # 30 + 234 * 5.5
        "going on to the full length, about 7 minutes (--minutes 4 would shorten it)"
    )  # 6 s + 2220 / 5.5 s = 410 s
    assert pace(30, 2250, 6.0, 5.5, 4.0, True) == (
        "at this speed 1,317 of 2,250 steps fit into 4 minutes; --minutes 7 would train it fully"
    )
    assert pace(900, 2250, 241.0, 5.5, 4.0, False) is None  # told before it was resumed


def test_usual_minutes_change_nothing_but_what_is_told(monkeypatch, capsys):
    monkeypatch.setattr(training, "PACE_SECONDS", 0.0)
    one = tiny(epochs=6)
    plain, told = run(one), run(one, usual_minutes=1e-6)
    assert_same(weights(told.localizer), weights(plain.localizer))
    assert told.steps == 30 and not told.shortened and figures(told.history) == figures(plain.history)
    assert capsys.readouterr().out == ""  # past the minutes when the speed is known
    clock = iter(x * 0.5 for x in range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    slow = train(ToySet(), one, usual_minutes=13 / 60)  # 26 of 30 steps; beside the lines of progress
    assert_same(weights(slow.localizer), weights(plain.localizer))
    line = capsys.readouterr().out
    assert line.startswith(
        "at this speed 26 of 30 steps fit into 0.216667 minutes; going on to the full length, about a minute ("
    )


def test_parts_of_a_step_are_timed():
    began = time.perf_counter()
    done = run(tiny(epochs=1))
    assert list(done.stages) == ["data", "loss", "nets", "backward"] and min(done.stages.values()) > 0
    assert sum(done.stages.values()) < time.perf_counter() - began
