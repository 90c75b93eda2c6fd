"""Whole jobs for the studies in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.inprocess import open_grid
from server_app.run import run
from server_app.settings import compose_settings


def run_job(overrides: Sequence[str], folder: Path, workers: int) -> dict[str, Any]:
    """Run one job on the in-process engine and return its summary."""
    settings = compose_settings(overrides)
    with open_grid(settings, workers=min(workers, settings.fleet.num_devices)) as grid:
        return run(settings, grid, folder)
