from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from radio.allocation import Allocation, AllocationStatus, allocate, ratio_at_rate
from radio.allocation.policies import POLICIES, OfdmaProblem, get_policy, policy, printed_values
from radio.channel.rates import fixed_noise, proportional_noise
from radio.profiles import get_profile

INTERIOR, SATURATED, STARVED, INFEASIBLE, FLOOR, *_ = AllocationStatus


def draw_problem(seed: int) -> OfdmaProblem:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 12))
    gain = 1e-10 * rng.gamma(1, 1, k)
    physical = rng.random() < 0.5
    return OfdmaProblem(
        rates=proportional_noise(gain, 20e6, 0.63, 1e-14 / 20e6)
        if physical
        else fixed_noise(gain, 20e6, 0.63, 1e-14),
        slack=rng.uniform(-2e-3, 2e-2, k),
        compute_time=10 ** rng.uniform(-4, -1.5, k),
        payload_bits=10 ** rng.uniform(4, 6.5),
        overhead_bits=float(rng.choice([0.0, 1e3, 1e5])),
    )


problems = st.integers(0, 2**32 - 1).map(draw_problem)


@settings(deadline=None, max_examples=40)
@given(problems)
@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"energy_aware"}))  # needs energy: test_energy_aware
def test_contract_of_every_policy(name: str, problem: OfdmaProblem) -> None:
    plan = get_policy(name)(problem, pruning_ratio=0.5 if name == "fixed_ratio" else None)
    b, rho = plan.bandwidth_fraction, plan.pruning_ratio
    k = np.size(problem.slack)
    assert b.shape == rho.shape == plan.status.shape == (k,)
    assert (b >= 0).all()
    assert b.sum() <= 1 + 1e-12
    assert ((rho >= 0) & (rho <= 1)).all()
    np.testing.assert_array_equal(b == 0, rho == 1)
    np.testing.assert_array_equal((plan.status == STARVED) | (plan.status == INFEASIBLE), b == 0)
    np.testing.assert_array_equal(plan.status == SATURATED, rho == 0)
    assert plan.objective == pytest.approx(rho.sum())


PROMISING = ["joint", "joint_physical_noise", "equal_bandwidth", "printed_formula"]


@settings(deadline=None, max_examples=60)
@given(problems, st.sampled_from([1.0, 0.9, 0.5]))
@example(draw_problem(744237663), 1.0)  # shares of 1e-15: 1 - rho has hardly a digit left
@example(draw_problem(385), 1.0)
@pytest.mark.parametrize("name", PROMISING)
def test_schemes_with_a_budget_keep_it_under_either_noise_and_the_joint_optimum_is_best(
    name: str, problem: OfdmaProblem, limit: float
) -> None:
    problem = replace(problem, max_pruning_ratio=limit, when_infeasible="drop")
    plan = get_policy(name)(problem)
    b, rho = plan.bandwidth_fraction, plan.pruning_ratio
    on = b > 0
    speed = problem.rates.rate(b)[on]
    q, m = float(np.asarray(problem.payload_bits)), float(np.asarray(problem.overhead_bits))
    needed = (1 - rho[on]) * (np.asarray(problem.compute_time)[on] + q / speed) + m / speed
    assert (needed <= np.asarray(problem.slack)[on] + 1e-9).all()
    if name != "printed_formula":
        assert (rho[on] <= limit + 1e-12).all()
    if limit == 1:
        assert get_policy("joint")(problem).objective <= plan.objective + 1e-8


@settings(deadline=None, max_examples=60)
@given(problems, st.floats(1.0, 4.0))
@pytest.mark.parametrize("name", ["joint", "equal_bandwidth"])
def test_where_everybody_fits_nobody_is_pruned(name: str, problem: OfdmaProblem, slower: float) -> None:
    """Slack for a dense upload at an equal share: nobody is pruned, let alone starved."""
    k = np.size(problem.slack)
    speed = problem.rates.rate(np.full(k, 1 / k))
    enough = np.asarray(problem.compute_time) + (
        np.asarray(problem.payload_bits) + np.asarray(problem.overhead_bits)
    ) / np.maximum(speed, 1e-300)
    plan = get_policy(name)(replace(problem, slack=slower * enough * (1 + 1e-9)))
    np.testing.assert_array_equal(plan.pruning_ratio, 0)


