"""Sounds of scenes: one timbre per category, with varied pitch, tempo, envelope, level and added noise. numpy only.

A timbre is a function (rng, samples) -> float64 (samples,), of any level; `render_sound` adds noise, sets the level
and rounds to int16. Repeated events start before the clip does, so a clip may open within a ring or a bark, and no
position in it is special.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

SAMPLE_RATE = 16_000  # Hz
SIGNAL_TO_NOISE = (8.0, 30.0)  # dB, power of the clip over power of the added noise
LEVEL = (-14.0, 0.0)  # dB of the clip's peak relative to PEAK
PEAK = 0.95  # of full scale

Timbre = Callable[[np.random.Generator, int], np.ndarray]


def render_sound(timbre: Timbre, rng: np.random.Generator, samples: int) -> np.ndarray:
    """int16 (samples,) at 16 kHz: `timbre` with coloured noise SIGNAL_TO_NOISE below it; its peak is at LEVEL."""
    clean = timbre(rng, samples)
    slope, ratio = rng.random(), rng.uniform(*SIGNAL_TO_NOISE)
    noise = coloured_noise(rng, samples, lambda frequency: (1 + frequency / 300) ** -slope)
    noise *= np.sqrt(np.mean(clean**2) / np.mean(noise**2)) * _gain(-ratio)
    sound = clean + noise
    sound *= PEAK * _gain(rng.uniform(*LEVEL)) / np.abs(sound).max()
    return np.rint(sound * 32767).astype(np.int16)


def faded(sound: np.ndarray, seconds: float) -> np.ndarray:
    """int16 (samples,) that rises from 0 and falls to 0 within so many seconds, without a click."""
    rise = np.sin(np.pi / 2 * np.arange(int(seconds * SAMPLE_RATE)) / int(seconds * SAMPLE_RATE)) ** 2
    gain = np.ones(len(sound))
    gain[: len(rise)], gain[len(sound) - len(rise) :] = rise, rise[::-1]
    return np.rint(sound * gain).astype(np.int16)


# ---------------------------------------------------------------------------------------------------------------------
# Building blocks


def _gain(decibel: float) -> float:
    return 10 ** (decibel / 20)


def _times(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _phase(frequency: np.ndarray) -> np.ndarray:
    """Phase in radians of a tone whose frequency in Hz varies by sample."""
    return 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE


def _overtones(phase: np.ndarray, strengths: Iterable[complex | np.ndarray]) -> np.ndarray:
    """Sum over k = 1, 2, ... of strength k times sin(k * phase); a complex strength shifts its partial."""
    turn = np.exp(1j * phase)  # its powers are cheaper than as many sines
    power, total = turn.copy(), np.zeros(len(phase))
    for strength in strengths:
        total += (strength * power).imag
        power *= turn
    return total


def _sweep(rng: np.random.Generator, t: np.ndarray, rate: float) -> np.ndarray:
    """Slow sine of a random phase, `rate` in Hz."""
    return np.sin(2 * np.pi * (rate * t + rng.random()))


def _wander(rng: np.random.Generator, samples: int, rate: float) -> np.ndarray:
    """Random walk without drift: normal numbers, `rate` a second, joined by lines."""
    knots = int(rate * samples / SAMPLE_RATE) + 2
    return np.interp(np.arange(samples), np.linspace(0, samples, knots), rng.normal(0, 1, knots))


def coloured_noise(rng: np.random.Generator, samples: int, spectrum: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Noise whose amplitude spectrum follows `spectrum` (of frequency in Hz); its peak is 1."""
    shaped = np.fft.rfft(rng.normal(0, 1, samples)) * spectrum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE))
    noise = np.fft.irfft(shaped, samples)
    return noise / np.abs(noise).max()


def _onsets(rng: np.random.Generator, samples: int, rate: float, jitter: float) -> Iterator[int]:
    """Start samples of events, about `rate` a second; the first is up to one period before the clip."""
    start = -rng.random() / rate
    while start * SAMPLE_RATE < samples:
        yield int(np.floor(start * SAMPLE_RATE))
        start += (1 + rng.uniform(-jitter, jitter)) / rate


def _add(clip: np.ndarray, event: np.ndarray, start: int) -> None:
    """Add `event` to `clip` in place from sample `start`, which may be negative; what falls outside is lost."""
    first, last = max(start, 0), min(start + len(event), len(clip))
    if first < last:
        clip[first:last] += event[first - start : last - start]


# ---------------------------------------------------------------------------------------------------------------------
# One timbre per category


