"""Masked averaging over an emulated OFDMA cell (Liu et al. 2024).

Per round: draw the channels, let the scheme's policy choose every device's bandwidth fraction and
pruning ratio, have the devices train and upload what they kept, average every weight over its contributors,
and account for the latency from what was really kept and sent.

One file, long as it is: the cell, and one class that plans and accounts for the rounds in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.streams import generator
from radio import payload
from radio.allocation import Allocation, AllocationStatus, WhenInfeasible
from radio.allocation.energy_aware import Objective
from radio.allocation.policies import OfdmaProblem, TieBreak, get_policy
from radio.channel import Cell, ChannelModel, ChannelState, Uplink
from radio.channel.cell import NoiseModel
from radio.channel.rates import RateModel
from radio.channel.scene import Streams
from radio.energy import EnergyTerms, compute_energy, transmit_energy
from radio.latency import device_latency, slack
from radio.settings import OnOutage
from strategies.aggregation import ChosenAggregation
from strategies.base import WirelessStrategy
from strategies.energy import ENERGY_COLUMNS, ENERGY_ROUND_COLUMNS, EXHAUSTED, Batteries, Energy
from strategies.masked import MaskedReceiver
from strategies.plan import Assignment, OfdmaPlan, RoundPlan, Slot, Weights
from strategies.records import Value
from strategies.settings import Weighting

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OfdmaCell:
    """The emulated radio and the devices' compute, in SI units.

    Attributes:
        channel: places and fading.
        fixed_time: T0 of each device, s, shape (K,).
        compute_time: G of each device, s, shape (K,).
        bandwidth: B, Hz, shared by all devices.
        transmit_power: p, W; a number or (K,).
        noise_power: sigma^2 over the whole band, W.
        noise_model: the same noise power for every share of the band, or proportional to the share.
        latency_threshold: T_th, s.
        bits_per_weight: 32, 16 or 8.
        charge_mask_bits: whether header and positions are charged to the uplink; values and their scales are.
        max_pruning_ratio: rho_max.
        when_infeasible: what happens where rho_max cannot be met.
        csi_delay: rounds by which the channels that the server plans with are old.
        csi_error: variance of its estimate of each antenna's channel, relative to the device's mean gain.
        margin: by which it divides the gains that it knows.
        on_outage: whether an upload over a channel worse than planned comes late or is lost.
        energy: what devices may spend; None: nothing is known of joules.
        weights: (K,) of the devices in the objective; None: 1.
        fairness, tie_break, objective: as of `radio.allocation.policies.OfdmaProblem`.
    """

    channel: ChannelModel
    fixed_time: FloatVector
    compute_time: FloatVector
    bandwidth: float
    transmit_power: float | FloatVector
    noise_power: float
    latency_threshold: float
    bits_per_weight: int = 32
    noise_model: NoiseModel = "fixed"
    charge_mask_bits: bool = True
    max_pruning_ratio: float = 1.0
    when_infeasible: WhenInfeasible = "relax"
    csi_delay: int = 0
    csi_error: float = 0.0
    margin: float = 1.0
    on_outage: OnOutage = "late"
    energy: Energy | None = None
    weights: FloatVector | None = None
    fairness: float = 0.0
    tie_break: TieBreak = "none"
    objective: Objective = "retained"

    @property
    def uplink(self) -> Uplink:
        """Return the link budget."""
        return Uplink(self.bandwidth, self.transmit_power, self.noise_power, self.noise_model)

    def emulate(self, stream: Streams) -> Cell:
        """Return the cell itself; `stream` as for `radio.channel.Cell`."""
        return Cell(
            self.channel,
            stream,
            self.uplink,
            relative_error=self.csi_error,
            delay=self.csi_delay,
            margin=self.margin,
        )

    def within(self, band: float) -> OfdmaCell:
        """Return the cell where only so much of the band is to be shared out, in (0, 1]."""
        if band == 1.0:
            return self
        noise = self.noise_power * (band if self.noise_model == "proportional" else 1.0)
        return replace(self, bandwidth=band * self.bandwidth, noise_power=noise)

    @property
    def knows_channels(self) -> bool:
        """Whether plans hold: the server knows the channels of the round itself."""
        return self.csi_delay == 0 and self.csi_error == 0


_STATUS_NAMES = {int(status): status.name.lower() for status in AllocationStatus}


@dataclass(frozen=True, eq=False)
class _Part:
    """An allocation and what it takes, by device."""

    gain: FloatVector
    allocation: Allocation
    num_pruned: npt.NDArray[np.int64]
    bits: list[int]
    latency: FloatVector
    true_latency: FloatVector
    outage: npt.NDArray[np.bool_]
    lost: npt.NDArray[np.bool_]
    frequency: FloatVector = field(default_factory=lambda: np.zeros(0))
    power: FloatVector = field(default_factory=lambda: np.zeros(0))
    joules: tuple[FloatVector, FloatVector] | None = None
    able: npt.NDArray[np.bool_] = field(default_factory=lambda: np.ones(1, np.bool_))


class OfdmaStrategy(WirelessStrategy):
    """Pruned uploads over orthogonal shares of the band."""

    scheme_round_columns = (
        "min_keepers",
        "pruning_ratio_mean",
        "multiplier",
        "latency_threshold_s",
        *ENERGY_ROUND_COLUMNS,
    )
    scheme_device_columns = (
        "channel_gain_db",
        "bandwidth_fraction",
        "pruning_ratio",
        "allocation",
        "planned_latency_s",
        "cpu_frequency_hz",
        "transmit_power_w",
        *ENERGY_COLUMNS,
    )

    def __init__(
        self,
        *,
        cell: OfdmaCell,
        policy: str,
        pruning_ratio: float | None = None,
        weighting: Weighting = "uniform",
        aggregation: ChosenAggregation | None = None,
        **skeleton: Any,
    ) -> None:
        super().__init__(**skeleton)
        self.cell = cell
        self.policy = get_policy(policy)
        self.pruning_ratio = pruning_ratio
        self.weighting = weighting
        self.aggregation = aggregation
        self.batteries = Batteries(cell.energy) if cell.energy is not None else None
        self.emulated = cell.emulate(partial(generator, self.seed))
        self._try_policy(policy)

    @property
    def round_columns(self) -> tuple[str, ...]:
        """Return the columns of a round; the share of outages only where there can be any."""
        known = super().round_columns
        return known if self.cell.knows_channels else (*known, "outage_share")

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs beyond the global part: the batteries too."""
        return {**super().state(), **(self.batteries.state() if self.batteries else {})}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        super().restore(state)
        if self.batteries:
            self.batteries.restore(state)

    def plan(self, server_round: int, devices: Sequence[int], *, band: float = 1.0) -> RoundPlan:
        """Draw the channels and let the policy share out the band, or what of it is free.

        A device whose part costs more than its battery or budget holds sits the round out, and the band is
        shared again among the others.
        """
        everyone, cell = self.emulated.draw(server_round), self.cell.within(band)
        if band < 1.0:
            everyone = everyone.within(band)
        chosen = np.asarray(devices, dtype=np.int64)
        while True:
            part = self._share(everyone.of(chosen), chosen, cell)
            able = part.able
            if able.all():
                break
            chosen = chosen[able]
            if not chosen.size:
                break
        absent = sorted(set(devices) - set(chosen.tolist()))
        rows = {device: self._exhausted(device) for device in absent}
        if not chosen.size:
            columns = self.totals([], list(rows.values()))
            return RoundPlan((), columns=columns, detail=self.empty, absent=rows)
        return self._planned(part, chosen, rows, band)

    @property
    def empty(self) -> OfdmaPlan:
        """Return the detail of a plan for nobody."""
        return OfdmaPlan(self.cell.bits_per_weight, {}, tuple(self.vectors))

    def totals(
        self, rows: Sequence[Mapping[str, Value]], absent: Sequence[Mapping[str, Value]]
    ) -> dict[str, Value]:
        """Return the columns of a round that sum up those of its devices, and of those that sat it out."""
        columns: dict[str, Value] = {"latency_threshold_s": self.cell.latency_threshold}
        if rows:
            columns["pruning_ratio_mean"] = float(_column(rows, "pruning_ratio").mean())
        if self.batteries is not None:
            spent = (_column(rows, name).sum() for name in ("compute_energy_j", "transmit_energy_j"))
            columns["energy_j"] = float(sum(spent))
            columns["exhausted"] = sum(row["status"] == EXHAUSTED for row in absent)
        return columns

    def _exhausted(self, device: int) -> dict[str, Value]:
        assert self.batteries is not None
        return {"status": EXHAUSTED, **self.batteries.pay(device, 0.0, 0.0)}

    def _share(self, state: ChannelState, chosen: npt.NDArray[np.int_], cell: OfdmaCell) -> _Part:
        """Allocate, and account for what it takes: bits, seconds and joules."""
        known, rates, true_rates = state.planned.gain, state.planned.rates, state.rates
        allocation = self._allocate(rates, chosen, known, cell)
        num_pruned = prune_counts(allocation.pruning_ratio, self.num_weights)
        kept = self.num_weights - num_pruned
        charged = {number: self._charged_bits(number) for number in set(kept.tolist())}
        bits = [charged[number] for number in kept.tolist()]
        fixed, compute = cell.fixed_time[chosen], cell.compute_time[chosen]
        own = None if cell.energy is None else cell.energy.of(chosen)
        frequency = None if own is None else own.frequency
        power = None if own is None else own.power
        if own is not None and allocation.frequency is not None:
            frequency = allocation.frequency
            fixed, compute = fixed * own.frequency / frequency, compute * own.frequency / frequency
        if own is not None and allocation.power is not None:
            power = np.where(allocation.power > 0, allocation.power, own.power)
            rates, true_rates = cell.uplink.rates(known, power), cell.uplink.rates(state.gain, power)
        planned_rate, rate = (one.rate(allocation.bandwidth_fraction) for one in (rates, true_rates))
        work = fixed, compute, kept / self.num_weights, bits
        latency = device_latency(*work, planned_rate)
        outage = np.zeros(chosen.size, np.bool_)
        if not cell.knows_channels:  # else the true rate is the planned one, or above it by the margin
            outage = (kept > 0) & (rate < planned_rate)
        lost, true_latency = outage & (cell.on_outage == "lost"), latency
        if state.known is not None:
            true_latency = np.where(lost, latency, device_latency(*work, rate))
        rate = np.where(lost, planned_rate, rate)
        part = _Part(state.gain, allocation, num_pruned, bits, latency, true_latency, outage, lost)
        if own is None or frequency is None or power is None:
            return part
        airtime = device_latency(0.0, 0.0, 0.0, bits, rate)
        cycles = (
            cell.fixed_time[chosen] + kept / self.num_weights * cell.compute_time[chosen]
        ) * own.frequency
        joules = compute_energy(cycles, frequency, own.capacitance), transmit_energy(power, airtime)
        left = self.batteries.left[chosen] if self.batteries else own.battery
        # The policies that know of budgets keep to them but for who cannot even do its own part.
        most = left if allocation.frequency is None else np.minimum(left, own.budget)
        able = joules[0] + joules[1] <= most * (1 + 1e-9)
        return replace(part, frequency=frequency, power=power, joules=joules, able=able)

    def _planned(
        self,
        part: _Part,
        chosen: npt.NDArray[np.int_],
        absent: Mapping[int, Mapping[str, Value]],
        band: float,
    ) -> RoundPlan:
        """Put a part into words, and take what it costs from the batteries."""
        allocation = part.allocation
        shares = (band * allocation.bandwidth_fraction).tolist()
        devices = chosen.tolist()
        counts = (allocation.status != AllocationStatus.INFEASIBLE).tolist()
        latencies, lost = part.true_latency.tolist(), part.lost.tolist()
        slots = {
            device: Slot(*values)
            for device, *values in zip(devices, part.bits, latencies, counts, lost, shares, strict=True)
        }
        known: list[list[Any]] = [
            (10 * np.log10(part.gain)).tolist(),
            shares,
            allocation.pruning_ratio.tolist(),
            [_STATUS_NAMES[status] for status in allocation.status.tolist()],
            part.latency.tolist(),
        ]
        if part.joules is not None and self.batteries is not None:
            known += [part.frequency.tolist(), np.where(np.array(part.bits) > 0, part.power, 0.0).tolist()]
            known += [*(joules.tolist() for joules in part.joules), self.batteries.take(chosen, *part.joules)]
        columns_of = self.scheme_device_columns[: len(known)]
        described: list[dict[str, Value]] = [
            dict(zip(columns_of, values, strict=True)) for values in zip(*known, strict=True)
        ]
        multiplier = float(allocation.multiplier)
        columns = self.totals(described, list(absent.values()))
        columns["multiplier"] = multiplier if np.isfinite(multiplier) else None
        if not self.cell.knows_channels:
            uploads = int(np.count_nonzero(part.bits))  # who is pruned to nothing cannot be late
            columns["outage_share"] = float(part.outage.sum() / max(uploads, 1))
        return RoundPlan(
            tuple(
                Assignment(device, pruned, row)
                for device, pruned, row in zip(devices, part.num_pruned.tolist(), described, strict=True)
            ),
            columns=columns,
            detail=replace(self.empty, slots=slots),
            absent=absent,
        )

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> MaskedReceiver:
        """Return a receiver that aggregates the retained weights."""
        limited = self.norm_limit.norm != np.inf
        return MaskedReceiver(plan, weights, self.weighting, self.aggregation, limited=limited)

    def _allocate(
        self, rates: RateModel, chosen: npt.NDArray[np.int_], gain: FloatVector, cell: OfdmaCell
    ) -> Allocation:
        size = payload.linear_size(
            self.num_weights,
            cell.bits_per_weight,
            positions=cell.charge_mask_bits,
            vectors=len(self.vectors),
        )
        problem = OfdmaProblem(
            rates=rates,
            slack=slack(cell.latency_threshold, cell.fixed_time[chosen]),
            compute_time=cell.compute_time[chosen],
            payload_bits=size.bits_per_weight * self.num_weights,
            overhead_bits=size.overhead_bits + self.buffers.bits,
            max_pruning_ratio=cell.max_pruning_ratio,
            when_infeasible=cell.when_infeasible,
            weights=None if cell.weights is None else cell.weights[chosen],
            fairness=cell.fairness,
            tie_break=cell.tie_break,
            energy=self._energy_terms(chosen, gain, size, cell),
            objective=cell.objective,
        )
        return self.policy(problem, pruning_ratio=self.pruning_ratio)

    def _energy_terms(
        self, chosen: npt.NDArray[np.int_], gain: FloatVector, size: payload.LinearSize, cell: OfdmaCell
    ) -> EnergyTerms | None:
        """Return what decides the time and energy of these devices; None where nothing is known of joules."""
        if cell.energy is None or self.batteries is None:
            return None
        own = cell.energy.of(chosen)
        return EnergyTerms.of(
            fixed_cycles=cell.fixed_time[chosen] * own.frequency,
            global_cycles=cell.compute_time[chosen] * own.frequency,
            payload_bits=size.bits_per_weight * self.num_weights,
            overhead_bits=size.overhead_bits + self.buffers.bits,
            gain_over_noise=gain / cell.noise_power,
            bandwidth=cell.bandwidth,
            max_power=own.power,
            min_frequency=own.min_frequency,
            max_frequency=own.frequency,
            threshold=cell.latency_threshold,
            budget=np.minimum(own.budget, self.batteries.left[chosen]),
            capacitance=own.capacitance,
        )

    def _try_policy(self, name: str) -> None:
        """Allocate once, at mean gains: a policy that cannot work is found before anything is trained.

        Raises:
            ValueError: with what the policy raised, or what is wrong with what it returned.
        """
        everyone = np.arange(self.fleet.num_devices)
        state = self.emulated.mean_state()
        try:
            found = self._allocate(state.rates, everyone, state.gain, self.cell)
            shapes = np.shape(found.bandwidth_fraction), np.shape(found.pruning_ratio), np.shape(found.status)
        except ValueError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"policy {name} fails on a first trial: {cause}") from error
        if set(shapes) != {everyone.shape}:
            raise ValueError(
                f"policy {name} returns arrays of shapes {shapes}; each must be {everyone.shape}"
            )

    def _charged_bits(self, num_kept: int) -> int:
        if num_kept == 0:
            return 0
        return self.buffers.bits + payload.upload_bits(
            self.num_weights,
            num_kept,
            self.cell.bits_per_weight,
            vectors=len(self.vectors),
            positions=self.cell.charge_mask_bits,
        )


def _column(rows: Sequence[Mapping[str, Value]], name: str) -> FloatVector:
    """Return a column of numbers of the rows that have it."""
    return np.array([row[name] for row in rows if name in row], np.float64)


def prune_counts(pruning_ratio: FloatVector, num_weights: int) -> npt.NDArray[np.int64]:
    """Return how many weights each ratio prunes: rounded up, so that latency never exceeds the plan."""
    return np.ceil(np.asarray(pruning_ratio) * num_weights - 1e-9).astype(np.int64)
