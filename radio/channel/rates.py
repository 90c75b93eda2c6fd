"""Uplink rates of frequency-division multiple access (Liu et al. 2024, eq. (9)).

A *rate model* is the rate of every device as a function of its share of the band. It belongs to the channels
of a round: what allocates the band and what accounts for the latency are given the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import FloatArray, count, in_unit_interval, non_negative, positive
from radio.roots import decreasing_root

_LN2 = float(np.log(2.0))
LOG_TINY = -600.0  # ln of the smallest share considered, 1e-260


class RateModel(Protocol):
    """Concave, increasing rates; all arrays (..., K)."""

    @property
    def full_band(self) -> FloatArray:
        """Return the rate of each device alone on the whole band, bit/s."""
        ...

    def rate(self, bandwidth_fraction: ArrayLike) -> FloatArray:
        """Return the rate of each device at its bandwidth fraction, bit/s."""
        ...

    def share(self, rate: ArrayLike) -> FloatArray:
        """Return the least bandwidth fraction that gives a rate (bit/s); above 1 or infinite: none does."""
        ...

    def of(self, devices: NDArray[np.intp]) -> RateModel:
        """Return the rates of some devices, along the last axis."""
        ...

    def within(self, share: float) -> RateModel:
        """Return the rates over fractions of so much of the band, in (0, 1]: r'(b) = r(share b)."""
        ...


@dataclass(frozen=True)
class FixedNoise:
    """The paper's eq. (9): the same noise power for every share, so that fraction b sends at b r.

    Attributes:
        full_band: (..., K) r, bit/s (`full_band_rate`).
    """

    full_band: FloatArray

    def rate(self, bandwidth_fraction: ArrayLike) -> FloatArray:
        """Return b r."""
        return np.asarray(np.asarray(bandwidth_fraction, dtype=np.float64) * self.full_band)

    def share(self, rate: ArrayLike) -> FloatArray:
        """Return rate / r; infinite where r is 0."""
        wanted = np.asarray(rate, dtype=np.float64)
        wanted, full = np.broadcast_arrays(wanted, self.full_band)
        return np.asarray(np.divide(wanted, full, out=np.full(full.shape, np.inf), where=full > 0))

    def slopes(self, bandwidth_fraction: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the first and second derivative of the rate in the share: r and 0."""
        shape = np.broadcast(np.asarray(bandwidth_fraction), self.full_band).shape
        return np.broadcast_to(self.full_band, shape), np.zeros(shape)

    def of(self, devices: NDArray[np.intp]) -> FixedNoise:
        """Return the rates of some devices, along the last axis."""
        return FixedNoise(self.full_band[..., devices])

    def within(self, share: float) -> FixedNoise:
        """Return share b r."""
        return FixedNoise(share * self.full_band)


@dataclass(frozen=True)
class ProportionalNoise:
    """A physical receiver: noise grows with the bandwidth in use (`rate`).

    Attributes:
        snr: (..., K) gamma = h p / (N0 B), the signal-to-noise ratio over the whole band.
        bandwidth: B, Hz.
    """

    snr: FloatArray
    bandwidth: float

    @property
    def full_band(self) -> FloatArray:
        """Return B log2(1 + gamma), bit/s."""
        return np.asarray(self.bandwidth * np.log1p(self.snr) / _LN2)

    def rate(self, bandwidth_fraction: ArrayLike) -> FloatArray:
        """Return b B log2(1 + gamma / b), 0 at b = 0."""
        b = in_unit_interval("bandwidth_fraction", bandwidth_fraction)
        with np.errstate(divide="ignore"):  # ln(1 + x) from ln x: x itself overflows at tiny shares
            log_term = np.logaddexp(0.0, np.log(self.snr) - np.log(np.where(b > 0, b, 1.0)))
        return np.asarray(b * self.bandwidth * log_term / _LN2)

    def share(self, rate: ArrayLike) -> FloatArray:
        """Return the fraction, by Newton's method on its logarithm; infinite where the band is too little."""
        wanted, snr = np.broadcast_arrays(np.asarray(rate, dtype=np.float64), self.snr)
        full = np.broadcast_to(self.full_band, wanted.shape)
        reached = (wanted <= full) & (wanted > 0) & (snr > 0)
        target = np.log(np.where(reached, wanted, 1.0))
        ratio = np.where(reached, snr, 1.0)

        def shortfall(u: FloatArray) -> tuple[FloatArray, FloatArray]:
            x = ratio * np.exp(-u)
            log_term = np.log1p(x)
            return target - (u + np.log(self.bandwidth * log_term / _LN2)), x / ((1 + x) * log_term) - 1

        root = decreasing_root(shortfall, np.full(ratio.shape, LOG_TINY), np.zeros(ratio.shape))
        return np.where(reached, np.exp(root), np.where(wanted <= 0, 0.0, np.inf))

    def slopes(self, bandwidth_fraction: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Return the first and second derivative of the rate in the share; infinite at 0."""
        b = np.asarray(bandwidth_fraction, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            x = self.snr / b
            part = x / (1 + x)
            small = np.minimum(x, 1e-4)  # where the difference would cancel, its series
            fall = np.where(x > 1e-4, np.log1p(x) - part, small * small * (0.5 - 2 * small / 3))
            slope = np.where(b > 0, fall, np.inf) * self.bandwidth / _LN2
            bend = np.where(b > 0, -(part**2) / b, -np.inf) * self.bandwidth / _LN2
        return slope, bend

    def of(self, devices: NDArray[np.intp]) -> ProportionalNoise:
        """Return the rates of some devices, along the last axis."""
        return ProportionalNoise(self.snr[..., devices], self.bandwidth)

    def within(self, share: float) -> ProportionalNoise:
        """Return the same over a narrower band, in which there is less noise."""
        return ProportionalNoise(self.snr / share, share * self.bandwidth)


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
    bandwidth: float,
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
    return proportional_noise(channel_gain, bandwidth, transmit_power, noise_density).rate(bandwidth_fraction)


def proportional_noise(
    channel_gain: ArrayLike, bandwidth: float, transmit_power: ArrayLike, noise_density: ArrayLike
) -> ProportionalNoise:
    """Return the rate model of a receiver whose noise grows with the bandwidth; arguments as of `rate`."""
    band = float(positive("bandwidth", bandwidth))
    received = non_negative("channel_gain", channel_gain) * positive("transmit_power", transmit_power)
    return ProportionalNoise(
        np.asarray(received / (positive("noise_density", noise_density) * band), dtype=np.float64), band
    )


def fixed_noise(
    channel_gain: ArrayLike, bandwidth: ArrayLike, transmit_power: ArrayLike, noise_power: ArrayLike
) -> FixedNoise:
    """Return the rate model of eq. (9); arguments as of `full_band_rate`."""
    return FixedNoise(full_band_rate(channel_gain, bandwidth, transmit_power, noise_power))


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
