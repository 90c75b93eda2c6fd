"""Over-the-air aggregation (arXiv 2508.00341): the channel adds the updates of users that send at once.

Per round: draw the channels, pick M users and a receive beam, have only those users train, send their
updates through the emulated air, and take the receiver's estimate of the average as the update.
`PrunedOverTheAir` does the same for pruned updates with a personal part: each weight is divided by the
number of users that kept it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from protocol.messages import TrainReport
from protocol.streams import generator
from radio import payload
from radio.air.sparse import (
    Airtime,
    CountMode,
    choose_common_mask,
    common_entries_for_budget,
    common_scale,
    design_sparse_link,
    pruning_for_budget,
    receive,
    sparse_airtime,
    superpose,
)
from radio.air.transceiver import (
    Mode,
    airtime_s,
    average,
    design_link,
    effective_channels,
    estimate_channels,
    measure,
    symbols,
)
from radio.air.zero_forcing import Packing
from radio.beamforming import beamform
from radio.beamforming import resolve as resolve_beamformer
from radio.channel import ChannelModel, draw_vectors, mean_gain, place_devices
from radio.scheduling import Schedule, resolve, schedule
from strategies.base import WirelessStrategy
from strategies.limits import update_norm
from strategies.masked import read_upload
from strategies.ofdma import prune_counts
from strategies.plan import Assignment, RoundPlan, Upload, Weights
from strategies.records import Value

FloatVector = npt.NDArray[np.float64]
ComplexMatrix = npt.NDArray[np.complex128]


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
        recompute_beam: solve for the beam again once the sizes of the updates are known.
        certificate: also bound the joint optimum of every round.
        server_learning_rate: step of the server along the averaged update.
        bandwidth: Hz, channel uses per second.
        fixed_time, compute_time: T0 and G of each user, s, (K,).
        latency_threshold: T_th, s.
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
    payload: Literal["delta", "model"]
    channel_error_variance: float
    recompute_beam: bool
    certificate: bool
    server_learning_rate: float
    bandwidth: float
    fixed_time: FloatVector
    compute_time: FloatVector
    latency_threshold: float
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noise_power(self) -> float:
        """Receiver noise per antenna, for unit transmit power."""
        return 1.0 / self.snr if self.noise else 0.0


@dataclass(frozen=True)
class _Round:
    """Channels and decisions of one round; rows are the selected users, ascending."""

    users: npt.NDArray[np.int64]
    true: ComplexMatrix
    known: ComplexMatrix
    beam: npt.NDArray[np.complex128]


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
    )
    scheme_device_columns: ClassVar[tuple[str, ...]] = ("channel_gain_db", "beam_gain_db")

    def __init__(
        self, *, air: AirInterface, weighting: Literal["uniform", "samples"] = "uniform", **skeleton: Any
    ) -> None:
        super().__init__(**skeleton)
        self.air = air
        self.weighting = weighting
        _check_solvers(air)
        placement = generator(self.seed, "placement")
        gain = np.ones(self.fleet.num_devices)
        if air.path_loss:
            gain = mean_gain(place_devices(air.channel, placement), air.channel, placement)
            gain = gain / gain.mean()
        self._mean_gain = gain
        self._round: _Round | None = None

    # Planning ----------------------------------------------------------------------------------

    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Schedule users and beam; the chosen ones train densely."""
        chosen, columns = self._schedule(server_round, devices)
        nothing = np.zeros(len(chosen.users), np.int64)
        spent = self.air.fixed_time[chosen.users] + self.air.compute_time[chosen.users]
        columns.update(self._times(spent, airtime_s(self.num_weights, self.air.bandwidth, self.air.packing)))
        columns["symbols"] = symbols(self.num_weights, self.air.packing)
        return RoundPlan(self._assignments(chosen, nothing, {}), columns=columns)

    def _schedule(self, server_round: int, devices: Sequence[int]) -> tuple[_Round, dict[str, Value]]:
        air, candidates = self.air, np.asarray(devices)
        stream = generator(self.seed, "channel", server_round)
        everyone = draw_vectors(air.channel, self._mean_gain, stream)
        known = everyone
        if air.channel_error_variance > 0:
            known = estimate_channels(everyone, air.channel_error_variance, stream)
        found = schedule(
            known[candidates],
            min(air.num_selected, len(candidates)),
            method=air.method,
            beamformer=air.beamformer,
            rng=generator(self.seed, "scheduling", server_round),
            upper_bound=air.certificate,
            **air.scheduler_options,
        )
        users = candidates[found.users]
        self._round = _Round(users, everyone[users], known[users], found.beam)
        return self._round, _schedule_columns(found, users)

    def _assignments(
        self, chosen: _Round, num_pruned: npt.NDArray[np.int64], extra: Mapping[str, FloatVector]
    ) -> tuple[Assignment, ...]:
        power = np.linalg.norm(chosen.true, axis=1) ** 2
        beam_power = np.abs(chosen.true @ chosen.beam.conj()) ** 2
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

    def _times(self, compute: FloatVector, air_seconds: float, mask_seconds: float = 0.0) -> dict[str, Value]:
        """Return the columns of a round in which all send at once when the last has computed."""
        slowest = float(compute.max())
        return {
            "compute_s": slowest,
            "airtime_s": air_seconds,
            "latency_s": slowest + air_seconds + mask_seconds,
        }

    # Receiving ---------------------------------------------------------------------------------

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> _AirReceiver:
        """Return a receiver that superposes the updates when all are there."""
        return _AirReceiver(self, server_round, weights)

    def aggregate(
        self, server_round: int, weights: Weights, uploads: Mapping[int, _Update]
    ) -> tuple[Weights, dict[str, Value]]:
        """Send the updates of the users that answered through the air and move the weights."""
        air, chosen = self.air, self._chosen()
        present = np.flatnonzero(np.isin(chosen.users, list(uploads)))
        senders = [uploads[int(user)] for user in chosen.users[present]]
        base = weights if air.payload == "model" else np.float32(0)

        def read(position: int) -> npt.NDArray[np.floating]:
            return senders[position].values + base

        share = None
        if self.weighting == "samples":
            share = np.array([sender.num_examples for sender in senders], np.float64)
        statistics = measure(read, len(senders))
        known, beam = chosen.known[present], chosen.beam
        if air.recompute_beam and statistics.std.max() > 0:
            effective = effective_channels(known, statistics, weights=share, mode=air.mode)
            beam = beamform(effective, method=air.beamformer, initial=beam).beam
        link = design_link(
            known,
            beam,
            statistics,
            power=1.0,
            noise_power=air.noise_power,
            weights=share,
            mode=air.mode,
            packing=air.packing,
        )
        result = average(
            read,
            link,
            generator(self.seed, "noise", server_round),
            true_channels=chosen.true[present] if air.channel_error_variance > 0 else None,
        )
        step = result.estimate - base
        moved = (weights + air.server_learning_rate * step).astype(np.float32)
        return moved, {"mse_predicted": result.predicted_mse, "mse_realised": result.realised_mse}

    def _chosen(self) -> _Round:
        if self._round is None:
            raise RuntimeError("aggregate_train was called before configure_train")
        return self._round


