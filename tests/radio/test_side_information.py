"""The rate at which users of one band and many antennas say the same number of bits, by its closed forms."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.air.side_information import multi_access_s, side_information, symmetric_rate

seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, users: int, antennas: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((users, antennas)) + 1j * rng.standard_normal((users, antennas))) / np.sqrt(2)


def test_one_user_has_the_capacity_of_its_channel() -> None:
    h = draw(0, 1, 4)
    assert symmetric_rate(h, 3.0) == pytest.approx(np.log2(1 + 3.0 * np.linalg.norm(h) ** 2))


def test_orthogonal_users_do_not_disturb_each_other() -> None:
    gains = np.array([2.0, 0.5, 1.0])
    assert symmetric_rate(np.diag(gains), 5.0) == pytest.approx(np.log2(1 + 5.0 * 0.25))


def test_users_of_one_channel_share_its_power() -> None:
    h = np.repeat(draw(1, 1, 4), 5, axis=0)
    whole = np.log2(1 + 5 * 2.0 * np.linalg.norm(h[0]) ** 2)
    assert symmetric_rate(h, 2.0) == pytest.approx(whole / 5)


@settings(deadline=None, max_examples=25)
@given(seeds, st.integers(1, 6), st.integers(1, 4), st.floats(-20, 30))
def test_at_once_is_never_slower_than_one_after_the_other(
    seed: int, users: int, antennas: int, snr_db: float
) -> None:
    h, snr = draw(seed, users, antennas), 10 ** (snr_db / 10)
    alone = sum(1e3 / (1e6 * np.log2(1 + snr * np.linalg.norm(one) ** 2)) for one in h)
    assert multi_access_s(h, snr, 1e3, 1e6) <= alone * (1 + 1e-12)


def test_what_a_round_says_takes_bits_and_time() -> None:
    h = draw(2, 3, 4)
    said = side_information(h, 10.0, 1e6, candidates=20, statistics=2, broadcast_bits=100)
    assert said.pilots == 20
    assert said.uplink_bits == 3 * 2 * 32
    assert said.downlink_bits == (1 + 2 * 3) * 32 + 100
    worst = np.log2(1 + 10.0 * (np.abs(h) ** 2).sum(axis=1).min())
    assert said.downlink_s == pytest.approx(said.downlink_bits / (1e6 * worst))
    assert said.uplink_s == pytest.approx(20e-6 + 64 / (1e6 * symmetric_rate(h, 10.0)))


def draw_band(seed: int, users: int, carriers: int, antennas: int) -> np.ndarray:
    return np.stack([draw(seed + f, users, antennas) for f in range(carriers)], axis=1)


def rate_over(band: np.ndarray, snr: float) -> float:
    """Return a user's least share, over sets of users, of their sum rate in the mean over subcarriers."""
    users, carriers, antennas = band.shape
    rates = []
    for members in (list(some) for n in range(1, users + 1) for some in combinations(range(users), n)):
        per_carrier = [
            np.log2(np.linalg.det(np.eye(antennas) + snr * band[members, f].T @ band[members, f].conj()).real)
            for f in range(carriers)
        ]
        rates.append(np.mean(per_carrier) / len(members))
    return float(min(rates))


def test_equal_subcarriers_are_one() -> None:
    h = draw(3, 4, 2)
    assert symmetric_rate(np.repeat(h[:, np.newaxis], 40, axis=1), 2.0) == symmetric_rate(h, 2.0)


def test_a_rate_is_that_of_all_subcarriers_together() -> None:
    """A user that fades on one of them is carried by the others."""
    band = draw_band(4, 3, 5, 2)
    assert symmetric_rate(band, 4.0) == pytest.approx(rate_over(band, 4.0))
    alone = [symmetric_rate(band[:, f], 4.0) for f in range(5)]
    assert symmetric_rate(band, 4.0) > 1.05 * np.mean(alone)


def test_of_many_subcarriers_evenly_spaced_ones_are_looked_at() -> None:
    """Across a band whose gain rises steadily they tell its mean; its edge is far from it."""
    band = np.linspace(0.2, 2.0, 160)[np.newaxis, :, np.newaxis] * draw(5, 2, 3)[:, np.newaxis]
    whole = rate_over(band, 3.0)
    assert symmetric_rate(band, 3.0) == pytest.approx(whole, rel=0.1)
    assert symmetric_rate(band[:, :1], 3.0) < 0.3 * whole


def test_more_users_than_are_decoded_together_take_turns() -> None:
    """Of users with one channel, m at once have log2(1 + m P) / m each."""
    h = np.repeat(draw(6, 1, 2), 13, axis=0)
    power = 2.0 * float(np.linalg.norm(h[0]) ** 2)
    expected = sum(1e3 * m / (1e6 * np.log2(1 + m * power)) for m in (10, 3))
    assert multi_access_s(h, 2.0, 1e3, 1e6) == pytest.approx(expected)
