"""Conceptual positives: the nearest neighbours of every sample, found once, of which training draws one at each step.

    from ssl_fast.data.neighbors import Neighbors, mine
    mine(features, training_set.ids, 1000, "visual.npy")        # once for images, once for sounds
    visual = Neighbors("visual.npy", training_set)
    positive = visual.draw(index, seed)                         # the index of a neighbour

SSL-Align (Senocak et al. 2023, "semantic multi-views") takes as a positive one of the k = 1000 samples of the training
set whose features have the highest cosine with the sample's own.

The file is an .npy of int32 (N, k), for anyone to read: row i holds the k nearest neighbours of sample i, the nearest
first, without i itself. Beside it lies a .json of the same stem that says what it was made of.

Search is exact: of all N products in float32 the k highest, ties by index. (Approximate indexes lose a fifth of so many
neighbours.) The same features give the same file at every repeat, and after every interruption.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import replace_file
from ..progress import progress_bar
from ..reproducibility import fingerprint, versions
from .sample_lists import read_json, short

FORMAT = "ssl_fast neighbors 1"
_QUERIES, _COLUMNS = 1024, 4096  # a tile of the product: 16 MiB, searched while in cache
_ROWS = 4096  # of features at a time, where all are read
_SAMPLED = 32  # one column in so many is sampled for the thresholds that heaps start with


def mine(
    features: np.ndarray,
    ids: Sequence[str] | None,
    k: int,
    path: str | os.PathLike,
    *,
    modality: str | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> None:
    """Write the k nearest neighbours of all samples to `path` (.npy) and what they were made of beside it (.json).

    features: (N, C) float16, float32 or float64, of any length. ids: of the samples (None: row numbers). modality:
    "visual" or "audio", to be recorded where it is known. device: "cpu" or "cuda", where the products are computed.
    Takes 4 N C bytes (normalised rows) and less than 0.2 GiB more. Rows go to `path`.partial as they are found, and
    this takes the name when it is complete; after an interruption the same call goes on where that ends. Where `path`
    is complete nothing is done.

    ValueError for bad features (see `nearest`), where ids are not N different ones, and where `path` belongs to other
    features, ids or k; then it is left alone. OSError where another process is writing it.
    """
    path = Path(path)
    check_name(path)
    _check(features, k)
    number, dimension = features.shape
    ids = [str(row) for row in range(number)] if ids is None else ids
    if len(ids) != number or len(set(ids)) != number:
        raise ValueError(
            f"ids: expected {number} different ones, as many as rows of features, got {len(ids)} of which "
            f"{len(set(ids))} differ"
        )
    about = {
        "format": FORMAT,
        "k": k,
        "number": number,
        "dimension": dimension,
        "ids": fingerprint(ids),
        "features": _digest(features),
    }
    if path.exists():
        _compare(path, about, "asked for")
        return
    partial, header = _partial(path), _header(number, k)
    size = partial.stat().st_size if partial.exists() else 0
    if size > len(header):
        _compare(path, about, "asked for")
    done = max(0, size - len(header)) // (4 * k) // _QUERIES * _QUERIES  # the same blocks, hence the same bits
    blocks = nearest(features, k, first=done, ids=ids, device=device)
    with open(partial, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{partial}: another process is writing it") from error
        record = about | {"modality": modality, "versions": versions()}
        replace_file(path.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
        if done:
            file.truncate(len(header) + 4 * k * done)  # without what was written of a row
        else:
            file.truncate(0)
            file.write(header)
        if progress:
            blocks = _with_progress(blocks, number, done, path.name)
        for block in blocks:
            file.write(block.astype("<i4").tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


def _with_progress(blocks: Iterator[np.ndarray], number: int, done: int, name: str) -> Iterator[np.ndarray]:
    with progress_bar(total=number, initial=done, unit="sample", desc=name) as bar:
        for block in blocks:
            yield block
            bar.update(len(block))


class Neighbors:
    """A file that `mine` wrote, opened by memory map.

    path: the .npy. sample_set: what it must have been made for (`check`). Fields: k; ids, (N, k) int32, the indices of
    the neighbours of sample i in row i, the nearest first; modality, "visual", "audio" or None, unknown. The whole file
    is read once, to see that all are indices of samples. OSError for a missing file, ValueError for one that is not
    complete, damaged, of other numbers or without its .json; each names the file.
    """

    def __init__(self, path: str | os.PathLike, sample_set=None):
        self.path = Path(path)
        if not self.path.exists() and _partial(self.path).exists():
            raise ValueError(f"{self.path}: not complete, the search that writes {_partial(self.path)} has to go on")
        self.ids, about = open_array(self.path), _about(self.path)
        expected = about["number"], about["k"]
        if self.ids.shape != expected or self.ids.dtype != np.dtype("<i4"):
            raise ValueError(f"{self.path}: expected {expected} int32, got {self.ids.shape} {self.ids.dtype}")
        self.k, self.modality = self.ids.shape[1], about.get("modality")
        for start in range(0, len(self.ids), _ROWS):
            rows = self.ids[start : start + _ROWS]
            low, high = int(rows.min()), int(rows.max())
            if low < 0 or high >= len(self.ids):
                wrong = low if low < 0 else high
                row = start + int(np.flatnonzero((rows == wrong).any(1))[0])
                raise ValueError(f"{self.path}: row {row}: expected indices of 0 to {len(self.ids) - 1}, got {wrong}")
        if sample_set is not None:
            self.check(sample_set)

    def __len__(self) -> int:
        return len(self.ids)

    def check(self, sample_set) -> None:
        """ValueError where the file was not made for the ids of this set, in this order."""
        _compare(self.path, {"number": len(sample_set), "ids": fingerprint(sample_set)}, "the samples have")

    def draw(self, index: int, generator: int | Sequence[int] | np.random.Generator | torch.Generator) -> int:
        """One of the k neighbours of sample `index`, all equally likely. generator: it, or a seed of numpy's."""
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        if isinstance(generator, torch.Generator):
            column = int(torch.randint(self.k, (), generator=generator))
        else:
            column = np.random.default_rng(generator).integers(self.k)
        return int(self.ids[index, column])

    def draw_from_queue(self, index: int, generator: torch.Generator, size: int) -> int:
        """The nearest to sample `index` in a random queue of `size` samples, which may hold itself (SSL-TIE's audmix);
        the last of the k neighbours where the queue holds none of them."""
        rank = 0  # in order of nearness, itself first: each is in the queue, or the next one may be
        while torch.rand((), generator=generator).item() >= size / (len(self) - rank):
            rank += 1
        return int(self.ids[index, min(rank, self.k) - 1]) if rank else index

    def __reduce__(self):
        return Neighbors, (self.path,)  # another process maps the file anew


