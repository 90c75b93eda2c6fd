from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radio.allocation import (
    AllocationStatus,
    InfeasibleAllocationError,
    allocate,
    least_max_pruning_ratio,
    least_pruning_ratio,
)
from radio.allocation.certificates import verify_kkt
from radio.allocation.policies import printed_values
from radio.allocation.proportional_noise import _Devices, allocate_proportional_noise
from radio.allocation.reference import allocate_cvxpy
from radio.arrays import FloatArray
from radio.channel import ChannelModel, draw_gain, mean_gain, place_devices
from radio.channel.rates import ProportionalNoise, fixed_noise, full_band_rate, proportional_noise, rate
from radio.latency import slack
from radio.profiles import get_profile

INTERIOR, SATURATED, STARVED, INFEASIBLE, FLOOR, *_ = AllocationStatus


@dataclass(frozen=True)
class Case:
    r: FloatArray
    d: FloatArray
    g: FloatArray
    q: float

    @property
    def inputs(self) -> tuple[Any, ...]:
        return self.r, self.d, self.g, self.q

    def latency_excess(self, b: FloatArray, rho: FloatArray, m: float = 0.0) -> FloatArray:
        """(1 - rho)(G + Q / (b r)) + m / (b r) - D of the devices that upload."""
        on = b > 0
        speed = b[on] * self.r[on]
        needed = (1 - rho[on]) * (self.g[on] + self.q / speed) + m / speed
        return np.asarray(needed - self.d[on])


def draw_case(seed: int, devices: int | None = None, feasible: bool = False) -> Case:
    """Orders of magnitude as in a cell: rates 1e6..1e9, G 0.1..100 ms, some devices without slack."""
    rng = np.random.default_rng(seed)
    k = devices or int(rng.integers(1, 16))
    return Case(
        r=10 ** rng.uniform(6.5, 9) * rng.gamma(rng.integers(1, 8), 1, k),
        d=rng.uniform(1e-4 if feasible else -2e-3, 2e-2, k),
        g=10 ** rng.uniform(-4, -1, k),
        q=10 ** rng.uniform(5, 7),
    )


cases = st.integers(0, 2**32 - 1).map(draw_case)


# --- values known in advance ---


@pytest.mark.parametrize(
    ("inputs", "share", "ratio", "multiplier", "status"),
    [
        (
            ([4e8, 2e8, 1e8], 0.02, 0.01, 1e6),
            [0.25, 0.4319805153394639, 0.3180194846605361],
            [0, 0.07298380, 0.51742825],
            1.1512942468634453,
            [SATURATED, INTERIOR, INTERIOR],
        ),
        (
            ([4e8, 2e8, 2e7], 0.02, 0.01, 4e6),
            [0.65685425, 0.34314575, 0],
            [0.20710678, 0.70710678, 1],
            0.7285533905932737,
            [INTERIOR, INTERIOR, STARVED],
        ),
        (
            ([1e8, 5e7, 5e6], [0.02, 0.02, -0.001], [0.004, 0.03, 0.01], 4e6),
            [1, 0, 0],
            [0.5454545454545454, 1, 1],
            0.4132231404958678,
            [INTERIOR, STARVED, INFEASIBLE],
        ),
    ],
)
def test_known_optima(
    inputs: tuple[Any, ...], share: list[float], ratio: list[float], multiplier: float, status: list[int]
) -> None:
    found = allocate(*inputs)
    np.testing.assert_allclose(found.bandwidth_fraction, share, atol=1e-8)
    np.testing.assert_allclose(found.pruning_ratio, ratio, atol=1e-8)
    assert found.multiplier == pytest.approx(multiplier, abs=1e-8)
    np.testing.assert_array_equal(found.status, status)


