"""Over-the-air aggregation (arXiv 2508.00341): the channel adds the updates of users that send at once.

Per round: draw the channels, pick M users and a receive beam, have only those users train, send their
updates through the emulated air, and take the receiver's estimate of the average as the update.
`strategies.pruned_over_the_air` does the same for pruned updates with a personal part.

One file, long as it is: the air interface, and one class that plans and receives over it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from protocol.streams import generator
from radio.air.side_information import SideInformation, side_information
from radio.air.transceiver import (
    AirAverage,
    Link,
    Mode,
    airtime_s,
    average,
    design_link,
    effective_channels,
    measure,
    of_norm,
    symbols,
)
from radio.air.zero_forcing import Packing, ZeroForcing, zero_forcing
from radio.beamforming import BEAMFORMERS, beamform
from radio.channel import Cell, ChannelModel
from radio.channel.cell import ChannelVectors
from radio.channel.scene import Streams
from radio.scheduling import SCHEDULERS, Schedule, schedule
from radio.settings import Payload
from strategies.air_energy import AirPurse
from strategies.air_receiver import AirReceiver, AirUpdate, air_plan
from strategies.base import WirelessStrategy
from strategies.energy import ENERGY_COLUMNS, ENERGY_ROUND_COLUMNS, Energy
from strategies.plan import AirPlan, Assignment, Outcome, RoundPlan, Weights
from strategies.records import Value
from strategies.settings import Weighting

FloatVector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AirInterface:
    """The analog uplink, in SI and linear units.

    Attributes:
        channel: places and fading, with the number of receive antennas N.
        path_loss: whether users differ in mean gain; gains are relative to their mean over the users.
        snr: P0 / sigma^2 per antenna at the mean channel gain.
        noise: False removes the receiver noise (the error-free reference).
        num_selected: M, users that send.
        method: scheduling policy, a name or ``package.module:function``.
        scheduler_options: passed to the policy.
        beamformer: solver of the beam of a user set.
        mode: normalisation of the updates.
        packing: real entries per channel use.
        payload: what is sent, updates or weights.
        channel_error_variance: of the server's channel estimate, relative to a gain of 1.
        csi_delay: rounds by which the channels that the server knows are old.
        recompute_beam: solve for the beam again once the sizes of the updates are known.
        certificate: also bound the joint optimum of every round.
        bandwidth: Hz, channel uses per second.
        fixed_time, compute_time: T0 and G of each user, s, (K,).
        latency_threshold: T_th, s.
        energy: what devices may spend; None: nothing is known of joules. Devices of unlike power arrive with
            gains that differ as their powers, relative to the mean, do.
        charge_side_information: whether pilots, statistics, coefficients and masks take time on the band, as
            `radio.air.side_information` says.
        clip_norm: to which the users clip their updates, or None. The analog uplink is then designed for
            updates of that norm, not for those that there are: it shows nothing of them but their noisy sum.
    """

    channel: ChannelModel
    path_loss: bool
    snr: float
    noise: bool
    num_selected: int
    method: str
    beamformer: str
    mode: Mode
    packing: Packing
    payload: Payload
    channel_error_variance: float
    csi_delay: int
    recompute_beam: bool
    certificate: bool
    bandwidth: float
    fixed_time: FloatVector
    compute_time: FloatVector
    latency_threshold: float
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    energy: Energy | None = None
    charge_side_information: bool = False
    clip_norm: float | None = None

    @property
    def noise_power(self) -> float:
        """Receiver noise per antenna, for unit transmit power."""
        return 1.0 / self.snr if self.noise else 0.0

    @cached_property
    def amplitude(self) -> FloatVector | None:
        """Return each device's amplitude relative to that of the mean power, (K,); None: all alike."""
        power = None if self.energy is None else self.energy.power
        if power is None or bool((power == power[0]).all()):
            return None
        return np.asarray(np.sqrt(power / power.mean()))

    def cell(self, stream: Streams) -> Cell:
        """Return the emulated channels; `stream` as for `radio.channel.Cell`."""
        return Cell(
            self.channel,
            stream,
            spread="relative" if self.path_loss else "none",
            error_variance=self.channel_error_variance,
            delay=self.csi_delay,
        )


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
        self.cell = air.cell(partial(generator, self.seed))
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
        seconds = airtime_s(self.num_weights, self.air.bandwidth, self.air.packing)
        side = self._side_information(chosen, len(devices))
        columns.update(self._times(spent, seconds, side=side))
        columns["symbols"] = symbols(self.num_weights, self.air.packing)
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
            self.air.bandwidth,
            candidates=candidates,
            statistics=self.statistics_sent,
            broadcast_bits=broadcast_bits,
        )

    def _digital(self, chosen: AirPlan, side: SideInformation | None) -> FloatVector:
        """Return how long each user sends its statistics and its pilot, (M,) s."""
        seconds = 0.0
        if side is not None:  # of the pilots of all candidates one is its own
            seconds = side.uplink_s - (side.pilots - 1) / self.air.bandwidth
        return np.full(len(chosen.users), seconds)

    def _schedule(self, server_round: int, devices: Sequence[int]) -> tuple[AirPlan, dict[str, Value]]:
        air, candidates = self.air, np.asarray(devices)
        everyone = self.cell.draw_vectors(server_round)
        if air.amplitude is not None:
            everyone = everyone.scaled(air.amplitude)
        found = schedule(
            everyone.known[candidates],
            min(air.num_selected, len(candidates)),
            method=air.method,
            beamformer=air.beamformer,
            rng=generator(self.seed, "scheduling", server_round),
            upper_bound=air.certificate,
            **air.scheduler_options,
        )
        users = candidates[found.users]
        return AirPlan(users, everyone.of(users), found.beam), _schedule_columns(found, users)

    def _assignments(
        self, chosen: AirPlan, num_pruned: npt.NDArray[np.int64], extra: Mapping[str, FloatVector]
    ) -> tuple[Assignment, ...]:
        power = np.linalg.norm(chosen.channels.true, axis=1) ** 2
        beam_power = np.abs(chosen.channels.true @ chosen.beam.conj()) ** 2
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
        beam: (N,) of the plan.
        read: from the position of a user to what it sends, (d,).
        scaling: how users meet at the receiver.
    """
    statistics = measure(read, len(channels.known))
    if air.clip_norm is not None:
        statistics = of_norm(air.clip_norm, len(channels.known), statistics.size)
    if air.recompute_beam and statistics.std.max() > 0:
        effective = effective_channels(channels.known, statistics, weights=share, mode=air.mode)
        beam = beamform(effective, method=air.beamformer, initial=beam).beam
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
    )
    return link, average(read, link, noise, true_channels=None if channels.perfect else channels.true)


def _check_solvers(air: AirInterface) -> None:
    """Find an unknown policy, option or beamformer now, not in the first round.

    Raises:
        ValueError: naming it and what would be valid.
    """
    SCHEDULERS.select(air.method, air.scheduler_options)
    BEAMFORMERS.find(air.beamformer)


def _schedule_columns(found: Schedule, users: npt.NDArray[np.int_]) -> dict[str, Value]:
    return {
        "users": ";".join(str(user) for user in users),
        "min_gain": found.min_gain,
        "normalised_mse": found.normalised_mse,
        "gain_upper_bound": found.upper_bound,
    }
