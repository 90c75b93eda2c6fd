"""Joint bandwidth and pruning-ratio allocation: the exact optimum, in O(K log K).

The problem of Liu et al. 2024, eqs. (45)-(58): choose bandwidth fractions b and pruning ratios rho,

    min sum_k w_k rho_k   s.t.   T0_k + (1 - rho_k)(G_k + Q_k / (b_k r_k)) [+ m_k / (b_k r_k)] <= T_th,
                                 sum_k b_k <= 1,   b_k >= 0,   0 <= rho_k <= rho_max.

Given b the least ratio is explicit, and 1 - rho_k is concave in b_k, so the KKT conditions are
sufficient. The paper drops the constraints b >= 0 and rho >= 0 between its eqs. (47) and (49), so its
(54) leaves them in most realistic rounds; here they are kept:

    b_k(lambda) = clip((sqrt(w_k r_k (D_k Q_k + m_k G_k) / lambda) - Q_k) / (r_k G_k), low_k, cap_k),

with lambda such that they sum to one (`waterfill`). r is the full-band rate, D = T_th - T0 the slack, G
the time of the dense global steps, Q the bits of the dense upload, m a charge in bits for headers
and positions that does not shrink with the ratio and is saved only by not uploading.

This fixed charge (m > 0 with rho_max = 1) makes the choice of *who* uploads combinatorial. The
concave envelope of every device's gain is then filled instead; if no device ends on the envelope's
chord this is the optimum, else at most one (several if they are identical) does. The best of three
roundings, each solved exactly for its set of uploaders, then starts a branch and bound over who uploads
(`uploaders`), which ends at the optimum; with very many devices it may stop before, and
`Allocation.gap` says how far the optimum can be. `certificates.verify_kkt` gives the duality gap
against the envelope in every case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.allocation.uploaders import choose_uploaders
from radio.allocation.waterfill import Demand, fill
from radio.arrays import BoolArray, FloatArray, choice, finite, in_unit_interval, non_negative, positive

WhenInfeasible = Literal["raise", "relax", "drop"]


class AllocationStatus(IntEnum):
    """What limits a device."""

    INTERIOR = 0  # strictly between its bounds
    SATURATED = 1  # pruning ratio 0: more bandwidth would not help it
    STARVED = 2  # bandwidth 0, pruning ratio 1: it costs more than it brings; it uploads nothing
    INFEASIBLE = 3  # left out of the global part: no slack (D <= 0), or dropped for rho_max
    FLOOR = 4  # held at max_pruning_ratio by that limit
    TIME_BOUND = 5  # under time and energy: the threshold holds it, energy is left over
    ENERGY_BOUND = 6  # under time and energy: it spends its budget


class InfeasibleAllocationError(ValueError):
    """`max_pruning_ratio` cannot be met by all feasible devices at once."""


@dataclass(frozen=True)
class Allocation:
    """Shares of one round (or of a batch of rounds).

    Attributes:
        bandwidth_fraction: (..., K) b, sums to at most 1.
        pruning_ratio: (..., K) rho in [0, 1].
        multiplier: (...) lambda, the fall of the objective per unit of bandwidth fraction; 0 where
            bandwidth is left over, NaN where no optimum was sought.
        status: (..., K) int8, `AllocationStatus` codes.
        objective: (...) sum of w rho, left-out devices counting with rho = 1.
        max_pruning_ratio: (...) the limit in force; above the one asked for after `relax`.
        gap: (...) no allocation has an objective below `objective - gap`: 0 where the optimum was found,
            NaN where none was sought.
        frequency: (..., K) CPU frequency of each device, Hz; None: its own.
        power: (..., K) transmit power of each device, W, 0 where it sends nothing; None: its own.
    """

    bandwidth_fraction: FloatArray
    pruning_ratio: FloatArray
    multiplier: FloatArray
    status: NDArray[np.int8]
    objective: FloatArray
    max_pruning_ratio: FloatArray
    gap: FloatArray
    frequency: FloatArray | None = None
    power: FloatArray | None = None

    @staticmethod
    def of_shares(
        bandwidth_fraction: ArrayLike,
        pruning_ratio: ArrayLike,
        *,
        weights: ArrayLike | None = None,
        left_out: ArrayLike = False,
        max_pruning_ratio: float = 1.0,
    ) -> Allocation:
        """Return an allocation of given shares and ratios, for policies that do not optimise.

        Args:
            bandwidth_fraction: (..., K) b.
            pruning_ratio: (..., K) rho.
            weights: (..., K) of the objective; None: 1.
            left_out: (..., K) bool, devices that take no part in the global part.
            max_pruning_ratio: the limit that was asked for.
        """
        share = np.asarray(bandwidth_fraction, dtype=np.float64)
        ratio = np.asarray(pruning_ratio, dtype=np.float64)
        status = np.full(ratio.shape, AllocationStatus.INTERIOR, dtype=np.int8)
        status[ratio <= 0] = AllocationStatus.SATURATED
        status[ratio >= 1] = AllocationStatus.STARVED
        status[np.broadcast_to(left_out, ratio.shape)] = AllocationStatus.INFEASIBLE
        batch = ratio.shape[:-1]
        nothing = np.full(batch, np.nan)[()]
        return Allocation(
            bandwidth_fraction=share,
            pruning_ratio=ratio,
            multiplier=nothing,
            status=status,
            objective=(_ones(weights) * ratio).sum(axis=-1),
            max_pruning_ratio=np.full(batch, max_pruning_ratio)[()],
            gap=nothing,
        )


def _ones(weights: ArrayLike | None) -> FloatArray:
    return np.asarray(1.0 if weights is None else weights, dtype=np.float64)


@dataclass(frozen=True)
class _Problem:
    """The validated inputs, broadcast to (M, K), with (M, 1) limit on the ratio."""

    rate: FloatArray
    slack: FloatArray
    compute: FloatArray
    bits: FloatArray
    weight: FloatArray
    overhead: FloatArray
    limit: FloatArray

    @property
    def servable(self) -> BoolArray:
        """Devices for which some share of the band gives a ratio below 1."""
        return np.asarray((self.slack > 0) & (self.rate > 0))

    def rows(self, index: NDArray[np.intp]) -> _Problem:
        return _Problem(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def least_pruning_ratio(
    bandwidth_fraction: ArrayLike,
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
    clamp: bool = True,
) -> FloatArray:
    """Return the least pruning ratio that meets the latency threshold at a given share of the band.

    rho = 1 - (b r D - m) / (b r G + Q), clamped to [0, 1] (Liu et al. 2024, eq. (47), where m = 0).

    Args:
        bandwidth_fraction: (..., K) b.
        full_band_rate: (..., K) r, bit/s.
        slack: (..., K) D, s; not positive gives 1.
        compute_time: (..., K) G, s.
        payload_bits: (..., K) Q, bits of the dense upload.
        overhead_bits: (..., K) m, bits that pruning does not save.
        clamp: False returns the value of the formula, which may leave [0, 1].

    Returns:
        (..., K) pruning ratio.
    """
    speed = np.asarray(bandwidth_fraction, dtype=np.float64) * np.asarray(full_band_rate, dtype=np.float64)
    return ratio_at_rate(speed, slack, compute_time, payload_bits, overhead_bits=overhead_bits, clamp=clamp)


def ratio_at_rate(
    rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
    clamp: bool = True,
) -> FloatArray:
    """Return the least pruning ratio at an uplink rate, (..., K) bit/s; else as `least_pruning_ratio`."""
    speed = np.asarray(rate, dtype=np.float64)
    d, g = np.asarray(slack, dtype=np.float64), np.asarray(compute_time, dtype=np.float64)
    q, m = np.asarray(payload_bits, dtype=np.float64), np.asarray(overhead_bits, dtype=np.float64)
    ratio = (q + m - speed * (d - g)) / (speed * g + q)
    if clamp:
        ratio = np.where((speed > 0) & (d > 0), np.clip(ratio, 0.0, 1.0), 1.0)
    return np.asarray(ratio)


def allocate(
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    when_infeasible: WhenInfeasible = "raise",
) -> Allocation:
    """Return the exact joint optimum of bandwidth and pruning ratio (Liu et al. 2024, eqs. (45)-(58)).

    All array arguments broadcast to (..., K); leading dimensions are independent rounds.

    Args:
        full_band_rate: (..., K) r, bit/s, >= 0.
        slack: (..., K) D = T_th - T0, s; where it is not positive the device is infeasible and left out.
        compute_time: (..., K) G, s, >= 0.
        payload_bits: (..., K) Q, bits of the dense upload, > 0.
        weights: (..., K) w >= 0 of the objective; default 1.
        max_pruning_ratio: rho_max in [0, 1]. Below 1 every device with positive slack has to upload.
        overhead_bits: (..., K) m >= 0, bits an upload costs beside its retained weights.
        when_infeasible: what to do where `max_pruning_ratio` does not fit: `raise`; `relax` to the
            least common limit that fits (1 if none does); or `drop` the device that needs the largest
            share, again and again, until the rest fits.

    Returns:
        The optimum; `status` says what limits each device.

    Raises:
        InfeasibleAllocationError: (a ValueError) under `raise`, if `max_pruning_ratio` does not fit.
        ValueError: if an argument is outside its range.
    """
    choice("when_infeasible", when_infeasible, WhenInfeasible)
    problem, shape = _prepare(
        full_band_rate,
        slack,
        compute_time,
        payload_bits,
        weights=weights,
        max_pruning_ratio=max_pruning_ratio,
        overhead_bits=overhead_bits,
    )
    dropped = ~(problem.slack > 0)
    problem, low, dropped = _settle_limit(problem, dropped, when_infeasible)
    low = np.where(dropped, 0.0, low)
    usable = problem.servable & ~dropped

    # Under a limit below 1 all devices upload, and what they pay for positions is no longer a choice.
    charged = usable & (problem.overhead > 0) & (problem.limit == 1)
    share, multiplier, partial, part = _solve(problem, low, usable, charged)
    gap = np.zeros_like(multiplier)
    loose = np.flatnonzero((partial & charged).any(axis=1))
    if loose.size:
        price = multiplier[loose]
        share[loose], multiplier[loose] = _round_uploaders(
            problem.rows(loose),
            usable[loose],
            charged[loose],
            share=share[loose],
            partial=partial[loose],
            part=part[loose],
        )
        for row, first in zip(loose.tolist(), price.tolist(), strict=True):
            one = problem.rows(np.array([row]))
            share[row], multiplier[row], gap[row] = _search_uploaders(
                one, usable[row], charged[row], share=share[row], multiplier=multiplier[row], price=first
            )
    return _result(problem, share, multiplier, gap, low=low, dropped=dropped, shape=shape)


def least_max_pruning_ratio(
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    overhead_bits: ArrayLike = 0.0,
) -> FloatArray:
    """Return the least limit on the pruning ratio that all devices with positive slack meet together.

    This is also the min-max fair ratio: at it the shares low_k(limit) use up the band. Found by bisection
    to the last bit; the value returned is on the feasible side.

    Returns:
        (...) the limit; 1 if none below 1 fits (a device with rate 0, or overhead that alone fills the
        band).
    """
    problem, shape = _prepare(full_band_rate, slack, compute_time, payload_bits, overhead_bits=overhead_bits)
    return _least_limit(problem, ~(problem.slack > 0)).reshape(shape[:-1])[()]


def _prepare(
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
) -> tuple[_Problem, tuple[int, ...]]:
    arrays = np.broadcast_arrays(
        non_negative("full_band_rate", full_band_rate),
        finite("slack", slack),
        non_negative("compute_time", compute_time),
        positive("payload_bits", payload_bits),
        non_negative("weights", 1.0 if weights is None else weights),
        non_negative("overhead_bits", overhead_bits),
    )
    shape = arrays[0].shape
    if not shape or shape[-1] == 0:
        raise ValueError(f"full_band_rate has shape {shape}; it needs a last axis with at least one device")
    limit = float(in_unit_interval("max_pruning_ratio", max_pruning_ratio))
    flat = [array.reshape(-1, shape[-1]) for array in arrays]
    flat.append(np.full((flat[0].shape[0], 1), limit))
    return _Problem(*flat), shape


def _floor(problem: _Problem, limit: FloatArray) -> FloatArray:
    """Return the share each device needs for a ratio of `limit` (M, 1); infinite where none suffices."""
    keep = 1.0 - limit
    room = problem.slack - keep * problem.compute
    low = np.full(room.shape, np.inf)
    np.divide(
        keep * problem.bits + problem.overhead,
        problem.rate * room,
        out=low,
        where=(problem.rate > 0) & (room > 0),
    )
    return low


def _least_limit(problem: _Problem, left_out: BoolArray) -> FloatArray:
    """Bisect for the least limit (M, 1) at which the floors of all others fit into the band."""
    low, high = np.zeros_like(problem.limit), np.ones_like(problem.limit)

    def fits(limit: FloatArray) -> BoolArray:
        needed = np.where(left_out, 0.0, _floor(problem, limit)).sum(axis=1, keepdims=True)
        return np.asarray(needed <= 1.0)

    high = np.where(fits(low), 0.0, high)
    while True:
        middle = 0.5 * (low + high)
        if bool(((middle <= low) | (middle >= high)).all()):
            return high
        good = fits(middle)
        high = np.where(good, middle, high)
        low = np.where(good, low, middle)


def _settle_limit(
    problem: _Problem, left_out: BoolArray, when_infeasible: WhenInfeasible
) -> tuple[_Problem, FloatArray, BoolArray]:
    """Make `max_pruning_ratio` feasible; return the problem, the floors and who is left out."""
    low = np.where(problem.limit < 1, _floor(problem, problem.limit), 0.0)
    low[left_out] = 0.0
    needed = low.sum(axis=1, keepdims=True)
    bad = needed > 1.0
    if not bad.any():
        return problem, low, left_out
    if when_infeasible == "raise":
        raise InfeasibleAllocationError(
            f"max_pruning_ratio = {problem.limit[0, 0]} cannot be met: the devices with positive slack "
            f"need {needed.max():.4g} of the band, the limit is 1. Raise max_pruning_ratio or the latency "
            "threshold, or set when_infeasible to 'relax' or 'drop'"
        )
    if when_infeasible == "drop":
        order = np.argsort(low, axis=1, kind="stable")
        fits = np.cumsum(np.take_along_axis(low, order, axis=1), axis=1) <= 1.0
        kept = np.empty_like(fits)
        np.put_along_axis(kept, order, fits, axis=1)
        return problem, np.where(kept, low, 0.0), left_out | ~kept
    relaxed = replace(problem, limit=np.where(bad, _least_limit(problem, left_out), problem.limit))
    low = np.where(relaxed.limit < 1, _floor(relaxed, relaxed.limit), 0.0)
    low[left_out] = 0.0
    return relaxed, low, left_out


def _cap(problem: _Problem) -> FloatArray:
    """Return the share at which a device needs no pruning; infinite where there is none."""
    cap = np.full(problem.rate.shape, np.inf)
    gain = problem.slack - problem.compute
    np.divide(
        problem.bits + problem.overhead,
        problem.rate * gain,
        out=cap,
        where=(problem.rate > 0) & (gain > 0),
    )
    return cap


def _solve(
    problem: _Problem, low: FloatArray, usable: BoolArray, charged: BoolArray
) -> tuple[FloatArray, FloatArray, BoolArray, FloatArray]:
    """Fill the band: concave gains above the floor `low`, concave envelopes where `charged`."""
    r, d, g, q = problem.rate, problem.slack, problem.compute, problem.bits
    w, m = problem.weight, problem.overhead
    whole = np.where(usable & (w > 0), _cap(problem), low)
    cap = np.minimum(whole, 1.0)
    low = np.minimum(low, cap)

    growth = np.where(usable, r * g / q, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        start = np.where(usable & (w > 0), q / np.sqrt(w * r * (d * q + m * g)), 1.0)
    onset, base = low.copy(), low
    on, full = start * (1 + low * growth), start * (1 + cap * growth)
    if charged.any():
        with np.errstate(divide="ignore", invalid="ignore"):
            # Where the chord from the origin touches the gain (b r D - m) / (b r G + Q).
            touch = (m + np.sqrt(m * m + d * q * m / g)) / (r * d)
            best = np.where(whole <= 1, 1.0, (r * d - m) / (r * g + q))
            useful = charged & (best > 0) & (w > 0)
            vertical = useful & (touch >= cap)
            onset = np.where(useful, np.where(vertical, cap, touch), onset)
            on = np.where(
                useful, np.where(vertical, np.sqrt(cap / (w * best)), start * (1 + touch * growth)), on
            )
        full = np.where(vertical, on, full)
        idle = charged & ~useful
        cap, whole, onset = np.where(idle, 0.0, cap), np.where(idle, 0.0, whole), np.where(idle, 0.0, onset)
        full = np.where(idle, on, full)
    still = cap <= base
    full = np.where(still, on, full)

    share, multiplier = cap.copy(), np.zeros(cap.shape[0])
    partial, part = np.zeros(cap.shape, dtype=np.bool_), np.ones(cap.shape[0])
    short = np.flatnonzero(whole.sum(axis=1) > 1.0)
    if short.size:
        every: NDArray[np.intp] | slice = slice(None) if short.size == cap.shape[0] else short
        filling = fill(Demand(base, onset, cap, start, growth, on, full).rows(every))
        share[short], partial[short], part[short] = filling.share, filling.partial, filling.part
        multiplier[short] = filling.level**-2
        # A chord that ends at the whole band, not at the device's own cap, is not the marginal gain there.
        alone = charged & (share >= 1) & (whole > 1)
        if alone.any():
            marginal = np.where(alone, w * r * (d * q + m * g) / (r * g + q) ** 2, 0.0).max(axis=1)
            multiplier = np.where(alone.any(axis=1), marginal, multiplier)
    return share, multiplier, partial, part


def _round_uploaders(
    problem: _Problem,
    usable: BoolArray,
    charged: BoolArray,
    *,
    share: FloatArray,
    partial: BoolArray,
    part: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Decide who uploads where the envelope left a device half in; every set is solved exactly."""
    least = np.where(charged, _floor(problem, np.ones_like(problem.limit)), 0.0)
    undecided = partial & charged
    decided = np.where(charged, share > 0, usable) & ~undecided
    number = np.floor(part * undecided.sum(axis=1) + 1e-9)[
        :, np.newaxis
    ]  # of identical devices: how many fit
    rank = np.cumsum(undecided, axis=1)
    equal = usable / np.maximum(usable.sum(axis=1, keepdims=True), 1)
    candidates = [
        decided | (undecided & (rank <= number)),
        decided | (undecided & (rank <= number + 1)),
        usable & (equal >= least),
    ]
    best_share, best_multiplier = np.zeros_like(share), np.zeros(share.shape[0])
    best_value = np.full(share.shape[0], -np.inf)
    none_charged = np.zeros_like(charged)
    for chosen in candidates:
        # Where the set does not fit, an empty set keeps the batch rectangular; it never wins.
        members = chosen & (np.where(chosen, least, 0.0).sum(axis=1, keepdims=True) <= 1.0)
        while True:
            low = np.where(members, least, 0.0)
            b, multiplier, _, _ = _solve(problem, low, members, none_charged)
            # Who only breaks even occupies band for nothing.
            idle = members & charged & (b <= low)
            if not idle.any():
                break
            members = members & ~idle
        value = (problem.weight * (1 - _ratio(problem, b))).sum(axis=1)
        better = value > best_value
        best_value = np.where(better, value, best_value)
        best_share = np.where(better[:, np.newaxis], b, best_share)
        best_multiplier = np.where(better, multiplier, best_multiplier)
    return best_share, best_multiplier


