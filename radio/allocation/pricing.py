"""Sharing one band at one price: exact for concave utilities of convex needs, with a certificate.

    max sum_k w_k U_alpha(y_k)   s.t.   sum_k b_k(y_k) <= 1,   low_k <= y_k <= high_k

b_k(y), the share of the band that device k needs in order to keep the share y of the weights, is convex and
rising; U_alpha is the alpha-fair utility (Mo and Walrand 2000)

    U_alpha(y) = y^(1 - alpha) / (1 - alpha),   U_1 = ln y,

so that alpha = 0 is the sum, 1 proportional fairness, and alpha -> infinity tends to max-min. At a price
lambda of the band each device keeps the y at which w U'(y) = lambda b'(y) (or an end, or a kink of b), which
falls with the price; the price at which the shares sum to one gives the optimum. All is done in logarithms:
prices span hundreds of decades where alpha is large. `radio.allocation.priced_certificate` judges it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.arrays import BoolArray, FloatArray
from radio.roots import decreasing_root_in_rows

Rows = NDArray[np.intp]
_PRICE_DOUBLINGS = 60
LOG_LARGEST = 700.0  # of a price that is still a number


class Curve(Protocol):
    """What shares of the weights cost n devices; arrays (n,)."""

    @property
    def low(self) -> FloatArray:
        """Return the least share of the weights."""
        ...

    @property
    def high(self) -> FloatArray:
        """Return the largest; its need is at most the whole band."""
        ...

    @property
    def kink(self) -> FloatArray:
        """Return where b' jumps; NaN: nowhere between `low` and `high`."""
        ...

    def rows(self, index: Rows) -> Curve:
        """Return the curve of some devices."""
        ...

    def need(self, kept: FloatArray) -> FloatArray:
        """Return b(y)."""
        ...

    def priced(self, kept: FloatArray, rows: Rows) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return b(y), ln b'(y) and the derivative of ln b'(y), of the devices of these rows."""
        ...

    def kink_slopes(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return ln b' on the left and on the right of the kink, of the devices of these rows."""
        ...


@dataclass(frozen=True, eq=False)
class Sharing:
    """The optimum.

    Attributes:
        kept: (n,) y.
        share: (n,) b, summing to at most 1.
        log_price: ln lambda; -inf where band is left over.
    """

    kept: FloatArray
    share: FloatArray
    log_price: float

    @property
    def price(self) -> float:
        """Return lambda; infinite beyond the largest number."""
        return float(np.exp(self.log_price)) if self.log_price < LOG_LARGEST else float("inf")


def utility(kept: FloatArray, alpha: float) -> FloatArray:
    """Return U_alpha(y); -inf at 0 for alpha >= 1."""
    with np.errstate(divide="ignore"):
        if alpha == 1:
            return np.log(kept)
        return np.asarray(np.asarray(kept, dtype=np.float64) ** (1.0 - alpha) / (1.0 - alpha))


@dataclass(frozen=True, eq=False)
class Answer:
    """What devices make of a price.

    Attributes:
        kept: (n,) y.
        share: (n,) b(y).
        move: (n,) dy in the logarithm of the price; 0 for who is at an end or at a kink.
        fall: derivative of the sum of the shares in the logarithm of the price, <= 0.
    """

    kept: FloatArray
    share: FloatArray
    move: FloatArray
    fall: float


