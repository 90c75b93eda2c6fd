"""Who sends over which channels to which beams: a round of the air, flat or over subcarriers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from protocol.streams import generator
from radio.air.ofdm import Ofdm
from radio.channel import Cell
from radio.channel.cell import ChannelVectors
from radio.channel.taps import TappedCell
from radio.scheduling import Schedule, schedule
from radio.scheduling.band import schedule_band
from strategies.air_interface import AirInterface
from strategies.plan import AirPlan
from strategies.records import Value


@dataclass(frozen=True, eq=False)
class AirChannels:
    """The channels of a run, and the choice of users and beams in each round.

    Attributes:
        seed: of the run.
        cell: draws the channels of one carrier.
        band: draws the taps of channels over subcarriers; None without them.
    """

    seed: int
    cell: Cell
    band: TappedCell | None

    @classmethod
    def of(cls, air: AirInterface, seed: int) -> AirChannels:
        """Return the channels of a run with this seed."""
        stream = partial(generator, seed)
        return cls(seed, air.cell(stream), air.band(stream))

    def plan(
        self, air: AirInterface, server_round: int, devices: Sequence[int]
    ) -> tuple[AirPlan, dict[str, Value]]:
        """Schedule users and beams among these devices; return the plan and its columns."""
        candidates = np.asarray(devices)
        cell = self.cell if self.band is None else self.band
        everyone = cell.draw_vectors(server_round)
        if air.amplitude is not None:
            everyone = everyone.scaled(air.amplitude)

        def choose(channels: npt.NDArray[np.complex128]) -> Schedule:
            return schedule(
                channels,
                min(air.num_selected, len(candidates)),
                method=air.method,
                beamformer=air.beamformer,
                rng=generator(self.seed, "scheduling", server_round),
                upper_bound=air.certificate,
                **air.scheduler_options,
            )

        if air.ofdm is None:
            found = choose(everyone.known[candidates])
            users = candidates[found.users]
            return AirPlan(users, everyone.of(users), found.beam), _columns(users, found, found.min_gain)
        return self._plan_band(air, air.ofdm, server_round, everyone, candidates, choose)

    def _plan_band(
        self,
        air: AirInterface,
        ofdm: Ofdm,
        server_round: int,
        everyone: ChannelVectors,
        candidates: npt.NDArray[np.int64],
        choose: Callable[[npt.NDArray[np.complex128]], Schedule],
    ) -> tuple[AirPlan, dict[str, Value]]:
        taps = everyone.known[candidates]
        found = schedule_band(
            ofdm.response(taps, ofdm.centre),
            lambda users: ofdm.response(taps[users]),
            ofdm.group,
            choose,
            beamformer=air.beamformer,
        )
        users = candidates[found.users]
        columns = _columns(users, found.first, found.min_gain)
        if ofdm.taps > 1:
            columns["gain_upper_bound"] = None  # that of the first group bounds no other
        known = ofdm.response(everyone.known[users])
        true = known if everyone.perfect else ofdm.response(everyone.true[users])
        if not ofdm.synchronised:
            offsets = ofdm.draw_offsets(len(everyone.true), generator(self.seed, "channel", server_round, 0))
            true = true * ofdm.rotation(offsets)[users][:, :, np.newaxis]
        return AirPlan(users, ChannelVectors(true, known), found.beam), columns


def _columns(users: npt.NDArray[np.int64], found: Schedule, gain: float) -> dict[str, Value]:
    return {
        "users": ";".join(str(user) for user in users),
        "min_gain": gain,
        "normalised_mse": 1.0 / gain,
        "gain_upper_bound": found.upper_bound,
    }