def open_array(path: Path) -> np.ndarray:
    """An .npy by memory map. OSError where there is none, ValueError where it is none; both name the file."""
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)  # c: torch wants it writable; the file never changes
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: expected a complete .npy file of numbers, got: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected one array (.npy), got several (.npz)")
    return array


def check_name(path: Path) -> None:
    """ValueError for a name that a file of neighbours cannot have."""
    if path.suffix != ".npy":
        raise ValueError(f"{path}: expected a name that ends in .npy")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _about(path: Path) -> dict:
    """Record in the .json beside `path`. ValueError where there is none, or of another format."""
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise ValueError(f"{path}: expected {sidecar.name} beside it, that says what it was made of; it is missing")
    expected = f"what neighbours were made of, format {FORMAT!r}"
    about = read_json(sidecar, expected)
    complete = isinstance(about, dict) and {"format", "k", "number", "ids", "features"} <= about.keys()
    if not complete or about["format"] != FORMAT:
        raise ValueError(f"{sidecar}: expected {expected}, got {short(about)}")
    return about


def _compare(path: Path, wanted: dict, who: str) -> None:
    stored = _about(path)
    differ = [key for key in wanted if stored.get(key) != wanted[key]]
    if differ:
        of, to = (", ".join(f"{key} {one.get(key)}" for key in differ) for one in (stored, wanted))
        raise ValueError(f"{path}: belongs to {of}; {who} {to}")


def _header(number: int, k: int) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (number, k)})
    return file.getvalue()


def _digest(features: np.ndarray) -> str:
    """Hash of values, type and shape."""
    digest = hashlib.sha256(f"{features.dtype} {features.shape}".encode())
    for start in range(0, len(features), _ROWS):
        digest.update(np.ascontiguousarray(features[start : start + _ROWS]).data)
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# Search


def _check(features: np.ndarray, k: int) -> None:
    if features.ndim != 2 or features.dtype not in ("f2", "f4", "f8") or len(features) < 2 or not features.shape[1]:
        raise ValueError(
            "features: expected (N, C), N >= 2 and C >= 1, of float16, float32 or float64, got "
            f"{features.shape} {features.dtype}"
        )
    check_k(k, len(features))


