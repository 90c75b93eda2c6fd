"""Studies: jobs of the `airflower` command that train nothing.

A study looks at the radio alone (schedules, allocations, latencies) over many channel draws and leaves
``draws.csv`` (one row per draw; repeats bit for bit with the seed) and ``timing.csv`` (measured seconds)
in its run folder. The configuration key ``study.name`` picks it; everything else of the configuration
means what it means in a run that trains, and the draws are the channels that such a run would meet.

A study is one function ``(settings) -> StudyResult``: register it with ``@study("name")``, or name it
by its dotted path ``package.module:function``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from protocol.archives import digest_of
from records.recorder import TIMING
from registry import Registry
from schema import ConfigError
from server_app.settings import Settings
from server_app.tracking import track
from strategies.records import Value

DRAWS = "draws.csv"


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

    Attributes:
        draws: one row per draw, with equal columns.
        timing: one row per draw with measured seconds; may be empty.
        summary: further numbers for ``summary.json``.
    """

    draws: Sequence[Mapping[str, Value]]
    timing: Sequence[Mapping[str, Value]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)


Study = Callable[[Settings], StudyResult]
STUDIES: Registry[Study] = Registry("study", key="study.name")
STUDIES.register_at(  # imported when asked for: most jobs need none of them
    scheduling="experiments.studies.scheduling:scheduling",
    optimality="experiments.studies.optimality:optimality",
    planning="experiments.studies.planning:planning",
    printed_formula="experiments.studies.planning:printed_formula",
)
study = STUDIES.register


def resolve(name: str) -> Study:
    """Return the study called `name`, importing a dotted reference.

    Raises:
        ConfigError: if there is no such study, module or function.
    """
    try:
        return STUDIES.find(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def run_study(settings: Settings, folder: Path) -> dict[str, Any]:
    """Run the study that the settings name and write its tables.

    Returns:
        Means over the draws (``mean_<column>``) and what the study adds; nothing measured.

    Raises:
        ConfigError: if there is no such study or its inputs do not fit.
    """
    name = settings.study.name
    if name is None:
        raise ConfigError("study.name is null: there is no study to run")
    function = resolve(name)
    with track(settings, folder, unit="draw") as tracker:
        try:
            result = function(settings)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"study.name = {name}: {error}") from error
        for number, row in enumerate(result.draws):
            tracker.record(number, row)
    _write(folder / DRAWS, result.draws)
    if result.timing:
        _write(folder / TIMING, result.timing)
    records = {DRAWS: digest_of(folder / DRAWS).sha256}  # of nothing measured: it repeats with the seed
    return {"draws": len(result.draws), **_means(result.draws), **result.summary, "records": records}


def _write(path: Path, rows: Sequence[Mapping[str, Value]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _means(rows: Sequence[Mapping[str, Value]]) -> dict[str, float]:
    columns = [
        name
        for name, value in (rows[0] if rows else {}).items()
        if isinstance(value, int | float) and name != "draw"
    ]
    return {f"mean_{name}": float(np.mean([float(row[name] or 0) for row in rows])) for name in columns}
