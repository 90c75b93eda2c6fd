"""Time of the joint allocation: the sorted exact method, bisection on the multiplier, and cvxpy.

    python -m benchmarks.allocation_speed [--devices 10 100 1000 100000] [--cvxpy-limit 1000] [--seed 0]

Bisection is the usual textbook method for this kind of problem, and cvxpy the tool that most simulators
reach for. Each time is the best of several calls after a warm-up (cvxpy: one call).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from radio.allocation import Allocation, allocate
from radio.allocation.proportional_noise import allocate_at
from radio.allocation.reference import allocate_cvxpy
from radio.arrays import FloatArray
from radio.channel.rates import proportional_noise

Inputs = tuple[FloatArray, FloatArray, FloatArray, FloatArray]


def instance(devices: int, seed: int) -> Inputs:
    """Return r, D, G, Q of a cell whose band grows with the number of devices, so that all statuses occur."""
    rng = np.random.default_rng(seed)
    r = devices * 3e7 * rng.gamma(2.0, 1.0, devices)
    d = rng.uniform(-5e-4, 2.4e-2, devices)
    g = rng.uniform(2e-3, 8e-3, devices)
    return r, d, g, np.full(devices, 12_890_432.0)


def bisection(r: FloatArray, d: FloatArray, g: FloatArray, q: FloatArray, iterations: int = 100) -> float:
    """Return the objective found by bisection on ln lambda of the clipped KKT shares."""
    on = d > 0
    left_out = int((~on).sum())
    r, d, g, q = r[on], d[on], g[on], q[on]
    cap = np.where(d > g, np.minimum(q / (r * np.maximum(d - g, 1e-300)), 1.0), 1.0)
    scale, offset = np.sqrt(d * q / r) / g, q / (r * g)
    low, high = 0.0, 2.0 * float((offset / scale).max() + (1 / scale).max())
    for _ in range(iterations):
        level = 0.5 * (low + high)
        if np.clip(scale * level - offset, 0.0, cap).sum() > 1:
            high = level
        else:
            low = level
    b = np.clip(scale * low - offset, 0.0, cap)
    return left_out + float((1 - np.minimum(1.0, b * r * d / (b * r * g + q))).sum())


def best_time(function: Callable[[], object], repeats: int) -> float:
    """Return the shortest wall time of `function` in s."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def crowded(seed: int) -> tuple[FloatArray, float, float, float]:
    """Return r, D, G, Q of 200 devices that are nearly alike, of which a third starves."""
    return 2.5e9 + 2.1e9 * np.random.default_rng(seed).random(200) ** 2.5, 0.025, 2.6e-4, 6.28e5


def who_uploads(seeds: int) -> None:
    """Print the time of cells where uploads have a fixed charge and not all fit, and the gap that is left."""
    for text, solve in (
        ("crowded cells of 200 devices", lambda seed: allocate(*crowded(seed), overhead_bits=1.99e4)),
        ("mixed cells of 50 devices, noise that grows with the share,", growing_noise),
    ):
        times = [best_time(lambda: solve(seed), 3) for seed in range(seeds)]  # noqa: B023
        gap = max(float(solve(seed).gap) for seed in range(seeds))
        print(
            f"\n{seeds} {text} with overhead: {1e3 * np.median(times):.1f} ms in the median, "
            f"{1e3 * max(times):.1f} ms at most; largest gap {gap:.1e}"
        )


def growing_noise(seed: int) -> Allocation:
    """Solve for 50 devices that differ in everything, on 20 MHz."""
    rng = np.random.default_rng(seed)
    gain, slack = 10 ** rng.uniform(-10, -7, 50), rng.uniform(1e-3, 2e-2, 50)
    rates = proportional_noise(gain, 2e7, 0.2, 4e-21)
    return allocate_at(rates, slack, 10 ** rng.uniform(-4, -2, 50), 1e6, overhead_bits=1e5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--devices", type=int, nargs="+", default=[10, 100, 1000, 100_000])
    parser.add_argument("--cvxpy-limit", type=int, default=1000, help="largest K that cvxpy is asked for")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(
        "| K | exact, ms | with overhead, ms | bisection, ms | cvxpy, ms "
        "| objective less exact: bisection, cvxpy |"
    )
    print("|---|---|---|---|---|---|")
    for devices in arguments.devices:
        inputs = instance(devices, arguments.seed)
        repeats = 20 if devices <= 1000 else 5
        found = float(allocate(*inputs).objective)
        exact = best_time(lambda: allocate(*inputs), repeats)  # noqa: B023  (called before the next round)
        charged = best_time(lambda: allocate(*inputs, overhead_bits=4e5), repeats)  # noqa: B023
        halving = best_time(lambda: bisection(*inputs), repeats)  # noqa: B023
        solver, difference = "-", "-"
        if devices <= arguments.cvxpy_limit:
            allocate_cvxpy(*instance(2, 0))
            start = time.perf_counter()
            reference = allocate_cvxpy(*inputs)
            solver = f"{(time.perf_counter() - start) * 1e3:.1f}"
            difference = f"{reference.objective - found:.1e}"
        print(
            f"| {devices} | {exact * 1e3:.2f} | {charged * 1e3:.2f} | {halving * 1e3:.2f} | {solver} "
            f"| {bisection(*inputs) - found:.1e}, {difference} |"
        )
    who_uploads(20)


if __name__ == "__main__":
    main()
