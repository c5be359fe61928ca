"""The published audio pipelines against plain loops written from their description (recorded values: test_golden)."""

import math

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import spectrogram

from ssl_fast.data.io.audio import MediaError
from ssl_fast.data.io.published_front_ends import PUBLISHED, run


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
        np.testing.assert_allclose(run(PUBLISHED[name], path)[0], log_psd(cut, 274), rtol=1e-5)
    np.testing.assert_allclose(run(PUBLISHED["lvs"], path)[0], log_psd(tile(plain, 160000)[:160000], 274), rtol=1e-5)
    for name, length, first, last in (("sslalign", 10, 3.5, 6.5), ("sslalign_avs", 5, 1, 4)):
        cut = tile(plain, 16000 * length)[: 16000 * length][int(16000 * first) : int(16000 * last)]
        np.testing.assert_allclose(run(PUBLISHED[name], path)[0], log_psd(cut, 353), rtol=1e-5)
    for name, n, first in (("sslalign_ezvsl", 160000, 236), ("sslalign_ezvsl_avs", 80000, 67)):
        clip = tile(pyav, n)[:n]
        shift = n // 2 - int(seconds / 2 * 16000)
        rolled = np.array([clip[(i - shift) % n] for i in range(n)])
        expected = log_psd(rolled, 274)[:, first : first + 200]
        np.testing.assert_allclose(run(PUBLISHED[name], path)[0], expected, rtol=1e-5)


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
    got = run(PUBLISHED["ssltie"], path)
    assert got.shape == (1, 257, 670) and got.dtype == torch.float32
    np.testing.assert_allclose(got[0], expected, atol=5e-3)  # decibels; the filters are float32
    assert ((got[0] == -100).all(1)).sum() == 28


@pytest.mark.parametrize("name", PUBLISHED)
def test_silence_and_shapes(name, tmp_path):
    front_end, path = PUBLISHED[name], tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16000, np.int16), 16000)
    got = run(front_end, path)
    assert got.shape == (1, *front_end.shape)
    np.testing.assert_allclose(got, -100 if name == "ssltie" else -1.343175, rtol=1e-6)


def test_stereo(tmp_path):
    path, mono = tmp_path / "a.wav", tmp_path / "b.wav"
    whole = wav(path, 4.0, channels=2)
    for name, mixed in (("ezvsl", np.ceil(whole.mean(1))), ("sslalign", whole[:, 0]), ("ssltie", whole[:, 0])):
        soundfile.write(mono, mixed.astype(np.int16), 16000)
        assert torch.equal(run(PUBLISHED[name], path), run(PUBLISHED[name], mono))


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_rates_are_errors(name, tmp_path):
    path = tmp_path / "a.wav"
    wav(path, 1.0, rate=44100)
    with pytest.raises(MediaError, match=rf"a.wav: expected 16000 Hz, as {name} never resamples, got 44100"):
        run(PUBLISHED[name], path)
    with pytest.raises(MediaError, match="none.wav: no such file"):
        run(PUBLISHED[name], tmp_path / "none.wav")
