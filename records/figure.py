"""The figure of a run: what it learned, what a round cost, and what its uplink did, by global round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records.recorder import ROUNDS, read_table

FIGURE = "figure.png"
_DEVICES = "devices"

# Okabe-Ito colours: told apart by colour-blind readers, and of different lightness in greyscale.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#A6A6A6"


@dataclass(frozen=True)
class _Line:
    """A column of ``rounds.csv``: label of the legend, look, factor to the unit of the axis.

    What may lie under another line is wider.
    """

    column: str
    label: str
    colour: str = _BLUE
    dash: str = "-"
    scale: float = 1.0
    width: float = 1.5


@dataclass(frozen=True)
class _Panel:
    """Axes: label, lines, and the range that belongs to the quantity (None: what the data need)."""

    label: str
    lines: tuple[_Line, ...]
    bottom: float | None = None
    top: float | None = None
    log: bool = False


def draw_run(folder: Path) -> Path:
    """Draw ``figure.png`` from the records in a run folder and return its path.

    Only what the run recorded is drawn: a panel without numbers is left out, a line without numbers is not in
    the legend.
    """
    # Without pyplot, whose figures and backend are the user's, as in a notebook.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_table(folder / ROUNDS)
    config = _read_config(folder)
    panels = [panel for panel in _panels(config) if any(_series(rows, line) for line in panel.lines)]
    if not _tells_of_devices(rows):
        panels = [panel for panel in panels if panel.label != _DEVICES]
    columns = min(2, max(1, len(panels)))
    lines = -(-max(1, len(panels)) // columns)
    figure = Figure(figsize=(4.5 * columns, 0.4 + 2.8 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel, rows)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel("global round")
    figure.suptitle(_title(config, folder), fontsize=11)
    path = folder / FIGURE
    figure.savefig(path, dpi=120)
    return path


def _panels(config: Mapping[str, Any]) -> list[_Panel]:
    """Return the panels that a run may have, in the order in which they are drawn."""
    personal = config.get("scheme", {}).get("personalization") and config.get("model", {}).get("personal")
    accuracy = "personalised test accuracy" if personal else "test accuracy"
    return [
        _Panel("test loss (nats)", (_Line("loss_mean", ""),)),
        _Panel(
            accuracy,
            (
                _Line("accuracy_mean", "mean of devices"),
                _Line("accuracy_worst", "worst device", _ORANGE, "--"),
            ),
            0.0,
            1.0,
        ),
        _Panel(
            "emulated latency (ms)"
            if config.get("channel", {}).get("source") != "measured"
            else "latency (ms)",
            (
                _Line("latency_threshold_s", "threshold", _GREY, "-", 1e3, 5.0),
                _Line("latency_s", "round", scale=1e3),
                _Line("airtime_s", "of it on the air", _GREEN, "-.", 1e3),
            ),
            0.0,
        ),
        _Panel("energy of a round (mJ)", (_Line("energy_j", "", scale=1e3),), 0.0),
        _Panel("mean pruning ratio", (_Line("pruning_ratio_mean", ""),), 0.0, 1.0),
        _Panel(
            "MSE of the average",
            (_Line("mse_predicted", "predicted", _ORANGE, "--"), _Line("mse_realised", "realised")),
            log=True,
        ),
        _Panel(
            _DEVICES,
            (
                _Line("participants", "asked", _GREY, width=5.0),
                _Line("users", "scheduled", _BLUE, width=2.5),
                _Line("replies", "replied", _GREEN, "-."),
                _Line("starved", "starved", _ORANGE, "--"),
            ),
            0.0,
        ),
    ]


def _tells_of_devices(rows: Sequence[Mapping[str, str]]) -> bool:
    """Return whether devices were scheduled, failed, starved, or were not all asked alike."""
    if any(row.get("users") or row.get("failed") for row in rows):
        return True
    return len({row.get("replies") for row in rows}) > 1 or any(
        y > 0 for _, y in _series(rows, _Line("starved", ""))
    )


def _series(rows: Sequence[Mapping[str, str]], line: _Line) -> list[tuple[int, float]]:
    """Return (round, value) where there is a number; a list of devices (``0;3;4``) counts as its length."""
    points = []
    for row in rows:
        text = row.get(line.column) or ""
        if not text:
            continue
        try:
            value = float(len(text.split(";"))) if line.column == "users" else line.scale * float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            points.append((int(row["round"]), value))
    return points


def _draw(axis: Any, panel: _Panel, rows: Sequence[Mapping[str, str]]) -> None:
    from matplotlib.ticker import MaxNLocator

    highest, lowest = 0.0, math.inf
    named = 0
    for line in panel.lines:
        points = [(x, y) for x, y in _series(rows, line) if y > 0 or not panel.log]
        if not points:
            continue
        x, y = zip(*points, strict=True)
        axis.plot(
            x,
            y,
            color=line.colour,
            linestyle=line.dash,
            linewidth=line.width,
            label=line.label,
            marker="." if len(x) < 12 else "",
        )
        highest, lowest = max(highest, *y), min(lowest, *y)
        named += bool(line.label)
    axis.set_ylabel(panel.label)
    if panel.log and highest > 10 * lowest:
        axis.set_yscale("log")
    elif panel.bottom is not None:
        # A line at a limit (a latency at its threshold, an accuracy of 1) must not lie on the frame.
        top = panel.top if panel.top is not None else highest or 1.0
        axis.set_ylim(panel.bottom - 0.04 * (top - panel.bottom), top + 0.08 * (top - panel.bottom))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    if named > 1:
        axis.legend(loc="best", fontsize=8)


def _title(config: Mapping[str, Any], folder: Path) -> str:
    """Return scheme, data, model and seed; the folder's name if the configuration cannot be read."""
    names = [str(config.get(group, {}).get("name") or "") for group in ("scheme", "dataset", "model")]
    if not any(names):
        return folder.name
    devices = config.get("fleet", {}).get("num_devices")
    parts = [*filter(None, names), f"{devices} devices" if devices else "", f"seed {config.get('seed')}"]
    return " · ".join(filter(None, parts))


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Return the configuration that lies beside the records; empty where there is none."""
    from omegaconf import OmegaConf

    try:
        tree = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except Exception:  # a figure without a title is better than none
        return {}
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}
