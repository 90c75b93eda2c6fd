"""Pruned, personalised updates over the air: each weight is divided by the number of users that kept it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord

from protocol.streams import generator
from radio.air.packing import symbols
from radio.air.side_information import multi_access_s
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
from strategies.air_interface import AirInterface, FloatVector
from strategies.air_receiver import AirReceiver, AirUpdate, air_plan
from strategies.ofdma import prune_counts
from strategies.over_the_air import OverTheAir
from strategies.plan import AirPlan, Outcome, RoundPlan, Weights
from strategies.records import Value


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
    statistics_sent: int = 1  # the scale of its update

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

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return the last change of the global part, which ranks the next common mask."""
        return {**super().state(), "change": self._change}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back the last change of the global part."""
        super().restore(state)
        self._change = np.asarray(state["change"], np.float32)

    def _plan_for(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Schedule users and beam, and prune so that computing and sending fit the threshold."""
        chosen, columns = self._schedule(server_round, devices)
        common = self.num_weights if self.count_mode == "common_mask" else 0  # the mask that is broadcast
        side = self._side_information(chosen, len(devices), broadcast_bits=common)
        slack = self.air.latency_threshold - self.air.fixed_time[chosen.users]
        if side is not None:
            slack = slack - side.seconds
        compute = self.air.compute_time[chosen.users]
        able = slack > 0
        mask = None
        if self.count_mode == "common_mask":
            ratio, keep = np.ones(len(chosen.users)), 0
            if able.any():  # who has no time at all would leave none to the others
                keep, ratio[able] = common_entries_for_budget(
                    self.num_weights, slack[able], compute[able], self.air.bandwidth, self.air.packing
                )
            num_pruned = np.where(able, self.num_weights - keep, self.num_weights)
            rng = generator(self.seed, "scheduling", server_round, 1)
            mask = choose_common_mask(self._change, keep, rng, explore=self.explore)
            airtime = self._airtime(chosen, keep)
        else:
            ratio, airtime = self._fit_budget(chosen, slack, compute)
            num_pruned = prune_counts(ratio, self.num_weights)
        kept = 1.0 - num_pruned / self.num_weights
        spent = self.air.fixed_time[chosen.users] + kept * compute
        # Who sends nothing is done before the air is; one without time is waited for only if none has any.
        sending, waited = num_pruned < self.num_weights, able if able.any() else ~able
        if sending.any():
            columns.update(self._times(spent[sending], airtime.analog_s, airtime.mask_s, side))
            waited = waited & ~sending
        else:
            columns.update(self._times(spent[waited], 0.0, side=side))
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
        chosen = replace(
            chosen,
            airtime=airtime.analog_s,
            digital=self._digital(chosen, side) + self._mask_seconds(chosen, sending, airtime),
        )
        # A device that keeps nothing has no use for the common mask.
        return RoundPlan(
            self._assignments(chosen, num_pruned, {"pruning_ratio": ratio}),
            mask=mask,
            columns=columns,
            detail=chosen,
        )

    def _fit_budget(
        self, chosen: AirPlan, slack: FloatVector, compute: FloatVector
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
            power = np.linalg.norm(chosen.channels.true[active], axis=1)
            leaver = active[np.where(ratio[active] == 1, power, np.inf).argmin()]
            ratio[leaver] = 1.0
            active = active[active != leaver]
        return ratio, Airtime(0.0, 0.0, 0, 0)

    def _airtime(
        self, chosen: AirPlan, common_entries: int | None, active: npt.NDArray[np.int_] | slice = slice(None)
    ) -> Airtime:
        airtime = sparse_airtime(
            self.count_mode,
            self.num_weights,
            self.air.bandwidth,
            common_entries=common_entries,
            mask_rates_bps=self._mask_rates(chosen, active),
            packing=self.air.packing,
        )
        if airtime.mask_bits and self.air.charge_side_information:  # at once, not one after the other
            together = multi_access_s(
                chosen.channels.true[active], self.air.snr, self.num_weights, self.air.bandwidth
            )
            airtime = replace(airtime, mask_s=together)
        return airtime

    def _mask_rates(self, chosen: AirPlan, active: npt.NDArray[np.int_] | slice) -> FloatVector:
        """Return the rate of each user over the whole band, bit/s."""
        power = np.linalg.norm(chosen.channels.true[active], axis=1) ** 2
        return np.asarray(self.air.bandwidth * np.log2(1.0 + self.air.snr * power))

    def _mask_seconds(self, chosen: AirPlan, sending: npt.NDArray[np.bool_], airtime: Airtime) -> FloatVector:
        """Return how long each user sends its mask, (M,) s."""
        seconds = np.zeros(len(chosen.users))
        if airtime.mask_bits == 0:
            return seconds
        if self.air.charge_side_information:
            return np.where(sending, airtime.mask_s, 0.0)
        seconds[sending] = self.num_weights / self._mask_rates(chosen, np.flatnonzero(sending))
        return seconds

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> AirReceiver:
        """Return a receiver that superposes the masked updates and divides each weight by its count."""
        combine = partial(
            combine_pruned,
            self.air,
            generator(self.seed, "noise", server_round),
            count_mode=self.count_mode,
            shrinkage=self.shrinkage,
            min_count=self.min_count,
        )
        return AirReceiver(plan, weights, combine)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies and note the change of the global part."""
        before = self._weights
        taken = super().aggregate_train(server_round, replies)
        if taken[0] is not None:
            self._change = self._weights - before
        return taken


def combine_pruned(
    air: AirInterface,
    noise: np.random.Generator,
    plan: RoundPlan,
    weights: Weights,
    uploads: Mapping[int, AirUpdate],
    *,
    count_mode: CountMode,
    shrinkage: Literal["off", "moment"],
    min_count: int,
) -> Outcome:
    """Superpose the masked updates of the users that answered and divide each weight by its count.

    Args:
        air: the analog uplink.
        noise: draws the receiver noise.
        plan: of the round, with an `AirPlan`.
        weights: the global part that was broadcast.
        uploads: by user.
        count_mode, shrinkage, min_count: as in `PrunedOverTheAir`.
    """
    chosen = air_plan(plan)
    # A user without anything to say stays silent and is not counted.
    speaking = [user for user, update in uploads.items() if update.values.any()]
    present = np.flatnonzero(np.isin(chosen.users, speaking))
    if present.size == 0:
        return Outcome(weights, {}, np.zeros(weights.size, np.bool_))
    senders = [uploads[int(user)] for user in chosen.users[present]]
    channels = chosen.channels.of(present)
    link = design_sparse_link(
        channels.known,
        chosen.beam,
        power=1.0,
        noise_power=air.noise_power,
        packing=air.packing,
        true_channels=chosen.channels.true[present] if air.channel_error_variance > 0 else None,
    )
    total = superpose(
        ((update.values, update.mask) for update in senders), weights.size, link=link, common=plan.mask
    )
    scale = common_scale(np.sqrt(total.mean_square))
    estimate = receive(
        weights,
        total,
        mode=count_mode,
        scale=scale,
        noise_variance=link.noise_variance,
        rng=noise,
        shrinkage=shrinkage,
        min_count=min_count,
    )
    moving = estimate.updated
    # Of a mean over the symbols; a symbol holds two entries, but for the last of an odd number.
    entries = symbols(total.slots, air.packing) * (2 if air.packing == "iq" else 1)
    mean = total.mean_square / scale**2 * (total.slots / max(entries, 1))
    sent = np.abs(link.transmit) ** 2 * mean
    columns: dict[str, Value] = {
        "mse_predicted": estimate.predicted_mse,
        "mse_realised": estimate.realised_mse,
        "uncovered_share": float(1.0 - moving.mean()),
        "shrinkage_mean": float(estimate.shrinkage[moving].mean()) if moving.any() else None,
    }
    power = dict(zip(chosen.users[present].tolist(), sent.tolist(), strict=True))
    return Outcome(estimate.weights, columns, moving, power=power)
