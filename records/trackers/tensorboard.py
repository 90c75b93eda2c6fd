"""An events file in the run folder, written by tensorboardX, which needs no TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from records.trackers import TrackedJob, Tracker, numbers
from strategies.records import Value


class _Tensorboard:
    def __init__(self, writer: Any, unit: str) -> None:
        self._writer = writer
        self._unit = unit

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        for name, value in numbers(values).items():
            self._writer.add_scalar(self._tag(name), value, step)
        self._writer.flush()

    def _tag(self, name: str) -> str:
        """Group the charts: what this machine took apart from what was learned or emulated."""
        measured = name.startswith("measured_")
        return f"measured/{name.removeprefix('measured_')}" if measured else f"{self._unit}/{name}"


@contextmanager
def tensorboard(job: TrackedJob) -> Iterator[Tracker]:
    """Write an events file into the run folder.

    Raises:
        ImportError: if tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboardX is not installed; pip install 'airflower[tensorboard]'") from error
    with SummaryWriter(logdir=str(job.folder)) as writer:
        yield _Tensorboard(writer, job.unit)
