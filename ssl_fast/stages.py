"""Wall time of a command by stage."""

import contextlib
import time
from collections.abc import Iterable, Iterator


class Stages:
    """Seconds by stage, in the order in which stages began. Each moment counts for the innermost stage alone.

    stages = Stages()
    with stages("training"):
        for batch in stages.waiting("data", loader):
            ...
    stages.seconds                               # {"training": 80.2, "data": 3.1}
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._stage, self._since = None, 0.0

    def _switch(self, stage: str | None) -> str | None:
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        before, self._stage, self._since = self._stage, stage, now
        return before

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self.seconds.setdefault(stage, 0.0)
        before = self._switch(stage)
        try:
            yield
        finally:
            self._switch(before)

    def waiting(self, stage: str, iterable: Iterable) -> Iterator:
        """The items of `iterable`; the time until it gives each of them counts for `stage`."""
        iterator, end = iter(iterable), object()
        while True:
            with self(stage):
                item = next(iterator, end)
            if item is end:
                return
            yield item


def listed(seconds: dict[str, float]) -> str:
    """{"training": 80.2, "data": 3.1} -> "training 80.2 s, data 3.1 s"."""
    return ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
