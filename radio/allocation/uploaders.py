"""Who uploads, where every upload has a fixed price: exact, by branch and bound over who pays it.

An upload costs m bits before its first retained weight, so that a device's gain is 0 up to a least share and
concave from there. Choosing the uploaders is combinatorial. At a price lambda of the band,

    L(lambda) = lambda + sum over the members phi_k + sum over the undecided max(0, phi_k),
    phi_k     = max over the shares of an upload of (w_k y_k(b) - lambda b),

bounds what any choice can gain that has these members, whatever lambda; its least value is the bound of the
concave envelopes. A device whose phi_k alone outweighs the distance to the best choice known is decided
without trial. The rest is tried, best bound first. Devices with equal inputs are taken in order, since
exchanging two of them changes nothing.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from radio.arrays import BoolArray, FloatArray

# The search settles for what it has after that many nodes times devices, but not before `least_trials` nodes.
work = 400_000
least_trials = 20
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


@dataclass(frozen=True)
class _Node:
    members: BoolArray
    undecided: BoolArray
    price: float


def choose_uploaders(
    gains: Gains,
    usable: BoolArray,
    kinds: NDArray[np.intp],
    *,
    scale: float,
    price: float,
    known: Iterable[BoolArray] = (),
    trials: int | None = None,
) -> Choice:
    """Return the best choice of uploaders and their shares.

    Args:
        gains: what uploads bring.
        usable: (K,) who may upload.
        kinds: (K,) equal for devices with equal inputs.
        scale: sum of the weights; gains are found to 1e-10 of it.
        price: a first price of the band, > 0.
        known: choices to start from.
        trials: nodes after which the search settles for what it has; None: as the module says.
    """
    limit = max(least_trials, work // kinds.size) if trials is None else trials
    search = _Search(gains, kinds, scale)
    search.consider(np.zeros_like(usable))
    for members in known:
        search.consider(members)
    return search.run(_Node(np.zeros_like(usable), usable.copy(), price), limit)


class _Search:
    def __init__(self, gains: Gains, kinds: NDArray[np.intp], scale: float) -> None:
        self._gains = gains
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

    def run(self, root: _Node, limit: int) -> Choice:
        order = count()
        waiting: list[tuple[float, int, _Node]] = [(-np.inf, next(order), root)]
        gap = 0.0
        for number in count():
            while waiting and -waiting[0][0] <= self._best[2] + self._tolerance:
                heapq.heappop(waiting)
            if not waiting:
                break
            if number >= limit:
                gap = -waiting[0][0] - self._best[2]
                break
            _, _, node = heapq.heappop(waiting)
            for bound, child in self._branch(node):
                heapq.heappush(waiting, (-bound, next(order), child))
        share, multiplier, gain = self._best
        return Choice(share, multiplier, gain, gap)

    def _branch(self, node: _Node) -> list[tuple[float, _Node]]:
        """Bound a node, decide what can be decided, and return its two children (none: it is done)."""
        if float(self._gains.least_share[node.members].sum()) > 1:
            return []
        bound, price, profit = self._bound(node)
        room = bound - self._best[2]
        if room <= self._tolerance:
            return []
        self.consider(self._fitting(node, profit))
        room = bound - self._best[2]
        if room <= self._tolerance:
            return []
        decided = node.undecided & (np.abs(profit) >= room - self._tolerance)
        members = node.members | (decided & (profit > 0))
        undecided = node.undecided & ~decided
        if not undecided.any():
            self.consider(members)
            return []
        closest = int(np.argmin(np.where(undecided, np.abs(profit), np.inf)))
        alike = undecided & (self._kinds == self._kinds[closest])
        device = int(np.argmax(alike))  # the first of its kind
        one = np.zeros_like(undecided)
        one[device] = True
        with_it = _Node(members | one, undecided & ~one, price)
        without = _Node(members, undecided & ~alike, price)
        return [(bound, with_it), (bound, without)]

    def _fitting(self, node: _Node, profit: FloatArray) -> BoolArray:
        """Return the members and the undecided that pay, as many as fit, the best first."""
        paying = np.flatnonzero(node.undecided & (profit > -self._tolerance))
        least = self._gains.least_share
        paying = paying[np.argsort(-profit[paying], kind="stable")]
        fits = float(least[node.members].sum()) + np.cumsum(least[paying]) <= 1
        chosen = node.members.copy()
        chosen[paying[fits]] = True
        return chosen

    def _bound(self, node: _Node) -> tuple[float, float, FloatArray]:
        """Minimise L over the price; return the least value met, its price and the phi_k there.

        L is convex: from either side of the minimum its tangents meet at a point below it.
        """
        best = (np.inf, node.price, np.zeros(node.undecided.size))

        def at(price: float) -> tuple[float, float]:
            nonlocal best
            share, profit = self._gains.respond(price)
            taking = node.members | (node.undecided & (profit > 0))
            value = price + float(profit[taking].sum())
            if value < best[0]:
                best = (value, price, profit)
            return value, 1.0 - float(share[taking].sum())

        value, slope = at(0.0)
        if slope >= 0:
            return best
        low, high = (0.0, value, slope), None
        price = node.price
        for _ in range(_PRICE_STEPS):
            value, slope = at(price)
            if best[0] <= self._best[2] + self._tolerance:
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
            price = _between(low, high) or meeting if _ % 3 else 0.5 * (low[0] + high[0])
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
