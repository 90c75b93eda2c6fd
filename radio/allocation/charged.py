"""Sharing one band at one price where an upload costs bits before its first retained weight.

A device may stay silent, for no band and no utility, so that who uploads has to be chosen: exact by branch
and bound over the price of the band (`radio.allocation.uploaders`), with a gap where the search stops early.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from radio.allocation.pricing import (
    LOG_LARGEST,
    MANY,
    SAMPLE,
    Buyers,
    Curve,
    Rows,
    Sharing,
    share_out,
    utility,
)
from radio.allocation.uploaders import choose_uploaders
from radio.arrays import BoolArray, FloatArray


@dataclass(frozen=True, eq=False)
class Chosen(Sharing):
    """The optimum over who uploads as well.

    Attributes:
        gap: no choice gains more than this beyond `kept`, in the unit of the utility; 0: the optimum.
    """

    gap: float


def share_out_charged(curve: Curve, weight: FloatArray, alpha: float, charged: BoolArray) -> Chosen:
    """Share the band where some uploads have a fixed price: who is `charged` may stay silent at no cost.

    A silent device keeps nothing, with utility 0. For alpha >= 1 that is infinitely bad, so that all upload;
    if their least needs fill the band, those with the largest are silent. Otherwise who uploads is searched
    for by branch and bound over the price of the band (`radio.allocation.uploaders`); where that stops early
    `gap` says how far the optimum can be.
    """
    if not charged.any():
        found = share_out(Buyers(curve, weight, alpha))
        return Chosen(found.kept, found.share, found.log_price, 0.0)
    least = np.where(charged, curve.need(curve.low), 0.0)
    able = (weight > 0) & (least < 1)
    if alpha >= 1:
        order = np.argsort(np.where(able, least, np.inf), kind="stable")
        fits = np.cumsum(np.where(able, least, 0.0)[order]) < 1.0
        members = np.zeros(weight.size, dtype=np.bool_)
        members[order] = fits
        return _scattered(curve, weight, alpha, np.flatnonzero(members & able))
    gains = _UploadGains(curve, weight, alpha, least)
    scale = float(weight.sum()) / (1.0 - alpha)
    best = choose_uploaders(
        gains,
        able,
        scale=scale,
        price=gains.first_price(able),
        search=weight.size <= _SEARCHED,
    )
    found = gains.solved(best.share > 0)
    return Chosen(found.kept, found.share, found.log_price, best.gap if best.gap > 1e-10 * scale else 0.0)


_SEARCHED = 5_000  # devices at most: of more, one more or less is little
_HALVINGS = 16  # of the logarithm of the first price


def _scattered(
    curve: Curve, weight: FloatArray, alpha: float, members: Rows, hint: float | None = None
) -> Chosen:
    """Share the band between some devices; the others keep nothing."""
    kept, share = np.zeros(weight.size), np.zeros(weight.size)
    if not members.size:
        return Chosen(kept, share, -np.inf, 0.0)
    found = share_out(Buyers(curve.rows(members), weight[members], alpha), hint)
    kept[members] = found.kept
    share[members] = np.where(found.kept > 0, found.share, 0.0)
    return Chosen(kept, share, found.log_price, 0.0)


class _UploadGains:
    """What uploads gain at a price (`radio.allocation.uploaders.Gains`); silence has utility 0."""

    def __init__(self, curve: Curve, weight: FloatArray, alpha: float, least: FloatArray) -> None:
        self.least_share: FloatArray = least
        self._curve, self._weight, self._alpha = curve, weight, alpha
        self._buyers = Buyers(curve, weight, alpha)
        self._last: FloatArray | None = None
        self._price: float | None = None
        self._solved: dict[bytes, Chosen] = {}

    def first_price(self, able: BoolArray) -> float:
        """Return a price near that of the band; of many devices a sample is asked."""
        n = self._weight.size
        if n < MANY:
            wanted = float(self._buyers.need_high[able].sum())
            return float(self._weight[able].sum()) / max(wanted, 1.0) if able.any() else 1.0
        rows = np.arange(0, n, SAMPLE)
        some = _UploadGains(self._curve.rows(rows), self._weight[rows], self._alpha, self.least_share[rows])
        low, high = some.log_prices()
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            share, profit = some.respond(float(np.exp(middle)))
            filled = float(share[able[rows] & (profit > 0)].sum()) > rows.size / n
            low, high = (middle, high) if filled else (low, middle)
        return float(np.exp(low))

    def log_prices(self) -> tuple[float, float]:
        """Return log prices at which all keep the most, and above which nobody gains by an upload."""
        least = self._buyers.lowest
        with np.errstate(divide="ignore"):
            worth = np.log(self._weight) + np.log(utility(self._buyers.high, self._alpha))
            most = float((worth - np.log(self._buyers.need_low)).max(initial=least))
        least, most = (float(np.clip(at, -LOG_LARGEST, LOG_LARGEST)) for at in (least, most))
        return least, max(least, most)

    def respond(self, price: float) -> tuple[FloatArray, FloatArray]:
        """Return each device's best share of an upload at a price, and w U(y) - price b there."""
        log_price = float(np.log(price)) if price > 0 else -np.inf
        answer = self._buyers.answer(log_price, self._last)
        self._last, self._price = answer.kept, log_price
        return answer.share, self._weight * utility(answer.kept, self._alpha) - price * answer.share

    def profits(self, prices: FloatArray) -> FloatArray:
        """Return w U(y) - price b at J prices, (J, K)."""
        return np.array([self.respond(price)[1] for price in prices.tolist()])

    def share_out(self, members: BoolArray) -> tuple[FloatArray, float, float]:
        """Return the best shares if exactly the members may upload, their multiplier and the gain."""
        found = self.solved(members)
        return found.share, found.price, float((self._weight * utility(found.kept, self._alpha)).sum())

    def solved(self, members: BoolArray) -> Chosen:
        """Return the optimum of these members."""
        key = members.tobytes()
        if key not in self._solved:
            rows = np.flatnonzero(members)
            self._solved[key] = _scattered(self._curve, self._weight, self._alpha, rows, self._price)
        return self._solved[key]
