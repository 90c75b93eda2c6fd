"""The two moves all fast solvers share: a batched smooth ascent and an exact convex step.

*Ascent.* A smooth stand-in for the minimum weighs user k by exp(-beta (p_k - min p) / mean p), p_k its gain.
Its gradient is sum_k w_k h_k (h_k^H m); a step averages the beam with the normalised gradient, while beta
grows, so that the stand-in tends to the minimum. All starting beams advance together in two matrix products.
With ``count`` below K the minimum runs over the `count` strongest users of *each* beam, which is the joint
choice of users and beam: given m, the strongest users are exactly optimal (eq. (15) of arXiv 2508.00341).

*Polish.* Write the problem as min ||x|| s.t. |h_k^H x| >= 1. Fixing the phase theta_k of h_k^H x at the
current point leaves Re(e^{-j theta_k} h_k^H x) >= 1: a least-distance problem over 2N real numbers, whose
dual is a non-negative least-squares problem with one unknown per user (Lawson and Hanson, "Solving Least
Squares Problems", ch. 23). The current beam stays feasible, so the objective never falls. The more usual
linearisation 2 Re(c_k^* h_k^H m) - |c_k|^2 >= t of |h_k^H m|^2 implies, by the inequality of the means,
Re(e^{-j theta_k} h_k^H m) >= sqrt(t): its feasible set is contained in this one, so a step gains at least
as much, at the price of one active-set solve in place of a cone program.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import nnls

from radio.beamforming.problem import Complex, Real

_CHUNK = 4_000_000  # entries of a (beams, users) table held at once


def _ascend(
    channels: Complex, starts: Complex, *, count: int, iterations: int, beta: float, growth: float
) -> tuple[Complex, Real]:
    users = len(channels)
    transposed = np.ascontiguousarray(channels.T)
    beams = starts
    best_gain = np.full(len(starts), -1.0)
    best = starts.copy()
    for step in range(iterations + 1):
        projected = beams.conj() @ transposed
        power = projected.real**2 + projected.imag**2
        if count < users:
            level = np.partition(power, users - count, axis=1)[:, users - count]
        else:
            level = power.min(axis=1)
        better = level > best_gain
        best_gain[better] = level[better]
        best[better] = beams[better]
        if step == iterations:
            break
        if count < users:
            # Dividing by the level (and not by the mean of the chosen users) needs no second selection.
            excess = power / np.maximum(level, 1e-300)[:, None] - 1.0
            weight = np.where(excess >= 0.0, np.exp(np.maximum(-beta * growth**step * excess, -60.0)), 0.0)
        else:
            excess = (power - level[:, None]) / power.mean(axis=1, keepdims=True)
            weight = np.exp(-beta * growth**step * excess)
        direction = (weight * projected.conj()) @ channels
        size = np.linalg.norm(direction, axis=1, keepdims=True)
        beams = beams + direction / np.maximum(size, 1e-300)
        beams /= np.linalg.norm(beams, axis=1, keepdims=True)
    return best, best_gain


def ascend(
    channels: Complex,
    starts: Complex,
    *,
    count: int | None = None,
    iterations: int = 15,
    beta: float = 2.0,
    growth: float = 1.35,
) -> tuple[Complex, Real]:
    """Raise the `count`-th largest gain from every starting beam at once.

    Args:
        channels: (K, N).
        starts: (B, N), unit norm.
        count: users that count per beam; None: all K.
        iterations: steps; the sharpness of step i is ``beta * growth**i``.
        beta: first sharpness.
        growth: factor of the sharpness per step.

    Returns:
        The best beam seen from each start, (B, N), and its `count`-th largest gain, (B,).
    """
    count = len(channels) if count is None else count
    chunk = max(1, _CHUNK // len(channels))
    parts = [
        _ascend(
            channels,
            starts[i : i + chunk],
            count=count,
            iterations=iterations,
            beta=beta,
            growth=growth,
        )
        for i in range(0, len(starts), chunk)
    ]
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


def polish(
    channels: Complex, beam: Complex, *, steps: int = 100, tolerance: float = 1e-6
) -> tuple[Complex, float, int]:
    """Repeat the least-distance step until the gain grows by less than `tolerance` relatively.

    Args:
        channels: (M, N), the fixed set.
        beam: (N,), unit norm.
        steps: at most this many convex steps.
        tolerance: relative gain growth at which to stop.

    Returns:
        The beam (never worse than the given one), its minimum gain, and the number of steps made.
    """
    users, antennas = channels.shape
    projected = channels @ beam.conj()
    size = np.abs(projected)
    value = float(size.min())
    # Rows: the 2N real coordinates, then the ones of the least-distance dual; one column per user.
    table = np.empty((2 * antennas + 1, users))
    table[-1] = 1.0
    target = np.zeros(2 * antennas + 1)
    target[-1] = 1.0
    made = 0
    for _ in range(steps):
        # Dividing by the value reached puts the distance sought near 1, where the dual is well scaled.
        if value > 1e-8 * float(size.max()):
            factor = projected.conj() / (size * value)
        else:  # some user is all but nulled: its phase is free, and the value no measure of scale
            unit = 1e-3 * float(np.sqrt((channels.real**2 + channels.imag**2).sum(axis=1).min()))
            factor = np.asarray(np.exp(-1j * np.angle(projected)) / unit, np.complex128)
        turned = channels.T * factor
        table[:antennas] = turned.real
        table[antennas:-1] = turned.imag
        try:
            multiplier = nnls(table, target)[0]
        except RuntimeError:  # the active set cycled; the incumbent stands
            break
        made += 1
        point = turned @ multiplier
        norm = math.sqrt(np.vdot(point, point).real)
        if norm <= 0.0:  # the origin lies in the hull: this phase pattern has no positive gain
            break
        candidate: Complex = np.asarray(point / norm)
        projected = channels @ candidate.conj()
        size = np.abs(projected)
        reached = float(size.min())
        if reached <= value * (1.0 + 0.5 * tolerance):
            if reached > value:
                beam, value = candidate, reached
            break
        beam, value = candidate, reached
    return beam, value * value, made
