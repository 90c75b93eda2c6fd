"""Fair sharing of the band under time alone: max sum_k w_k U_alpha(y_k), and the quickest of equal optima.

U_alpha is the alpha-fair utility (`radio.allocation.pricing`): 0 is the sum of `radio.allocation.optimum`,
1 proportional fairness, and large alpha tends to the largest least share. A device that keeps the share y of
the weights needs the rate (y Q + m) / (D - y G), and so a share of the band that is convex in y whenever
rates are concave in it: the problem stays concave for every alpha, and is solved exactly with a certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from radio.allocation.charged import share_out_charged
from radio.allocation.limits import settle_limit
from radio.allocation.priced_certificate import Certificate, certify
from radio.allocation.pricing import Buyers, Rows, Sharing
from radio.allocation.ratio import ratio_at_rate
from radio.allocation.shares import Allocation, AllocationStatus, WhenInfeasible
from radio.arrays import FloatArray, finite, in_unit_interval, non_negative, positive

_NOTHING = 1e-12  # a share of the weights below this is none


@dataclass(frozen=True, eq=False)
class TimeCurve:
    """b(y) of devices under the latency threshold (`radio.allocation.pricing.Curve`); all (n,).

    Attributes:
        rates: of these devices, with `slopes`.
        slack, compute, bits, overhead: D and G in s, Q and m in bits.
        low, high: bounds of y.
    """

    rates: Any
    slack: FloatArray
    compute: FloatArray
    bits: FloatArray
    overhead: FloatArray
    low: FloatArray
    high: FloatArray

    @property
    def kink(self) -> FloatArray:
        """Return nothing: b is smooth."""
        return np.full(self.slack.shape, np.nan)

    def kink_slopes(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return nothing."""
        return self.kink[rows], self.kink[rows]

    def rows(self, index: Rows) -> TimeCurve:
        """Return the curve of some devices."""
        arrays = (self.slack, self.compute, self.bits, self.overhead, self.low, self.high)
        return TimeCurve(self.rates.of(index), *(array[index] for array in arrays))

    def need(self, kept: FloatArray) -> FloatArray:
        """Return b(y); infinite where no share does."""
        needed: FloatArray = self.rates.share(self._rate(kept))
        return needed

    def _rate(self, kept: FloatArray) -> FloatArray:
        room = self.slack - kept * self.compute
        rate = np.full(kept.shape, np.inf)
        np.divide(kept * self.bits + self.overhead, room, out=rate, where=room > 0)
        return rate

    def priced(self, kept: FloatArray, rows: Rows) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return b(y), ln b'(y) and the derivative of ln b'(y)."""
        some = self.rows(rows)
        share = some.need(kept)
        room = some.slack - kept * some.compute
        with np.errstate(divide="ignore", invalid="ignore"):
            steep = (some.bits * some.slack + some.overhead * some.compute) / room**2  # of the rate in y
            slope, bend = some.rates.slopes(share)
            turn = 2 * some.compute / room - bend / slope * (steep / slope)
            return share, np.log(steep) - np.log(slope), turn


def allocate_fair(
    rates: Any,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    alpha: float,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    when_infeasible: WhenInfeasible = "raise",
) -> Allocation:
    """Return the alpha-fair optimum of one round; arguments else as of `radio.allocation.allocate`, (K,).

    With alpha >= 1 nobody who can upload is starved. `multiplier` is the price of the band in the utility.

    Args:
        rates: the rate model of the round, with `slopes`.
        slack, compute_time, payload_bits, weights: see there.
        max_pruning_ratio, overhead_bits, when_infeasible: see there.
        alpha: > 0.

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if `max_pruning_ratio` does not fit.
        ValueError: if an argument is outside its range, or the rates have no slopes.
    """
    fairness = float(positive("alpha", alpha))
    curve, w, out, limit = _prepare(
        rates,
        slack,
        compute_time,
        payload_bits,
        weights=weights,
        max_pruning_ratio=max_pruning_ratio,
        overhead_bits=overhead_bits,
        when_infeasible=when_infeasible,
    )
    usable = ~out & (curve.high > 0) & ((w > 0) | (limit < 1))
    rows = np.flatnonzero(usable)
    kept, share, price, gap = np.zeros(w.size), np.zeros(w.size), 0.0, 0.0
    if rows.size:
        some = curve.rows(rows)
        found = share_out_charged(some, w[rows], fairness, (some.overhead > 0) & (limit == 1))
        kept[rows], share[rows], price, gap = found.kept, found.share, found.price, found.gap
    kept[kept < _NOTHING] = 0.0
    share[kept == 0] = 0.0
    ratio = np.where(kept > 0, 1.0 - kept, 1.0)
    status = np.full(w.shape, AllocationStatus.INTERIOR, dtype=np.int8)
    status[(limit < 1) & (kept <= 1.0 - limit)] = AllocationStatus.FLOOR
    status[kept <= 0] = AllocationStatus.STARVED
    status[kept >= 1] = AllocationStatus.SATURATED
    status[out] = AllocationStatus.INFEASIBLE
    return Allocation(
        bandwidth_fraction=share,
        pruning_ratio=ratio,
        multiplier=np.asarray(price),
        status=status,
        objective=np.asarray((w * ratio).sum()),
        max_pruning_ratio=np.asarray(limit),
        gap=np.asarray(gap),
    )


def verify_fair(
    allocation: Allocation,
    rates: Any,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    alpha: float,
    weights: ArrayLike | None = None,
    overhead_bits: ArrayLike = 0.0,
) -> Certificate:
    """Judge an allocation of `allocate_fair` by its inputs and its price; arguments as there."""
    limit = float(allocation.max_pruning_ratio)
    curve, w, _, _ = _prepare(
        rates, slack, compute_time, payload_bits, weights=weights, overhead_bits=overhead_bits
    )
    out = allocation.status == AllocationStatus.INFEASIBLE
    rows = np.flatnonzero(~out & (curve.high > 0) & ((w > 0) | (limit < 1)))
    some = replace(curve.rows(rows), low=np.minimum(1.0 - limit, curve.high[rows]))
    price = float(allocation.multiplier)
    with np.errstate(divide="ignore"):
        found = Sharing(
            1.0 - allocation.pruning_ratio[rows], allocation.bandwidth_fraction[rows], float(np.log(price))
        )
    optional = (some.overhead > 0) & (limit == 1) & (alpha < 1)
    return certify(Buyers(some, w[rows], alpha), found, optional=optional if optional.any() else None)


def _prepare(
    rates: Any,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    when_infeasible: WhenInfeasible = "raise",
) -> tuple[TimeCurve, FloatArray, Any, float]:
    """Return curve, weights, who is left out, and the limit in force."""
    if not hasattr(rates, "slopes"):
        raise ValueError(f"a fair optimum needs rates with slopes; {type(rates).__name__} has none")
    full, d, g, q, m, w = (
        np.array(a)
        for a in np.broadcast_arrays(
            rates.full_band,
            finite("slack", slack),
            non_negative("compute_time", compute_time),
            positive("payload_bits", payload_bits),
            non_negative("overhead_bits", overhead_bits),
            non_negative("weights", 1.0 if weights is None else weights),
        )
    )
    if full.ndim != 1 or full.size == 0:
        raise ValueError(f"the rates have shape {full.shape}; they must be (K,) with K >= 1")
    high = 1.0 - ratio_at_rate(full, d, g, q, overhead_bits=m)
    # The whole band to one device keeps exactly this much; beyond, rounding would ask for more than there is.
    curve = TimeCurve(rates, d, g, q, m, np.zeros(d.shape), high)
    high = np.where((high > 0) & ~np.isfinite(curve.need(high)), high * (1.0 - 1e-12), high)
    curve = replace(curve, high=high)
    limit = float(in_unit_interval("max_pruning_ratio", max_pruning_ratio))
    limit, out = settle_limit(
        lambda at: curve.need(np.full(d.shape, 1.0 - at)), limit, d <= 0, when_infeasible
    )
    return replace(curve, low=np.minimum(1.0 - limit, high)), w, out, limit


def quicken(
    allocation: Allocation,
    rates: Any,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
) -> Allocation:
    """Return the allocation of the same ratios whose round is over first: spare band is given away.

    The optimum of the ratios is unique but for what a light load leaves over, where every device keeps all it
    may and none needs more. That band is shared so that the last upload ends as early as can be: all that can
    be quickened end together. Arguments as of `radio.allocation.allocate`, (K,).
    """
    share, kept = allocation.bandwidth_fraction, 1.0 - allocation.pruning_ratio
    sends = share > 0
    if not sends.any() or float(share.sum()) >= 1.0 - 1e-9:
        return allocation
    d, g, q, m = (
        np.broadcast_to(np.asarray(a, dtype=np.float64), share.shape)
        for a in (slack, compute_time, payload_bits, overhead_bits)
    )
    room, bits = (d - kept * g)[sends], (kept * q + m)[sends]
    own = rates.of(np.flatnonzero(sends))

    def shares(sooner: float) -> FloatArray:
        needed: FloatArray = own.share(bits / (room - sooner))
        return needed

    most = float(room.min())
    edge = most * (1.0 - 1e-12)
    if float(shares(0.0).sum()) >= 1.0:
        return allocation
    from scipy.optimize import brentq  # here: who only asks for settings need not wait for it

    saved = float(brentq(lambda sooner: min(float(shares(sooner).sum()), 1e9) - 1.0, 0.0, edge, xtol=1e-15))
    found = np.zeros_like(share)
    found[sends] = shares(saved)
    return replace(allocation, bandwidth_fraction=found / max(1.0, float(found.sum())))
