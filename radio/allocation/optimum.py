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
chord this is the optimum, else at most one (several if they are identical) does. The price of the
envelope then starts a branch and bound over who uploads (`uploaders`), which ends at the optimum; should
too many choices be as good it stops before, and `Allocation.gap` says how far the optimum can be.
`certificates.verify_kkt` gives the duality gap against the envelope in every case.
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
    share, multiplier, partial = _solve(problem, low, usable, charged)
    gap = np.zeros_like(multiplier)
    loose = np.flatnonzero((partial & charged).any(axis=1))
    for row in loose.tolist():
        share[row], multiplier[row], gap[row] = _search_uploaders(
            problem.rows(np.array([row])), usable[row], charged[row], price=multiplier[row]
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
) -> tuple[FloatArray, FloatArray, BoolArray]:
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
    partial = np.zeros(cap.shape, dtype=np.bool_)
    short = np.flatnonzero(whole.sum(axis=1) > 1.0)
    if short.size:
        every: NDArray[np.intp] | slice = slice(None) if short.size == cap.shape[0] else short
        filling = fill(Demand(base, onset, cap, start, growth, on, full).rows(every))
        share[short], partial[short] = filling.share, filling.partial
        multiplier[short] = filling.level**-2
        # A chord that ends at the whole band, not at the device's own cap, is not the marginal gain there.
        alone = charged & (share >= 1) & (whole > 1)
        if alone.any():
            marginal = np.where(alone, w * r * (d * q + m * g) / (r * g + q) ** 2, 0.0).max(axis=1)
            multiplier = np.where(alone.any(axis=1), marginal, multiplier)
    return share, multiplier, partial


def _search_uploaders(
    problem: Problem, usable: BoolArray, charged: BoolArray, *, price: float
) -> tuple[FloatArray, float, float]:
    """Decide who uploads in one round, where the envelope left a device half in.

    Args:
        problem: of a single row.
        usable, charged: (K,).
        price: the multiplier of the envelope.

    Returns:
        Shares (K,), multiplier and gap.
    """
    gains = _FixedNoiseGains(problem, charged)
    found = choose_uploaders(
        gains,
        usable & (gains.least_share <= 1),
        scale=float(problem.weight.sum()),
        price=price,
        merits=gains.merits(),
    )
    return found.share, found.multiplier, found.gap


class _FixedNoiseGains:
    """What `radio.allocation.uploaders` asks of one round, a problem of a single row."""

    def __init__(self, problem: Problem, charged: BoolArray) -> None:
        self._problem = problem
        self._charged = charged
        low = floor(problem, np.ones_like(problem.limit))[0]
        self.least_share: FloatArray = np.where(charged, low, 0.0)
        self._low = np.minimum(self.least_share, 1.0)
        self._cap = np.maximum(np.minimum(cap_of(problem)[0], 1.0), self._low)
        r, d, g = problem.rate[0], problem.slack[0], problem.compute[0]
        self._weight, self._bits, self._overhead = problem.weight[0], problem.bits[0], problem.overhead[0]
        self._r_d, self._r_g = r * d, r * g
        self._q2_slope = r * (d * self._bits + self._overhead * g)  # q^2 y'(0)
        with np.errstate(divide="ignore"):
            self._reach = self._bits / self._r_g
        self._root = np.sqrt(self._weight * np.maximum(self._q2_slope, 0.0)) / self._bits

    def merits(self) -> FloatArray:
        """Return what decides between two devices with the same Q and m: w, y'(0) and y(1), (K, 7).

        (y_j - y_k) (b r_j G_j + Q) (b r_k G_k + Q) / b is linear in b, so that it is nowhere negative if it
        is not at either end.
        """
        q, m = self._bits, self._overhead
        whole = (self._r_d - m) / (self._r_g + q)
        return np.array([self._weight, self._q2_slope, whole, q, -q, m, -m]).T

    def profits(self, prices: FloatArray) -> FloatArray:
        """Return w y - lambda b at J prices, (J, K)."""
        return self.respond(prices[:, np.newaxis])[1]

    def respond(self, price: float | FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return b_k(lambda) of the module text for an upload, and w y - lambda b there."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            # Where g = 0 the gain is linear and an end is best. What is not a number brings nothing.
            inner = (self._root / np.sqrt(price) - 1.0) * self._reach
        share = np.fmin(np.fmax(inner, self._low), self._cap)
        gain = np.minimum((share * self._r_d - self._overhead) / (share * self._r_g + self._bits), 1.0)
        return share, self._weight * gain - price * share

    def share_out(self, members: BoolArray) -> tuple[FloatArray, float, float]:
        """Solve exactly; who only breaks even occupies band for nothing and is left out."""
        problem, none_charged = self._problem, np.zeros_like(members)[np.newaxis]
        members = members[np.newaxis]
        while True:
            low = np.where(members, self.least_share, 0.0)
            share, multiplier, _ = _solve(problem, low, members, none_charged)
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
