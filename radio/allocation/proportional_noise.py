"""Joint allocation when noise grows with the bandwidth in use (a physical receiver).

Replaces b r by R(b) = b B log2(1 + gamma / b), gamma = h p / (N0 B). R is concave, and so is the gain
y = (R D - m) / (R G + Q), but its derivative has no closed inverse: lambda is found by a safeguarded
Newton iteration on ln lambda around vectorised ones on ln b. The slope of R is unbounded at 0, so
without overhead no device is starved but by rounding. Limits on the pruning ratio and uploads of a fixed
price are treated as in `radio.allocation`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.allocation.ratio import ratio_at_rate
from radio.allocation.shares import Allocation, AllocationStatus, InfeasibleAllocationError, WhenInfeasible
from radio.allocation.uploaders import choose_uploaders
from radio.arrays import BoolArray, FloatArray, choice, finite, in_unit_interval, non_negative, positive
from radio.channel.rates import LOG_TINY, ProportionalNoise, proportional_noise
from radio.roots import decreasing_root, decreasing_root_in_rows

_LN2 = float(np.log(2.0))

_LEAST_RETAINED = 1e-8


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
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    when_infeasible: WhenInfeasible = "raise",
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
        weights, max_pruning_ratio, overhead_bits, when_infeasible: as in `radio.allocation.allocate`.

    Returns:
        The allocation, as of `radio.allocation.allocate`.

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if `max_pruning_ratio` does not fit.
        ValueError: if an argument is outside its range.
    """
    return allocate_at(
        proportional_noise(channel_gain, bandwidth, transmit_power, noise_density),
        slack,
        compute_time,
        payload_bits,
        weights=weights,
        max_pruning_ratio=max_pruning_ratio,
        overhead_bits=overhead_bits,
        when_infeasible=when_infeasible,
    )


def allocate_at(
    rates: ProportionalNoise,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    when_infeasible: WhenInfeasible = "raise",
) -> Allocation:
    """Do the same for a rate model; `rates.snr` is (K,)."""
    choice("when_infeasible", when_infeasible, WhenInfeasible)
    snr, d, g, q, m, w = (
        np.array(a)
        for a in np.broadcast_arrays(
            non_negative("snr", rates.snr),
            finite("slack", slack),
            non_negative("compute_time", compute_time),
            positive("payload_bits", payload_bits),
            non_negative("overhead_bits", overhead_bits),
            non_negative("weights", 1.0 if weights is None else weights),
        )
    )
    if snr.ndim != 1 or snr.size == 0:
        raise ValueError(f"the rates have shape {snr.shape}; they must be (K,) with K >= 1")
    rates = ProportionalNoise(snr, rates.bandwidth)
    devices = _Devices(rates, d, g, q, m, w)
    limit = float(in_unit_interval("max_pruning_ratio", max_pruning_ratio))
    limit, low, dropped = _settle_limit(devices, limit, d <= 0, when_infeasible)
    usable = (d > 0) & (snr > 0) & ~dropped

    gap = 0.0
    if limit < 1 or not (m > 0).any():
        share, price = _fill(devices, usable, low)
    else:
        gains = _UploadGains(devices)
        # Without overhead the price is that of a full band: a place to start.
        start = _fill(replace(devices, overhead=np.zeros_like(m)), usable, np.zeros_like(m))[1]
        price = start if start > 0 else float(w.sum()) or 1.0
        paying = usable & (w > 0) & (gains.least_share <= 1)
        found = choose_uploaders(gains, paying, scale=float(w.sum()), price=price, merits=gains.merits())
        share, price, gap = found.share, found.multiplier, found.gap

    ratio = np.where(share > 0, devices.ratio(share), 1.0)
    ratio[ratio < 1e-12] = 0.0  # at the cap, found to rounding only
    # So little that 1 - rho has too few digits left to tell the time by: nothing of the model would fit.
    # Its band goes to the widest of those that are pruned in part, so that the band stays full.
    tiny = (share > 0) & (ratio > 1.0 - _LEAST_RETAINED)
    if tiny.any():
        freed = share[tiny].sum()
        ratio[tiny], share[tiny] = 1.0, 0.0
        inner = (share > 0) & (ratio > 0)
        if inner.any():
            widest = int(np.argmax(np.where(inner, share, -1.0)))
            share[widest] += freed
            ratio[widest] = devices.ratio(share)[widest]
    floored = (low > 0) & (share <= low)
    ratio = np.where(floored, limit, ratio)
    if limit < 1:
        ratio = np.where(dropped, 1.0, np.minimum(ratio, limit))
    status = np.full(snr.shape, AllocationStatus.INTERIOR, dtype=np.int8)
    status[floored] = AllocationStatus.FLOOR
    silent = ratio >= 1  # left out, or with a share so small that nothing of the model would fit
    share[silent] = 0.0
    status[silent] = AllocationStatus.STARVED
    status[ratio == 0] = AllocationStatus.SATURATED
    status[dropped] = AllocationStatus.INFEASIBLE
    return Allocation(
        bandwidth_fraction=share,
        pruning_ratio=ratio,
        multiplier=np.asarray(price),
        status=status,
        objective=np.asarray((w * ratio).sum()),
        max_pruning_ratio=np.asarray(limit),
        gap=np.asarray(gap),
    )


