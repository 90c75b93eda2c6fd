"""The tracker that the settings name, told of the job that they describe."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from records.trackers import TrackedJob, Tracker, open_tracker
from server_app.settings import Settings, flatten


def track(settings: Settings, folder: Path, unit: str = "round") -> AbstractContextManager[Tracker]:
    """Return the tracker of a job, to be entered before the job starts.

    Args:
        settings: the checked settings.
        folder: of the job's records.
        unit: what a step is, "round" or "draw".

    Raises:
        ConfigError: as it is entered, if it cannot be opened.
    """
    job = TrackedJob(
        folder,
        name=str(settings.report.get("name", "airflower")),
        settings=flatten(settings.to_dict()),
        database=settings.tracker.database,
        unit=unit,
    )
    return open_tracker(settings.tracker.name, settings.tracker.options, job)
