"""Who uploads, where every upload has a fixed price: devices that can be compared, and the exact choice."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.allocation.chains import chains_of
from radio.allocation.optimum import _FixedNoiseGains, allocate
from radio.allocation.problem import prepare
from radio.allocation.proportional_noise import _Devices, _UploadGains
from radio.allocation.ratio import ratio_at_rate
from radio.channel.rates import proportional_noise

SHARES = np.geomspace(1e-6, 1.0, 200)


def devices(seed: int) -> dict[str, Any]:
    """A few dozen devices, of few kinds of computer, so that many can be compared."""
    rng = np.random.default_rng(seed)
    k = 24
    bits = rng.choice([1e6, 1.5e6], k)
    return {
        "gain": 10 ** rng.uniform(-10, -8, k),
        "slack": rng.choice([0.01, 0.012, 0.02], k),
        "compute": rng.choice([0.0, 0.001, 0.004, 0.01], k),
        "bits": bits,
        "overhead": rng.choice([5e4, 3e5], k),
        "weight": rng.choice([0.5, 1.0], k),
    }


def assert_order(merits: np.ndarray, worth: np.ndarray) -> int:
    """Check that who has all merits of another is worth as much at any share; return how many pairs."""
    above = (merits[:, np.newaxis] >= merits).all(axis=-1) & ~np.eye(len(merits), dtype=bool)
    for better, worse in np.argwhere(above):
        assert (worth[better] >= worth[worse] * (1 - 1e-12) - 1e-12).all()
    return int(above.sum())


@given(st.integers(0, 2**32 - 1))
def test_who_has_all_merits_of_another_gains_as_much_from_any_share(seed: int) -> None:
    d = devices(seed)
    rates = d["gain"] * 1e16
    problem, _ = prepare(
        rates, d["slack"], d["compute"], d["bits"], weights=d["weight"], overhead_bits=d["overhead"]
    )
    gains = _FixedNoiseGains(problem, np.ones(rates.size, np.bool_))
    ratio = ratio_at_rate(
        SHARES[:, np.newaxis] * rates, d["slack"], d["compute"], d["bits"], overhead_bits=d["overhead"]
    )
    assert assert_order(gains.merits(), (d["weight"] * (1 - ratio)).T) > 0


@given(st.integers(0, 2**32 - 1))
def test_the_same_where_noise_grows_with_the_share(seed: int) -> None:
    d = devices(seed)
    rates = proportional_noise(d["gain"], 2e7, 0.2, 4e-21)
    gains = _UploadGains(_Devices(rates, d["slack"], d["compute"], d["bits"], d["overhead"], d["weight"]))
    speed = np.array([rates.rate(np.full(d["gain"].size, share)) for share in SHARES])
    ratio = ratio_at_rate(speed, d["slack"], d["compute"], d["bits"], overhead_bits=d["overhead"])
    assert assert_order(gains.merits(), (d["weight"] * (1 - ratio)).T) > 0


@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(1, 3))
def test_chains_have_every_device_once_and_each_below_the_one_before(
    seed: int, number: int, kinds: int
) -> None:
    rng = np.random.default_rng(seed)
    merits = rng.integers(0, 4, (number, kinds)).astype(float)
    indices = rng.permutation(100)[:number]
    chains = list(chains_of(np.sort(indices), merits))
    assert sorted(np.concatenate([np.empty(0, int), *chains]).tolist()) == sorted(indices.tolist())
    place = {device: row for row, device in enumerate(np.sort(indices).tolist())}
    for chain in chains:
        for one, other in itertools.pairwise(chain.tolist()):
            above, below = merits[place[one]], merits[place[other]]
            assert (above >= below).all()
            assert one < other or (above != below).any()  # of equals the first is first
    if kinds == 1:
        assert len(chains) <= 1


def test_devices_that_nothing_tells_apart_are_chains_of_their_own() -> None:
    assert [chain.tolist() for chain in chains_of(np.array([3, 5]), None)] == [[3], [5]]


@pytest.mark.parametrize("seed", range(30))
def test_the_best_of_all_choices_where_some_can_be_compared(seed: int) -> None:
    """Computers of two kinds, weights of two kinds: chains of several devices, and several chains."""
    rng = np.random.default_rng(seed)
    k = 9
    r = k * 10 ** rng.uniform(6, 7.5, k)
    d, g = rng.choice([0.008, 0.02], k), rng.choice([0.001, 0.007], k)
    w, q = rng.choice([0.6, 1.0], k), 10 ** rng.uniform(5.5, 6.3)
    m = q * float(rng.choice([0.1, 0.3, 1.0]))
    found = allocate(r, d, g, q, weights=w, overhead_bits=m)
    assert found.gap == 0
    best = float(w.sum())
    for bits in itertools.product([False, True], repeat=k):
        on = np.array(bits)
        if not on.any() or (m / (r * d))[on].sum() > 1:
            continue
        chosen = allocate(
            r[on],
            d[on],
            g[on],
            q,
            weights=w[on],
            overhead_bits=m,
            max_pruning_ratio=1 - 1e-13,
            when_infeasible="drop",
        )
        best = min(best, float(chosen.objective) + float(w[~on].sum()))
    assert found.objective == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("seed", [0, 2])
def test_who_pays_no_fixed_price_is_not_decided_about(seed: int) -> None:
    """Thirty devices that hardly matter and may have a share or none: 2^30 choices that are all as good."""
    rng = np.random.default_rng(seed)
    free = np.arange(60) >= 30
    r, g = 10 ** rng.uniform(8, 9, 60), rng.uniform(1e-4, 5e-3, 60)
    w = np.where(free, 1e-7, 1.0)
    both = allocate(r, 0.025, g, 6e5, weights=w, overhead_bits=np.where(free, 0.0, 2e4))
    assert both.gap == 0
    alone = allocate(r[~free], 0.025, g[~free], 6e5, overhead_bits=2e4)
    assert both.objective == pytest.approx(float(alone.objective) + w[free].sum(), abs=4e-6)