class PrunedOverTheAir(OverTheAir):
    """Pruned updates over the air, divided per weight by the number of users that kept it.

    Args:
        count_mode: how the server knows that number: ``bitmap`` (masks are sent digitally),
            ``common_mask`` (one mask for all, chosen by the server), ``count_free`` (it does not; divides by
            the number of users).
        shrinkage: ``off``, or ``moment`` to shrink each update towards 0 by its noise.
        explore: share of random entries in a common mask.
        min_count: weights kept by fewer users stay as they are.
    """

    scheme_round_columns: ClassVar[tuple[str, ...]] = (
        *OverTheAir.scheme_round_columns,
        "mask_s",
        "mask_bits",
        "pruning_ratio_mean",
        "latency_threshold_s",
        "shrinkage_mean",
    )
    scheme_device_columns: ClassVar[tuple[str, ...]] = (*OverTheAir.scheme_device_columns, "pruning_ratio")

    def __init__(
        self,
        *,
        count_mode: CountMode = "common_mask",
        shrinkage: Literal["off", "moment"] = "moment",
        explore: float = 0.1,
        min_count: int = 1,
        **parts: Any,
    ) -> None:
        super().__init__(**parts)
        self.count_mode: CountMode = count_mode
        self.shrinkage = shrinkage
        self.explore = explore
        self.min_count = min_count
        self._change = np.zeros(self.num_weights, np.float32)  # u^g - u^(g-1), which ranks a common mask
        self._mask: npt.NDArray[np.bool_] | None = None

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return the last change of the global part, which ranks the next common mask."""
        return {**super().state(), "change": self._change}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back the last change of the global part."""
        super().restore(state)
        self._change = np.asarray(state["change"], np.float32)

    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Schedule users and beam, and prune so that computing and sending fit the threshold."""
        chosen, columns = self._schedule(server_round, devices)
        slack = self.air.latency_threshold - self.air.fixed_time[chosen.users]
        compute = self.air.compute_time[chosen.users]
        able = slack > 0
        self._mask = None
        if self.count_mode == "common_mask":
            ratio, keep = np.ones(len(chosen.users)), 0
            if able.any():  # who has no time at all would leave none to the others
                keep, ratio[able] = common_entries_for_budget(
                    self.num_weights, slack[able], compute[able], self.air.bandwidth, self.air.packing
                )
            num_pruned = np.where(able, self.num_weights - keep, self.num_weights)
            rng = generator(self.seed, "scheduling", server_round, 1)
            self._mask = choose_common_mask(self._change, keep, rng, explore=self.explore)
            airtime = self._airtime(chosen, keep)
        else:
            ratio, airtime = self._fit_budget(chosen, slack, compute)
            num_pruned = prune_counts(ratio, self.num_weights)
        kept = 1.0 - num_pruned / self.num_weights
        spent = self.air.fixed_time[chosen.users] + kept * compute
        # Who sends nothing is done before the air is; who has no time is waited for only if nobody has any.
        sending, waited = num_pruned < self.num_weights, able if able.any() else ~able
        if sending.any():
            columns.update(self._times(spent[sending], airtime.analog_s, airtime.mask_s))
            waited = waited & ~sending
        else:
            columns.update(self._times(spent[waited], 0.0))
        columns["latency_s"] = max(float(columns["latency_s"] or 0), spent[waited].max(initial=0.0))
        columns.update(
            {
                "symbols": airtime.symbols,
                "mask_s": airtime.mask_s,
                "mask_bits": airtime.mask_bits,
                "pruning_ratio_mean": float(ratio.mean()),
                "latency_threshold_s": self.air.latency_threshold,
            }
        )
        # A device that keeps nothing has no use for the common mask.
        return RoundPlan(
            self._assignments(chosen, num_pruned, {"pruning_ratio": ratio}), mask=self._mask, columns=columns
        )

    def _fit_budget(
        self, chosen: _Round, slack: FloatVector, compute: FloatVector
    ) -> tuple[FloatVector, Airtime]:
        """Return each user's ratio and the airtime; users who cannot make it leave, the worst one first.

        A user who keeps nothing sends no mask either, which makes room for the others.
        """
        ratio = np.ones(len(chosen.users))
        active = np.flatnonzero(slack > 0)
        while active.size:
            airtime = self._airtime(chosen, None, active)
            ratio[active] = pruning_for_budget(slack[active], airtime.total_s, compute[active])
            if (ratio[active] < 1).all():
                return ratio, airtime
            power = np.linalg.norm(chosen.true[active], axis=1)
            leaver = active[np.where(ratio[active] == 1, power, np.inf).argmin()]
            ratio[leaver] = 1.0
            active = active[active != leaver]
        return ratio, Airtime(0.0, 0.0, 0, 0)

    def _airtime(
        self, chosen: _Round, common_entries: int | None, active: npt.NDArray[np.int_] | slice = slice(None)
    ) -> Airtime:
        power = np.linalg.norm(chosen.true[active], axis=1) ** 2
        return sparse_airtime(
            self.count_mode,
            self.num_weights,
            self.air.bandwidth,
            common_entries=common_entries,
            mask_rates_bps=self.air.bandwidth * np.log2(1.0 + self.air.snr * power),
            packing=self.air.packing,
        )

    def aggregate(
        self, server_round: int, weights: Weights, uploads: Mapping[int, _Update]
    ) -> tuple[Weights, dict[str, Value]]:
        """Superpose the masked updates and divide each weight by its count."""
        air, chosen = self.air, self._chosen()
        # A user without anything to say stays silent and is not counted.
        speaking = [user for user, update in uploads.items() if update.values.any()]
        present = np.flatnonzero(np.isin(chosen.users, speaking))
        if present.size == 0:
            self._change = np.zeros_like(weights)
            return weights, {}
        senders = [uploads[int(user)] for user in chosen.users[present]]
        link = design_sparse_link(
            chosen.known[present],
            chosen.beam,
            power=1.0,
            noise_power=air.noise_power,
            packing=air.packing,
            true_channels=chosen.true[present] if air.channel_error_variance > 0 else None,
        )
        total = superpose(
            ((update.values, update.mask) for update in senders), weights.size, link=link, common=self._mask
        )
        scale = common_scale(np.sqrt(total.mean_square))
        estimate = receive(
            weights,
            total,
            mode=self.count_mode,
            scale=scale,
            noise_variance=link.noise_variance,
            rng=generator(self.seed, "noise", server_round),
            shrinkage=self.shrinkage,
            min_count=self.min_count,
        )
        moved = estimate.weights
        if air.server_learning_rate != 1.0:
            moved = (weights + air.server_learning_rate * (moved - weights)).astype(np.float32)
        self._change = moved - weights
        moving = estimate.updated
        return moved, {
            "mse_predicted": estimate.predicted_mse,
            "mse_realised": estimate.realised_mse,
            "uncovered_share": float(1.0 - moving.mean()),
            "shrinkage_mean": float(estimate.shrinkage[moving].mean()) if moving.any() else None,
        }


@dataclass(frozen=True, eq=False)
class _Received(Upload):
    """One user's update: its retained entries."""

    update: payload.Payload