def test_calibrated_profile_without_fading() -> None:
    profile = get_profile("calibrated")
    model = profile.channel
    gains = mean_gain(place_devices(model, np.random.default_rng(0)), model) * model.antennas
    r = full_band_rate(gains, profile.bandwidth, profile.transmit_power, profile.noise_power)
    d = slack(profile.latency_threshold, profile.compute.fixed_time(profile.cpu_frequency))
    g = profile.compute.compute_time(profile.cpu_frequency)
    found = allocate(r, d, g, profile.payload_bits)
    np.testing.assert_allclose(
        found.bandwidth_fraction,
        [0.169361, 0.150160, 0.130436, 0.114413, 0.100566, 0.088181, 0.076860, 0.066354, 0.056498, 0.047172],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        found.pruning_ratio,
        [0, 0.174647, 0.308002, 0.408517, 0.490749, 0.561157, 0.623219, 0.679037, 0.729987, 0.777022],
        atol=1e-6,
    )
    assert found.pruning_ratio.mean() == pytest.approx(0.475234, abs=1e-6)
    assert found.multiplier == pytest.approx(4.494011613, abs=1e-6)
    _, printed_ratio, printed_multiplier = printed_values(r, d, g, profile.payload_bits)
    assert printed_ratio[0] == pytest.approx(-0.0372, abs=1e-4)
    assert printed_multiplier == pytest.approx(4.503085278, abs=1e-6)


# --- properties of the optimum ---


@settings(deadline=None, max_examples=150)
@given(cases)
def test_feasible_and_satisfies_kkt(case: Case) -> None:
    found = allocate(*case.inputs)
    b, rho = found.bandwidth_fraction, found.pruning_ratio
    assert (b >= 0).all()
    assert b.sum() <= 1 + 1e-12
    assert ((rho >= 0) & (rho <= 1)).all()
    assert (case.latency_excess(b, rho) <= 1e-9).all()
    np.testing.assert_array_equal(found.status == INFEASIBLE, case.d <= 0)
    assert (b[case.d <= 0] == 0).all()
    assert (rho[b == 0] == 1).all()
    report = verify_kkt(found, *case.inputs)
    assert report.residual < 1e-9
    assert abs(report.duality_gap) < 1e-10


@settings(deadline=None, max_examples=50)
@given(cases, st.integers(0, 2**32 - 1))
def test_kkt_with_weights(case: Case, seed: int) -> None:
    weights = np.random.default_rng(seed).uniform(0, 3, case.r.size)
    weights[0] = 0.0
    report = verify_kkt(allocate(*case.inputs, weights=weights), *case.inputs, weights=weights)
    assert report.residual < 1e-9
    assert abs(report.duality_gap) < 1e-10


@settings(deadline=None, max_examples=80)
@given(cases)
def test_statuses_say_what_the_multiplier_says(case: Case) -> None:
    """Starved iff lambda >= r D / Q; saturated iff lambda <= r (D - G)^2 / (Q D) with D > G."""
    found = allocate(*case.inputs)
    price, on = float(found.multiplier), case.d > 0
    starved = found.status[on] == STARVED
    np.testing.assert_array_equal(starved, price * (1 + 1e-12) >= (case.r * case.d / case.q)[on])
    if case.r.size > 1 and found.bandwidth_fraction.max() < 1:
        limit = (case.r * (case.d - case.g) ** 2 / (case.q * case.d))[on]
        saturated = (price <= limit * (1 + 1e-12)) & (case.d > case.g)[on]
        np.testing.assert_array_equal(found.status[on] == SATURATED, saturated)


@settings(deadline=None, max_examples=80)
@given(cases, st.floats(0, 0.2))
def test_never_worse_than_equal_bandwidth(case: Case, overhead_share: float) -> None:
    m = overhead_share * case.q
    found = allocate(*case.inputs, overhead_bits=m)
    on = case.d > 0
    equal = least_pruning_ratio(on / max(1, int(on.sum())), *case.inputs, overhead_bits=m)
    assert found.objective <= equal.sum() + 1e-9


