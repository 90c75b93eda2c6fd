"""How long a proof of the best users and beam takes, and what is left open where it takes too long.

    python -m benchmarks.proved_schedules [--draws 50] [--large-draws 20] [--large-seconds 60]

Rayleigh channels; seconds are processor time of one core, `multistart`'s start included. For (50, 8, 10) the
gap of bound and gain, in dB, is printed as it falls with time; a draw that is proved has gap 0 from then on.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence

import numpy as np

from radio.branching import Progress
from radio.scheduling import schedule

CASES = ((20, 4, 5, 10.0), (20, 4, 10, 10.0), (30, 4, 8, 120.0))  # K, N, M, seconds that are allowed
LARGE = (50, 8, 10)
TIMES = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)
_SEED = 20261126


class _TimeIsUpError(Exception):
    pass


class _Curve:
    """Gap over processor time; ends the search when the time is up."""

    def __init__(self, limit: float) -> None:
        self._begin, self._limit = time.process_time(), limit
        self.points: list[tuple[float, float]] = [(0.0, math.inf)]

    def __call__(self, state: Progress) -> None:
        spent = time.process_time() - self._begin
        self.points.append((spent, 10 * math.log10(max(state.upper_bound / state.gain, 1.0))))
        if spent > self._limit:
            raise _TimeIsUpError

    def at(self, seconds: float) -> float:
        """Return the gap at a time, dB; infinite before the first bound."""
        return [gap for spent, gap in self.points if spent <= seconds][-1]


def prove(users: int, antennas: int, count: int, draw: int, limit: float) -> tuple[bool, float, _Curve]:
    """Return whether one draw is proved within the limit, the processor time in s, and the gap over time."""
    rng = np.random.default_rng([_SEED, users, antennas, count, draw])
    shape = (users, antennas)
    channels = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / math.sqrt(2)
    curve = _Curve(limit)
    begin = time.process_time()
    try:
        found = schedule(channels, count, method="branch_and_bound", watch=curve, max_nodes=10**9)
    except _TimeIsUpError:
        return False, time.process_time() - begin, curve
    curve.points.append((time.process_time() - begin, found.gap_db or 0.0))
    return found.proved, time.process_time() - begin, curve


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.proved_schedules", description="How long proofs of schedules take."
    )
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--large-draws", type=int, default=20)
    parser.add_argument("--large-seconds", type=float, default=60.0)
    options = parser.parse_args(arguments)
    out = sys.stdout
    out.write("K, N, M       proved within   mean s    worst s\n")
    for users, antennas, count, limit in CASES:
        found = [prove(users, antennas, count, draw, limit) for draw in range(options.draws)]
        seconds = [spent for _, spent, _ in found]
        proved = sum(done for done, _, _ in found)
        out.write(
            f"{f'{users}, {antennas}, {count}':<12}{f'{proved}/{options.draws}':>8}{f'{limit:g} s':>9}"
            f"{np.mean(seconds):>10.3f}{max(seconds):>10.3f}\n"
        )
        out.flush()
    if not options.large_draws:
        return
    times = [moment for moment in TIMES if moment <= options.large_seconds]
    curves, proved = [], 0
    for draw in range(options.large_draws):
        done, _, curve = prove(*LARGE, draw, options.large_seconds)
        proved += done
        curves.append([curve.at(moment) for moment in times])
    out.write(f"\n{LARGE}: {proved}/{options.large_draws} proved; gap, dB\n")
    out.write("after, s  " + "".join(f"{moment:>8g}" for moment in times) + "\n")
    for name, function in (("mean", np.mean), ("worst", np.max)):
        values = function(np.array(curves), axis=0)
        out.write(f"{name:<10}" + "".join(f"{value:>8.3f}" for value in values) + "\n")


if __name__ == "__main__":
    main()
