"""Receive scaling between bias and noise: the closed form against a search, and against simulated symbols."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from radio.air.denoising import correlation_of_symbols, predicted_error, shrinkage
from radio.air.regularised import best_scaling, mean_squared_error, regularised
from radio.air.transceiver import average, design_link, measure
from radio.air.zero_forcing import zero_forcing


def _case(seed, users, noise_db):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.05, 2, users), rng.uniform(0, 1, users), 10 ** (noise_db / 10)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    users=st.integers(1, 12),
    noise_db=st.floats(-60, 60),
    correlation=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_no_scaling_has_a_smaller_error_than_the_closed_form(seed, users, noise_db, correlation):
    reach, amplitude, noise = _case(seed, users, noise_db)
    best = best_scaling(reach, amplitude, noise, correlation)

    def error(x):
        return mean_squared_error(x, reach, amplitude, noise, correlation)

    searched = minimize_scalar(error, bounds=(0, (amplitude / reach).max()), options={"xatol": 1e-12})
    assert best.mse == pytest.approx(error(best.inverse_root), rel=1e-12)
    assert best.mse <= searched.fun * (1 + 1e-9)
    np.testing.assert_allclose(
        best.share * amplitude, np.minimum(amplitude, best.inverse_root * reach), rtol=1e-9, atol=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), users=st.integers(1, 8))
def test_with_little_noise_everybody_delivers_and_the_error_is_never_above_exact_inversion(seed, users):
    rng = np.random.default_rng(seed)
    reach, amplitude = rng.uniform(0.2, 2, users), rng.uniform(0.1, 1, users)
    exact = (amplitude / reach).max() ** 2
    for noise in (1e-9, 1.0):
        assert best_scaling(reach, amplitude, noise).mse <= exact * noise * (1 + 1e-12)
    quiet = best_scaling(reach, amplitude, 1e-9)
    assert quiet.share.min() > 1 - 1e-6
    assert quiet.mse == pytest.approx(exact * 1e-9, rel=1e-4)


def test_one_user_is_the_wiener_filter():
    """w = 1: x = c / (c^2 + sigma^2), MSE = sigma^2 / (c^2 + sigma^2)."""
    found = best_scaling([0.5], [1.0], 0.75)
    assert found.inverse_root == pytest.approx(0.5)
    assert found.mse == pytest.approx(0.75)


@pytest.mark.parametrize(
    "values",
    [
        ([0.0], [1.0], 1.0, 0.0),
        ([1.0], [-1.0], 1.0, 0.0),
        ([1.0], [1.0], -1.0, 0.0),
        ([1.0], [1.0], 1.0, 1.5),
        ([1.0, 2.0], [1.0], 1.0, 0.0),
    ],
)
def test_values_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=r"reach|noise|correlation"):
        best_scaling(*values)


def _updates(rng, users, size, correlation):
    """Unit variance, every pair of users correlated by `correlation`."""
    common = rng.standard_normal(size)
    return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * rng.standard_normal((users, size))


def _simulated(scaling, correlation, packing, seed=1, noise_power=2.0):
    """Return the realised, predicted and closed-form error of one round of simulated antennas."""
    rng = np.random.default_rng(seed)
    users, size = 5, 60_000
    channels = (rng.standard_normal((users, 3)) + 1j * rng.standard_normal((users, 3))) / np.sqrt(2)
    beam = channels[0] / np.linalg.norm(channels[0])
    updates = _updates(rng, users, size, correlation)
    link = design_link(
        channels, beam, measure(updates, users), power=1.0, noise_power=noise_power, packing=packing,
        scaling=scaling,
    )  # fmt: skip
    return average(updates, link, rng, simulation="antennas"), link


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_closed_form_is_the_error_of_simulated_symbols(packing, correlation):
    """60 thousand entries of noise at every antenna: within 3 %; and every user keeps its power."""

    def scaling(channels, beam, amplitude, **given_):
        return regularised(channels, beam, amplitude, correlation=correlation, **given_)

    result, link = _simulated(scaling, correlation, packing)
    reach = np.abs(link.inverse.projected)
    expected = best_scaling(reach, link.amplitude, 2.0 if packing == "iq" else 1.0, correlation)
    assert link.inverse.share.min() < 0.9
    assert result.realised_mse == pytest.approx(expected.mse, rel=0.03)
    assert result.predicted_mse == pytest.approx(expected.mse, rel=0.03)
    assert result.transmit_power.max() == pytest.approx(1.0, rel=1e-6)
    exact, _ = _simulated(zero_forcing, correlation, packing)
    assert result.realised_mse < 0.9 * exact.realised_mse


def test_without_noise_it_is_zero_forcing_bit_for_bit():
    rng = np.random.default_rng(3)
    channels = rng.standard_normal((4, 2)) + 1j * rng.standard_normal((4, 2))
    amplitude = np.array([0.1, 0.0, 0.3, 0.2])
    ours, theirs = (
        scaling(channels, np.ones(2), amplitude, power=1.0, noise_power=0.0, packing="iq")
        for scaling in (regularised, zero_forcing)
    )
    np.testing.assert_array_equal(ours.transmit, theirs.transmit)
    np.testing.assert_array_equal(ours.share, np.ones(4))


@pytest.mark.parametrize("signal_db", [-20, 0, 20])
def test_shrinkage_lowers_the_error_at_every_signal_power(signal_db):
    """James and Stein: the mean squared error is below that of what was received, whatever the signal."""
    rng = np.random.default_rng(5)
    signal = 10 ** (signal_db / 20) * rng.standard_normal(200)
    blocks = (slice(0, 50), slice(50, 200))
    before = after = 0.0
    for _ in range(200):
        heard = signal + rng.standard_normal(200)
        factors = shrinkage(heard, 1.0, blocks)
        assert factors.min() >= 0.0
        assert factors.max() <= 1.0
        before += np.square(heard - signal).mean()
        after += np.square(factors * heard - signal).mean()
    assert after < before
    if signal_db == -20:
        assert after < 0.1 * before


def test_what_is_in_no_block_or_without_noise_stays():
    heard = np.array([1.0, 2.0, 3.0, 4.0, 1e-3])
    np.testing.assert_array_equal(shrinkage(heard, 0.0, (slice(0, 5),)), np.ones(5))
    factors = shrinkage(heard, 1.0, (slice(0, 4),))
    assert factors[4] == 1.0
    np.testing.assert_allclose(factors[:4], 1 - 2 / 30)


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.7, 1.0])
def test_the_receiver_estimates_how_alike_the_updates_are(correlation):
    result, link = _simulated(zero_forcing, correlation, "iq", noise_power=1.0)
    heard = result.estimate - link.offset
    found = correlation_of_symbols(heard @ heard / heard.size, link.noise_variance, link.amplitude)
    assert found == pytest.approx(correlation, abs=0.03)
    assert correlation_of_symbols(1.0, 0.1, np.array([0.3, 0.0])) is None


def test_the_predicted_error_is_that_of_drawn_users_and_noise():
    """Users without replacement out of K vectors of correlation r, plus noise of exact inversion."""
    rng = np.random.default_rng(7)
    everyone = _updates(rng, 12, 2000, 0.4)
    gains, noise = np.array([0.5, 1.0, 2.0, 1.5]), 0.3
    errors = []
    for _ in range(300):
        users = rng.choice(12, 4, replace=False)
        heard = everyone[users].mean(axis=0) + np.sqrt(noise / (16 * 0.5)) * rng.standard_normal(2000)
        errors.append(np.square(heard - everyone.mean(axis=0)).mean())
    predicted = predicted_error(gains, 12, noise, correlation=0.4, exact=True)
    assert np.mean(errors) == pytest.approx(predicted, rel=0.05)
    assert predicted_error(gains, 12, noise, correlation=0.4, exact=False) < predicted
