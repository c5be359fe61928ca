import time

import pytest

from ssl_fast.stages import Stages, listed


def test_every_moment_counts_for_the_innermost_stage(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    stages = Stages()

    def items():
        nonlocal now
        for item in range(2):
            now += 4
            yield item
        now += 1  # to find the end takes time too

    with stages("training"):
        now += 2
        for _ in stages.waiting("data", items()):
            now += 16
    now += 100  # in no stage
    with pytest.raises(KeyError), stages("data"):
        now += 32
        raise KeyError
    assert stages.seconds == {"training": 34, "data": 41}
    assert listed(stages.seconds) == "training 34.0 s, data 41.0 s"
