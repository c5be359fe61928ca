"""Nearest neighbours against float64 cosines of all pairs, sorted; files of them through kills and mix-ups."""

import json
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ssl_fast.data import neighbors
from ssl_fast.data.neighbors import Neighbors, mine, nearest
from training_toys import ToySet

RNG = np.random.default_rng(5)
GAUSSIAN = RNG.standard_normal((2500, 48))
FEATURES = {
    "gaussian": GAUSSIAN,
    "float32, not negative": np.maximum(GAUSSIAN, 0).astype(np.float32),
    "float16, of very different lengths": (GAUSSIAN * 10.0 ** RNG.integers(-2, 4, (2500, 1))).astype(np.float16),
    "closer than float32 tells": (1 + 1e-3 * RNG.standard_normal((1100, 32))),
    "many ties": RNG.integers(-1, 2, (1500, 4)) + np.array([4, 0, 0, 0.0]),
    "duplicates, more than a list holds": RNG.standard_normal((9, 16))[RNG.integers(0, 9, 1300)],
    "all alike": np.ones((80, 3)),
    "opposites": np.array([[1.0], [-1.0], [2.0], [-3.0], [4.0]]),
    "a pair": RNG.standard_normal((2, 5)),
}


def every_cosine(features):
    """(N, N) float64; of a row with itself -2, so that it comes last."""
    rows = features.astype(np.float64)
    cosines = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    np.fill_diagonal(cosines, -2)
    return cosines


def every_pair(features, k):
    return np.argsort(-every_cosine(features), axis=1, kind="stable")[:, :k]


def assert_nearest(found, features, tolerance=1e-6):
    """The k highest of all cosines in falling order, up to the rounding of float32; each once, and never itself."""
    cosines, k = every_cosine(features), found.shape[1]
    highest = -np.sort(-cosines, axis=1)[:, :k]
    np.testing.assert_allclose(np.take_along_axis(cosines, found, 1), highest, rtol=0, atol=tolerance)
    assert all(len(set(row)) == k for row in found.tolist())


def all_of(features, k, **options):
    return np.concatenate(list(nearest(features, k, **options)))


@pytest.mark.grid
@pytest.mark.parametrize("name", FEATURES)
def test_equals_all_pairs(name):
    features = FEATURES[name]
    for k in {k for k in (1, 10, 150) if k < len(features)} | {min(len(features) - 1, 1200)}:
        found = all_of(features, k)
        assert found.dtype == np.int32 and found.shape == (len(features), k)
        assert_nearest(found, features)


def test_ties_go_by_index():
    """Rows of one 1: all cosines are exactly 0 or 1."""
    features = np.eye(8)[RNG.integers(0, 8, 300)]
    np.testing.assert_array_equal(all_of(features, 299), every_pair(features, 299))


def test_negative_scores_and_zeros_are_ordered():
    scores = np.array([[-0.5, 1e-30, -1e-30, 3.0, -2.0, 3.0]], np.float32)
    np.testing.assert_array_equal(neighbors._in_order(scores, np.array([[4, 9, 2, 7, 1, 5]])), [[5, 7, 9, 2, 4, 1]])


@pytest.mark.slow
def test_blocks_and_threads_do_not_matter(monkeypatch, set_threads):
    features = np.round(GAUSSIAN * 4)  # products that float32 orders, hence the same in any blocks
    whole = all_of(features, 20)
    np.testing.assert_array_equal(all_of(features, 20, first=777), whole[777:])
    set_threads(1)
    for name, size in (("_QUERIES", 7), ("_COLUMNS", 13), ("_ROWS", 11)):
        monkeypatch.setattr(neighbors, name, size)
        assert_nearest(all_of(features, 20), features)
    np.testing.assert_array_equal(all_of(features, 20), all_of(features, 20))


def test_rows_that_the_sample_misleads(monkeypatch):
    """Where only the sampled rows are alike, the first threshold is too high and the rows are searched again."""
    features = GAUSSIAN.copy()
    sampled = np.random.default_rng(0).permutation(2500)[: 2500 // neighbors._SAMPLED]
    features[sampled] = 0.01 * features[sampled] + 1
    searched, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, **out: (searched.append(len(a)), mm(a, b, **out))[1])
    found = all_of(features, 200)
    assert set(searched) > {1024, 2500 - 2048}  # some rows of a block alone
    assert_nearest(found, features)


def test_full_float32_whatever_is_allowed():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_nearest(all_of(GAUSSIAN, 9), GAUSSIAN)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.cuda
def test_cuda_equals_all_pairs():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for features in FEATURES.values():
        k = min(len(features) - 1, 150)
        assert_nearest(all_of(features, k, device="cuda"), features)


