"""The facts that make a run repeatable, and its result in a few numbers."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("airflower", "flwr", "torch", "torchvision", "numpy", "scipy", "cvxpy", "hydra-core", "ray")
# What adds up over the rounds, and the column of rounds.csv that it is the sum of.
CUMULATIVE = {"elapsed_s": "latency_s", "sent_bits": "uplink_bits", "spent_j": "energy_j"}
ACCURACY_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99)


def run_facts(*, seed: int, scheme: str, dataset: str) -> dict[str, Any]:
    """Return these, versions, platform and git commit."""
    return {
        "seed": seed,
        "scheme": scheme,
        "dataset": dataset,
        "versions": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "git_commit": git_commit(),
    }


def summarise(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return the final accuracy and loss, and the totals over the rounds, from the rows of rounds.csv."""

    def numbers(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    summary: dict[str, Any] = {"rounds": len(rows)}
    for name in ("accuracy_mean", "accuracy_samples", "accuracy_worst", "loss_mean"):
        if values := numbers(name):
            summary[f"final_{name}"] = values[-1]
    for name in ("uplink_bits", "wire_bytes"):
        if values := numbers(name):
            summary[f"total_{name}"] = int(sum(values))
    if values := numbers("latency_s"):
        summary["total_latency_s"] = sum(values)
        summary["max_latency_s"] = max(values)
        summary["time_to_accuracy_s"] = until_accuracy(rows, "latency_s")
    if values := numbers("energy_j"):
        summary["total_energy_j"] = sum(values)
        summary["energy_to_accuracy_j"] = until_accuracy(rows, "energy_j")
    if values := numbers("pruning_ratio_mean"):
        summary["mean_pruning_ratio"] = sum(values) / len(values)
    summary["rounds_with_failures"] = sum(bool(row.get("failed")) for row in rows)
    if diverged := sum(numbers("diverged")):
        summary["diverged_evaluations"] = int(diverged)
    return summary


def until_accuracy(rows: Sequence[Mapping[str, str]], column: str) -> dict[str, float]:
    """Return the sum of a column until the mean accuracy first reached a level, for those that it reached."""
    found: dict[str, float] = {}
    spent = 0.0
    for row in rows:
        spent += float(row.get(column) or 0)
        reached = float(row.get("accuracy_mean") or 0)
        for level in ACCURACY_LEVELS:
            if reached >= level:
                found.setdefault(f"{level:g}", spent)
    return found


def starved_rounds(devices: Path, rows: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Return in how many rounds each device was pruned to nothing, of those that ever were.

    Args:
        devices: devices.csv.
        rows: of rounds.csv.
    """
    if not any(float(row.get("starved") or 0) for row in rows):
        return {}
    with devices.open(newline="") as file:
        counted = Counter(row["device"] for row in csv.DictReader(file) if row["kept_weights"] == "0")
    return dict(sorted(counted.items(), key=lambda item: int(item[0])))


def device_energy(devices: Path) -> dict[str, float]:
    """Return the joules that each device spent over the run; nothing where none are known.

    Args:
        devices: devices.csv.
    """
    spent: dict[str, float] = {}
    with devices.open(newline="") as file:
        for row in csv.DictReader(file):
            joules = [row.get(name) for name in ("compute_energy_j", "transmit_energy_j")]
            if any(joules):
                spent[row["device"]] = spent.get(row["device"], 0.0) + sum(float(j or 0) for j in joules)
    return dict(sorted(spent.items(), key=lambda item: int(item[0])))


def git_commit() -> str | None:
    """Return the commit of the source tree, with ``+changes`` if it is not clean; None outside Git."""
    here = Path(__file__).resolve().parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, ValueError, subprocess.SubprocessError):  # also one that takes too long
        return None


def _git(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
