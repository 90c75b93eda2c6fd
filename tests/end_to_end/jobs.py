"""Small jobs for the end-to-end tests."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from engines.inprocess import open_grid
from records.checkpoint import latest
from server_app.run import run
from server_app.settings import Settings, compose_settings

# A tiny network on real digits: a round takes milliseconds.
SMALL = ("model=mlp", "partition.samples_per_device=40", "partition.test_samples_per_device=20", "rounds=3")


# Composing takes longer than the rounds do, and many tests run the same job.
@functools.cache
def _settings(overrides: tuple[str, ...], folder: str) -> Settings:  # `folder` may have a conf/ of its own
    return compose_settings(overrides)


def run_small(
    folder: Path, *overrides: str, app: str = "client_app.app:app", workers: int = 1, figure: bool = False
) -> dict[str, Any]:
    """Run a small job in `folder` and return its summary."""
    return run_job(folder, *SMALL, *overrides, app=app, workers=workers, figure=figure)


def run_job(
    folder: Path, *overrides: str, app: str = "client_app.app:app", workers: int = 1, figure: bool = False
) -> dict[str, Any]:
    """Run a job in `folder` and return its summary; its figure is drawn if asked for: it takes longest."""
    settings = _settings(overrides, os.getcwd())
    drawn = contextlib.nullcontext() if figure else mock.patch("server_app.run.draw_run")
    with drawn, open_grid(settings, app, workers) as grid:
        return run(settings, grid, folder)


def records(folder: Path) -> tuple[str, str]:
    """Return the text of the two record files that a seed decides."""
    return (folder / "rounds.csv").read_text(), (folder / "devices.csv").read_text()


def final_weights(folder: Path) -> np.ndarray:
    """Return the global part of the final checkpoint."""
    with np.load(latest(folder) / "server.npz") as archive:
        return archive["weights"]
