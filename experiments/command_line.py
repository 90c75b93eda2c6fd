"""From the command line to jobs: Hydra composes them, all are checked before the first one runs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from server_app.schema import ConfigError
from server_app.settings import Settings, compose_config, compose_settings, settings_from_config


@dataclass(frozen=True)
class ComposedJob:
    """A job as the command line asks for it.

    Attributes:
        settings: checked.
        overrides: those of this job.
        folder: for its records, absolute.
        in_sweep: whether it is one of several.
        logging: Hydra's, as `logging.config.dictConfig` takes it.
    """

    settings: Settings
    overrides: list[str]
    folder: Path
    in_sweep: bool
    logging: dict[str, Any]


def compose(arguments: Sequence[str], run: Callable[[ComposedJob], None]) -> None:
    """Check every job that the command line asks for; then let Hydra make their folders and `run` each.

    Raises:
        ConfigError: if anything about any job is wrong; no job has then run.
    """
    _check(arguments)
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    def job(config: DictConfig) -> None:
        known = HydraConfig.get()
        logging = OmegaConf.to_container(known.job_logging, resolve=True)
        assert isinstance(logging, dict)
        run(
            ComposedJob(
                settings=settings_from_config(config),
                overrides=list(known.overrides.task),
                folder=Path(known.runtime.output_dir),
                in_sweep=known.mode == RunMode.MULTIRUN,
                logging={str(key): value for key, value in logging.items()},
            )
        )

    hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(job)()


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
    from experiments.sweep import sweep_name  # here: the process of a single job unpickles from this module

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
