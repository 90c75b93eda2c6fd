"""Bandwidth, pruning, CPU frequency and transmit power together, under time and energy.

    max over b, f, p of  sum_k w_k U_alpha(y_k)    s.t.  T_k <= T, E_k <= E_k^max, sum_k b_k <= 1, y_k <= 1

The inner problem of each device is its capacity (`radio.energy.capacity`), which makes its need b_k(y)
convex; the outer one is the price of the band (`radio.allocation.pricing`). Without energy limits this is the
optimum of `radio.allocation.optimum`.

Where all devices keep everything and band is left over, and under `objective="least_energy"`, the ratios are
settled and the band is shared so that the sum of the energies is least:

    min over b, f, p of  sum_k E_k   s.t.  y_k = 1 - rho_max, T_k <= T, E_k <= E_k^max, sum_k b_k = 1.

At a price lambda of the band the optimal power and frequency lie on one path: with u = g p, first
2 kappa f^3 = ((1 + u) ln(1 + u) - u) / g up to p_max, from there on f alone up to f_max. The joules saved per
share of the band rise along it.

One file, long as it is: one search, with the proof of its bound beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from radio.allocation.charged import Chosen, share_out_charged
from radio.allocation.limits import settle_limit
from radio.allocation.optimum import allocate
from radio.allocation.priced_certificate import Certificate, certify
from radio.allocation.pricing import MANY, SAMPLE, Buyers, Rows, Sharing
from radio.allocation.shares import Allocation, AllocationStatus, WhenInfeasible
from radio.arrays import BoolArray, FloatArray, choice, in_unit_interval, non_negative
from radio.channel.rates import FixedNoise
from radio.energy import (
    Capacity,
    EnergyTerms,
    Limit,
    band_needed,
    capacity,
    largest_kept,
    least_energy,
    worth_of_power,
)
from radio.roots import decreasing_root_in_rows

if TYPE_CHECKING:
    from radio.allocation.policies import OfdmaProblem

Objective: TypeAlias = Literal["retained", "least_energy"]
_LN2 = float(np.log(2.0))
_NOTHING = 1e-12  # a share of the weights below this is none


@dataclass(frozen=True, eq=False)
class EnergyCurve:
    """b(y) of devices under time and energy (`radio.allocation.pricing.Curve`)."""

    terms: EnergyTerms
    low: FloatArray
    high: FloatArray

    @cached_property
    def _near(self) -> FloatArray:
        """Return the airtimes that were found last, (n,): where to look for the next ones."""
        return np.full(self.low.shape, np.nan)

    @property
    def kink(self) -> FloatArray:
        """Return where the budget begins or ends to bind."""
        return self.terms.energy_switch

    def rows(self, index: Rows) -> EnergyCurve:
        """Return the curve of some devices."""
        return EnergyCurve(self.terms.rows(index), self.low[index], self.high[index])

    def need(self, kept: FloatArray) -> FloatArray:
        """Return b(y)."""
        return band_needed(self.terms, kept)

    def priced(self, kept: FloatArray, rows: Rows) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return b(y), ln b'(y) and the derivative of ln b'(y)."""
        terms = self.terms.rows(rows)
        found = capacity(terms, kept, near=self._near[rows])
        self._near[rows] = found.airtime
        return band_needed(terms, kept, found), *self._log_slope(terms, kept, found)

    def kink_slopes(self, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """Return ln b' on both sides of the kink."""
        # More weights mean more energy where a cycle costs more than the airtime that it displaces.
        t, at = self.terms.rows(rows), self.kink[rows]
        after = t.capacitance * t.max_frequency**3 > t.max_power
        left, right = (self._log_slope(t, at, capacity(t, at, bound=bound))[0] for bound in (~after, after))
        return left, right

    @staticmethod
    def _log_slope(terms: EnergyTerms, kept: FloatArray, found: Capacity) -> tuple[FloatArray, FloatArray]:
        q, r, r1, r2 = terms.payload_bits, found.bits, found.slope, found.bend
        bits = kept * q + terms.overhead_bits
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = q - bits * r1 / r  # b' B R
            bend = (-2 * q * r1 - bits * r2 + 2 * bits * r1**2 / r) / r
            return np.log(slope / (terms.bandwidth * r)), bend / slope


def allocate_energy(
    terms: EnergyTerms,
    *,
    weights: ArrayLike | None = None,
    alpha: float = 0.0,
    max_pruning_ratio: float = 1.0,
    when_infeasible: WhenInfeasible = "raise",
    objective: Objective = "retained",
) -> Allocation:
    """Return the joint optimum; see the module text.

    Args:
        terms: of the K devices.
        weights: (K,) w >= 0; default 1.
        alpha: of the fairness between devices, >= 0; 0: the weighted sum.
        max_pruning_ratio: rho_max; below 1 every device that can take part has to upload.
        when_infeasible: as of `radio.allocation.allocate`.
        objective: most retained weights, or least energy at exactly `max_pruning_ratio`.

    Returns:
        The allocation with `frequency` and `power`. `status` is STARVED, TIME_BOUND (energy is left over),
        ENERGY_BOUND (the budget is spent), SATURATED, FLOOR, or INFEASIBLE (not even c0 fits).

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if `max_pruning_ratio` does not fit.
        ValueError: if an argument is outside its range.
    """
    choice("objective", objective, Objective)
    k = terms.budget.size
    w = np.broadcast_to(non_negative("weights", 1.0 if weights is None else weights), (k,)).astype(np.float64)
    fairness = float(non_negative("alpha", alpha))
    limit = float(in_unit_interval("max_pruning_ratio", max_pruning_ratio))
    if objective == "least_energy" and limit == 1:
        raise ValueError(
            "objective = 'least_energy' needs max_pruning_ratio below 1: the energy of nothing is 0"
        )
    out = ~(terms.standby_energy <= terms.budget)
    limit, out = settle_limit(
        lambda at: band_needed(terms, np.full(k, 1.0 - at)), limit, out, when_infeasible
    )
    high = np.where(out, np.nan, largest_kept(terms, 1.0))
    usable = (high > 0) & ((w > 0) | (limit < 1))
    rows = np.flatnonzero(usable)
    kept, share, price, gap = np.zeros(k), np.zeros(k), 0.0, 0.0
    if rows.size:
        some = terms.rows(rows)
        low = np.full(rows.size, 1.0 - limit)
        if objective == "least_energy":
            kept[rows] = low
            share[rows], price = share_for_least_energy(some, low)
        else:
            found = _retain_most(some, low, high[rows], w[rows], fairness, limit)
            kept[rows], share[rows], price, gap = found.kept, found.share, found.price, found.gap
            if price == 0 and (found.kept[w[rows] > 0] >= 1).all():
                share[rows] = share_for_least_energy(some, found.kept)[0]
    kept[kept < _NOTHING] = 0.0
    share[kept == 0] = 0.0
    return _result(terms, kept, share, w=w, limit=limit, out=out, price=price, gap=gap)


def _retain_most(
    terms: EnergyTerms, low: FloatArray, high: FloatArray, weight: FloatArray, alpha: float, limit: float
) -> Chosen:
    curve = EnergyCurve(terms, np.minimum(low, high), high)
    if alpha == 0 and limit == 1 and (found := _by_time_alone(terms, weight)) is not None:
        return found
    return share_out_charged(curve, weight, alpha, (terms.overhead_bits > 0) & (limit == 1))


def _by_time_alone(terms: EnergyTerms, weight: FloatArray) -> Chosen | None:
    """Return the optimum without budgets if it keeps to them all: then it is the optimum with them."""
    if weight.size >= MANY:  # of many, a sample is asked first, in as crowded a band
        rows = np.arange(0, weight.size, SAMPLE)
        some = terms.rows(rows)
        crowded = replace(
            some, payload_bits=some.payload_bits * SAMPLE, overhead_bits=some.overhead_bits * SAMPLE
        )
        if _within_budgets(crowded, weight[rows]) is None:
            return None
    best = _within_budgets(terms, weight)
    if best is None:
        return None
    with np.errstate(divide="ignore"):
        price = float(np.log(best.multiplier))
    return Chosen(1.0 - best.pruning_ratio, best.bandwidth_fraction, price, float(best.gap))


def _within_budgets(terms: EnergyTerms, weight: FloatArray) -> Allocation | None:
    """Return the optimum without budgets, or None if it goes beyond one of them."""
    best = allocate(
        terms.bandwidth * np.log1p(terms.gain_over_noise * terms.max_power) / _LN2,
        terms.threshold - terms.fixed_cycles / terms.max_frequency,
        terms.global_cycles / terms.max_frequency,
        terms.payload_bits,
        weights=weight,
        overhead_bits=terms.overhead_bits,
    )
    kept = 1.0 - best.pruning_ratio
    spent = least_energy(terms, kept, best.bandwidth_fraction).total
    tight = (kept > 0) & ~np.isfinite(spent)  # at the threshold to rounding: all at the most
    held = capacity(terms, kept)
    return best if (np.where(tight, held.limit == Limit.TIME, spent <= terms.budget)).all() else None


def share_for_least_energy(terms: EnergyTerms, kept: FloatArray) -> tuple[FloatArray, float]:
    """Return the shares of the band, (K,), at which keeping exactly y costs the fewest joules, and the price.

    Every device gets at least what it needs within its time and budget; those needs must fit into the band.
    """
    floor = band_needed(terms, kept)
    share = floor.copy()
    sending = np.flatnonzero((kept > 0) & (terms.gain_over_noise > 0))
    if not sending.size or float(floor.sum()) >= 1.0:
        return share / max(1.0, float(share.sum())), 0.0
    path = _Path(terms.rows(sending), kept[sending])

    def surplus(log_price: FloatArray, _: Rows) -> tuple[FloatArray, FloatArray]:
        asked = np.maximum(path.share(float(log_price[0])), floor[sending])
        value = np.log(asked.sum() + floor.sum() - floor[sending].sum())
        return np.array([value]), np.array([-0.5])  # b falls about as lambda^(-1/2)

    corners = path.corner[np.isfinite(path.corner)]
    low = high = float(np.median(corners)) if corners.size else 0.0
    for _ in range(200):
        if surplus(np.array([low]), sending)[0][0] >= 0:
            break
        low -= 4.0
    for _ in range(200):
        if surplus(np.array([high]), sending)[0][0] <= 0:
            break
        high += 4.0
    root = float(
        decreasing_root_in_rows(surplus, np.array([low]), np.array([high]), np.array([0.5 * (low + high)]))[0]
    )
    share[sending] = np.maximum(path.share(root), floor[sending])
    spare = max(0.0, 1.0 - float(share.sum()))
    share[sending] += spare * share[sending] / share[sending].sum()
    return share / max(1.0, float(share.sum())), float(np.exp(root))


class _Path:
    """Where power and frequency go as the band becomes dearer; see the module text."""

    def __init__(self, terms: EnergyTerms, kept: FloatArray) -> None:
        self._terms = terms
        self._work = terms.cycles(kept)
        self._bits = kept * terms.payload_bits + terms.overhead_bits
        self._loud = terms.gain_over_noise * terms.max_power
        everyone = np.arange(kept.size)
        t = self._at_power(self._loud, everyone)
        # Where even p_max leaves no time beside computing at the f worth as much, f alone gives way.
        self._corner_time = np.maximum(t, 1e-12 * terms.threshold)
        self._last = np.maximum(terms.threshold - self._work / terms.max_frequency, self._corner_time)
        self.corner = self._log_price(self._loud, t, everyone)

    def _at_power(self, u: FloatArray, rows: Rows) -> FloatArray:
        """Return the airtime that goes with u: computing takes the rest, at the f that is worth as much."""
        some = self._terms.rows(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = np.cbrt(worth_of_power(u) / (2 * some.capacitance * some.gain_over_noise))
            f = np.clip(np.nan_to_num(f, posinf=np.inf), some.min_frequency, some.max_frequency)
        return np.asarray(some.threshold - self._work[rows] / f)

    def _log_price(self, u: FloatArray, t: FloatArray, rows: Rows) -> FloatArray:
        """Return ln of the joules saved per share of the band: (1 + u) ln2 / g * n / b, n = bits / (b B)."""
        some = self._terms.rows(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            n = t * np.log1p(u) / _LN2
            value = np.log1p(u) + 2 * np.log(n)
            value += np.log(_LN2 * some.bandwidth / (some.gain_over_noise * self._bits[rows]))
        return np.where(t > 0, value, -np.inf)

    def share(self, log_price: float) -> FloatArray:
        """Return b at a price of the band."""
        terms, corner = self._terms, self.corner
        u, t = self._loud.copy(), self._corner_time.copy()
        rows = np.flatnonzero(corner > log_price)
        if rows.size:  # in ln u, in which the price is nearly a straight line

            def dear(x: FloatArray, some: Rows) -> tuple[FloatArray, FloatArray]:
                there = rows[some]
                at = np.exp(x)
                return log_price - self._log_price(at, self._at_power(at, there), there), np.full(
                    x.size, -2.0
                )

            top = np.log(self._loud[rows])
            u[rows] = np.exp(decreasing_root_in_rows(dear, top - 80.0, top, top))
            t[rows] = self._at_power(u[rows], rows)
        rows = np.flatnonzero((corner <= log_price) & (self._last > self._corner_time))
        if rows.size:
            some = terms.rows(rows)
            whole = np.log1p(self._loud[rows]) / _LN2

            def dearer(x: FloatArray, at: Rows) -> tuple[FloatArray, FloatArray]:
                t = x * some.threshold[at]
                f = self._work[rows[at]] / (some.threshold[at] - t)
                joules = (2 * some.capacitance[at] * f**3 + some.max_power[at]) / whole[at]
                n = t * whole[at]
                value = np.log(joules * n**2 * some.bandwidth / self._bits[rows[at]])
                return log_price - value, -2.0 / x

            low, high = self._corner_time[rows] / some.threshold, self._last[rows] / some.threshold
            t[rows] = decreasing_root_in_rows(dearer, low, high, 0.5 * (low + high)) * some.threshold
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self._bits / (terms.bandwidth * t * np.log1p(u) / _LN2))


def _result(
    terms: EnergyTerms,
    kept: FloatArray,
    share: FloatArray,
    *,
    w: FloatArray,
    limit: float,
    out: BoolArray,
    price: float,
    gap: float,
) -> Allocation:
    """Set frequency and power to what costs least at these shares, and say what holds each device."""
    sending = kept > 0
    spent = least_energy(terms, kept, share)
    held = capacity(terms, kept)
    # At the least band that does, the capacity itself says how: rounding sends no device over its time.
    with np.errstate(divide="ignore", invalid="ignore"):
        tight = sending & (share <= band_needed(terms, kept, held) * (1 + 1e-9))
    frequency = np.where(tight, held.frequency, spent.frequency)
    power = np.where(sending, np.where(tight, held.power, spent.power), 0.0)
    ratio = np.where(sending, 1.0 - kept, 1.0)
    status = np.full(kept.shape, AllocationStatus.TIME_BOUND, dtype=np.int8)
    status[tight & (held.limit != Limit.TIME)] = AllocationStatus.ENERGY_BOUND
    status[sending & (limit < 1) & (kept <= 1.0 - limit)] = AllocationStatus.FLOOR
    status[~sending] = AllocationStatus.STARVED
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
        frequency=frequency,
        power=power,
    )


def verify_energy(
    terms: EnergyTerms, allocation: Allocation, *, weights: ArrayLike | None = None, alpha: float = 0.0
) -> Certificate:
    """Judge an allocation of `allocate_energy` (most retained weights) by its inputs and its price.

    The primal residual covers the band, each device's time and budget, and the limits of f and p.
    """
    k = terms.budget.size
    w = np.broadcast_to(non_negative("weights", 1.0 if weights is None else weights), (k,)).astype(np.float64)
    limit = float(allocation.max_pruning_ratio)
    kept = 1.0 - allocation.pruning_ratio
    out = allocation.status == AllocationStatus.INFEASIBLE
    high = np.where(out, np.nan, largest_kept(terms, 1.0))
    rows = np.flatnonzero((high > 0) & ((w > 0) | (limit < 1)))
    curve = EnergyCurve(terms.rows(rows), np.minimum(1.0 - limit, high[rows]), high[rows])
    price = float(allocation.multiplier)
    with np.errstate(divide="ignore"):
        found = Sharing(kept[rows], allocation.bandwidth_fraction[rows], float(np.log(price)))
    optional = (terms.overhead_bits[rows] > 0) & (limit == 1)
    judged = certify(Buyers(curve, w[rows], alpha), found, optional=optional if optional.any() else None)
    assert allocation.frequency is not None
    assert allocation.power is not None
    seconds, joules = round_costs(terms, allocation)
    here = ~out
    over = np.maximum.reduce(
        [
            np.where(here, seconds / np.where(here, terms.threshold, 1.0) - 1.0, 0.0),
            np.where(here & np.isfinite(terms.budget) & (terms.budget > 0), joules / terms.budget - 1.0, 0.0),
            allocation.power / terms.max_power - 1.0,
            allocation.frequency / terms.max_frequency - 1.0,
            1.0 - allocation.frequency / terms.min_frequency,
            np.zeros(k),
        ]
    )
    return replace(judged, primal=max(judged.primal, float(over.max())))


def round_costs(terms: EnergyTerms, allocation: Allocation) -> tuple[FloatArray, FloatArray]:
    """Return the seconds and joules of each device, (K,), from what is allocated alone."""
    assert allocation.frequency is not None
    assert allocation.power is not None
    kept = 1.0 - allocation.pruning_ratio
    sends = (kept > 0) & (allocation.bandwidth_fraction > 0)
    work, f = terms.cycles(kept), allocation.frequency
    rate = (
        allocation.bandwidth_fraction
        * terms.bandwidth
        * np.log1p(terms.gain_over_noise * allocation.power)
        / _LN2
    )
    bits = kept * terms.payload_bits + terms.overhead_bits
    airtime = np.zeros(kept.shape)
    np.divide(bits, rate, out=airtime, where=sends & (rate > 0))
    return work / f + airtime, terms.capacitance * work * f**2 + allocation.power * airtime


def energy_aware(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """Joint optimum over band, pruning ratio, CPU frequency and power (the policy `energy_aware`).

    Raises:
        ValueError: without the energy terms of the round, or for rates whose noise grows with the share.
    """
    if pruning_ratio is not None:
        raise ValueError(
            f"pruning_ratio = {pruning_ratio}: policy energy_aware chooses it; only fixed_ratio takes one"
        )
    if problem.energy is None or not isinstance(problem.rates, FixedNoise):
        raise ValueError(
            "policy energy_aware needs the energy terms of the round, and noise that is the same for every "
            "share (radio.noise_model=fixed)"
        )
    return allocate_energy(
        problem.energy,
        weights=problem.weights,
        alpha=problem.fairness,
        max_pruning_ratio=problem.max_pruning_ratio,
        when_infeasible=problem.when_infeasible,
        objective=problem.objective,
    )