@settings(deadline=None, max_examples=50)
@given(cases, st.integers(0, 2**32 - 1))
def test_order_of_devices_does_not_matter(case: Case, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(case.r.size)
    found = allocate(*case.inputs)
    moved = allocate(case.r[order], case.d[order], case.g[order], case.q)
    np.testing.assert_allclose(moved.bandwidth_fraction, found.bandwidth_fraction[order], atol=1e-9)
    np.testing.assert_array_equal(moved.status, found.status[order])


@settings(deadline=None, max_examples=50)
@given(cases, st.floats(1.0, 4.0), st.floats(0, 2e-2))
def test_more_band_or_more_time_never_prunes_more(case: Case, band: float, time: float) -> None:
    before = allocate(*case.inputs).objective
    assert allocate(case.r * band, case.d, case.g, case.q).objective <= before + 1e-9
    assert allocate(case.r, case.d + time, case.g, case.q).objective <= before + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_a_batch_is_its_rows(seed: int) -> None:
    rows = [draw_case(seed + i, 6) for i in range(4)]
    stacked = [np.stack([np.broadcast_to(row.inputs[j], 6) for row in rows]) for j in range(4)]
    for m in (0.0, 3e4):
        batch = allocate(*(a.reshape(2, 2, 6) for a in stacked), overhead_bits=m)
        assert batch.bandwidth_fraction.shape == (2, 2, 6)
        assert np.shape(batch.multiplier) == (2, 2)
        for i, row in enumerate(rows):
            single = allocate(*row.inputs, overhead_bits=m)
            at = divmod(i, 2)
            np.testing.assert_allclose(batch.bandwidth_fraction[at], single.bandwidth_fraction, atol=1e-12)
            assert batch.multiplier[at] == pytest.approx(float(single.multiplier))


@pytest.mark.parametrize("compute", [1e-3, 1e-9, 1e-15, 1e-30, 0.0])
def test_vanishing_compute_time_tends_to_the_knapsack(compute: float) -> None:
    """With G = 0 the gains are linear: fill in the order of r D / Q, the last one in part."""
    r = np.array([1e8, 3e8, 2e8])
    found = allocate(r, 0.02, compute, 4e6)
    assert found.bandwidth_fraction.sum() == pytest.approx(1, abs=1e-13)
    assert verify_kkt(found, r, 0.02, compute, 4e6).residual < 1e-9
    if compute < 1e-12:
        np.testing.assert_allclose(found.bandwidth_fraction, [0, 2 / 3, 1 / 3], atol=1e-9)


def test_identical_linear_devices_share_alike() -> None:
    found = allocate(np.full(4, 1e8), 0.02, 0.0, 4e6)
    np.testing.assert_allclose(found.bandwidth_fraction, 0.25)


def test_spare_band_is_left_unused_and_costs_nothing() -> None:
    found = allocate([1e10, 1e10], 0.02, 0.01, 1e6)
    assert (found.status == SATURATED).all()
    assert found.multiplier == 0
    assert found.bandwidth_fraction.sum() < 1


def test_a_lone_device_takes_the_band_at_its_marginal_gain() -> None:
    found = allocate([1e8], 0.02, 0.004, 4e6)
    assert found.bandwidth_fraction[0] == 1
    assert found.multiplier == pytest.approx(1e8 * 0.02 * 4e6 / (1e8 * 0.004 + 4e6) ** 2)


def test_nobody_feasible_and_nobody_heard() -> None:
    found = allocate([1e8, 0.0], [-1.0, 0.02], 0.01, 1e6)
    np.testing.assert_array_equal(found.bandwidth_fraction, 0)
    np.testing.assert_array_equal(found.pruning_ratio, 1)
    np.testing.assert_array_equal(found.status, [INFEASIBLE, STARVED])


# --- a limit on the pruning ratio ---


@settings(deadline=None, max_examples=60)
@given(cases, st.floats(0.0, 0.999))
def test_limit_is_kept_relaxed_or_paid_by_dropping(case: Case, limit: float) -> None:
    least = float(least_max_pruning_ratio(*case.inputs))
    for m in (0.0, 0.02 * case.q):
        if m == 0 and least > limit * (1 + 1e-9):
            with pytest.raises(InfeasibleAllocationError, match="max_pruning_ratio"):
                allocate(*case.inputs, max_pruning_ratio=limit)
        for rule in ("relax", "drop"):
            found = allocate(
                *case.inputs,
                max_pruning_ratio=limit,
                overhead_bits=m,
                when_infeasible=rule,
            )
            b, rho = found.bandwidth_fraction, found.pruning_ratio
            assert b.sum() <= 1 + 1e-12
            assert (case.latency_excess(b, rho, m) <= 1e-9).all()
            taking = found.status != INFEASIBLE
            assert (rho[taking] <= found.max_pruning_ratio + 1e-12).all()
            if rule == "relax":
                np.testing.assert_array_equal(~taking, case.d <= 0)
            else:
                assert found.max_pruning_ratio == limit
            assert verify_kkt(found, *case.inputs, overhead_bits=m).stationarity < 1e-9


def test_the_least_limit_uses_up_the_band_for_equal_ratios() -> None:
    case = draw_case(3, 5, feasible=True)
    limit = float(least_max_pruning_ratio(*case.inputs))
    found = allocate(*case.inputs, max_pruning_ratio=limit)
    np.testing.assert_allclose(found.pruning_ratio, limit, atol=1e-9)
    assert found.bandwidth_fraction.sum() == pytest.approx(1)
    with pytest.raises(ValueError, match="Raise max_pruning_ratio"):
        allocate(*case.inputs, max_pruning_ratio=limit * 0.999)


def test_dropping_takes_the_device_that_needs_most() -> None:
    r = np.array([4e8, 2e8, 2e7])
    found = allocate(r, 0.02, 0.01, 4e6, max_pruning_ratio=0.75, when_infeasible="drop")
    np.testing.assert_array_equal(found.status == INFEASIBLE, [False, False, True])


# --- bits that pruning does not save ---


def best_by_trying_all(devices: int, solve: Callable[[NDArray[np.bool_]], float | None]) -> float:
    """Return the least objective over all sets of uploaders; `solve` gives that of a set that fits."""
    best = float(devices)
    for bits in product([False, True], repeat=devices):
        on = np.array(bits)
        if on.any() and (found := solve(on)) is not None:
            best = min(best, found + int((~on).sum()))
    return best


def hard_case(seed: int) -> tuple[Case, float]:
    """Few devices fit, and the charge may be as large as the upload: rounding the envelope often loses."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 8))
    case = Case(
        r=10 ** rng.uniform(6.5, 8, k),
        d=rng.uniform(1e-3, 2e-2, k),
        g=10 ** rng.uniform(-4, -2, k),
        q=10 ** rng.uniform(5, 6.5),
    )
    return case, case.q * float(rng.choice([1 / 32, 0.1, 0.3, 1.0]))


# On these the best of three roundings of the envelope is not the optimum (9 of the first 2000 seeds).
HARD_SEEDS = (99, 658, 868)


@pytest.mark.parametrize("seed", [*range(12), *HARD_SEEDS])
def test_overhead_the_choice_of_uploaders_is_the_best_of_all(seed: int) -> None:
    case, m = hard_case(seed)
    found = allocate(*case.inputs, overhead_bits=m)
    assert found.gap == 0
    assert (case.latency_excess(found.bandwidth_fraction, found.pruning_ratio, m) <= 1e-9).all()
    report = verify_kkt(found, *case.inputs, overhead_bits=m)
    assert report.residual < 1e-9
    assert report.duality_gap > -1e-10

    def solve(on: NDArray[np.bool_]) -> float | None:
        if (m / (case.r * case.d))[on].sum() > 1:
            return None
        chosen = allocate(
            case.r[on],
            case.d[on],
            case.g[on],
            case.q,
            overhead_bits=m,
            max_pruning_ratio=1 - 1e-13,
            when_infeasible="drop",
        )
        return float(chosen.objective)

    assert found.objective == pytest.approx(best_by_trying_all(case.r.size, solve), abs=1e-9)


def test_overhead_with_many_and_with_equal_devices_still_ends_at_the_optimum() -> None:
    rng = np.random.default_rng(0)
    for k in (30, 300):
        for r in (k * 1e6 * rng.gamma(2, 1, k), np.full(k, 2e6 * k)):
            found = allocate(r, 0.015, 0.005, 1.3e6, overhead_bits=1.2e5)
            assert found.gap == 0
            assert 0 < (found.status == STARVED).mean() < 1


def test_overhead_hundreds_of_devices_that_are_nearly_alike_end_at_the_optimum() -> None:
    """A crowded cell: some thirty devices are about as good in as out."""
    for seed in range(8):
        rate = 2.5e9 + 2.1e9 * np.random.default_rng(seed).random(200) ** 2.5
        found = allocate(rate, 0.025, 2.6e-4, 6.28e5, overhead_bits=1.99e4)
        assert found.gap == 0
        assert 50 < (found.status == STARVED).sum() < 100
        assert verify_kkt(found, rate, 0.025, 2.6e-4, 6.28e5, overhead_bits=1.99e4).residual < 1e-9


def test_a_search_cut_short_says_how_far_the_optimum_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound left over holds: the optimum, found without the cut, lies within the gap."""
    seed = HARD_SEEDS[0]
    case, m = hard_case(seed)
    whole = allocate(*case.inputs, overhead_bits=m)
    monkeypatch.setattr("radio.allocation.uploaders.most_choices", 1)
    cut = allocate(*case.inputs, overhead_bits=m)
    assert cut.gap > 0
    assert cut.objective - cut.gap <= whole.objective + 1e-9
    assert whole.objective <= cut.objective


def test_overhead_tends_to_the_plain_optimum() -> None:
    case = draw_case(11, 8, feasible=True)
    plain = allocate(*case.inputs)
    found = allocate(*case.inputs, overhead_bits=1e-9)
    np.testing.assert_allclose(found.bandwidth_fraction, plain.bandwidth_fraction, atol=1e-6)


# --- reference solver ---


def agrees_with_cvxpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = draw_case(seed)
    weights = rng.uniform(0.2, 2, case.r.size) if seed % 3 == 0 else None
    found = allocate(*case.inputs, weights=weights)
    reference = allocate_cvxpy(*case.inputs, weights=weights)
    assert found.objective == pytest.approx(reference.objective, abs=1e-7)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_agrees_with_cvxpy() -> None:
    for seed in range(200):
        agrees_with_cvxpy(seed)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_agrees_with_cvxpy_under_a_limit_and_overhead() -> None:
    for seed in range(10):
        case = draw_case(seed, 5, feasible=True)
        m = 0.03 * case.q
        limit = 0.5 + 0.5 * float(least_max_pruning_ratio(*case.inputs, overhead_bits=m))
        if limit >= 1:
            continue
        found = allocate(*case.inputs, max_pruning_ratio=limit, overhead_bits=m)
        reference = allocate_cvxpy(*case.inputs, max_pruning_ratio=limit, overhead_bits=m)
        assert found.objective == pytest.approx(reference.objective, abs=1e-7)


# --- noise proportional to the share ---


@pytest.mark.parametrize("seed", range(30))
def test_proportional_noise_meets_its_kkt_conditions(seed: int) -> None:
    """Marginal gains by central differences are equal where interior, larger where saturated."""
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, 12))
    model = ChannelModel(num_devices=k, antennas=4)
    h = draw_gain(model, mean_gain(place_devices(model, rng), model), rng)
    d, g, q = rng.uniform(-2e-3, 2e-2, k), 10 ** rng.uniform(-4, -1.5, k), 10 ** rng.uniform(5, 6.5)
    band, power, density = 20e6, 0.63, 1e-14 / 20e6
    found = allocate_proportional_noise(
        h, d, g, q, bandwidth=band, transmit_power=power, noise_density=density
    )
    b, rho = found.bandwidth_fraction, found.pruning_ratio
    assert b.sum() <= 1 + 1e-12
    on = d > 0
    np.testing.assert_array_equal(b[~on], 0)

    def gain(share: FloatArray) -> FloatArray:
        speed = rate(share, h, band, power, density)
        return np.asarray(speed * d / (speed * g + q))

    assert (1 - rho[on] <= gain(b)[on] + 1e-9).all()
    price = float(found.multiplier)
    step = 1e-6 * b
    with np.errstate(invalid="ignore", divide="ignore"):
        marginal = (gain(np.minimum(b + step, 1)) - gain(b - step)) / (np.minimum(b + step, 1) - b + step)
    interior, full = found.status == INTERIOR, found.status == SATURATED
    assert b.sum() == pytest.approx(1, abs=1e-9) if price > 0 else full[on].all()
    np.testing.assert_allclose(marginal[interior], price, rtol=1e-5)
    assert (marginal[full] >= price * (1 - 1e-5)).all()


