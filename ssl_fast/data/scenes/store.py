"""Splits of generated scenes on disk: made by worker processes, cached, checked at every load. numpy only.

A split lies in `<cache>/scenes/<split>-<images>-<hash>`, the hash taken over generator version, split and the
settings that matter to it: a folder is therefore never out of date. It holds one .npy file per array of `Arrays` and
a manifest with their shapes and checksums.

* Written as a whole: files are made in a hidden folder beside it, which is then renamed. Processes that generate the
  same split at the same time each make their own; the first to finish stays, the others throw theirs away. A killed
  process leaves a hidden folder, which nothing reads.
* Never trusted: each load compares shapes, dtypes and CRC-32 sums with the manifest. A folder that fails is an error
  (`CacheError`) that names the file and the folder to delete. It is neither repaired nor generated again behind one's
  back, since damage means that something else went wrong too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np

from ...files import naming
from .generator import (
    CATEGORIES,
    FADE,
    SEQUENCE_LENGTH,
    SEQUENCE_SILENCE,
    SEQUENCE_SOUND,
    SPLITS,
    VERSION,
    Scene,
    Settings,
    clip_samples,
    compose,
    scene,
)

MANIFEST = "manifest.json"
MOST_WORKERS, LEAST_SCENES = 8, 50  # workers by default: at most, and fewest scenes that are worth a process


class CacheError(RuntimeError):
    """A cached split that cannot be used; the message names the file and what to delete."""


@dataclass(frozen=True)
class Arrays:
    """One split of n images, k objects and s sounds; objects lie in order of images, sounds in order of objects."""

    images: np.ndarray  # (n, H, W, 3) uint8 RGB
    masks: np.ndarray  # (k, ceil(H * W / 8)) uint8: bits of the mask, np.packbits
    boxes: np.ndarray  # (k, 4) int32: left, top, right, bottom (exclusive), pixels
    objects: np.ndarray  # (k, 2) int32: image, place in CATEGORIES
    sounds: np.ndarray  # (s,) int32: object that sounds
    waveforms: np.ndarray  # (s, samples) int16, 16 kHz


def load_arrays(
    split: str,
    settings: Settings,
    *,
    cache: str | Path | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Arrays:
    """A split from the cache, generated first where it is absent. See `scenes.load` for the arguments and errors."""
    count = _image_count(split, settings)
    folder = split_folder(split, settings, cache)
    if not folder.exists():
        workers = _default_workers(count) if workers is None else workers
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers: expected None or an integer of 0 or more, got {workers!r}")
        _make(folder, split, settings, progress, workers)
    return _read(folder, split, settings)


def default_cache() -> Path:
    """Folder of all caches: $SSL_FAST_CACHE, or ~/.cache/ssl_fast. CacheError where there is no ~ either."""
    if folder := os.environ.get("SSL_FAST_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "ssl_fast"
    except RuntimeError as error:
        raise CacheError("no home folder for the cache of scenes; set SSL_FAST_CACHE to a folder for it") from error


def split_folder(split: str, settings: Settings, cache: str | Path | None = None) -> Path:
    """Folder in which `split` is cached, whether it is there or not."""
    digest = hashlib.sha256(json.dumps(_identity(split, settings), sort_keys=True).encode()).hexdigest()
    root = default_cache() if cache is None else Path(cache)
    return root / "scenes" / f"{split}-{_image_count(split, settings)}-{digest[:16]}"


def _identity(split: str, settings: Settings) -> dict[str, object]:
    """All that the bytes of a split depend on. The sizes of the other splits are not among it."""
    common: dict[str, object] = {name: value for name, value in asdict(settings).items() if name not in SPLITS}
    common["seconds"] = float(settings.seconds)
    if split == "sequence":  # also what `stretches`, which is not stored, depends on
        common["times"] = [SEQUENCE_LENGTH, *SEQUENCE_SOUND, SEQUENCE_SILENCE, FADE]
    return {"version": VERSION, "split": split, "images": _image_count(split, settings), **common}


def _image_count(split: str, settings: Settings) -> int:
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    count = getattr(settings, split)
    if count == 0:
        raise ValueError(f"settings.{split}: the split has no images, expected 1 or more")
    return count


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def _read(folder: Path, split: str, settings: Settings) -> Arrays:
    def broken(name: str, why: object) -> CacheError:
        return CacheError(
            f"{folder / name}: {why}. Delete the folder {folder} and load again; it will be generated anew"
        )

    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        identity, files = manifest["identity"], manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise broken(
            MANIFEST, f"expected the manifest of a scene cache, got {type(error).__name__}: {error}"
        ) from error
    if identity != _identity(split, settings):
        raise broken(MANIFEST, f"expected the manifest of {_identity(split, settings)}, got {identity}")
    arrays = {}
    for name in Arrays.__dataclass_fields__:
        file = f"{name}.npy"
        try:
            arrays[name] = np.load(folder / file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise broken(file, f"expected a complete .npy file, got {type(error).__name__}: {error}") from error
        if (found := _describe(arrays[name])) != files.get(name):
            raise broken(file, f"expected {files.get(name)}, got {found}")
    return Arrays(**arrays)


def _describe(array: np.ndarray) -> dict[str, object]:
    checksum = zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"shape": list(array.shape), "dtype": str(array.dtype), "crc32": checksum}


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def _make(folder: Path, split: str, settings: Settings, progress: bool, workers: int) -> None:
    """Generate a split into `folder`, which appears complete or not at all."""
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:12]}"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        hint = "Set SSL_FAST_CACHE or `cache` to a writable folder"
        raise CacheError(f"{folder.parent}: cannot create the scene cache ({error}). {hint}") from error
    try:
        arrays = _allocate(temporary, split, settings)
        if workers == 0:
            _fill_here(arrays, split, settings, progress)
        else:
            _fill_in_processes(temporary, split, settings, progress, workers)
        files = {name: _describe(array) for name, array in vars(arrays).items()}
        for array in vars(arrays).values():
            array.flush()
        del array, arrays  # closes the memory maps
        (temporary / MANIFEST).write_text(
            json.dumps({"identity": _identity(split, settings), "files": files}, indent=1)
        )
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster: its folder holds the same bytes
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _offsets(split: str, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """First object and first sound of each scene, (n + 1,) each; known before anything is drawn."""
    compositions = [compose(settings, split, index) for index in range(_image_count(split, settings))]
    counts = np.array([[len(one.categories), len(one.sounding)] for one in compositions])
    objects, sounds = np.concatenate([np.zeros((1, 2), int), np.cumsum(counts, 0)]).T
    return objects, sounds


def _allocate(folder: Path, split: str, settings: Settings) -> Arrays:
    images, size = _image_count(split, settings), settings.size
    objects, sounds = (int(first[-1]) for first in _offsets(split, settings))
    layout = {
        "images": ((images, size, size, 3), np.uint8),
        "masks": ((objects, -(-size * size // 8)), np.uint8),
        "boxes": ((objects, 4), np.int32),
        "objects": ((objects, 2), np.int32),
        "sounds": ((sounds,), np.int32),
        "waveforms": ((sounds, clip_samples(settings, split)), np.int16),
    }
    arrays = {}
    for name, (shape, dtype) in layout.items():
        path = folder / f"{name}.npy"
        with naming(path):
            arrays[name] = np.lib.format.open_memmap(path, "w+", dtype, shape)
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a bus error in a write to the map
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return Arrays(**arrays)


def _open(folder: Path) -> Arrays:
    return Arrays(**{name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in Arrays.__dataclass_fields__})


def _store(arrays: Arrays, index: int, made: Scene, first_object: int, first_sound: int) -> None:
    objects = slice(first_object, first_object + len(made.categories))
    sounds = slice(first_sound, first_sound + len(made.sounding))
    arrays.images[index] = made.image
    arrays.masks[objects] = np.packbits(made.masks.reshape(len(made.masks), -1), axis=1)
    arrays.boxes[objects] = made.boxes
    arrays.objects[objects] = [(index, CATEGORIES.index(category)) for category in made.categories]
    arrays.sounds[sounds] = first_object + np.array(made.sounding)
    arrays.waveforms[sounds] = made.waveforms


def _progress_bar(split: str, total: int, progress: bool):
    from ...progress import progress_bar

    return progress_bar(total=total, desc=f"generating {split}", unit="scene", disable=not progress)


def _fill_here(arrays: Arrays, split: str, settings: Settings, progress: bool) -> None:
    first_object, first_sound = _offsets(split, settings)
    with _progress_bar(split, len(arrays.images), progress) as bar:
        for index in range(len(arrays.images)):
            _store(arrays, index, scene(settings, split, index), first_object[index], first_sound[index])
            bar.update()


# ---------------------------------------------------------------------------------------------------------------------
# Worker processes
#
# Plain child processes instead of the multiprocessing module: nothing is forked from a process that
# may hold torch's or CUDA's threads, the caller's script needs no `if __name__ == "__main__"`, a daemon may load scenes
# too, and a worker that dies is noticed. Worker w of m makes scenes w, w + m, ... into memory maps of the same files
# and counts them in a small map that the parent watches.

# The modules a worker needs import numpy alone: torch would take longer than its work. With -c, Python looks in the
# current folder first, where a json.py may lie.
_START = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import json
job = json.load(sys.stdin)
sys.path[:] = job["path"]
from importlib import import_module
import_module(job["module"]).run_worker(job)
"""
_COUNTS = "counts.npy"


