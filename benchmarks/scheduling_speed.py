"""What a schedule costs: processor and wall time of every scheduling method over the same channel draws.

    python -m benchmarks.scheduling_speed [--draws 100] [--quick]

How good the schedules are: `airflower --multirun experiment=scheduling`, and against the proved optimum
`experiment=optimality`. Slow methods run on the first few draws only, as the column "draws" says.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio.beamforming.problem import Complex
from radio.scheduling import schedule


@dataclass(frozen=True)
class Setting:
    """One block: K users, N antennas, M selected, spread of mean gains in dB."""

    users: int
    antennas: int
    selected: int
    spread_db: float = 0.0


SETTINGS = (
    Setting(50, 8, 10),
    Setting(100, 4, 10),
    Setting(100, 8, 10),
    Setting(100, 8, 20),
    Setting(100, 16, 20),
    Setting(200, 8, 10),
    Setting(50, 8, 10, spread_db=20.0),
)


@dataclass(frozen=True)
class Entry:
    """One line of the table: a method, its beamformer and options, and the most draws it runs on."""

    label: str
    method: str
    beamformer: str = "fast"
    draws: int = 10**9
    max_antennas: int = 10**9
    options: tuple[tuple[str, Any], ...] = ()


ENTRIES = (
    Entry("multistart", "multistart"),
    Entry("enhanced", "enhanced"),
    Entry("policy_greedy", "policy_greedy"),
    Entry("policy", "policy"),
    Entry("iterative", "iterative"),
    Entry("iterative_reweighted", "iterative_reweighted"),
    Entry("random_beamforming", "random_beamforming"),
    Entry("random_selection", "random_selection"),
    Entry("subgradient", "subgradient", draws=20),
    Entry("policy_greedy, dc beam", "policy_greedy", beamformer="dc", draws=5, max_antennas=8),
    Entry("policy_greedy, sdr beam", "policy_greedy", beamformer="sdr", draws=5),
    Entry("actor_critic", "strategies.actor_critic:actor_critic", draws=2, options=(("updates", 300),)),
)


def draw_channels(setting: Setting, draw: int) -> Complex:
    """Return (K, N) Rayleigh channels; with a spread, mean gains uniform in dB over it, centred at 0 dB."""
    key = [setting.users, setting.antennas, setting.selected, int(setting.spread_db), draw]
    rng = np.random.default_rng(key)
    shape = (setting.users, setting.antennas)
    channels = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2.0)
    level_db = rng.uniform(-0.5, 0.5, setting.users) * setting.spread_db
    return np.asarray(channels * 10.0 ** (level_db[:, None] / 20.0))


def times(setting: Setting, entry: Entry, draws: int) -> tuple[list[float], float]:
    """Return the wall seconds of every schedule, and the processor seconds of one.

    The first draw is scheduled once more, unmeasured, where that is cheap, so that no time holds an import.
    """
    wall: list[float] = []
    processor = 0.0
    first = 0 if entry.draws < draws else -1
    for draw in range(first, min(draws, entry.draws)):
        channels = draw_channels(setting, max(draw, 0))
        begin = time.process_time()
        found = schedule(
            channels,
            setting.selected,
            method=entry.method,
            beamformer=entry.beamformer,
            rng=np.random.default_rng([7, max(draw, 0)]),
            **dict(entry.options),
        )
        if draw >= 0:
            processor += time.process_time() - begin
            wall.append(found.runtime_s)
    return wall, processor / len(wall)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, time every method, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="10 draws, without the slow methods")
    options = parser.parse_args(arguments)
    draws = 10 if options.quick else options.draws
    if draws < 1:
        parser.error(f"--draws {draws}: at least 1 is needed")
    for setting in SETTINGS:
        spread = f", {setting.spread_db:g} dB spread" if setting.spread_db else ""
        print(f"\nK = {setting.users}, N = {setting.antennas}, M = {setting.selected}{spread}")
        print(f"  {'method':<24}{'draws':>6}{'mean ms':>10}{'max ms':>10}{'CPU ms':>10}{'vs multistart':>15}")
        ours = 0.0
        for entry in ENTRIES:
            if setting.antennas > entry.max_antennas or (options.quick and entry.draws < 100):
                continue
            wall, processor = times(setting, entry, draws)
            ours = ours or processor
            print(
                f"  {entry.label:<24}{len(wall):>6}{1e3 * np.mean(wall):>10.2f}{1e3 * max(wall):>10.2f}"
                f"{1e3 * processor:>10.2f}{processor / ours:>15.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
