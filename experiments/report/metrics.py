"""Names and units of what is drawn, and one number per seed (learning) or per draw (study)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.report.folders import Run, number
from records.summary import CUMULATIVE

FloatVector = npt.NDArray[np.float64]
Unit = tuple[Any, ...]


@dataclass(frozen=True)
class Quantity:
    """How a column is shown: label with unit, factor from the stored unit, and what one run's number is.

    `reduce`: mean over the rounds, last round, max, or tail: mean of the last quarter of the evaluations
    (at least two), which calms the round-to-round swings of training. `span`: the stored values that are
    possible, of columns whose values can repeat by chance (shares, counts).
    """

    name: str
    unit: str = ""
    scale: float = 1.0
    reduce: str = "mean"
    span: tuple[float, float] | None = None

    @property
    def label(self) -> str:
        """Name with unit, for an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


_SHARE, _COUNT = (0.0, 1.0), (0.0, math.inf)
QUANTITIES = {
    "round": Quantity("global round"),
    "accuracy_mean": Quantity("test accuracy (mean of devices)", reduce="tail", span=_SHARE),
    "accuracy_worst": Quantity("test accuracy (worst device)", reduce="tail", span=_SHARE),
    "global_accuracy": Quantity("test accuracy (global model)", reduce="tail", span=_SHARE),
    "loss_mean": Quantity("test loss", "nats", reduce="tail"),
    "test_accuracy": Quantity("test accuracy of a device", span=_SHARE),
    "latency_s": Quantity("round latency", "ms", 1e3),
    "elapsed_s": Quantity("emulated time", "s", 1.0, "last"),
    "uplink_bits": Quantity("uplink per round", "Mbit", 1e-6),
    "sent_bits": Quantity("uplink so far", "Gbit", 1e-9, "last"),
    "energy_j": Quantity("energy of a round", "mJ", 1e3),
    "spent_j": Quantity("energy so far", "J", 1.0, "last"),
    "outage_share": Quantity("share of uploads that are late", span=_SHARE),
    "exhausted": Quantity("devices with an empty battery", span=_COUNT),
    "wire_bytes": Quantity("received per round", "MB", 1e-6),
    "symbols": Quantity("channel uses per round"),
    "compute_s": Quantity("time of computing", "ms", 1e3),
    "airtime_s": Quantity("airtime", "ms", 1e3),
    "users": Quantity("scheduled users"),
    "participants": Quantity("participants", span=_COUNT),
    "replies": Quantity("replies", span=_COUNT),
    "failed": Quantity("failed devices", span=_COUNT),
    "evaluated": Quantity("evaluated devices", span=_COUNT),
    "starved": Quantity("starved devices", span=_COUNT),
    "starved_rounds": Quantity("share of rounds without an upload (starved)", span=_SHARE),
    "iterations": Quantity("iterations of the solver", span=_COUNT),
    "pruning_ratio_mean": Quantity("mean pruning ratio"),
    "pruning_ratio_max": Quantity("largest pruning ratio"),
    "kept_share": Quantity("share of retained weights"),
    "uncovered_share": Quantity("share of weights that nobody kept", span=_SHARE),
    "starved_share": Quantity("share of starved devices", span=_SHARE),
    "negative_bandwidth": Quantity("share of draws with a negative bandwidth fraction", span=_SHARE),
    "negative_ratio": Quantity("share of draws with a negative pruning ratio", span=_SHARE),
    "least_bandwidth_fraction": Quantity("least bandwidth fraction"),
    "least_pruning_ratio": Quantity("least pruning ratio"),
    "normalised_mse": Quantity("normalised MSE"),
    "loss_db": Quantity("distance to the proved optimum", "dB"),
    "optimal": Quantity("share of draws at the optimum", span=_SHARE),
    "unproved": Quantity("share of draws without proof", span=_SHARE),
    "mse_predicted": Quantity("predicted MSE of the average"),
    "mse_realised": Quantity("realised MSE of the average"),
    "min_gain": Quantity("least gain of the selected users"),
    "gain_upper_bound": Quantity("upper bound of the least gain"),
    "measured_schedule_seconds": Quantity("measured time to schedule", "ms", 1e3),
    "measured_plan_seconds": Quantity("measured time to plan", "ms", 1e3),
    "measured_train_seconds": Quantity("measured time of training", "s"),
}


