"""A run that ends before its last round: no better for long enough, or good enough.

What is known of a run is its rows, so that one that is continued stops where an uninterrupted one would: its
rows so far are looked at again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from records.summary import CUMULATIVE
from registry import suggest
from schema import ConfigError, key
from schema.uses import PATIENT, STOPPED, TRAINING
from strategies.records import Value

Direction = Literal["auto", "max", "min"]

_FALL = (
    "loss",
    "latency",
    "bits",
    "bytes",
    "energy",
    "starved",
    "failed",
    "exhausted",
    "diverged",
    "uncovered",
)


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """When a run ends before its last round."""

    metric: str = key(
        "column of rounds.csv, or elapsed_s, sent_bits, spent_j: latency, bits, joules so far",
        used=TRAINING & STOPPED,
    )
    mode: Direction = key(
        "whether the metric is to rise or to fall: max | min; auto: by what it is", used=TRAINING & STOPPED
    )
    patience: int | None = key(
        "end after so many values in a row that are no better than the best before; null: never",
        minimum=1, used=TRAINING,
    )  # fmt: skip
    min_delta: float = key("a value is better if it is by more than this", minimum=0, used=TRAINING & PATIENT)
    threshold: float | None = key("end as soon as the metric reaches this; null: never", used=TRAINING)
    from_round: int = key("values of earlier rounds do not count", minimum=1, used=TRAINING & STOPPED)


def rises(metric: str, direction: Direction) -> bool:
    """Return whether a metric is to rise, by what it is unless `direction` says so."""
    if direction != "auto":
        return direction == "max"
    if metric in CUMULATIVE:  # a budget: these only ever rise
        return True
    from task.metrics import METRICS, lower_is_better  # torch: half a second of imports

    name = metric.removeprefix("global_")
    stem = name if name in METRICS else name.rpartition("_")[0]
    if stem in METRICS:
        return not lower_is_better(stem)
    return not any(word in metric for word in _FALL)


class EarlyStop:
    """Says when a run ends; to be shown its rows in order.

    Args:
        settings: what to look at, and when to end.
        columns: of rounds.csv.

    Attributes:
        reason: why the run ends, or "".
        best: the best value so far; None without any.
        best_round: the round that it was in.

    Raises:
        ConfigError: if there is no such column.
    """

    def __init__(self, settings: StopSettings, columns: Collection[str]) -> None:
        self._settings = settings
        self._active = settings.patience is not None or settings.threshold is not None
        if self._active and settings.metric not in (valid := (*columns, *CUMULATIVE)):
            raise ConfigError(
                f"stop.metric = {settings.metric} is unknown; {suggest(settings.metric, valid)}"
            )
        self._sign = 1.0 if not self._active or rises(settings.metric, settings.mode) else -1.0
        self._total = 0.0
        self._waited = 0
        self._round = 0
        self.reason = ""
        self.best: float | None = None
        self.best_round = 0

    def replay(self, rows: Iterable[Mapping[str, str]]) -> None:
        """Look at the rows of rounds that are done already."""
        for row in rows:
            self.see(int(row["round"]), row)

    def see(self, server_round: int, row: Mapping[str, Value]) -> bool:
        """Look at the row of a round; return whether the run ends with it."""
        value = self._value(row) if self._active else None
        if self.reason or value is None or server_round < self._settings.from_round:
            return bool(self.reason)
        self._round = server_round
        settings, worse = self._settings, self.best is not None
        if self.best is None or self._sign * (value - self.best) > settings.min_delta:
            self.best, self.best_round, worse = value, server_round, False
        self._waited = self._waited + 1 if worse else 0
        name = f"{settings.metric} = {value:.6g}"
        if settings.threshold is not None and self._sign * (value - settings.threshold) >= 0:
            self.reason = f"{name} has reached stop.threshold = {settings.threshold:g}"
        elif settings.patience is not None and self._waited >= settings.patience:
            self.reason = (
                f"{name} is the last of stop.patience = {settings.patience} values that are no better than "
                f"{self.best:.6g} of round {self.best_round}"
            )
        return bool(self.reason)

    def _value(self, row: Mapping[str, Value]) -> float | None:
        """Return the metric's value in a row; None where it has none, as between two evaluations."""
        name = self._settings.metric
        given = row.get(CUMULATIVE.get(name, name))
        value = math.nan if given is None or given == "" else float(given)
        if name in CUMULATIVE:
            self._total += value if math.isfinite(value) else 0.0
            return self._total
        return None if math.isnan(value) else value

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` says of it; nothing of a run that went to its last round."""
        if not self.reason:
            return {}
        return {
            "stopped": {
                "round": self._round,
                "reason": self.reason,
                "best": self.best,
                "best_round": self.best_round,
            }
        }
