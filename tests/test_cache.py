"""The cache of decoded frames and sounds: the same bits as without it, files that change, many writers, damage."""

import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ssl_fast.data import datasets
from ssl_fast.data.io import cache
from ssl_fast.data.io.audio import MediaError
from ssl_fast.data.io.cache import DecodedCache
from ssl_fast.data.io.front_ends import FRONT_ENDS, FrontEnd
from test_datasets import FRONT_END, folder_set, put

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of newer Pythons, about forking with threads


@pytest.fixture
def root(tmp_path):
    put(tmp_path, "a b", image=".jpg", sound=".wav")
    put(tmp_path, "größe 音", image=".png", sound=".ogg", rate=44100, channels=2)
    put(tmp_path, "c", image=".png", sound=".flac", channels=8)
    soundfile.write(tmp_path / "audio/a b.wav", np.random.default_rng(0).uniform(-1.2, 1.2, (9000, 2)), 16000, "FLOAT")
    return tmp_path


def reads(monkeypatch):
    """Names of the files that are decoded, as it happens."""
    read = []
    decode, clip = datasets.decode_image, FrontEnd.clip
    monkeypatch.setattr(datasets, "decode_image", lambda path: read.append(path.name) or decode(path))
    monkeypatch.setattr(FrontEnd, "clip", lambda self, path: read.append(path.name) or clip(self, path))
    return read


def everything(found):
    out = []
    for i in range(len(found)):
        sample = found[i]
        out += [
            found.frame(i),
            found.clip(i),
            found.waveform(i),
            sample["image"].numpy(),
            sample["spectrogram"].numpy(),
        ]
    return out


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
@pytest.mark.parametrize("front_end", [FRONT_END, FRONT_ENDS["ez_vsl"], FRONT_ENDS["ssl_align"]])
def test_the_same_bits_and_each_file_decoded_once(root, monkeypatch, front_end, resampler):
    how = {"front_end": front_end, "resampler": resampler}
    expected, read = everything(folder_set(root, **how)), reads(monkeypatch)
    for _ in range(2):  # made, then read back by another set
        for got, value in zip(everything(folder_set(root, cache=root / "cache", **how)), expected, strict=True):
            assert got.dtype == value.dtype
            np.testing.assert_array_equal(got, value)
    assert sorted(read) == ["a b.jpg", "a b.wav", "c.flac", "c.png", "größe 音.ogg", "größe 音.png"]
    stored = [np.load(path) for path in (root / "cache").rglob("*.npy")]
    assert sorted((x.dtype.name, x.ndim) for x in stored) == [("float32", 1)] * 3 + [("uint8", 3)] * 3
    assert not [path for path in (root / "cache").rglob("*") if path.is_file() and path.suffix != ".npy"]


def test_preload_goes_through_the_cache(root, monkeypatch):
    expected = everything(folder_set(root))
    folder_set(root, cache=root / "cache").preload()
    read = reads(monkeypatch)
    found = folder_set(root, cache=root / "cache").preload()
    for got, value in zip(everything(found), expected, strict=True):
        np.testing.assert_array_equal(got, value)
    assert read == []


def test_what_is_read_back_may_be_changed_and_the_file_stays(root):
    for _ in range(3):
        found = folder_set(root, cache=root / "cache")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of torch, about arrays that cannot be written to
            torch.from_numpy(found.frame(0)).zero_()
            torch.from_numpy(found.clip(0)).zero_()
    assert folder_set(root, cache=root / "cache").frame(0).any()


