"""Ranges of maps, and object-guided localization: an audio-visual map mixed with an object prior that never hears.

Maps are (N, h, w), numpy or torch; float32 stays float32 (each step rounds, as in the published programs), float64
stays float64. Rules: a *constant map* has no range and passes `min_max` unchanged, as in all published programs; a NaN
or an infinity is an error that names the sample (`metrics.check_maps`).
"""

from collections.abc import Callable

import numpy as np

from .metrics import check_maps

FIELD_CHANNELS = 512  # of the ResNet-18 features behind every published object prior
PRIOR_RANGE = 2.5  # by which SLAVC divides the mean of these features


def min_max(maps) -> np.ndarray:
    """(x - min) / (max - min) of each map; a constant map stays what it is."""
    maps = check_maps(maps)
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.divide(maps - low, high - low, out=maps.copy(), where=high > low)


def min_max_flipped(maps) -> np.ndarray:
    """1 - min_max(-x), as LVS, SSL-TIE and SSL-Align write it: `min_max` but for the rounding, and 1 + x for a constant
    map."""
    return 1 - min_max(-check_maps(maps))


def fixed_range(maps, tau: float) -> np.ndarray:
    """(x + 1 / tau) / (2 / tau): SLAVC's maps, cosines / tau, to [0, 1]."""
    if not tau > 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    return (check_maps(maps) + 1 / tau) / (2 / tau)


def unit_range(maps) -> np.ndarray:
    """(x + 1) / 2: cosines to [0, 1] (vssl_eval, for EZ-VSL, SLAVC and FNAC)."""
    return (check_maps(maps) + 1) / 2


# Normalisations by name, as protocols store them.
NORMALISATIONS: dict[str, Callable] = {
    "none": check_maps,
    "min_max": min_max,
    "min_max_flipped": min_max_flipped,
    "unit": unit_range,
    "prior_range": lambda maps: check_maps(maps) / PRIOR_RANGE,  # SLAVC
    "channel_sum": lambda maps: check_maps(maps) * FIELD_CHANNELS,  # a mean over channels to the L1 norm
    "two_cosines": lambda maps: check_maps(maps) * 2,  # a mean of SLAVC's two cosines to their sum
}

# Before up-sampling or after it: the same, but for rounding.
LINEAR = {*NORMALISATIONS} - {"min_max", "min_max_flipped"}


def mix(audio_visual, prior, alpha: float) -> np.ndarray:
    """alpha · audio-visual + (1 - alpha) · object prior, both (N, h, w) and already in their ranges.

    EZ-VSL, FNAC: `min_max` of both, alpha .4; SLAVC: `fixed_range` and x / 2.5, alpha .4 (.9 in its scripts);
    SSL-Align: as EZ-VSL; vssl_eval: as they are, .4; VSL of the IPOL note (eq. 7): the sum of two cosines and the L1
    norm.
    """
    audio_visual, prior = check_maps(audio_visual, name="audio_visual"), check_maps(prior, name="prior")
    if audio_visual.shape != prior.shape:
        raise ValueError(f"prior: expected shape {audio_visual.shape} to match audio_visual, got {prior.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: expected a weight within [0, 1], got {alpha}")
    return alpha * audio_visual + (1 - alpha) * prior
