"""Which numbers are compared, and how many independent samples they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.report.folders import Run
from experiments.report.metrics import FloatVector, Unit, quantity
from experiments.report.significance import Span, deviations


class MissingNumbersError(Exception):
    """There are no numbers to check the claim on."""


@dataclass(frozen=True)
class Samples:
    """Independent samples: one per seed or draw.

    Attributes:
        sides: one vector per side, paired.
        each: the same before averaging over what else was swept, one entry per run or draw.
        text: how many, as a reader wants to know it.
    """

    sides: list[FloatVector]
    each: list[FloatVector]
    text: str


def paired(sides: Sequence[Mapping[Unit, float]], runs: Sequence[Run], statistic: str = "mean") -> Samples:
    """Return paired independent samples of what all sides share.

    A seed or draw that lacks some of the swept values (a failed job) is left out, so that all samples are
    averages over the same.

    Raises:
        MissingNumbersError: if nothing is shared.
    """
    shared = [unit for unit in sides[0] if all(unit in side for side in sides)]
    points = {unit[:-2] for unit in shared}
    by_places = _places_differ(runs)
    clusters: dict[Unit, list[Unit]] = {}
    for unit in shared:
        clusters.setdefault(unit[-2:-1] if by_places else unit[-2:], []).append(unit)
    whole = max((len(units) for units in clusters.values()), default=0)
    clusters = {key: units for key, units in clusters.items() if len(units) == whole}
    if not clusters or (not by_places and whole < len(points)):
        raise MissingNumbersError(
            "the two sides share no seed or draw" if len(sides) > 1 else "no complete seed or draw"
        )
    if statistic == "std":
        sides = [_deviations(side, shared) for side in sides]
    rows = [[side[unit] for unit in units] for side in sides for units in clusters.values()]
    means = np.array([np.mean(row) for row in rows]).reshape(len(sides), len(clusters))
    each = [np.array([side[unit] for units in clusters.values() for unit in units]) for side in sides]
    return Samples(list(means), each, _count(len(clusters), whole, runs, by_places=by_places))


def _deviations(side: Mapping[Unit, float], units: Sequence[Unit]) -> dict[Unit, float]:
    """Return the distance of each number from the median of its point of the sweep."""
    points: dict[Unit, list[Unit]] = {}
    for unit in units:
        points.setdefault(unit[:-2], []).append(unit)
    return {
        unit: value
        for members in points.values()
        for unit, value in zip(members, deviations(np.array([side[u] for u in members])), strict=True)
    }


def _places_differ(runs: Sequence[Run]) -> bool:
    """Return whether these are draws of several seeds whose devices stand elsewhere with every seed.

    All draws of a seed then share the places, and only the seeds are independent samples.
    """
    return _random_places(runs) and len({run.seed for run in runs}) > 1


def _random_places(runs: Sequence[Run]) -> bool:
    return any(
        run.is_study
        and (run.config.get("channel.placement") == "random" or run.config.get("channel.shadowing_std_db"))
        for run in runs
    )


def _count(count: int, whole: int, runs: Sequence[Run], *, by_places: bool) -> str:
    study = bool(runs) and runs[0].is_study
    name = ("draw" if study and not by_places else "seed") if whole > 1 or study else "run"
    text = f"{count} {name}{'' if count == 1 else 's'}"
    if by_places:
        return f"{text} of {whole} draws"
    if study and _random_places(runs):
        text += " of one placement"
    return f"{text}, each the mean of {whole} settings" if whole > 1 else text


def span_of_difference(column: str) -> Span | None:
    """Return the values that a difference of two numbers can take, if they can repeat by chance."""
    span = quantity(column).span
    return None if span is None else (span[0] - span[1], span[1] - span[0])


def scale_of(*sides: FloatVector) -> float:
    """Return the size of the largest number."""
    return float(max(np.abs(side).max(initial=0.0) for side in sides))


def error_of(values: FloatVector, statistic: str = "mean") -> float:
    """Return the standard error of a mean, or of the deviation of normal samples; infinite for one."""
    count = values.size
    if count < 2:
        return math.inf
    spread = float(values.std(ddof=1))
    return spread / math.sqrt(2 * (count - 1) if statistic == "std" else count)


def statistic_of(values: FloatVector, statistic: str) -> float:
    """Return mean, std or max."""
    if statistic == "std":
        return float(values.std(ddof=1)) if values.size > 1 else 0.0
    return float(values.max() if statistic == "max" else values.mean())
