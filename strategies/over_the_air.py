"""Over-the-air aggregation (arXiv 2508.00341): the channel adds the updates of users that send at once.

Per round: draw the channels, pick M users and a receive beam, have only those users train, send their
updates through the emulated air, and take the receiver's estimate of the average as the update.
`strategies.pruned_over_the_air` does the same for pruned updates with a personal part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from protocol.streams import generator
from radio.air.side_information import SideInformation, side_information
from radio.air.transceiver import (
    AirAverage,
    Link,
    average,
    design_link,
    effective_channels,
    energy_shares,
    measure,
    of_norm,
)
from radio.air.zero_forcing import ZeroForcing, beamed_gain, mean_over_band, zero_forcing
from radio.beamforming import BEAMFORMERS, beamform
from radio.channel.cell import ChannelVectors
from radio.scheduling import SCHEDULERS
from radio.scheduling.band import group_beams
from strategies.air_channels import AirChannels
from strategies.air_energy import AirPurse
from strategies.air_interface import AirInterface
from strategies.air_receiver import AirReceiver, AirUpdate, air_plan
from strategies.base import WirelessStrategy
from strategies.energy import ENERGY_COLUMNS, ENERGY_ROUND_COLUMNS
from strategies.plan import AirPlan, Assignment, Outcome, RoundPlan, Weights
from strategies.records import Value
from strategies.settings import Weighting

FloatVector = npt.NDArray[np.float64]


class OverTheAir(WirelessStrategy):
    """Dense updates of the scheduled users, superposed."""

    scheme_round_columns: ClassVar[tuple[str, ...]] = (
        "users",
        "min_gain",
        "normalised_mse",
        "gain_upper_bound",
        "mse_predicted",
        "mse_realised",
        "symbols",
        "airtime_s",
        "compute_s",
        *ENERGY_ROUND_COLUMNS,
    )
    scheme_device_columns: ClassVar[tuple[str, ...]] = ("channel_gain_db", "beam_gain_db", *ENERGY_COLUMNS)
    statistics_sent: int = 2  # numbers that each user sends: mean and deviation

    def __init__(self, *, air: AirInterface, weighting: Weighting = "uniform", **skeleton: Any) -> None:
        super().__init__(**skeleton)
        self.air = air
        self.weighting = weighting
        _check_solvers(air)
        self.channels = AirChannels.of(air, self.seed)
        self.purse: AirPurse | None = None
        if air.energy is not None:
            self.purse = AirPurse(air.energy, air.fixed_time, air.compute_time, self.num_weights)

    @property
    def round_columns(self) -> tuple[str, ...]:
        """Return the columns of a round; those of side information and of privacy only where they count."""
        charged = ("side_information_bits", "side_information_s") if self.air.charge_side_information else ()
        private = ("noise_multiplier",) if self.air.clip_norm is not None else ()
        return (*super().round_columns, *charged, *private)

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs beyond the global part: the batteries too."""
        return {**super().state(), **(self.purse.batteries.state() if self.purse else {})}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        super().restore(state)
        if self.purse:
            self.purse.batteries.restore(state)

    # Planning ----------------------------------------------------------------------------------

    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Schedule users and beam among the devices that can pay for their parts."""
        make = partial(self._plan_for, server_round)
        return make(devices) if self.purse is None else self.purse.plan(devices, make)

    def _plan_for(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Schedule users and beam; the chosen ones train densely."""
        chosen, columns = self._schedule(server_round, devices)
        nothing = np.zeros(len(chosen.users), np.int64)
        spent = self.air.fixed_time[chosen.users] + self.air.compute_time[chosen.users]
        seconds = self.air.airtime(self.num_weights)
        side = self._side_information(chosen, len(devices))
        columns.update(self._times(spent, seconds, side=side))
        columns["symbols"] = self.air.uses(self.num_weights)
        chosen = replace(chosen, airtime=seconds, digital=self._digital(chosen, side))
        return RoundPlan(self._assignments(chosen, nothing, {}), columns=columns, detail=chosen)

    def _side_information(
        self, chosen: AirPlan, candidates: int, broadcast_bits: int = 0
    ) -> SideInformation | None:
        """Return what these users and the server say beside the sum; None where it is free."""
        if not self.air.charge_side_information:
            return None
        return side_information(
            chosen.channels.true,
            self.air.snr,
            self.air.useful_band,
            candidates=candidates,
            taps=self.air.taps,
            # Over unlike subcarriers also the power that its symbols need of a user.
            statistics=self.statistics_sent + (self.air.taps > 1),
            coefficients=self.air.coefficients,
            broadcast_bits=broadcast_bits,
        )

    def _digital(self, chosen: AirPlan, side: SideInformation | None) -> FloatVector:
        """Return how long each user sends its statistics and its pilot, (M,) s."""
        seconds = 0.0
        if side is not None:  # of the pilots of all candidates one is its own
            seconds = side.uplink_s - (side.pilots - self.air.taps) / self.air.useful_band
        return np.full(len(chosen.users), seconds)

    def _schedule(self, server_round: int, devices: Sequence[int]) -> tuple[AirPlan, dict[str, Value]]:
        return self.channels.plan(self.air, server_round, devices)

    def _assignments(
        self, chosen: AirPlan, num_pruned: npt.NDArray[np.int64], extra: Mapping[str, FloatVector]
    ) -> tuple[Assignment, ...]:
        power = mean_over_band(np.linalg.norm(chosen.channels.true, axis=-1) ** 2)
        beam_power = beamed_gain(chosen.channels.true, chosen.beam)
        return tuple(
            Assignment(
                int(user),
                int(num_pruned[i]),
                {
                    "channel_gain_db": float(10 * np.log10(power[i])),
                    "beam_gain_db": float(10 * np.log10(beam_power[i])),
                    **{name: float(values[i]) for name, values in extra.items()},
                },
            )
            for i, user in enumerate(chosen.users)
        )

    def _times(
        self,
        compute: FloatVector,
        air_seconds: float,
        mask_seconds: float = 0.0,
        side: SideInformation | None = None,
    ) -> dict[str, Value]:
        """Return the columns of a round in which all send at once when the last has computed."""
        slowest = float(compute.max())
        columns: dict[str, Value] = {
            "compute_s": slowest,
            "airtime_s": air_seconds,
            "latency_s": slowest + air_seconds + mask_seconds,
        }
        if side is not None:
            columns["latency_s"] = slowest + air_seconds + mask_seconds + side.seconds
            columns |= {"side_information_bits": side.bits, "side_information_s": side.seconds}
        return columns

    # Receiving ---------------------------------------------------------------------------------

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> AirReceiver:
        """Return a receiver that superposes the updates when all are there."""
        noise = generator(self.seed, "noise", server_round)
        return AirReceiver(plan, weights, partial(combine_dense, self.air, self.weighting, noise))

    def concluded(self, outcome: Outcome) -> None:
        """Charge what sending took to the batteries."""
        if self.purse is None:
            return
        rows = self.purse.sent(self._plan, outcome.power)
        for device, row in rows.items():
            self.log.device(device, row)
        spent = sum(float(row["transmit_energy_j"] or 0) for row in rows.values())
        self.log.columns["energy_j"] = float(self.log.columns["energy_j"] or 0) + spent


