"""Random rounds under time and energy, and references that share no code with what they judge."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize

from radio.arrays import FloatArray
from radio.energy import EnergyTerms

LN2 = np.log(2.0)


def draw_terms(
    seed: int, devices: int | None = None, *, load: float = 1.0, charge: bool = False
) -> EnergyTerms:
    """Return orders of magnitude as in a cell; every bound of f and p binds somewhere."""
    rng = np.random.default_rng(seed)
    k = devices or int(rng.integers(1, 8))
    top = 10 ** rng.uniform(8.7, 9.6, k)
    span = 10 ** rng.uniform(-2, -0.5)
    fixed = top * span * rng.uniform(0, 0.5, k)
    dense = top * span * 10 ** rng.uniform(-2, 0.5, k)
    power = 10 ** rng.uniform(-2, 0.3, k)
    kappa = 10 ** rng.uniform(-28.5, -26.5)
    budget = (kappa * top**2 * (fixed + dense * rng.random(k)) + power * span) * 10 ** rng.uniform(
        -1.3, 0.4, k
    )
    bits = load * span * 200e6 * 10 ** rng.uniform(-1.5, 1, k)
    return EnergyTerms.of(
        fixed_cycles=fixed,
        global_cycles=dense,
        payload_bits=bits,
        overhead_bits=bits / 32 if charge else 0.0,
        gain_over_noise=10 ** rng.uniform(0, 6, k),
        bandwidth=200e6,
        max_power=power,
        min_frequency=top * 10 ** rng.uniform(-2, -0.2, k),
        max_frequency=top,
        threshold=span,
        budget=np.where(rng.random(k) < 0.1, np.inf, budget),
        capacitance=kappa,
    )


def largest_kept_scipy(terms: EnergyTerms, device: int, share: float) -> float:
    """Return y(b; E) by bisection over y, and golden section over f and p for the time that is left."""
    t = terms.rows(np.array([device]))
    g, kappa, span, budget = (float(a[0]) for a in (t.gain_over_noise, t.capacitance, t.threshold, t.budget))
    top, low = float(t.max_frequency[0]), float(t.min_frequency[0])

    def fits(y: float) -> bool:
        work = float(t.fixed_cycles[0] + y * t.global_cycles[0])
        bits = float(y * t.payload_bits[0] + t.overhead_bits[0])
        # Energy as a function of f alone: the upload takes all the time that is left, at the power for it.
        f = np.geomspace(low, top, 4001)

        def energy(f: FloatArray) -> FloatArray:
            left = span - work / f
            with np.errstate(all="ignore"):
                power = np.expm1(LN2 * bits / (share * t.bandwidth * left)) / g
                used = kappa * work * f**2 + power * left
            return np.where((left > 0) & (power <= t.max_power[0] * (1 + 1e-12)), used, np.inf)

        for _ in range(5):
            spent = energy(f)
            best = int(np.argmin(spent))
            f = np.linspace(f[max(best - 1, 0)], f[min(best + 1, f.size - 1)], 401)
        return bool(np.isfinite(energy(f).min()) and energy(f).min() <= budget)

    least, most = 0.0, 1.0
    if not fits(0.0):
        return float("nan")
    if fits(1.0):
        return 1.0
    for _ in range(50):
        middle = 0.5 * (least + most)
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least


def joint_scipy(terms: EnergyTerms, weights: FloatArray, starts: int = 3) -> float:
    """Return the best sum of w y that SLSQP finds over (y, b, t, f): a lower bound of the optimum.

    In scaled variables: t = x T, f = v f_max, and the power that the bits ask for.
    """
    k = terms.budget.size
    rng = np.random.default_rng(0)
    budget = np.where(np.isfinite(terms.budget), terms.budget, 1e9)

    def parts(z: FloatArray) -> tuple[FloatArray, ...]:
        return z[:k], z[k : 2 * k], z[2 * k : 3 * k], z[3 * k :]

    def power(z: FloatArray) -> FloatArray:
        y, b, x, _ = parts(z)
        n = (y * terms.payload_bits + terms.overhead_bits) / (b * terms.bandwidth * x * terms.threshold)
        return np.asarray(np.expm1(np.minimum(LN2 * n, 60.0)) / terms.gain_over_noise)

    def time_left(z: FloatArray) -> FloatArray:
        y, _, x, v = parts(z)
        return np.asarray(1 - x - terms.cycles(y) / (v * terms.max_frequency * terms.threshold))

    def energy_left(z: FloatArray) -> FloatArray:
        y, _, x, v = parts(z)
        used = terms.capacitance * terms.cycles(y) * (v * terms.max_frequency) ** 2
        return np.asarray(1 - (used + power(z) * x * terms.threshold) / budget)

    solve: Any = minimize  # its stubs know no list of bounds
    limits: list[dict[str, Any]] = [
        {"type": "ineq", "fun": time_left},
        {"type": "ineq", "fun": energy_left},
        {"type": "ineq", "fun": lambda z: 1 - power(z) / terms.max_power},
        {"type": "ineq", "fun": lambda z: 1 - z[k : 2 * k].sum()},
    ]
    bounds: list[Any] = [(0, 1)] * k + [(1e-9, 1)] * k + [(1e-6, 1)] * k
    bounds += [(a, 1.0) for a in terms.min_frequency / terms.max_frequency]
    best = 0.0
    for _ in range(starts):
        start = np.concatenate(
            [np.full(k, 0.01), np.full(k, 0.9 / k), np.full(k, rng.uniform(0.2, 0.6)), np.full(k, 0.9)]
        )
        found = solve(
            lambda z: -float(weights @ z[:k]), start, method="SLSQP", bounds=bounds, constraints=limits,
            options={"maxiter": 400, "ftol": 1e-13},
        )  # fmt: skip
        feasible = min(float(np.min(limit["fun"](found.x))) for limit in limits) > -1e-9
        if feasible:
            best = max(best, -float(found.fun))
    return best
