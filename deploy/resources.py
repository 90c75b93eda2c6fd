"""What a fleet uses: memory and processor time by kind of process, bytes by node and round."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

import psutil

from engines.process_table import command_of, started_by

_KINDS = ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "warm.py")
_MESSAGE = re.compile(r"^warm: message: ([0-9.]+) s of processor time, ([0-9.]+) MB$", re.MULTILINE)


class Usage:
    """Samples what this process has started while a fleet runs.

    Args:
        seconds: between samples.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self._seconds, self._next = seconds, 0.0
        self._memory: dict[str, float] = defaultdict(float)  # MB, the most seen
        self._processor: dict[str, dict[int, float]] = defaultdict(dict)  # s, by process

    def sample(self) -> None:
        """Look at the processes, if it is time to."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._seconds
        found = {process.pid: process for process in started_by(os.getpid())}
        commands = {pid: command_of(process) for pid, process in found.items()}
        for pid, process in found.items():
            command = commands[pid]
            kind = next((kind for kind in _KINDS if kind in command), None)
            with suppress(psutil.Error):  # it may have ended
                if kind is None or command == commands.get(process.ppid(), ""):  # a fork counts as a message
                    continue
                times = process.cpu_times()
                rss = process.memory_info().rss / 2**20
                self._memory[kind] = max(self._memory[kind], rss)
                self._processor[kind][pid] = times.user + times.system

    def lines(self, warm_log: Path, facts: Mapping[str, Any], *, nodes: int, rounds: int) -> Sequence[str]:
        """Return the report.

        Args:
            warm_log: what the warm process printed.
            facts: what the SuperLink knows of the run, its network traffic among it.
            nodes, rounds: of the run.
        """
        lines = [f"{'process':24}{'RSS, MB':>10}{'CPU, s each':>14}"]
        for kind in _KINDS:
            if kind in self._memory:
                seconds = mean(self._processor[kind].values())
                lines.append(f"{kind:24}{self._memory[kind]:10.0f}{seconds:14.1f}")
        messages = _MESSAGE.findall(warm_log.read_text(errors="replace")) if warm_log.is_file() else []
        if messages:
            times, peaks = zip(*((float(time), float(peak)) for time, peak in messages), strict=True)
            lines.append(
                f"messages: {len(times)}, {mean(times):.2f} s CPU each, peak {max(peaks):.0f} MB (shared)"
            )
        traffic = facts.get("network-traffic") or {}
        lines.append(f"bytes of a node and round, Flower's count: {_each(traffic, nodes * rounds)}")
        return lines


def _each(traffic: Mapping[str, Any], number: int) -> str:
    parts = [f"{name} {int(value) / number:.0f}" for name, value in traffic.items() if str(value).isdigit()]
    return ", ".join(parts) or str(dict(traffic))
