"""The recorded errors of both over-the-air receivers against a simulation at the antennas.

What is asked of `predicted_mse` and `realised_mse` is one thing only: both are the mean squared distance
between what the server makes of the received signal and the average it is after.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radio.air.sparse import common_scale, design_sparse_link, receive, superpose
from radio.air.transceiver import (
    average,
    design_link,
    expected_misalignment_variance,
    measure,
    misalignment_variance,
)
from radio.beamforming import beamform
from radio.channel.cell import estimate_channels

Floats = NDArray[np.float64]
USERS, ANTENNAS = 4, 3


def gaussian_channels(seed: int) -> NDArray[np.complex128]:
    rng = np.random.default_rng(seed)
    shape = (USERS, ANTENNAS)
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


def through_the_air(
    entries: Floats, sent: NDArray[Any], h: NDArray[Any], beam: NDArray[Any], *, packing: str, noise: Any
) -> Floats:
    """Return m^H y after de-mapping: y = sum_k h_k b_k s_k + n, for (M, d) real entries and b = `sent`."""
    if packing == "real":
        symbols = entries.astype(complex)
    else:
        padded = np.pad(entries, ((0, 0), (0, entries.shape[1] % 2)))
        symbols = (padded[:, 0::2] + 1j * padded[:, 1::2]) / np.sqrt(2)
    rng, power = noise
    n = rng.standard_normal((2, h.shape[1], symbols.shape[1])) * np.sqrt(power / 2)
    combined = beam.conj() @ ((h * sent[:, None]).T @ symbols + n[0] + 1j * n[1])
    if packing == "real":
        return np.asarray(combined.real)
    out = np.empty(2 * combined.size)
    out[0::2], out[1::2] = np.sqrt(2) * combined.real, np.sqrt(2) * combined.imag
    return out[: entries.shape[1]]


# --- dense updates ---


def alike_updates(seed: int, size: int) -> Floats:
    """Users of unlike size and mean that drift in a common direction, as those of one round do."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((USERS, size)) * np.geomspace(0.3, 2, USERS)[:, None]
    return np.asarray(own + 1.5 * rng.standard_normal(size) + np.linspace(-1, 3, USERS)[:, None])


@pytest.mark.parametrize("weights", [None, (1.0, 5.0, 2.0, 3.0)], ids=["equal", "unequal"])
@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["per_user", "common"])
@pytest.mark.parametrize(("noise_power", "error"), [(0.0, 0.1), (0.05, 0.02), (0.05, 0.0)])
def test_dense_errors_are_those_of_the_antennas(
    mode: Any, packing: Any, weights: Any, noise_power: float, error: float
) -> None:
    size, draws = 2001, 60
    g, h = alike_updates(3, size), gaussian_channels(1)
    known = estimate_channels(h, error, np.random.default_rng(2))
    link = design_link(
        known,
        beamform(known).beam,
        measure(g, USERS),
        power=1.0,
        noise_power=noise_power,
        weights=weights,
        mode=mode,
        packing=packing,
    )
    phi = np.full(USERS, 0.25) if weights is None else np.array(weights) / sum(weights)
    entries = (g - link.shift[:, None]) / link.divisor[:, None]
    rng = np.random.default_rng(7)
    errors = [
        through_the_air(entries, link.transmit, h, link.beam, packing=packing, noise=(rng, noise_power))
        / np.sqrt(link.eta)
        + phi @ link.shift
        - phi @ g
        for _ in range(draws)
    ]
    true = np.mean(np.square(errors))
    results = [average(g, link, rng, true_channels=h if error else None) for _ in range(draws)]
    tolerance = 5 * np.sqrt(2 / (draws * size)) + 1e-9
    assert results[0].predicted_mse == pytest.approx(true, rel=tolerance)
    assert np.mean([one.realised_mse for one in results]) == pytest.approx(true, rel=tolerance)


@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["per_user", "common"])
def test_closed_form_of_the_misalignment_of_independent_updates(mode: Any, packing: Any) -> None:
    """Users of unlike mean: their symbols have neither mean 0 nor unit variance in mode "common"."""
    size = 200_000
    rng = np.random.default_rng(0)
    g = rng.standard_normal((USERS, size)) * np.geomspace(0.3, 2, USERS)[:, None]
    g += np.linspace(-1, 3, USERS)[:, None]
    h = gaussian_channels(5)
    known = estimate_channels(h, 0.05, rng)
    link = design_link(
        known, beamform(known).beam, measure(g, USERS), power=1.0, noise_power=0.0, mode=mode, packing=packing
    )
    result = average(g, link, rng, true_channels=h)
    assert misalignment_variance(link, h) == pytest.approx(result.misalignment_variance, rel=0.02)
    # The server's forecast: the mean over errors that are independent of what it knows.
    drawn = [
        misalignment_variance(link, known + e)
        for e in estimate_channels(np.zeros((4000, *h.shape)), 0.05, rng)
    ]
    error = 4 * np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected_misalignment_variance(link, 0.05)) < error


