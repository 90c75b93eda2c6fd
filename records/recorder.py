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

Rows are only ever appended, so what a table held after some round is its beginning: a `Mark`, its length and
digest, says whether the rows up to there are still those that were written.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.archives import flush_file, write_file
from strategies.records import RoundLog, Value

ROUNDS, DEVICES = "rounds.csv", "devices.csv"
TIMING, DEVICE_TIMING = "timing.csv", "device_timing.csv"


class HistoryError(RuntimeError):
    """The tables of a run do not hold the rows that they should."""


@dataclass(frozen=True)
class Mark:
    """How far a table had been written at some time.

    Attributes:
        size: bytes.
        sha256: hexadecimal digest of these bytes.
    """

    size: int
    sha256: str


Marks = Mapping[str, Mark]


class Recorder:
    """Appends the rows of each round to the run folder.

    Args:
        folder: the run folder; created.
        round_columns, device_columns, device_timing_columns: columns beside round and device.
        history: run folder whose rows come first (a resumed run), or None.
        until: how far its tables are to be taken over.

    Raises:
        HistoryError: if they no longer hold these rows, or have other columns.
    """

    def __init__(
        self,
        folder: Path,
        *,
        round_columns: Sequence[str],
        device_columns: Sequence[str],
        device_timing_columns: Sequence[str],
        history: Path | None = None,
        until: Marks | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._tables = {
            ROUNDS: _Table(folder / ROUNDS, ("round",), round_columns),
            DEVICES: _Table(folder / DEVICES, ("round", "device"), device_columns),
            TIMING: _Table(folder / TIMING, ("round",), TIMING_COLUMNS),
            DEVICE_TIMING: _Table(folder / DEVICE_TIMING, ("round", "device"), device_timing_columns),
        }
        for name, table in self._tables.items():
            if history is None:
                table.start()
            else:
                table.go_on(history / name, (until or {}).get(name))

    @property
    def marks(self) -> Marks:
        """How far the tables are written; to be asked for between rounds."""
        return {name: table.mark for name, table in self._tables.items()}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the tables that a seed decides, by which a finished run is known to be whole."""
        return {name: self._tables[name].mark.sha256 for name in (ROUNDS, DEVICES)}

    def flush(self) -> None:
        """Make the rows survive a power cut."""
        for table in self._tables.values():
            flush_file(table.path)

    def record(self, log: RoundLog, timing: Mapping[str, float]) -> None:
        """Append one round.

        Raises:
            ValueError: for a column that no table has.
        """
        of_round = {**log.columns, **timing}
        devices = [((log.round, device), columns) for device, columns in sorted(log.devices.items())]
        measured = self._tables[DEVICE_TIMING].columns
        self._check((ROUNDS, TIMING), of_round)
        for _, columns in devices:
            self._check((DEVICES, DEVICE_TIMING), columns)
        self._tables[ROUNDS].append([((log.round,), of_round)])
        self._tables[DEVICES].append(devices)
        self._tables[DEVICE_TIMING].append(row for row in devices if not measured.isdisjoint(row[1]))
        self._tables[TIMING].append([((log.round,), of_round)])

    def _check(self, tables: tuple[str, str], columns: Mapping[str, Value]) -> None:
        first, second = (self._tables[name].columns for name in tables)
        if unknown := columns.keys() - first - second:
            raise ValueError(f"{' and '.join(tables)} have no columns {sorted(unknown)}")


TIMING_COLUMNS = (
    "measured_plan_seconds",
    "measured_train_seconds",
    "measured_aggregate_seconds",
    "measured_evaluate_seconds",
)


_Row = tuple[Sequence[int], Mapping[str, Value]]  # what it begins with, and its values by column


class _Table:
    """One CSV file with fixed columns.

    Attributes:
        path: of the file.
        columns: beside those that say which row it is.
    """

    def __init__(self, path: Path, leading: Sequence[str], columns: Sequence[str]) -> None:
        self.path = path
        self.columns = frozenset(columns)
        self._leading, self._order = leading, tuple(columns)
        self._digest = hashlib.sha256()
        self._size = 0

    @property
    def mark(self) -> Mark:
        return Mark(self._size, self._digest.hexdigest())

    def start(self) -> None:
        self._replace(self._header())

    def go_on(self, history: Path, mark: Mark | None) -> None:
        content = read_until(history, mark)
        if not content.startswith(self._header()):
            raise HistoryError(f"{history} has other columns than this version writes")
        if history.resolve() != self.path.resolve():
            self._replace(content)
            return
        os.truncate(self.path, len(content))  # what a crash left behind the mark
        self._count(content)

    def append(self, rows: Iterable[_Row]) -> None:
        content = self._text([*leading, *map(columns.get, self._order)] for leading, columns in rows)
        with self.path.open("ab") as file:
            file.write(content)
        self._count(content)

    def _replace(self, content: bytes) -> None:
        self.path.write_bytes(content)
        self._digest, self._size = hashlib.sha256(), 0
        self._count(content)

    def _count(self, content: bytes) -> None:
        self._digest.update(content)
        self._size += len(content)

    def _header(self) -> bytes:
        return self._text([(*self._leading, *self._order)])

    def _text(self, rows: Iterable[Sequence[Value]]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode(errors="backslashreplace")


def read_until(path: Path, mark: Mark | None) -> bytes:
    """Return the beginning of a table up to a mark.

    Raises:
        HistoryError: if it is not what it was when the mark was set.
    """
    if mark is None:
        raise HistoryError(f"nothing is known of the rows of {path}")
    try:
        with path.open("rb") as file:
            content = file.read(mark.size)
    except OSError as error:
        raise HistoryError(f"{path} cannot be read: {error}") from error
    if len(content) < mark.size:
        raise HistoryError(f"{path} was cut short: {len(content)} bytes are left of {mark.size}")
    if hashlib.sha256(content).hexdigest() != mark.sha256:
        raise HistoryError(f"{path} was changed since: its checksum does not match")
    return content


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of one of the CSV files."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file by way of a temporary one, so that readers never see half of it."""
    write_file(path, (json.dumps(values, indent=2) + "\n").encode())