@dataclass(frozen=True)
class PhysicalCase:
    h: FloatArray
    d: FloatArray
    g: FloatArray
    q: float
    m: float

    def solve(self, on: Any = slice(None), **options: Any) -> Any:
        return allocate_proportional_noise(
            self.h[on],
            self.d[on],
            self.g[on],
            self.q,
            bandwidth=20e6,
            transmit_power=0.63,
            noise_density=5e-22,
            overhead_bits=self.m,
            **options,
        )

    def excess(self, found: Any) -> FloatArray:
        b = found.bandwidth_fraction
        on = b > 0
        speed = rate(b, self.h, 20e6, 0.63, 5e-22)[on]
        kept = 1 - found.pruning_ratio[on]
        return np.asarray(kept * (self.g[on] + self.q / speed) + self.m / speed - self.d[on])


def physical_case(seed: int, charge: bool) -> PhysicalCase:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 6))
    q = 10 ** rng.uniform(5, 6.5)
    return PhysicalCase(
        h=1e-13 * 10 ** rng.uniform(-1, 2, k) * rng.gamma(1, 1, k),
        d=rng.uniform(1e-3, 2e-2, k),
        g=10 ** rng.uniform(-4, -2, k),
        q=q,
        m=q * float(rng.choice([1 / 32, 0.1, 0.3, 1.0])) if charge else 0.0,
    )


