"""Where devices are and how much of their power arrives on average: all that changes slowly in a cell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from radio.arrays import BoolArray, ComplexArray, FloatArray, positive
from radio.channel.fading import ChannelModel, mean_gain, place_devices
from radio.channel.memory import Process
from radio.channel.mobility import MOBILITIES, Mobility, Static
from radio.channel.path_loss import PATH_LOSSES, LogDistance, PathLoss

Streams = Callable[..., np.random.Generator]
"""`stream(purpose, *indices)`: independent generators by key, e.g. `functools.partial(generator, seed)`."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The slow half of a cell.

    Shadowing belongs to a place. Where devices move it is correlated as Gudmundson (1991) found,
    exp(-distance / d_corr), and whether a device sees the server follows a Gaussian process of the same
    correlation, so that its share of lines of sight is the law's at every distance.

    Attributes:
        model: the law of places, losses and movement.
        stream: keyed random streams; "placement" is used.
        keep: rounds whose states are kept, for those who ask for earlier ones.
    """

    model: ChannelModel
    stream: Streams
    keep: int = 2

    @property
    def step(self) -> float:
        """Return the time from round to round, s."""
        return self.model.step

    @cached_property
    def _first(self) -> tuple[FloatArray, FloatArray | None]:
        """Distances at the start; and, where the law is log-distance, the gains, drawn from one stream."""
        rng = self.stream("placement")
        distances = place_devices(self.model, rng)
        return distances, mean_gain(distances, self.model, rng) if self._plain else None

    @cached_property
    def start(self) -> ComplexArray:
        """Return the places at the start, (K,) m: distances as the placement says, directions uniform."""
        turn = self.stream("placement", 1).random(self.model.num_devices)
        return np.asarray(self._first[0] * np.exp(2j * np.pi * turn))

    @cached_property
    def path_loss(self) -> PathLoss:
        """Return the law."""
        options = dict(self.model.path_loss_options)
        law: PathLoss = PATH_LOSSES.select(self.model.path_loss, options)(self.model, **options)
        return law

    @cached_property
    def mobility(self) -> Mobility:
        """Return how devices move."""
        options = dict(self.model.mobility_options)
        moves: Mobility = MOBILITIES.select(self.model.mobility, options)(self, **options)
        return moves

    @property
    def _plain(self) -> bool:
        return isinstance(self.path_loss, LogDistance)

    @property
    def moves(self) -> bool:
        """Whether anything here depends on the round."""
        return not isinstance(self.mobility, Static)

    def distance(self, server_round: int = 1) -> FloatArray:
        """Return how far each device is from the server, (K,) m."""
        if not self.moves:
            return self._first[0]
        return np.abs(self.mobility.at(server_round))

    def angle(self, server_round: int = 1) -> FloatArray:
        """Return the direction of each device as seen from the server, (K,) radians."""
        return np.angle(self.mobility.at(server_round))

    def mean_gain(self, server_round: int = 1) -> FloatArray:
        """Return the mean power gain of one antenna, (K,), linear: path loss and shadowing."""
        if not self.moves:
            return self._static_gain
        place, shadow, sight = self._slow.at(server_round)
        return self._gain(np.abs(place), shadow, sight)

    @cached_property
    def _static_gain(self) -> FloatArray:
        distances, gain = self._first
        if gain is not None:
            return gain
        shadow, sight = self._normals(1)
        return self._gain(distances, shadow, sight)

    def visible(self, server_round: int = 1) -> BoolArray:
        """Return which devices see the server, (K,); all where the law makes no difference."""
        if self.moves:
            place, _, sight = self._slow.at(server_round)
            return self._visible(np.abs(place), sight)
        return self._visible(self._first[0], self._normals(1)[1])

    def _visible(self, distance: FloatArray, sight: FloatArray) -> BoolArray:
        from scipy.special import ndtri  # here: who only asks for settings need not wait for it

        chance = self.path_loss.visibility(distance)
        if chance is None:
            return np.ones(distance.shape, dtype=np.bool_)
        return np.asarray(sight < ndtri(np.clip(chance, 0.0, 1.0)))

    def _gain(self, distance: FloatArray, shadow: FloatArray, sight: FloatArray) -> FloatArray:
        visible = self._visible(distance, sight)
        loss = self.path_loss.loss_db(positive("distances", distance), visible)
        loss = loss + self.path_loss.shadowing_std_db(visible) * shadow
        return np.asarray(10.0 ** (-loss / 10), dtype=np.float64)

    def _normals(self, server_round: int) -> tuple[FloatArray, FloatArray]:
        """Return fresh standard normal numbers of a round, for shadowing and for sight, (K,) each."""
        rng = self.stream("placement", 2, server_round)
        return rng.standard_normal(self.model.num_devices), rng.standard_normal(self.model.num_devices)

    @cached_property
    def _slow(self) -> Process[tuple[ComplexArray, FloatArray, FloatArray]]:
        def start() -> tuple[ComplexArray, FloatArray, FloatArray]:
            return self.mobility.at(1), *self._normals(1)

        def step(
            state: tuple[ComplexArray, FloatArray, FloatArray], server_round: int
        ) -> tuple[ComplexArray, FloatArray, FloatArray]:
            place, *old = state
            moved = self.mobility.at(server_round)
            rho = np.exp(-np.abs(moved - place) / self.model.shadowing_distance)
            fresh = self._normals(server_round)
            shadow, sight = (
                rho * before + np.sqrt(1 - rho**2) * new for before, new in zip(old, fresh, strict=True)
            )
            return moved, shadow, sight

        return Process(start, step, self.keep)