def _search_uploaders(
    problem: _Problem,
    usable: BoolArray,
    charged: BoolArray,
    *,
    share: FloatArray,
    multiplier: float,
    price: float,
) -> tuple[FloatArray, float, float]:
    """Improve on one rounding, (K,), if any choice of uploaders does; return shares, multiplier and gap."""
    gains = _FixedNoiseGains(problem, charged)
    inputs = (problem.rate, problem.slack, problem.compute, problem.bits, problem.overhead, problem.weight)
    kinds = np.unique(np.concatenate(inputs).T, axis=0, return_inverse=True)[1].reshape(-1)
    found = choose_uploaders(
        gains,
        usable & (gains.least_share <= 1),
        kinds,
        scale=float(problem.weight.sum()),
        price=price,
        known=[share > 0],
    )
    rounded = float((problem.weight * (1 - _ratio(problem, share[np.newaxis]))).sum())
    # A rounding that is as good stays as it is, to the last bit.
    if found.gain <= rounded + 1e-10 * float(problem.weight.sum()):
        return share, multiplier, found.gap
    return found.share, found.multiplier, found.gap


class _FixedNoiseGains:
    """What `radio.allocation.uploaders` asks of one round, a problem of a single row."""

    def __init__(self, problem: _Problem, charged: BoolArray) -> None:
        self._problem = problem
        self._charged = charged
        low = _floor(problem, np.ones_like(problem.limit))[0]
        self.least_share: FloatArray = np.where(charged, low, 0.0)
        self._cap = np.maximum(np.minimum(_cap(problem)[0], 1.0), np.minimum(self.least_share, 1.0))

    def respond(self, price: float) -> tuple[FloatArray, FloatArray]:
        """Return b_k(lambda) of the module text for an upload, and w y - lambda b there."""
        p = self._problem
        r, d, g, q, m, w = (a[0] for a in (p.rate, p.slack, p.compute, p.bits, p.overhead, p.weight))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # c (sqrt(y'(0) / lambda) - 1); where g = 0 the gain is linear and an end is best.
            root = np.sqrt(w * r * np.maximum(d * q + m * g, 0.0) / price) / q - 1.0
            root = np.where(np.isnan(root), -1.0, root)
            inner = np.where(g > 0, root * (q / (r * g)), np.where(root > 0, np.inf, -np.inf))
        share = np.clip(np.nan_to_num(inner, nan=0.0), self.least_share.clip(max=1.0), self._cap)
        gain = np.minimum((share * r * d - m) / (share * r * g + q), 1.0)
        return share, w * gain - price * share

    def share_out(self, members: BoolArray) -> tuple[FloatArray, float, float]:
        """Solve exactly; who only breaks even occupies band for nothing and is left out."""
        problem, none_charged = self._problem, np.zeros_like(members)[np.newaxis]
        members = members[np.newaxis]
        while True:
            low = np.where(members, self.least_share, 0.0)
            share, multiplier, _, _ = _solve(problem, low, members, none_charged)
            idle = members & self._charged & (share <= low)
            if not idle.any():
                break
            members = members & ~idle
        gain = float((problem.weight * (1 - _ratio(problem, share))).sum())
        return share[0], float(multiplier[0]), gain