def check_k(k: int, number: int) -> None:
    """ValueError where there cannot be k neighbours of each of `number` samples."""
    if not 1 <= k < number:
        raise ValueError(f"k: expected 1 to {number - 1}, as there are {number} samples, got {k}")


def nearest(
    features: np.ndarray, k: int, *, first: int = 0, ids: Sequence[str] | None = None, device: str = "cpu"
) -> Iterator[np.ndarray]:
    """Blocks (n, k) int32 of the k nearest neighbours of the rows `first`, `first` + 1 ... of features (N, C).

    The first k of argsort(-cosines, stable) without the row itself, cosines in float32; of equal ones at the end any
    may be among them. ids: what rows are called in errors. ValueError for features or k that do not fit, and for rows
    that are zero or not finite.
    """
    features = np.asarray(features)  # of a memory map too, whose own class is slow to index
    _check(features, k)
    return _blocks(_unit_rows(features, ids).to(device), k, first)


def _blocks(units: Tensor, k: int, first: int) -> Iterator[np.ndarray]:
    for start in range(first, len(units), _QUERIES):
        queries = np.arange(start, min(start + _QUERIES, len(units)))
        with _full_float32():
            found = _in_order(*_search_in_heaps(units, units[start : start + _QUERIES], k + 1))
        others = found != queries[:, None]
        others[others.all(1), -1] = False  # rows that have more than k duplicates
        yield found[others].reshape(len(queries), k).astype(np.int32)


def _in_order(scores: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`found` (n, m) by descending scores, float32, and ties by index: one sort of integers of both."""
    bits = scores.view(np.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # in the order of the floats
    return np.sort((~rising).astype(np.int64) << 32 | found, axis=1) & 0xFFFFFFFF


def _unit_rows(features: np.ndarray, ids: Sequence[str] | None) -> Tensor:
    """Rows of length 1, float32."""
    units, bad = torch.empty(features.shape), []
    for start in range(0, len(features), _ROWS):
        rows = features[start : start + _ROWS].astype(np.float64)
        norms = np.linalg.norm(rows, axis=1)
        bad += [(start + i, norms[i]) for i in np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))]
        with np.errstate(invalid="ignore", divide="ignore"):
            units[start : start + _ROWS] = torch.from_numpy(rows / norms[:, None])
    if bad:
        row, norm = bad[0]
        name = f"row {row}" + ("" if ids is None else f" (id {ids[row]!r})")
        raise ValueError(
            f"features: {name}: expected finite values, not all zero, got a norm of {norm:g}; "
            f"bad rows: {len(bad)} of {len(features)}"
        )
    return units


@contextlib.contextmanager
def _full_float32():
    """Context of full float32 products, whatever else was allowed (TF32, bfloat16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _search_in_heaps(units: Tensor, rows: Tensor, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest products of rows (n, C) with units (N, C), of one device: float32 (n, wanted), in any order, and
    their columns, int64.

    torch multiplies tile by tile (several times faster than the BLAS in faiss's wheels on newer processors), faiss
    keeps a heap for each row. Most products are turned away at once, since heaps start full of a threshold that about
    `wanted` of them exceed, as a sample tells; where too few did, the row is searched again from scratch.
    """
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    sample = units[np.random.default_rng(0).permutation(len(units))[: len(units) // _SAMPLED]]
    expected = wanted / _SAMPLED
    rank = int(expected + 4 * expected**0.5)  # four standard deviations: hardly ever too few
    thresholds = np.full((len(rows), 1), -np.inf, np.float32)
    if rank < len(sample):
        sampled = torch.mm(rows, sample.T).topk(rank, sorted=False).values
        thresholds[:] = sampled.amin(1, keepdim=True).cpu().numpy()
    scores, found = np.empty((len(rows), wanted), np.float32), np.empty((len(rows), wanted), np.int64)
    buffer, again = units.new_empty(len(rows) * _COLUMNS), np.arange(len(rows))
    while len(again):
        heaps = faiss.ResultHeap(len(again), wanted, keep_max=True)
        heaps.D[:], left = thresholds[again], rows[again]
        for start in range(0, len(units), _COLUMNS):
            columns = units[start : start + _COLUMNS]
            products = buffer[: len(again) * len(columns)].view(len(again), len(columns))
            host = torch.mm(left, columns.T, out=products).cpu().numpy()  # the buffer itself on a CPU
            heaps.heaps.addn(len(columns), faiss.swig_ptr(host), start, 0, len(again))
        scores[again], found[again] = heaps.D, heaps.I
        again = np.flatnonzero((found < 0).any(1))
        thresholds[:] = -np.inf
    return scores, found
