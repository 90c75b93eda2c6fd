"""Panels of one experiment as PNG and PDF.

Lines differ in colour (Okabe-Ito, told apart by colour-blind readers), dash and marker, bars in colour and
hatch, so that a greyscale print stays legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.folders import Run
from experiments.report.legends import draw_legends
from experiments.report.metrics import (
    FloatVector,
    collect,
    key,
    key_label,
    matches,
    quantity,
    rounds,
    show,
    values_of,
)
from experiments.report.spec import Panel, Report

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#B8A800")
DASHES: tuple[Any, ...] = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (3, 1, 1, 1)),
    (0, (1, 1)),
    (0, (7, 2)),
    (0, (2, 3)),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*")
_PANEL_LETTERS = 58  # of a tick label's size that fit beside each other into a panel
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**")


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        png, pdf: the files.
        caption: what is drawn, of how many samples, and what the spread is.
    """

    png: Path
    pdf: Path
    caption: str


def draw(report: Report, runs: Sequence[Run], folder: Path, stem: str) -> Figure | None:
    """Draw the panels of an experiment; None if none of them has data."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    completed = [run for run in runs if run.completed]
    panels = [panel for panel in report.panels if any(matches(run, panel.where) for run in completed)]
    if not panels:
        return None
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    style = {
        "font.size": 9,
        "axes.titlesize": 9.5,
        "legend.fontsize": 8,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "pdf.fonttype": 42,
        "hatch.linewidth": 0.5,
    }
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            lines, columns, figsize=(4.6 * columns, 3.5 * lines), squeeze=False, layout="constrained"
        )
        counts: list[list[int]] = []
        for axis, panel in zip(axes.flat, panels, strict=False):
            chosen = [run for run in completed if matches(run, panel.where)]
            keys = tuple(report.series if panel.series is None else panel.series)
            counts.append(_DRAW[panel.kind](axis, panel, chosen, keys))
            if not counts[-1]:
                axis.text(0.5, 0.5, "no data", ha="center", va="center", transform=axis.transAxes)
            axis.set_title(panel.title)
            if panel.logx or (panel.log and panel.kind == "cdf"):
                _logarithmic(axis, "x")
            if panel.log and panel.kind != "cdf":
                _logarithmic(axis, "y")
        draw_legends(figure, list(zip(axes.flat, panels, strict=False)), report)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        png, pdf = folder / f"{stem}.png", folder / f"{stem}.pdf"
        figure.savefig(png, dpi=110)
        figure.savefig(pdf, metadata={"CreationDate": None})
        plt.close(figure)
    return Figure(png, pdf, _caption(list(zip(panels, counts, strict=True)), completed))


def _logarithmic(axis: Any, name: str) -> None:
    """Make an axis logarithmic, with plain numbers (0.3, not 3 x 10^-1) also between the powers of ten."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set(**{f"{name}scale": "log"})
    side = axis.xaxis if name == "x" else axis.yaxis
    for set_formatter in (side.set_major_formatter, side.set_minor_formatter):
        set_formatter(Plain(labelOnlyBase=False, minor_thresholds=(2, 0.6)))


def _caption(panels: Sequence[tuple[Panel, list[int]]], runs: Sequence[Run]) -> str:
    """Say what is drawn, of how many samples, and what the spread is: one sentence per kind of panel."""
    seeds = sorted({run.seed for run in runs})
    seeds_text = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    study = bool(runs) and runs[0].is_study
    sentences = []
    drawn = {panel.kind for panel, _ in panels}
    single = "Bars" if "final" not in drawn else "Points" if "bar" not in drawn else "Points and bars"
    for name, kinds in (("Curves", ("curve",)), (single, ("final", "bar")), ("Steps", ("cdf",))):
        counts = [count for panel, found in panels if panel.kind in kinds for count in found]
        if not counts:
            continue
        few, many = min(counts), max(counts)
        samples = "draw" if study else "run"
        number = f"{few} to {many} {samples}s" if few < many else f"{many} {samples}{'s' if many > 1 else ''}"
        if kinds == ("cdf",):
            sentences.append(f"{name}: share of {number} per line that lie below ({seeds_text}).")
        elif many == 1:
            sentences.append(f"{name}: one {samples} each ({seeds_text}).")
        else:
            spread = "two standard errors" if study else "standard deviation over them"
            shape = "bands" if kinds == ("curve",) else "error bars"
            sentences.append(f"{name}: mean over {number} ({seeds_text}); {shape}: {spread}.")
    return " ".join(sentences)


def _lines(runs: Sequence[Run], keys: Sequence[str]) -> list[tuple[str, list[Run], dict[str, Any]]]:
    found = []
    for i, values in enumerate(values_of(runs, keys)):
        members = [run for run in runs if matches(run, dict(zip(keys, values, strict=True)))]
        again = i // len(COLOURS)  # beyond nine lines the colours come again, with other dashes and markers
        look = {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[(i + again) % len(DASHES)],
            "marker": MARKERS[(i + 2 * again) % len(MARKERS)],
            "markersize": 4.5,
            "linewidth": 1.5,
        }
        label = ", ".join(show(value, name) for name, value in zip(keys, values, strict=True))
        found.append((label, members, look))
    return found


