"""MLflow: to the server of MLFLOW_TRACKING_URI, else to a database in a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from records.trackers import TrackedJob, Tracker, numbers
from strategies.records import Value

log = logging.getLogger(__name__)

_LONGEST_PARAMETER = 500  # characters, in every version of MLflow
_PARAMETERS_AT_ONCE = 100


class _Mlflow:
    def __init__(self, module: Any) -> None:
        self._module = module

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        self._module.log_metrics(numbers(values), step=step)


@contextmanager
def mlflow(job: TrackedJob) -> Iterator[Tracker]:
    """Log the settings and the metrics of each step as a run of MLflow.

    Raises:
        ImportError: if it is not installed.
        RuntimeError: if it does not take the run.
    """
    try:
        import mlflow as module
    except ImportError as error:
        raise ImportError("the package is not installed; pip install 'airflower[mlflow]'") from error
    try:
        run = _start(module, job)
    except Exception as error:  # MLflow's own, its database's, the network's
        raise RuntimeError(f"MLflow does not take the run: {error}") from error
    with run:
        yield _Mlflow(module)


def _start(module: Any, job: TrackedJob) -> AbstractContextManager[Any]:
    """Open a run of MLflow and log the settings."""
    # Said in any case: MLflow's own default has changed from a folder to a database, and MLflow 3 refuses the
    # folder where it is there.
    path = Path(job.database or "mlflow.db").expanduser().absolute()
    place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{path}"
    module.set_tracking_uri(place)
    log.info("tracker: MLflow, %s", place)
    module.set_experiment(job.name)
    run: AbstractContextManager[Any] = module.start_run(run_name=job.folder.name)
    parameters = {
        key: str(value)[:_LONGEST_PARAMETER]
        for key, value in job.settings.items()
        if not key.startswith("report")
    }
    names = list(parameters)
    for first in range(0, len(names), _PARAMETERS_AT_ONCE):
        module.log_params({name: parameters[name] for name in names[first : first + _PARAMETERS_AT_ONCE]})
    return run
