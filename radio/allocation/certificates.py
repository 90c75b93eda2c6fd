"""Evidence that an allocation is optimal: KKT residuals and a duality gap, from the inputs alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from radio.allocation.optimum import allocate
from radio.allocation.ratio import least_pruning_ratio
from radio.allocation.shares import Allocation, AllocationStatus
from radio.arrays import BoolArray, FloatArray


@dataclass(frozen=True)
class KktReport:
    """How far an allocation is from the optimality conditions; every field has the batch shape (...).

    Attributes:
        stationarity: largest violation of w_k y_k'(b_k) = lambda (interior), <= (starved or at the
            floor), >= (saturated), relative to lambda. With lambda = 0: largest status not saturated, 0/1.
        primal: largest violation of sum b <= 1, b >= 0 and the latency threshold (relative).
        complementarity: |1 - sum b| where lambda > 0, else 0.
        duality_gap: (dual bound - achieved) / sum of weights. The dual bound is that of the concave
            envelopes where uploads have a fixed charge.
    """

    stationarity: FloatArray
    primal: FloatArray
    complementarity: FloatArray
    duality_gap: FloatArray

    @property
    def residual(self) -> float:
        """The largest of the three KKT residuals over the batch (without the duality gap)."""
        return float(max(np.max(self.stationarity), np.max(self.primal), np.max(self.complementarity)))


def verify_kkt(
    allocation: Allocation,
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    overhead_bits: ArrayLike = 0.0,
) -> KktReport:
    """Check an allocation against the KKT conditions of the problem in `radio.allocation`.

    The marginal gain is y'(b) = r (D Q + m G) / (b r G + Q)^2. It is evaluated here from the shares, not
    from the solver's level, and the duality gap from the multiplier alone. Where uploads have a fixed
    charge, a starved device is no matter of marginal gains: there only the gap judges it.

    Args:
        allocation: what to judge.
        full_band_rate, slack, compute_time, payload_bits, weights, overhead_bits: as in `allocate`.
    """
    b, rho = allocation.bandwidth_fraction, allocation.pruning_ratio
    r, d, g, q, m, w = (
        np.broadcast_to(np.asarray(a, dtype=np.float64), b.shape)
        for a in (full_band_rate, slack, compute_time, payload_bits, overhead_bits, _one(weights))
    )
    status, price = allocation.status, np.asarray(allocation.multiplier)[..., np.newaxis]
    limit = np.asarray(allocation.max_pruning_ratio)[..., np.newaxis]
    marginal = w * r * (d * q + m * g) / (b * r * g + q) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(price > 0, marginal / price - 1.0, np.where(marginal > 0, 1.0, 0.0))
    below = (status == AllocationStatus.FLOOR) | ((status == AllocationStatus.STARVED) & (m == 0))
    violation = np.select(
        [status == AllocationStatus.INTERIOR, below, status == AllocationStatus.SATURATED],
        [np.abs(excess), np.maximum(excess, 0.0), np.maximum(-excess, 0.0)],
        0.0,
    )

    needed = least_pruning_ratio(b, r, d, g, q, overhead_bits=m)
    over = np.maximum.reduce([needed - rho, -b, -rho, rho - np.maximum(limit, needed), np.zeros_like(b)])
    out = status == AllocationStatus.INFEASIBLE
    over = np.where(out, np.maximum(b, np.abs(1 - rho)), over)
    total = b.sum(axis=-1)
    primal = np.maximum(over.max(axis=-1), np.maximum(total - 1.0, 0.0))
    slackness = np.where(price[..., 0] > 0, np.abs(1.0 - total), 0.0)

    terms = _Terms(r, d, g, q, m, w, ~out, limit)
    low = _floor_share(terms)
    prices = [price]
    if bool((m > 0).any()) and bool((limit == 1).all()):
        # The envelope's own price gives the tightest bound; any price >= 0 gives a valid one.
        prices.append(_envelope_price(terms))
    achieved = (w * np.where(out, 0.0, 1.0 - rho)).sum(axis=-1)
    bounds = [_dual_bound(p, low, terms) for p in prices]
    gap = (np.minimum.reduce(bounds) - achieved) / np.maximum(w.sum(axis=-1), np.finfo(np.float64).tiny)
    return KktReport(violation.max(axis=-1), primal, slackness, gap)


def _one(weights: ArrayLike | None) -> ArrayLike:
    return 1.0 if weights is None else weights


@dataclass(frozen=True)
class _Terms:
    """The inputs, each (..., K), under the names of the formulas."""

    r: FloatArray
    d: FloatArray
    g: FloatArray
    q: FloatArray
    m: FloatArray
    w: FloatArray
    present: BoolArray
    limit: FloatArray


def _floor_share(terms: _Terms) -> FloatArray:
    """Return the share at which the ratio equals `limit`, and 0 where there is no limit."""
    r, d, g, q, m, limit = terms.r, terms.d, terms.g, terms.q, terms.m, terms.limit
    with np.errstate(divide="ignore", invalid="ignore"):
        share = ((1 - limit) * q + m) / (r * (d - (1 - limit) * g))
    return np.asarray(np.where((limit < 1) & (share > 0) & (share <= 1), share, 0.0))


def _dual_bound(price: FloatArray, low: FloatArray, terms: _Terms) -> FloatArray:
    """Return lambda + sum_k max_b (w_k y_k(b) - lambda b): no allocation can gain more."""
    r, d, g, q, m, w = terms.r, terms.d, terms.g, terms.q, terms.m, terms.w
    present, limit = terms.present, terms.limit
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        cap = np.where((d > g) & (r > 0), (q + m) / (r * (d - g)), np.inf)
        cap = np.maximum(np.minimum(cap, 1.0), low)
        # c (sqrt(y'(0) / price) - 1); at g = 0 the gain is linear and one of the two ends is best.
        root = np.sqrt(w * r * np.maximum(d * q + m * g, 0.0) / price) / q - 1.0
        scale = np.where(g > 0, np.minimum(q / (r * g), 1e300), 0.0)  # may overflow; the clip below hides it
        best = np.where(g > 0, root * scale, np.where(root > 0, np.inf, -np.inf))
        best = np.clip(np.nan_to_num(best, nan=0.0, posinf=np.inf, neginf=-np.inf), low, cap)
    gain = np.zeros_like(best)
    for b in (best, low, cap):
        y = np.minimum(1.0, (b * r * d - m) / (b * r * g + q))
        y = np.where((d > 0) & present, y, 0.0)
        value = np.where(present, w * y - price * b, 0.0)
        gain = np.maximum(gain, value) if b is not best else value
    gain = np.where(limit < 1, gain, np.maximum(gain, 0.0))
    return np.asarray(price[..., 0] + gain.sum(axis=-1))


def _envelope_price(terms: _Terms) -> FloatArray:
    """Minimise the (convex) dual bound over the price by golden section below the price without overhead."""
    start = np.asarray(allocate(terms.r, terms.d, terms.g, terms.q, weights=terms.w).multiplier)[
        ..., np.newaxis
    ]
    none = np.zeros_like(terms.r)
    low, high = np.zeros_like(start), np.maximum(4 * start, np.finfo(np.float64).tiny)
    ratio = 0.5 * (np.sqrt(5.0) - 1)
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        fall = (_dual_bound(left, none, terms) > _dual_bound(right, none, terms))[..., np.newaxis]
        low, high = np.where(fall, left, low), np.where(fall, high, right)
    return np.asarray(0.5 * (low + high))