@dataclass(frozen=True)
class Key:
    """How a configuration key is shown: name, unit, factor from the stored unit."""

    name: str
    unit: str = ""
    scale: float = 1.0


KEYS = {
    "radio.latency_threshold_ms": Key("latency threshold", "ms"),
    "radio.bandwidth_hz": Key("bandwidth", "MHz", 1e-6),
    "radio.cpu_hz": Key("CPU clock", "GHz", 1e-9),
    "radio.cycles_per_weight": Key("CPU cycles per weight and step"),
    "radio.energy_budget_j": Key("energy budget per device and round", "mJ", 1e3),
    "scheme.name": Key("scheme"),
    "scheme.fairness": Key("fairness α"),
    "scheme.pruning_ratio": Key("pruning ratio"),
    "model.name": Key("model"),
    "engine.name": Key("engine"),
    "training.algorithm": Key("local training"),
    "fleet.num_devices": Key("users K"),
    "air.antennas": Key("antennas N"),
    "air.num_selected": Key("selected users M"),
    "air.snr_db": Key("SNR", "dB"),
    "air.count_mode": Key("count mode"),
    "scheduler.method": Key("method"),
    "scheduler.beamformer": Key("beam solver"),
    "scheduler.options.candidates": Key("starting users L"),
    "scheduler.options.score": Key("score of a set"),
    "partition.options.alpha": Key("Dirichlet parameter α"),
    "partition.name": Key("partition"),
    "dataset.name": Key("data set"),
    "channel.antennas": Key("server antennas"),
    "channel.placement": Key("placement"),
}
_UNITS = {
    "ms": "ms", "s": "s", "hz": "Hz", "dbm": "dBm", "db": "dB", "m": "m", "mib": "MiB", "j": "J",
    "bits": "bits",
}  # fmt: skip


def quantity(column: str) -> Quantity:
    """Return how a column is shown; of ``elapsed_s@0.95`` the value when the mean accuracy first was 0.95."""
    base, at, level = column.partition("@")
    if at:
        shown = quantity(base)
        return replace(shown, name=f"{shown.name} to {100 * float(level):g} %", reduce="last", span=None)
    return QUANTITIES.get(column, Quantity(column.replace("_", " ")))


def key(name: str) -> Key:
    """Return how a configuration key is shown; without an entry above, from its own words and unit."""
    if name in KEYS:
        return KEYS[name]
    group, _, words = name.rpartition(".")
    stem, _, unit = words.rpartition("_")
    if unit in _UNITS and stem:
        return Key(f"{group.split('.')[0]} {stem.replace('_', ' ')}".strip(), _UNITS[unit])
    return Key(f"{group.split('.')[0]} {words.replace('_', ' ')}".strip())


def key_label(name: str) -> str:
    """Return the name of a configuration key with its unit, for an axis, a legend or the head of a column."""
    found = key(name)
    return f"{found.name} ({found.unit})" if found.unit else found.name


def setting(name: str, value: Any) -> str:
    """Return "name value unit" of a configuration value, or the value alone where it is a name."""
    if isinstance(value, str):
        return value
    found = key(name)
    return f"{found.name} {show(value, name)}{' ' + found.unit if found.unit else ''}"


