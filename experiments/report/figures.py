"""Panels as PNG and PDF, and each of them as a picture of its own for the page.

Lines differ in colour (Okabe-Ito, told apart by colour-blind readers), dash and marker, bars in colour and
hatch, so that a greyscale print stays legible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.legends import draw_legends
from experiments.report.panels import Line, PanelData
from experiments.report.views import View, make_view, thinned

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
_MOST_NAMES = 24  # on an axis of a map
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--", "**")
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.5,
}
_VIEW_INCHES = (4.4, 3.1)


@dataclass(frozen=True)
class Figure:
    """A drawn figure.

    Attributes:
        png, pdf: the files.
        caption: what is drawn, of how many samples, and what the spread is.
        views: its panels, for the page.
    """

    png: Path
    pdf: Path
    caption: str
    views: tuple[View, ...]


def draw(panels: Sequence[PanelData], folder: Path, stem: str) -> Figure | None:
    """Draw the panels of an experiment; None if there is none."""
    if not panels:
        return None
    from matplotlib import rc_context

    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    with rc_context(_STYLE):
        figure = _empty((4.6 * columns, 3.5 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for axis, data in zip(axes.flat, panels, strict=False):
            _panel(axis, data)
            axis.set_title(data.panel.title)
        draw_legends(figure, [(axis, data.keys) for axis, data in zip(axes.flat, panels, strict=False)])
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        png, pdf = folder / f"{stem}.png", folder / f"{stem}.pdf"
        figure.savefig(png, dpi=110)
        figure.set_layout_engine("none")  # it is laid out: not once more for each file
        figure.savefig(pdf, metadata={"CreationDate": None})
        views = tuple(_view(data, f"{stem}-{number}-") for number, data in enumerate(panels))
    return Figure(png, pdf, caption(panels), views)


def _view(data: PanelData, prefix: str) -> View:
    """Draw a panel alone, without title and legend, which the page sets itself."""
    data = thinned(data)
    from matplotlib import rc_context

    # Of two pictures in one page, nothing may have one name.
    with rc_context({"svg.hashsalt": prefix, "path.simplify_threshold": 0.5}):
        figure = _empty(_VIEW_INCHES)
        axis = figure.subplots()
        _panel(axis, data)
        figure.subplots_adjust(**_margins(axis, data))
        view = make_view(figure, axis, data, prefix, look_of, caption([data]))
    return view


def _empty(inches: tuple[float, float], **options: Any) -> Any:
    """Return an empty figure that pyplot does not know: its figures and its backend are the user's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    figure = Drawing(figsize=inches, **options)
    FigureCanvasAgg(figure)
    return figure


def _margins(axis: Any, data: PanelData) -> dict[str, float]:
    """Return margins that the labels of a view fit into: measuring them takes ten times as long."""
    wide, high = _VIEW_INCHES
    names = data.heat.rows if data.heat is not None else [f"{tick:.3g}" for tick in axis.get_yticks()]
    left = 0.42 + 0.072 * min(40, max(map(len, names), default=4))
    tilted = axis.get_xticklabels()[0].get_rotation() if data.names else 0
    below = 0.48 + (0.034 * max(map(len, data.names)) if tilted else 0)
    right = 0.02 if data.heat is not None else 0.1
    return {"left": left / wide, "right": 1 - right / wide, "bottom": below / high, "top": 1 - 0.12 / high}


def look_of(number: int) -> dict[str, Any]:
    """Return the look of a line; beyond nine lines the colours come again, with other dashes and markers."""
    again = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[(number + again) % len(DASHES)],
        "marker": MARKERS[(number + 2 * again) % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.5,
    }


def _panel(axis: Any, data: PanelData) -> None:
    _DRAW[data.panel.kind](axis, data)
    axis.set_xlabel(data.xlabel)
    axis.set_ylabel(data.ylabel)
    distribution = data.panel.kind in ("cdf", "devices")
    if data.panel.logx or (data.panel.log and distribution):
        _logarithmic(axis, "x")
    if data.panel.log and not distribution:
        _logarithmic(axis, "y")


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


_SENTENCES = (
    ("Curves", ("curve",)),
    ("", ("final", "bar")),
    ("Steps", ("cdf", "devices")),
    ("Maps", ("heat",)),
)


def caption(panels: Sequence[PanelData]) -> str:
    """Say what is drawn, of how many samples, and what the spread is: one sentence per kind of panel."""
    sentences = []
    for name, kinds in _SENTENCES:
        chosen = [data for data in panels if data.panel.kind in kinds]
        if chosen:
            drawn = {data.panel.kind for data in chosen}
            single = "Bars" if "final" not in drawn else "Points" if "bar" not in drawn else "Points and bars"
            sentences.append(_sentence(name or single, chosen))
    notes = dict.fromkeys(data.note for data in panels if data.note)
    return " ".join([*sentences, *notes])


