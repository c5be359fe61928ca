"""Progress of long loops on stderr: the bar of tqdm on a terminal, lines in a log file or pipe."""

import sys

from tqdm import tqdm

_SECONDS, _SHARE = 10, 0.05  # a line after so much time, or when so much more of the total is done


def progress_bar(iterable=None, *, disable: bool = False, **options) -> tqdm:
    """As tqdm; where stderr is no terminal, what it gives writes lines, at most one a second and one when it is
    closed."""
    return (tqdm if disable or getattr(sys.stderr, "isatty", bool)() else _Lines)(iterable, disable=disable, **options)


class _Lines(tqdm):
    monitor_interval = 0  # no thread that refreshes

    def __init__(self, *args, **options):
        super().__init__(*args, **options, mininterval=1, miniters=1, delay=1, smoothing=0, ncols=0)  # ncols: no bar
        self.sp = None  # of tqdm, which in close() would write the end of a bar
        self._told, self._told_at = (self.n, self.total), self._time()

    def display(self, msg=None, pos=None) -> None:  # update() comes here, at most once in mininterval
        share = (self.n - self._told[0]) / self.total if self.total else 0
        if share >= _SHARE or self._time() - self._told_at >= _SECONDS:
            self._tell()

    def clear(self, nolock: bool = False) -> None:
        pass  # lines stay

    def close(self) -> None:
        if not self.disable:
            super().close()
            if self._told != (self.n, self.total):
                self._tell()

    def _tell(self) -> None:
        self._told, self._told_at = (self.n, self.total), self._time()
        self.fp.write(f"{self}\n")
        self.fp.flush()
