"""How the learning rates change over the global rounds: a factor of both for each round.

A schedule is a function of the round (1, 2, ...) whose keyword-only parameters are its options
(``training.schedule_options``); one of the user's own is ``package.module:function``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from protocol.training import TrainingSpec
from registry import Registry

Schedule = Callable[..., float]
SCHEDULES: Registry[Schedule] = Registry("schedule", key="training.schedule")


@SCHEDULES.register("constant")
def constant(server_round: int) -> float:
    """Return 1."""
    return 1.0


@SCHEDULES.register("cosine")
def cosine(server_round: int, *, rounds: int, floor: float = 0.0) -> float:
    """Return a half cosine from 1 in round 1 to `floor` in round `rounds`, and `floor` later on.

    Raises:
        ValueError: if `rounds` is below 2 or `floor` not in [0, 1).
    """
    if rounds < 2 or not 0.0 <= floor < 1.0:
        raise ValueError(f"rounds = {rounds}, floor = {floor}; rounds >= 2 and 0 <= floor < 1 are expected")
    done = min((server_round - 1) / (rounds - 1), 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))


@SCHEDULES.register("step")
def step(server_round: int, *, every: int, factor: float = 0.1) -> float:
    """Return `factor` to the number of times that `every` rounds have passed.

    Raises:
        ValueError: if `every` is below 1 or `factor` not in (0, 1].
    """
    if every < 1 or not 0.0 < factor <= 1.0:
        raise ValueError(f"every = {every}, factor = {factor}; every >= 1 and 0 < factor <= 1 are expected")
    return float(factor ** ((server_round - 1) // every))


def rate(training: TrainingSpec, server_round: int) -> float:
    """Return the factor of the learning rates in a round.

    A factor of 0, as at the end of a cosine, is raised to 1e-12: steps are still taken, and move nothing.

    Raises:
        ValueError: if the schedule is not valid, or its factor is no number in [0, 1e6].
    """
    options = training.schedule_options
    found = float(SCHEDULES.select(training.schedule, options)(server_round, **options))
    if not 0.0 <= found <= 1e6:
        raise ValueError(
            f"training.schedule = {training.schedule} gives {found} in round {server_round}; "
            "a factor of the learning rates, 0 or more, is expected"
        )
    return max(found, 1e-12)