def struck_bell(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Inharmonic partials, the higher the shorter, struck about twice a second."""
    ratios = np.array([0.56, 0.92, 1.19, 1.71, 2.0, 2.74, 3.0, 3.76])[:, None]
    strength, decay = rng.uniform(0.3, 1, (8, 1)), rng.uniform(0.25, 0.9, (8, 1)) / np.sqrt(ratios + 0.3)
    t = _times(1.4)
    strike = (strength * np.sin(2 * np.pi * rng.uniform(260, 700) * ratios * t) * np.exp(-t / decay)).sum(0)
    clip = np.zeros(samples)
    for start in _onsets(rng, samples, rng.uniform(1.2, 2.6), 0.05):
        _add(clip, strike * rng.uniform(0.6, 1), start)
    return clip


def beaten_drum(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A low tone that falls as it dies, and a short rustle of the skin."""
    t = _times(0.3)
    low, high = rng.uniform(45, 80), rng.uniform(120, 220)
    tone = np.sin(_phase(low + (high - low) * np.exp(-t / 0.03))) * np.exp(-t / rng.uniform(0.06, 0.13))
    rustle, clip = rng.uniform(0.1, 0.5) * np.exp(-t / 0.02), np.zeros(samples)
    for start in _onsets(rng, samples, rng.uniform(2.5, 6), 0.2):
        _add(clip, (tone + rustle * rng.normal(0, 1, len(t))) * rng.uniform(0.5, 1), start)
    return clip


def plucked_string(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Karplus-Strong: a burst of noise circulates through a two-point average. Period k has passed it k times, so its
    spectrum is that of the burst times the k-th power of the filter's."""
    open_string, clip = rng.uniform(110, 220), np.zeros(samples)
    for start in _onsets(rng, samples, rng.uniform(2.5, 5), 0.1):
        note = open_string * 2 ** ((0, 3, 5, 7, 10, 12)[rng.integers(6)] / 12)
        period = int(SAMPLE_RATE / note)
        burst = np.fft.rfft(rng.uniform(-1, 1, period))
        average = 0.498 * (1 + np.exp(-2j * np.pi * np.arange(len(burst)) / period))
        periods = np.tile(average, (int(0.7 * SAMPLE_RATE / period), 1))
        periods[0] = burst
        _add(clip, np.fft.irfft(np.multiply.accumulate(periods), period).ravel(), start)
    return clip


def wailing_siren(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A tone with two overtones that rises and falls."""
    depth = rng.uniform(0.25, 0.45) * _sweep(rng, np.arange(samples) / SAMPLE_RATE, rng.uniform(0.9, 2.2))
    phase = _phase(rng.uniform(600, 1000) * (1 + depth))
    return _overtones(phase, (1, 0.5, 0.3))


def chirping(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Short high whistles that glide, now and then one left out."""
    t, clip = _times(rng.uniform(0.05, 0.12)), np.zeros(samples)
    pitch, glide = rng.uniform(2200, 4200), rng.uniform(0.15, 0.5) * (2 * rng.integers(2) - 1)
    course = 1 + glide * (np.arange(len(t)) / len(t) - 0.5)
    envelope = np.sin(np.pi * np.arange(len(t)) / len(t)) ** 2
    for event, start in enumerate(_onsets(rng, samples, rng.uniform(5, 9), 0.3)):
        if event < 2 or rng.random() > 0.2:  # the first two always sound: a clip is never empty
            _add(clip, np.sin(_phase(pitch * rng.uniform(0.9, 1.1) * course)) * envelope, start)
    return clip


def grinding_gears(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A low buzz of many partials that pulses, over low noise."""
    t = np.arange(samples) / SAMPLE_RATE
    phase = 2 * np.pi * rng.uniform(45, 95) * t
    buzz = _overtones(phase, [np.exp(2j * np.pi * rng.random()) / k**0.8 for k in range(1, 25)])
    buzz *= 1 + 0.6 * _sweep(rng, t, rng.uniform(6, 14))
    return buzz / 3 + 0.4 * coloured_noise(rng, samples, lambda frequency: 1 / (1 + (frequency / 600) ** 2))


def ticking(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Very short clicks at a steady beat; tick and tock ring at two pitches."""
    t, clip, pitches = _times(0.03), np.zeros(samples), rng.uniform(2200, 4500, 2)
    for event, start in enumerate(_onsets(rng, samples, rng.uniform(3, 6.5), 0.02)):
        ring = np.sin(2 * np.pi * pitches[event % 2] * t) * np.exp(-t / 0.004)
        _add(clip, ring + 0.5 * rng.normal(0, 1, len(t)) * np.exp(-t / 0.0015), start)
    return clip


def blown_flute(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Nearly pure tones of a pentatonic scale with vibrato, joined to a melody, and breath."""
    t, key = np.arange(samples) / SAMPLE_RATE, rng.uniform(500, 900)
    pitch, envelope = np.zeros(samples), np.zeros(samples)
    starts = list(_onsets(rng, samples, rng.uniform(1.5, 4), 0.2))
    for start, stop in zip(starts, [*starts[1:], samples + SAMPLE_RATE // 4]):
        note = slice(max(start, 0), min(stop, samples))
        since, left = t[note] - start / SAMPLE_RATE, stop / SAMPLE_RATE - t[note]
        pitch[note] = key * 2 ** ((0, 2, 4, 7, 9, 12)[rng.integers(6)] / 12)
        envelope[note] = np.minimum(1, np.minimum(since / 0.04, left / 0.04 + 0.1))
    phase = _phase(pitch * (1 + 0.015 * _sweep(rng, t, rng.uniform(4, 7))))
    breath = coloured_noise(rng, samples, lambda frequency: 1 / (1 + np.abs(frequency - 2000) / 800))
    return envelope * _overtones(phase, (1, 0.25, 0.08)) + 0.06 * breath


def whirring_fan(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Low noise, chopped by the blades."""
    corner = rng.uniform(400, 1200)
    wind = coloured_noise(rng, samples, lambda frequency: 1 / (1 + (frequency / corner) ** 2))
    return wind * (1 + 0.8 * _sweep(rng, np.arange(samples) / SAMPLE_RATE, rng.uniform(9, 22)))


def dripping(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Many short blips, each of its own pitch and rising."""
    clip = np.zeros(samples)
    for start in _onsets(rng, samples, rng.uniform(7, 16), 0.8):
        length = rng.uniform(0.03, 0.07)
        t = _times(length)
        pitch = rng.uniform(500, 1500) * (1 + rng.uniform(0.3, 0.9) * t / length)
        _add(clip, np.sin(_phase(pitch)) * np.exp(-3 * t / length) * rng.uniform(0.3, 1), start)
    return clip


def dialling(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Key tones: a pair of a low and a high frequency of the telephone's table for each key."""
    clip, length = np.zeros(samples), rng.uniform(0.08, 0.16)
    t = 2 * np.pi * _times(length)
    for start in _onsets(rng, samples, 1 / (length * rng.uniform(1.5, 2.2)), 0.05):
        low, high = (697, 770, 852, 941)[rng.integers(4)], (1209, 1336, 1477)[rng.integers(3)]
        _add(clip, np.sin(low * t) + np.sin(high * t), start)
    return clip


def blown_horn(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Long notes of twelve partials; the louder, the brighter."""
    clip, key = np.zeros(samples), rng.uniform(150, 330)
    for start in _onsets(rng, samples, rng.uniform(1.2, 3), 0.2):
        length = rng.uniform(0.25, 0.6)
        t, note = _times(length), key * (1, 1.25, 1.5)[rng.integers(3)]
        loudness = np.minimum(1, t / 0.06) * np.minimum(1, (length - t) / 0.08)
        brightness = np.exp(-0.12 / (loudness + 0.05))
        _add(clip, loudness * _overtones(2 * np.pi * note * t, (brightness**k for k in range(1, 13))), start)
    return clip


def meowing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A voice whose pitch and formant open and close."""
    clip, pitch = np.zeros(samples), rng.uniform(380, 650)
    for start in _onsets(rng, samples, rng.uniform(1.3, 2.2), 0.2):
        t = np.arange(int(rng.uniform(0.35, 0.6) * SAMPLE_RATE))
        opening = np.sin(np.pi * t / len(t))
        frequency, formant = pitch * (1 + 0.35 * opening), 900 + 1600 * opening
        strengths = (np.exp(-(((k * frequency - formant) / 600) ** 2)) for k in range(1, 11))
        _add(clip, opening * _overtones(_phase(frequency), strengths), start)
    return clip


def hissing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """High noise in quick pulses."""
    corner = rng.uniform(3500, 5500)
    hiss = coloured_noise(rng, samples, lambda frequency: 1 / (1 + np.exp((corner - frequency) / 300)))
    return hiss * (0.5 + 0.5 * _sweep(rng, np.arange(samples) / SAMPLE_RATE, rng.uniform(14, 28)))


def buzzing(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Fourteen partials of an unsteady pitch and loudness."""
    phase = _phase(rng.uniform(170, 270) * (1 + 0.04 * _wander(rng, samples, 12)))
    return _overtones(phase, (k**-0.6 for k in range(1, 15))) * (1 + 0.3 * _wander(rng, samples, 6))


def honking(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Two square waves a major third apart, in bursts."""
    clip, pitch, length = np.zeros(samples), rng.uniform(330, 430), rng.uniform(0.15, 0.4)
    t = _times(length)  # odd partials below the Nyquist frequency: no aliasing, and no jump that rounding could move
    odd = [k % 2 / k for k in range(1, 15)]
    honk = _overtones(2 * np.pi * pitch * t, odd) + _overtones(2 * np.pi * 1.26 * pitch * t, odd)
    for start in _onsets(rng, samples, 1 / (1.6 * length), 0.2):
        _add(clip, honk, start)
    return clip
