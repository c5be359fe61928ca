"""Errors of media files, and the check that comes before every decoder."""

from pathlib import Path


class MediaError(ValueError):
    """A media file is missing, broken, empty or not what was expected. The message begins with its path."""


def check_file(path: Path) -> None:
    """MediaError, which names the file, for one that is missing, no file, unreadable or of no bytes."""
    try:
        if not path.is_file():
            raise MediaError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size == 0:
            raise MediaError(f"{path}: empty file (0 bytes)")
        with open(path, "rb"):
            pass
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
