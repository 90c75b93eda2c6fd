"""The commands as functions, for notebooks and scripts: `run`, `sweep`, `report`.

They check, run and record as ``airflower`` does, in the same folders, so that a sweep that was begun by the
one goes on by the other. A script that calls them wants ``if __name__ == "__main__":``, as all that start
processes do; a notebook does not.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from protocol.interrupts import interruptible
from protocol.own_files import find_own_modules
from records.ownership import new_folder, owned
from schema import ConfigError
from server_app.results import Run, load_run
from server_app.settings import Settings, compose_settings

_LOGGERS = ("server_app", "records", "strategies", "experiments", "engines")


class JobsFailedError(RuntimeError):
    """Jobs of a sweep have failed; the others have run."""


def run(overrides: Sequence[str] = (), *, folder: str | Path | None = None, quiet: bool = False) -> Run:
    """Run one job and return its results.

    Args:
        overrides: as on the command line: ``["scheme=proposed", "rounds=20"]``.
        folder: of the records, new or empty; default: ``outputs/<date>/<time>-<scheme>-<dataset>``.
        quiet: without a line per round.

    Raises:
        ConfigError: if anything of the job is wrong; nothing has then been trained.
        RunFailedError: if it cannot go on.
    """
    from experiments.cli import run_job

    find_own_modules()
    settings = compose_settings(_listed(overrides))
    if folder is None:
        now = datetime.now()
        place = new_folder(
            f"outputs/{now:%Y-%m-%d}/{now:%H-%M-%S}-{settings.scheme.name}-{settings.dataset.name}"
        )
    else:
        place = Path(folder).expanduser()
    with interruptible(), _progress(quiet):
        run_job(settings, place.resolve())
    return load_run(place)


def sweep(overrides: Sequence[str], *, folder: str | Path | None = None, quiet: bool = False) -> list[Run]:
    """Run every combination of the values that the overrides list, and return the results in their order.

    All jobs are checked before the first. Jobs that completed before, by this function or by
    ``airflower --multirun`` with the same overrides, are not done again.

    Args:
        overrides: ``["scheme=proposed,equal_bandwidth", "seed=1,2,3"]``, or ``["experiment=p1_table1"]``.
        folder: of the sweep; default: ``multirun/<name>``, the same for the same overrides.
        quiet: without a line per round and job.

    Raises:
        ConfigError: if anything of any job is wrong; none has then run.
        JobsFailedError: if some failed, after the others.
    """
    from experiments.command_line import sweep_of
    from experiments.sweep import job_name, sweep_name, write_plan

    find_own_modules()
    given = _listed(overrides)
    jobs, swept = sweep_of(given)
    settings = _checked(jobs)
    place = Path(folder).expanduser() if folder is not None else Path("multirun") / sweep_name(given)
    folders = [place.resolve() / job_name(job, swept) for job in jobs]
    write_plan(place, folders)
    failed, seconds = [], list[float]()
    with interruptible(), _progress(quiet):
        for number, (job, at) in enumerate(zip(settings, folders, strict=True), 1):
            if problem := _job(job, at, number, len(folders), seconds):
                failed.append(f"{at.name}: {problem}")
    if failed:
        raise JobsFailedError(f"{len(failed)} of {len(folders)} jobs of {place} failed: {'; '.join(failed)}")
    return [load_run(at) for at in folders]


def report(*folders: str | Path, out: str | Path = "report") -> Path:
    """Draw runs and sweeps as ``airflower-report`` does, and return the page.

    Raises:
        ReportError: if there is no run in the folders.
    """
    from experiments.report.cli import build_report

    return build_report([Path(folder) for folder in folders], Path(out))


def _job(settings: Settings, folder: Path, number: int, jobs: int, seconds: list[float]) -> str:
    """Do one job of a sweep unless it is done; return what went wrong."""
    from experiments.cli import run_job
    from experiments.sweep import is_finished, job_line, note_failure, refresh, start_afresh

    log = logging.getLogger(__name__)
    log.info("%s", job_line(number, jobs, folder.name, seconds))
    with owned(folder, wait=True):
        if is_finished(folder, settings):
            log.info("finished before, skipped: %s", folder)
            refresh(folder, settings)
            return ""
        start_afresh(folder)
        started = time.monotonic()
        try:
            run_job(settings, folder)
        except Exception as error:
            log.error("the job failed: %s: %s", type(error).__name__, error)
            note_failure(folder, error)
            return f"{type(error).__name__}: {error}"
        seconds.append(time.monotonic() - started)
    return ""


def _checked(jobs: Sequence[Sequence[str]]) -> list[Settings]:
    """Return the settings of each job, all of which would run."""
    from experiments.checks import check_fully
    from server_app.settings import settings_from_config
    from server_app.settings.compose import compose_config
    from server_app.settings.effects import given_keys, without_effect

    found, seen = list[Settings](), set[str]()
    idle: dict[str, str] | None = None
    for job in jobs:
        try:
            settings = settings_from_config(compose_config(job))
            unused = without_effect(settings, given_keys(list(job)))
            idle = unused if idle is None else {name: idle[name] for name in idle.keys() & unused.keys()}
            check_fully(settings, seen)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {' '.join(job)})") from error
        found.append(settings)
    if idle:
        raise ConfigError(f"{idle[min(idle)]} (so it is in every job of the sweep)")
    return found


def _listed(overrides: Sequence[str]) -> list[str]:
    if isinstance(overrides, str):
        raise ConfigError(
            f"overrides = {overrides!r}; a list is wanted, such as ['scheme=proposed', 'rounds=20']"
        )
    return list(overrides)


@contextmanager
def _progress(quiet: bool) -> Iterator[None]:
    """Print our own lines, where nobody else has said what is to become of them."""
    if quiet or logging.getLogger().handlers:
        yield
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
