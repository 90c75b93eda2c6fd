"""Who uploads, where every upload has a fixed price: exact, by branch and bound over who pays it.

An upload costs m bits before its first retained weight, so that a device's gain is 0 up to a least share and
concave from there. Choosing the uploaders is combinatorial. At a price lambda of the band,

    L(lambda) = lambda + sum over the members phi_k + sum over the undecided max(0, phi_k),
    phi_k     = max over the shares of an upload of (w_k y_k(b) - lambda b),

bounds what any choice can gain that has these members, whatever lambda; its least value is the bound of the
concave envelopes. Since any lambda will do, the phi_k are found once, for a few prices around the least one:
who joins or stays away then changes the bounds of a choice at all of them by one addition. A device that
alone outweighs the distance to the best choice known is decided without trial. The others are decided one
after the other, for all choices at once that may still be better than the best; those that are left are
solved. Of devices with equal inputs only the number that uploads is decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.arrays import BoolArray, FloatArray

# Choices that are followed at once; beyond them those of the least bounds are given up, and the gap says so.
most_choices = 20_000
_FEW = 64  # so many are followed first, for a good choice to begin with
_PRICES = 16  # to either side of the least bound's; nearer to each other the nearer they are to it
_NEAR, _FAR = 1e-4, 0.5  # of them, the nearest and the farthest in the logarithm
_MOST_NUMBERS = 10_000_000  # phi_k that are kept
_PRICE_STEPS = 60


class Gains(Protocol):
    """The gains of one round's uploads; arrays (K,)."""

    @property
    def least_share(self) -> FloatArray:
        """Return the share below which an upload brings nothing."""
        ...

    def respond(self, price: float) -> tuple[FloatArray, FloatArray]:
        """Return each device's best share of an upload at that price, and phi_k."""
        ...

    def profits(self, prices: FloatArray) -> FloatArray:
        """Return the phi_k at J prices, (J, K)."""
        ...

    def share_out(self, members: BoolArray) -> tuple[FloatArray, float, float]:
        """Return the best shares if exactly the members may upload, their multiplier and the gain.

        The least shares of the members fit into the band.
        """
        ...


@dataclass(frozen=True)
class Choice:
    """The best choice found.

    Attributes:
        share: (K,) bandwidth fractions.
        multiplier: of the band among those who upload.
        gain: sum of w y.
        gap: no choice gains more than `gain + gap`; 0 where the search came to its end.
    """

    share: FloatArray
    multiplier: float
    gain: float
    gap: float


@dataclass(frozen=True, eq=False)
class _Kind:
    """Undecided devices with equal inputs.

    Attributes:
        devices: their indices.
        profit: (J,) phi_k of each at the J prices.
        least: least share of each.
    """

    devices: NDArray[np.intp]
    profit: FloatArray
    least: float


@dataclass(frozen=True, eq=False)
class _Choices:
    """C choices that agree in what the first decisions leave open.

    Attributes:
        bound: (C, J) L at the J prices.
        least: (C,) sum of the least shares of those who are in.
        numbers: (C, decisions) how many of each kind are in.
    """

    bound: FloatArray
    least: FloatArray
    numbers: NDArray[np.intp]

    def rows(self, which: NDArray[np.intp] | BoolArray) -> _Choices:
        return _Choices(self.bound[which], self.least[which], self.numbers[which])


def choose_uploaders(
    gains: Gains,
    usable: BoolArray,
    kinds: NDArray[np.intp],
    *,
    scale: float,
    price: float,
    known: Iterable[BoolArray] = (),
    search: bool = True,
) -> Choice:
    """Return the best choice of uploaders and their shares.

    Args:
        gains: what uploads bring.
        usable: (K,) who may upload.
        kinds: (K,) equal for devices with equal inputs.
        scale: sum of the weights; gains are found to 1e-10 of it.
        price: a first price of the band, > 0.
        known: choices to start from.
        search: False: settle for a rounding of the best price, with its gap.
    """
    found = _Search(gains, usable, kinds, scale)
    found.consider(np.zeros_like(usable))
    for members in known:
        found.consider(members)
    return found.run(price, search)


