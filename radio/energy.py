"""Energy of one round, and what a device can send within a time and a budget of joules.

With the share y = 1 - rho of the global weights that a device keeps, the cycles W(y) = c0 + y c1, the CPU
frequency f in [f_min, f_max] and the transmit power p in (0, p_max], a device that sends n bits per hertz of
its share of the band in t seconds needs

    time     W / f + t,
    energy   kappa W f^2 + p t,         n = t log2(1 + g p),     g = h / sigma^2

(Burd and Brodersen 1996 for the processor; Yang et al. 2021, arXiv 1911.02417, for the sum; kappa is the
effective switched capacitance). The broadcast costs nothing.

*Capacity.* The most bits per hertz that a device can send beside its computing, within T and E, is

    R(y) = max_t  t log2(1 + g min(e(t, y) / t, p_max)),    e(t, y) = E - kappa W^3 / (T - t)^2.

e is jointly concave in (t, y), so R is concave and falling, and the least share of a band of B hertz,
b(y) = (y Q + m) / (B R(y)), is convex: the share of the weights that a share of the band buys is concave.

*Least energy.* For given bits per hertz, kappa W max(f_min, W / (T - t))^2 + t (2^(n / t) - 1) / g is convex
in t. Both are one scalar problem per device, whose stationary point has
2 kappa f^3 = ((1 + u) ln(1 + u) - u) / g with u = g p: a joule buys as much time by computing faster as by
sending harder.

One file, long as it is: one set of formulas over the same terms, each a few lines with its derivation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import BoolArray, FloatArray, finite, non_negative, positive
from radio.roots import decreasing_root_in_rows

_LN2 = float(np.log(2.0))
CAPACITANCE = 1e-28  # J s^2 per cycle: the usual effective switched capacitance


def compute_energy(
    cycles: ArrayLike, frequency: ArrayLike, capacitance: ArrayLike = CAPACITANCE
) -> FloatArray:
    """Return kappa W f^2, in J, of W cycles at f Hz; any shapes that broadcast."""
    work = non_negative("cycles", cycles)
    return np.asarray(non_negative("capacitance", capacitance) * work * positive("frequency", frequency) ** 2)


def transmit_energy(power: ArrayLike, airtime: ArrayLike) -> FloatArray:
    """Return p t, in J, of p W over t s; any shapes that broadcast. No airtime costs nothing."""
    return np.asarray(non_negative("power", power) * non_negative("airtime", airtime))


class Limit(IntEnum):
    """What holds a device at its capacity."""

    TIME = 0  # f_max and p_max: energy is left over
    POWER = 1  # the budget is spent at p_max
    INNER = 2  # the budget is spent at an f and p within their bounds
    SLOW = 3  # the budget is spent at f_min
    FAST = 4  # the budget is spent at f_max
    NOTHING = 5  # computing alone takes all the time or more than the budget


@dataclass(frozen=True, eq=False)
class EnergyTerms:
    """What decides a device's round under time and energy, in SI units; all but `bandwidth` are (K,).

    Attributes:
        fixed_cycles: c0, what pruning cannot save.
        global_cycles: c1, of the dense global steps.
        payload_bits: Q, of the dense upload.
        overhead_bits: m, of an upload beside its retained weights.
        gain_over_noise: g = h / sigma^2, 1/W.
        max_power: p_max, W.
        min_frequency, max_frequency: f_min and f_max, Hz.
        threshold: T, s.
        budget: E, J; infinite: no limit.
        capacitance: kappa, J s^2.
        bandwidth: B, Hz.
    """

    fixed_cycles: FloatArray
    global_cycles: FloatArray
    payload_bits: FloatArray
    overhead_bits: FloatArray
    gain_over_noise: FloatArray
    max_power: FloatArray
    min_frequency: FloatArray
    max_frequency: FloatArray
    threshold: FloatArray
    budget: FloatArray
    capacitance: FloatArray
    bandwidth: float

    @staticmethod
    def of(
        *,
        fixed_cycles: ArrayLike,
        global_cycles: ArrayLike,
        payload_bits: ArrayLike,
        gain_over_noise: ArrayLike,
        bandwidth: float,
        max_power: ArrayLike,
        max_frequency: ArrayLike,
        threshold: ArrayLike,
        budget: ArrayLike = np.inf,
        min_frequency: ArrayLike | None = None,
        capacitance: ArrayLike = CAPACITANCE,
        overhead_bits: ArrayLike = 0.0,
    ) -> EnergyTerms:
        """Return checked terms of one shape (K,). Without `min_frequency` it is a thousandth of the largest.

        Raises:
            ValueError: naming the argument that is outside its range.
        """
        top = positive("max_frequency", max_frequency)
        least = 1e-3 * top if min_frequency is None else positive("min_frequency", min_frequency)
        joules = np.asarray(budget, dtype=np.float64)
        if np.isnan(joules).any() or (joules < 0).any():
            raise ValueError(f"budget = {joules.min()} must be >= 0, or infinite")
        arrays = np.broadcast_arrays(
            non_negative("fixed_cycles", fixed_cycles),
            non_negative("global_cycles", global_cycles),
            positive("payload_bits", payload_bits),
            non_negative("overhead_bits", overhead_bits),
            non_negative("gain_over_noise", gain_over_noise),
            positive("max_power", max_power),
            least,
            top,
            finite("threshold", threshold),
            joules,
            non_negative("capacitance", capacitance),
        )
        if (arrays[6] > arrays[7]).any():
            raise ValueError(
                f"min_frequency = {arrays[6].max()} must not exceed max_frequency = {arrays[7].min()}"
            )
        if arrays[0].ndim > 1:
            raise ValueError(f"the terms have shape {arrays[0].shape}; one number per device is needed")
        flat = [np.atleast_1d(np.array(array, dtype=np.float64)) for array in arrays]
        names = [field.name for field in fields(EnergyTerms) if field.name != "bandwidth"]
        every = dict(zip(names, flat, strict=True))
        return EnergyTerms(bandwidth=float(positive("bandwidth", bandwidth)), **every)

    def rows(self, index: NDArray[np.intp] | BoolArray) -> EnergyTerms:
        """Return the terms of some devices, in that order."""
        names = [field.name for field in fields(self) if field.name != "bandwidth"]
        return EnergyTerms(bandwidth=self.bandwidth, **{name: getattr(self, name)[index] for name in names})

    def cycles(self, kept: ArrayLike) -> FloatArray:
        """Return W(y) = c0 + y c1."""
        return np.asarray(self.fixed_cycles + np.asarray(kept) * self.global_cycles)

    @property
    def standby_energy(self) -> FloatArray:
        """Return the least energy of c0 alone within the threshold, J; infinite where it does not fit."""
        slowest = np.where(
            self.threshold > 0, self.fixed_cycles / np.where(self.threshold > 0, self.threshold, 1), np.inf
        )
        fits = (self.threshold > 0) & (slowest <= self.max_frequency)
        f = np.maximum(np.where(fits, slowest, 0.0), self.min_frequency)
        return np.where(fits, self.capacitance * self.fixed_cycles * f**2, np.inf)

    @property
    def energy_switch(self) -> FloatArray:
        """Return the y at which f_max and p_max just spend the budget: R(y) has a kink there; NaN: none."""
        p, f = self.max_power, self.max_frequency
        with np.errstate(divide="ignore", invalid="ignore"):
            cycles = (self.budget - p * self.threshold) / (self.capacitance * f**2 - p / f)
            kept = (cycles - self.fixed_cycles) / self.global_cycles
        return np.where(np.isfinite(kept), kept, np.nan)


@dataclass(frozen=True, eq=False)
class Capacity:
    """The most bits per hertz beside computing, and how; all (K,).

    Attributes:
        bits: R(y), bit/Hz; 0 where nothing can be sent.
        slope, bend: its first and second derivative in y.
        airtime: t, s.
        frequency: f, Hz.
        power: p, W.
        limit: `Limit` codes.
    """

    bits: FloatArray
    slope: FloatArray
    bend: FloatArray
    airtime: FloatArray
    frequency: FloatArray
    power: FloatArray
    limit: NDArray[np.int8]


def capacity(
    terms: EnergyTerms,
    kept: FloatArray,
    *,
    bound: BoolArray | None = None,
    near: FloatArray | None = None,
) -> Capacity:
    """Return R(y) of every device with its derivatives.

    Args:
        terms: of K devices.
        kept: (K,) y >= 0.
        bound: (K,) at the kink `EnergyTerms.energy_switch`: whether the derivatives are those of the side on
            which the energy binds. None: as the numbers say.
        near: (K,) where to look for the airtimes first, s; NaN: nowhere.
    """
    work = terms.cycles(kept)
    span, kappa, g, p_max = terms.threshold, terms.capacitance, terms.gain_over_noise, terms.max_power
    full = work / terms.max_frequency
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        last = span - full  # the longest airtime: f_max
        slowest = np.maximum(terms.min_frequency, np.where(span > 0, work / span, np.inf))
        first = np.maximum(span - work / terms.min_frequency, 0.0)  # longer than this only by more joules
        left_last = terms.budget - kappa * work * terms.max_frequency**2
        left_first = terms.budget - kappa * work * slowest**2
        spare = left_last >= p_max * last if bound is None else ~bound
    able = (last > 0) & (left_first > 0) & (g > 0)
    free = able & spare
    airtime, frequency, power = np.zeros_like(work), terms.max_frequency.copy(), np.zeros_like(work)
    limit = np.where(free, Limit.TIME, Limit.NOTHING).astype(np.int8)
    airtime[free], power[free] = last[free], p_max[free]
    rows = np.flatnonzero(able & ~spare)
    if rows.size:
        some = terms.rows(rows)
        airtime[rows], limit[rows] = _spend(
            some,
            work[rows],
            first[rows],
            last[rows],
            left_first[rows],
            np.full(rows.size, np.nan) if near is None else near[rows],
        )
        t = airtime[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            f = np.clip(work[rows] / (span[rows] - t), some.min_frequency, some.max_frequency)
            f = np.where(limit[rows] == Limit.SLOW, some.min_frequency, f)
            f = np.where(limit[rows] == Limit.FAST, some.max_frequency, f)
            p = np.clip((some.budget - some.capacitance * work[rows] * f**2) / t, 0.0, some.max_power)
        power[rows] = np.where(limit[rows] == Limit.POWER, some.max_power, np.where(t > 0, p, 0.0))
        frequency[rows] = np.where(work[rows] > 0, f, some.min_frequency)
    bits = airtime * np.log1p(g * power) / _LN2
    slope, bend = _derivatives(terms, work, airtime, frequency, power, limit)
    return Capacity(bits, slope, bend, airtime, frequency, power, limit)


def _spend(
    terms: EnergyTerms,
    work: FloatArray,
    first: FloatArray,
    last: FloatArray,
    left_first: FloatArray,
    near: FloatArray,
) -> tuple[FloatArray, NDArray[np.int8]]:
    """Return the best airtime where the budget binds, and what holds it there."""
    span, kappa, p_max = terms.threshold, terms.capacitance, terms.max_power
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where computing alone spends the budget; what is sent has to end before.
        dry = span - np.sqrt(kappa * work**3 / terms.budget)
        dry = np.where(np.isfinite(dry), dry, last)
    right, fast = np.minimum(last, dry), last <= dry
    right = np.maximum(right, first)
    left, at_power = first.copy(), np.zeros(work.shape, dtype=np.bool_)
    loud = np.flatnonzero((left_first >= p_max * first) & (right > first))
    if loud.size:
        left[loud] = _full_power_airtime(terms.rows(loud), work[loud], first[loud], right[loud], near[loud])
        at_power[loud] = True
        left = np.minimum(left, right)

    def balance(t: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        """ln of the worth of a second of airtime over that of computing time; falling."""
        tc = span[rows] - t
        w, g, k = work[rows], terms.gain_over_noise[rows], kappa[rows]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            f = w / tc
            e = terms.budget[rows] - k * w * f * f
            u = g * e / t
            worth = worth_of_power(u)
            # 1e-300: where computing costs nothing, airtime is always worth more
            value = np.log(worth) - np.log(np.maximum(2 * k * g * f**3, 1e-300))
            slope = np.log1p(u) / worth * (-2 * k * f**3 * g * t - g * e) / (t * t) - 3 / tc
        value = np.where(e <= 0, -np.inf, value)
        return value, slope

    everyone = np.arange(work.size)
    stay = balance(left, everyone)[0] <= 0
    go = ~stay & fast
    go[go] = balance(right[go], everyone[go])[0] >= 0
    # Where f_max and p_max together just spend the budget, both ends are one and the balance says which of
    # the two gives way.
    stay |= (left >= right) & ~go
    airtime = np.where(stay, left, right)
    inner = np.flatnonzero(~stay & ~go)
    if inner.size:
        scale = span[inner]

        def scaled(x: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
            value, slope = balance(x * scale[rows], inner[rows])
            return value, slope * scale[rows]

        start = np.where(
            (near[inner] > left[inner]) & (near[inner] < right[inner]),
            near[inner],
            0.5 * (left[inner] + right[inner]),
        )
        x = decreasing_root_in_rows(scaled, left[inner] / scale, right[inner] / scale, start / scale)
        airtime[inner] = np.clip(x * scale, left[inner], right[inner])
    limit = np.full(work.shape, Limit.INNER, dtype=np.int8)
    limit[stay] = np.where(at_power[stay], Limit.POWER, Limit.SLOW)
    limit[go] = Limit.FAST
    limit[stay & ~at_power & (left <= 0)] = Limit.NOTHING
    return airtime, limit


def _full_power_airtime(
    terms: EnergyTerms, work: FloatArray, low: FloatArray, high: FloatArray, near: FloatArray
) -> FloatArray:
    """Return the longest airtime at p_max that the budget allows: e(t) = p_max t."""
    span, kappa = terms.threshold, terms.capacitance

    def left_over(x: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        t, whole = x * span[rows], terms.max_power[rows] * span[rows]
        f = work[rows] / (span[rows] - t)
        k = kappa[rows]
        value = terms.budget[rows] - k * work[rows] * f * f - terms.max_power[rows] * t
        return value / whole, (-2 * k * f**3 - terms.max_power[rows]) * span[rows] / whole

    # Concave and falling: from the right, Newton's steps never pass the root, from the left only the first.
    start = np.where((near > low) & (near < high), near, high)
    x = decreasing_root_in_rows(left_over, low / span, high / span, start / span)
    return np.clip(x * span, low, high)


def worth_of_power(u: FloatArray) -> FloatArray:
    """Return (1 + u) ln(1 + u) - u, by its series where the difference would cancel; any shape."""
    small = np.minimum(u, 1e-2)
    series = (
        small
        * small
        * (1 / 2 - small * (1 / 6 - small * (1 / 12 - small * (1 / 20 - small * (1 / 30 - small / 42)))))
    )
    return np.where(u < 1e-2, series, (1 + u) * np.log1p(u) - u)


def _derivatives(
    terms: EnergyTerms,
    work: FloatArray,
    t: FloatArray,
    f: FloatArray,
    p: FloatArray,
    limit: NDArray[np.int8],
) -> tuple[FloatArray, FloatArray]:
    """Return dR/dy and d2R/dy2, each by what holds the device.

    R = max_t phi(t, e(t, W)) with phi(t, e) = t log2(1 + g e / t). At the f bounds t = T - W/f moves with W,
    at p_max t solves e(t, W) = p_max t, and inside the envelope theorem takes t for fixed.
    """
    g, k, c1 = terms.gain_over_noise, terms.capacitance, terms.global_cycles
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        u = g * p
        whole = np.log1p(u) / _LN2
        by_energy = g / ((1 + u) * _LN2)
        by_time = whole - u / ((1 + u) * _LN2)
        sharp = 1.0 / (t * (1 + u) ** 2 * _LN2)  # of the rank-one Hessian of phi
        tc = terms.threshold - t
        # Time alone: t = T - W / f_max.
        slope = np.where(limit == Limit.TIME, -whole / f, -by_time / f - by_energy * k * f**2)
        bend = np.where(limit == Limit.TIME, 0.0, -((g * k * f**2 - u / f) ** 2) * sharp)
        # The curvatures of e(t, W) = E - k W^3 / (T - t)^2.
        e_t, e_w = -2 * k * f**3, -3 * k * f**2
        e_tt, e_tw, e_ww = -6 * k * f**3 / tc, -6 * k * f**2 / tc, -6 * k * f / tc
        tt = -((u - g * e_t) ** 2) * sharp + by_energy * e_tt
        tw = (u - g * e_t) * g * e_w * sharp + by_energy * e_tw
        ww = -((g * e_w) ** 2) * sharp + by_energy * e_ww
        bend = np.where(limit == Limit.INNER, ww - tw**2 / tt, bend)
        # Full power: the airtime itself is what is left.
        fall = e_t - p
        moves = -e_w / fall
        turns = -(e_ww + 2 * e_tw * moves + e_tt * moves**2) / fall
        slope = np.where(limit == Limit.POWER, moves * whole, slope)
        bend = np.where(limit == Limit.POWER, turns * whole, bend)
    idle = limit == Limit.NOTHING
    return np.where(idle, 0.0, slope) * c1, np.where(idle, 0.0, bend) * c1**2


def band_needed(terms: EnergyTerms, kept: FloatArray, found: Capacity | None = None) -> FloatArray:
    """Return b(y) = (y Q + m) / (B R(y)), (K,): the least share of the band; infinite where none does."""
    bits = kept * terms.payload_bits + terms.overhead_bits
    per_band = terms.bandwidth * (found or capacity(terms, kept)).bits
    needed = np.full(bits.shape, np.inf)
    np.divide(bits, per_band, out=needed, where=per_band > 0)
    return np.where((bits == 0) & (per_band > 0), 0.0, needed)


def largest_kept(terms: EnergyTerms, bandwidth_fraction: ArrayLike) -> FloatArray:
    """Return y(b; E), (K,): the largest share of the weights, at most 1, that fits time, budget and band.

    NaN where not even an upload of no weight fits.
    """
    share = np.broadcast_to(np.asarray(bandwidth_fraction, dtype=np.float64), terms.budget.shape)

    def room(y: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        some = terms.rows(rows)
        found = capacity(some, y)
        scale = some.payload_bits + some.overhead_bits
        value = (
            share[rows] * some.bandwidth * found.bits - y * some.payload_bits - some.overhead_bits
        ) / scale
        return value, (share[rows] * some.bandwidth * found.slope - some.payload_bits) / scale

    everyone = np.arange(share.size)
    top = np.minimum(most_cycles(terms), 1.0)
    kept = np.zeros(share.shape)
    open_ = top >= 0
    open_[open_] = room(np.zeros(int(open_.sum())), everyone[open_])[0] >= 0
    full = open_ & (top >= 1)
    full[full] = room(np.ones(int(full.sum())), everyone[full])[0] >= 0
    kept[full] = 1.0
    rows = np.flatnonzero(open_ & ~full)
    if rows.size:
        kept[rows] = decreasing_root_in_rows(
            lambda y, some: room(y, rows[some]), np.zeros(rows.size), top[rows], top[rows]
        )
    return np.where(open_, kept, np.nan)


def most_cycles(terms: EnergyTerms) -> FloatArray:
    """Return the y at which computing alone fills the time or spends the budget (may be < 0 or infinite)."""
    span, kappa = terms.threshold, terms.capacitance
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        by_time = np.where(span > 0, span * terms.max_frequency, -np.inf)
        slow = terms.budget / (kappa * terms.min_frequency**2)
        fast = np.cbrt(terms.budget * np.maximum(span, 0.0) ** 2 / kappa)
        by_energy = np.where(
            slow <= terms.min_frequency * span, slow, np.maximum(fast, terms.min_frequency * span)
        )
        by_energy = np.where(np.isnan(by_energy), np.inf, by_energy)
        room = np.minimum(by_time, by_energy) - terms.fixed_cycles
        return np.where(
            terms.global_cycles > 0, room / terms.global_cycles, np.where(room >= 0, np.inf, -np.inf)
        )


@dataclass(frozen=True, eq=False)
class LeastEnergy:
    """How an upload costs least; all (K,).

    Attributes:
        compute, transmit: J; infinite where the upload does not fit.
        airtime: s.
        frequency: Hz.
        power: W.
        slope: of the whole energy in the share of the band, J; not positive.
    """

    compute: FloatArray
    transmit: FloatArray
    airtime: FloatArray
    frequency: FloatArray
    power: FloatArray
    slope: FloatArray

    @property
    def total(self) -> FloatArray:
        """Return computing and sending together, J."""
        return np.asarray(self.compute + self.transmit)


def least_energy(terms: EnergyTerms, kept: ArrayLike, bandwidth_fraction: ArrayLike) -> LeastEnergy:
    """Return the least energy with which each device keeps y and sends it over its share b within T.

    The budget plays no part. A device with y = 0 sends nothing and only computes c0.

    Args:
        terms: of K devices.
        kept: (K,) y.
        bandwidth_fraction: (K,) b.
    """
    y, b = np.broadcast_arrays(np.asarray(kept, dtype=np.float64), np.asarray(bandwidth_fraction, np.float64))
    y, b = np.broadcast_to(y, terms.budget.shape), np.broadcast_to(b, terms.budget.shape)
    work, span, g, k = terms.cycles(y), terms.threshold, terms.gain_over_noise, terms.capacitance
    sends = y > 0
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        bits = np.where(sends, (y * terms.payload_bits + terms.overhead_bits) / (b * terms.bandwidth), 0.0)
        last = span - work / terms.max_frequency
        loudest = np.log1p(g * terms.max_power) / _LN2
        first = np.maximum(np.where(sends, bits / loudest, 0.0), span - work / terms.min_frequency)
        fits = np.where(sends, (first <= last * (1 + 1e-12)) & (last > 0) & (b > 0) & (g > 0), last >= 0)
        # A share that was computed to need all the time may miss it by rounding.
        first = np.minimum(first, last)

    def balance(x: FloatArray, rows: NDArray[np.intp]) -> tuple[FloatArray, FloatArray]:
        t = x * span[rows]
        tc = span[rows] - t
        s = bits[rows] * _LN2 / t
        u = np.expm1(s)
        worth = worth_of_power(u)
        f = work[rows] / tc
        value = np.log(worth) - np.log(np.maximum(2 * k[rows] * g[rows] * f**3, 1e-300))
        slope = -(s * (1 + u) * s / t) / worth - 3 / tc
        return value, slope * span[rows]

    airtime = np.where(sends & fits, first, 0.0)
    rows = np.flatnonzero(sends & fits & (work > 0) & (last > first))
    if rows.size:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            low, high = first[rows] / span[rows], last[rows] / span[rows]
            x = decreasing_root_in_rows(lambda x, some: balance(x, rows[some]), low, high, low)
        airtime[rows] = np.clip(x * span[rows], first[rows], last[rows])
    free = sends & fits & (work == 0)
    airtime[free] = span[free]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        f = np.where(sends, work / (span - airtime), work / span)
        f = np.clip(
            np.where(np.isfinite(f), f, terms.min_frequency), terms.min_frequency, terms.max_frequency
        )
        u = np.expm1(np.where(airtime > 0, bits * _LN2 / airtime, 0.0))
        power = np.where(sends & fits, np.minimum(u / g, terms.max_power), 0.0)
        # d(p t)/dn at fixed t is (1 + u) ln 2 / g, and n falls as 1 / b. At p_max the time is what gives way.
        price = (1 + u) * _LN2 / g
        held = (airtime <= first * (1 + 1e-9)) & (power >= terms.max_power * (1 - 1e-9))
        extra = np.maximum((2 * k * f**3 - worth_of_power(u) / g), 0.0) / loudest  # J per bit/Hz at p_max
        slope = np.where(sends & fits, -(price + np.where(held, extra, 0.0)) * bits / b, 0.0)
    none = np.where(fits, 0.0, np.inf)
    compute = k * work * f**2
    return LeastEnergy(compute + none, power * airtime + none, airtime, f, power, slope)