def _sentence(name: str, panels: Sequence[PanelData]) -> str:
    seeds = sorted({seed for data in panels for seed in data.seeds})
    of_seeds = f"seed{'s' if len(seeds) > 1 else ''} {_listed(seeds)}"
    first = panels[0]
    if first.heat is not None:
        return f"{name}: mean over {of_seeds}." if len(seeds) > 1 else f"{name}: {of_seeds}."
    counts = [count for data in panels for count in data.counts]
    few, many = min(counts), max(counts)
    samples = "draw" if first.study else "run"
    if first.panel.kind == "devices":
        samples = "device"
    number = f"{few} to {many} {samples}s" if few < many else f"{many} {samples}{'s' if many > 1 else ''}"
    if first.panel.kind in ("cdf", "devices"):
        return f"{name}: share of {number} per line that lie below ({of_seeds})."
    if many == 1:
        return f"{name}: one {samples} each ({of_seeds})."
    shape = "bands" if first.panel.kind == "curve" else "error bars"
    return f"{name}: mean over {number} ({of_seeds}); {shape}: {_spread_text(first)}."


def _spread_text(data: PanelData) -> str:
    if data.spread == "confidence":
        return "95 % confidence of the mean (Student's t)"
    return "two standard errors" if data.spread == "auto" and data.study else "standard deviation over them"


def _listed(numbers: Sequence[int]) -> str:
    """Return "1, 2, 5", or "1 to 40" where all between are there and they are many."""
    if len(numbers) > 5 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _marked(artists: Sequence[Any], line: Line) -> None:
    """Name what belongs to a line, so that the page can switch it."""
    for number, artist in enumerate(artists):
        artist.set_gid(f"s{line.look}.{number}")


def _curve(axis: Any, data: PanelData) -> None:
    for line in data.lines:
        look = look_of(line.look)
        artists = axis.plot(line.x, line.y, label=line.label, markevery=max(1, line.y.size // 8), **look)
        if line.spread.any():
            low, high = line.y - line.spread, line.y + line.spread
            artists.append(axis.fill_between(line.x, low, high, color=look["color"], alpha=0.15, linewidth=0))
        _marked(artists, line)
    if not data.panel.x:
        axis.xaxis.get_major_locator().set_params(integer=True)  # there is no round 1.5


def _final(axis: Any, data: PanelData) -> None:
    for line in data.lines:
        label = line.label if data.keys else None
        drawn = axis.errorbar(
            line.x, line.y, yerr=line.spread, capsize=2.5, label=label, **look_of(line.look)
        )
        _marked([drawn[0], *drawn[1], *drawn[2]], line)


def _bar(axis: Any, data: PanelData) -> None:
    looks = len({line.look for line in data.lines})
    width = 0.8 / looks
    for place, line in enumerate(data.lines):
        x = line.x + (place - (looks - 1) / 2) * width
        low = np.minimum(line.spread, 0.9 * np.abs(line.y))
        drawn = axis.bar(
            x,
            line.y,
            width * 0.92,
            color=look_of(line.look)["color"],
            hatch=HATCHES[line.look % len(HATCHES)],
            edgecolor="white",
            label=line.label if data.keys else None,
        )
        artists = list(drawn)
        known = line.spread > 0
        if known.any():
            bars = axis.errorbar(
                x[known],
                line.y[known],
                yerr=[low[known], line.spread[known]],
                fmt="none",
                ecolor="black",
                capsize=2,
            )
            artists += [*bars[1], *bars[2]]
        _marked(artists, line)
        if not data.keys:
            for at, value in zip(x, line.y, strict=True):
                axis.annotate(
                    f"{value:.3g}", (at, value), ha="center", va="bottom", fontsize=7.5,
                    xytext=(0, 3), textcoords="offset points",
                )  # fmt: skip
    tilt = {"rotation": 25, "ha": "right"} if sum(map(len, data.names)) > _PANEL_LETTERS // 2 else {}
    axis.set_xticks(range(len(data.names)), data.names, **tilt)
    axis.grid(visible=False, axis="x")
    axis.margins(y=0.12)


def _steps(axis: Any, data: PanelData) -> None:
    for line in data.lines:
        look = look_of(line.look)
        artists = axis.plot(
            line.x,
            line.y,
            label=line.label,
            drawstyle="steps-post",
            markevery=max(1, line.x.size // 6),
            **look,
        )
        _marked(artists, line)
    axis.set_ylim(0, 1.02)


def _map(axis: Any, data: PanelData) -> None:
    heat = data.heat
    assert heat is not None
    image = axis.imshow(heat.values, aspect="auto", cmap="cividis", interpolation="nearest")
    axis.figure.colorbar(image, ax=axis, label=heat.label)
    for set_ticks, names in ((axis.set_xticks, heat.columns), (axis.set_yticks, heat.rows)):
        every = -(-len(names) // _MOST_NAMES)
        every = every if every in (1, 2) else -(-every // 5) * 5
        places = range(0, len(names), every)
        set_ticks(
            places, [names[place] if len(names[place]) < 40 else f"{names[place][:38]}…" for place in places]
        )
    axis.tick_params(labelsize=7)
    axis.grid(visible=False)


_DRAW: dict[str, Callable[[Any, PanelData], None]] = {
    "curve": _curve,
    "final": _final,
    "bar": _bar,
    "cdf": _steps,
    "devices": _steps,
    "heat": _map,
}
