"""Ranges of maps and their mixture against loops over pixels."""

import numpy as np
import pytest

from ssl_fast.evaluation import mixing


@pytest.fixture
def maps():
    maps = np.random.default_rng(3).standard_normal((4, 5, 6)).astype(np.float32)
    maps[2] = 0.25
    return maps


def by_pixel(function, maps):
    return np.array([[[function(float(x), m) for x in row] for row in m] for m in maps])


def test_min_max_and_a_constant_map(maps):
    got = mixing.min_max(maps)
    assert got.dtype == np.float32 and (got[2] == 0.25).all()
    varied = [0, 1, 3]
    assert (got[varied].min((1, 2)) == 0).all() and (got[varied].max((1, 2)) == 1).all()
    expected = by_pixel(lambda x, m: (x - float(m.min())) / (float(m.max()) - float(m.min())), maps[varied])
    np.testing.assert_allclose(got[varied], expected, atol=1e-6)
    np.testing.assert_allclose(mixing.min_max_flipped(maps)[varied], expected, atol=1e-6)
    assert (mixing.min_max_flipped(maps)[2] == 1.25).all()
    assert (maps[2] == 0.25).all()  # the input stays as it is


def test_fixed_ranges(maps):
    tau = 0.03
    np.testing.assert_allclose(
        mixing.fixed_range(maps / np.float32(tau), tau),
        by_pixel(lambda x, m: (x / tau + 1 / tau) / (2 / tau), maps),
        atol=1e-5,
    )
    np.testing.assert_allclose(mixing.unit_range(maps), by_pixel(lambda x, m: (x + 1) / 2, maps), atol=1e-6)
    assert mixing.fixed_range(np.full((1, 1, 1), 1 / tau), tau) == mixing.unit_range(np.ones((1, 1, 1))) == 1
    for name, factor in (("none", 1), ("prior_range", 0.4), ("channel_sum", 512), ("two_cosines", 2)):
        np.testing.assert_allclose(mixing.NORMALISATIONS[name](maps), factor * maps.astype(np.float64), rtol=1e-6)


def test_mix_is_linear_in_alpha(maps):
    prior = np.abs(maps[::-1])
    expected = [
        [[0.4 * float(maps[n, i, j]) + 0.6 * float(prior[n, i, j]) for j in range(6)] for i in range(5)]
        for n in range(4)
    ]
    np.testing.assert_allclose(mixing.mix(maps, prior, 0.4), expected, atol=1e-6)
    np.testing.assert_array_equal(mixing.mix(maps, prior, 1), maps)
    np.testing.assert_array_equal(mixing.mix(maps, prior, 0), prior)


def test_bad_arguments_say_what_was_expected(maps):
    with pytest.raises(ValueError, match=r"prior: expected shape \(4, 5, 6\) to match audio_visual, got \(3, 5, 6\)"):
        mixing.mix(maps, maps[:3], 0.4)
    with pytest.raises(ValueError, match=r"alpha: expected a weight within \[0, 1\], got 1.5"):
        mixing.mix(maps, maps, 1.5)
    with pytest.raises(ValueError, match="tau: expected a positive temperature, got 0"):
        mixing.fixed_range(maps, 0)
    maps[1, 0, 0] = np.nan
    for function in (*mixing.NORMALISATIONS.values(), lambda m: mixing.mix(m, m, 0.5)):
        with pytest.raises(ValueError, match="sample 1 holds 1 values that are NaN or infinite"):
            function(maps)