@dataclass(frozen=True)
class _Devices:
    """The inputs, each (K,)."""

    rates: ProportionalNoise
    slack: FloatArray
    compute: FloatArray
    bits: FloatArray
    overhead: FloatArray
    weight: FloatArray

    def ratio(self, share: FloatArray) -> FloatArray:
        """Return the least pruning ratio at these shares, clamped to [0, 1]."""
        return ratio_at_rate(
            self.rates.rate(share), self.slack, self.compute, self.bits, overhead_bits=self.overhead
        )

    def floor(self, limit: float) -> FloatArray:
        """Return the share each device needs for a ratio of `limit`; infinite where none suffices."""
        keep = 1.0 - limit
        room = self.slack - keep * self.compute
        needed = np.full(room.shape, np.inf)
        np.divide(keep * self.bits + self.overhead, room, out=needed, where=room > 0)
        return self.rates.share(needed)

    def cap(self) -> FloatArray:
        """Return the share at which a device needs no pruning, at most 1."""
        return np.minimum(self.floor(0.0), 1.0)

    def log_marginal(self, u: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return ln of w y'(b) at b = e^u, and its derivative in u."""
        band, d, g, q, m = self.rates.bandwidth, self.slack, self.compute, self.bits, self.overhead
        b = np.exp(u)
        with np.errstate(divide="ignore", invalid="ignore"):  # devices that take no part
            x = self.rates.snr / b
            small = np.minimum(x, 1e-4)  # where the difference would cancel, its series
            slope = np.where(
                x > 1e-4, np.log1p(x) - x / (1 + x), small * small * (0.5 - 2 * small / 3)
            )  # ln2 R' / B
            speed = b * band * np.log1p(x) / _LN2
            value = np.log(self.weight * (d * q + m * g) * band / _LN2 * slope) - 2 * np.log(speed * g + q)
            derivative = -((x / (1 + x)) ** 2) / slope - 2 * (b * band * slope / _LN2) * g / (speed * g + q)
        return value, derivative

    def rows(self, index: BoolArray | NDArray[np.intp]) -> _Devices:
        """Return the devices selected by `index`."""
        others = (self.slack, self.compute, self.bits, self.overhead, self.weight)
        return _Devices(
            ProportionalNoise(self.rates.snr[index], self.rates.bandwidth), *(a[index] for a in others)
        )


def _settle_limit(
    devices: _Devices, limit: float, left_out: BoolArray, when_infeasible: WhenInfeasible
) -> tuple[float, FloatArray, BoolArray]:
    """Make `max_pruning_ratio` feasible; return the limit, the floors and who is left out."""
    nothing = np.zeros(left_out.shape)
    if limit >= 1:
        return limit, nothing, left_out

    def floors(at: float) -> FloatArray:
        return np.where(left_out, 0.0, devices.floor(at)) if at < 1 else nothing

    low = floors(limit)
    if low.sum() <= 1:
        return limit, low, left_out
    if when_infeasible == "raise":
        raise InfeasibleAllocationError(
            f"max_pruning_ratio = {limit} cannot be met: the devices with positive slack "
            f"need {low.sum():.4g} of the band, the limit is 1. Raise max_pruning_ratio or the latency "
            "threshold, or set when_infeasible to 'relax' or 'drop'"
        )
    if when_infeasible == "drop":
        order = np.argsort(low, kind="stable")
        kept = np.zeros(low.shape, dtype=np.bool_)
        kept[order] = np.cumsum(low[order]) <= 1
        return limit, np.where(kept, low, 0.0), left_out | ~kept
    least, most = limit, 1.0
    while least < (middle := 0.5 * (least + most)) < most:
        least, most = (least, middle) if floors(middle).sum() <= 1 else (middle, most)
    return most, floors(most), left_out


class _UploadGains:
    """What `radio.allocation.uploaders` asks of a round."""

    def __init__(self, devices: _Devices) -> None:
        self._devices = devices
        self.least_share: FloatArray = devices.floor(1.0)
        able = (self.least_share <= 1) & (devices.slack > 0) & (devices.rates.snr > 0) & (devices.weight > 0)
        self._able = able
        self._some = devices.rows(able)
        low = self.least_share[able]
        self._low = np.log(np.maximum(low, np.exp(LOG_TINY)))
        self._top = np.maximum(np.log(self._some.cap()), self._low)
        self._at_low = self._some.log_marginal(self._low)[0]
        self._at_top = self._some.log_marginal(self._top)[0]

    def merits(self) -> FloatArray:
        """Return what decides between two devices with the same Q and m, (K, 8).

        y grows with R, and R with the SNR. At one R the sign of y_j - y_k is that of a line: it has two ends.
        """
        one = self._devices
        snr, d, g, q, m = one.rates.snr, one.slack, one.compute, one.bits, one.overhead
        most = float(one.rates.rate(np.ones_like(snr)).max())
        return np.array([one.weight, snr, d * q + m * g, (most * d - m) / (most * g + q), q, -q, m, -m]).T

    def respond(self, price: float) -> tuple[FloatArray, FloatArray]:
        """Return the share of an upload at which the marginal gain is the price, and w y - price b there."""
        share, profit = self._answer(np.array([price]))
        return share[0], profit[0]

    def profits(self, prices: FloatArray) -> FloatArray:
        """Return w y - price b at J prices, (J, K)."""
        return self._answer(prices)[1]

    def _answer(self, prices: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return both at J prices, (J, K)."""
        with np.errstate(divide="ignore"):
            target = np.log(prices)[:, np.newaxis]
        u = np.where(self._at_top >= target, self._top, self._low)
        row, one = np.nonzero((self._at_top < target) & (target < self._at_low))
        wanted, devices = target[row, 0], self._some.rows(one)

        def excess(u: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
            value, derivative = devices.rows(rows).log_marginal(u)
            return value - wanted[rows], derivative

        low, top = self._low[one], self._top[one]
        part = (self._at_low[one] - wanted) / (self._at_low[one] - self._at_top[one])
        u[row, one] = decreasing_root_in_rows(excess, low, top, low + part * (top - low))
        some, share, profit = self._some, *np.zeros((2, prices.size, self._able.size))
        share[:, self._able] = b = np.exp(u)
        speed = some.rates.rate(b)
        gain = (speed * some.slack - some.overhead) / (speed * some.compute + some.bits)
        profit[:, self._able] = some.weight * np.minimum(gain, 1.0) - prices[:, np.newaxis] * b
        return share, profit

    def share_out(self, members: BoolArray) -> tuple[FloatArray, float, float]:
        """Fill the band; who only breaks even occupies band for nothing and is left out."""
        charged = self._devices.overhead > 0
        members = members & self._able
        while True:
            low = np.where(members, self.least_share, 0.0)
            share, price = _fill(self._devices, members, low)
            idle = members & charged & (share <= low)
            if not idle.any():
                break
            members = members & ~idle
        kept = np.where(members, 1 - self._devices.ratio(share), 0.0)
        return share, price, float((self._devices.weight * kept).sum())


def _fill(everyone: _Devices, members: BoolArray, least: FloatArray) -> tuple[FloatArray, float]:
    """Share the band between the members, each with its least share; return shares and multiplier."""
    share = np.zeros(members.shape)
    members = members & ((everyone.weight > 0) | (least > 0))
    if not members.any():
        return share, 0.0
    devices = everyone.rows(members)
    bottom = np.log(np.maximum(least[members], np.exp(LOG_TINY)))
    top = np.maximum(np.log(devices.cap()), bottom)
    idle = devices.weight == 0
    top = np.where(idle, bottom, top)
    if float(np.exp(top).sum()) <= 1.0 and (top < 0).all():
        share[members] = np.exp(top)
        return share, 0.0
    highest, lowest = devices.log_marginal(bottom)[0], devices.log_marginal(top)[0]

    def shares(log_price: float) -> tuple[FloatArray, BoolArray]:
        def excess(u: FloatArray) -> tuple[FloatArray, FloatArray]:
            value, derivative = devices.log_marginal(u)
            return value - log_price, derivative

        free = (lowest < log_price) & (log_price < highest)
        u = decreasing_root(excess, bottom, top)
        u = np.where(lowest >= log_price, top, np.where(highest <= log_price, bottom, u))
        return np.exp(np.where(idle, bottom, u)), free

    def surplus(t: FloatArray) -> tuple[FloatArray, FloatArray]:
        b, free = shares(float(t[0]))
        derivative = devices.log_marginal(np.log(b))[1]
        total = b.sum()
        fall = np.where(free, b / derivative, 0.0).sum() / total
        return np.array([np.log(total)]), np.array([min(fall, -1e-12)])

    paid = ~idle
    if not paid.any():
        share[members] = np.exp(bottom)
        return share, 0.0
    # At this price nobody asks for more than an equal share; with least shares, for more than those.
    most = bottom if (least > 0).any() else np.minimum(top, -np.log(top.size))
    low, high = float(lowest[paid].min()), float(devices.log_marginal(most)[0][paid].max())
    log_price = float(decreasing_root(surplus, np.array([low]), np.array([max(low, high)]))[0])
    b, _ = shares(log_price)
    share[members] = b / max(1.0, float(b.sum()))
    return share, float(np.exp(log_price))
