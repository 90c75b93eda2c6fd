"""Legends that fit below their panels, whatever the runs are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from experiments.report.metrics import key_label

_LETTERS_PER_INCH = 14  # of a legend's size


def draw_legends(figure: Any, drawn: Sequence[tuple[Any, Sequence[str]]]) -> None:
    """The lines that most panels share have one legend below the figure; other panels have their own.

    Each gets as many columns as fit, and the figure grows by the height of its legends.

    Args:
        figure: with the panels.
        drawn: axes, and the configuration keys that make their lines.
    """
    entries = []
    for axis, keys in drawn:
        handles, labels = axis.get_legend_handles_labels()
        if labels:
            title = ", ".join(key_label(name) for name in keys)
            entries.append((axis, handles, labels, title))
    if not entries:
        return
    grid = drawn[0][0].get_subplotspec().get_gridspec()
    most, number = Counter(title for *_, title in entries).most_common(1)[0]
    alike = [entry for entry in entries if entry[3] == most]
    _, handles, labels, title = max(alike, key=lambda entry: len(entry[2]))
    if number > 1 and all(set(entry[2]) <= set(labels) for entry in alike):
        height = _fitting(
            figure, handles, labels, title, 0.98 * figure.bbox.width, loc="outside lower center"
        )
        figure.set_figheight(figure.get_figheight() + height)
        entries = [entry for entry in entries if entry[3] != most]
    # Inside the axes many entries would hide the lines; below them, room is needed in every row.
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16)}
    heights: dict[int, float] = {}
    for axis, handles, labels, title in entries:
        height = _fitting(axis, handles, labels, title, 0.98 * figure.bbox.width / grid.ncols, **below)
        row = axis.get_subplotspec().rowspan.start
        heights[row] = max(heights.get(row, 0.0), height)
    figure.set_figheight(figure.get_figheight() + sum(heights.values()))


def _fitting(
    parent: Any, handles: Sequence[Any], labels: Sequence[str], title: str, width: float, **place: Any
) -> float:
    """Add a legend to a figure or axes, with the most columns that keep it within `width` pixels.

    Entries and titles that are wider by themselves are broken into lines.

    Returns:
        Its height in inches.
    """
    figure = parent.figure or parent
    letters = max(12, int(width / figure.dpi * _LETTERS_PER_INCH))
    labels = [fill(label, letters - 7) for label in labels]
    for columns in range(min(len(labels), 5), 0, -1):
        legend = parent.legend(
            handles, labels, title=fill(title, letters), title_fontsize=8, ncols=columns, **place
        )
        extent = legend.get_window_extent(figure.canvas.get_renderer())
        if extent.width <= width or columns == 1:
            return float(extent.height / figure.dpi)
        legend.remove()
    return 0.0
