"""Allocation policies: what the `policy` key of a scheme's yaml names.

A policy is one function `(problem, *, pruning_ratio=None) -> Allocation`. Register it with
`@policy("name")`, or name it in yaml by its dotted path `package.module:function`. In every policy a
device that uploads nothing has bandwidth fraction 0 and pruning ratio 1, and an equal share means 1 / K
with K the number of devices that do upload.

The problem brings the rate model of the round's channels, which is also what the round is accounted with: a
policy that meets the latency threshold at `problem.rates` meets it in the records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from radio.allocation.energy_aware import Objective
from radio.allocation.fair import allocate_fair, quicken
from radio.allocation.optimum import allocate
from radio.allocation.proportional_noise import allocate_at
from radio.allocation.ratio import least_pruning_ratio, ratio_at_rate
from radio.allocation.shares import Allocation, AllocationStatus, WhenInfeasible
from radio.arrays import BoolArray, FloatArray, in_unit_interval, non_negative
from radio.channel.rates import FixedNoise, ProportionalNoise, RateModel
from radio.energy import EnergyTerms
from registry import Registry

TieBreak = Literal["none", "least_latency"]


@dataclass(frozen=True)
class OfdmaProblem:
    """One round's inputs of the allocation, SI units; arrays broadcast to (K,).

    Attributes:
        rates: rate of each device as a function of its share; an array (..., K) of full-band rates stands for
            `FixedNoise`.
        slack: (K,) D = T_th - T0, s.
        compute_time: (K,) G, s.
        payload_bits: (K,) Q, bits of the dense upload.
        overhead_bits: (K,) m, bits of an upload beside its retained weights.
        weights: (K,) w of the objective; None is 1.
        max_pruning_ratio: rho_max.
        when_infeasible: what to do where rho_max does not fit (`radio.allocation.allocate`).
        fairness: alpha of the utility (`radio.allocation.pricing`); 0: the weighted sum.
        tie_break: which of several optima: `none`, the one that takes the least band, or `least_latency`.
        energy: what decides each device's time and energy; None: not known.
        objective: most retained weights, or least energy at exactly rho_max.
    """

    rates: RateModel | Any
    slack: ArrayLike
    compute_time: ArrayLike
    payload_bits: ArrayLike
    overhead_bits: ArrayLike = 0.0
    weights: ArrayLike | None = None
    max_pruning_ratio: float = 1.0
    when_infeasible: WhenInfeasible = "raise"
    fairness: float = 0.0
    tie_break: TieBreak = "none"
    energy: EnergyTerms | None = None
    objective: Objective = "retained"

    def __post_init__(self) -> None:
        if not hasattr(self.rates, "full_band"):
            alone: Any = self.rates  # the rate of each device on the whole band
            object.__setattr__(self, "rates", FixedNoise(non_negative("rates", alone)))

    @property
    def full_band_rate(self) -> FloatArray:
        """Return (..., K) r, the rate of each device alone on the whole band, bit/s."""
        full: FloatArray = self.rates.full_band
        return full


class Policy(Protocol):
    """The signature of a policy."""

    def __call__(self, problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
        """Return the shares and pruning ratios of one round."""


POLICIES: Registry[Policy] = Registry("allocation policy", key="scheme.allocation", given={"pruning_ratio"})
policy = POLICIES.register
get_policy = POLICIES.find


@policy("joint")
def joint(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """Exact joint optimum at the rates of the round (`optimum`, `proportional_noise`, `fair`).

    Raises:
        ValueError: for a rate model of one's own, which has no solver here.
    """
    _no_ratio("joint", pruning_ratio)
    inputs = (problem.slack, problem.compute_time, problem.payload_bits)
    options: dict[str, Any] = {
        "weights": problem.weights,
        "max_pruning_ratio": problem.max_pruning_ratio,
        "overhead_bits": problem.overhead_bits,
        "when_infeasible": problem.when_infeasible,
    }
    if not isinstance(problem.rates, FixedNoise | ProportionalNoise):
        raise ValueError(f"policy joint has no optimum for rates of {type(problem.rates).__name__}")
    if problem.fairness > 0:
        found = allocate_fair(problem.rates, *inputs, alpha=problem.fairness, **options)
    elif isinstance(problem.rates, FixedNoise):
        found = allocate(problem.rates.full_band, *inputs, **options)
    else:
        found = allocate_at(problem.rates, *inputs, **options)
    if problem.tie_break == "none":
        return found
    return quicken(found, problem.rates, *inputs, overhead_bits=problem.overhead_bits)


# The noise model belongs to the cell (radio.noise_model); the name is kept for older configurations.
POLICIES.register("joint_physical_noise")(joint)
POLICIES.register_at(energy_aware="radio.allocation.energy_aware:energy_aware")


@policy("equal_bandwidth")
def equal_bandwidth(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """Equal shares, each with its own least pruning ratio: meets the threshold.

    As many devices as possible take part: one whose ratio would be 1 (it cannot even pay its overhead) or
    above `max_pruning_ratio` leaves its share to the others, the one that needs most first.
    """
    _no_ratio("equal_bandwidth", pruning_ratio)
    inputs = _broadcast(problem)
    r, d, g, q, m = inputs
    limit = float(in_unit_interval("max_pruning_ratio", problem.max_pruning_ratio))
    room = d - (1 - limit) * g
    wanted = np.divide((1 - limit) * q + m, room, out=np.full(r.shape, np.inf), where=room > 0)
    needed = np.where((d > 0) & (r > 0), problem.rates.share(wanted), np.inf)
    order = np.argsort(needed, axis=-1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(r.shape[-1]), r.shape), axis=-1)
    fits = np.take_along_axis(needed, order, axis=-1) * np.arange(1, r.shape[-1] + 1) <= 1
    taking = np.where(fits, np.arange(1, r.shape[-1] + 1), 0).max(axis=-1, keepdims=True)
    sending = rank < taking
    share = _equal(sending)
    ratio = _least(problem, share, inputs)
    while (idle := sending & (ratio >= 1)).any():  # breaks even to rounding: occupies band for nothing
        sending &= ~idle
        share = _equal(sending)
        ratio = _least(problem, share, inputs)
    ratio = np.where(sending, np.minimum(ratio, limit), 1.0)
    return _unoptimised(problem, share, ratio, (d <= 0) | ((limit < 1) & ~sending))


@policy("equal_bandwidth_joint_rho")
def equal_bandwidth_joint_rho(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """The pruning ratios of the joint optimum over equal shares: may exceed the threshold.

    The reading of "equal resource" that gives the 38 ms of the paper's Table I.
    """
    _no_ratio("equal_bandwidth_joint_rho", pruning_ratio)
    best = joint(problem)
    share = _equal(best.bandwidth_fraction > 0)
    return _unoptimised(problem, share, best.pruning_ratio, best.status == AllocationStatus.INFEASIBLE)


@policy("dense_equal_bandwidth")
def dense_equal_bandwidth(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """No pruning, equal shares; the threshold plays no part."""
    _no_ratio("dense_equal_bandwidth", pruning_ratio)
    return fixed_ratio(problem, pruning_ratio=0.0)


@policy("fixed_ratio")
def fixed_ratio(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """One given pruning ratio for all, equal shares; the threshold plays no part.

    Raises:
        ValueError: if `pruning_ratio` is None or outside [0, 1].
    """
    if pruning_ratio is None:
        raise ValueError("pruning_ratio = None: policy fixed_ratio needs a number in [0, 1]")
    rho = float(in_unit_interval("pruning_ratio", pruning_ratio))
    sending = _broadcast(problem)[0] > 0
    ratio = np.where(sending, rho, 1.0)
    share = _equal(sending & (ratio < 1))
    return _unoptimised(problem, share, ratio, ~sending)


@policy("printed_formula")
def printed_formula(problem: OfdmaProblem, *, pruning_ratio: float | None = None) -> Allocation:
    """Eqs. (54) and (58) of Liu et al. 2024, made feasible naively: clip b at 0, renormalise, refit rho.

    For comparison only: where (54) leaves its bounds this can lose to equal shares. `overhead_bits`
    and `max_pruning_ratio` have no place in the formula; the refitted ratio does pay the overhead.
    """
    _no_ratio("printed_formula", pruning_ratio)
    inputs = _broadcast(problem)
    r, d, g, q, _ = inputs
    feasible = (d > 0) & (r > 0)
    share = np.zeros(r.shape)
    if feasible.any():
        share[feasible] = np.maximum(printed_values(r[feasible], d[feasible], g[feasible], q[feasible])[0], 0)
        share /= share.sum()
    ratio = _least(problem, share, inputs)
    return _unoptimised(problem, np.where(ratio < 1, share, 0.0), ratio, ~feasible)


def printed_values(
    full_band_rate: ArrayLike, slack: ArrayLike, compute_time: ArrayLike, payload_bits: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return b, rho and lambda exactly as Liu et al. 2024, eqs. (54) and (58), print them.

    No constraint but sum b = 1 is kept: b and rho may be negative.

    Raises:
        ValueError: if a slack or a computing time is not > 0 (the formula takes a root and divides).
    """
    r, d, g, q, _ = np.broadcast_arrays(
        *(np.asarray(a, dtype=np.float64) for a in (full_band_rate, slack, compute_time, payload_bits, 0.0))
    )
    for name, values in (("slack", d), ("compute_time", g), ("full_band_rate", r)):
        if (values <= 0).any():
            raise ValueError(f"{name} = {values.min()} must be > 0 in the printed formula")
    total = (np.sqrt(d * q / r) / g).sum(axis=-1, keepdims=True)
    root = total / (1 + (q / (r * g)).sum(axis=-1, keepdims=True))
    share = (np.sqrt(r * d * q) / root - q) / (r * g)
    ratio = least_pruning_ratio(share, r, d, g, q, clamp=False)
    return share, ratio, np.asarray(root[..., 0] ** 2)


