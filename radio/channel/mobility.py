"""Where devices are in a round: points of the plane as complex numbers, the server at 0.

A model is a function ``(scene, **options) -> Mobility``; its name goes into ``channel.mobility``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from radio.arrays import ComplexArray, FloatArray, non_negative
from radio.channel.memory import Process
from registry import Registry

if TYPE_CHECKING:
    from radio.channel.scene import Scene


class Mobility(Protocol):
    """The places of all devices, round by round."""

    def at(self, server_round: int) -> ComplexArray:
        """Return (K,) places, m."""
        ...


MOBILITIES: Registry[Callable[..., Mobility]] = Registry("mobility model", key="channel.mobility")


@dataclass(frozen=True, eq=False)
class Static:
    """Devices that stay where they are."""

    places: ComplexArray

    def at(self, server_round: int) -> ComplexArray:
        """Return the places."""
        return self.places


@MOBILITIES.register("static")
def static(scene: Scene) -> Static:
    """Return devices that stay where they are."""
    return Static(scene.start)


@MOBILITIES.register("random_waypoint")
class RandomWaypoint:
    """Each device walks to a point drawn uniformly in the cell, then to the next one, without a pause.

    Johnson and Maltz 1996. A device that comes within the cell's inner radius stays outside of it: its
    distance is that of the inner radius.
    """

    def __init__(self, scene: Scene, *, speed_kmh: float) -> None:
        """Start at the cell's places, each device with a first target."""
        self._scene = scene
        self._reach = float(non_negative("speed_kmh", speed_kmh)) / 3.6 * scene.step
        self._process = Process(self._start, self._step, scene.keep)

    def at(self, server_round: int) -> ComplexArray:
        """Return (K,) places, m."""
        return keep_outside(self._process.at(server_round)[0], self._scene.model.min_distance)

    def _start(self) -> tuple[ComplexArray, ComplexArray]:
        return self._scene.start, self._targets(1)

    def _targets(self, server_round: int) -> ComplexArray:
        rng, model = self._scene.stream("placement", 4, server_round), self._scene.model
        area, turn = rng.random(model.num_devices), rng.random(model.num_devices)
        inner, outer = model.min_distance**2, model.cell_radius**2
        return np.asarray(np.sqrt(inner + (outer - inner) * area) * np.exp(2j * np.pi * turn))

    def _step(
        self, state: tuple[ComplexArray, ComplexArray], server_round: int
    ) -> tuple[ComplexArray, ComplexArray]:
        place, target = state
        way = target - place
        length = np.abs(way)
        arrives = length <= self._reach
        moved = place + way * np.divide(self._reach, length, out=np.zeros(length.shape), where=length > 0)
        if not arrives.any():
            return moved, target
        new = np.where(arrives, self._targets(server_round), target)
        return np.where(arrives, target, moved), new


@MOBILITIES.register("straight")
class Straight:
    """Each device goes straight on in a direction of its own and is reflected at the cell's edge."""

    def __init__(self, scene: Scene, *, speed_kmh: float) -> None:
        """Start at the cell's places, each device with a direction drawn once."""
        self._scene = scene
        self._reach = float(non_negative("speed_kmh", speed_kmh)) / 3.6 * scene.step
        self._process = Process(self._start, self._step, scene.keep)

    def at(self, server_round: int) -> ComplexArray:
        """Return (K,) places, m."""
        return keep_outside(self._process.at(server_round)[0], self._scene.model.min_distance)

    def _start(self) -> tuple[ComplexArray, ComplexArray]:
        turn = self._scene.stream("placement", 4, 1).random(self._scene.model.num_devices)
        return self._scene.start, np.exp(2j * np.pi * turn)

    def _step(
        self, state: tuple[ComplexArray, ComplexArray], server_round: int
    ) -> tuple[ComplexArray, ComplexArray]:
        place, direction = state
        moved = place + self._reach * direction
        radius = self._scene.model.cell_radius
        outside = np.abs(moved) > radius
        normal = np.divide(moved, np.abs(moved), out=np.ones_like(moved), where=outside)
        turned = direction - 2 * np.real(direction * normal.conj()) * normal
        return np.where(outside, radius * normal, moved), np.where(outside, turned, direction)


def keep_outside(place: ComplexArray, radius: float) -> ComplexArray:
    """Return the places, those within `radius` of the server put at that distance in their direction."""
    distance: FloatArray = np.abs(place)
    direction = np.divide(place, distance, out=np.ones_like(place), where=distance > 0)
    return np.where(distance < radius, radius * direction, place)
