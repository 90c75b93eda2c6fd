"""The `airflower` command: one run per job, or with ``--multirun`` a sweep.

``airflower scheme=proposed radio.latency_threshold_ms=20`` runs one job. Everything given is checked before
anything is trained: all jobs of a sweep, too (`experiments.command_line`).
"""

from __future__ import annotations

import gc
import logging
import logging.config
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.beside import beside

if TYPE_CHECKING:  # at run time the two processes of a start import them at once
    from experiments.command_line import ComposedJob
    from server_app.settings import Settings

log = logging.getLogger(__name__)

CONFIG_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def main() -> None:
    """Run the command line; exits with 2 for a wrong configuration and 1 for a failed run."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    gc.disable()  # until the imports are done: they make no garbage, and looking for it takes a third longer
    arguments = sys.argv[1:]
    try:
        if _is_one_job_in_process(arguments):
            job = beside(lambda hand_over: _compose(arguments, hand_over), meanwhile=_import_engine)
            logging.config.dictConfig(job.logging)
            execute(job)
        else:
            _compose(arguments, execute)
    except KeyboardInterrupt:
        print("airflower: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _compose(arguments: Sequence[str], run: Callable[[ComposedJob], None]) -> None:
    from experiments.command_line import compose
    from server_app.schema import ConfigError

    try:
        compose(arguments, run)
    except ConfigError as error:
        print(f"airflower: {error}", file=sys.stderr)
        sys.exit(CONFIG_ERROR)


def _is_one_job_in_process(arguments: Sequence[str]) -> bool:
    """Return whether these are plain overrides of one job, and a second core can compose it."""
    others = ("-", "hydra", "experiment=", "study", "engine=flower", "engine=ray")
    return (
        hasattr(os, "fork")
        and (os.cpu_count() or 1) > 1
        and not any(
            argument.lstrip("+~").startswith(others) and not argument.startswith("hydra.run.dir=")
            for argument in arguments
        )
    )


def _import_engine() -> None:
    """Import what takes a second: torch, Flower, and what drives them."""
    import server_app.run  # noqa: F401


def execute(job: ComposedJob) -> None:
    """Run one job; its records go to its folder. Exits if it fails, unless others of a sweep follow."""
    from server_app.schema import ConfigError

    _console()
    if job.in_sweep:
        from experiments.sweep import is_finished, refresh, start_afresh

        if is_finished(job.folder, job.settings):
            log.info("finished before, skipped: %s", job.folder)
            refresh(job.folder, job.settings)
            return
        start_afresh(job.folder)
    try:
        run_job(job.settings, job.overrides, job.folder)
    except ConfigError as error:
        log.error("airflower: %s", error)
        _fail(job, error, CONFIG_ERROR)
    except KeyboardInterrupt:
        log.error("airflower: interrupted")
        sys.exit(INTERRUPTED)
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


def run_job(settings: Settings, overrides: Sequence[str], folder: Path) -> None:
    """Run the job on the engine that it names."""
    log.info("records: %s", folder)
    work = _work(settings, overrides, folder)
    if not gc.isenabled():  # the first job of a sweep: what later ones leave behind is to be collected
        gc.freeze()  # nothing imported so far is garbage, nor ever looked at again by the worker processes
        gc.enable()
    work()


def _work(settings: Settings, overrides: Sequence[str], folder: Path) -> Callable[[], object]:
    """Import what the job needs, and return what runs it."""
    if settings.study.name is not None:
        from experiments.studies import run_study
        from server_app.run import record_run

        return lambda: record_run(settings, folder, lambda: run_study(settings, folder))
    if settings.engine.name == "flower":
        from engines.flower import run_flower

        return lambda: run_flower(settings, overrides, folder)
    if settings.engine.name == "ray":
        from engines.ray import run_ray

        return lambda: run_ray(settings, folder)
    from engines.inprocess import open_grid
    from server_app.run import run

    def in_process() -> None:
        with open_grid(settings) as grid:
            run(settings, grid, folder)

    return in_process


def _console() -> None:
    """Print plain lines; Hydra's log file keeps its own format."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setFormatter(logging.Formatter("%(message)s"))


if __name__ == "__main__":
    main()
