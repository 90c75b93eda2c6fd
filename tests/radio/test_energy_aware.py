"""Band, ratio, frequency and power together, against scipy, against `joint`, and by its own certificate."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from radio.allocation import (
    Allocation,
    AllocationStatus,
    InfeasibleAllocationError,
    allocate,
    charged,
    pricing,
)
from radio.allocation.energy_aware import (
    EnergyCurve,
    allocate_energy,
    round_costs,
    share_for_least_energy,
    verify_energy,
)
from radio.allocation.pricing import Buyers, share_out
from radio.arrays import FloatArray
from radio.energy import EnergyTerms, band_needed, largest_kept, least_energy
from tests.radio.energy_cases import LN2, draw_terms, joint_scipy

seeds = st.integers(0, 2**32 - 1)


def check_feasible(terms: EnergyTerms, found: Allocation) -> None:
    seconds, joules = round_costs(terms, found)
    here = found.status != AllocationStatus.INFEASIBLE
    assert (seconds[here] <= terms.threshold[here] * (1 + 1e-9)).all()
    assert (joules[here] <= terms.budget[here] * (1 + 1e-9)).all()
    assert found.bandwidth_fraction.sum() <= 1 + 1e-12


@settings(deadline=None, max_examples=12)
@given(seeds, st.sampled_from([0.0, 1.0, 3.0]))
def test_feasible_optimal_by_certificate_and_tight(seed: int, alpha: float) -> None:
    terms = draw_terms(seed, load=3.0)
    found = allocate_energy(terms, alpha=alpha)
    check_feasible(terms, found)
    judged = verify_energy(terms, found, alpha=alpha)
    assert judged.residual <= 1e-8
    assert abs(judged.duality_gap) <= 1e-9
    spent = found.status == AllocationStatus.ENERGY_BOUND
    _, joules = round_costs(terms, found)
    np.testing.assert_allclose(joules[spent], terms.budget[spent], rtol=1e-9)


def random_instances(count: int, charge: bool = False) -> None:
    for seed in range(count):
        terms = draw_terms(seed, 1 + seed % 4, load=3.0, charge=charge)
        weights = np.random.default_rng(seed).uniform(0.5, 2, terms.budget.size)
        found = allocate_energy(terms, weights=weights)
        check_feasible(terms, found)
        gained = float((weights * (1 - found.pruning_ratio)).sum())
        able = largest_kept(terms, 1.0) > 1e-6
        sought = joint_scipy(terms.rows(able), weights[able], 1) if able.any() else 0.0
        assert gained >= sought - 1e-7, seed
        assert abs(verify_energy(terms, found, weights=weights).duality_gap) <= 1e-9, seed


def test_never_below_a_reference_by_scipy() -> None:
    random_instances(6)


@pytest.mark.exhaustive
def test_never_below_a_reference_by_scipy_on_a_thousand_instances() -> None:
    random_instances(1000)


@settings(deadline=None, max_examples=15)
@given(seeds, st.booleans())
def test_without_budgets_it_is_the_optimum_under_time(seed: int, charge: bool) -> None:
    drawn = draw_terms(seed, load=2.0, charge=charge)
    terms = replace(drawn, budget=np.full(drawn.max_power.shape, np.inf))
    f = terms.max_frequency
    best = allocate(
        terms.bandwidth * np.log1p(terms.gain_over_noise * terms.max_power) / LN2,
        terms.threshold - terms.fixed_cycles / f,
        terms.global_cycles / f,
        terms.payload_bits,
        overhead_bits=terms.overhead_bits,
    )
    found = allocate_energy(terms)
    assert float(found.objective) == pytest.approx(float(best.objective), abs=1e-9)
    np.testing.assert_allclose(found.pruning_ratio, best.pruning_ratio, atol=1e-9)


@settings(deadline=None, max_examples=10)
@given(seeds, st.floats(1.0, 4.0))
def test_a_larger_budget_never_gains_less(seed: int, factor: float) -> None:
    terms = draw_terms(seed, load=3.0)
    before, after = allocate_energy(terms), allocate_energy(replace(terms, budget=factor * terms.budget))
    assert float(after.objective) <= float(before.objective) + 1e-9


def best_of_all_sets(terms: EnergyTerms, weights: FloatArray) -> float:
    """Return the most that any set of uploaders gains, each set with its own optimum."""
    best = 0.0
    for size in range(1, weights.size + 1):
        for members in itertools.combinations(range(weights.size), size):
            rows = np.array(members)
            some = terms.rows(rows)
            if not float(band_needed(some, np.zeros(size)).sum()) < 1:  # their charges alone fill the band
                continue
            high = largest_kept(some, 1.0)
            found = share_out(Buyers(EnergyCurve(some, np.zeros(size), high), weights[rows]))
            best = max(best, float((weights[rows] * found.kept).sum()))
    return best


def check_choice(seed: int, devices: int) -> float:
    """Compare a choice of uploaders with the best of all sets, and return its gap."""
    terms = draw_terms(seed, devices, load=4.0, charge=True)
    weights = np.random.default_rng(seed).uniform(0.5, 2, devices)
    found = allocate_energy(terms, weights=weights)
    check_feasible(terms, found)
    gained = float((weights * (1 - found.pruning_ratio)).sum())
    best = best_of_all_sets(terms, weights)
    assert gained <= best + 1e-9
    assert gained + float(found.gap) >= best - 1e-9
    assert gained > 0
    return float(found.gap)


@pytest.mark.parametrize("seed", [0, 1, 3, 5])
def test_who_uploads_under_a_fixed_charge_is_the_best_of_all_sets(seed: int) -> None:
    """Under 0 the optimum by time alone keeps to all budgets; under the others it does not."""
    assert check_choice(seed, 4) == 0.0


def test_the_gap_of_a_search_that_stops_early_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charged, "_SEARCHED", 0)
    assert check_choice(1, 4) > 0


@pytest.mark.exhaustive
def test_who_uploads_on_two_hundred_instances() -> None:
    assert not any(check_choice(seed, 5) for seed in range(200))


def test_devices_that_cannot_pay_are_left_out_and_the_others_get_their_band() -> None:
    terms = draw_terms(3, 4, load=3.0)
    poor = replace(terms, budget=np.array([0.0, *terms.budget[1:]]))
    found = allocate_energy(poor)
    assert found.status[0] == AllocationStatus.INFEASIBLE
    assert found.bandwidth_fraction[0] == 0
    alone = allocate_energy(poor.rows(np.arange(1, 4)))
    np.testing.assert_allclose(found.pruning_ratio[1:], alone.pruning_ratio, atol=1e-12)


@settings(deadline=None, max_examples=10)
@example(147)  # a device whose power reaches its limit just there
@given(seeds)
def test_least_energy_of_given_shares_of_the_weights(seed: int) -> None:
    terms = replace(draw_terms(seed, 4, load=0.1), budget=np.full(4, np.inf))
    y = np.minimum(0.5 * np.nan_to_num(largest_kept(terms, 0.2)), 1.0)
    share, price = share_for_least_energy(terms, y)
    assert share.sum() == pytest.approx(1.0, abs=1e-9) or not (y > 0).any()
    assert (share >= band_needed(terms, y)[:] * (1 - 1e-9))[y > 0].all()
    found = least_energy(terms, y, np.maximum(share, 1e-300))
    # One price: what a little more band saves each device, and a little less costs it, lie on its two sides.
    # They are equal but where power or clock reach a limit; at its least need a device is worth less.
    less, more = (-least_energy(terms, y, np.maximum(share * x, 1e-300)).slope for x in (1 - 1e-8, 1 + 1e-8))
    free = (y > 0) & (share > band_needed(terms, y) * (1 + 1e-6))
    assert (less[free] >= price * (1 - 1e-6)).all()
    assert (more[y > 0] <= price * (1 + 1e-6)).all()
    # No exchange of band between two devices is cheaper.
    total = float(found.total[y > 0].sum())
    senders = np.flatnonzero(y > 0)
    for one in senders[:-1]:
        moved = share.copy()
        moved[one] *= 0.99
        moved[senders[-1]] += 0.01 * share[one]
        assert least_energy(terms, y, np.maximum(moved, 1e-300)).total[y > 0].sum() >= total * (1 - 1e-12)


def test_least_energy_keeps_exactly_the_limit_and_spends_less_than_the_most_retained_weights() -> None:
    terms = replace(draw_terms(5, 4, load=0.2), budget=np.full(4, np.inf))
    few = allocate_energy(terms, max_pruning_ratio=0.9, objective="least_energy")
    np.testing.assert_allclose(few.pruning_ratio, 0.9, atol=1e-12)
    check_feasible(terms, few)
    many = allocate_energy(terms, max_pruning_ratio=0.9)
    assert round_costs(terms, few)[1].sum() < round_costs(terms, many)[1].sum()
    with pytest.raises(ValueError, match="max_pruning_ratio below 1"):
        allocate_energy(terms, objective="least_energy")


def test_a_limit_that_does_not_fit_is_refused_relaxed_or_dropped() -> None:
    terms = draw_terms(8, 5, load=20.0)
    with pytest.raises(InfeasibleAllocationError, match="energy budget"):
        allocate_energy(terms, max_pruning_ratio=0.01)
    relaxed = allocate_energy(terms, max_pruning_ratio=0.01, when_infeasible="relax")
    assert 0.01 < float(relaxed.max_pruning_ratio) <= 1
    check_feasible(terms, relaxed)
    dropped = allocate_energy(terms, max_pruning_ratio=0.01, when_infeasible="drop")
    kept = dropped.status != AllocationStatus.INFEASIBLE
    assert (dropped.pruning_ratio[kept] <= 0.01 + 1e-12).all()
    check_feasible(terms, dropped)


@pytest.mark.exhaustive
@pytest.mark.parametrize("load", [3.0, 1e-3, 1e-5])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_hundred_thousand_devices(seed: int, load: float) -> None:
    terms = draw_terms(seed, 100_000, load=load)
    found = allocate_energy(terms)
    check_feasible(terms, found)
    judged = verify_energy(terms, found)
    assert abs(judged.duality_gap) <= 1e-9
    assert judged.residual <= 1e-8


def test_many_devices_are_shared_out_by_a_price_that_a_sample_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = draw_terms(4, 64, load=0.5)
    plain = allocate_energy(terms)
    monkeypatch.setattr(pricing, "MANY", 32)
    monkeypatch.setattr(pricing, "SAMPLE", 4)
    sampled = allocate_energy(terms)
    np.testing.assert_allclose(sampled.pruning_ratio, plain.pruning_ratio, atol=1e-12)
    assert abs(verify_energy(terms, sampled).duality_gap) <= 1e-12
