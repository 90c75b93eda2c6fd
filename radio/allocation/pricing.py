"""Sharing one band at one price: exact for concave utilities of convex needs, with a certificate.

    max sum_k w_k U_alpha(y_k)   s.t.   sum_k b_k(y_k) <= 1,   low_k <= y_k <= high_k

b_k(y), the share of the band that device k needs in order to keep the share y of the weights, is convex and
rising; U_alpha is the alpha-fair utility (Mo and Walrand 2000)

    U_alpha(y) = y^(1 - alpha) / (1 - alpha),   U_1 = ln y,

so that alpha = 0 is the sum, 1 proportional fairness, and alpha -> infinity tends to max-min. At a price
lambda of the band each device keeps the y at which w U'(y) = lambda b'(y) (or an end, or a kink of b), which
falls with the price; the price at which the shares sum to one gives the optimum. All is done in logarithms:
prices span hundreds of decades where alpha is large.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from radio.allocation.optimum import InfeasibleAllocationError, WhenInfeasible
from radio.arrays import BoolArray, FloatArray, choice
from radio.roots import decreasing_root_in_rows

Rows = NDArray[np.intp]
_PRICE_DOUBLINGS = 60
_ROUNDING = 1e-12
_BESIDE = 1e-10  # how far from a point its sides are looked at, relative
_LOG_LARGEST = 700.0  # of a price that is still a number


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

    def need(self, kept: FloatArray) -> FloatArray:
        """Return b(y)."""
        ...

    def log_slope(self, kept: FloatArray, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return ln b'(y) of the devices of these rows, and its derivative."""
        ...

    def kink_slopes(self) -> tuple[FloatArray, FloatArray]:
        """Return ln b' on the left and on the right of the kink."""
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
        return float(np.exp(self.log_price)) if self.log_price < _LOG_LARGEST else float("inf")