def test_the_rates_decide_not_the_name_of_the_policy() -> None:
    """One optimum under each noise model, and the physical one is never worse: N0 b B <= N0 B."""
    gain = 1e-10 * np.random.default_rng(0).gamma(1, 1, 6)
    fixed = OfdmaProblem(fixed_noise(gain, 20e6, 0.63, 1e-14), 0.02, 0.01, 2e6)
    physical = replace(fixed, rates=proportional_noise(gain, 20e6, 0.63, 1e-14 / 20e6))
    for problem in (fixed, physical):
        one, other = (get_policy(name)(problem) for name in ("joint", "joint_physical_noise"))
        np.testing.assert_array_equal(one.bandwidth_fraction, other.bandwidth_fraction)
    for name in ("joint", "equal_bandwidth"):
        assert get_policy(name)(physical).objective < get_policy(name)(fixed).objective


@pytest.mark.parametrize("rates", [[1e8, 1e8, 1e6], [[1e8, 1e8, 1e6], [1e6, 1e8, 1e8]]])
def test_equal_bandwidth_hands_on_the_share_of_a_device_above_the_limit(rates: Any) -> None:
    """r = 1e8, D = .02, G = .005, Q = 2e6: at a third of the band rho = .692, at a half .556."""
    problem = OfdmaProblem(rates, 0.02, 0.005, 2e6, max_pruning_ratio=0.9)
    plan = get_policy("equal_bandwidth")(problem)
    weak = np.asarray(rates) < 1e7
    np.testing.assert_array_equal(plan.bandwidth_fraction, np.where(weak, 0, 0.5))
    # rho = 1 - b r D / (b r G + Q) = 1 - 1e6 / 2.25e6
    np.testing.assert_allclose(plan.pruning_ratio, np.where(weak, 1, 1 - 1 / 2.25), rtol=1e-12)
    np.testing.assert_array_equal(plan.status == INFEASIBLE, weak)
    third = ratio_at_rate(1e8 / 3, 0.02, 0.005, 2e6)
    assert third == pytest.approx(0.692, abs=5e-4)


@settings(deadline=None, max_examples=60)
@given(problems, st.sampled_from([1.0, 0.95, 0.8, 0.3]))
def test_equal_bandwidth_serves_the_largest_set_that_fits(problem: OfdmaProblem, limit: float) -> None:
    """By trying every number of devices, those that need least first."""
    problem = replace(problem, max_pruning_ratio=limit)
    k = np.size(problem.slack)
    most = 0
    for n in range(1, k + 1):
        ratio = ratio_at_rate(
            problem.rates.rate(np.full(k, 1 / n)),
            problem.slack,
            problem.compute_time,
            problem.payload_bits,
            overhead_bits=problem.overhead_bits,
        )
        if ((ratio < 1) & (ratio <= limit - 1e-9)).sum() >= n:
            most = n
    plan = get_policy("equal_bandwidth")(problem)
    assert (plan.bandwidth_fraction > 0).sum() >= most
    assert plan.bandwidth_fraction.sum() == pytest.approx(
        float(most > 0 or (plan.bandwidth_fraction > 0).any())
    )


def test_equal_shares_are_among_those_who_upload() -> None:
    problem = OfdmaProblem([4e8, 2e8, 2e7, 1e8], [0.02, 0.02, 0.02, -1], 0.01, 4e6)
    np.testing.assert_allclose(get_policy("equal_bandwidth")(problem).bandwidth_fraction, [1 / 3] * 3 + [0])
    joint = get_policy("joint")(problem)
    both = get_policy("equal_bandwidth_joint_rho")(problem)
    np.testing.assert_array_equal(both.pruning_ratio, joint.pruning_ratio)
    np.testing.assert_allclose(both.bandwidth_fraction, [0.5, 0.5, 0, 0])
    dense = get_policy("dense_equal_bandwidth")(problem)
    np.testing.assert_allclose(dense.bandwidth_fraction, 0.25)
    np.testing.assert_array_equal(dense.pruning_ratio, 0)
    silent = get_policy("fixed_ratio")(problem, pruning_ratio=1.0)
    np.testing.assert_array_equal(silent.bandwidth_fraction, 0)


