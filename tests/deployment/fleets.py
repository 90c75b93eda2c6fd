"""What the tests of whole fleets share."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from engines.superlink import finished
from records.recorder import read_table

SMALL = ("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20")


def processes_of(folder: Path) -> list[str]:
    """Return the command lines that name `folder`."""
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if str(folder) in line]


def rows(folder: Path, device: int, table: str = "devices.csv") -> list[dict[str, str]]:
    """Return the rows of one device, so far."""
    path = folder / table
    return [row for row in read_table(path) if row["device"] == str(device)] if path.is_file() else []


def rounds(folder: Path) -> int:
    """Return how many rounds have been recorded, so far."""
    path = folder / "rounds.csv"
    return len(read_table(path)) if path.is_file() else 0


def wait(condition: Callable[[], bool], what: str, folder: Path, seconds: float = 400.0) -> None:
    """Wait until a condition holds, or fail with the end of the run's log."""
    deadline = time.monotonic() + seconds
    while not condition():
        log = (folder / "run.log").read_text()[-3000:] if (folder / "run.log").is_file() else "no run.log"
        assert time.monotonic() < deadline, f"{what}: not in {seconds:g} s\n{log}"
        summary = finished(folder)
        assert summary is None or condition(), f"{what}: the run ended before: {summary}\n{log}"
        time.sleep(0.1)