def _default_workers(scenes: int) -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processors, MOST_WORKERS, scenes // LEAST_SCENES)
    return workers if workers > 1 and sys.executable else 0


def run_worker(job: dict) -> None:
    """Worker process: every `workers`-th scene of a split."""
    folder, parent = Path(job["folder"]), os.getppid()
    settings, split = Settings(**job["settings"]), job["split"]
    arrays, counts = _open(folder), np.load(folder / _COUNTS, mmap_mode="r+")
    first_object, first_sound = _offsets(split, settings)
    for index in range(job["worker"], len(arrays.images), job["workers"]):
        if os.getppid() != parent:
            sys.exit("the process that wanted the scenes is gone")
        _store(arrays, index, scene(settings, split, index), first_object[index], first_sound[index])
        counts[job["worker"]] += 1


def _fill_in_processes(folder: Path, split: str, settings: Settings, progress: bool, workers: int) -> None:
    total = _image_count(split, settings)
    job = {
        "path": [str(folder) for folder in sys.path],
        "module": __name__,
        "folder": str(folder.resolve()),
        "split": split,
        "settings": asdict(settings),
        "workers": workers,
    }
    counts = np.lib.format.open_memmap(folder / _COUNTS, "w+", np.int64, (workers,))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes: list[subprocess.Popen] = []
    try:
        for worker in range(workers):
            with open(_log(folder, worker), "wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
                )
            processes.append(process)
            # a worker that died already is reported by _watch
            with contextlib.suppress(BrokenPipeError), cast(IO[bytes], process.stdin) as stdin:
                stdin.write(json.dumps(job | {"worker": worker}).encode())
        with _progress_bar(split, total, progress) as bar:
            _watch(processes, counts, bar, folder)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    del counts
    for file in [folder / _COUNTS, *(_log(folder, worker) for worker in range(workers))]:
        file.unlink()


def _log(folder: Path, worker: int) -> Path:
    return folder / f"worker{worker}.log"


def _watch(processes: list[subprocess.Popen], counts: np.ndarray, bar, folder: Path) -> None:
    """Wait until all workers are done. Raises RuntimeError with the output of a worker that failed."""
    while True:
        codes = [process.poll() for process in processes]
        bar.update(int(counts.sum()) - bar.n)
        for worker, code in enumerate(codes):
            if code:
                output = _log(folder, worker).read_text(errors="replace").strip()
                raise RuntimeError(f"scene worker {worker} ended with exit status {code}: {output or 'no output'}")
        if all(code == 0 for code in codes):
            return
        time.sleep(0.05)
