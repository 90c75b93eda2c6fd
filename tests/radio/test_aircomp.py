"""The transceiver against a textbook simulation, its closed-form error, and its power limit."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from radio.air.packing import airtime_s, symbols
from radio.air.transceiver import (
    average,
    design_link,
    effective_channels,
    expected_misalignment_variance,
    measure,
    misalignment_variance,
)
from radio.beamforming import beamform
from radio.channel.cell import estimate_channels

USERS, ANTENNAS = 6, 4
PHI = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])


def channels(seed: int = 0) -> np.ndarray[Any, np.dtype[np.complex128]]:
    rng = np.random.default_rng(seed)
    shape = (USERS, ANTENNAS)
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


def payload(size: int, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Users of unlike mean and spread."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(0.5, 2.0, USERS)[:, None]
    return np.asarray(spread * rng.standard_normal((USERS, size)) + rng.standard_normal((USERS, 1)))


def textbook(
    g: np.ndarray[Any, Any], h: np.ndarray[Any, Any], link: Any, noise_power: float, rng: np.random.Generator
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """y = sum_k h_k b_k s_k + n on every antenna, r = m^H y / sqrt(eta), de-mapped; shares no code."""
    u = (g - link.shift[:, None]) / link.divisor[:, None]
    s = (u[:, 0::2] + 1j * u[:, 1::2]) / np.sqrt(2) if link.packing == "iq" else u.astype(complex)
    noise = rng.standard_normal((2, h.shape[1], s.shape[1])) * np.sqrt(noise_power / 2)
    y = (h * link.transmit[:, None]).T @ s + noise[0] + 1j * noise[1]
    r = link.beam.conj() @ y / np.sqrt(link.eta)
    assert (np.mean(np.abs(link.transmit[:, None] * s) ** 2, axis=1) <= link.power * (1 + 1e-9)).all()
    if link.packing == "real":
        return np.asarray(r.real + link.offset)
    out = np.empty(2 * r.size)
    out[0::2], out[1::2] = np.sqrt(2) * r.real, np.sqrt(2) * r.imag
    return out + link.offset


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["per_user", "common"])
@pytest.mark.parametrize("weights", [None, PHI], ids=["equal", "unequal"])
def test_error_variance(packing: Any, mode: Any, weights: Any) -> None:
    """Textbook, antenna-level and fast simulation all have the analytic variance, within 4 standard errors.

    The estimated variance of n Gaussian errors has the relative standard error sqrt(2 / n).
    """
    size, noise_power, power = 100_000, 0.3, 2.0
    g, h = payload(size), channels()
    statistics = measure(g, USERS)
    beam = beamform(effective_channels(h, statistics, weights=weights, mode=mode)).beam
    link = design_link(
        h, beam, statistics, power=power, noise_power=noise_power, weights=weights, mode=mode, packing=packing
    )
    phi = np.full(USERS, 1 / USERS) if weights is None else PHI
    exact = phi @ g
    tolerance = 4 * np.sqrt(2 / size)
    rng = np.random.default_rng(3)
    independent = textbook(g, h, link, noise_power, rng) - exact
    assert np.mean(independent**2) == pytest.approx(link.noise_variance, rel=tolerance)
    for simulation in ("fast", "antennas"):
        result = average(g, link, rng, simulation=simulation)
        assert result.realised_mse == pytest.approx(np.mean((result.estimate - exact) ** 2), rel=1e-9)
        assert result.realised_mse == pytest.approx(result.predicted_mse, rel=tolerance)
        assert result.misalignment_variance == 0.0
        assert abs(np.mean(result.estimate - exact)) < 4 * np.sqrt(link.noise_variance / size)
        assert result.transmit_power.max() <= power * (1 + 1e-9)
        if mode == "per_user":
            assert result.transmit_power.max() == pytest.approx(power, rel=1e-9)
        assert result.symbols == (size // 2 if packing == "iq" else size)


def test_closed_form_of_the_published_setting() -> None:
    """Equal weights, common scale, iq: V = nu^2 NMSE / (rho s^2), with NMSE = 1 / min |m^H h|^2."""
    g, h = payload(1000), channels()
    statistics = measure(g, USERS)
    found = beamform(h)
    link = design_link(h, found.beam, statistics, power=2.0, noise_power=0.5, mode="common")
    mean = statistics.mean.mean()
    nu2 = (statistics.mean_square - 2 * mean * statistics.mean + mean**2).max()
    expected = nu2 / found.min_gain / 4.0 / USERS**2
    assert link.noise_variance == pytest.approx(expected, rel=1e-9)
    real = design_link(h, found.beam, statistics, power=2.0, noise_power=0.5, mode="common", packing="real")
    assert real.noise_variance == pytest.approx(expected / 2, rel=1e-9)


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["per_user", "common"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_noise_is_exact(packing: Any, mode: Any, size: int) -> None:
    """As the signal-to-noise ratio grows the aggregate tends to the weighted mean, odd lengths included."""
    g, h = payload(size), channels()
    statistics = measure(g, USERS)
    for noise_power in (0.0, 1e-24):
        link = design_link(
            h,
            beamform(h).beam,
            statistics,
            power=1.0,
            noise_power=noise_power,
            weights=PHI,
            mode=mode,
            packing=packing,
        )
        result = average(g, link, np.random.default_rng(0))
        np.testing.assert_allclose(result.estimate, PHI @ g, rtol=1e-9, atol=1e-9)


def test_users_without_variance_send_only_their_mean() -> None:
    """They are left out of the power minimum; if all are, nothing is sent and nothing is noisy."""
    g, h = payload(500), channels()
    g[2] = 3.25
    h[2] *= 1e-9  # would ruin the scaling if it counted
    statistics = measure(g, USERS)
    assert len(effective_channels(h, statistics)) == USERS - 1
    beam = beamform(effective_channels(h, statistics)).beam
    link = design_link(h, beam, statistics, power=1.0, noise_power=0.0)
    assert link.transmit[2] == 0
    np.testing.assert_allclose(average(g, link, np.random.default_rng(0)).estimate, g.mean(axis=0), rtol=1e-9)
    flat = np.repeat(np.arange(6.0)[:, None], 10, axis=1)
    link = design_link(h, beam, measure(flat, USERS), power=1.0, noise_power=1.0)
    result = average(flat, link, np.random.default_rng(0))
    assert result.predicted_mse == 0.0
    np.testing.assert_array_equal(result.estimate, np.full(10, 2.5))


def test_tiny_updates_survive() -> None:
    """A variance of 1e-16 is information, not silence: the error scales with the payload."""
    g, h = 1e-8 * payload(400), channels()
    link = design_link(h, beamform(h).beam, measure(g, USERS), power=1.0, noise_power=0.0)
    np.testing.assert_allclose(average(g, link, np.random.default_rng(0)).estimate, g.mean(axis=0), rtol=1e-9)


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_imperfect_channel_knowledge(packing: Any) -> None:
    """Designed from h + e, sent over h: the realised error is noise plus misalignment, as computed."""
    size = 100_000
    rng = np.random.default_rng(5)
    g = np.random.default_rng(1).standard_normal((USERS, size)) * np.geomspace(0.5, 2, USERS)[:, None]
    h = channels()
    estimated = estimate_channels(h, 0.02, rng)
    link = design_link(
        estimated, beamform(estimated).beam, measure(g, USERS), power=1.0, noise_power=0.01, packing=packing
    )
    result = average(g, link, rng, true_channels=h)
    assert result.misalignment_variance > 0.05 * result.noise_variance
    assert result.predicted_mse == result.noise_variance + result.misalignment_variance
    assert result.realised_mse == pytest.approx(result.predicted_mse, rel=0.03)
    independent = textbook(g, h, link, 0.01, rng) - g.mean(axis=0)
    assert np.mean(independent**2) == pytest.approx(result.predicted_mse, rel=0.03)
    assert result.transmit_power.max() == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_expected_misalignment(packing: Any) -> None:
    """The server's forecast is the mean over errors that are independent of its estimate."""
    estimated, g = channels(), payload(100)
    statistics = measure(g, USERS)
    link = design_link(
        estimated, beamform(estimated).beam, statistics, power=1.0, noise_power=0.1, packing=packing
    )
    rng = np.random.default_rng(0)
    drawn = [misalignment_variance(link, estimate_channels(estimated, 0.05, rng)) for _ in range(4000)]
    standard_error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected_misalignment_variance(link, 0.05)) < 4 * standard_error
    assert misalignment_variance(link, None) == 0.0
    assert misalignment_variance(link, estimated) == pytest.approx(0.0, abs=1e-24)


