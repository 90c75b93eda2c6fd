"""Small jobs for the end-to-end tests."""

from pathlib import Path
from typing import Any

import numpy as np

from engines.inprocess import open_grid
from server_app.checkpoint import latest
from server_app.run import run
from server_app.settings import compose_settings

# A tiny network on real digits: a round takes milliseconds.
SMALL = ("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20", "rounds=3")


def run_small(
    folder: Path, *overrides: str, app: str = "client_app.app:app", workers: int = 1
) -> dict[str, Any]:
    """Run a small job in `folder` and return its summary."""
    return run_job(folder, *SMALL, *overrides, app=app, workers=workers)


def run_job(
    folder: Path, *overrides: str, app: str = "client_app.app:app", workers: int = 1
) -> dict[str, Any]:
    """Run a job in `folder` and return its summary."""
    settings = compose_settings(overrides)
    with open_grid(settings, app, workers) as grid:
        return run(settings, grid, folder)


def records(folder: Path) -> tuple[str, str]:
    """Return the text of the two record files that a seed decides."""
    return (folder / "rounds.csv").read_text(), (folder / "devices.csv").read_text()


def final_weights(folder: Path) -> np.ndarray:
    """Return the global part of the final checkpoint."""
    with np.load(latest(folder) / "server.npz") as archive:
        return archive["weights"]
