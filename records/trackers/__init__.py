"""Optional trackers: the metrics of every round, also in a tool that people already watch.

A tracker is a callable that takes a `TrackedJob` and returns a context manager: opened before the job starts,
closed when it ends, well or not. Keyword-only parameters are ``tracker.options``. One of the user's own is
``package.module:callable``. The CSV records are written in any case. A tracker that cannot be opened ends the
job before it starts; one that fails later costs its own entries, not the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from registry import Registry
from schema import ConfigError
from strategies.records import Value

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the numbers of each round of a run, or of each draw of a study."""

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one round or draw; what is not a number is of no use (see `numbers`)."""
        ...


@dataclass(frozen=True)
class TrackedJob:
    """What a tracker is told of a job before it starts.

    Attributes:
        folder: of the job's records.
        name: of the experiment that it belongs to.
        settings: by dotted key.
        database: file that the user names for it, or None.
        unit: what a step is, "round" or "draw".
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    database: str | None = None
    unit: str = "round"


TRACKERS: Registry[Callable[..., AbstractContextManager[Tracker]]] = Registry("tracker", key="tracker.name")
TRACKERS.register_at(
    tensorboard="records.trackers.tensorboard:tensorboard", mlflow="records.trackers.mlflow:mlflow"
)


class NoTracker:
    """Nothing beside the CSV records."""

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        """Do nothing."""


@TRACKERS.register("none")
@contextmanager
def no_tracker(job: TrackedJob) -> Iterator[Tracker]:
    """Track nothing: the default."""
    yield NoTracker()


class _Careful:
    """Passes on to a tracker until that fails: no run ends because its metrics have nowhere to go."""

    def __init__(self, tracker: Tracker, name: str) -> None:
        self._tracker: Tracker = tracker
        self._name = name

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        try:
            self._tracker.record(step, values)
        except Exception as error:  # of whatever library
            log.warning("tracker = %s failed at step %d and gets nothing more: %s", self._name, step, error)
            self._tracker = NoTracker()


def check_tracker(name: str, options: Mapping[str, Any]) -> None:
    """Raise a ConfigError if there is no tracker of this name that takes these options."""
    try:
        TRACKERS.select(name, options)
    except ValueError as error:
        raise ConfigError(str(error)) from error


@contextmanager
def open_tracker(name: str, options: Mapping[str, Any], job: TrackedJob) -> Iterator[Tracker]:
    """Open a tracker, and close it when the job ends, well or not.

    Args:
        name: of the tracker.
        options: its keyword-only parameters.
        job: what is tracked.

    Raises:
        ConfigError: if there is none of this name, its package is not installed, or it does not take the job.
    """
    check_tracker(name, options)
    try:
        context = TRACKERS.find(name)(job, **options)
        tracker = context.__enter__()
    except Exception as error:  # what is not installed, a database's, the network's
        raise ConfigError(f"tracker = {name}: {error}") from error
    with _opened(context):
        yield _Careful(tracker, name)


@contextmanager
def _opened(context: AbstractContextManager[Tracker]) -> Iterator[None]:
    """Leave a context that was entered; one that fails then has lost its own entries only."""
    try:
        yield
    except BaseException as error:
        _leave(context, type(error), error, error.__traceback__)
        raise
    else:
        _leave(context, None, None, None)


def _leave(context: AbstractContextManager[Tracker], *error: Any) -> None:
    try:
        context.__exit__(*error)
    except Exception as failure:
        if failure is not error[1]:
            log.warning("the tracker could not be closed: %s", failure)


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Return the values that are numbers; infinite ones and NaN too, which trackers draw as such."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