def _ratio(problem: _Problem, share: FloatArray) -> FloatArray:
    return least_pruning_ratio(
        share, problem.rate, problem.slack, problem.compute, problem.bits, overhead_bits=problem.overhead
    )


def _result(
    problem: _Problem,
    share: FloatArray,
    multiplier: FloatArray,
    gap: FloatArray,
    *,
    low: FloatArray,
    dropped: BoolArray,
    shape: tuple[int, ...],
) -> Allocation:
    floored = (low > 0) & (share <= low)
    ratio = np.where(floored, np.minimum(problem.limit, 1.0), _ratio(problem, share))
    ratio = np.where(problem.limit < 1, np.where(dropped, 1.0, np.minimum(ratio, problem.limit)), ratio)
    # At the cap the ratio is zero by definition; the quotient may leave a rounding error there.
    ratio = np.where((share > 0) & (share >= _cap(problem)), 0.0, ratio)
    status = np.full(share.shape, AllocationStatus.INTERIOR, dtype=np.int8)
    status[floored] = AllocationStatus.FLOOR
    status[share <= 0] = AllocationStatus.STARVED
    status[ratio <= 0] = AllocationStatus.SATURATED
    status[dropped] = AllocationStatus.INFEASIBLE
    batch = shape[:-1]
    return Allocation(
        bandwidth_fraction=share.reshape(shape),
        pruning_ratio=ratio.reshape(shape),
        multiplier=multiplier.reshape(batch)[()],
        status=status.reshape(shape),
        objective=(problem.weight * ratio).sum(axis=1).reshape(batch)[()],
        max_pruning_ratio=problem.limit[:, 0].reshape(batch)[()],
        gap=gap.reshape(batch)[()],
    )
