"""Many tiny devices: rounds per second in process and on Flower's Ray simulation; start-up; large fleets."""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure, ratio_of

_DEVICES, _TOGETHER = 200, 50
JOB = ("model=mlp", "partition=iid", "evaluate_every=1000000", "dataset=digits")


def _run(folder: Path, *overrides: str) -> float:
    """Run a job as a user would, and return the seconds until its first round is done."""
    command = [sys.executable, "-m", "experiments.cli", *JOB, *overrides, f"hydra.run.dir={folder}"]
    start, first = time.perf_counter(), None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if first is None and line.startswith("round 1/"):
                first = time.perf_counter() - start
    if process.returncode or first is None:
        raise RuntimeError("".join(printed))
    return first


def round_seconds(folder: Path) -> list[float]:
    """Return the seconds of each round after the first: planning, training, averaging."""
    with (folder / "timing.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    return [float(r["measured_train_seconds"]) + float(r["measured_aggregate_seconds"]) for r in rows]


def figures(*, quick: bool) -> list[Figure]:
    """Measure 200 devices with 20 k weights on both engines, in turn, each run a process of its own."""
    rounds, repeats = (6, 1) if quick else (8, 5)
    sides: dict[str, tuple[str, ...]] = {
        "together": ("engine=inprocess", f"engine.batch_devices={_TOGETHER}"),
        "one after the other": ("engine=inprocess",),
        "ray": ("engine=ray",),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    starts: dict[str, list[float]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            for name, overrides in sides.items():
                folder = Path(scratch, f"{name}{repeat}")
                starts[name].append(
                    _run(folder, f"rounds={rounds}", f"fleet.num_devices={_DEVICES}", *overrides)
                )
                times[name].append(statistics.median(round_seconds(folder)))
    found = []
    for name, text in (
        ("together", f"trained {_TOGETHER} at once"),
        ("one after the other", "one after the other"),
    ):
        ratio, spread = ratio_of(times["ray"], times[name])
        found.append(
            Figure(
                name=f"{_DEVICES} devices, MLP of 20 k weights, in-process, {text}",
                value=statistics.median(times[name]),
                unit="s per round",
                baseline="Flower's Ray simulation, same job",
                ratio=ratio,
                spread=spread,
                threads="2 processes x 1; Ray 2 actors",
                details={"Ray s per round": round(statistics.median(times["ray"]), 3)},
            )
        )
    ratio, spread = ratio_of(starts["ray"], starts["together"])
    found.append(
        Figure(
            name=f"from the command to the end of the first round, {_DEVICES} devices, MLP",
            value=statistics.median(starts["together"]),
            unit="s",
            baseline="Flower's Ray simulation, same job",
            ratio=ratio,
            spread=spread,
            threads="2 processes x 1; Ray 2 actors",
            details={"Ray s": round(statistics.median(starts["ray"]), 1)},
        )
    )
    return found