@dataclass(frozen=True, eq=False)
class _Update:
    """One user's update, dense with zeros where pruned, and its mask."""

    values: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    num_examples: int


class _AirReceiver:
    """Collects the updates of a round; the air adds them all at once."""

    def __init__(self, strategy: OverTheAir, server_round: int, weights: Weights) -> None:
        self._strategy = strategy
        self._round = server_round
        self._weights = weights
        self._updates: dict[int, _Update] = {}
        self._bytes = 0

    def open(self, assignment: Assignment, report: TrainReport) -> _Received | None:
        """Decode and check one user's update; what the air superposes travels as float32."""
        upload = read_upload(assignment, report, self._weights.size, bits=32)
        if upload is None or upload.num_kept == 0:
            return None
        return _Received(update_norm(upload.values), upload.num_bytes, upload)

    def add(
        self,
        assignment: Assignment,
        report: TrainReport,
        upload: Upload | None,
        *,
        scale: float,
        num_examples: int,
    ) -> Mapping[str, Value]:
        """Keep one user's update."""
        columns: dict[str, Value] = {
            "kept_weights": self._weights.size - assignment.num_pruned,
            "wire_bytes": 0,
        }
        if upload is None:
            return columns
        assert isinstance(upload, _Received)
        values = upload.update.dense()
        if scale < 1.0:
            values *= np.float32(scale)
        self._updates[assignment.device] = _Update(values, upload.update.mask, num_examples)
        self._bytes += upload.num_bytes
        return {**columns, "wire_bytes": upload.num_bytes}

    def finish(self) -> tuple[Weights, Mapping[str, Value]]:
        """Let the air add the updates."""
        if not self._updates:
            return self._weights, {"wire_bytes": 0}
        weights, columns = self._strategy.aggregate(self._round, self._weights, self._updates)
        return weights, {**columns, "wire_bytes": self._bytes}


def _check_solvers(air: AirInterface) -> None:
    """Find an unknown policy, option or beamformer now, not in the first round.

    Raises:
        ValueError: naming it and what would be valid.
    """
    policy = resolve(air.method)
    resolve_beamformer(air.beamformer)
    parameters = inspect.signature(policy).parameters
    known = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY} - {"beamformer", "rng"}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in air.scheduler_options:
        if name not in known and not takes_any:
            raise ValueError(
                f"scheduler.options.{name} is unknown to {air.method}; "
                f"valid: {', '.join(sorted(known)) or 'none'}"
            )


def _schedule_columns(found: Schedule, users: npt.NDArray[np.int_]) -> dict[str, Value]:
    return {
        "users": ";".join(str(user) for user in users),
        "min_gain": found.min_gain,
        "normalised_mse": found.normalised_mse,
        "gain_upper_bound": found.upper_bound,
    }
