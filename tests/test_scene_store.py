"""The cache of generated scenes: same bytes from any number of processes, whole or absent, and never trusted."""

import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from ssl_fast.data.scenes import store
from ssl_fast.data.scenes.generator import CATEGORIES, Settings, scene
from ssl_fast.data.scenes.store import CacheError, load_arrays, split_folder

TINY = Settings(size=48, categories=5, train=14, val=6, single=4, duo=5, trio=3)


def read(split, cache, **options):
    return load_arrays(split, TINY, cache=cache, progress=False, **{"workers": 0} | options)


def same(first, second):
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(vars(first).values(), vars(second).values()))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def no_generator(monkeypatch):
    def fail(*_):
        raise AssertionError("a cached split was generated again")

    return lambda: monkeypatch.setattr(store, "scene", fail)


def test_cached_arrays_are_the_scenes(tmp_path):
    arrays = read("train", tmp_path)
    first_object = 0
    for index in range(TINY.train):
        one = scene(TINY, "train", index)
        rows = slice(first_object, first_object + len(one.categories))
        assert np.array_equal(arrays.images[index], one.image)
        bits = np.unpackbits(arrays.masks[rows], axis=1, count=48 * 48).reshape(-1, 48, 48)
        assert np.array_equal(bits, one.masks)
        assert np.array_equal(arrays.boxes[rows], one.boxes)
        assert [(i, CATEGORIES[c]) for i, c in arrays.objects[rows]] == [(index, c) for c in one.categories]
        assert arrays.sounds[index] == first_object + one.sounding[0]
        assert np.array_equal(arrays.waveforms[index], one.waveforms[0])
        first_object += len(one.categories)
    assert len(arrays.objects) == first_object and len(arrays.sounds) == TINY.train


def test_second_load_reads_the_same_bytes(tmp_path, no_generator):
    first = read("duo", tmp_path)
    files = contents(split_folder("duo", TINY, tmp_path))
    no_generator()
    assert same(read("duo", tmp_path), first)
    assert contents(split_folder("duo", TINY, tmp_path)) == files


def test_worker_processes_make_the_same_bytes_as_one(tmp_path):
    torch.randn(300, 300) @ torch.randn(300, 300)  # torch's threads are running
    for workers in (1, 3):
        assert same(read("train", tmp_path / str(workers), workers=workers), read("train", tmp_path / "here"))
        assert contents(split_folder("train", TINY, tmp_path / str(workers))) == contents(
            split_folder("train", TINY, tmp_path / "here")
        )
        assert [path.name[:5] for path in (tmp_path / str(workers) / "scenes").iterdir()] == ["train"]


@pytest.mark.slow
def test_script_without_main_guard_can_load(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch; torch.ones(9, 9) @ torch.ones(9, 9)\n"
        "from ssl_fast.data.scenes import store as s\n"
        f"a = s.load_arrays('trio', s.{TINY!r}, cache={str(tmp_path)!r}, progress=False, workers=2)\n"
        "print(a.images.sum())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == read("trio", tmp_path / "other").images.sum()


def test_workers_do_not_import_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_START", store._START + "if 'torch' in sys.modules: sys.exit('torch was imported')\n")
    read("trio", tmp_path, workers=1)


@pytest.mark.parametrize("change", [{"seed": 1}, {"size": 49}, {"categories": 6}, {"trio": 2}, {"seconds": 1.25}])
def test_folder_depends_on_each_setting(change, tmp_path):
    assert split_folder("trio", Settings(**vars(TINY) | change), tmp_path) != split_folder("trio", TINY, tmp_path)


def test_folder_depends_on_version_and_split_but_not_on_other_splits(tmp_path, monkeypatch):
    folder = split_folder("trio", TINY, tmp_path)
    assert split_folder("trio", Settings(**vars(TINY) | {"train": 99}), tmp_path) == folder
    assert split_folder("duo", Settings(**vars(TINY) | {"duo": TINY.trio}), tmp_path).name[-16:] != folder.name[-16:]
    monkeypatch.setattr(store, "VERSION", 999)
    assert split_folder("trio", TINY, tmp_path) != folder


def test_default_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_FAST_CACHE", str(tmp_path / "mine"))
    assert split_folder("duo", TINY).parent == tmp_path / "mine" / "scenes"
    monkeypatch.delenv("SSL_FAST_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_folder("duo", TINY).parent == tmp_path / ".cache" / "ssl_fast" / "scenes"


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(bytes(data))


def empty(path):
    path.write_bytes(b"")


def other_array(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


@pytest.mark.parametrize("file", ["images.npy", "masks.npy", "waveforms.npy", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, other_array, os.remove])
def test_damaged_cache_is_an_error_that_says_what_to_delete(tmp_path, damage, file):
    read("trio", tmp_path)
    folder = split_folder("trio", TINY, tmp_path)
    damage(folder / file)
    with pytest.raises(CacheError) as caught:
        read("trio", tmp_path)
    # a checksum that is off accuses its file
    named = folder if (file, damage) == ("manifest.json", flip_a_bit) else folder / file
    assert str(named) in str(caught.value) and f"Delete the folder {folder} " in str(caught.value)


def test_manifest_of_other_settings_is_an_error(tmp_path):
    read("trio", tmp_path)
    path = split_folder("trio", TINY, tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["seed"] = 8
    path.write_text(json.dumps(manifest))
    with pytest.raises(CacheError, match="manifest of .*'seed': 0.* got .*'seed': 8"):
        read("trio", tmp_path)


def test_cache_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CacheError, match="file/scenes: cannot create the scene cache .*SSL_FAST_CACHE"):
        read("trio", tmp_path / "file")


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(settings, split, index):
        if index == 2:
            raise KeyboardInterrupt
        return scene(settings, split, index)

    monkeypatch.setattr(store, "scene", interrupt)
    with pytest.raises(KeyboardInterrupt):
        read("duo", tmp_path)
    assert list((tmp_path / "scenes").iterdir()) == []
    monkeypatch.setattr(store, "scene", scene)
    read("duo", tmp_path)


@pytest.mark.parametrize(
    "start", ["import sys; sys.exit('a bad day')", store._START.replace(".run_worker(job)", ".absent(job)")]
)
def test_worker_that_fails_is_reported(tmp_path, monkeypatch, start):
    monkeypatch.setattr(store, "_START", start)
    with pytest.raises(RuntimeError, match=r"(?s)scene worker [01] ended with exit status 1: .*(a bad day|absent)"):
        read("duo", tmp_path, workers=2)
    assert list((tmp_path / "scenes").iterdir()) == []


def test_concurrent_generators_end_with_one_whole_cache(tmp_path):
    """Several generators start before any has finished: all get the same arrays, and one folder remains."""
    barrier, results = threading.Barrier(3), []

    def generate():
        barrier.wait()
        results.append(read("duo", tmp_path))

    threads = [threading.Thread(target=generate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and all(same(one, results[0]) for one in results)
    assert list((tmp_path / "scenes").iterdir()) == [split_folder("duo", TINY, tmp_path)]