def combine_dense(
    air: AirInterface,
    weighting: Weighting,
    noise: np.random.Generator,
    plan: RoundPlan,
    weights: Weights,
    uploads: Mapping[int, AirUpdate],
) -> Outcome:
    """Send the dense updates of the users that answered through the air and move the weights.

    Args:
        air: the analog uplink.
        weighting: of the users in the average.
        noise: draws the receiver noise.
        plan: of the round, with an `AirPlan`.
        weights: the global part that was broadcast.
        uploads: by user.
    """
    chosen, present, senders = senders_of(plan, uploads)
    base = weights if air.payload == "model" else np.float32(0)

    def read(position: int) -> npt.NDArray[np.floating]:
        return senders[position].values + base

    share = sample_shares(weighting, senders)
    link, result = send_dense(air, share, noise, chosen.channels.of(present), chosen.beam, read)
    moved = (weights + (result.estimate - base)).astype(np.float32)
    columns: dict[str, Value] = {"mse_predicted": result.predicted_mse, "mse_realised": result.realised_mse}
    if air.clip_norm is not None:  # deviation of the noise over what one user can move
        largest = float(link.weights.max()) * air.clip_norm
        columns["noise_multiplier"] = math.sqrt(link.noise_variance) / largest
    return Outcome(moved, columns, power=sent_power(chosen, present, result))


