"""Joules that a node's board measures: processor packages (RAPL), or the current of a battery.

Linux shows both as files: ``/sys/class/powercap/intel-rapl:N/energy_uj`` counts microjoules of a package
(since 2020 readable for root only, unless the operator says otherwise), the present power in microwatts is
``/sys/class/power_supply/*/power_now``. What is measured is the whole board, whatever else it does meanwhile;
so it is asked for (``energy=true`` in the node-config), and never in a simulation, where one board is many
devices.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

SYS = Path("/sys/class")


@dataclass(frozen=True)
class Meter:
    """What the board showed when it was made.

    Attributes:
        root: where the files are.
        counters: microjoules by package.
        power: W of the power supplies that tell it; NaN without any.
        started: monotonic seconds.
    """

    root: Path = SYS
    counters: dict[Path, int] = field(default_factory=dict)
    power: float = math.nan
    started: float = 0.0

    @staticmethod
    def start(root: Path = SYS) -> Meter:
        """Read the board."""
        return Meter(root, _counters(root), _power(root), time.monotonic())

    def joules(self) -> float:
        """Return the joules since the start; NaN where the board does not tell.

        Packages are counted where there are any (a counter that has wrapped around is unwrapped once); else
        the mean of the power at both ends times the seconds between.
        """
        if self.counters:
            now = _counters(self.root)
            used = [_used(path, before, now[path]) for path, before in self.counters.items() if path in now]
            return 1e-6 * sum(used) if used else math.nan
        return 0.5 * (self.power + _power(self.root)) * (time.monotonic() - self.started)


def _used(path: Path, before: int, now: int) -> int:
    if now >= before:
        return now - before
    return now - before + (_number(path / "max_energy_range_uj") or before - now)


def _counters(root: Path) -> dict[Path, int]:
    """Return the counters of whole packages: parts of one (``intel-rapl:0:1``) are in it already."""
    found = {}
    for path in sorted((root / "powercap").glob("intel-rapl:*")):
        if path.name.count(":") == 1 and (value := _number(path / "energy_uj")) is not None:
            found[path] = value
    return found


def _power(root: Path) -> float:
    found = [_number(path / "power_now") for path in sorted((root / "power_supply").glob("*"))]
    known = [1e-6 * abs(value) for value in found if value is not None]
    return sum(known) if known else math.nan


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
