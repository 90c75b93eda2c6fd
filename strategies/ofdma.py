"""Masked averaging over an emulated OFDMA cell (Liu et al. 2024).

Per round: draw the channels, let the scheme's policy choose every device's bandwidth fraction and
pruning ratio, have the devices train and upload what they kept, average every weight over its contributors,
and account for the latency from what was really kept and sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.streams import generator
from radio import payload
from radio.allocation import Allocation, AllocationStatus, WhenInfeasible
from radio.allocation.policies import OfdmaProblem, get_policy
from radio.channel import Cell, ChannelModel, Uplink
from radio.channel.cell import NoiseModel
from radio.channel.rates import RateModel
from radio.channel.scene import Streams
from radio.latency import device_latency, slack
from radio.settings import OnOutage
from strategies.aggregation import ChosenAggregation
from strategies.base import WirelessStrategy
from strategies.masked import MaskedReceiver
from strategies.plan import Assignment, OfdmaPlan, RoundPlan, Slot, Weights
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
        transmit_power: p, W.
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
    """

    channel: ChannelModel
    fixed_time: FloatVector
    compute_time: FloatVector
    bandwidth: float
    transmit_power: float
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

    def emulate(self, stream: Streams) -> Cell:
        """Return the cell itself; `stream` as for `radio.channel.Cell`."""
        uplink = Uplink(self.bandwidth, self.transmit_power, self.noise_power, self.noise_model)
        return Cell(
            self.channel,
            stream,
            uplink,
            relative_error=self.csi_error,
            delay=self.csi_delay,
            margin=self.margin,
        )

    @property
    def knows_channels(self) -> bool:
        """Whether plans hold: the server knows the channels of the round itself."""
        return self.csi_delay == 0 and self.csi_error == 0


_STATUS_NAMES = {int(status): status.name.lower() for status in AllocationStatus}


class OfdmaStrategy(WirelessStrategy):
    """Pruned uploads over orthogonal shares of the band."""

    scheme_round_columns = (
        "min_keepers",
        "pruning_ratio_mean",
        "multiplier",
        "latency_threshold_s",
    )
    scheme_device_columns = (
        "channel_gain_db",
        "bandwidth_fraction",
        "pruning_ratio",
        "allocation",
        "planned_latency_s",
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
        self.emulated = cell.emulate(partial(generator, self.seed))
        self._try_policy(policy)

    @property
    def round_columns(self) -> tuple[str, ...]:
        """Return the columns of a round; the share of outages only where there can be any."""
        known = super().round_columns
        return known if self.cell.knows_channels else (*known, "outage_share")

    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Draw the channels and let the policy share out the band."""
        cell, chosen = self.cell, np.asarray(devices)
        state = self.emulated.draw(server_round).of(chosen)
        gain, known = state.gain, state.planned.rates
        allocation = self._allocate(known, chosen)
        planned_rate = known.rate(allocation.bandwidth_fraction)
        num_pruned = prune_counts(allocation.pruning_ratio, self.num_weights)
        kept = self.num_weights - num_pruned
        charged = {number: self._charged_bits(number) for number in set(kept.tolist())}
        bits = [charged[number] for number in kept.tolist()]
        work = cell.fixed_time[chosen], cell.compute_time[chosen], kept / self.num_weights, bits
        latency = device_latency(*work, planned_rate)
        rate = state.rates.rate(allocation.bandwidth_fraction)
        outage = np.zeros(len(devices), np.bool_)
        true_latency = latency
        if not cell.knows_channels:  # else the true rate is the planned one, or above it by the margin
            outage = (kept > 0) & (rate < planned_rate)
        if state.known is not None:
            true_latency = np.where(outage & (cell.on_outage == "lost"), latency, device_latency(*work, rate))
        infeasible = (allocation.status == AllocationStatus.INFEASIBLE).tolist()
        lost = outage & (cell.on_outage == "lost")
        slots = {
            device: Slot(bits[i], float(true_latency[i]), counts=not infeasible[i], lost=bool(lost[i]))
            for i, device in enumerate(devices)
        }
        columns = zip(
            (10 * np.log10(gain)).tolist(),
            allocation.bandwidth_fraction.tolist(),
            allocation.pruning_ratio.tolist(),
            map(_STATUS_NAMES.__getitem__, allocation.status.tolist()),
            latency.tolist(),
            strict=True,
        )
        assignments = tuple(
            Assignment(device, pruned, dict(zip(self.scheme_device_columns, values, strict=True)))
            for device, pruned, values in zip(devices, num_pruned.tolist(), columns, strict=True)
        )
        multiplier = float(allocation.multiplier)
        return RoundPlan(
            assignments,
            columns={
                "pruning_ratio_mean": float(allocation.pruning_ratio.mean()),
                "multiplier": multiplier if np.isfinite(multiplier) else None,
                "latency_threshold_s": cell.latency_threshold,
                **({} if cell.knows_channels else {"outage_share": float(outage.mean())}),
            },
            detail=OfdmaPlan(cell.bits_per_weight, slots, tuple(self.vectors)),
        )

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> MaskedReceiver:
        """Return a receiver that aggregates the retained weights."""
        limited = self.norm_limit.norm != np.inf
        return MaskedReceiver(plan, weights, self.weighting, self.aggregation, limited=limited)

    def _allocate(self, rates: RateModel, chosen: npt.NDArray[np.int_]) -> Allocation:
        cell = self.cell
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
        )
        return self.policy(problem, pruning_ratio=self.pruning_ratio)

    def _try_policy(self, name: str) -> None:
        """Allocate once, at mean gains: a policy that cannot work is found before anything is trained.

        Raises:
            ValueError: with what the policy raised, or what is wrong with what it returned.
        """
        everyone = np.arange(self.fleet.num_devices)
        rates = self.emulated.mean_state().rates
        try:
            found = self._allocate(rates, everyone)
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


def prune_counts(pruning_ratio: FloatVector, num_weights: int) -> npt.NDArray[np.int64]:
    """Return how many weights each ratio prunes: rounded up, so that latency never exceeds the plan."""
    return np.ceil(np.asarray(pruning_ratio) * num_weights - 1e-9).astype(np.int64)
