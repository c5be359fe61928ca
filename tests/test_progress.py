"""Progress on a terminal and in a log file."""

import fcntl
import os
import re
import struct
import termios

import pytest

from ssl_fast.progress import progress_bar
from ssl_fast.training.loop import train
from ssl_fast.training.recipes import recipe
from training_toys import ToySet


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets forward, in place of tqdm's."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("tqdm.std.time", lambda: Clock.now)
    return Clock


def lines(capsys) -> list[str]:
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n")
    return text.splitlines()


def work(clock, steps, seconds, **options):
    for _ in progress_bar(range(steps), desc="work", unit="step", **options):
        clock.now += seconds


@pytest.mark.parametrize(
    "steps, seconds, told",
    [
        (800, 0.125, [40 * i for i in range(1, 21)]),  # 100 s: each 5 %
        (800, 0.5, [20 * i for i in range(1, 41)]),  # 400 s: each 10 s
        (6, 64.0, [1, 2, 3, 4, 5, 6]),  # not between steps
        (160, 0.015625, [64, 128, 160]),  # 2.5 s: each second, and at the end
        (160, 0.0009765625, [160]),
        (0, 1.0, []),
    ],
)
def test_lines_of_a_log(clock, capsys, steps, seconds, told):
    work(clock, steps, seconds)
    if not told:
        assert capsys.readouterr().err == ""
        return
    pattern = r"work: +(\d+)% (\d+)/(\d+) \[([\d:]+)<([\d:]+), .*(step/s|s/step)\]"
    found = [re.fullmatch(pattern, line) for line in lines(capsys)]
    assert [int(line[2]) for line in found] == told and {int(line[3]) for line in found} == {steps}
    for percent, done, _, elapsed, remaining, _ in map(re.Match.groups, found):
        done = int(done)
        assert abs(int(percent) - 100 * done / steps) <= 0.5
        for text, expected in ((elapsed, done * seconds), (remaining, (steps - done) * seconds)):
            minutes, rest = text.split(":")
            assert 60 * int(minutes) + int(rest) == int(expected)


def test_work_of_unknown_length_that_is_broken_off(clock, capsys):
    with pytest.raises(KeyboardInterrupt), progress_bar(desc="work", initial=7) as bar:
        for i in range(25):
            bar.set_postfix_str(f"loss {i}", refresh=False)
            clock.now += 1
            bar.update(2)
        raise KeyboardInterrupt
    assert [line.split()[1] for line in lines(capsys)] == ["27it", "47it", "57it"]


def test_quiet_and_terminal(clock, capsys, monkeypatch):
    work(clock, 100, 1.0, disable=True)
    assert capsys.readouterr().err == ""
    end, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # rows, columns
    with open(terminal, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stderr)
        work(clock, 3, 1.0)
        stderr.write("end")
    text = ""
    while not text.endswith("end"):
        text += os.read(end, 1 << 16).decode()
    os.close(end)
    assert text.count("\r") >= 4 and re.search(r"\rwork: 100%\|\S+\| 3/3 \[00:03<00:00, ", text)


def test_training_tells_its_loss(capsys, set_threads):
    set_threads(1)
    run = train(ToySet(), recipe("ez_vsl", epochs=1, batch_size=8), progress=True)
    last = lines(capsys)[-1]
    smooth = run.history[0]["loss"]
    for record in run.history[1:]:
        smooth = 0.95 * smooth + 0.05 * record["loss"]
    assert last.startswith("ez_vsl: 100% 5/5 [") and last.endswith(f", loss {smooth:.3f} (chance {run.chance:.2f})]")