@pytest.mark.parametrize(
    "features, k, words",
    [
        (
            np.ones(5),
            1,
            "features: expected (N, C), N >= 2 and C >= 1, of float16, float32 or float64, got (5,) float64",
        ),
        (np.ones((0, 4)), 1, "got (0, 4) float64"),
        (np.ones((1, 4)), 1, "got (1, 4) float64"),
        (np.ones((5, 0)), 1, "got (5, 0) float64"),
        (np.ones((5, 2), np.int64), 1, "got (5, 2) int64"),
        (np.ones((5, 2)), 5, "k: expected 1 to 4, as there are 5 samples, got 5"),
        (np.ones((5, 2)), 0, "k: expected 1 to 4, as there are 5 samples, got 0"),
        (
            np.array([[1, 2], [0, 0], [1, np.nan], [1, 1]]),
            1,
            "features: row 1 (id 'b'): expected finite values, not all zero, got a norm of 0; bad rows: 2 of 4",
        ),
        (
            np.array([[1, 2], [1, 0], [1, np.nan], [1, 1]]),
            1,
            "features: row 2 (id 'c'): expected finite values, not all zero, got a norm of nan; bad rows: 1 of 4",
        ),
        (
            np.array([[1, 2], [1, 0], [1, 1], [1, np.inf]], np.float16),
            1,
            "row 3 (id 'd'): expected finite values, not all zero, got a norm of inf",
        ),
    ],
)
def test_bad_features_are_named(features, k, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        mine(features, list("abcde")[: len(features)], k, tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Files

IDS = [f"clip {i}" for i in range(2500)]


def test_the_file_is_a_plain_array_and_says_what_it_is(tmp_path):
    out = tmp_path / "visual.npy"
    mine(GAUSSIAN, IDS, 10, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["visual.json", "visual.npy"]
    np.testing.assert_array_equal(np.load(out), every_pair(GAUSSIAN, 10))
    assert np.load(out).dtype == np.int32 and out.read_bytes()[:8] == b"\x93NUMPY\x01\x00"
    about = json.loads((tmp_path / "visual.json").read_text())
    assert (about["k"], about["number"], about["dimension"]) == (10, 2500, 48) and about["versions"]["torch"]


CHILD = """
import sys, time
import numpy as np
from ssl_fast.data import neighbors
search = neighbors._search_in_heaps
neighbors._search_in_heaps = lambda *given: (time.sleep(0.5), search(*given))[1]
neighbors._QUERIES = 300
features = np.load(sys.argv[1])
neighbors.mine(features, [f"clip {i}" for i in range(2500)], 10, sys.argv[2])
"""


@pytest.mark.slow
def test_killed_and_resumed(tmp_path, monkeypatch):
    out, partial = tmp_path / "visual.npy", tmp_path / "visual.npy.partial"
    np.save(tmp_path / "features.npy", GAUSSIAN)
    child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "features.npy", out])
    end = time.monotonic() + 120
    while not partial.exists() or partial.stat().st_size < 128 + 2 * 300 * 40:
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(OSError, match=re.escape(f"{partial}: another process is writing it")):
        mine(GAUSSIAN, IDS, 10, out)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and not out.exists()
    with pytest.raises(ValueError, match=re.escape(f"{out}: not complete, the search that writes {partial} has")):
        Neighbors(out)
    with open(partial, "ab") as file:
        file.write(b"\x01" * 83)  # of a block that was being written
    done, searched = (partial.stat().st_size - 128) // 40 // 300 * 300, []
    assert 600 <= done < 2500
    for features, ids, k, words in (
        (GAUSSIAN + 1, IDS, 10, "features "),
        (GAUSSIAN, IDS, 11, "k 10; asked for k 11"),
        (GAUSSIAN, IDS[::-1], 10, "ids "),
    ):
        with pytest.raises(ValueError, match=re.escape(f"{out}: belongs to {words}")):
            mine(features, ids, k, out)
    search = neighbors._search_in_heaps
    monkeypatch.setattr(
        neighbors, "_search_in_heaps", lambda units, rows, n: (searched.append(len(rows)), search(units, rows, n))[1]
    )
    monkeypatch.setattr(neighbors, "_QUERIES", 300)
    mine(GAUSSIAN, IDS, 10, out)
    assert sum(searched) == 2500 - done and not partial.exists()
    mine(GAUSSIAN, IDS, 10, out)  # complete: nothing is searched
    assert sum(searched) == 2500 - done
    mine(GAUSSIAN, IDS, 10, tmp_path / "again.npy")
    assert out.read_bytes() == (tmp_path / "again.npy").read_bytes()
    np.testing.assert_array_equal(np.load(out), every_pair(GAUSSIAN, 10))


def test_a_killed_header_is_written_anew(tmp_path):
    (tmp_path / "visual.npy.partial").write_bytes(b"\x93NUMPY")
    mine(GAUSSIAN[:50], IDS[:50], 3, tmp_path / "visual.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "visual.npy"), every_pair(GAUSSIAN[:50], 3))


@pytest.fixture
def toys():
    return ToySet(40)


@pytest.fixture
def file(tmp_path, toys):
    path = tmp_path / "toys.npy"
    mine(GAUSSIAN[:40], toys.ids, 4, path)
    return path


def test_another_result_is_left_alone(file, toys):
    before = file.read_bytes()
    about = json.loads(file.with_suffix(".json").read_text())
    mine(GAUSSIAN[:40], toys.ids, 4, file)
    words = f"{file}: belongs to k 4, features {about['features']}; asked for k 5, features "
    with pytest.raises(ValueError, match=re.escape(words)):
        mine(GAUSSIAN[:40].astype(np.float32), toys.ids, 5, file)
    with pytest.raises(ValueError, match="ids: expected 40 different ones, as many as rows of features, got 39"):
        mine(GAUSSIAN[:40], toys.ids[1:], 4, file)
    with pytest.raises(ValueError, match="got 40 of which 39 differ"):
        mine(GAUSSIAN[:40], toys.ids[1:] + toys.ids[-1:], 4, file)
    with pytest.raises(ValueError, match=re.escape("toys.bin: expected a name that ends in .npy")):
        mine(GAUSSIAN[:40], toys.ids, 4, file.with_suffix(".bin"))
    file.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=re.escape(f"{file}: expected toys.json beside it")):
        mine(GAUSSIAN[:40], toys.ids, 4, file)
    assert file.read_bytes() == before


def test_the_nearest_in_a_random_queue(file, toys):
    """As often as in queues that are drawn: one of 10 of 40 samples holds the sample itself every fourth time."""
    found, generator, rng = Neighbors(file, toys), torch.Generator().manual_seed(0), np.random.default_rng(0)
    order = [7, *every_pair(GAUSSIAN[:40], 4)[7]]
    drawn = [order.index(found.draw_from_queue(7, generator, 10)) for _ in range(4000)]
    expected = [min(4, rng.choice(40, 10, replace=False).min()) for _ in range(4000)]  # beyond k it is the last
    assert np.bincount(drawn) / 4000 == pytest.approx(np.bincount(expected) / 4000, abs=0.04)
    assert all(found.draw_from_queue(7, generator, size) == 7 for size in (40, 4000))


def test_draws_are_uniform_over_the_neighbours(file, toys):
    found = Neighbors(file, toys)
    assert found.k == 4 and len(found) == 40 and isinstance(found.ids, np.memmap)
    want = every_pair(GAUSSIAN[:40], 4)
    for generator in (np.random.default_rng(0), torch.Generator().manual_seed(0)):
        drawn = [found.draw(7, generator) for _ in range(4000)]
        counts = [drawn.count(j) for j in want[7]]
        assert sum(counts) == 4000 and all(type(j) is int for j in drawn)
        assert sum((n - 1000) ** 2 / 1000 for n in counts) < 16.3  # chi-square, 3 degrees of freedom, p = .001
    assert found.draw(7, 3) == found.draw(7, 3) == want[7][np.random.default_rng(3).integers(4)]
    assert len({found.draw(7, (3, step)) for step in range(50)}) == 4
    copy = pickle.dumps(found)
    assert len(copy) < 500 and pickle.loads(copy).draw(7, 3) == found.draw(7, 3)
    for index in (-1, 40):
        with pytest.raises(IndexError, match=f"index: expected 0 to 39, got {index}"):
            found.draw(index, 0)


def test_files_that_do_not_fit_are_named(file, toys, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{file}: belongs to number 40, ids ") + ".*; .* have number 39"):
        Neighbors(file, ToySet(39))
    toys.ids = [*toys.ids[1:], toys.ids[0]]
    with pytest.raises(ValueError, match=re.escape(f"{file}: belongs to ids ") + "[0-9a-f]{16}; the samples have ids "):
        Neighbors(file, toys)
    with pytest.raises(FileNotFoundError, match="none.npy"):
        Neighbors(tmp_path / "none.npy")
    whole, sidecar = file.read_bytes(), file.with_suffix(".json")
    for content in (whole[:-5], b"", b"no array"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{file}: expected a complete .npy file of numbers, got: ")):
            Neighbors(file)
    np.save(file, np.zeros((40, 4)))
    with pytest.raises(ValueError, match=re.escape(f"{file}: expected (40, 4) int32, got (40, 4) float64")):
        Neighbors(file)
    for where, value in (((0, 3), -5), ((39, 0), 40), ((17, 2), 10**6)):
        indices = np.frombuffer(whole[-40 * 4 * 4 :], "<i4").reshape(40, 4).copy()
        indices[where] = value
        np.save(file, indices)
        with pytest.raises(
            ValueError, match=re.escape(f"{file}: row {where[0]}: expected indices of 0 to 39, got {value}")
        ):
            Neighbors(file, toys)
    np.save(file, np.zeros((40, 4), np.int64))
    with pytest.raises(ValueError, match=re.escape(f"{file}: expected (40, 4) int32, got (40, 4) int64")):
        Neighbors(file)
    file.write_bytes(whole)
    about = sidecar.read_text()
    for content in ("[]", "{", "[" * 100_000, about.replace("neighbors 1", "neighbors 9")):
        sidecar.write_text(content)
        with pytest.raises(ValueError, match=re.escape(f"{sidecar}: expected what neighbours were made of, format")):
            Neighbors(file)
    np.savez(tmp_path / "several.npz", a=1)
    (tmp_path / "several.npz").rename(file)
    with pytest.raises(ValueError, match="expected one array"):
        Neighbors(file)
