"""The numbers of a panel, before anything is drawn: lines, points, bars, distributions, maps.

A panel whose runs have none of its numbers is not made at all, so that no figure has an empty one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from experiments.report.devices import STARVED, final_values, values_by_round
from experiments.report.folders import Run
from experiments.report.metrics import (
    FloatVector,
    collect,
    key,
    key_label,
    matches,
    quantity,
    rounds,
    show,
    spread_of,
    values_of,
)
from experiments.report.spec import Panel, Report, Spread


@dataclass(frozen=True)
class Line:
    """One line, or the points or bars of one colour, in the units of the axes.

    Attributes:
        label: what makes it, as text.
        look: its number among the lines of its keys: colour, dash, marker.
        x, y: (n,) places; of bars, x is the number of the bar's name.
        spread: (n,) half-length of the error bar or band, 0 where there is one sample.
        counts: samples behind the points.
    """

    label: str
    look: int
    x: FloatVector
    y: FloatVector
    spread: FloatVector
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Heat:
    """A map of colours.

    Attributes:
        values: (rows, columns), NaN where there is none.
        rows, columns: what they are called.
        label: of the colours.
    """

    values: FloatVector
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class PanelData:
    """What a panel shows.

    Attributes:
        panel: what it was asked for.
        keys: configuration keys that make the lines.
        lines: none in a map.
        xlabel, ylabel: of the axes.
        names: of the places of bars.
        heat: of a map.
        note: what the caption adds.
        study: whether the samples are draws, not runs.
        seeds: of its runs.
        spread: what the bands and error bars are.
    """

    panel: Panel
    keys: tuple[str, ...]
    lines: tuple[Line, ...] = ()
    xlabel: str = ""
    ylabel: str = ""
    names: tuple[str, ...] = ()
    heat: Heat | None = None
    note: str = ""
    study: bool = False
    seeds: tuple[int, ...] = ()
    spread: Spread = "auto"

    @property
    def counts(self) -> list[int]:
        """Samples of every point."""
        return [count for line in self.lines for count in line.counts]


@dataclass(frozen=True)
class _Asked:
    """A panel with its runs."""

    panel: Panel
    runs: Sequence[Run]
    keys: tuple[str, ...]
    spread: Spread

    def lines(self, keys: Sequence[str] | None = None) -> Iterator[tuple[str, int, list[Run]]]:
        """Yield label, look and runs of each line."""
        keys = self.keys if keys is None else keys
        for look, values in enumerate(values_of(self.runs, keys)):
            members = [run for run in self.runs if matches(run, dict(zip(keys, values, strict=True)))]
            label = ", ".join(show(value, name) for name, value in zip(keys, values, strict=True))
            yield label, look, members

    def numbers(self, runs: Sequence[Run], keys: Sequence[str]) -> FloatVector:
        """Return one number per sample, in the unit of the axis."""
        found = collect(runs, self.panel.y, keys, target=self.panel.target)
        return np.array(list(found.values())) * quantity(self.panel.y).scale

    def half(self, numbers: FloatVector) -> float:
        """Return the half-length of an error bar over these samples."""
        return spread_of(numbers, self.spread, study=self.runs[0].is_study)


def panels_of(report: Report, runs: Sequence[Run]) -> list[PanelData]:
    """Return the panels of a report that have something to show, from its completed runs."""
    completed = [run for run in runs if run.completed]
    found = []
    for panel in report.panels:
        chosen = [run for run in completed if matches(run, panel.where)]
        if not chosen:
            continue
        keys = tuple(report.series if panel.series is None else panel.series)
        data = _MAKE[panel.kind](_Asked(panel, chosen, keys, report.spread))
        if data is not None:
            found.append(data)
    return found


def _made(asked: _Asked, lines: Sequence[Line], **rest: Any) -> PanelData | None:
    if not lines and rest.get("heat") is None:
        return None
    return PanelData(
        panel=asked.panel,
        lines=tuple(lines),
        study=asked.runs[0].is_study,
        seeds=tuple(sorted({run.seed for run in asked.runs})),
        spread=asked.spread,
        **{"keys": asked.keys, **rest},
    )


def _curve(asked: _Asked) -> PanelData | None:
    panel = asked.panel
    y, x = quantity(panel.y), quantity(panel.x or "round")
    lines = []
    for label, look, members in asked.lines():
        series = [(run, *rounds(run, panel.y)) for run in members]
        series = [item for item in series if item[1].size]
        shared = np.array(
            sorted(set.intersection(*({*index.tolist()} for _, index, _ in series)) if series else ())
        )
        if not shared.size:
            continue
        values = np.array([item[2][np.isin(item[1], shared)] for item in series]) * y.scale
        place: FloatVector = shared
        if panel.x and panel.x != "round":
            along = [_at(run, panel.x, shared) for run, _, _ in series]
            if any(item is None for item in along):
                continue
            place = np.mean(np.array(along, dtype=float), axis=0) * x.scale
        half = np.array([asked.half(column) for column in values.T])
        lines.append(Line(label, look, place, values.mean(axis=0), half, (len(series),)))
    return _made(asked, lines, xlabel=x.label, ylabel=y.label)


def _at(run: Run, column: str, wanted: FloatVector) -> FloatVector | None:
    index, values = rounds(run, column)
    return np.asarray(np.interp(wanted, index, values)) if index.size else None


def _final(asked: _Asked) -> PanelData | None:
    panel, keys = asked.panel, asked.keys
    lines = []
    for label, look, members in asked.lines():
        points = []
        for (value,) in values_of(members, [panel.x]):
            here = [run for run in members if matches(run, {panel.x: value})]
            numbers = asked.numbers(here, [panel.x, *keys])
            if numbers.size and isinstance(value, int | float):
                points.append((value * key(panel.x).scale, numbers.mean(), asked.half(numbers), numbers.size))
        if points:
            x, y, half, counts = np.array(points, dtype=float).T
            lines.append(Line(label, look, x, y, half, tuple(int(count) for count in counts)))
    label = quantity(panel.y).label
    return _made(asked, lines, xlabel=key_label(panel.x), ylabel=label, note=_missed(asked))


def _bar(asked: _Asked) -> PanelData | None:
    panel = asked.panel
    keys = tuple(name for name in asked.keys if name != panel.x)
    names = [value for (value,) in values_of(asked.runs, [panel.x])]
    lines = []
    for label, look, members in asked.lines(keys):
        points = []
        for place, name in enumerate(names):
            numbers = asked.numbers(
                [run for run in members if matches(run, {panel.x: name})], [panel.x, *keys]
            )
            if numbers.size:
                points.append((place, numbers.mean(), asked.half(numbers), numbers.size))
        if points:
            x, y, half, counts = np.array(points, dtype=float).T
            lines.append(Line(label, look, x, y, half, tuple(int(count) for count in counts)))
    shown = tuple(show(name, panel.x) for name in names)
    numeric = all(isinstance(name, int | float) for name in names)
    label = key_label(panel.x) if numeric else ""
    return _made(
        asked,
        lines,
        xlabel=label,
        ylabel=quantity(panel.y).label,
        names=shown,
        keys=keys,
        note=_missed(asked),
    )


def _missed(asked: _Asked) -> str:
    """Say how many runs never reach the panel's target, which has no number for them."""
    panel = asked.panel
    if panel.target is None:
        return ""
    reached = sum(bool(collect([run], panel.y, (), target=panel.target)) for run in asked.runs)
    missed = len(asked.runs) - reached
    return f"{missed} of {len(asked.runs)} runs never reach it and are left out." if missed else ""