def sent_power(chosen: AirPlan, present: npt.NDArray[np.int_], result: AirAverage) -> dict[int, float]:
    """Return the power of each user that sent, as a share of P0."""
    return dict(zip(chosen.users[present].tolist(), result.transmit_power.tolist(), strict=True))


def senders_of(
    plan: RoundPlan, uploads: Mapping[int, AirUpdate]
) -> tuple[AirPlan, npt.NDArray[np.int_], list[AirUpdate]]:
    """Return the plan of the air, the rows of the users that answered, and what they send."""
    chosen = air_plan(plan)
    present = np.flatnonzero(np.isin(chosen.users, list(uploads)))
    return chosen, present, [uploads[int(user)] for user in chosen.users[present]]


def sample_shares(weighting: Weighting, senders: Sequence[AirUpdate]) -> FloatVector | None:
    """Return the weight of each user, (M,), not normalised; None: equal."""
    if weighting == "samples":
        return np.array([sender.num_examples for sender in senders], np.float64)
    return None


def send_dense(
    air: AirInterface,
    share: FloatVector | None,
    noise: np.random.Generator,
    channels: ChannelVectors,
    beam: npt.NDArray[np.complex128],
    read: Callable[[int], npt.NDArray[np.floating]],
    *,
    scaling: Callable[..., ZeroForcing] = zero_forcing,
) -> tuple[Link, AirAverage]:
    """Send the vectors of some users through the air at once.

    Args:
        air: the analog uplink.
        share: (M,) weight of each user, not normalised; None: equal.
        noise: draws the receiver noise.
        channels: of these users.
        beam: (N,) of the plan; over subcarriers (F, N).
        read: from the position of a user to what it sends, (d,).
        scaling: how users meet at the receiver.
    """
    statistics = measure(read, len(channels.known))
    if air.clip_norm is not None:
        statistics = of_norm(air.clip_norm, len(channels.known), statistics.size)
    if air.recompute_beam and statistics.std.max() > 0:
        effective = effective_channels(channels.known, statistics, weights=share, mode=air.mode)
        if air.ofdm is None:
            beam = beamform(effective, method=air.beamformer, initial=beam).beam
        else:
            starts = {number: beam[members[0]] for number, members in enumerate(air.ofdm.group)}
            beam = group_beams(effective, air.ofdm.group, starts, method=air.beamformer, keep=False)
    energy = None
    if air.ofdm is not None:
        energy = partial(energy_shares, read, subcarriers=air.ofdm.subcarriers, packing=air.packing)
    link = design_link(
        channels.known,
        beam,
        statistics,
        power=1.0,
        noise_power=air.noise_power,
        weights=share,
        mode=air.mode,
        packing=air.packing,
        scaling=scaling,
        energy=energy,
    )
    return link, average(read, link, noise, true_channels=None if channels.perfect else channels.true)


def _check_solvers(air: AirInterface) -> None:
    """Find an unknown policy, option or beamformer now, not in the first round.

    Raises:
        ValueError: naming it and what would be valid.
    """
    SCHEDULERS.select(air.method, air.scheduler_options)
    BEAMFORMERS.find(air.beamformer)