def utility(kept: FloatArray, alpha: float) -> FloatArray:
    """Return U_alpha(y); -inf at 0 for alpha >= 1."""
    with np.errstate(divide="ignore"):
        if alpha == 1:
            return np.log(kept)
        return np.asarray(np.asarray(kept, dtype=np.float64) ** (1.0 - alpha) / (1.0 - alpha))


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
        self._rows = np.arange(weight.size)
        self.low, self.high = curve.low, np.where(weight > 0, curve.high, curve.low)
        # What a device would pay at the ends; in between it is to be searched for.
        self._at_low = self.worth(self.low) - curve.log_slope(self.low, self._rows)[0]
        self._at_high = self.worth(self.high) - curve.log_slope(self.high, self._rows)[0]
        inside = (curve.kink > self.low) & (curve.kink < self.high)
        self._kink = np.where(inside, curve.kink, self.high)
        left, right = curve.kink_slopes()
        worth = self.worth(np.where(inside, curve.kink, 1.0))
        self._kink_left = np.where(inside, worth - left, self._at_high)
        self._kink_right = np.where(inside, worth - right, self._at_high)

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
                slope, bend = self.curve.log_slope(y, rows[some])
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

    def fall(self, kept: FloatArray, free: BoolArray) -> float:
        """Return the derivative of the sum of the shares in the logarithm of the price."""
        rows = np.flatnonzero(free)
        if not rows.size:
            return 0.0
        slope, bend = self.curve.log_slope(kept[rows], rows)
        steep = bend + (self.alpha / kept[rows] if self.alpha else 0.0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return -float((np.exp(slope) / steep).sum())


def share_out(buyers: Buyers, hint: float | None = None) -> Sharing:
    """Share the band; the needs at the lower ends must fit into it. `hint`: a log price near by."""
    curve = buyers.curve
    most = curve.need(buyers.high)
    if float(most.sum()) <= 1.0:
        return Sharing(buyers.high.copy(), most, -np.inf)
    guess: FloatArray | None = None

    def surplus(log_price: FloatArray, _: Rows) -> tuple[FloatArray, FloatArray]:
        nonlocal guess
        guess, free = buyers.kept(float(log_price[0]), guess)
        total = max(float(curve.need(guess).sum()), np.finfo(np.float64).tiny)
        return np.array([np.log(total)]), np.array([buyers.fall(guess, free) / total])

    low = buyers.lowest
    high, step = low, 1.0
    if hint is not None and hint > low:
        at_hint = float(surplus(np.array([hint]), np.arange(1))[0][0])
        if at_hint > 0:
            low = high = hint
            step = 0.25
        elif hint - 0.25 > low and float(surplus(np.array([hint - 0.25]), np.arange(1))[0][0]) > 0:
            low, high, step = hint - 0.25, hint - 0.25, 0.25
    for _ in range(_PRICE_DOUBLINGS):
        high = high + step
        value, _slope = surplus(np.array([high]), np.arange(1))
        if value[0] <= 0:
            break
        low, step = high, 2 * step
    root = decreasing_root_in_rows(surplus, np.array([low]), np.array([high]), np.array([0.5 * (low + high)]))
    log_price = float(root[0])
    # Demands may jump at the price itself (a need that is linear): any mixture of both sides is optimal.
    nudge = 1e-13 * max(1.0, abs(log_price))
    fewer, more = buyers.kept(log_price + nudge, guess)[0], buyers.kept(log_price - nudge, guess)[0]

    def total(part: float) -> float:
        return float(curve.need(fewer + part * (more - fewer)).sum()) - 1.0

    if total(1.0) <= 0:
        kept = more
    elif total(0.0) >= 0:
        kept = fewer
    else:
        part = brentq(total, 0.0, 1.0, xtol=1e-15, rtol=1e-15)
        kept = fewer + part * (more - fewer)
    share = curve.need(kept)
    return Sharing(kept, share / max(1.0, float(share.sum())), log_price)


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
    curve, w, alpha = buyers.curve, buyers.weight, buyers.alpha
    rows = np.arange(w.size)
    y, low, high = found.kept, buyers.low, buyers.high
    silent = np.zeros(w.shape, dtype=np.bool_) if optional is None else optional & (found.share == 0)
    y = np.where(silent, low, y)
    need = np.where(silent, 0.0, curve.need(y))
    left, right = _sides(buyers, y, rows)
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


def _sides(buyers: Buyers, y: FloatArray, rows: Rows) -> tuple[FloatArray, FloatArray]:
    """Return ln w U'(y) / b'(y) just left and just right of y: between them lies any kink that y is at."""
    step = _BESIDE * np.maximum(y, 1e-6)
    below, above = np.maximum(y - step, buyers.low), np.minimum(y + step, buyers.high)
    return (
        buyers.worth(below) - buyers.curve.log_slope(below, rows)[0],
        buyers.worth(above) - buyers.curve.log_slope(above, rows)[0],
    )


def _dual_bound(buyers: Buyers, found: Sharing, optional: BoolArray | None) -> float:
    """Return lambda + sum_k max_y (w U(y) - lambda b(y)), each maximum bounded by tangents at its best y."""
    rows, w = np.arange(buyers.weight.size), buyers.weight
    paid = w > 0
    if not np.isfinite(found.log_price):
        return float((w * utility(buyers.high, buyers.alpha))[paid].sum())
    y = buyers.kept(found.log_price, found.kept)[0]
    price = np.exp(found.log_price)
    need = buyers.curve.need(y)
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


def settle_limit(
    needs: Callable[[float], FloatArray], limit: float, left_out: BoolArray, when_infeasible: WhenInfeasible
) -> tuple[float, BoolArray]:
    """Make a largest pruning ratio feasible; return the one in force and who is left out.

    Args:
        needs: from a pruning ratio to the share of the band that each device needs for it, (K,).
        limit: the ratio that is asked for; 1: no limit.
        left_out: (K,) who takes no part anyway.
        when_infeasible: as of `radio.allocation.allocate`.

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if the limit does not fit.
    """
    choice("when_infeasible", when_infeasible, WhenInfeasible)
    if limit >= 1:
        return limit, left_out

    def floors(at: float) -> FloatArray:
        return np.where(left_out, 0.0, needs(at))

    low = floors(limit)
    if low.sum() <= 1:
        return limit, left_out
    if when_infeasible == "raise":
        raise InfeasibleAllocationError(
            f"max_pruning_ratio = {limit} cannot be met: the devices that can take part need {low.sum():.4g} "
            "of the band, the limit is 1. Raise max_pruning_ratio, the latency threshold or the energy "
            "budget, or set when_infeasible to 'relax' or 'drop'"
        )
    if when_infeasible == "drop":
        order = np.argsort(low, kind="stable")
        kept = np.zeros(low.shape, dtype=np.bool_)
        kept[order] = np.cumsum(low[order]) <= 1
        return limit, left_out | ~kept
    least, most = limit, 1.0
    while least < (middle := 0.5 * (least + most)) < most:
        least, most = (least, middle) if floors(middle).sum() <= 1 else (middle, most)
    return most, left_out


class Divisible(Curve, Protocol):
    """A curve of which some devices can be taken alone."""

    def rows(self, index: Rows) -> Divisible:
        """Return the curve of some devices."""
        ...


@dataclass(frozen=True, eq=False)
class Chosen(Sharing):
    """The optimum over who uploads as well.

    Attributes:
        gap: no choice gains more than this beyond `kept`, in the unit of the utility; 0: the optimum.
    """

    gap: float


def share_out_charged(curve: Divisible, weight: FloatArray, alpha: float, charged: BoolArray) -> Chosen:
    """Share the band where some uploads have a fixed price: who is `charged` may stay silent at no cost.

    A silent device keeps nothing, with utility 0. For alpha >= 1 that is infinitely bad, so that all upload;
    if their least needs fill the band, those with the largest are silent. Otherwise the price is sought at
    which the answers, silence among them, fill the band. Where a device breaks even there and only a part of
    it would fit, the best of the sets around that price is taken, and `gap` says how far the optimum can be.
    """
    n = weight.size
    least = np.where(charged, curve.need(curve.low), 0.0)
    able = (weight > 0) & (least < 1)
    if not charged.any():
        found = share_out(Buyers(curve, weight, alpha))
        return Chosen(found.kept, found.share, found.log_price, 0.0)
    if alpha >= 1:
        order = np.argsort(np.where(able, least, np.inf), kind="stable")
        fits = np.cumsum(np.where(able, least, 0.0)[order]) < 1.0
        members = np.zeros(n, dtype=np.bool_)
        members[order] = fits
        return _scattered(curve, weight, alpha, np.flatnonzero(members & able), 0.0)
    gains = _UploadGains(curve, weight, alpha, charged, least)
    tried, bound = gains.settle(able)
    best: Chosen = max(tried, key=lambda one: gains.gained(one.kept))
    if bound - gains.gained(best.kept) > 1e-10 * float(weight.sum()) and n <= _MOST_EXCHANGED:
        best = gains.exchanged(best, able)
    scale = float(weight.sum()) / (1.0 - alpha)
    gap = bound - gains.gained(best.kept)
    if gap <= 1e-10 * scale:
        return best
    return Chosen(best.kept, best.share, best.log_price, gap)


_SETTLINGS = 6  # sets of uploaders that are tried
_EXCHANGES = 4  # further ones, by one device each
_MOST_EXCHANGED = 200  # devices for whom they are worth their time


def _scattered(
    curve: Divisible, weight: FloatArray, alpha: float, members: Rows, gap: float, hint: float | None = None
) -> Chosen:
    """Share the band between some devices; the others keep nothing."""
    kept, share = np.zeros(weight.size), np.zeros(weight.size)
    if not members.size:
        return Chosen(kept, share, -np.inf, gap)
    found = share_out(Buyers(curve.rows(members), weight[members], alpha), hint)
    kept[members] = found.kept
    share[members] = np.where(found.kept > 0, found.share, 0.0)
    return Chosen(kept, share, found.log_price, gap)


class _UploadGains:
    """What uploads gain at a price; utilities are 0 for who is silent."""

    def __init__(
        self, curve: Divisible, weight: FloatArray, alpha: float, charged: BoolArray, least: FloatArray
    ) -> None:
        self.least_share: FloatArray = least
        self._curve, self._weight, self._alpha, self._charged = curve, weight, alpha, charged
        self._buyers = Buyers(curve, weight, alpha)
        self._last: FloatArray | None = None

    def gained(self, kept: FloatArray) -> float:
        return float((self._weight * utility(kept, self._alpha)).sum())

    def respond(self, price: float) -> tuple[FloatArray, FloatArray]:
        """Return each device's best share of an upload at a price, and w U(y) - price b there."""
        log_price = float(np.log(price)) if price > 0 else -np.inf
        self._last, _ = self._buyers.kept(log_price, self._last)
        share = self._curve.need(self._last)
        return share, self._weight * utility(self._last, self._alpha) - price * share

    def settle(self, able: BoolArray) -> tuple[list[Chosen], float]:
        """Let devices come and go by the price that their own shares make; return the optima and a bound.

        Where the answers to the price of a set are that set, it is the optimum: the bound is reached.
        """
        members = self._fitting(able, self._weight / np.maximum(self._curve.need(self._buyers.high), 1e-300))
        seen, found = list[BoolArray](), list[Chosen]()
        bound = np.inf
        for _ in range(_SETTLINGS):
            seen.append(members)
            rows = np.flatnonzero(members)
            found.append(_scattered(self._curve, self._weight, self._alpha, rows, 0.0))
            price = found[-1].price
            _, profit = self.respond(price)
            taking = able & ((profit > 0) | ~self._charged)
            bound = min(bound, price + float(profit[taking].sum()))
            taking = self._fitting(taking, profit)
            if any((taking == before).all() for before in seen):
                break
            members = taking
        return found, bound

    def exchanged(self, best: Chosen, able: BoolArray) -> Chosen:
        """Try to add the most promising device or to leave out the weakest, as long as it helps."""
        tried = 0
        while tried < _EXCHANGES:
            members = best.share > 0
            _, profit = self.respond(max(best.price, 0.0))
            outside = [one for one in np.argsort(-profit) if able[one] and not members[one]][:1]
            inside = [one for one in np.argsort(profit) if members[one]][:1]
            better = best
            for one in (*outside, *inside):
                tried += 1
                changed = members.copy()
                changed[one] = not changed[one]
                if float(self.least_share[changed].sum()) >= 1.0:
                    continue
                rows, near = np.flatnonzero(changed), best.log_price
                other = _scattered(self._curve, self._weight, self._alpha, rows, 0.0, near)
                if self.gained(other.kept) > self.gained(better.kept):
                    better = other
            if better is best:
                break
            best = better
        return best

    def _fitting(self, wanted: BoolArray, merit: FloatArray) -> BoolArray:
        """Return those whose least needs fit into the band together, the best first."""
        order = np.argsort(np.where(wanted, -merit, np.inf), kind="stable")
        fits = np.cumsum(np.where(wanted, self.least_share, 0.0)[order]) < 1.0
        chosen = np.zeros_like(wanted)
        chosen[order] = fits
        return chosen & wanted