class Buyers:
    """Devices that answer to prices.

    Args:
        curve: what shares of the weights cost them.
        weight: (n,) w >= 0.
        alpha: of the utility, >= 0.
    """

    def __init__(self, curve: Curve, weight: FloatArray, alpha: float = 0.0) -> None:
        self.curve = curve
        self.alpha = alpha
        self.weight = weight
        with np.errstate(divide="ignore"):
            self._log_weight = np.log(weight)
        rows = np.arange(weight.size)
        self.low, self.high = curve.low, np.where(weight > 0, curve.high, curve.low)
        # What a device would pay at the ends; in between it is to be searched for.
        self.need_low, slope, _ = curve.priced(self.low, rows)
        self._at_low = self.worth(self.low) - slope
        self.need_high, slope, _ = curve.priced(self.high, rows)
        self._at_high = self.worth(self.high) - slope
        kink = curve.kink
        self._kink = self.high.copy()
        self._kink_left, self._kink_right = self._at_high.copy(), self._at_high.copy()
        bent = np.flatnonzero((kink > self.low) & (kink < self.high))
        if bent.size:
            left, right = curve.kink_slopes(bent)
            self._kink[bent] = kink[bent]
            worth = self.worth(self._kink)[bent]
            self._kink_left[bent], self._kink_right[bent] = worth - left, worth - right

    @property
    def lowest(self) -> float:
        """Return a price (its logarithm) at which everybody keeps the most."""
        paying = self._at_high[(self.weight > 0) & (self.high > self.low)]
        return float(paying.min()) if paying.size else -np.inf

    def worth(self, kept: FloatArray) -> FloatArray:
        """Return ln w U'(y)."""
        if self.alpha == 0:
            return self._log_weight.copy()
        with np.errstate(divide="ignore"):
            return np.asarray(self._log_weight - self.alpha * np.log(kept))

    def kept(self, log_price: float, start: FloatArray | None = None) -> tuple[FloatArray, BoolArray]:
        """Return y at a price, and who is neither at an end nor at a kink; `start` is a guess."""
        none, all_ = log_price >= self._at_low, log_price <= self._at_high
        caught = (log_price <= self._kink_left) & (log_price >= self._kink_right)
        kept = np.where(none, self.low, np.where(all_, self.high, self._kink))
        free = ~(none | all_ | caught) & (self.high > self.low)
        rows = np.flatnonzero(free)
        if rows.size:
            before = log_price > self._kink_left[rows]
            low = np.where(before, self.low[rows], self._kink[rows])
            high = np.where(before, self._kink[rows], self.high[rows])

            def excess(y: FloatArray, some: Rows) -> tuple[FloatArray, FloatArray]:
                _, slope, bend = self.curve.priced(y, rows[some])
                worth = self._log_weight[rows[some]]
                if self.alpha:
                    worth = worth - self.alpha * np.log(y)
                    bend = bend + self.alpha / y
                return worth - slope - log_price, -bend

            middle = 0.5 * (low + high)
            first = (
                middle
                if start is None
                else np.where((start[rows] > low) & (start[rows] < high), start[rows], middle)
            )
            low, high = np.maximum(low, 1e-300), np.maximum(high, 1e-300)
            kept[rows] = np.clip(decreasing_root_in_rows(excess, low, high, first), low, high)
        return kept, free

    def answer(self, log_price: float, start: FloatArray | None = None) -> Answer:
        """Return what devices keep at a price, and how that changes with it; `start` is a guess of y."""
        kept, free = self.kept(log_price, start)
        share, move, fall = self.need(kept, known=True), np.zeros_like(kept), 0.0
        rows = np.flatnonzero((kept > self.low) & (kept < self.high))
        if rows.size:
            share[rows], slope, bend = self.curve.priced(kept[rows], rows)
            steep = bend + (self.alpha / kept[rows] if self.alpha else 0.0)
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                moves = np.where(free[rows], -1.0 / steep, 0.0)
                fall = float((np.exp(slope) * moves)[free[rows]].sum())
            move[rows] = np.where(np.isfinite(moves), moves, 0.0)
        return Answer(kept, share, move, fall)

    def need(self, kept: FloatArray, *, known: bool = False) -> FloatArray:
        """Return b(y); where y is at an end it is known. With `known`, of the others nothing is said."""
        share = np.where(kept == self.high, self.need_high, self.need_low)
        rows = np.flatnonzero((kept != self.low) & (kept != self.high))
        if rows.size and not known:
            share[rows] = self.curve.rows(rows).need(kept[rows])
        return share


_FILLED = 1e-11  # the band, or all but so much of it, is a straight line away from full
MANY = 4096  # devices of whom a sample is asked first
SAMPLE = 32


def sampled_price(buyers: Buyers) -> float | None:
    """Return a log price near by: that at which every 32nd device would fill a 32nd of the band."""
    if buyers.weight.size < MANY:
        return None
    rows = np.arange(0, buyers.weight.size, SAMPLE)
    found = share_out(
        Buyers(buyers.curve.rows(rows), buyers.weight[rows], buyers.alpha),
        band=rows.size / buyers.weight.size,
    )
    return found.log_price if np.isfinite(found.log_price) else None


