"""Many tiny devices: rounds per second in process and on Flower's Ray simulation; start-up; large fleets."""

from __future__ import annotations

import csv
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figure, quartiles

_JOB = ("model=mlp", "partition=iid", "evaluate_every=1000000", "dataset=digits")


def _run(folder: Path, *overrides: str) -> float:
    """Run a job as a user would, and return its wall time in s."""
    command = [sys.executable, "-m", "server_app.cli", *_JOB, *overrides, f"hydra.run.dir={folder}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def _round_seconds(folder: Path) -> list[float]:
    """Return the seconds of each round after the first: planning, training, averaging."""
    with (folder / "timing.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[1:]
    return [float(r["measured_train_seconds"]) + float(r["measured_aggregate_seconds"]) for r in rows]


def figures(*, quick: bool) -> list[Figure]:
    """Measure 200 devices with 20 k weights on both engines, in turn, each run a process of its own."""
    rounds, repeats = (4, 1) if quick else (8, 3)
    times: dict[str, list[float]] = {"inprocess": [], "ray": []}
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        for repeat in range(repeats):
            starts.append(_run(Path(scratch, f"start{repeat}"), "rounds=1", "fleet.num_devices=200"))
            for engine in times:
                folder = Path(scratch, f"{engine}{repeat}")
                _run(folder, f"rounds={rounds}", "fleet.num_devices=200", f"engine={engine}")
                times[engine] += _round_seconds(folder)
    mine, theirs = (statistics.median(times[name]) for name in ("inprocess", "ray"))
    return [
        Figure(
            name="200 devices, MLP of 20 k weights, in-process",
            value=mine,
            unit="s per round",
            baseline="Flower's Ray simulation, same job",
            ratio=theirs / mine,
            spread=quartiles([theirs / value for value in times["inprocess"]]),
            threads="2 processes x 1; Ray 2 actors",
            details={"Ray s per round": round(theirs, 3)},
        ),
        Figure(
            name="whole job of one round, 200 devices, MLP: start, round, checkpoint, figure",
            value=statistics.median(starts),
            unit="s",
            spread=quartiles(starts),
            threads="2 processes x 1",
        ),
    ]
