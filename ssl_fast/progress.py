"""Progress of long loops on stderr: the bar of tqdm on a terminal, lines in a log file or pipe."""

import contextlib
import sys
from collections.abc import Callable

from tqdm import tqdm

from .terminal import printable

_SECONDS, _FRACTION = 10, 0.05  # a line after so much time, or when so much more of the total is done


def progress_bar(iterable=None, *, disable: bool = False, desc: str | None = None, **options) -> tqdm:
    """The bar of tqdm; where stderr is no terminal, one that writes lines, at most one a second and one when it is
    closed. desc: its title, of which what does not print is escaped."""
    kind = tqdm if disable or getattr(sys.stderr, "isatty", bool)() else _Lines
    return kind(iterable, disable=disable, desc=None if desc is None else printable(desc), **options)


class _Lines(tqdm):
    """Progress as lines of text, without a bar."""

    monitor_interval = 0  # no thread that refreshes
    _time: Callable[[], float]  # of tqdm

    def __init__(self, *args, **options):
        super().__init__(*args, **options, mininterval=1, miniters=1, delay=1, smoothing=0, ncols=0)  # ncols: no bar
        self.sp = None  # of tqdm, which in close() would write the end of a bar
        self._written, self._written_at = (self.n, self.total), self._time()

    def display(self, msg=None, pos=None) -> None:  # update() comes here, at most once in mininterval
        done = (self.n - self._written[0]) / self.total if self.total else 0
        if done >= _FRACTION or self._time() - self._written_at >= _SECONDS:
            self._write()

    def clear(self, nolock: bool = False) -> None:
        pass  # lines stay

    def close(self) -> None:
        if not self.disable:
            super().close()
            if self._written != (self.n, self.total):
                self._write()

    def _write(self) -> None:
        self._written, self._written_at = (self.n, self.total), self._time()
        with contextlib.suppress(OSError):  # nobody reads it any more
            self.fp.write(f"{self}\n")
            self.fp.flush()
