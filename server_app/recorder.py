"""What a run leaves on disk: CSV rows as the rounds go by, a summary at the end.

==================  ==============================================================================
rounds.csv          one row per round: accuracy, loss, latency, bits (emulated or learned)
devices.csv         one row per device and round: shares, ratios, what was sent, status, accuracy
timing.csv          one row per round: wall-clock seconds that this machine took (measured)
device_timing.csv   one row per device and round: seconds that the device measured
config.yaml         the resolved configuration
summary.json        how the run ended, with versions, git commit and seed
==================  ==============================================================================

The first two repeat bit for bit with the seed; the timing files do not, which is why they are apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from strategies.records import RoundLog, Value

ROUNDS, DEVICES = "rounds.csv", "devices.csv"
TIMING, DEVICE_TIMING = "timing.csv", "device_timing.csv"
MEASURED = "measured_"


class Recorder:
    """Appends the rows of each round to the run folder.

    Args:
        folder: the run folder; created.
        round_columns, device_columns, device_timing_columns: columns beside round and device.
        history: run folder whose rows up to round `until` come first (a resumed run), or None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        round_columns: Sequence[str],
        device_columns: Sequence[str],
        device_timing_columns: Sequence[str],
        history: Path | None = None,
        until: int = 0,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tables = {
            ROUNDS: _Table(folder / ROUNDS, ("round", *round_columns)),
            DEVICES: _Table(folder / DEVICES, ("round", "device", *device_columns)),
            TIMING: _Table(folder / TIMING, ("round", *TIMING_COLUMNS)),
            DEVICE_TIMING: _Table(folder / DEVICE_TIMING, ("round", "device", *device_timing_columns)),
        }
        for name, table in self._tables.items():
            table.start(() if history is None else _rows_until(history / name, until))

    def record(self, log: RoundLog, timing: Mapping[str, float]) -> None:
        """Append one round."""
        wall = {name: value for name, value in log.columns.items() if name.startswith(MEASURED)}
        self._tables[ROUNDS].append(
            [{"round": log.round, **{name: log.columns[name] for name in log.columns if name not in wall}}]
        )
        learned, measured = [], []
        for device, columns in sorted(log.devices.items()):
            row = {"round": log.round, "device": device}
            times = {name: value for name, value in columns.items() if name.startswith(MEASURED)}
            learned.append({**row, **{name: columns[name] for name in columns if name not in times}})
            if times:
                measured.append({**row, **times})
        self._tables[DEVICES].append(learned)
        self._tables[DEVICE_TIMING].append(measured)
        self._tables[TIMING].append([{"round": log.round, **wall, **timing}])


TIMING_COLUMNS = (
    "measured_plan_seconds",
    "measured_train_seconds",
    "measured_aggregate_seconds",
    "measured_evaluate_seconds",
)


class _Table:
    """One CSV file with fixed columns."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._columns = columns

    def start(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def append(self, rows: Iterable[Mapping[str, Value]]) -> None:
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)


def _rows_until(path: Path, until: int) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if int(row["round"]) <= until]


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of one of the CSV files."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file by way of a temporary one, so that readers never see half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)
