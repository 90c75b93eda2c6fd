"""Over-the-air averaging that learns through the noise (ours): `strategies.over_the_air` with better ends.

The same power, airtime, antennas and channels. By default updates are sent, the server's momentum follows the
share of signal in what it hears, and the model is the average of the iterates. Switches (`AdaptiveSettings`)
add receive scaling of least error, users that keep what they could not deliver for their next turn,
shrinkage, and the number and weights of users. All of it follows from what the server of `over_the_air` knows
already: the channels, the noise variance, the power of what it heard, the statistics of the users. One more
number per user is signalled, and charged, only where users count by their norms and models are sent. With
every switch off this is `OverTheAir`, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from protocol.arrays import read_weights, weights_record
from protocol.streams import generator
from radio.air.denoising import predicted_error
from radio.air.zero_forcing import beamed_gain
from strategies.adaptive_receiver import Memory, combine_adaptive
from strategies.air_receiver import AirReceiver
from strategies.iterate_average import IterateAverage
from strategies.noise_aware import NoiseAwareMomentum
from strategies.over_the_air import OverTheAir
from strategies.plan import AirPlan, RoundPlan, Weights
from strategies.records import Value
from strategies.settings import AdaptiveSettings


class AdaptiveOverTheAir(OverTheAir):
    """`OverTheAir` whose receiver makes the most of what it knows.

    Args:
        adaptive: what is switched on.
        tensors: where each parameter lies in the global part.
        rest: as for `OverTheAir`.
    """

    scheme_round_columns: ClassVar[tuple[str, ...]] = (
        *OverTheAir.scheme_round_columns,
        "least_delivered",
        "shrinkage_mean",
        "symbol_correlation",
    )

    def __init__(self, *, adaptive: AdaptiveSettings, tensors: Sequence[slice], **rest: Any) -> None:
        super().__init__(**rest)
        self.adaptive = adaptive
        whole = (slice(0, self.num_weights),)
        self.blocks = {"off": (), "whole": whole, "tensors": tuple(tensors)}[adaptive.shrinkage]
        if adaptive.norm_exponent and self.air.payload == "model":
            self.statistics_sent = 3  # the deviation of its update too
        self.memory = Memory()
        self.momentum = NoiseAwareMomentum(adaptive.momentum)
        power = adaptive.averaging_power
        self.average = None if power is None else IterateAverage(power)

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs beyond the global part."""
        average = {} if self.average is None else self.average.state()
        return {**super().state(), **self.memory.state(), **self.momentum.state(), **average}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        super().restore(state)
        self.memory.restore(state)
        self.momentum.restore(state)
        if self.average is not None:
            self.average.restore(state)

    # How many users ----------------------------------------------------------------------------

    def _schedule(self, server_round: int, devices: Sequence[int]) -> tuple[AirPlan, dict[str, Value]]:
        """Schedule as many users as the predicted error asks for, at most ``air.num_selected``."""
        if not self.adaptive.choose_users:
            return super()._schedule(server_round, devices)
        full, tried = self.air, []
        for users in _numbers(min(full.num_selected, len(devices))):
            self.air = dataclasses.replace(full, num_selected=users)
            try:
                chosen = super()._schedule(server_round, devices)
            finally:
                self.air = full
            tried.append((self._predicted(chosen[0], len(devices)), chosen))
        return min(tried, key=lambda pair: pair[0])[1]

    def _predicted(self, chosen: AirPlan, candidates: int) -> float:
        return predicted_error(
            beamed_gain(chosen.channels.known, chosen.beam),
            candidates,
            self.air.noise_power * (1.0 if self.air.packing == "iq" else 0.5),
            correlation=self.memory.correlation or 0.0,
            exact=self.adaptive.receive_scaling == "exact",
        )

    # Receiving ---------------------------------------------------------------------------------

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> AirReceiver:
        """Return a receiver that superposes the updates when all are there."""
        noise = generator(self.seed, "noise", server_round)
        parts = (self.air, self.weighting, self.adaptive, self.blocks, self.memory, self.momentum, noise)
        return AirReceiver(plan, weights, partial(combine_adaptive, *parts))

    # The average of the iterates ---------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the devices train from the last iterate; what is tested and stored is the average."""
        if self.average is not None and self.average.iterate is not None:
            self.average.mean = read_weights(arrays)
            arrays = weights_record(self.average.iterate)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies, and average the iterates."""
        record, metrics = super().aggregate_train(server_round, replies)
        if self.average is None:
            return record, metrics
        if record is not None:
            self._weights = self.average.add(self._weights)
            return weights_record(self._weights), metrics
        if self.average.mean is not None:
            self._weights = self.average.mean
        return record, metrics


def _numbers(most: int) -> list[int]:
    """Return numbers of users to try, from `most` down to 1, each about 1/sqrt(2) of the one before."""
    numbers = [most]
    while numbers[-1] > 1:
        numbers.append(min(round(numbers[-1] / 2**0.5), numbers[-1] - 1))
    return numbers
