"""Decoded frames and sounds on disk: what was decoded once is read back by memory map.

A file of the cache is an array of numpy.save, named by a hash of the source's path, size and time of change, of what
its decoding depends on and of the versions of the libraries that decode; so a source that changes is decoded anew, and
what it left behind stays until the folder is deleted. Files appear under their names only when complete: processes and
runs may share a folder. A frame of 640 x 480 takes 0.9 MB, ten seconds of sound at 16 kHz 0.6 MB.

A file that is not what was written (not an array, cut short, of another type) is an error that names it, not made
again: the disk that did this needs a look. Values are not checked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from ...files import naming, write_array
from .media import MediaError, check_file

DECODING = 2  # to be raised by a change after which the same file is decoded to other values


class DecodedCache:
    """Arrays in a folder, which is made where there is none."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, source: Path, decoding: tuple, decode: Callable[[Path], np.ndarray], dtype: type) -> np.ndarray:
        """decode(source), of `dtype`: from the cache where it is there, else decoded and put there.

        decoding: what the result depends on beside the file, as plain values. Changes to the array stay in memory.
        Raises MediaError for a file of the cache that is damaged, and what `decode` raises.
        """
        check_file(source)
        state = source.stat()
        key = os.path.abspath(source), state.st_size, state.st_mtime_ns, *decoding, *decoder_versions()
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        path = self.folder / digest[:2] / f"{digest[2:34]}.npy"
        try:
            found = np.asarray(np.load(path, mmap_mode="c"))
            if found.dtype != dtype or not found.size:
                raise ValueError(f"expected values of {np.dtype(dtype)}, got {found.shape} of {found.dtype}")
            return found
        except FileNotFoundError:
            pass
        except (ValueError, EOFError, OSError) as error:
            raise MediaError(
                f"{path}: damaged file of the cache, of {source} ({error}); delete it, and it is made again"
            ) from error
        made = decode(source)
        path.parent.mkdir(exist_ok=True)
        with naming(path), tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            try:
                write_array(file, made)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
        return made


@lru_cache(maxsize=1)
def decoder_versions() -> tuple:
    """Versions of what decodes and resamples: this package's part, and libraries; None for what is not installed."""
    found: list[tuple] = [("decoding", DECODING)]
    for name in ("pillow", "soundfile", "torchaudio", "av"):
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, None))
    return tuple(found)