@pytest.mark.parametrize("seed", range(15))
def test_proportional_noise_chooses_the_best_uploaders_of_all(seed: int) -> None:
    case = physical_case(seed, charge=True)
    found = case.solve()
    assert found.gap == 0
    assert found.bandwidth_fraction.sum() <= 1 + 1e-12
    assert (case.excess(found) <= 1e-9).all()

    def solve(on: NDArray[np.bool_]) -> float | None:
        try:
            return float(case.solve(on, max_pruning_ratio=1 - 1e-13).objective)
        except InfeasibleAllocationError:
            return None

    assert found.objective == pytest.approx(best_by_trying_all(case.h.size, solve), abs=1e-8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 0.999), st.booleans(), st.sampled_from(["relax", "drop"]))
def test_proportional_noise_keeps_relaxes_or_drops_for_a_limit(
    seed: int, limit: float, charge: bool, rule: Any
) -> None:
    case = physical_case(seed, charge)
    found = case.solve(max_pruning_ratio=limit, when_infeasible=rule)
    b, rho = found.bandwidth_fraction, found.pruning_ratio
    assert b.sum() <= 1 + 1e-12
    assert (case.excess(found) <= 1e-9).all()
    taking = found.status != INFEASIBLE
    assert (rho[taking] <= found.max_pruning_ratio + 1e-12).all()
    if rule == "relax":
        assert taking.all()
        if limit < found.max_pruning_ratio < 1:  # the least limit: equal ratios use up the band
            np.testing.assert_allclose(rho, found.max_pruning_ratio, atol=1e-7)
            assert b.sum() == pytest.approx(1, abs=1e-7)
    else:
        assert found.max_pruning_ratio == limit
    if not taking.all():
        with pytest.raises(InfeasibleAllocationError, match="max_pruning_ratio"):
            case.solve(max_pruning_ratio=limit)
    # Who is left out sends nothing and holds no band.
    assert (rho[~taking] == 1).all()
    assert (b[~taking] == 0).all()


