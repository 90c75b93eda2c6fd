"""What a receiver can do about the noise by itself: shrink what it heard, and ask fewer or more users.

A received change y = x + n of d entries with known noise variance V has the mean square P = |x|^2/d + V in
the mean. The linear estimate of least squared error is (1 - V/P) y; with P taken from y itself, the positive
part of the estimator of James and Stein (1961),

    (1 - (d - 2)/d V / P)_+ y,

has a smaller mean squared error than y for every x as soon as d > 2. One factor per tensor suits tensors
whose updates differ in size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from radio.air.regularised import best_scaling
from radio.arrays import non_negative
from radio.beamforming.problem import Real


def shrinkage(change: ArrayLike, noise_variance: float, blocks: Sequence[slice]) -> Real:
    """Return the factor of each entry, (d,) in [0, 1]; the same within a block.

    Args:
        change: (d,) as received.
        noise_variance: V on every entry.
        blocks: that have a factor each; entries in none of them keep 1.

    Raises:
        ValueError: for a negative noise variance.
    """
    non_negative("noise_variance", noise_variance)
    heard = np.asarray(change, np.float64)
    factors = np.ones(heard.size)
    for block in blocks:
        part = heard[block]
        if noise_variance == 0.0 or part.size <= 2:
            continue
        energy = float(part @ part)
        expected = (part.size - 2) * noise_variance
        factors[block] = max(0.0, 1.0 - expected / energy) if energy > 0.0 else 0.0
    return factors


def correlation_of_symbols(heard_power: float, noise_variance: float, delivered: ArrayLike) -> float | None:
    """Return the pairwise correlation r of the users' symbols that the power of their superposition tells.

    In the mean that power is (1 - r) sum q^2 + r (sum q)^2 + V per entry.

    Args:
        heard_power: mean square of the received superposition per real entry, without the users' means.
        noise_variance: V per real entry.
        delivered: (M,) q_k, the amplitude with which each user arrived.

    Returns:
        r, held in [0, 1]; None for fewer than two users that send.
    """
    q = np.asarray(delivered, np.float64)
    apart, together = float(q @ q), float(q.sum()) ** 2
    if together - apart <= 1e-12 * together or together == 0.0:
        return None
    return float(np.clip((heard_power - noise_variance - apart) / (together - apart), 0.0, 1.0))


def predicted_error(
    gains: ArrayLike, candidates: int, noise: float, *, correlation: float, exact: bool
) -> float:
    """Return the error of the average of M users as an estimate of that of all candidates.

    Per entry, in units of the variance of one user's update: what M of K users drawn without replacement
    miss, (1 - r)(1/M - 1/K), and what the air adds.

    Args:
        gains: (M,) |m^H h_k|^2 P0 of the users, watt.
        candidates: K >= M.
        noise: sigma^2 ("iq") or sigma^2 / 2 ("real"), watt.
        correlation: r of the updates of any two users.
        exact: whether every user inverts its channel (zero forcing), or as `radio.air.regularised`.
    """
    power = np.asarray(gains, np.float64)
    users = power.size
    missed = (1.0 - correlation) * (1.0 / users - 1.0 / candidates)
    if exact:
        return missed + noise / (users**2 * float(power.min()))
    share = np.full(users, 1.0 / users)
    return missed + best_scaling(np.sqrt(power), share, noise, correlation).mse
