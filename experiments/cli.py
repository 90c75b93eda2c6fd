"""The `airflower` command: one run per job, or with ``--multirun`` a sweep.

``airflower scheme=proposed radio.latency_threshold_ms=20`` runs one job. Everything given is checked before
anything is trained: all jobs of a sweep, too (`experiments.command_line`).
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from pathlib import Path

from experiments.command_line import ComposedJob, compose
from protocol.interrupts import interruptible
from schema import ConfigError
from server_app.settings import Settings

log = logging.getLogger(__name__)

_seconds: list[float] = []  # that the jobs of this process took, those skipped left out
CONFIG_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command line; exits with 2 for a wrong configuration and 1 for a failed run."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is no reason to stop
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interruptible():
            compose(sys.argv[1:], execute)
    except ConfigError as error:
        print(f"airflower: {error}", file=sys.stderr)
        sys.exit(CONFIG_ERROR)
    except OSError as error:  # Hydra makes the folders
        print(
            f"airflower: the records cannot be written: {error}; another folder: hydra.run.dir=FOLDER, of a "
            "sweep hydra.sweep.dir=FOLDER",
            file=sys.stderr,
        )
        sys.exit(CONFIG_ERROR)
    except KeyboardInterrupt as signal:
        print("airflower: interrupted", file=sys.stderr)
        sys.exit(getattr(signal, "exit_status", INTERRUPTED))


def execute(job: ComposedJob) -> None:
    """Run one job; its records go to its folder. Exits if it fails, unless others of a sweep follow."""
    _console()
    if not job.in_sweep:
        _attempt(job)
        return
    from experiments.sweep import is_finished, job_line, refresh, start_afresh
    from records.ownership import owned

    if job.number:
        log.info("%s", job_line(job.number, job.jobs, job.folder.name, _seconds))

    with owned(job.folder, wait=True):  # the same sweep may be going on elsewhere
        if is_finished(job.folder, job.settings):
            log.info("finished before, skipped: %s", job.folder)
            refresh(job.folder, job.settings)
            return
        start_afresh(job.folder)
        started = time.monotonic()
        _attempt(job)
        _seconds.append(time.monotonic() - started)


def _attempt(job: ComposedJob) -> None:
    """Run a job and say how it failed, if it does."""
    from schema import ConfigError

    try:
        run_job(job.settings, job.folder)
    except ConfigError as error:
        log.error("airflower: %s", error)
        _fail(job, error, CONFIG_ERROR)
    except KeyboardInterrupt as signal:
        log.error("airflower: interrupted by %s", str(signal) or "SIGINT")
        sys.exit(getattr(signal, "exit_status", INTERRUPTED))
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        log.error("airflower: the run failed: %s: %s", type(error).__name__, error)
        _fail(job, error, RUN_ERROR)


def _fail(job: ComposedJob, error: Exception, status: int) -> None:
    """Exit; in a sweep the other jobs go on, and SweepEnd sets the exit status."""
    if not job.in_sweep:
        sys.exit(status)
    from experiments.sweep import note_failure

    note_failure(job.folder, error)


def run_job(settings: Settings, folder: Path) -> None:
    """Run the job on the engine that it names."""
    log.info("records: %s", folder)
    if settings.study.name is not None:
        from experiments.studies import run_study
        from server_app.run import record_run

        record_run(settings, folder, lambda: run_study(settings, folder))
    elif settings.engine.name == "flower":
        from engines.flower import run_flower

        run_flower(settings, folder)
    elif settings.engine.name == "ray":
        from engines.ray import run_ray

        run_ray(settings, folder)
    else:
        from engines.inprocess import open_grid
        from server_app.run import run

        with open_grid(settings) as grid:
            run(settings, grid, folder)


def _console() -> None:
    """Print plain lines; Hydra's log file keeps its own format."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(logging.Formatter("%(message)s"))


if __name__ == "__main__":
    main()
