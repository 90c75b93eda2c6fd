"""Times of competing implementations, taken in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.processors import usable_processors


@dataclass(frozen=True)
class Figure:
    """One line of the benchmark table.

    Attributes:
        name: what was measured.
        value, unit: the figure.
        baseline: what it is compared with, and ratio: how often better it is; None without comparison.
        spread: interquartile range of the ratio, or of the value where there is no baseline.
        threads: processor threads of each side.
        memory_mib: peak resident memory of what was measured, where it was taken.
        details: further numbers.
    """

    name: str
    value: float
    unit: str
    baseline: str | None = None
    ratio: float | None = None
    spread: tuple[float, float] | None = None
    threads: str = "1"
    memory_mib: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> str:
        """Return a row of a Markdown table."""
        spread = f"{self.spread[0]:.3g} - {self.spread[1]:.3g}" if self.spread else "-"
        ratio = f"{self.ratio:.3g}" if self.ratio is not None else "-"
        memory = f"{self.memory_mib:.0f}" if self.memory_mib is not None else "-"
        more = "; ".join(f"{name} {value}" for name, value in self.details.items())
        return (
            f"| {self.name} | {self.value:.4g} {self.unit} | {self.baseline or '-'} | {ratio} | {spread} "
            f"| {self.threads} | {memory} | {more} |"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


HEADER = (
    "| figure | value | baseline | times better | spread | threads | peak MiB | details |\n"
    "|---|---|---|---|---|---|---|---|"
)


def interleave(
    sides: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Run every side once per repeat, in turn, and return its times in s.

    `clock` is the wall clock, or `time.process_time` for work in this process alone: processor time does not
    count the time that other programs take.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warm_up + repeats):
        for name, side in sides.items():
            start = clock()
            side()
            if repeat >= warm_up:
                times[name].append(clock() - start)
    return times


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the median of the pairwise ratios and their quartiles."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return statistics.median(ratios), quartiles(ratios)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile (the extremes of fewer than four values)."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def peak_mib(process: int | None = None) -> float:
    """Return the peak resident memory of a process, default this one, in MiB."""
    try:
        status = Path(f"/proc/{process or os.getpid()}/status").read_text()
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # Unlike that of `getrusage`, this peak does not begin with that of the process that started this one.
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def machine_facts() -> dict[str, Any]:
    """Return what the times depend on."""
    import numpy
    import torch

    from client_app.precision import multiplies_bfloat16

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(
                (line.split(":")[1].strip() for line in file if line.startswith("model name")), model
            )
    except OSError:
        pass
    return {
        "processor": model,
        "cores": usable_processors(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "bfloat16": "yes" if multiplies_bfloat16() else "no",
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }
