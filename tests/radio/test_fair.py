"""alpha-fair shares of the band, against cvxpy and by certificate; the quickest of equal optima."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radio.allocation import allocate, least_max_pruning_ratio
from radio.allocation.fair import allocate_fair, quicken, verify_fair
from radio.allocation.policies import OfdmaProblem, get_policy
from radio.allocation.pricing import utility
from radio.channel.rates import FixedNoise, proportional_noise

ALPHAS = (0.0, 0.5, 1.0, 2.0, 8.0)
seeds = st.integers(0, 2**32 - 1)


def draw(seed: int, devices: int | None = None, charge: bool = False) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    k = devices or int(rng.integers(2, 9))
    q = 10 ** rng.uniform(5.5, 6.5)
    return {
        "rates": FixedNoise(10 ** rng.uniform(7, 8.5) * rng.gamma(2, 1, k)),
        "slack": rng.uniform(5e-3, 2e-2, k),
        "compute_time": 10 ** rng.uniform(-3.5, -1.5, k),
        "payload_bits": q,
        "overhead_bits": q / 64 if charge else 0.0,
    }


def fair_cvxpy(case: dict[str, Any], alpha: float, weights: Any) -> float:
    """Return the largest sum of w U_alpha(y), from the cone form in y."""
    import cvxpy as cp

    r, d, g, q = case["rates"].full_band, case["slack"], case["compute_time"], case["payload_bits"]
    c, k = g / d, r.size
    # In units of the max-min optimum, so that high powers of y keep to the solver's range.
    unit = 1.0 - float(least_max_pruning_ratio(r, d, g, q))
    z, t = cp.Variable(k), cp.Variable(k)
    y = unit * z
    room = 1 - cp.multiply(c, y)
    share = cp.multiply(q / (r * d), y + cp.multiply(c, t))
    gain = z if alpha == 0 else cp.log(z) if alpha == 1 else cp.power(z, 1 - alpha) / (1 - alpha)
    limits = [z >= 0, y <= 1, cp.SOC(room + t, cp.vstack([2 * y, room - t]), axis=0), cp.sum(share) <= 1]
    problem = cp.Problem(cp.Maximize(weights @ gain), limits)
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    assert problem.status in ("optimal", "optimal_inaccurate")
    if alpha == 1:
        return float(problem.value + weights.sum() * np.log(unit))
    return float(problem.value * unit ** (1 - alpha))


def compare(seed: int, alpha: float) -> None:
    case = draw(seed)
    weights = np.random.default_rng(seed).uniform(0.5, 2, case["slack"].size)
    problem = OfdmaProblem(**case, weights=weights, fairness=alpha)
    found = get_policy("joint")(problem)
    kept = 1 - found.pruning_ratio
    assert found.bandwidth_fraction.sum() <= 1 + 1e-12
    reached = float((weights * utility(kept, alpha)).sum())
    scale = float((weights * kept ** (1 - alpha)).sum())
    assert abs(reached - fair_cvxpy(case, alpha, weights)) <= 1e-6 * scale, (seed, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_agrees_with_a_cone_solver(alpha: float) -> None:
    for seed in range(4):
        compare(seed, alpha)


@pytest.mark.exhaustive
@pytest.mark.parametrize("alpha", ALPHAS)
def test_agrees_with_a_cone_solver_on_two_hundred_instances(alpha: float) -> None:
    for seed in range(200):
        compare(seed, alpha)


@settings(deadline=None, max_examples=15)
@given(seeds, st.sampled_from([0.3, 1.0, 2.0, 8.0, 50.0]), st.booleans())
def test_certificate(seed: int, alpha: float, physical: bool) -> None:
    case = draw(seed)
    if physical:
        case["rates"] = proportional_noise(case["rates"].full_band / 1e8, 20e6, 1.0, 1e-9)
    found = allocate_fair(**case, alpha=alpha)
    judged = verify_fair(found, **case, alpha=alpha)
    assert judged.residual <= 1e-7
    assert abs(judged.duality_gap) <= 1e-8
    assert (found.bandwidth_fraction > 0).all() or alpha < 1


def test_no_fairness_is_the_sum_bit_for_bit() -> None:
    for seed in range(20):
        case = draw(seed, charge=bool(seed % 2))
        found = get_policy("joint")(OfdmaProblem(**case, fairness=0.0))
        plain = allocate(case.pop("rates").full_band, **case)
        np.testing.assert_array_equal(found.bandwidth_fraction, plain.bandwidth_fraction)
        np.testing.assert_array_equal(found.pruning_ratio, plain.pruning_ratio)


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_large_alpha_tends_to_the_largest_least_share(seed: int) -> None:
    case = draw(seed)
    found = allocate_fair(**case, alpha=500.0)
    best = least_max_pruning_ratio(case.pop("rates").full_band, **case)
    assert float(found.pruning_ratio.max()) == pytest.approx(float(best), abs=0.02)


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_the_worst_device_gains_with_alpha_and_the_sum_pays(seed: int) -> None:
    case = draw(seed)
    kept = [
        1 - get_policy("joint")(OfdmaProblem(**case, fairness=a)).pruning_ratio for a in (0.0, 1.0, 4.0, 16.0)
    ]
    assert (np.diff([y.min() for y in kept]) >= -1e-9).all()
    assert (np.diff([y.sum() for y in kept]) <= 1e-9).all()


@settings(deadline=None, max_examples=10)
@given(seeds, st.sampled_from([0.5, 1.0, 4.0]))
def test_charges_and_limits(seed: int, alpha: float) -> None:
    case = draw(seed, charge=True)
    found = allocate_fair(**case, alpha=alpha)
    on = found.bandwidth_fraction > 0
    speed = found.bandwidth_fraction[on] * case["rates"].full_band[on]
    kept = 1 - found.pruning_ratio[on]
    spent = kept * case["compute_time"][on] + (kept * case["payload_bits"] + case["overhead_bits"]) / speed
    assert (spent <= case["slack"][on] * (1 + 1e-9)).all()
    held = allocate_fair(**case, alpha=alpha, max_pruning_ratio=0.6, when_infeasible="relax")
    assert (held.pruning_ratio <= float(held.max_pruning_ratio) + 1e-12).all()


def light(rates: Any) -> dict[str, Any]:
    return {
        "rates": rates,
        "slack": np.array([24e-3, 23e-3, 22e-3]),
        "compute_time": np.array([0.5e-3, 1e-3, 0.2e-3]),
        "payload_bits": 1e5,
        "overhead_bits": 3e3,
    }


@pytest.mark.parametrize(
    "rates",
    [FixedNoise(np.array([4e8, 2e8, 1e8])), proportional_noise(np.array([9.0, 3.0, 1.0]), 5e7, 1.0, 1e-9)],
)
def test_a_light_load_is_over_as_soon_as_it_can_be(rates: Any) -> None:
    case = light(rates)
    slow = get_policy("joint")(OfdmaProblem(**case))
    quick = get_policy("joint")(OfdmaProblem(**case, tie_break="least_latency"))
    np.testing.assert_array_equal(quick.pruning_ratio, slow.pruning_ratio)
    assert slow.bandwidth_fraction.sum() < 0.2
    assert quick.bandwidth_fraction.sum() == pytest.approx(1.0, abs=1e-9)

    def left(found: Any) -> Any:  # of the threshold, s; all devices end together in the quickest round
        air = (case["payload_bits"] + case["overhead_bits"]) / rates.rate(found.bandwidth_fraction)
        return case["slack"] - case["compute_time"] - air

    np.testing.assert_allclose(left(quick), left(quick)[0], rtol=1e-9)
    assert left(quick).min() > left(slow).min() + 15e-3


def test_a_heavy_load_has_one_optimum() -> None:
    case = draw(1)
    case["payload_bits"] = 1e7
    best = get_policy("joint")(OfdmaProblem(**case))
    rates = case.pop("rates")
    assert quicken(best, rates, **case) is best
