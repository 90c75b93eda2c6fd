"""Optional trackers: the metrics of every round, also in a tool that people already watch.

``tracker=tensorboard`` writes an events file into the run folder (extra ``tensorboard``: tensorboardX, which
needs no TensorBoard to write). ``tracker=mlflow`` logs to MLflow (extra ``mlflow``): to the server of
MLFLOW_TRACKING_URI, else to the database ``tracker.database``. Both are off by default; the CSV
records are written in any case. A tracker that cannot be opened ends the job before it starts; one that fails
later costs its own entries, not the run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from schema import ConfigError
from server_app.settings import Settings, flatten
from strategies.records import Value

log = logging.getLogger(__name__)

_LONGEST_PARAMETER = 500  # characters, in every version of MLflow
_PARAMETERS_AT_ONCE = 100


class Tracker(Protocol):
    """Takes the numbers of each round of a run, or of each draw of a study."""

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        """Take one round or draw; what is not a number is left out."""
        ...


class NoTracker:
    """The default: nothing beside the CSV records."""

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        """Do nothing."""


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


@contextmanager
def open_tracker(settings: Settings, folder: Path, unit: str = "round") -> Iterator[Tracker]:
    """Open the tracker that the settings name, and close it when the job ends, well or not.

    Args:
        settings: the checked settings.
        folder: of the job's records.
        unit: what a step is, "round" or "draw"; groups TensorBoard's charts.

    Raises:
        ConfigError: if its package is not installed, or MLflow does not accept the job.
    """
    name = settings.tracker.name
    if name == "tensorboard":
        with _tensorboard(folder, unit) as tracker:
            yield _Careful(tracker, name)
    elif name == "mlflow":
        with _mlflow(settings, folder) as tracker:
            yield _Careful(tracker, name)
    else:
        yield NoTracker()


def numbers(values: Mapping[str, Value]) -> dict[str, float]:
    """Return the values that are numbers; infinite ones and NaN too, which both tools draw as such."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


# TensorBoard -----------------------------------------------------------------------------------


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
def _tensorboard(folder: Path, unit: str) -> Iterator[Tracker]:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tracker = tensorboard: tensorboardX is not installed; pip install 'airflower[tensorboard]'"
        ) from error
    with SummaryWriter(logdir=str(folder)) as writer:
        yield _Tensorboard(writer, unit)


# MLflow ----------------------------------------------------------------------------------------


class _Mlflow:
    def __init__(self, module: Any) -> None:
        self._module = module

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        self._module.log_metrics(numbers(values), step=step)


@contextmanager
def _mlflow(settings: Settings, folder: Path) -> Iterator[Tracker]:
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError(
            "tracker = mlflow: the package is not installed; pip install 'airflower[mlflow]'"
        ) from error
    try:
        run = _start(mlflow, settings, folder)
    except Exception as error:  # MLflow's own, its database's, the network's
        raise ConfigError(f"tracker = mlflow: MLflow does not take the run: {error}") from error
    with run:
        yield _Mlflow(mlflow)


def _start(mlflow: Any, settings: Settings, folder: Path) -> AbstractContextManager[Any]:
    """Open a run of MLflow and log the settings."""
    # Said in any case: MLflow's own default has changed from a folder to a database, and MLflow 3 refuses the
    # folder where it is there.
    database = Path(settings.tracker.database or "mlflow.db").expanduser().absolute()
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{database}"
    mlflow.set_tracking_uri(place)
    log.info("tracker: MLflow, %s", place)
    mlflow.set_experiment(str(settings.report.get("name", "airflower")))
    run: AbstractContextManager[Any] = mlflow.start_run(run_name=folder.name)
    parameters = {
        key: str(value)[:_LONGEST_PARAMETER]
        for key, value in flatten(settings.to_dict()).items()
        if not key.startswith("report")
    }
    names = list(parameters)
    for first in range(0, len(names), _PARAMETERS_AT_ONCE):
        mlflow.log_params({name: parameters[name] for name in names[first : first + _PARAMETERS_AT_ONCE]})
    return run
