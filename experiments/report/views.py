"""A panel as the page shows it: a picture in the page's own text, and the values that hovering shows.

The picture is the SVG that matplotlib writes, without what only a file of its own needs; what belongs to a
line has a class by which the page's script switches it. Without a script the picture is whole.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from experiments.report.panels import PanelData

_MOST_POINTS = 120  # of a line; PNG and PDF have all
_POINT = 72.0  # per inch, the unit of a picture


@dataclass(frozen=True)
class View:
    """A panel of the page.

    Attributes:
        svg: the picture.
        values: for its script, as JSON without any "<".
        title, caption: above and below.
        group: heading under which it stands.
        keys: configuration keys that make its lines.
        labels: its lines: number, label, colour.
    """

    svg: str
    values: str
    title: str
    caption: str
    group: str
    keys: tuple[str, ...]
    labels: tuple[tuple[int, str, str], ...]


def thinned(data: PanelData) -> PanelData:
    """Return a panel whose lines have no more points than a view shows; first and last stay."""
    lines = []
    for line in data.lines:
        wanted = np.linspace(0, line.x.size - 1, min(line.x.size, _MOST_POINTS))
        kept = np.unique(wanted.round().astype(int))
        lines.append(replace(line, x=line.x[kept], y=line.y[kept], spread=line.spread[kept]))
    return replace(data, lines=tuple(lines))


def make_view(
    figure: Any,
    axis: Any,
    data: PanelData,
    prefix: str,
    look: Callable[[int], dict[str, Any]],
    caption: str,
) -> View:
    """Return the view of a drawn panel.

    Args:
        figure, axis: with nothing but the panel.
        data: what it shows, thinned.
        prefix: of all names in the picture, unique in the page.
        look: of a line, by its number.
        caption: below it.
    """
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    title = data.panel.title or _title(data)
    return View(
        svg=_inline(written.getvalue(), prefix, title),
        values=json.dumps(_values(figure, axis, data), separators=(",", ":")).replace("<", "\\u003c"),
        title=title,
        caption=caption,
        group=data.panel.group,
        keys=data.keys,
        labels=tuple(
            (line.look, line.label, str(look(line.look)["color"]))
            for line in data.lines
            if len(data.lines) > 1
        ),
    )


def _title(data: PanelData) -> str:
    if data.heat is not None:
        return f"{data.heat.label} by {data.xlabel} and {data.ylabel}"
    what = data.ylabel if data.panel.kind not in ("cdf", "devices") else data.xlabel
    over = data.xlabel if data.panel.kind in ("curve", "final") else ""
    where = ", ".join(f"{value}" for value in data.panel.where.values())
    return what + (f" by {over}" if over else "") + (f" ({where})" if where else "")


def _inline(svg: str, prefix: str, title: str) -> str:
    """Return a picture for the middle of a page: no namespaces, short numbers, names of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    head, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = body.replace("xlink:href", "href")
    body = re.sub(r'id="s(\d+)\.\d+"', r'class="s\1"', body)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r' (d|x|y|transform)="([^"]*)"', _rounded, body)
    body = re.sub(r"\n\s*", "\n", body)
    # The attribute is not markup: what a label may hold is escaped by matplotlib, the title here.
    name = title.translate({ord("&"): "&amp;", ord('"'): "&quot;", ord("<"): "&lt;"})
    return f'<svg {box[0]} role="img" aria-label="{name}">{body.strip()}'


def _rounded(found: re.Match[str]) -> str:
    digits = re.sub(r"-?\d+\.\d{2,}", lambda number: f"{float(number[0]):.1f}", found[2])
    return f' {found[1]}="{digits}"' if found[1] != "transform" else found[0]


def _values(figure: Any, axis: Any, data: PanelData) -> dict[str, Any]:
    """Return places in the picture and values, rounded, of what hovering shows."""
    height = figure.get_figheight() * _POINT
    scale = _POINT / figure.dpi
    corners = axis.get_window_extent()
    box = [corners.x0 * scale, height - corners.y1 * scale, corners.width * scale, corners.height * scale]
    found: dict[str, Any] = {
        "box": [round(side, 1) for side in box],
        "kind": data.panel.kind,
        "x": data.xlabel,
        "y": data.ylabel,
    }
    if data.heat is not None:
        found |= {"rows": data.heat.rows, "columns": data.heat.columns, "label": data.heat.label}
        found["cells"] = [[_short(value) for value in row] for row in data.heat.values]
        return found
    found["names"] = data.names
    found["lines"] = []
    shift = _shifts(data)
    for line in data.lines:
        places = axis.transData.transform(np.column_stack((line.x + shift[line.look], line.y))) * scale
        entry: dict[str, Any] = {
            "i": line.look,
            "n": line.label,
            "px": [_short(x, 1) for x in places[:, 0]],
            "py": [_short(height - y, 1) for y in places[:, 1]],
            "x": [_short(x) for x in line.x],
            "y": [_short(y) for y in line.y],
        }
        if line.spread.any():
            entry["e"] = [_short(half) for half in line.spread]
        found["lines"].append(entry)
    return found


def _shifts(data: PanelData) -> dict[int, float]:
    """Return how far the bars of each line stand from the middle of their name."""
    looks: Sequence[int] = [line.look for line in data.lines]
    if data.panel.kind != "bar":
        return dict.fromkeys(looks, 0.0)
    return {look: (place - (len(looks) - 1) / 2) * 0.8 / len(looks) for place, look in enumerate(looks)}


def _short(value: float, decimals: int | None = None) -> float | None:
    if not np.isfinite(value):
        return None
    number = round(float(value), decimals) if decimals is not None else float(f"{value:.4g}")
    return int(number) if number == int(number) else number
