"""Sounds of the embedded data set: level, noise, closed forms of the timbres, and that a sound tells its category."""

import numpy as np
import pytest
from scipy.signal import spectrogram

from ssl_fast.data.scenes import sounds as scene_sounds
from ssl_fast.data.scenes.generator import CATALOGUE, CATEGORIES, Settings, scene


def test_level_of_sounds():
    made = [scene(Settings(size=48), "trio", index) for index in range(60)]
    peaks = [np.abs(wave.astype(int)).max() for one in made for wave in one.waveforms]
    quietest, loudest = 32767 * 0.95 * 10 ** (-14 / 20), 32767 * 0.95
    assert min(peaks) >= quietest - 1 and max(peaks) <= loudest + 1
    assert max(peaks) > 2 * min(peaks)  # the level varies
    assert {one.waveforms.shape for one in made} == {(3, 16000)} and made[0].waveforms.dtype == np.int16


def test_added_noise_has_the_stated_ratio():
    t = np.arange(16000) / 16000
    tone = np.stack([np.sin(2 * np.pi * 440 * t), np.cos(2 * np.pi * 440 * t)], 1)
    ratios = []
    for seed in range(40):
        wave = scene_sounds.render_sound(lambda rng, n: tone[:, 0], np.random.default_rng(seed), 16000) / 32767
        signal = tone @ np.linalg.lstsq(tone, wave, rcond=None)[0]
        ratios.append(10 * np.log10(np.mean(signal**2) / np.mean((wave - signal) ** 2)))
    assert 7.5 < min(ratios) < 14 and 24 < max(ratios) < 30.5


def test_no_clip_is_empty():
    for number, (name, category) in enumerate(CATALOGUE.items()):
        for seed in range(12):
            clean = category.timbre(np.random.default_rng([number, seed]), 16000)
            assert clean.shape == (16000,) and np.isfinite(clean).all(), name
            loud = np.abs(clean) > 0.1 * np.abs(clean).max()
            assert loud.mean() > 0.003, name


def test_plucked_string_equals_its_recursion():
    """The closed form by powers of the filter against the loop that defines Karplus-Strong."""
    rng = np.random.default_rng(4)
    fast = scene_sounds.plucked_string(rng, 16000)
    rng, slow = np.random.default_rng(4), np.zeros(16000)
    open_string = rng.uniform(110, 220)
    for start in scene_sounds._onsets(rng, 16000, rng.uniform(2.5, 5), 0.1):
        period = int(16000 / (open_string * 2 ** ((0, 3, 5, 7, 10, 12)[rng.integers(6)] / 12)))
        state, note = rng.uniform(-1, 1, period), []
        for _ in range(int(0.7 * 16000 / period)):
            note.append(state)
            state = 0.498 * (state + np.roll(state, 1))
        for k, value in enumerate(np.concatenate(note)):
            if 0 <= start + k < 16000:
                slow[start + k] += value
    np.testing.assert_allclose(fast, slow, atol=1e-10)


def test_overtones_equal_the_sum_of_sines():
    phase = np.cumsum(np.random.default_rng(0).uniform(0, 0.2, 500))
    expected = 0.5 * np.sin(phase) + 0.2 * np.sin(3 * phase + 0.7)
    total = scene_sounds._overtones(phase, (0.5, 0, 0.2 * np.exp(0.7j)))
    np.testing.assert_allclose(total, expected, atol=1e-12)


@pytest.mark.slow
def test_sound_identifies_the_category():
    """Ridge regression on log spectrograms pooled to 16 bands (mean and maximum over time), unseen clips, all 16
    categories.
    """

    def describe(category, seed):
        wave = scene_sounds.render_sound(CATALOGUE[category].timbre, np.random.default_rng([seed, 9]), 16000) / 32768
        bands = np.log(spectrogram(wave, 16000, nperseg=512)[2] + 1e-7)[:256].reshape(16, 16, -1).mean(1)
        return np.concatenate([bands.mean(1), bands.max(1), bands.std(1), [1.0]])

    labels = np.repeat(np.arange(16), 40)
    known = np.stack([describe(CATEGORIES[c], 100 * c + k) for c in range(16) for k in range(40)])
    unseen = np.stack([describe(CATEGORIES[c], 5000 + 100 * c + k) for c in range(16) for k in range(12)])
    weights = np.linalg.solve(known.T @ known + np.eye(known.shape[1]), known.T @ np.eye(16)[labels])
    assert ((unseen @ weights).argmax(1) == np.repeat(np.arange(16), 12)).mean() > 0.75
