"""The least pruning ratio that meets the latency threshold (Liu et al. 2024, eq. (47))."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import FloatArray


def least_pruning_ratio(
    bandwidth_fraction: ArrayLike,
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
    clamp: bool = True,
) -> FloatArray:
    """Return the least pruning ratio that meets the latency threshold at a given share of the band.

    rho = 1 - (b r D - m) / (b r G + Q), clamped to [0, 1] (Liu et al. 2024, eq. (47), where m = 0).

    Args:
        bandwidth_fraction: (..., K) b.
        full_band_rate: (..., K) r, bit/s.
        slack: (..., K) D, s; not positive gives 1.
        compute_time: (..., K) G, s.
        payload_bits: (..., K) Q, bits of the dense upload.
        overhead_bits: (..., K) m, bits that pruning does not save.
        clamp: False returns the value of the formula, which may leave [0, 1].

    Returns:
        (..., K) pruning ratio.
    """
    speed = np.asarray(bandwidth_fraction, dtype=np.float64) * np.asarray(full_band_rate, dtype=np.float64)
    return ratio_at_rate(speed, slack, compute_time, payload_bits, overhead_bits=overhead_bits, clamp=clamp)


def ratio_at_rate(
    rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
    clamp: bool = True,
) -> FloatArray:
    """Return the least pruning ratio at an uplink rate, (..., K) bit/s; else as `least_pruning_ratio`."""
    speed = np.asarray(rate, dtype=np.float64)
    d, g = np.asarray(slack, dtype=np.float64), np.asarray(compute_time, dtype=np.float64)
    q, m = np.asarray(payload_bits, dtype=np.float64), np.asarray(overhead_bits, dtype=np.float64)
    ratio = (q + m - speed * (d - g)) / (speed * g + q)
    if clamp:
        ratio = np.where((speed > 0) & (d > 0), np.clip(ratio, 0.0, 1.0), 1.0)
    return np.asarray(ratio)