def show(value: Any, name: str = "") -> str:
    """Return a configuration value of the key `name` in the unit of its label: 20 instead of 20.0."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return " ".join(show(item, name) for item in value)
    if not isinstance(value, int | float):
        return str(value)
    return f"{value * (key(name).scale if name else 1):.4g}"


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
    source = column if rows and column in rows[0] else CUMULATIVE.get(column, column)
    if column.startswith("measured_"):
        rows = run.table("timing.csv")
    index = np.array([number(row.get("round")) for row in rows])
    values = np.array([number(row.get(source)) for row in rows])
    if source != column and np.isfinite(values).any():
        values = np.cumsum(np.nan_to_num(values))
    known = np.isfinite(values)
    return index[known], values[known]


def to_target(run: Run, column: str, target: float) -> float | None:
    """Return a column (round, elapsed_s, sent_bits, spent_j) when the mean accuracy first reached a target.

    None if it never did, or if the run has no such column.
    """
    index, accuracy = rounds(run, "accuracy_mean")
    reached = index[accuracy >= target]
    steps, values = rounds(run, column)
    if not reached.size or not steps.size:
        return None
    place = int(np.searchsorted(steps, reached[0], side="right")) - 1
    return float(values[place]) if place >= 0 else None


def spread_of(numbers: FloatVector, how: str, *, study: bool) -> float:
    """Return the half-length of an error bar over samples; 0 of fewer than two.

    Args:
        numbers: (n,) one per run or draw.
        how: deviation, confidence (95 % of the mean, Student's t), or auto: two standard errors over draws,
            the standard deviation over runs.
        study: whether they are draws.
    """
    if numbers.size < 2:
        return 0.0
    deviation = float(numbers.std(ddof=1))
    error = deviation / math.sqrt(numbers.size)
    if how == "confidence":
        from scipy.special import stdtrit

        return float(stdtrit(numbers.size - 1, 0.975)) * error
    return 2 * error if how == "auto" and study else deviation


def samples(run: Run, column: str, reduce: str | None = None) -> dict[int, float]:
    """Return one number (draw 0) of a learning run, or one per draw of a study.

    `reduce` replaces what the column's quantity says.
    """
    if run.is_study:
        name = "timing.csv" if column.startswith("measured_") else "draws.csv"
        found = {int(row["draw"]): number(row.get(column)) for row in run.table(name)}
        return {draw: value for draw, value in found.items() if math.isfinite(value)}
    base, at, level = column.partition("@")
    if at:  # what is never reached has no number
        found_at = to_target(run, base, float(level))
        return {} if found_at is None else {0: found_at}
    _, values = rounds(run, column)
    if not values.size:
        return {}
    reduce = reduce or quantity(column).reduce
    if reduce == "tail":
        return {0: float(values[-max(min(2, values.size), values.size // 4) :].mean())}
    if reduce == "last":
        return {0: float(values[-1])}
    if reduce == "max":
        return {0: float(values.max())}
    return {0: float(values.mean())}


def collect(
    runs: Iterable[Run],
    column: str,
    keys: Sequence[str],
    reduce: str | None = None,
    *,
    target: float | None = None,
) -> dict[Unit, float]:
    """Return all numbers of the runs under (values of `keys`, seed, draw), by which two sets are paired.

    Runs that differ in nothing but keys that are not named are one sample: their mean. With a `target`, each
    run's number is that of `to_target`.
    """
    found: dict[Unit, list[float]] = {}
    for run in runs:
        if target is None:
            numbers = samples(run, column, reduce)
        else:
            reached = to_target(run, column, target)
            numbers = {} if reached is None else {0: reached}
        for draw, value in numbers.items():
            found.setdefault((*(_hashable(run.config.get(key)) for key in keys), run.seed, draw), []).append(
                value
            )
    return {unit: float(np.mean(values)) for unit, values in found.items()}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def plus_minus(value: float, error: float = math.inf, *, signed: bool = False) -> str:
    """Return "value ± error", both up to the second digit of the error.

    An unknown error, and one that does not reach the four digits of the value, are left out.
    """
    sign = "+" if signed else ""
    digits = 10.0 ** (math.floor(math.log10(abs(value))) - 3) if value and math.isfinite(value) else 0.0
    if not math.isfinite(error) or error <= 0.5 * digits:
        return format(value, f"{sign}.4g")
    decimals = max(0, 1 - math.floor(math.log10(error)))
    if decimals > 6:
        return f"{format(value, f'{sign}.3g')} ± {error:.2g}"
    return f"{format(value, f'{sign}.{decimals}f')} ± {error:.{decimals}f}"


def with_unit(column: str, value: float, error: float = math.inf, *, signed: bool = False) -> str:
    """Return "value ± error unit" of a column."""
    shown = quantity(column)
    unit = f" {shown.unit}" if shown.unit else ""
    return f"{plus_minus(shown.scale * value, shown.scale * error, signed=signed)}{unit}"


def named(values: Mapping[str, Any]) -> str:
    """Return configuration values as words."""
    return ", ".join(setting(key, value) for key, value in values.items())


def limits_text(least: float, most: float) -> str:
    """Return what a claim says of a number."""
    if math.isinf(most):
        return f"claimed: at least {least:.4g}"
    if math.isinf(least):
        return f"claimed: at most {most:.4g}"
    return f"claimed: {least:.4g} to {most:.4g}"
