"""Pruned updates over the air: the server divides each weight by the number of users that kept it.

User k sends m_kj Delta_kj / nu with Delta = u_k - u^g, a scale nu common to all, and *zero mean*: a pruned
entry is an exact zero, superposition adds it for free, and a weight that nobody kept stays where it is. After
the combiner the server holds

    y_j = sum_k m_kj Delta_kj / nu + e_j,      e_j real with variance sigma_e^2 = link noise variance,

and moves weight j by alpha_j nu y_j / c_j. The divisor c_j depends on the count mode:

* "bitmap": c_j exact; every user sends its mask digitally, one bit per weight;
* "common_mask": the server broadcasts one mask; users send only its entries, c_j = number of users there;
* "count_free": c_j = number of users everywhere; biased towards u^g, no overhead.

Noise of weight j: variance alpha_j^2 nu^2 sigma_e^2 / c_j^2. Shrinkage alpha_j = V_j / (V_j +
nu^2 sigma_e^2 / c_j^2), with V_j the second moment of the averaged update, minimises each mean squared error.

The update sought is x_j = sum_k m_kj Delta_kj / n_j over the n_j users that kept weight j (0 for n_j = 0).
With users arriving with a_k in place of 1 where the channel is known imperfectly, weight j is off by

    (alpha_j sum_k a_k m_kj Delta_kj / c_j - x_j)^2 + alpha_j^2 nu^2 sigma_e^2 / c_j^2

in the mean over the noise: misalignment, the bias of c_j != n_j, that of the shrinkage, and the noise.

Users pass one at a time: memory is a few vectors of the model's size.

One file, long as it is: a link designed, sent over, received and charged, each step on the one before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.air.packing import airtime_s, symbols, turn
from radio.air.zero_forcing import Packing, zero_forcing
from radio.arrays import choice, non_negative, positive
from radio.beamforming.problem import Complex, Real, check_channels

CountMode = Literal["bitmap", "common_mask", "count_free"]
Shrinkage = Literal["off", "moment"]
Mask = NDArray[np.bool_]
Contribution = tuple[NDArray[np.floating], Mask]
"""(update Delta_k (d,), mask (d,)) of one active user; entries outside the mask are not read."""

MIN_SCALE = 1e-12


@dataclass(frozen=True)
class SparseLink:
    """Zero-forcing link with equal amplitudes for one common scale.

    Attributes:
        transmit: (M,) complex b_k, |b_k|^2 <= P0, with equality for the weakest user.
        eta: receive scaling, P0 min_k |m^H h_k|^2.
        noise_variance: sigma_e^2, per real entry, of y_j.
        arrival: (M,) complex a_k; 1 where the channel is known.
        packing: "iq" or "real".
    """

    transmit: Complex
    eta: float
    noise_variance: float
    arrival: Complex
    packing: Packing


@dataclass(frozen=True)
class Superposition:
    """sum_k a_k m_kj Delta_kj and the counts, before noise.

    Attributes:
        total: (d,) float64.
        aligned: (d,) float64, the same with a_k = 1; `total` itself where the channels are known.
        counts: (d,) int32, exact number of users that kept each weight.
        users: active users.
        mean_square: (M,) mean of Delta_kj^2 over the entries that get airtime.
        slots: real entries that get airtime.
        common: (d,) the broadcast mask, or None.
    """

    total: Real
    aligned: Real
    counts: NDArray[np.int32]
    users: int
    mean_square: Real
    slots: int
    common: Mask | None


@dataclass(frozen=True)
class SparseEstimate:
    """The next global part and its noise.

    Attributes:
        weights: (d,) float32, u^{g+1}.
        noise_variance: (d,) float64, analytic variance of the noise on each weight, after shrinkage.
        shrinkage: (d,) float64, alpha_j; 0 where a weight was left alone.
        raw_update: (d,) float64, nu y_j / c_j before shrinkage; 0 where a weight was left alone.
        counts: (d,) int32, the divisor c_j used.
        updated: (d,) bool, weights that moved.
        realised_mse: mean over the weights that moved of the squared distance of their change from x_j; None
            if none moved.
        predicted_mse: the same in the mean over the receiver noise, with the shrinkage as it came out.
    """

    weights: NDArray[np.float32]
    noise_variance: Real
    shrinkage: Real
    raw_update: Real
    counts: NDArray[np.int32]
    updated: Mask
    realised_mse: float | None
    predicted_mse: float | None


@dataclass(frozen=True)
class Airtime:
    """Seconds and bits of one pruned upload: `symbols` channel uses, and before them the masks, digitally."""

    analog_s: float
    mask_s: float
    mask_bits: int
    symbols: int

    @property
    def total_s(self) -> float:
        """Analog and digital part together, seconds."""
        return self.analog_s + self.mask_s


def design_sparse_link(
    channels: ArrayLike,
    beam: ArrayLike,
    *,
    power: float,
    noise_power: float,
    packing: Packing = "iq",
    true_channels: ArrayLike | None = None,
) -> SparseLink:
    """Zero forcing with equal amplitudes: b_k = sqrt(eta) / (m^H h_k), eta = P0 min |m^H h_k|^2.

    A symbol has mean power at most 1 if nu is at least every user's root mean square over the slots (see
    `common_scale`), so P0 is respected.

    Raises:
        ValueError: for bad channels or powers, or a beam orthogonal to a user (remove that user, and do not
            count it).
    """
    checked = check_channels(channels)
    inverse = zero_forcing(
        checked, beam, np.ones(len(checked)), power=power, noise_power=noise_power, packing=packing
    )
    arrival = np.ones(len(checked), dtype=np.complex128)
    if true_channels is not None:
        arrival = inverse.arrival(true_channels)
    return SparseLink(inverse.transmit, inverse.eta, inverse.noise_variance, arrival, packing)


def common_scale(root_mean_squares: ArrayLike) -> float:
    """Return nu: the largest of the users' root mean squares over the slots, at least 1e-12.

    The largest, because a smaller nu would make some user exceed its power.

    Raises:
        ValueError: if none is given or one is negative or not finite.
    """
    values = np.asarray(root_mean_squares, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all() or values.min() < 0.0:
        raise ValueError(f"root_mean_squares = {values!r} must be finite, >= 0, and at least one")
    return max(float(values.max()), MIN_SCALE)


def superpose(
    contributions: Iterable[Contribution],
    size: int,
    *,
    link: SparseLink | None = None,
    common: Mask | None = None,
) -> Superposition:
    """Add the masked updates of the active users, one at a time.

    Args:
        contributions: (Delta_k, mask_k) per active user, in the order of the link; a user that keeps nothing
            or has nothing to say must not be among them.
        size: d.
        link: for the factors a_k of an imperfect channel estimate; None: all 1.
        common: (d,) the mask of mode "common_mask"; users are silent outside it and pack only its entries.

    Raises:
        ValueError: for a wrong shape or a non-finite update.
    """
    total = np.zeros(size)
    exact = link is None or bool((link.arrival == 1.0).all())
    aligned = total if exact else np.zeros(size)
    counts = np.zeros(size, dtype=np.int32)
    squares: list[float] = []
    slots = size if common is None else int(common.sum())
    for user, (delta, mask) in enumerate(contributions):
        if delta.shape != (size,) or mask.shape != (size,) or mask.dtype != np.bool_:
            raise ValueError(
                f"user {user}: update {delta.shape}, mask {mask.shape} {mask.dtype}; want ({size},), bool"
            )
        kept = mask if common is None else mask & common
        values = np.zeros(size)
        np.copyto(values, delta, where=kept)
        energy = float(values @ values)
        if not np.isfinite(energy):
            raise ValueError(f"update of user {user} is not finite; training diverged, or it was not checked")
        squares.append(energy / max(slots, 1))
        counts += kept
        if not exact:
            aligned += values
        factor = 1.0 + 0.0j if link is None else complex(link.arrival[user])
        if factor == 1.0:
            total += values
        elif common is None:
            assert link is not None
            total += turn(values, factor, link.packing)
        else:
            assert link is not None
            total[common] += turn(values[common], factor, link.packing)
    return Superposition(total, aligned, counts, len(squares), np.asarray(squares), slots, common)


def divisors(superposition: Superposition, mode: CountMode) -> NDArray[np.int32]:
    """Return c_j, (d,) int32, as the server knows it in `mode`.

    Raises:
        ValueError: for an unknown mode, or "common_mask" without a common mask.
    """
    choice("count_mode", mode, CountMode)
    if mode == "bitmap":
        return superposition.counts
    if mode == "count_free":
        return np.full(len(superposition.total), superposition.users, dtype=np.int32)
    if superposition.common is None:
        raise ValueError(
            "count_mode = 'common_mask' needs the mask that was broadcast; pass common= to superpose"
        )
    return np.where(superposition.common, np.int32(superposition.users), np.int32(0))


def noise_variance_per_weight(counts: ArrayLike, scale: float, noise_variance: float) -> Real:
    """Return nu^2 sigma_e^2 / c_j^2 before shrinkage, (d,); 0 where c_j = 0, since such a weight stays."""
    divisor = np.asarray(counts, dtype=np.float64)
    return np.where(divisor > 0.0, scale**2 * noise_variance / np.maximum(divisor, 1.0) ** 2, 0.0)


def shrinkage_factors(second_moment: ArrayLike, noise: Real) -> Real:
    """Return V_j / (V_j + noise_j), (d,); 1 where the noise is 0 (also for V_j = 0)."""
    moment = np.asarray(second_moment, dtype=np.float64)
    return np.where(noise > 0.0, moment / np.maximum(moment + noise, 1e-300), 1.0)


def second_moment(raw_update: Real, noise: Real, updated: Mask) -> float:
    """Return a moment estimate of V from one noisy update: the mean of raw^2 - noise, not below 0.

    E[raw_j^2] = V_j + noise_j, so the difference is unbiased; one number for all weights, with each weight
    counted by the inverse of its noise, so that single-holder weights do not drown the rest.
    """
    if not updated.any():
        return 0.0
    level = noise[updated]
    trust = np.ones_like(level) if not level.any() else 1.0 / np.maximum(level, 1e-300)
    trust /= trust.max()
    difference = raw_update[updated] ** 2 - level
    return max(float((trust @ difference) / trust.sum()), 0.0)


def receive(
    current: ArrayLike,
    superposition: Superposition,
    *,
    mode: CountMode,
    scale: float,
    noise_variance: float,
    rng: np.random.Generator,
    shrinkage: Shrinkage | ArrayLike = "off",
    min_count: int = 1,
) -> SparseEstimate:
    """Add receiver noise and form u_j^{g+1} = u_j^g + alpha_j nu y_j / c_j.

    Args:
        current: (d,) u^g.
        superposition: from `superpose`.
        mode: count mode.
        scale: nu.
        noise_variance: sigma_e^2 per real entry of y (from the link).
        rng: draws the noise.
        shrinkage: "off" (alpha = 1), "moment" (V estimated from this very update), or V_j: a number or (d,).
        min_count: weights with c_j below it keep their value.

    Raises:
        ValueError: for wrong shapes, a scale below 0, an unknown mode or shrinkage, min_count < 1.
    """
    before = np.asarray(current)
    if before.shape != superposition.total.shape:
        raise ValueError(f"current has shape {before.shape}; expected {superposition.total.shape}")
    positive("scale", scale)
    non_negative("noise_variance", noise_variance)
    if min_count < 1:
        raise ValueError(
            f"min_count = {min_count} must be at least 1; a weight without a holder keeps its value"
        )
    counts = divisors(superposition, mode)
    updated = counts >= min_count
    noise = np.where(updated, noise_variance_per_weight(counts, scale, noise_variance), 0.0)
    raw = superposition.total.copy()
    if noise_variance > 0.0:
        aired = slice(None) if superposition.common is None else superposition.common
        raw[aired] += scale * np.sqrt(noise_variance) * rng.standard_normal(superposition.slots)
    raw = np.where(updated, raw / np.maximum(counts, 1), 0.0)
    alpha = updated.astype(np.float64)
    if isinstance(shrinkage, str):
        if shrinkage == "moment":
            alpha *= shrinkage_factors(second_moment(raw, noise, updated), noise)
        elif shrinkage != "off":
            raise ValueError(
                f"shrinkage = {shrinkage!r} is unknown; valid: off, moment, or the second moment V"
            )
    else:
        alpha *= shrinkage_factors(shrinkage, noise)
    following = np.asarray(before, dtype=np.float32).copy()
    # Only weights that move are written: the others keep their value bit for bit.
    following[updated] = (before[updated].astype(np.float64) + (alpha * raw)[updated]).astype(np.float32)
    realised, predicted = _errors(before, following, superposition, counts, alpha, alpha**2 * noise, updated)
    return SparseEstimate(
        following,
        alpha**2 * noise,
        alpha,
        raw,
        counts,
        updated,
        realised_mse=realised,
        predicted_mse=predicted,
    )


def _errors(
    before: NDArray[np.floating],
    after: NDArray[np.float32],
    superposition: Superposition,
    counts: NDArray[np.int32],
    alpha: Real,
    noise: Real,
    updated: Mask,
) -> tuple[float | None, float | None]:
    """Return realised and predicted mean squared error over the weights that moved (see the module text)."""
    if not updated.any():
        return None, None
    contributors = superposition.counts
    sought = np.divide(superposition.aligned, contributors, where=contributors > 0, out=np.zeros(before.size))
    error = (after - before - sought)[updated]
    arriving = alpha[updated] * superposition.total[updated] / counts[updated]
    expected = (arriving - sought[updated]) ** 2 + noise[updated]
    return float((error**2).mean()), float(expected.mean())


def choose_common_mask(
    change: ArrayLike, keep: int, rng: np.random.Generator, *, explore: float = 0.1
) -> Mask:
    """Return a mask of `keep` entries: the largest |u^g - u^{g-1}|, and a random share so that it can move.

    Args:
        change: (d,) u^g - u^{g-1}; all zeros in the first round gives a random mask.
        keep: entries to keep.
        rng: draws the random entries and breaks ties.
        explore: share of `keep` drawn at random from the rest, in [0, 1].

    Raises:
        ValueError: if `keep` is outside [0, d] or `explore` outside [0, 1].
    """
    size = np.abs(np.asarray(change, dtype=np.float64))
    if not 0 <= keep <= size.size:
        raise ValueError(f"keep = {keep} must be within [0, {size.size}]")
    if not 0.0 <= explore <= 1.0:
        raise ValueError(f"explore = {explore} must be within [0, 1]")
    ranked = keep - round(explore * keep)
    shuffled = rng.permutation(size.size)
    mask = np.zeros(size.size, dtype=np.bool_)
    if ranked:
        order = np.argpartition(-size[shuffled], ranked - 1)
        mask[shuffled[order[:ranked]]] = True
    rest = np.flatnonzero(~mask)
    mask[rng.choice(rest, keep - ranked, replace=False)] = True
    return mask


def sparse_airtime(
    mode: CountMode,
    size: int,
    bandwidth_hz: float,
    *,
    common_entries: int | None = None,
    mask_rates_bps: ArrayLike = (),
    packing: Packing = "iq",
) -> Airtime:
    """Return the airtime of one upload: slots are shared, so it depends neither on users nor on their masks.

    Args:
        mode: count mode.
        size: d, global weights.
        bandwidth_hz: channel uses per second.
        common_entries: entries of the common mask (mode "common_mask").
        mask_rates_bps: rate of each active user over the whole band; masks are sent one after the other
            (mode "bitmap").
        packing: "iq" or "real".

    Raises:
        ValueError: for an unknown mode, a missing `common_entries`, or a rate that is not positive.
    """
    choice("count_mode", mode, CountMode)
    positive("bandwidth_hz", bandwidth_hz)
    entries = size
    if mode == "common_mask":
        if common_entries is None or not 0 <= common_entries <= size:
            raise ValueError(
                f"common_entries = {common_entries} must be within [0, {size}] for 'common_mask'"
            )
        entries = common_entries
    uses = symbols(entries, packing)
    mask_bits, mask_s = 0, 0.0
    if mode == "bitmap":
        rates = np.asarray(mask_rates_bps, dtype=np.float64)
        if rates.size == 0 or not np.isfinite(rates).all() or rates.min() <= 0.0:
            raise ValueError(
                f"mask_rates_bps = {rates!r} must be positive, one per active user, for 'bitmap'"
            )
        mask_bits = size * rates.size
        mask_s = float((size / rates).sum())
    return Airtime(uses / bandwidth_hz, mask_s, mask_bits, uses)


def pruning_for_budget(slack_s: ArrayLike, airtime_seconds: float, compute_s: ArrayLike) -> Real:
    """Return the least pruning ratio of each device that meets the latency budget, (K,), in [0, 1].

    rho_k = (1 - (T_th - T0_k - T_air) / G_k)^+; there is no bandwidth to share. A device whose slack does not
    even cover the air time gets 1.

    Args:
        slack_s: (K,) T_th - T0_k, seconds.
        airtime_seconds: T_air.
        compute_s: (K,) G_k, seconds of the dense global computation.
    """
    room = np.asarray(slack_s, dtype=np.float64) - airtime_seconds
    dense = np.asarray(compute_s, dtype=np.float64)
    ratio = np.where(dense > 0.0, 1.0 - room / np.maximum(dense, 1e-300), np.where(room >= 0.0, 0.0, 1.0))
    return np.clip(ratio, 0.0, 1.0)


def common_pruning_for_budget(slack_s: ArrayLike, compute_s: ArrayLike, dense_airtime_s: float) -> float:
    """Return the least ratio rho with T0_k + (1 - rho)(G_k + T_air) <= T_th for all devices, in [0, 1].

    For one common mask that prunes computation and air time alike; T_air is that of the dense update.
    """
    slack = np.asarray(slack_s, dtype=np.float64)
    full = np.asarray(compute_s, dtype=np.float64) + dense_airtime_s
    if full.size == 0 or not (full > 0.0).all():
        raise ValueError(f"compute_s + dense_airtime_s = {full!r} must be positive, for at least one device")
    return float(np.clip(1.0 - (slack / full).min(), 0.0, 1.0))


def common_entries_for_budget(
    size: int, slack_s: ArrayLike, compute_s: ArrayLike, bandwidth_hz: float, packing: Packing = "iq"
) -> tuple[int, float]:
    """Return how many entries of a common mask fit the budget, and the ratio of `common_pruning_for_budget`.

    A pair of entries begun takes a whole channel use, so that an odd number of entries may have to lose one.

    Args:
        size: d, global weights.
        slack_s: (K,) T_th - T0_k of the users that share the mask, seconds.
        compute_s: (K,) G_k, seconds.
        bandwidth_hz: channel uses per second.
        packing: "iq" or "real".
    """
    slack, dense = np.asarray(slack_s, dtype=np.float64), np.asarray(compute_s, dtype=np.float64)
    ratio = common_pruning_for_budget(slack, dense, airtime_s(size, bandwidth_hz, packing))
    keep = size - int(np.ceil(ratio * size - 1e-9))

    def late(entries: int) -> bool:
        needed = entries / size * dense + airtime_s(entries, bandwidth_hz, packing)
        return bool((needed > slack * (1.0 + 1e-12)).any())

    while keep and late(keep):
        keep -= 1
    return keep, ratio
