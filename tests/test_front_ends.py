"""The published audio pipelines against plain loops written from their description (recorded values: test_golden)."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import spectrogram

from ssl_fast.cli import main as cli
from ssl_fast.data.io.audio import MediaError
from ssl_fast.data.io.front_ends import FRONT_ENDS, FrontEnd, PublishedFrontEnd, file_spectrogram, front_end_named
from ssl_fast.models import checkpoints

PUBLISHED = [name.removeprefix("published/") for name in FRONT_ENDS if name.startswith("published/")]


def published(name, path):
    return file_spectrogram(FRONT_ENDS[f"published/{name}"], path)


def wav(path, seconds, channels=1, rate=16000, seed=0):
    """Noise under a slow envelope; returns the samples as 16-bit integers (n, channels)."""
    n = int(seconds * rate)
    noise = np.random.default_rng(seed).uniform(-1, 1, (n, channels)) * (0.2 + np.linspace(0, 0.7, n)[:, None])
    whole = (noise * 32767).astype(np.int16)
    soundfile.write(path, whole, rate)
    return whole.astype(np.float64)


def tile(x, n):
    return np.concatenate([x] * (n // len(x) + 1))[:n] if len(x) < n else x


def log_psd(x, overlap):
    return np.log(spectrogram(x, 16000, nperseg=512, noverlap=overlap)[2] + 1e-7) / 12


@pytest.mark.parametrize("seconds", [1.3, 64001 / 16000, 5.0, 10.0, 12.5])
def test_by_the_description(tmp_path, seconds):
    path = tmp_path / "a.wav"
    whole = wav(path, seconds)[:, 0]
    pyav, plain = whole / 32767, whole / 32768
    for name in ("ezvsl", "fnac"):
        start = int(max(seconds / 2 - 1.5, 0) * 16000)
        cut = tile(pyav, 48000)[start : start + 48000]
        np.testing.assert_allclose(published(name, path)[0], log_psd(cut, 274), rtol=1e-5)
    np.testing.assert_allclose(published("lvs", path)[0], log_psd(tile(plain, 160000)[:160000], 274), rtol=1e-5)
    for name, length, first, last in (("sslalign", 10, 3.5, 6.5), ("sslalign_avs", 5, 1, 4)):
        cut = tile(plain, 16000 * length)[: 16000 * length][int(16000 * first) : int(16000 * last)]
        np.testing.assert_allclose(published(name, path)[0], log_psd(cut, 353), rtol=1e-5)
    for name, n, first in (
        ("sslalign_ezvsl", 160000, 236),
        ("sslalign_ezvsl_avs", 80000, 67),
        ("vssleval_fnac", 48000, 0),
    ):
        clip = tile(pyav, n)[:n]
        shift = n // 2 - int(seconds / 2 * 16000)
        rolled = np.array([clip[(i - shift) % n] for i in range(n)])
        expected = log_psd(rolled, 274)[:, first : first + 200]
        np.testing.assert_allclose(published(name, path)[0], expected, rtol=1e-5)


def test_mel_by_the_description(tmp_path):
    path = tmp_path / "a.wav"
    x = tile(wav(path, 7.0)[:, 0] / 32768, 160000)[:160000]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    padded = np.concatenate([x[256:0:-1], x, x[-2:-258:-1]])
    frames = np.stack([padded[k * 239 : k * 239 + 512] for k in range(670)])
    power = np.abs(np.fft.rfft(frames * window)) ** 2 / (window**2).sum()
    hertz = np.linspace(0, 8000, 257)
    top = 2595 * math.log10(1 + 8000 / 700)
    points = 700 * (10 ** (np.linspace(0, top, 259) / 2595) - 1)
    filters = np.zeros((257, 257))
    for k in range(257):
        low, middle, high = points[k : k + 3]
        filters[:, k] = np.clip(np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)), 0, None)
    assert (filters.max(0) == 0).sum() == 28
    expected = 10 * np.log10(np.maximum(power @ filters, 1e-10)).T
    got = published("ssltie", path)
    assert got.shape == (1, 257, 670) and got.dtype == torch.float32
    np.testing.assert_allclose(got[0], expected, atol=5e-3)  # decibels; the filters are float32
    assert ((got[0] == -100).all(1)).sum() == 28


@pytest.mark.parametrize("name", PUBLISHED)
def test_silence_and_shapes(name, tmp_path):
    front_end, path = FRONT_ENDS[f"published/{name}"], tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000, np.int16), 16000)
    got = published(name, path)
    assert got.shape == (1, *front_end.shape)
    np.testing.assert_allclose(got, -100 if name == "ssltie" else -1.343175, rtol=1e-6)


def test_stereo(tmp_path):
    path, mono = tmp_path / "a.wav", tmp_path / "b.wav"
    whole = wav(path, 4.0, channels=2)
    for name, mixed in (("ezvsl", np.ceil(whole.mean(1))), ("sslalign", whole[:, 0]), ("ssltie", whole[:, 0])):
        soundfile.write(mono, mixed.astype(np.int16), 16000)
        assert torch.equal(published(name, path), published(name, mono))


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_rates_are_errors(name, tmp_path):
    path = tmp_path / "a.wav"
    wav(path, 1.0, rate=44100)
    with pytest.raises(MediaError, match=rf"a.wav: expected 16000 Hz, as {name} never resamples, got 44100"):
        published(name, path)
    with pytest.raises(MediaError, match="none.wav: no such file"):
        published(name, tmp_path / "none.wav")


# Names and cache keys lie in checkpoints, results and caches that were written before: they must stay.
STORED = {
    "ez_vsl": (3.0, 238, (16000, None, "mean", "float")),
    "slavc": (3.0, 238, (16000, None, "mean", "float")),
    "fnac": (3.0, 238, (16000, None, "mean", "float")),
    "lvs": (10.0, 238, (16000, None, "mean", "float")),
    "ssl_align": (3.0, 159, (16000, 10.0, "mean", "float")),
    "ssl_tie": (10.0, 239, (16000, None, "mean", "float")),
    "scenes": (1.0, 238, (16000, None, "mean", "float")),
    "published/ezvsl": (3.0, 238, (16000, None, "mean", "int16", False, 48000)),
    "published/fnac": (3.0, 238, (16000, None, "mean", "int16", False, 48000)),
    "published/lvs": (10.0, 238, (16000, None, "mean", "float", False, 160000)),
    "published/sslalign": (3.0, 159, (16000, 10.0, "first", "float", False, 48000)),
    "published/sslalign_ezvsl": (10.0, 238, (16000, None, "mean", "int16", True, 160000)),
    "published/sslalign_avs": (3.0, 159, (16000, 5.0, "first", "float", False, 48000)),
    "published/sslalign_ezvsl_avs": (5.0, 238, (16000, None, "mean", "int16", True, 80000)),
    "published/vssleval_fnac": (3.0, 238, (16000, None, "mean", "int16", True, 48000)),
    "published/ssltie": (10.0, 239, (16000, None, "first", "float", False, 160000)),
}


def test_stored_names_and_cache_keys_stay():
    assert STORED.keys() == FRONT_ENDS.keys()
    for name, (seconds, hop, decoding) in STORED.items():
        front_end = front_end_named(name)
        assert (front_end.name, front_end.seconds, front_end.hop, front_end.decoding) == (name, seconds, hop, decoding)
        assert type(front_end) is (PublishedFrontEnd if name.startswith("published/") else FrontEnd)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_lists_every_name(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    own, released = text.partition("how sounds become spectrograms: ")[2].partition(" (default")[0].split("; ")
    released = [f"published/{name}" for name in released.partition("published/ with ")[2].split(", ")]
    assert sorted(own.split(", ") + released) == sorted(FRONT_ENDS)


def test_table_of_the_documentation():
    """A row for each name: rate, seconds, hop and shape."""
    page = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    rows = {name: row for row in rows for name in re.findall("`([a-z][^`]*)`", row[0]) if len(row) == 8}
    assert rows.keys() == FRONT_ENDS.keys()
    for name, one in FRONT_ENDS.items():
        _, _, rate, segment, hop, shape, log, scale = rows[name]
        assert rate == ("16 kHz only" if name.startswith("published/") else "any, to 16 kHz")
        assert float(segment.split(" s")[0]) == one.seconds and int(hop) == one.hop
        assert shape == "{} x {}".format(*one.shape)
        assert log.startswith("10 log10" if one.mel else "ln") and scale == ("none" if one.mel else "/ 12")


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_checkpoints_hear_by_every_front_end(name, tmp_path):
    """What a checkpoint stores is the name alone."""
    found = checkpoints.load(checkpoints.EMBEDDED)
    checkpoints.write(replace(found, recipe=found.recipe | {"front_end": name}), tmp_path / "a.pt")
    assert checkpoints.load(tmp_path / "a.pt").front_end is FRONT_ENDS[name]


def test_quiet_is_what_its_docstring_says():
    """Digital silence is; a tone of -60 dB of full scale and white noise of -48 dB are, of -55 and -42 dB not."""
    for front_end in FRONT_ENDS.values():
        assert front_end.spectrogram(torch.zeros(front_end.samples)).max() <= front_end.quiet
    front_end = FRONT_ENDS["ez_vsl"]
    time = torch.arange(front_end.samples, dtype=torch.float64) / 16000
    noise = torch.randn(front_end.samples, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for waveform, silent, heard in ((torch.sin(2 * torch.pi * 1000 * time), -60, -55), (noise, -48, -42)):
        loudest = [
            (front_end.spectrogram(waveform * 10 ** (level / 20)) > front_end.quiet).any(0).double().mean()
            for level in (silent, heard)
        ]
        assert loudest[0] < 0.1 and loudest[1] > 0.9
