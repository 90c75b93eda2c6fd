"""A side as a process whose rounds are timed from outside, with the time and memory of its process tree."""

from __future__ import annotations

import itertools
import os
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROUND = re.compile(r"round +(\d+)/(\d+)")  # numbers are aligned from ten rounds on
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Run:
    """What a run took.

    Attributes:
        first_s: from the command to the end of the first round.
        rounds_s: of each round but the first and the last.
        processor_s: of a round, all processes: from the end of the first round to that of the last but one.
        peak_mib: of the process tree, shared memory counted once.
    """

    first_s: float
    rounds_s: list[float]
    processor_s: float
    peak_mib: float

    @property
    def seconds(self) -> float:
        """The median of its rounds."""
        return statistics.median(self.rounds_s)


def watch(command: Sequence[str], *, folder: Path, log: Path, variables: Mapping[str, str]) -> Run:
    """Run a side and return what its rounds took.

    Raises:
        RuntimeError: if it does not do its rounds; with the end of what it said.
    """
    ends: list[tuple[float, float]] = []
    start = time.perf_counter()
    with log.open("w") as file, subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **variables},
    ) as process:  # fmt: skip
        peak = _Peak(process.pid)
        assert process.stdout is not None
        expected = 0
        for line in process.stdout:
            file.write(line)
            found = _ROUND.search(line)
            if found and int(found[1]) == len(ends) + 1:
                ends.append((time.perf_counter() - start, _processor_seconds(process.pid)))
                expected = int(found[2])
        peak.stop()
    if not expected or len(ends) < expected:
        raise RuntimeError(
            f"{' '.join(command)}: {len(ends)} rounds of {expected}\n{log.read_text()[-3000:]}"
        )
    inner = ends[: expected - 1]
    return Run(
        first_s=ends[0][0],
        rounds_s=[b[0] - a[0] for a, b in itertools.pairwise(inner)],
        processor_s=(inner[-1][1] - inner[0][1]) / (len(inner) - 1),
        peak_mib=peak.mib,
    )


def _tree(pid: int) -> list[psutil.Process]:
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _processor_seconds(pid: int) -> float:
    """Return the processor seconds of a process and all that it has started, the ended ones among them."""
    total = 0.0
    for process in _tree(pid):
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class _Peak(threading.Thread):
    """Looks at the memory of a process tree now and then."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over, self.mib = pid, threading.Event(), 0.0
        self.start()

    def run(self) -> None:
        """Look until told to stop."""
        while not self._over.wait(_LOOK_SECONDS):
            total = 0
            for process in _tree(self._pid):
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            self.mib = max(self.mib, total / 2**20)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()
