"""Numbers of single devices: one per device at the end of a run, or one per device and round.

``devices.csv`` may have a hundred rows per round: it is read as a stream, a few columns at a time.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from experiments.report.folders import Run, number

STARVED = "starved"  # derived: 1 where a device was pruned to nothing, of the rounds that it took part in


def values_by_round(run: Run, column: str) -> dict[tuple[int, int], float]:
    """Return a column of ``devices.csv``, or whether each device starved, by (round, device)."""
    return dict(_values(run, column))


@lru_cache(maxsize=256)
def _values(run: Run, column: str) -> dict[tuple[int, int], float]:
    source = "kept_weights" if column == STARVED else column
    found = {}
    for row in run.stream("devices.csv"):
        value = number(row.get(source))
        if math.isfinite(value):
            place = int(row["round"]), int(row["device"])
            found[place] = float(value == 0) if column == STARVED else value
    return found


def final_values(run: Run, column: str) -> dict[int, float]:
    """Return one number per device: the mean of its last quarter of values (at least two), as of accuracies.

    Of `starved`, the share of all its rounds.
    """
    by_device: dict[int, list[float]] = {}
    for (_, device), value in sorted(_values(run, column).items()):
        by_device.setdefault(device, []).append(value)
    return {
        device: float(
            np.mean(values if column == STARVED else values[-max(min(2, len(values)), len(values) // 4) :])
        )
        for device, values in sorted(by_device.items())
    }
