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
(`uploaders`), which ends at the optimum; should too many choices be as good it stops before, and
`Allocation.gap` says how far the optimum can be. `certificates.verify_kkt` gives the duality gap
against the envelope in every case.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.allocation.problem import Problem, cap_of, floor, least_limit, prepare, ratio_of, settle_limit
from radio.allocation.shares import Allocation, AllocationStatus, WhenInfeasible
from radio.allocation.uploaders import choose_uploaders
from radio.allocation.waterfill import Demand, fill
from radio.arrays import BoolArray, FloatArray, choice


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
    problem, shape = prepare(
        full_band_rate,
        slack,
        compute_time,
        payload_bits,
        weights=weights,
        max_pruning_ratio=max_pruning_ratio,
        overhead_bits=overhead_bits,
    )
    dropped = ~(problem.slack > 0)
    problem, low, dropped = settle_limit(problem, dropped, when_infeasible)
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
    problem, shape = prepare(full_band_rate, slack, compute_time, payload_bits, overhead_bits=overhead_bits)
    return least_limit(problem, ~(problem.slack > 0)).reshape(shape[:-1])[()]


def _solve(
    problem: Problem, low: FloatArray, usable: BoolArray, charged: BoolArray
) -> tuple[FloatArray, FloatArray, BoolArray, FloatArray]:
    """Fill the band: concave gains above the floor `low`, concave envelopes where `charged`."""
    r, d, g, q = problem.rate, problem.slack, problem.compute, problem.bits
    w, m = problem.weight, problem.overhead
    whole = np.where(usable & (w > 0), cap_of(problem), low)
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
    problem: Problem,
    usable: BoolArray,
    charged: BoolArray,
    *,
    share: FloatArray,
    partial: BoolArray,
    part: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Decide who uploads where the envelope left a device half in; every set is solved exactly."""
    least = np.where(charged, floor(problem, np.ones_like(problem.limit)), 0.0)
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
        value = (problem.weight * (1 - ratio_of(problem, b))).sum(axis=1)
        better = value > best_value
        best_value = np.where(better, value, best_value)
        best_share = np.where(better[:, np.newaxis], b, best_share)
        best_multiplier = np.where(better, multiplier, best_multiplier)
    return best_share, best_multiplier


def _search_uploaders(
    problem: Problem,
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
    rounded = float((problem.weight * (1 - ratio_of(problem, share[np.newaxis]))).sum())
    # A rounding that is as good stays as it is, to the last bit.
    if found.gain <= rounded + 1e-10 * float(problem.weight.sum()):
        return share, multiplier, found.gap
    return found.share, found.multiplier, found.gap


class _FixedNoiseGains:
    """What `radio.allocation.uploaders` asks of one round, a problem of a single row."""

    def __init__(self, problem: Problem, charged: BoolArray) -> None:
        self._problem = problem
        self._charged = charged
        low = floor(problem, np.ones_like(problem.limit))[0]
        self.least_share: FloatArray = np.where(charged, low, 0.0)
        self._cap = np.maximum(np.minimum(cap_of(problem)[0], 1.0), np.minimum(self.least_share, 1.0))

    def profits(self, prices: FloatArray) -> FloatArray:
        """Return w y - lambda b at J prices, (J, K)."""
        return self.respond(prices[:, np.newaxis])[1]

    def respond(self, price: float | FloatArray) -> tuple[FloatArray, FloatArray]:
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
        gain = float((problem.weight * (1 - ratio_of(problem, share))).sum())
        return share[0], float(multiplier[0]), gain


def _result(
    problem: Problem,
    share: FloatArray,
    multiplier: FloatArray,
    gap: FloatArray,
    *,
    low: FloatArray,
    dropped: BoolArray,
    shape: tuple[int, ...],
) -> Allocation:
    floored = (low > 0) & (share <= low)
    ratio = np.where(floored, np.minimum(problem.limit, 1.0), ratio_of(problem, share))
    ratio = np.where(problem.limit < 1, np.where(dropped, 1.0, np.minimum(ratio, problem.limit)), ratio)
    # At the cap the ratio is zero by definition; the quotient may leave a rounding error there.
    ratio = np.where((share > 0) & (share >= cap_of(problem)), 0.0, ratio)
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
