"""The `airflower` command: Hydra on the command line, one run per job.

``airflower scheme=proposed radio.latency_threshold_ms=20`` runs one job, ``--multirun`` a sweep.
Everything given is checked before anything is trained: all jobs of a sweep, too.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from server_app.schema import ConfigError
from server_app.settings import Settings, compose_config, compose_settings, settings_from_config
from server_app.sweep import is_finished, note_failure, refresh, start_afresh, sweep_name

log = logging.getLogger(__name__)

CONFIG_ERROR, RUN_ERROR = 2, 1


def main() -> None:
    """Run the command line; exits with 2 for a wrong configuration and 1 for a failed run."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    gc.disable()  # until the imports are done: they make no garbage, and looking for it takes a third longer
    try:
        _check(sys.argv[1:])
    except ConfigError as error:
        print(f"airflower: {error}", file=sys.stderr)
        sys.exit(CONFIG_ERROR)
    import hydra

    hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(_job)()


def _check(arguments: Sequence[str]) -> None:
    """Compose and check every job that the command line asks for, as far as Hydra's own flags allow."""
    if any(
        flag in arguments for flag in ("--help", "-h", "--hydra-help", "--info", "--version", "--cfg", "-c")
    ):
        return
    overrides = [argument for argument in arguments if not argument.startswith("-") and "=" in argument]
    mode, params = sweep_plan(overrides)
    if "--multirun" not in arguments and "-m" not in arguments and mode != "MULTIRUN":
        compose_settings(overrides)
        return
    os.environ.setdefault("AIRFLOWER_SWEEP", sweep_name(overrides))
    for job in expand_sweep([*params, *overrides]):
        try:
            compose_settings(job)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {' '.join(job)})") from error


def sweep_plan(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what the configuration itself says of a sweep: Hydra's mode, and overrides to sweep over.

    Raises:
        ConfigError: for an unknown experiment or size.
    """
    relevant = ("experiment=", "size=", "budget.", "hydra")
    chosen = [override for override in overrides if override.startswith(relevant)]
    if not any(override.startswith("experiment=") for override in chosen):
        return None, []
    hydra = compose_config(chosen, with_hydra=True).hydra
    return str(hydra.mode or "").removeprefix("RunMode.") or None, [
        f"{name}={value}" for name, value in (hydra.sweeper.params or {}).items()
    ]


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of every job of a sweep.

    Raises:
        ConfigError: if an override cannot be parsed.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(overrides))
        batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigError(str(error)) from error
    return [list(job) for batch in batches for job in batch]


def _job(config: DictConfig) -> None:
    """Run one job; its records go to Hydra's output folder of the job."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    folder = Path(HydraConfig.get().runtime.output_dir)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    overrides = list(HydraConfig.get().overrides.task)
    settings = settings_from_config(config)
    _console()
    if in_sweep:
        if is_finished(folder, settings):
            log.info("finished before, skipped: %s", folder)
            refresh(folder, settings)
            return
        start_afresh(folder)
    try:
        run_job(settings, overrides, folder)
    except ConfigError as error:
        log.error("airflower: %s", error)
        if in_sweep:  # the other jobs go on; SweepEnd sets the exit status
            note_failure(folder, error)
            return
        sys.exit(CONFIG_ERROR)
    except KeyboardInterrupt:
        log.error("airflower: interrupted")
        sys.exit(130)
    except Exception as error:
        log.debug("the run failed", exc_info=True)
        log.error("airflower: the run failed: %s: %s", type(error).__name__, error)
        if in_sweep:
            note_failure(folder, error)
            return
        sys.exit(RUN_ERROR)


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
        from server_app.run import record_run
        from server_app.studies import run_study

        return lambda: record_run(settings, folder, lambda: run_study(settings, folder))
    if settings.engine.name == "flower":
        from server_app.engines.flower import run_flower

        return lambda: run_flower(settings, overrides, folder)
    if settings.engine.name == "ray":
        from server_app.engines.ray import run_ray

        return lambda: run_ray(settings, folder)
    from server_app.engines.inprocess import open_grid
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