# --- pruned updates ---


def shrunk(raw: Floats, noise: Floats, how: str) -> Floats:
    """Return alpha by the specification: V / (V + noise), V the noise-weighted mean of raw^2 - noise."""
    if how == "off" or not noise.any():
        return np.ones_like(raw)
    moment = max(float(((raw**2 - noise) / noise).sum() / (1 / noise).sum()), 0.0)
    return np.asarray(moment / (moment + noise))


@pytest.mark.parametrize("shrinkage", ["off", "moment"])
@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("mode", ["bitmap", "common_mask", "count_free"])
@pytest.mark.parametrize(("noise_power", "error"), [(0.0, 0.1), (0.5, 0.02), (0.5, 0.0)])
def test_pruned_errors_are_those_of_the_antennas(
    mode: Any, packing: Any, shrinkage: Any, noise_power: float, error: float
) -> None:
    size, draws = 1501, 80
    rng = np.random.default_rng(11)
    masks = rng.random((USERS, size)) < np.linspace(0.3, 0.8, USERS)[:, None]
    common = rng.random(size) < 0.6 if mode == "common_mask" else np.ones(size, dtype=bool)
    if mode == "common_mask":
        masks[:] = common
    deltas = 0.01 * np.where(masks, rng.standard_normal((USERS, size)) + rng.standard_normal(size), 0.0)
    before = rng.standard_normal(size).astype(np.float32)
    h = gaussian_channels(1)
    known = estimate_channels(h, error, rng)
    beam = beamform(known).beam
    link = design_sparse_link(
        known, beam, power=1.0, noise_power=noise_power, packing=packing, true_channels=h if error else None
    )
    air = superpose(
        list(zip(deltas, masks, strict=True)),
        size,
        link=link,
        common=common if mode == "common_mask" else None,
    )
    scale = common_scale(np.sqrt(air.mean_square))

    contributors = masks.sum(axis=0)
    sought = np.divide(deltas.sum(axis=0), contributors, where=contributors > 0, out=np.zeros(size))
    divisor = {"bitmap": contributors, "count_free": np.full(size, USERS), "common_mask": USERS * common}[
        mode
    ]
    moves = divisor > 0
    per_entry = noise_power / link.eta / (1 if packing == "iq" else 2)
    noise = (scale / divisor[moves]) ** 2 * per_entry
    errors = []
    for _ in range(draws):
        y = np.zeros(size)
        y[common] = through_the_air(
            deltas[:, common] / scale, link.transmit, h, beam, packing=packing, noise=(rng, noise_power)
        ) / np.sqrt(link.eta)
        raw = scale * y[moves] / divisor[moves]
        errors.append(shrunk(raw, noise, shrinkage) * raw - sought[moves])
    true = np.mean(np.square(errors))

    found = [
        receive(
            before,
            air,
            mode=mode,
            scale=scale,
            noise_variance=link.noise_variance,
            rng=rng,
            shrinkage=shrinkage,
        )
        for _ in range(draws)
    ]
    # Without noise, bias and misalignment what is left is the rounding of float32 weights of size 1.
    tolerance: dict[str, Any] = {"rel": 0.02 if noise_power else 1e-3, "abs": 1e-15}
    assert np.mean([one.realised_mse for one in found]) == pytest.approx(true, **tolerance)
    assert np.mean([one.predicted_mse for one in found]) == pytest.approx(true, **tolerance)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, 50),
    st.sampled_from(["bitmap", "count_free"]),
    st.sampled_from(["iq", "real"]),
    st.integers(1, 3),
)
def test_without_noise_the_prediction_is_the_error(
    seed: int, users: int, size: int, mode: Any, packing: Any, min_count: int
) -> None:
    """Misalignment and the bias of a wrong divisor are known exactly; only float32 rounding is left."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((users, 2)) + 1j * rng.standard_normal((users, 2))
    known = estimate_channels(h, 0.3, rng)
    link = design_sparse_link(
        known, beamform(known).beam, power=1.0, noise_power=0.0, packing=packing, true_channels=h
    )
    parts = [(rng.standard_normal(size), rng.random(size) < 0.5) for _ in range(users)]
    found = receive(
        np.zeros(size, np.float32),
        superpose(parts, size, link=link),
        mode=mode,
        scale=1.0,
        noise_variance=0.0,
        rng=rng,
        min_count=min_count,
    )
    assert (found.realised_mse is None) == (not found.updated.any())
    if found.realised_mse is not None:
        # The weights that come out are float32: an error e of a weight w is known to w 2^-24.
        rounding = 2**-23 * max(1.0, *(float(np.abs(values).max()) for values, _ in parts))
        slack = 2 * rounding * np.sqrt(found.realised_mse) + rounding**2
        assert found.predicted_mse == pytest.approx(found.realised_mse, rel=1e-9, abs=slack)
