"""Joint allocation when noise grows with the bandwidth in use (a physical receiver).

Replaces b r by R(b) = b B log2(1 + gamma / b), gamma = h p / (N0 B). R is concave, and so is the gain
y = (R D - m) / (R G + Q), but its derivative has no closed inverse: lambda is found by a safeguarded
Newton iteration on ln lambda around vectorised ones on ln b. The slope of R is unbounded at 0, so
without overhead no device is starved but by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from radio.allocation import Allocation, AllocationStatus
from radio.arrays import BoolArray, FloatArray, finite, non_negative, positive
from radio.ofdma import rate

_LN2 = float(np.log(2.0))
_LOG_TINY = -600.0  # ln of the smallest share considered, 1e-260


def allocate_proportional_noise(
    channel_gain: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    bandwidth: float,
    transmit_power: ArrayLike,
    noise_density: float,
    weights: ArrayLike | None = None,
    overhead_bits: ArrayLike = 0.0,
) -> Allocation:
    """Return the joint optimum under bandwidth-proportional noise; KKT residual about 1e-12.

    Args:
        channel_gain: (K,) power gain h, linear, >= 0.
        slack: (K,) D, s; not positive: infeasible, left out.
        compute_time: (K,) G, s.
        payload_bits: (K,) Q, bits.
        bandwidth: B, Hz.
        transmit_power: p, W; a number or (K,).
        noise_density: N0, W/Hz.
        weights: (K,) w > 0; default 1.
        overhead_bits: (K,) m; devices whose upload would not pay are dropped one by one, worst first.

    Returns:
        The allocation, as of `radio.allocation.allocate`.

    Raises:
        ValueError: if an argument is outside its range.
    """
    h, d, g, q, m, w, p = (
        np.array(a)
        for a in np.broadcast_arrays(
            non_negative("channel_gain", channel_gain),
            finite("slack", slack),
            non_negative("compute_time", compute_time),
            positive("payload_bits", payload_bits),
            non_negative("overhead_bits", overhead_bits),
            positive("weights", 1.0 if weights is None else weights),
            positive("transmit_power", transmit_power),
        )
    )
    if h.ndim != 1 or h.size == 0:
        raise ValueError(f"channel_gain has shape {h.shape}; it must be (K,) with K >= 1")
    band, density = float(positive("bandwidth", bandwidth)), float(positive("noise_density", noise_density))
    snr = h * p / (density * band)

    chosen = (d > 0) & (snr > 0)
    share, price = np.zeros(h.shape), 0.0
    while chosen.any():
        devices = _Devices(*(a[chosen] for a in (snr, d, g, q, m, w)))
        share[:] = 0.0
        share[chosen], price = _fill(band, devices)
        gain = rate(share, h, band, p, density) * d - m
        worst = int(np.argmin(np.where(chosen, gain / q, np.inf)))
        if gain[worst] >= 0:
            break
        chosen[worst] = False
        share[worst], price = 0.0, 0.0

    speed = rate(share, h, band, p, density)
    ratio = np.where(chosen, np.clip((q + m - speed * (d - g)) / (speed * g + q), 0.0, 1.0), 1.0)
    ratio[ratio < 1e-12] = 0.0  # at the cap, found to rounding only
    status = np.full(h.shape, AllocationStatus.INTERIOR, dtype=np.int8)
    silent = ratio >= 1  # left out, or with a share so small that nothing of the model would fit
    share[silent] = 0.0
    status[silent] = AllocationStatus.STARVED
    status[ratio == 0] = AllocationStatus.SATURATED
    status[d <= 0] = AllocationStatus.INFEASIBLE
    return Allocation(
        bandwidth_fraction=share,
        pruning_ratio=ratio,
        multiplier=np.asarray(price),
        status=status,
        objective=np.asarray((w * ratio).sum()),
        max_pruning_ratio=np.asarray(1.0),
    )


@dataclass(frozen=True)
class _Devices:
    """Inputs of the devices that take part, each (n,)."""

    snr: FloatArray
    slack: FloatArray
    compute: FloatArray
    bits: FloatArray
    overhead: FloatArray
    weight: FloatArray


def _fill(band: float, devices: _Devices) -> tuple[FloatArray, float]:
    """Share the band between devices that all take part; return shares and multiplier."""
    snr, d, g = devices.snr, devices.slack, devices.compute
    q, m, w = devices.bits, devices.overhead, devices.weight

    def log_marginal(u: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ln of w y'(b) at b = e^u, and its derivative in u."""
        b = np.exp(u)
        x = snr / b
        small = np.minimum(x, 1e-4)  # where the difference would cancel, its series
        slope = np.where(
            x > 1e-4, np.log1p(x) - x / (1 + x), small * small * (0.5 - 2 * small / 3)
        )  # ln2 R' / B
        speed = b * band * np.log1p(x) / _LN2
        value = np.log(w * (d * q + m * g) * band / _LN2 * slope) - 2 * np.log(speed * g + q)
        bend = -((x / (1 + x)) ** 2) / slope - 2 * (b * band * slope / _LN2) * g / (speed * g + q)
        return value, bend

    top = _log_cap(band, snr, d - g, q + m)
    if float(np.exp(top).sum()) <= 1.0 and bool((top < 0).all()):
        return np.exp(top), 0.0
    bottom = np.full(top.shape, _LOG_TINY)
    highest, lowest = log_marginal(bottom)[0], log_marginal(top)[0]

    def shares(log_price: float) -> tuple[FloatArray, BoolArray]:
        def excess(u: FloatArray) -> tuple[FloatArray, FloatArray]:
            value, bend = log_marginal(u)
            return value - log_price, bend

        free = (lowest < log_price) & (log_price < highest)
        u = _newton(excess, bottom, top)
        return np.exp(np.where(lowest >= log_price, top, u)), free

    def surplus(t: FloatArray) -> tuple[FloatArray, FloatArray]:
        b, free = shares(float(t[0]))
        bend = log_marginal(np.log(b))[1]
        total = b.sum()
        fall = (np.where(free, b, 0.0) / bend).sum() / total
        return np.array([np.log(total)]), np.array([min(fall, -1e-12)])

    equal = np.minimum(top, -np.log(top.size))
    low, high = float(lowest.min()), float(np.max(log_marginal(equal)[0]))
    log_price = float(_newton(surplus, np.array([low]), np.array([max(low, high)]))[0])
    b, _ = shares(log_price)
    return b / max(1.0, float(b.sum())), float(np.exp(log_price))


