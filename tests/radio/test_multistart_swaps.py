"""The last step of `multistart`: one user out, another in, until no exchange helps."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from radio.arrays import ComplexArray
from radio.beamforming import beamform
from radio.scheduling import schedule

# One poor start, which is not improved but by exchanges.
POOR: dict[str, Any] = {"random_starts": 0, "matched_starts": 1, "candidates": 1, "climb": 1, "settled": 1}
STUCK = (0, 5, 6, 7)  # draws on which that start ends below the optimum


def _draw(seed: int, users: int = 9, antennas: int = 3) -> ComplexArray:
    rng = np.random.default_rng(seed)
    shape = (users, antennas)
    return np.asarray((rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2))


def _gain(channels: ComplexArray, **options: Any) -> float:
    rng = np.random.default_rng(0)
    return schedule(channels, 3, method="multistart", rng=rng, **{**POOR, **options}).min_gain


@pytest.mark.parametrize("seed", STUCK)
def test_no_exchange_of_one_user_helps_any_more(seed: int) -> None:
    channels = _draw(seed)
    found = schedule(channels, 3, method="multistart", rng=np.random.default_rng(0), **POOR)
    assert found.min_gain > 1.02 * _gain(channels, improved=0)
    users = set(found.users.tolist())
    for leaver in users:
        for joiner in set(range(9)) - users:
            exchanged = sorted(users - {leaver} | {joiner})
            assert beamform(channels[exchanged]).min_gain <= found.min_gain * (1 + 1e-3)


def test_it_ends_at_the_best_of_all_sets() -> None:
    channels = _draw(0)
    best = max(beamform(channels[list(users)]).min_gain for users in combinations(range(9), 3))
    assert _gain(channels) == pytest.approx(best, rel=1e-3)


def test_more_partners_find_more_and_no_budget_finds_nothing() -> None:
    few = [_gain(_draw(seed), partners=1) for seed in STUCK]
    two = [_gain(_draw(seed), partners=2) for seed in STUCK]
    none = [_gain(_draw(seed), budget=0) for seed in STUCK]
    still = [_gain(_draw(seed), improved=0) for seed in STUCK]
    assert all(a >= b * (1 - 1e-6) for a, b in zip(two, few, strict=True))
    assert any(a > 1.05 * b for a, b in zip(two, few, strict=True))
    assert any(a > 1.05 * b for a, b in zip(few, still, strict=True))
    assert none == still


def test_as_many_local_optima_are_improved_as_asked_for() -> None:
    """Without budget for more than one exchange each, a further one costs a handful of beams, not dozens."""
    channels = _draw(0, users=16, antennas=4)

    def solved(improved: int) -> int:
        found = schedule(
            channels, 5, method="multistart", rng=np.random.default_rng(0), settled=200, budget=1,
            improved=improved,
        )  # fmt: skip
        return found.iterations

    none, one, two = solved(0), solved(1), solved(2)
    assert none < one < two
    assert two - none <= 2 * 20
    assert solved(10**6) > two  # there are more


def test_no_start_is_better_than_more_starts() -> None:
    """Every kind of start adds to the others: with all of them the result is no worse than with fewer."""
    for seed in STUCK:
        channels = _draw(seed)
        all_of_them = schedule(channels, 3, method="multistart", rng=np.random.default_rng(0)).min_gain
        assert all_of_them >= _gain(channels) * (1 - 1e-3)
        assert all_of_them >= _gain(channels, random_starts=50, settled=20) * (1 - 1e-3)


def test_users_too_weak_to_help_change_nothing() -> None:
    """They are left out of the search, and the users that are found keep their own numbers."""
    channels = _draw(0)
    weak = 1e-3 * _draw(1)
    mixed = np.concatenate([weak, channels])
    alone = schedule(channels, 3, method="multistart", rng=np.random.default_rng(0))
    among = schedule(mixed, 3, method="multistart", rng=np.random.default_rng(0))
    assert among.users.tolist() == [user + 9 for user in alone.users]
    assert among.min_gain == pytest.approx(alone.min_gain, rel=1e-6)


def test_all_users_need_no_search() -> None:
    channels = _draw(3, users=4)
    found = schedule(channels, 4, method="multistart", rng=np.random.default_rng(0))
    assert found.users.tolist() == [0, 1, 2, 3]
    assert found.min_gain == pytest.approx(beamform(channels).min_gain, rel=1e-6)
