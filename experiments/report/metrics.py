"""Names and units of what is drawn, and one number per seed (learning) or per draw (study)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.report.folders import Run, number

FloatVector = npt.NDArray[np.float64]
Unit = tuple[Any, ...]


@dataclass(frozen=True)
class Quantity:
    """How a column is shown: label with unit, factor from the stored unit, and what one run's number is.

    `reduce`: mean over the rounds, last round, sum, or tail: mean of the last quarter of the evaluations
    (at least two), which calms the round-to-round swings of training.
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    reduce: str = "mean"

    @property
    def label(self) -> str:
        """Name with unit, for an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


QUANTITIES = {
    "round": Quantity("global round"),
    "accuracy_mean": Quantity("test accuracy (mean of devices)", reduce="tail"),
    "accuracy_worst": Quantity("test accuracy (worst device)", reduce="tail"),
    "loss_mean": Quantity("test loss", "nats", reduce="tail"),
    "latency_s": Quantity("round latency", "ms", 1e3),
    "elapsed_s": Quantity("emulated time", "s", 1.0, "last"),
    "uplink_bits": Quantity("uplink per round", "Mbit", 1e-6),
    "sent_bits": Quantity("uplink so far", "Gbit", 1e-9, "last"),
    "wire_bytes": Quantity("bytes received per round", "MB", 1e-6),
    "pruning_ratio_mean": Quantity("mean pruning ratio"),
    "uncovered_share": Quantity("share of weights that nobody kept"),
    "starved_share": Quantity("share of starved devices"),
    "normalised_mse": Quantity("normalised MSE"),
    "min_gain": Quantity("least gain of the selected users"),
    "airtime_s": Quantity("airtime", "ms", 1e3),
    "measured_schedule_seconds": Quantity("measured time to schedule", "ms", 1e3),
    "measured_plan_seconds": Quantity("measured time to plan", "ms", 1e3),
    "measured_train_seconds": Quantity("measured time of training", "s"),
}
KEY_LABELS = {
    "radio.latency_threshold_ms": "latency threshold (ms)",
    "radio.bandwidth_hz": "bandwidth (Hz)",
    "radio.cycles_per_weight": "CPU cycles per weight and step",
    "scheme.name": "scheme",
    "scheme.pruning_ratio": "pruning ratio",
    "training.algorithm": "local training",
    "fleet.num_devices": "users K",
    "air.antennas": "antennas N",
    "air.num_selected": "selected users M",
    "air.snr_db": "SNR (dB)",
    "air.count_mode": "count mode",
    "scheduler.method": "method",
    "scheduler.beamformer": "beam solver",
    "scheduler.options.candidates": "starting users L",
    "scheduler.options.score": "score of a set",
    "partition.options.alpha": "Dirichlet parameter α",
    "partition.name": "partition",
    "dataset.name": "data set",
    "channel.antennas": "server antennas",
}


def quantity(column: str) -> Quantity:
    """Return how a column is shown."""
    return QUANTITIES.get(column, Quantity(column.replace("_", " ")))


def key_label(key: str) -> str:
    """Return the name of a configuration key on an axis or in a legend."""
    return KEY_LABELS.get(key, key)


def show(value: Any) -> str:
    """Return a configuration value for a legend: 20 instead of 20.0, 2e+08 for bandwidths."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    return f"{value:.4g}"


def matches(run: Run, where: Mapping[str, Any]) -> bool:
    """Return whether the run has these configuration values."""
    return all(_equal(run.config.get(key), value) for key, value in where.items())


def _equal(mine: Any, wanted: Any) -> bool:
    if isinstance(mine, int | float) and isinstance(wanted, int | float):
        return math.isclose(mine, wanted, rel_tol=1e-9)
    return bool(mine == wanted)


def values_of(runs: Iterable[Run], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the distinct values of the keys: numbers in order, our own scheme or method first."""
    found = list(dict.fromkeys(tuple(run.config.get(key) for key in keys) for run in runs))
    if all(isinstance(value, int | float) for values in found for value in values):
        return sorted(found)
    return sorted(found, key=lambda values: tuple(_rank(value) for value in values))


_OURS = ("proposed", "aircomp_pruned", "multistart", "enhanced")


def _rank(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return (_OURS.index(value), 0.0, "") if value in _OURS else (len(_OURS), 0.0, str(value))


def rounds(run: Run, column: str) -> tuple[FloatVector, FloatVector]:
    """Return the rounds that have a value in the column, and the values; derived columns too."""
    rows = run.table("rounds.csv")
    source = {"elapsed_s": "latency_s", "sent_bits": "uplink_bits"}.get(column, column)
    if column.startswith("measured_"):
        rows = run.table("timing.csv")
    index = np.array([number(row.get("round")) for row in rows])
    values = np.array([number(row.get(source)) for row in rows])
    if source != column:
        values = np.cumsum(np.nan_to_num(values))
    known = np.isfinite(values)
    return index[known], values[known]


def samples(run: Run, column: str) -> dict[int, float]:
    """Return one number (draw 0) of a learning run, or one per draw of a study."""
    if run.is_study:
        name = "timing.csv" if column.startswith("measured_") else "draws.csv"
        found = {int(row["draw"]): number(row.get(column)) for row in run.table(name)}
        return {draw: value for draw, value in found.items() if math.isfinite(value)}
    _, values = rounds(run, column)
    if not values.size:
        return {}
    reduce = quantity(column).reduce
    if reduce == "tail":
        return {0: float(values[-max(min(2, values.size), values.size // 4) :].mean())}
    if reduce == "last":
        return {0: float(values[-1])}
    return {0: float(values.mean())}


def collect(runs: Iterable[Run], column: str, keys: Sequence[str]) -> dict[Unit, float]:
    """Return all numbers of the runs under (values of `keys`, seed, draw), by which two sets are paired."""
    return {
        (*(run.config.get(key) for key in keys), run.seed, draw): value
        for run in runs
        for draw, value in samples(run, column).items()
    }
