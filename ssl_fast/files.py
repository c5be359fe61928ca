"""Files that are written: whole or not at all, by one process at a time, and never over what is there already."""

import contextlib
import errno
import fcntl
import os
import re
import typing
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

_held: list[typing.IO] = []  # locks of this process
os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])  # a child must not outlive it with a lock


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Inside, an error that goes back to an OSError, as of a full disk, is an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch.save raises others on the way
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise OSError(cause.errno or errno.EIO, cause.strerror or str(cause), os.fspath(path)) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike, previous: Path | None = None) -> Iterator[typing.BinaryIO]:
    """A file to write to, also by its `name`, which is on disk before it is `path`; a reader never sees a part of it.

    previous: new name of what has the name `path` before. After an error there is what was there before; OSError names
    `path`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # by which libraries know the format
    with naming(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def replace_file(path: str | os.PathLike, text: str) -> None:
    """Write a text file by `replacing`, UTF-8."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_array(file: typing.IO[bytes], array: np.ndarray) -> None:
    """numpy.save, which itself does not say why it could not write."""
    array = np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(array.data)


def save_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """`write_array` by `replacing`."""
    with replacing(path) as file:
        write_array(file, array)


@contextlib.contextmanager
def claimed(
    option: str,
    paths: Sequence[Path] = (),
    *,
    folder: Path | None = None,
    inputs: Iterable[Path | None] = (),
    force: bool = False,
) -> Iterator[None]:
    """Inside, no other process that asks writes `paths`, of which none is there, or all may be replaced by `force`.

    folder: the one that `paths` are in, made where there is none. inputs: files that must not be replaced at all.
    ValueError, which begins with `option`, for a path that is there, or an input, and where another process is writing.
    What killed processes have left of `paths` is removed.
    """
    for path in paths:
        if path.exists() and any(one is not None and one.exists() and path.samefile(one) for one in inputs):
            raise ValueError(f"{option} {path}: this command reads it; choose another name")
    whole = folder or paths[0]
    made = [] if folder is None else [one for one in (folder, *folder.parents) if not one.exists()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    lock = paths[0].with_name(f".{paths[0].name}.lock") if folder is None else folder / ".lock"
    try:
        with _locked(lock, f"{option} {whole}"):
            there = [path for path in paths if path.exists()]
            if there and not force:
                what = f"{whole}: holds {', '.join(p.name for p in there)}" if folder else f"{there[0]}: exists"
                raise ValueError(f"{option} {what} already; choose another name, or replace what is there by --force")
            for path in paths:
                sweep(path)
            yield
    finally:
        with contextlib.suppress(OSError):  # where something was written
            for one in made:
                one.rmdir()


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Inside, this process holds the lock of the file `path`, which is there only meanwhile. The kernel releases it
    with the process."""
    while True:
        with naming(path.parent):
            file = open(path, "a")  # noqa: SIM115, closed below
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ValueError(f"{what}: another process is writing there") from error
        except OSError as error:
            warnings.warn(f"{what}: no locks here ({error.strerror}); let no other process write there", stacklevel=2)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                break
        file.close()  # of a file that the process before has removed
    _held.append(file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        _held.remove(file)
        file.close()


def sweep(path: Path) -> None:
    """Remove what processes that are gone have left of `replacing` path."""
    _sweep(path.parent, re.escape(f".{path.name}.") + rf"(\d+)({re.escape(path.suffix)})?")


def sweep_folder(folder: Path) -> None:
    """The same of all files in a folder and the folders in it, which are all written by `replacing`."""
    for directory, _, _ in os.walk(folder):
        _sweep(Path(directory), r"\..+\.(\d+)(\.[^.]*)?")


def _sweep(folder: Path, pattern: str) -> None:
    for one in folder.iterdir():
        number = re.fullmatch(pattern, one.name)
        if number and not _alive(int(number[1])):
            one.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