def _no_ratio(name: str, pruning_ratio: float | None) -> None:
    if pruning_ratio is not None:
        raise ValueError(
            f"pruning_ratio = {pruning_ratio}: policy {name} chooses it; only fixed_ratio takes one"
        )


def _broadcast(problem: OfdmaProblem) -> tuple[FloatArray, ...]:
    """Return r, D, G, Q, m with one shape."""
    return tuple(
        np.broadcast_arrays(
            *(
                np.asarray(a, dtype=np.float64)
                for a in (
                    problem.full_band_rate,
                    problem.slack,
                    problem.compute_time,
                    problem.payload_bits,
                    problem.overhead_bits,
                )
            )
        )
    )


def _least(problem: OfdmaProblem, share: FloatArray, inputs: tuple[FloatArray, ...]) -> FloatArray:
    _, d, g, q, m = inputs
    return ratio_at_rate(problem.rates.rate(share), d, g, q, overhead_bits=m)


def _equal(sending: BoolArray) -> FloatArray:
    return np.asarray(sending / np.maximum(sending.sum(axis=-1, keepdims=True), 1), dtype=np.float64)


def _unoptimised(
    problem: OfdmaProblem, share: FloatArray, ratio: FloatArray, left_out: BoolArray
) -> Allocation:
    return Allocation.of_shares(
        share,
        ratio,
        weights=problem.weights,
        left_out=left_out,
        max_pruning_ratio=problem.max_pruning_ratio,
    )
