"""Uplink rates of frequency-division multiple access (Liu et al. 2024, eq. (9))."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import FloatArray, count, in_unit_interval, non_negative, positive

_LN2 = float(np.log(2.0))


def full_band_rate(
    channel_gain: ArrayLike, bandwidth: ArrayLike, transmit_power: ArrayLike, noise_power: ArrayLike
) -> FloatArray:
    """Return r = B log2(1 + h p / sigma^2), the rate of a device that has the whole band.

    In eq. (9) the noise power is the same whatever the share, so a device with bandwidth fraction b
    sends at b r. `rate` has the model in which noise grows with the share.

    Args:
        channel_gain: (..., K) power gain h, linear.
        bandwidth: B, Hz.
        transmit_power: p, W.
        noise_power: sigma^2, W.

    Returns:
        (..., K) rate, bit/s.
    """
    gain = non_negative("channel_gain", channel_gain)
    snr = gain * positive("transmit_power", transmit_power) / positive("noise_power", noise_power)
    return np.asarray(positive("bandwidth", bandwidth) * np.log1p(snr) / _LN2)


def rate(
    bandwidth_fraction: ArrayLike,
    channel_gain: ArrayLike,
    bandwidth: ArrayLike,
    transmit_power: ArrayLike,
    noise_density: ArrayLike,
) -> FloatArray:
    """Return b B log2(1 + h p / (N0 b B)): noise proportional to the bandwidth in use.

    Concave and increasing in b; 0 at b = 0. At b = 1 it equals `full_band_rate` with noise N0 B.

    Args:
        bandwidth_fraction: (..., K) b in [0, 1].
        channel_gain: (..., K) power gain h, linear.
        bandwidth: B, Hz.
        transmit_power: p, W.
        noise_density: N0, W/Hz.

    Returns:
        (..., K) rate, bit/s.
    """
    b = in_unit_interval("bandwidth_fraction", bandwidth_fraction)
    band = positive("bandwidth", bandwidth)
    received = non_negative("channel_gain", channel_gain) * positive("transmit_power", transmit_power)
    noise = positive("noise_density", noise_density) * band
    with np.errstate(divide="ignore"):  # ln(1 + x) from ln x: x itself overflows at tiny shares
        log_term = np.logaddexp(0.0, np.log(received / noise) - np.log(np.where(b > 0, b, 1.0)))
    return np.asarray(b * band * log_term / _LN2)


def round_to_resource_blocks(bandwidth_fraction: ArrayLike, num_blocks: int) -> FloatArray:
    """Round bandwidth fractions down to whole resource blocks.

    The sum never grows, so the result is feasible; recompute the pruning ratio afterwards with
    `radio.allocation.least_pruning_ratio`. A share within 1e-9 blocks of a whole number counts as whole.

    Args:
        bandwidth_fraction: (..., K) b in [0, 1].
        num_blocks: resource blocks in the whole band.

    Returns:
        (..., K) multiples of 1 / num_blocks.
    """
    blocks = count("num_blocks", num_blocks, 1)
    return np.floor(in_unit_interval("bandwidth_fraction", bandwidth_fraction) * blocks + 1e-9) / blocks