@pytest.mark.parametrize("seed", [2, 3, 6])
def test_proportional_noise_says_whom_a_limit_holds_back(seed: int) -> None:
    """Where the optimum would prune a device more than the limit, the limit binds for some device."""
    case = physical_case(seed, True)
    free = case.solve()
    limit = 0.97 * free.pruning_ratio.max()
    found = case.solve(max_pruning_ratio=limit, when_infeasible="relax")
    bound = found.status == FLOOR
    assert bound.any()
    np.testing.assert_allclose(found.pruning_ratio[bound], found.max_pruning_ratio, atol=1e-9)
    assert not (free.status == FLOOR).any()


@pytest.mark.parametrize("ratio", [10.0**k for k in range(-14, 4, 2)])
def test_the_gain_of_more_band_is_exact_at_every_signal_to_noise_ratio(ratio: float) -> None:
    """Of w (1 - rho): w (D Q + m G) R'(b) / (R G + Q)^2, in 60 digits."""
    b, band, d, g, q, m, w = 0.1, 2e7, 0.02, 0.005, 2e6, 1e4, 1.5
    snr = ratio * b
    devices = _Devices(
        ProportionalNoise(np.array([snr]), band), *(np.array([value]) for value in (d, g, q, m, w))
    )
    value, slope = devices.log_marginal(np.array([np.log(b)]))

    def exact(share: Decimal) -> Decimal:
        x = Decimal(snr) / share
        log2 = (1 + x).ln() / Decimal(2).ln()
        rate = share * Decimal(band) * log2
        derivative = Decimal(band) * (log2 - x / (1 + x) / Decimal(2).ln())
        weight = Decimal(w) * (Decimal(d) * Decimal(q) + Decimal(m) * Decimal(g))
        return (weight * derivative / (rate * Decimal(g) + Decimal(q)) ** 2).ln()

    with localcontext() as context:
        context.prec = 60
        here, step = Decimal(b), Decimal("1e-20")
        expected = exact(here)
        rise = (exact(here * (1 + step)) - expected) / step
    assert value[0] == pytest.approx(float(expected), rel=1e-6)
    assert slope[0] == pytest.approx(float(rise), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_the_share_of_a_rate_is_the_inverse_of_the_rate_of_a_share(seed: int) -> None:
    rng = np.random.default_rng(seed)
    h = 1e-14 * 10 ** rng.uniform(-3, 6, 50)
    b = np.exp(rng.uniform(-30, 0, 50))
    for model in (proportional_noise(h, 20e6, 0.63, 5e-22), fixed_noise(h, 20e6, 0.63, 1e-14)):
        np.testing.assert_allclose(model.share(model.rate(b)), b, rtol=1e-9)
        np.testing.assert_allclose(model.rate(np.ones(50)), model.full_band, rtol=1e-12)
        assert (model.share(2 * model.full_band) > 1).all()
        assert (model.share(np.zeros(50)) == 0).all()


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"full_band_rate": [1e8, -1.0]}, r"full_band_rate\[1\] = -1\.0 must be >= 0"),
        ({"payload_bits": 0.0}, r"payload_bits = 0\.0 must be > 0"),
        ({"slack": [np.nan, 0.0]}, r"slack\[0\] = nan is not finite"),
        ({"compute_time": -1e-3}, r"compute_time = -0\.001"),
        ({"weights": [-1.0, 1.0]}, r"weights\[0\] = -1\.0"),
        ({"max_pruning_ratio": 1.5}, r"max_pruning_ratio = 1\.5 must lie in \[0, 1\]"),
        ({"when_infeasible": "shrug"}, "when_infeasible = 'shrug'"),
        ({"full_band_rate": []}, "shape"),
    ],
)
def test_bad_inputs_are_named(change: dict[str, Any], text: str) -> None:
    arguments: dict[str, Any] = {
        "full_band_rate": [1e8, 1e8],
        "slack": 0.02,
        "compute_time": 0.01,
        "payload_bits": 1e6,
    }
    with pytest.raises(ValueError, match=text):
        allocate(**(arguments | change))