def test_printed_formula_is_right_exactly_where_nothing_is_clipped() -> None:
    r, d, g, q = np.array([3e8, 2e8, 1.5e8]), 0.02, 0.01, 2e6
    b, rho, multiplier = printed_values(r, d, g, q)
    exact = allocate(r, d, g, q)
    assert (exact.status == INTERIOR).all()
    np.testing.assert_allclose(b, exact.bandwidth_fraction, atol=1e-12)
    np.testing.assert_allclose(rho, exact.pruning_ratio, atol=1e-12)
    assert multiplier == pytest.approx(float(exact.multiplier))


def test_printed_formula_leaves_its_bounds_and_its_repair_can_lose_to_equal_shares() -> None:
    r, d, g, q = np.array([4e8, 2e8, 2e7]), 0.02, 1e-3, 4e6
    assert printed_values(r, d, g, q)[0].min() < 0
    problem = OfdmaProblem(r, d, g, q)
    repaired, equal, exact = (
        get_policy(name)(problem).objective for name in ("printed_formula", "equal_bandwidth", "joint")
    )
    assert exact < min(repaired, equal)
    rng = np.random.default_rng(0)
    losses = 0
    for _ in range(200):
        random = OfdmaProblem(1e8 * rng.gamma(1, 1, 10), d, g, q)
        losses += bool(
            get_policy("printed_formula")(random).objective > get_policy("equal_bandwidth")(random).objective
        )
    assert losses > 10


def test_printed_bandwidth_cannot_carry_a_dense_upload() -> None:
    """A lossless channel (h = 1), a tenth of the band."""
    profile = get_profile("paper_literal")
    snr = profile.transmit_power / profile.noise_power
    rate = profile.bandwidth / 10 * np.log2(1 + snr)
    assert profile.payload_bits / rate == pytest.approx(140.6e-3, abs=0.1e-3)


# --- registry ---


def example_policy(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    return get_policy("fixed_ratio")(problem, pruning_ratio=0.25)


def test_a_policy_can_be_named_by_its_path() -> None:
    assert get_policy("radio.allocation.policies:joint") is POLICIES["joint"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("best", "scheme.allocation = 'best' is unknown; valid: .*equal_bandwidth, .*joint"),
        ("radio.nowhere:f", "cannot be imported"),
        ("radio.allocation.policies:nothing", "cannot be imported"),
        ("radio.allocation.policies:POLICIES", "must be a function or a class"),
    ],
)
def test_unknown_policies_are_named(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        get_policy(name)


def test_names_are_registered_once() -> None:
    policy("example")(example_policy)
    with pytest.raises(ValueError, match="registered twice"):
        policy("example")(example_policy)
    problem = OfdmaProblem([1e8], 0.02, 0.01, 1e6)
    assert get_policy("example")(problem).pruning_ratio[0] == 0.25
    POLICIES.remove("example")


def test_a_ratio_goes_to_the_policy_that_takes_one_and_to_no_other() -> None:
    problem = OfdmaProblem([1e8], 0.02, 0.01, 1e6)
    with pytest.raises(ValueError, match="pruning_ratio = None"):
        get_policy("fixed_ratio")(problem)
    with pytest.raises(ValueError, match=r"pruning_ratio = 0\.5: policy joint"):
        get_policy("joint")(problem, pruning_ratio=0.5)


def test_rates_of_ones_own_need_a_policy_of_ones_own() -> None:
    class Own:
        full_band = np.array([1e8, 1e8])

        def rate(self, bandwidth_fraction: Any) -> Any:
            return np.sqrt(bandwidth_fraction) * self.full_band

        def share(self, rate: Any) -> Any:
            return (rate / self.full_band) ** 2

    problem = OfdmaProblem(Own(), 0.02, 0.005, 2e6)
    assert get_policy("equal_bandwidth")(problem).bandwidth_fraction.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="no optimum for rates of Own"):
        get_policy("joint")(problem)