def share_out(buyers: Buyers, hint: float | None = None, band: float = 1.0) -> Sharing:
    """Share the band; the needs at the lower ends must fit into it. `hint`: a log price near by."""
    if float(buyers.need_high.sum()) <= band:
        return Sharing(buyers.high.copy(), buyers.need_high, -np.inf)
    hint = sampled_price(buyers) if hint is None else hint
    last: Answer | None = None

    def surplus(log_price: FloatArray, _: Rows) -> tuple[FloatArray, FloatArray]:
        nonlocal last
        last = buyers.answer(float(log_price[0]), None if last is None else last.kept)
        total = max(float(last.share.sum()), np.finfo(np.float64).tiny)
        value = np.log(total / band)
        # So near, and nobody jumps: the straight line of the answers goes the rest of the way.
        value = 0.0 if abs(value) <= _FILLED and last.fall < 0 else value
        return np.array([value]), np.array([last.fall / total])

    low, high = _bracket(lambda at: [float(v[0]) for v in surplus(np.array([at]), _ONE)], buyers.lowest, hint)
    middle = np.array([0.5 * (low + high) if hint is None or not low < hint < high else hint])
    root = decreasing_root_in_rows(surplus, np.array([low]), np.array([high]), middle)
    log_price = float(root[0])
    answer = buyers.answer(log_price, None if last is None else last.kept)
    missing = band - float(answer.share.sum())
    if abs(missing) <= 1e-9 and answer.fall < 0:
        kept = answer.kept + answer.move * (missing / answer.fall)
        kept = np.clip(kept, buyers.low, buyers.high)
        share = answer.share + (missing / answer.fall) * _share_moves(buyers, answer)
        return Sharing(kept, share * min(1.0, band / float(share.sum())), log_price)
    return _across_jump(buyers, log_price, answer.kept, band)


_ONE = np.arange(1)


def _share_moves(buyers: Buyers, answer: Answer) -> FloatArray:
    """Return db in the logarithm of the price, (n,)."""
    moves = np.zeros_like(answer.move)
    rows = np.flatnonzero(answer.move)
    if rows.size:
        moves[rows] = np.exp(buyers.curve.priced(answer.kept[rows], rows)[1]) * answer.move[rows]
    return moves


def _bracket(
    surplus: Callable[[float], Sequence[float]], lowest: float, hint: float | None
) -> tuple[float, float]:
    """Return prices with a surplus of demand at the first and none at the second, if there are.

    Args:
        surplus: from a log price to the surplus and its slope.
        lowest: a log price at which demand is largest.
        hint: a log price near by.
    """
    low = high = lowest
    step = 1.0
    if hint is not None and hint > lowest:
        value, slope = surplus(hint)
        # Twice as far as a straight line would go, but for a hint that is far off.
        step = float(np.clip(2.0 * abs(value / slope), 1e-9, 0.25)) if slope < 0 else 0.25
        if value > 0:
            low = high = hint
        else:
            while hint - step > lowest:
                if surplus(hint - step)[0] > 0:
                    return hint - step, hint
                hint, step = hint - step, 2 * step
            return lowest, hint
    for _ in range(_PRICE_DOUBLINGS):
        high = high + step
        if surplus(high)[0] <= 0:
            break
        low, step = high, 2 * step
    return low, high


def _across_jump(buyers: Buyers, log_price: float, guess: FloatArray, band: float) -> Sharing:
    """Share at a price at which demand jumps (a need that is linear): mixtures of both sides are optimal."""
    nudge = 1e-13 * max(1.0, abs(log_price))
    fewer, more = buyers.kept(log_price + nudge, guess)[0], buyers.kept(log_price - nudge, guess)[0]

    def total(part: float) -> float:
        return float(buyers.need(fewer + part * (more - fewer)).sum()) - band

    if total(1.0) <= 0:
        kept = more
    elif total(0.0) >= 0:
        kept = fewer
    else:
        from scipy.optimize import brentq  # here: who only asks for settings need not wait for it

        part = brentq(total, 0.0, 1.0, xtol=1e-15, rtol=1e-15)
        kept = fewer + part * (more - fewer)
    share = buyers.need(kept)
    return Sharing(kept, share * min(1.0, band / float(share.sum())), log_price)
