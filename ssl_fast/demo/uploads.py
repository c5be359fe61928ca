"""Folders for uploaded files while they are read, of which no program that was ended or killed leaves one for good."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "ssl-fast-demo-"


class UploadFolders:
    """The folders of a server. Each is locked as long as its program runs; what others left is removed at once."""

    def __init__(self):
        self._names: set[str] = set()
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                _remove_abandoned(path)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder that is removed at the end."""
        with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
            lock = os.open(name, os.O_RDONLY)
            self._names.add(name)
            try:
                with suppress(OSError):  # a file system without locks: nothing can be locked to be removed there either
                    fcntl.flock(lock, fcntl.LOCK_EX)
                yield Path(name)
            finally:
                self._names.discard(name)
                os.close(lock)

    def remove(self) -> None:
        """Remove the folders that are in use."""
        for name in tuple(self._names):
            shutil.rmtree(name, ignore_errors=True)


def _remove_abandoned(path: Path) -> None:
    """Remove a folder of this user that no running program has locked. OSError where one has. An empty one is left, as
    another server may be about to lock it."""
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(lock).st_uid == os.getuid() and any(path.iterdir()):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path)
    finally:
        os.close(lock)
