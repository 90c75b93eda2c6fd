"""One CSV per kind of row, all runs together: `pandas.read_csv` and group by the columns in front.

Each row begins with the run's name, its experiment, its seed and every configuration key in which the runs
differ; ``runs.csv`` has one row per run with its whole configuration and summary.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.report.folders import TABLES, Run, differing
from protocol.untrusted import safe_text
from server_app.settings import flatten


def write_tidy(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the CSV files into `folder` and return their paths."""
    keys = differing(runs)
    fronts = {
        run: {
            "run": run.name,
            "experiment": run.report.get("name", ""),
            "seed": run.config.get("seed", ""),
            **{key: _cell(run.config.get(key)) for key in keys},
        }
        for run in runs
    }
    written = []
    for name in TABLES:
        columns = dict.fromkeys(column for run in runs for column in run.header(name))
        if not columns:
            continue
        front_names = list(next(iter(fronts.values())))
        header = [*front_names, *(column for column in columns if column not in front_names)]
        path = folder / name
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n", restval="")
            writer.writeheader()
            for run in runs:
                writer.writerows({**row, **fronts[run]} for row in run.stream(name))
        written.append(path)
    written.append(_write_runs(runs, folder / "runs.csv"))
    return written


def _write_runs(runs: Sequence[Run], path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {
            "run": run.name,
            "experiment": run.report.get("name", ""),
            "folder": str(run.folder),
            **{name: _cell(value) for name, value in flatten(run.summary).items()},
            **{f"config.{name}": _cell(value) for name, value in run.config.items()},
        }
        for run in runs
    ]
    header = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(header), lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return safe_text(";".join(str(item) for item in value))
    if isinstance(value, str):
        return safe_text(value)  # a reason that a device gave, for one
    return value if not isinstance(value, Mapping) else ""