def _cdf(asked: _Asked) -> PanelData | None:
    x = quantity(asked.panel.x)
    lines = []
    for label, look, members in asked.lines():
        numbers = np.sort(list(collect(members, asked.panel.x, asked.keys).values())) * x.scale
        if numbers.size:
            lines.append(_steps(label, look, numbers))
    what = "draws" if asked.runs[0].is_study else "runs"
    return _made(asked, lines, xlabel=x.label, ylabel=f"share of {what}")


def _steps(label: str, look: int, numbers: FloatVector) -> Line:
    share = np.arange(1, numbers.size + 1) / numbers.size
    return Line(label, look, numbers, share, np.zeros(numbers.size), (numbers.size,))


def _devices(asked: _Asked) -> PanelData | None:
    """Draw the distribution over the devices at the end, those of all seeds together."""
    y = quantity(asked.panel.y)
    lines = []
    for label, look, members in asked.lines():
        found = [value for run in members for value in final_values(run, asked.panel.y).values()]
        if found:
            lines.append(_steps(label, look, np.sort(found) * y.scale))
    return _made(asked, lines, xlabel=y.label, ylabel="share of devices")


def _heat(asked: _Asked) -> PanelData | None:
    """Map devices against settings; of a single setting, devices against rounds."""
    y = quantity("starved_rounds" if asked.panel.y == STARVED else asked.panel.y)
    rows = [(label, members) for label, _, members in asked.lines()]
    if len(rows) > 1:
        cells = [
            _mean_of(
                {(0, device): value for device, value in final_values(run, asked.panel.y).items()}
                for run in members
            )
            for _, members in rows
        ]
        found = {
            (row, device): value for row, cell in enumerate(cells) for (_, device), value in cell.items()
        }
        names, axes = tuple(label for label, _ in rows), ("device", ", ".join(map(key_label, asked.keys)))
    else:
        turned = _mean_of(values_by_round(run, asked.panel.y) for run in rows[0][1])
        found = {(device, step): value for (step, device), value in turned.items()}
        names, axes = (), ("global round", "device")
    if not found or (asked.panel.y == STARVED and not any(found.values())):
        return None
    across = sorted({column for _, column in found})
    down = list(range(len(rows))) if names else sorted({row for row, _ in found})
    values = np.array([[found.get((row, column), np.nan) for column in across] for row in down]) * y.scale
    heat = Heat(values, names or tuple(map(str, down)), tuple(map(str, across)), y.label)
    return _made(asked, (), xlabel=axes[0], ylabel=axes[1], heat=heat)


def _mean_of(maps: Any) -> dict[tuple[int, int], float]:
    entries = sorted((place, value) for one in maps for place, value in one.items())
    return {
        place: float(np.mean([value for _, value in group]))
        for place, group in groupby(entries, key=lambda entry: entry[0])
    }


_MAKE: dict[str, Callable[[_Asked], PanelData | None]] = {
    "curve": _curve,
    "final": _final,
    "bar": _bar,
    "cdf": _cdf,
    "devices": _devices,
    "heat": _heat,
}