class _Search:
    def __init__(self, gains: Gains, usable: BoolArray, kinds: NDArray[np.intp], scale: float) -> None:
        self._gains = gains
        self._usable = usable
        self._kinds = kinds
        self._tolerance = 1e-10 * max(scale, np.finfo(np.float64).tiny)
        self._seen: set[bytes] = set()
        self._best = (np.zeros(kinds.size), 0.0, -np.inf)

    def consider(self, members: BoolArray) -> None:
        """Solve for the shares of these members, without those whose least shares do not fit."""
        members = members & (self._gains.least_share <= 1)
        if (key := members.tobytes()) in self._seen:
            return
        self._seen.add(key)
        if float(self._gains.least_share[members].sum()) > 1:
            return
        found = self._gains.share_out(members)
        if found[2] > self._best[2] + (self._tolerance if np.isfinite(self._best[2]) else 0.0):
            self._best = found

    def run(self, price: float, search: bool) -> Choice:
        bound, price, profit = self._bound(price)
        if bound > self._enough:
            self.consider(self._fitting(profit))
        gap = max(0.0, bound - self._best[2]) if bound > self._enough else 0.0
        if gap > 0 and search and price > 0:
            gap = self._decide(price)
        share, multiplier, gain = self._best
        return Choice(share, multiplier, gain, gap)

    @property
    def _enough(self) -> float:
        """Return the bound up to which a choice is not looked at any more."""
        return self._best[2] + self._tolerance

    def _decide(self, price: float) -> float:
        """Go through all choices that may be better than the best one known; return the gap that is left."""
        prices = self._prices(price)
        profit = self._gains.profits(prices)
        profit[:, ~self._usable] = -np.inf
        start, members, kinds = self._open(prices, profit)
        for limit in (min(_FEW, most_choices), most_choices):
            left, dropped = self._follow(start, kinds, limit)
            self._look_at(left, members, kinds, most=4)
            if dropped <= self._enough:
                break
        left = left.rows(left.bound.min(axis=1) > self._enough)
        if left.least.size > 4:
            left = self._sharpened(left, members, kinds, prices)
        self._look_at(left, members, kinds)
        return dropped - self._best[2] if dropped > self._enough else 0.0

    def _look_at(
        self, left: _Choices, members: BoolArray, kinds: list[_Kind], most: int | None = None
    ) -> None:
        """Solve for choices that are all decided, the most promising first, while one may be better."""
        bound = left.bound.min(axis=1)
        for row in np.argsort(-bound, kind="stable").tolist()[:most]:
            if bound[row] <= self._enough:
                break
            self.consider(self._members(members, kinds, left.numbers[row]))

    def _prices(self, price: float) -> FloatArray:
        each = min(_PRICES, _MOST_NUMBERS // (2 * self._kinds.size))
        apart = np.geomspace(_NEAR, _FAR, max(each, 1))
        return np.asarray(price * np.exp(np.concatenate([-apart[::-1], [0.0], apart])))

    def _open(self, prices: FloatArray, profit: FloatArray) -> tuple[_Choices, BoolArray, list[_Kind]]:
        """Decide who is decided without trial; return what is left, the members, and the undecided."""
        gain = np.maximum(profit, 0.0)
        bound = prices + gain.sum(axis=1)
        pays = (bound[:, np.newaxis] - gain).min(axis=0) <= self._enough  # who has to be in
        fails = (bound[:, np.newaxis] + (profit - gain)).min(axis=0) <= self._enough  # who cannot be
        members = self._usable & pays & ~fails
        undecided = np.flatnonzero(self._usable & ~pays & ~fails)
        bound = prices + profit[:, members].sum(axis=1) + gain[:, undecided].sum(axis=1)
        least = self._gains.least_share
        kinds = [
            _Kind(same, profit[:, same[0]], float(least[same[0]]))
            for kind in np.unique(self._kinds[undecided])
            for same in [undecided[self._kinds[undecided] == kind]]
        ]
        # Those that matter most come first: a wrong decision about them soon ends a choice.
        kinds.sort(key=lambda kind: -abs(float(kind.profit[prices.size // 2])))
        start = _Choices(bound[np.newaxis], least[members].sum(keepdims=True), np.zeros((1, 0), np.intp))
        return start, members, kinds

    def _follow(self, choices: _Choices, kinds: list[_Kind], limit: int) -> tuple[_Choices, float]:
        """Decide kind after kind; return what is left, and the largest bound of the choices given up."""
        dropped = -np.inf
        for kind in kinds:
            number = np.arange(kind.devices.size + 1)
            change = np.multiply.outer(number, kind.profit) - kind.devices.size * np.maximum(kind.profit, 0.0)
            any_choice = choices.bound.max(axis=0, initial=-np.inf) + change
            number, change = (a[any_choice.min(axis=1) > self._enough] for a in (number, change))
            bound = (choices.bound[:, np.newaxis] + change).reshape(-1, kind.profit.size)
            least = np.add.outer(choices.least, number * kind.least).reshape(-1)
            best = bound.min(axis=1)
            keep = np.flatnonzero((best > self._enough) & (least <= 1.0 + 1e-12))
            if keep.size > max(limit, 1):
                order = keep[np.argsort(-best[keep], kind="stable")]
                keep = np.sort(order[: max(limit, 1)])
                dropped = max(dropped, float(best[order[max(limit, 1)]]))
            row, chosen = np.divmod(keep, max(number.size, 1))
            numbers = np.concatenate([choices.numbers[row], number[chosen][:, np.newaxis]], axis=1)
            choices = _Choices(bound[keep], least[keep], numbers)
        return choices, dropped

    @staticmethod
    def _members(members: BoolArray, kinds: list[_Kind], numbers: NDArray[np.intp]) -> BoolArray:
        chosen = members.copy()
        for kind, number in zip(kinds, numbers.tolist(), strict=True):
            chosen[kind.devices[:number]] = True
        return chosen

    def _sharpened(
        self, left: _Choices, members: BoolArray, kinds: list[_Kind], prices: FloatArray
    ) -> _Choices:
        """Bound choices that are all decided at prices between those at which they are bounded least."""
        at = left.bound.argmin(axis=1)
        low, high = prices[max(int(at.min()) - 1, 0)], prices[min(int(at.max()) + 1, prices.size - 1)]
        between = np.geomspace(low, high, 4 * _PRICES)
        profit = self._gains.profits(between)
        bound = between + profit[:, members].sum(axis=1)
        if kinds:
            bound = bound + left.numbers @ profit[:, [kind.devices[0] for kind in kinds]].T
        return replace(left, bound=np.atleast_2d(bound))

    def _fitting(self, profit: FloatArray) -> BoolArray:
        """Return those that pay, as many as fit, the best first."""
        paying = np.flatnonzero(self._usable & (profit > -self._tolerance))
        paying = paying[np.argsort(-profit[paying], kind="stable")]
        fits = np.cumsum(self._gains.least_share[paying]) <= 1
        chosen = np.zeros_like(self._usable)
        chosen[paying[fits]] = True
        return chosen

    def _bound(self, price: float) -> tuple[float, float, FloatArray]:
        """Minimise L, all undecided; return the least value met, its price and the phi_k there.

        L is convex: from either side of the minimum its tangents meet at a point below it.
        """
        best = (np.inf, price, np.zeros(self._usable.size))

        def at(price: float) -> tuple[float, float]:
            nonlocal best
            share, profit = self._gains.respond(price)
            taking = self._usable & (profit > 0)
            value = price + float(profit[taking].sum())
            if value < best[0]:
                best = (value, price, profit)
            return value, 1.0 - float(share[taking].sum())

        value, slope = at(0.0)
        if slope >= 0:
            return best
        low, high = (0.0, value, slope), None
        for step in range(_PRICE_STEPS):
            value, slope = at(price)
            if best[0] <= self._enough:
                break
            if slope < 0:
                low = (price, value, slope)
            else:
                high = (price, value, slope)
            if high is None:
                price *= 2.0
                continue
            meeting = (high[1] - low[1] + low[2] * low[0] - high[2] * high[0]) / (low[2] - high[2])
            reached = low[1] + low[2] * (meeting - low[0])
            if best[0] - reached <= 0.1 * self._tolerance or not low[0] < meeting < high[0]:
                break
            # Tangents alone may creep along a curved side.
            price = _between(low, high) or meeting if step % 3 else 0.5 * (low[0] + high[0])
        return best


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float | None:
    """Return the price at which demand would fill the band if it fell as a power of the price.

    Args:
        low, high: price, value and slope of L (1 less the demand) below and above it.

    Returns:
        A price between the two; None where one of them is 0, or nothing is asked for.
    """
    if low[0] <= 0 or high[2] >= 1 or high[2] <= 0:
        return None
    below, above = math.log1p(-low[2]), math.log1p(-high[2])
    price = math.exp(math.log(low[0]) + math.log(high[0] / low[0]) * below / (below - above))
    return price if low[0] < price < high[0] else None