def _curve(axis: Any, panel: Panel, runs: Sequence[Run], keys: Sequence[str]) -> list[int]:
    y = quantity(panel.y)
    x = quantity(panel.x or "round")
    counts = []
    for label, members, look in _lines(runs, keys):
        series = [(run, *rounds(run, panel.y)) for run in members]
        series = [item for item in series if item[1].size]
        if not series:
            continue
        shared = np.array(sorted(set.intersection(*({*index.tolist()} for _, index, _ in series))))
        values = np.array([item[2][np.isin(item[1], shared)] for item in series]) * y.scale
        place: FloatVector = shared
        if panel.x and panel.x != "round":
            place = np.mean([_at(run, panel.x, shared) for run, _, _ in series], axis=0) * x.scale
        mean = values.mean(axis=0)
        counts.append(len(series))
        axis.plot(place, mean, label=label, markevery=max(1, mean.size // 8), **look)
        if len(values) > 1:
            spread = values.std(axis=0, ddof=1)
            axis.fill_between(
                place, mean - spread, mean + spread, color=look["color"], alpha=0.15, linewidth=0
            )
    if not panel.x:
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no round 1.5
    axis.set_xlabel(x.label)
    axis.set_ylabel(y.label)
    return counts


def _at(run: Run, column: str, wanted: FloatVector) -> FloatVector:
    index, values = rounds(run, column)
    return np.asarray(np.interp(wanted, index, values))


def _spread(numbers: FloatVector, runs: Sequence[Run]) -> float:
    """Return the half-length of an error bar: two standard errors over draws, one deviation over seeds."""
    if numbers.size < 2:
        return 0.0
    deviation = float(numbers.std(ddof=1))
    return 2 * deviation / np.sqrt(numbers.size) if runs[0].is_study else deviation


def _final(axis: Any, panel: Panel, runs: Sequence[Run], keys: Sequence[str]) -> list[int]:
    y = quantity(panel.y)
    counts = []
    for label, members, look in _lines(runs, keys):
        points = []
        for (value,) in values_of(members, [panel.x]):
            here = [run for run in members if matches(run, {panel.x: value})]
            numbers = np.array(list(collect(here, panel.y, [panel.x, *keys]).values())) * y.scale
            if numbers.size:
                counts.append(numbers.size)
                points.append((value * key(panel.x).scale, numbers.mean(), _spread(numbers, here)))
        if points:
            place, mean, spread = np.array(points, dtype=float).T
            axis.errorbar(place, mean, yerr=spread, capsize=2.5, label=label if keys else None, **look)
    axis.set_xlabel(key_label(panel.x))
    axis.set_ylabel(y.label)
    return counts


def _bar(axis: Any, panel: Panel, runs: Sequence[Run], keys: Sequence[str]) -> list[int]:
    y = quantity(panel.y)
    keys = [name for name in keys if name != panel.x]
    counts = []
    labelled = set[str]()
    names = [value for (value,) in values_of(runs, [panel.x])]
    lines = _lines(runs, keys)
    width = 0.8 / len(lines)
    for i, (label, members, look) in enumerate(lines):
        for j, name in enumerate(names):
            here = [run for run in members if matches(run, {panel.x: name})]
            numbers = np.array(list(collect(here, panel.y, [panel.x, *keys]).values())) * y.scale
            if not numbers.size:
                continue
            counts.append(numbers.size)
            place = j + (i - (len(lines) - 1) / 2) * width
            spread = _spread(numbers, here)
            axis.bar(
                place,
                numbers.mean(),
                width * 0.92,
                yerr=[[min(spread, 0.9 * numbers.mean())], [spread]] if spread else None,
                capsize=2,
                color=look["color"],
                hatch=HATCHES[i % len(HATCHES)],
                edgecolor="white",
                label=label if keys and label not in labelled else None,
                ecolor="black",
            )
            labelled.add(label)
            if not keys:
                axis.annotate(
                    f"{numbers.mean():.3g}", (place, numbers.mean()), ha="center", va="bottom", fontsize=7.5,
                    xytext=(0, 3), textcoords="offset points",
                )  # fmt: skip
    shown = [show(name, panel.x) for name in names]
    tilt = {"rotation": 25, "ha": "right"} if sum(map(len, shown)) > _PANEL_LETTERS // 2 else {}
    axis.set_xticks(range(len(names)), shown, **tilt)
    axis.grid(visible=False, axis="x")
    axis.margins(y=0.12)
    if all(isinstance(name, int | float) for name in names):
        axis.set_xlabel(key_label(panel.x))
    axis.set_ylabel(y.label)
    return counts


def _cdf(axis: Any, panel: Panel, runs: Sequence[Run], keys: Sequence[str]) -> list[int]:
    x = quantity(panel.x)
    counts = []
    for label, members, look in _lines(runs, keys):
        numbers = np.sort(list(collect(members, panel.x, keys).values())) * x.scale
        if numbers.size:
            counts.append(numbers.size)
            share = np.arange(1, numbers.size + 1) / numbers.size
            axis.plot(
                numbers,
                share,
                label=label,
                drawstyle="steps-post",
                markevery=max(1, numbers.size // 6),
                **look,
            )
    axis.set_xlabel(x.label)
    axis.set_ylabel("share of draws")
    axis.set_ylim(0, 1.02)
    return counts


_DRAW = {"curve": _curve, "final": _final, "bar": _bar, "cdf": _cdf}
