from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from radio.bound import BoundConstants, bound, coefficients, left_coefficient

PLAIN = BoundConstants(
    initial_gap=2.0,
    num_rounds=50,
    num_devices=10,
    num_global_weights=100,
    step_size_global=1e-3,
    steps_global=2,
    smoothness_global=1.0,
    gradient_bound=1.0,
    pruning_error=0.5,
    least_contributors=3,
    noise_global=0.1,
    heterogeneity=0.2,
)


@given(st.floats(0, 400), st.floats(0, 100), st.sampled_from(["paper", "corrected"]))
def test_more_pruning_loosens_the_bound_linearly(total: float, more: float, form: Any) -> None:
    _, slope = coefficients(PLAIN, form)
    low, high = (bound(PLAIN, s, form=form) for s in (total, total + more))
    assert slope > 0
    assert high - low == pytest.approx(slope * more, abs=1e-12)


def test_fewer_contributors_and_fewer_rounds_loosen_both_forms() -> None:
    for form in ("paper", "corrected"):
        base = bound(PLAIN, 10, form=form)
        assert bound(replace(PLAIN, least_contributors=1), 10, form=form) > base
        assert bound(replace(PLAIN, num_rounds=10), 10, form=form) > base


def test_paper_form_is_vacuous_at_the_size_of_the_network() -> None:
    big = replace(PLAIN, num_global_weights=402_826)
    assert bound(big, 0, form="paper") > 1e5
    assert bound(big, 0, form="corrected") == bound(PLAIN, 0, form="corrected") < 2.0


def test_paper_form_fails_without_heterogeneity() -> None:
    """F1 = u^2/2, F2 = (u-1)^2/2, device 2 always prunes: u stays 0, grad F = -1/2 for ever.

    Left side eta/2 * 1/4 = 1.25e-3. Device 1's gradient is 0 on the whole path, so phi = D = sigma = 0 and
    the right side is (F_0 - F*)/G = (1/4 - 1/8)/G, below it from G = 101 on.
    """
    eta, rounds = 0.01, 1000
    constants = BoundConstants(
        initial_gap=0.125,
        num_rounds=rounds,
        num_devices=2,
        num_global_weights=1,
        step_size_global=eta,
        steps_global=1,
        smoothness_global=1.0,
        gradient_bound=0.0,
        pruning_error=0.0,
        least_contributors=1,
        heterogeneity=0.5,
    )
    left = left_coefficient(constants) * 0.25
    assert left == pytest.approx(1.25e-3)
    assert left > bound(constants, rounds * 1.0, form="paper")
    corrected = left_coefficient(constants, "corrected") * 0.25
    assert corrected <= bound(constants, rounds * 1.0, form="corrected")


def test_paper_form_misses_a_factor_k_in_the_personal_part() -> None:
    """F_k = v^2/2 for K = 10 devices, F the mean: gradient descent, no noise, nothing global."""
    k, eta, tau, rounds = 10, 0.01, 1, 200
    v = (1 - eta) ** np.arange(rounds)
    left = eta * tau / 8 * k * np.mean(v**2)
    constants = BoundConstants(
        initial_gap=0.5,
        num_rounds=rounds,
        num_devices=k,
        num_global_weights=1,
        step_size_global=eta,
        steps_global=1,
        smoothness_global=0.0,
        gradient_bound=0.0,
        pruning_error=0.0,
        least_contributors=k,
        step_size_personal=eta,
        steps_personal=tau,
        smoothness_personal=1.0,
    )
    assert left / bound(constants, 0.0, form="paper") == pytest.approx(1.23, abs=0.04)


def masked_run(seed: int) -> tuple[float, float]:
    """Masked federated averaging of random quadratics; return both sides of the corrected bound.

    Every constant is the largest value on the path, so the assumptions hold on it by construction.
    """
    rng = np.random.default_rng(seed)
    k, n, rounds, tau = int(rng.integers(2, 7)), int(rng.integers(1, 9)), 40, int(rng.integers(1, 4))
    curvature = rng.uniform(0.1, 1.0, (k, n))
    centre = rng.normal(0, rng.uniform(0, 2), (k, n)) + rng.normal(size=n)
    smooth = float(curvature.max())
    eta = rng.uniform(0.05, 0.3) / (smooth * tau)
    prune = rng.uniform(0, 0.8)
    noise = rng.choice([0.0, 0.3])

    def loss(u: np.ndarray) -> float:
        return float(0.5 * (curvature * (u - centre) ** 2).sum(axis=1).mean())

    best = (curvature * centre).sum(axis=0) / curvature.sum(axis=0)
    u = rng.normal(size=n)
    start = loss(u)
    squares, ratios, phi, delta, error, contributors = [], 0.0, 0.0, 0.0, 0.0, k
    for _ in range(rounds):
        mask = rng.random((k, n)) >= prune
        mask[rng.integers(k, size=n), np.arange(n)] = True  # nobody's weight
        contributors = min(contributors, int(mask.sum(axis=0).min()))
        gradients = curvature * (u - centre)
        mean = gradients.mean(axis=0)
        squares.append(float(mean @ mean))
        local = np.where(mask, u, 0.0)
        rho = 1 - mask.mean(axis=1)
        ratios += float(rho.sum())
        pruned = ((u - local) ** 2).sum(axis=1)
        error = max(error, float(np.max(np.divide(pruned, rho, out=np.zeros(k), where=rho > 0))))
        delta = max(delta, float(((gradients - mean) ** 2).sum(axis=1).max()))
        for _ in range(tau):
            exact = curvature * (local - centre)
            here = exact.mean(axis=0)
            delta = max(delta, float(((curvature * (local - centre) - here) ** 2).sum(axis=1).max()))
            stochastic = exact + noise / np.sqrt(n) * rng.standard_normal((k, n))
            phi = max(phi, float((stochastic**2).sum(axis=1).max()))
            local = local - eta * np.where(mask, stochastic, 0.0)
        u = np.where(mask, local, 0.0).sum(axis=0) / mask.sum(axis=0)
    constants = BoundConstants(
        initial_gap=start - loss(best),
        num_rounds=rounds,
        num_devices=k,
        num_global_weights=n,
        step_size_global=eta,
        steps_global=tau,
        smoothness_global=smooth,
        gradient_bound=float(np.sqrt(phi)),
        pruning_error=float(np.sqrt(error)),
        least_contributors=contributors,
        noise_global=float(noise),
        heterogeneity=float(np.sqrt(delta)),
    )
    left = left_coefficient(constants, "corrected") * float(np.mean(squares))
    return left, bound(constants, ratios, form="corrected")


def test_corrected_form_holds_on_random_masked_quadratics() -> None:
    for seed in range(200):
        left, right = masked_run(seed)
        assert left <= right, f"seed {seed}: {left} > {right}"


def test_refusals_are_named() -> None:
    with pytest.raises(ValueError, match="least_contributors = 0"):
        replace(PLAIN, least_contributors=0)
    with pytest.raises(ValueError, match="form = 'fixed'"):
        bound(PLAIN, 0, form="fixed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"pruning_ratio_sum = -1"):
        bound(PLAIN, -1.0)