def _log_cap(band: float, snr: FloatArray, gain: FloatArray, bits: FloatArray) -> FloatArray:
    """Return ln of the share at which R(b) (D - G) = Q + m, 0 where that share would exceed 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        target = np.where(gain > 0, np.log(bits / np.where(gain > 0, gain, 1.0)), np.inf)

    def shortfall(u: FloatArray) -> tuple[FloatArray, FloatArray]:
        x = snr / np.exp(u)
        log_term = np.log1p(x)
        return target - (u + np.log(band * log_term / _LN2)), -(1 - x / ((1 + x) * log_term))

    reached = shortfall(np.zeros_like(snr))[0] <= 0
    target = np.where(reached, target, shortfall(np.zeros_like(snr))[0])
    target = np.where(np.isfinite(target), target, 0.0)
    root = _newton(shortfall, np.full(snr.shape, _LOG_TINY), np.zeros_like(snr))
    return np.asarray(np.where(reached, root, 0.0))


def _newton(
    function: Callable[[FloatArray], tuple[FloatArray, FloatArray]], low: FloatArray, high: FloatArray
) -> FloatArray:
    """Solve elementwise for the root of a decreasing function, bisecting where Newton leaves the bracket."""
    low, high = low.copy(), high.copy()
    x = high.copy()
    for _ in range(200):
        value, slope = function(x)
        low, high = np.where(value >= 0, x, low), np.where(value <= 0, x, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            proposal = x - value / slope
        inside = (proposal > low) & (proposal < high)
        following = np.where(inside, proposal, 0.5 * (low + high))
        moved = np.abs(following - x) > 1e-15 * np.maximum(1.0, np.abs(x))
        x = following
        if not moved.any():
            break
    return x
