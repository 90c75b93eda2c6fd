"""Run folders, read."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from records.ownership import status_of
from server_app.settings import decides_nothing, flatten

Row = dict[str, str]

SUMMARY, CONFIG = "summary.json", "config.yaml"
TABLES = ("rounds.csv", "devices.csv", "timing.csv", "device_timing.csv", "draws.csv")


class ReportError(ValueError):
    """The report cannot be made; the text says why."""


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        name: short name, unique in the report.
        config: flat configuration, dotted keys.
        report: the report node of its configuration.
        summary: ``summary.json``.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    summary: Mapping[str, Any]
    _tables: dict[str, list[Row]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def completed(self) -> bool:
        """Whether it ended well."""
        return self.summary.get("status") == "completed"

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.config.get("seed", 0))

    def table(self, name: str) -> list[Row]:
        """Return the rows of one of its CSV files, without rows cut short; none if there is no such file."""
        if name not in self._tables:
            self._tables[name] = list(self.stream(name))
        return self._tables[name]

    def stream(self, name: str) -> Iterator[Row]:
        """Yield the rows of one of its CSV files, which are then not kept: `devices.csv` may be long."""
        try:
            with (self.folder / name).open(newline="") as file:
                for row in csv.DictReader(file):
                    if None not in row.values():
                        yield row
        except OSError:
            return

    def header(self, name: str) -> list[str]:
        """Return the columns of one of its CSV files; none if there is no such file."""
        try:
            with (self.folder / name).open(newline="") as file:
                return next(csv.reader(file), [])
        except OSError:
            return []

    @cached_property
    def is_study(self) -> bool:
        """Whether its rows are draws, not rounds."""
        return bool(self.config.get("study.name"))

    def __hash__(self) -> int:
        return hash(self.folder)


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the runs at or below the paths, in the order of their names.

    Raises:
        ReportError: if a path does not exist or there is no run in any of them.
    """
    folders: dict[Path, None] = {}
    given = list(paths)
    for path in given:
        if not path.is_dir():
            raise ReportError(f"{path} is not a folder")
        for summary in sorted(path.rglob(SUMMARY)):
            if (summary.parent / CONFIG).is_file():
                folders[summary.parent.resolve()] = None
    if not folders:
        raise ReportError(f"no run folder ({SUMMARY} with {CONFIG}) in {', '.join(map(str, given))}")
    names = _short_names(list(folders))
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _short_names(folders: Sequence[Path]) -> list[str]:
    """Name each folder by its path below what all have in common."""
    if len(folders) == 1:
        return [folders[0].name]
    parts = [folder.parts for folder in folders]
    common = 0
    while all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ["/".join(p[common:]) for p in parts]


def _read(folder: Path, name: str) -> Run:
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        tree = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except Exception as error:  # damaged files fail in many ways; the page names the run
        return Run(folder, name, {}, {}, {"status": "unreadable", "reason": str(error)})
    if not isinstance(tree, dict):
        return Run(folder, name, {}, {}, {"status": "unreadable", "reason": f"{CONFIG} is not a mapping"})
    report = tree.pop("report", None) or {}
    status, reason = status_of(folder)  # a run whose process has died says `running` itself
    if status == "killed":
        summary = {**summary, "status": status, "reason": reason}
    return Run(folder, name, flatten({str(key): value for key, value in tree.items()}), report, summary)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the configuration keys in which the runs differ, but for the seed."""
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        key
        for key in keys
        if key != "seed"
        and not decides_nothing(key)
        and len({json.dumps(run.config.get(key)) for run in runs}) > 1
    ]


def number(text: str | None) -> float:
    """Return the number in a cell, NaN if there is none."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return math.nan