def test_estimation_error_has_the_variance_asked_for() -> None:
    """E|e|^2 = error_variance per antenna."""
    h = np.zeros((20_000, 2), dtype=complex)
    assert np.mean(np.abs(estimate_channels(h, 0.3, np.random.default_rng(0))) ** 2) == pytest.approx(
        0.3, rel=0.03
    )


def test_global_phase_of_the_beam_does_not_matter() -> None:
    """The transmit coefficients turn along."""
    g, h = payload(100), channels()
    statistics = measure(g, USERS)
    beam = beamform(h).beam
    links = [design_link(h, b, statistics, power=1.0, noise_power=0.1) for b in (beam, -2j * beam)]
    assert links[0].eta == pytest.approx(links[1].eta)
    results = [average(g, link, np.random.default_rng(0)).estimate for link in links]
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9)


def test_updates_may_be_a_function_and_memory_stays_small() -> None:
    """Users pass one at a time: 20 users of 1.5 million entries need a few vectors, not 20."""
    size, users = 1_500_000, 20
    rng = np.random.default_rng(0)
    h = rng.standard_normal((users, 4)) + 1j * rng.standard_normal((users, 4))

    def update(user: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.random.default_rng(user).standard_normal(size, dtype=np.float32)

    beam = beamform(h).beam
    tracemalloc.start()
    link = design_link(h, beam, measure(update, users), power=1.0, noise_power=1.0)
    result = average(update, link, rng, simulation="antennas")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * 8 * size
    assert result.realised_mse == pytest.approx(result.predicted_mse, rel=0.01)


def test_statistics_do_not_cancel() -> None:
    """A large mean does not eat the variance."""
    g = 1e6 + np.random.default_rng(0).standard_normal((1, 10_001))
    assert measure(g, 1).std[0] == pytest.approx(np.std(g[0]), rel=1e-9)


def test_airtime_is_shared() -> None:
    """Two reals per symbol: 402 826 weights over 20 MHz take 10.07 ms, whatever the number of users."""
    assert airtime_s(402_826, 20e6) == pytest.approx(10.07e-3, rel=1e-3)
    assert symbols(7) == 4
    assert symbols(7, "real") == 7


def test_bad_input() -> None:
    """Errors name the parameter and the limit."""
    g, h = payload(10), channels()
    statistics, beam = measure(g, USERS), beamform(h).beam
    good: dict[str, Any] = {"power": 1.0, "noise_power": 0.1}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"power": 0.0}, "power = 0.0"),
        ({"noise_power": -1.0}, "noise_power"),
        ({"mode": "none"}, "mode"),
        ({"packing": "qam"}, "packing"),
        ({"weights": np.ones(3)}, "weights"),
        ({"weights": np.zeros(USERS)}, "weights"),
    ]
    for change, message in changes:
        with pytest.raises(ValueError, match=message):
            design_link(h, beam, statistics, **(good | change))
    with pytest.raises(ValueError, match="beam has shape"):
        design_link(h, beam[:2], statistics, **good)
    with pytest.raises(ValueError, match="orthogonal"):
        design_link(np.eye(2), np.array([1.0, 0.0]), measure(g[:2], 2), **good)
    g[3, 2] = np.nan
    with pytest.raises(ValueError, match="update of user 3 is not finite"):
        measure(g, USERS)
    with pytest.raises(ValueError, match="update of user 1 has shape"):
        measure([np.ones(3), np.ones(4)], 2)
    link = design_link(h, beam, statistics, **good)
    with pytest.raises(ValueError, match="above power"):
        average(100 * payload(10), link, np.random.default_rng(0))
    with pytest.raises(ValueError, match="error_variance"):
        estimate_channels(h, -1.0, np.random.default_rng(0))
