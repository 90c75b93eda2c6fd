"""Evidence for shares of a band that were found by a price (`radio.allocation.pricing`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radio.allocation.pricing import Buyers, Rows, Sharing, utility
from radio.arrays import BoolArray, FloatArray

_ROUNDING = 1e-12
_BESIDE = 1e-10  # how far from a point its sides are looked at for the bound, relative
# The same for stationarity: the last of the band is shared out along a straight line, which leaves y beside a
# kink by 3e-10 (one of 100 000 devices, at a kink between two limits that `Curve.kink` does not name).
_BESIDE_KINK = 1e-9


@dataclass(frozen=True)
class Certificate:
    """How far shares are from the optimality conditions.

    Attributes:
        stationarity: largest violation of w U'(y) = lambda b'(y), relative; one-sided at ends and kinks.
        primal: how far the shares exceed the band, a share misses its need, or y leaves its bounds.
        complementarity: the band left over although it has a price.
        duality_gap: (bound - achieved) / sum of w y U'(y): no other shares gain more, whatever lambda is.
            The bound takes every utility at its tangents, so that no search for a best answer is trusted.
    """

    stationarity: float
    primal: float
    complementarity: float
    duality_gap: float

    @property
    def residual(self) -> float:
        """Return the largest of the three KKT residuals."""
        return max(self.stationarity, self.primal, self.complementarity)


def certify(buyers: Buyers, found: Sharing, *, optional: BoolArray | None = None) -> Certificate:
    """Judge shares by the inputs and the price alone.

    Args:
        buyers: the devices.
        found: shares and price.
        optional: (n,) who may also stay silent, for no band and no utility (alpha < 1).
    """
    w, alpha = buyers.weight, buyers.alpha
    rows = np.arange(w.size)
    y, low, high = found.kept, buyers.low, buyers.high
    silent = np.zeros(w.shape, dtype=np.bool_) if optional is None else optional & (found.share == 0)
    y = np.where(silent, low, y)
    need = np.where(silent, 0.0, buyers.need(y))
    left, right = _sides(buyers, y, rows, _BESIDE_KINK)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        up = np.expm1(left - found.log_price) if np.isfinite(found.log_price) else np.full(y.shape, np.inf)
        down = np.expm1(right - found.log_price) if np.isfinite(found.log_price) else up
    # 1 - rho is known to rounding only, and so is whether it lies at an end or a kink.
    rising, falling = (y < high - _ROUNDING) & (down > 0), (y > low + _ROUNDING) & (up < 0)
    paid = (w > 0) & ~silent
    wrong = np.where(rising & paid, down, 0.0) + np.where(falling & paid, -up, 0.0)
    wrong = np.where(np.isfinite(wrong), wrong, 1.0)
    over = np.maximum.reduce([need - found.share, low - y, y - high, np.zeros_like(y)])
    total = float(found.share.sum())
    spare = abs(1.0 - total) if np.isfinite(found.log_price) else 0.0
    gain = float((w * utility(y, alpha))[paid].sum())
    scale = float((w * y ** (1.0 - alpha))[paid].sum())
    bound = _dual_bound(buyers, found, optional)
    gap = (bound - gain) / max(scale, np.finfo(np.float64).tiny)
    return Certificate(
        float(wrong.max(initial=0.0)), max(float(over.max(initial=0.0)), total - 1.0, 0.0), spare, gap
    )


def _sides(
    buyers: Buyers, y: FloatArray, rows: Rows, beside: float = _BESIDE
) -> tuple[FloatArray, FloatArray]:
    """Return ln w U'(y) / b'(y) just left and just right of y: between them lies any kink that y is at."""
    step = beside * np.maximum(y, 1e-6)
    below, above = np.maximum(y - step, buyers.low), np.minimum(y + step, buyers.high)
    return (
        buyers.worth(below) - buyers.curve.priced(below, rows)[1],
        buyers.worth(above) - buyers.curve.priced(above, rows)[1],
    )


def _dual_bound(buyers: Buyers, found: Sharing, optional: BoolArray | None) -> float:
    """Return lambda + sum_k max_y (w U(y) - lambda b(y)), each maximum bounded by tangents at its best y."""
    rows, w = np.arange(buyers.weight.size), buyers.weight
    paid = w > 0
    if not np.isfinite(found.log_price):
        return float((w * utility(buyers.high, buyers.alpha))[paid].sum())
    y = buyers.kept(found.log_price, found.kept)[0]
    price = np.exp(found.log_price)
    need = buyers.need(y)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        value = np.where(paid, w * utility(y, buyers.alpha), 0.0) - price * need
        left, right = _sides(buyers, y, rows)
        marginal = w * y**-buyers.alpha
        rise = np.where(
            y < buyers.high, marginal * -np.expm1(found.log_price - right) * (buyers.high - y), 0.0
        )
        fall = np.where(y > buyers.low, marginal * np.expm1(found.log_price - left) * (y - buyers.low), 0.0)
        rise, fall = np.where(paid, rise, 0.0), np.where(paid, fall, 0.0)
    value = value + np.maximum(0.0, np.maximum(rise, fall))
    if optional is not None:
        value = np.where(optional, np.maximum(value, 0.0), value)
    return float(price + value.sum())