def test_front_ends_share_what_decodes_alike(root, monkeypatch):
    read = reads(monkeypatch)
    for front_end in (FRONT_ENDS["ez_vsl"], FRONT_ENDS["lvs"], FRONT_ENDS["fnac"]):
        folder_set(root, front_end=front_end, cache=root / "cache").clip(0)
    assert read == ["a b.wav"]
    published = [
        FRONT_ENDS[f"published/{name}"] for name in ("ezvsl", "sslalign", "sslalign_ezvsl", "sslalign_ezvsl_avs")
    ]
    for front_end in (*published, FRONT_ENDS["ssl_align"], FrontEnd(name="x", seconds=1.0, hop=160, sample_rate=8000)):
        got = folder_set(root, front_end=front_end, cache=root / "cache").clip(0)
        np.testing.assert_array_equal(got, front_end.clip(root / "audio/a b.wav"))


def test_sources_that_change_are_decoded_anew(root, monkeypatch):
    found = folder_set(root, cache=root / "cache")
    before, path = found.frame(1), root / "frames" / "c.png"
    assert found.ids[1] == "c"
    Image.fromarray(255 - before).save(path)
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(found.frame(1), 255 - before)
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    read = reads(monkeypatch)
    found.frame(1)
    found.frame(1)
    assert read == ["c.png"]
    monkeypatch.setattr(cache, "decoder_versions", lambda: (("pillow", "another"),))
    found.frame(1)
    assert read == ["c.png"] * 2


def test_a_source_that_is_gone_is_an_error(root):
    found = folder_set(root, cache=root / "cache")
    found.frame(1)
    (root / "frames" / "c.png").unlink()
    with pytest.raises(MediaError, match="c.png: no such file"):
        found.frame(1)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: b"", "No data left in file"),
        (lambda data: data[:-1], "mmap length is greater than file size"),
        (lambda data: data[:100], ""),
        (lambda data: b"no array" * 100, "pickled"),
        (lambda data: data.replace(b"|u1", b"|i1"), r"expected values of uint8, got \(30, 40, 3\) of int8"),
    ],
)
def test_damage_is_an_error_that_names_the_file(root, damage, message):
    found = folder_set(root, cache=root / "cache")
    found.frame(1)
    (path,) = (root / "cache").rglob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    source = re.escape(str(root / "frames" / "c.png"))
    expected = rf"^{re.escape(str(path))}: damaged file of the cache, of {source} \(.*{message}.*\); delete it"
    with pytest.raises(MediaError, match=expected):
        found.frame(1)
    path.unlink()
    assert found.frame(1).any()


def test_what_cannot_be_decoded_leaves_nothing(root):
    (root / "frames" / "c.png").write_text("no picture")
    found = folder_set(root, cache=root / "cache")
    with pytest.raises(MediaError, match="c.png: cannot be read as an image"):
        found.frame(1)
    assert list((root / "cache").rglob("*")) == []


def test_a_write_that_fails_leaves_nothing(root, monkeypatch):
    def full(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssl_fast.data.io.cache.write_array", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*\.npy'"):
        folder_set(root, cache=root / "cache").frame(1)
    assert [path for path in (root / "cache").rglob("*") if path.is_file()] == []


def _hammer(folder, source, seed):
    store, order = DecodedCache(folder), np.random.default_rng(seed).permutation(40)
    for i in order:
        got = store.get(source, ("number", int(i)), lambda _: np.full(20000, i, np.float32), np.float32)
        if not (got == i).all():
            return f"{i}: {got}"
    return ""


def test_many_writers_share_a_folder(tmp_path):
    source = tmp_path / "source"
    source.write_text("x")
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_hammer, [tmp_path / "cache"] * 8, [source] * 8, range(8))) == [""] * 8
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 40 and all(path.suffix == ".npy" for path in files)


def test_worker_processes_fill_and_read_it(root):
    expected = [folder_set(root)[i] for i in range(3)]
    for _ in range(2):
        loader = DataLoader(folder_set(root, cache=root / "cache"), num_workers=2, multiprocessing_context="fork")
        for got, one in zip(loader, expected, strict=True):
            assert torch.equal(got["image"][0], one["image"])
            assert torch.equal(got["spectrogram"][0], one["spectrogram"])
