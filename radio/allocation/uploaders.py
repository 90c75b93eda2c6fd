"""Who uploads, where every upload has a fixed price: exact, by branch and bound over who pays it.

An upload costs m bits before its first retained weight, so that a device's gain is 0 up to a least share and
concave from there. Choosing the uploaders is combinatorial. At a price lambda of the band,

    L(lambda) = lambda + sum over the members phi_k + sum over the undecided max(0, phi_k),
    phi_k     = max over the shares of an upload of (w_k y_k(b) - lambda b),

bounds what any choice can gain that has these members, whatever lambda; its least value is the bound of the
concave envelopes. Since any lambda will do, the phi_k are found once, for a few prices around the least one:
who joins or stays away then changes the bounds of a choice at all of them by one addition. A device that
alone outweighs the distance to the best choice known is decided without trial. Of the others, a device that
gains from any share at least what another does need not stay away while that one uploads: the two could
change places. So they are put into chains, each device above the next, and of a chain only the number that
uploads is decided; devices that differ in their channels alone are one chain. Chain after chain is decided,
for all choices at once that may still be better than the best, and those that are left are solved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.allocation.chains import chains_of
from radio.arrays import BoolArray, FloatArray

# Choices that are followed at once; beyond them those of the least bounds are given up, and the gap says so.
most_choices = 20_000
_FEW = 64  # so many are followed first, for a good choice to begin with
_PRICES = 16  # to either side of the least bound's; nearer to each other the nearer they are to it
_NEAR, _FAR = 1e-4, 0.5  # of them, the nearest and the farthest in the logarithm
_MOST_NUMBERS = 10_000_000  # that are kept at once
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
class _Chain:
    """Undecided devices of which each gains from any share at least what the next one does.

    Attributes:
        devices: (n,) their indices, the best first.
        profit: (n + 1, J) sum of the phi_k of the first 0 to n at the J prices.
        loss: (J,) what the bound has counted for all of them: the sum of max(0, phi_k).
        least: (n + 1,) sum of their least shares.
    """

    devices: NDArray[np.intp]
    profit: FloatArray
    loss: FloatArray
    least: FloatArray


@dataclass(frozen=True, eq=False)
class _Choices:
    """C choices that agree in what the first decisions leave open.

    Attributes:
        bound: (C, J) L at the J prices.
        least: (C,) sum of the least shares of those who are in.
        numbers: (C, decisions) how many of each chain are in.
    """

    bound: FloatArray
    least: FloatArray
    numbers: NDArray[np.intp]


def choose_uploaders(
    gains: Gains,
    usable: BoolArray,
    *,
    scale: float,
    price: float,
    merits: FloatArray | None = None,
    search: bool = True,
) -> Choice:
    """Return the best choice of uploaders and their shares.

    Args:
        gains: what uploads bring.
        usable: (K,) who may upload.
        scale: sum of the weights; gains are found to 1e-10 of it.
        price: a first price of the band, > 0.
        merits: (K, M) such that a device of which all are at least those of another gains at least as much
            from any share; default: no two can be compared.
        search: False: settle for a rounding of the best price, with its gap.
    """
    return _Search(gains, usable, merits, scale).run(price, search)


class _Search:
    def __init__(self, gains: Gains, usable: BoolArray, merits: FloatArray | None, scale: float) -> None:
        self._gains = gains
        self._usable = usable
        self._merits = merits
        self._tolerance = 1e-10 * max(scale, np.finfo(np.float64).tiny)
        self._seen: set[bytes] = set()
        self._best = (np.zeros(usable.size), 0.0, 0.0)  # all are silent

    def consider(self, members: BoolArray) -> None:
        """Solve for the shares of these members, without those whose least shares do not fit."""
        members = members & (self._gains.least_share <= 1)
        if (key := members.tobytes()) in self._seen:
            return
        self._seen.add(key)
        if float(self._gains.least_share[members].sum()) > 1:
            return
        found = self._gains.share_out(members)
        if found[2] > self._best[2] + self._tolerance:
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
        start, members, chains = self._open(prices, profit)
        for limit in (min(_FEW, most_choices), most_choices):
            left, dropped = self._follow(start, chains, limit)
            self._look_at(left, members, chains, most=4)
            if dropped <= self._enough:
                break
        self._look_at(left, members, chains)
        return dropped - self._best[2] if dropped > self._enough else 0.0

    def _look_at(
        self, left: _Choices, members: BoolArray, chains: list[_Chain], most: int | None = None
    ) -> None:
        """Solve for choices that are all decided, the most promising first, while one may be better."""
        bound = left.bound.min(axis=1)
        for row in np.argsort(-bound, kind="stable").tolist()[:most]:
            if bound[row] <= self._enough:
                break
            self.consider(self._members(members, chains, left.numbers[row]))

    def _prices(self, price: float) -> FloatArray:
        each = min(_PRICES, _MOST_NUMBERS // (2 * self._usable.size))
        apart = np.geomspace(_NEAR, _FAR, max(each, 1))
        return np.asarray(price * np.exp(np.concatenate([-apart[::-1], [0.0], apart])))

    def _open(self, prices: FloatArray, profit: FloatArray) -> tuple[_Choices, BoolArray, list[_Chain]]:
        """Decide who is decided without trial; return what is left, the members, and the undecided."""
        gain = np.maximum(profit, 0.0)
        bound = prices + gain.sum(axis=1)
        pays = (bound[:, np.newaxis] - gain).min(axis=0) <= self._enough  # who has to be in
        fails = (bound[:, np.newaxis] + (profit - gain)).min(axis=0) <= self._enough  # who cannot be
        least = self._gains.least_share
        free = least == 0  # who may take no share at all costs nothing to have in
        members = self._usable & (free | pays & ~fails)
        undecided = np.flatnonzero(self._usable & ~free & ~pays & ~fails)
        bound = prices + profit[:, members].sum(axis=1) + gain[:, undecided].sum(axis=1)
        chains = [
            _Chain(
                chain,
                profit=_sums(profit[:, chain].T),
                loss=gain[:, chain].sum(axis=1),
                least=_sums(least[chain]),
            )
            for chain in chains_of(undecided, None if self._merits is None else self._merits[undecided])
        ]
        # Those that matter most come first: a wrong decision about them soon ends a choice.
        middle = prices.size // 2
        chains.sort(key=lambda chain: -float(np.abs(np.diff(chain.profit[:, middle])).max()))
        start = _Choices(bound[np.newaxis], least[members].sum(keepdims=True), np.zeros((1, 0), np.intp))
        return start, members, chains

    def _follow(self, choices: _Choices, chains: list[_Chain], limit: int) -> tuple[_Choices, float]:
        """Decide chain after chain; return what is left, and the largest bound of the choices given up."""
        dropped = -np.inf
        for chain in chains:
            change = chain.profit - chain.loss
            any_choice = choices.bound.max(axis=0, initial=-np.inf) + change
            number = np.flatnonzero(any_choice.min(axis=1) > self._enough)
            few, given_up = _largest(choices.bound.min(axis=1), _MOST_NUMBERS // max(number.size, 1))
            best = _least_sums(choices.bound[few], change[number]).reshape(-1)
            least = np.add.outer(choices.least[few], chain.least[number]).reshape(-1)
            keep = np.flatnonzero((best > self._enough) & (least <= 1.0 + 1e-12))
            kept, lost = _largest(best[keep], limit)
            keep, dropped = keep[kept], max(dropped, given_up, lost)
            row, chosen = np.divmod(keep, max(number.size, 1))
            row, chosen = few[row], number[chosen]
            numbers = np.concatenate([choices.numbers[row], chosen[:, np.newaxis]], axis=1)
            choices = _Choices(choices.bound[row] + change[chosen], least[keep], numbers)
        return choices, dropped

    @staticmethod
    def _members(members: BoolArray, chains: list[_Chain], numbers: NDArray[np.intp]) -> BoolArray:
        chosen = members.copy()
        for chain, number in zip(chains, numbers.tolist(), strict=True):
            chosen[chain.devices[:number]] = True
        return chosen

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


def _sums(each: FloatArray) -> FloatArray:
    """Return the sums of the first 0 to n along the first axis."""
    return np.concatenate([np.zeros((1, *each.shape[1:])), np.cumsum(each, axis=0)])


def _largest(values: FloatArray, limit: int) -> tuple[NDArray[np.intp], float]:
    """Return where the largest values are, at most `limit` (or 1) of them, and the largest of the others."""
    if values.size <= max(limit, 1):
        return np.arange(values.size), -np.inf
    order = np.argsort(-values, kind="stable")
    return np.sort(order[: max(limit, 1)]), float(values[order[max(limit, 1)]])


def _least_sums(some: FloatArray, others: FloatArray) -> FloatArray:
    """Return the least entry of the sum of each row of (C, J) with each of (n, J), (C, n)."""
    found = np.empty((len(some), len(others)))
    step = max(1, _MOST_NUMBERS // max(1, 8 * others.size))  # ten megabytes at once
    for start in range(0, len(some), step):
        rows = slice(start, start + step)
        found[rows] = (some[rows, np.newaxis] + others).min(axis=2)
    return found


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
