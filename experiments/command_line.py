"""From the command line to jobs: Hydra composes them, all are checked before the first one runs.

Hydra's own command line does the work, so that its flags mean here what its documentation says. Its callback
`CheckFirst` (named in ``conf/config.yaml``) looks at the composed configuration before any folder is made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from experiments.sweep import DEFAULT_JOB, DEFAULT_SWEEP, say_how_it_ended, subfolder, sweep_name, write_plan
from protocol.own_files import find_own_modules
from records.ownership import new_folder
from schema import ConfigError
from server_app.settings import Settings, explained, search_own_configuration, settings_from_config
from server_app.settings.effects import check_uses, given_keys, without_effect
from server_app.settings.overrides import as_meant, override


@dataclass(frozen=True)
class ComposedJob:
    """A job as the command line asks for it.

    Attributes:
        settings: checked.
        overrides: those of this job.
        folder: for its records, absolute.
        in_sweep: whether it is one of several.
        number, jobs: which of how many, from 1; 0 where that is not known (a launcher's other processes).
    """

    settings: Settings
    overrides: list[str]
    folder: Path
    in_sweep: bool
    number: int = 0
    jobs: int = 0


_DOORS = ("run", "multirun", "cfg", "info", "shell_completion")  # flags of Hydra that say what is to be done


class _Refused(BaseException):
    """Carries an error through Hydra, which turns every Exception of a callback into a warning."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class _Command:
    """What the command's callback and its end have to know.

    Attributes:
        arguments: its overrides, as they were typed.
        jobs: settings of each job of a sweep, by its folder.
        folder: of the sweep; None for a single job.
    """

    arguments: Sequence[str] = ()
    jobs: dict[Path, Settings] = field(default_factory=dict)
    folder: Path | None = None

    def start(self, arguments: Sequence[str]) -> None:
        """Forget what another command of this process left."""
        self.arguments, self.jobs, self.folder = arguments, {}, None


_command = _Command()  # Hydra makes the callback itself; one command runs in a process


def compose(arguments: Sequence[str], run: Callable[[ComposedJob], None]) -> None:
    """Check every job that the command line asks for; then let Hydra make their folders and `run` each.

    Raises:
        ConfigError: if anything about any job is wrong; no job has then run.
        SystemExit: if a job of a sweep has not completed.
    """
    import hydra
    from hydra._internal.utils import get_args_parser  # there is no public way to know its flags

    find_own_modules()
    flags = get_args_parser().parse_intermixed_args(list(arguments))
    if flags.help:
        from experiments.help import help_text

        print(help_text(flags.overrides))
        return
    doors = [f"--{name.replace('_', '-')}" for name in _DOORS if getattr(flags, name)]
    if len(doors) > 1:
        raise ConfigError(f"{' and '.join(doors)} exclude each other; give one of them")
    _command.start(flags.overrides)
    others = [argument for argument in arguments if argument not in flags.overrides]
    # Hydra wants all overrides together; a flag such as --info would take the next one for its value.
    sys.argv = [sys.argv[0], *as_meant(flags.overrides, sweep=flags.multirun), *others]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come here, and are said in our words
    search_own_configuration()

    def task(config: DictConfig) -> None:
        _run_composed(config, run)

    with explained():
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")(task)()
        except _Refused as refused:
            raise refused.error from refused
    if _command.folder is not None:
        say_how_it_ended(_command.folder, _command.jobs)


def _run_composed(config: DictConfig, run: Callable[[ComposedJob], None]) -> None:
    # At this module's level: a process of a launcher imports the module, and with it the names of folders.
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    known = HydraConfig.get()
    job = ComposedJob(
        settings=settings_from_config(config),
        overrides=list(known.overrides.task),
        folder=Path(known.runtime.output_dir),
        in_sweep=known.mode == RunMode.MULTIRUN,
    )
    if job.in_sweep:
        folders = list(_command.jobs)
        if job.folder in folders:
            job = replace(job, number=folders.index(job.folder) + 1, jobs=len(folders))
        _command.jobs.setdefault(job.folder, job.settings)  # one that a sweeper thought of just now
    run(job)


def _new_folder(wanted: str) -> str:
    """Make a run folder that no other run has; of two in the same second the second gets another name."""
    try:
        return str(new_folder(wanted))
    except OSError:  # Hydra meets the same error, and reports it
        return wanted


OmegaConf.register_new_resolver("new_folder", _new_folder, use_cache=True, replace=True)


class CheckFirst(Callback):  # type: ignore[misc]
    """Hydra callback: everything about every job is checked before a folder is made or anything trained."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check one job as far as the configuration goes; the rest is checked as soon as it runs."""
        with _refusing():
            check_uses(_settings(config), _given(config))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the folders of the sweep and of its jobs, and check every job as its run would."""
        with _refusing():
            sweep = config.hydra.sweep
            if sweep.dir == DEFAULT_SWEEP:
                sweep.dir = f"{Path(DEFAULT_SWEEP).parent}/{sweep_name(_command.arguments)}"
                config.hydra.overrides.hydra.append(override("hydra.sweep.dir", sweep.dir))
            _command.folder = Path(sweep.dir)
            if config.hydra.sweeper._target_ != "hydra._internal.core_plugins.basic_sweeper.BasicSweeper":
                return  # one that thinks of jobs as it goes; each is checked when it runs
            jobs, swept = _jobs(config)
            if DEFAULT_JOB in OmegaConf.to_yaml(config.hydra.sweep, resolve=False):
                config.hydra.overrides.hydra.append(f'hydra.sweep.subdir="{subfolder(swept)}"')
            _check(config, jobs)
            if _command.jobs:  # here: a launcher's other processes do not know the jobs beside theirs
                write_plan(_command.folder, list(_command.jobs))


def _check(config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Check jobs, and note where each will be.

    Raises:
        ConfigError: naming the job.
    """
    from hydra.core.global_hydra import GlobalHydra

    from experiments.checks import check_fully

    loader = GlobalHydra.instance().config_loader()
    seen: set[str] = set()
    idle: dict[str, str] | None = None  # keys that no job so far has used
    for overrides in jobs:
        try:
            with explained():
                job = loader.load_sweep_config(config, list(overrides))
            settings = _settings(job)
            unused = without_effect(settings, _given(job))
            idle = unused if idle is None else {name: idle[name] for name in idle.keys() & unused.keys()}
            check_fully(settings, seen)
        except ConfigError as error:
            raise ConfigError(f"{error} (in the job {' '.join(overrides)})") from error
        subfolder = str(OmegaConf.select(job, "hydra.sweep.subdir"))
        _command.jobs[(Path(config.hydra.sweep.dir) / subfolder).absolute()] = settings
    if idle:
        raise ConfigError(f"{idle[min(idle)]} (so it is in every job of the sweep)")


def _jobs(config: DictConfig) -> tuple[list[list[str]], list[str]]:
    """Return the overrides of every job of a sweep, as Hydra's sweeper will, and the keys that differ."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    parsed = parser.parse_overrides([*params, *config.hydra.overrides.task])
    last = {found.get_key_element(): found for found in parsed}  # the last one of a key counts
    batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    swept = [key for key, found in last.items() if found.is_sweep_override()]
    return [list(job) for batch in batches for job in batch], swept


def sweep_of(overrides: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Return the jobs of ``airflower --multirun`` with these overrides, and the keys in which they differ.

    Raises:
        ConfigError: if an override cannot be parsed or names what is not there.
    """
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    search_own_configuration()
    with initialize_config_module(version_base="1.3", config_module="conf"), explained():
        composer = GlobalHydra.instance().hydra
        assert composer is not None
        config = composer.compose_config(
            "config", as_meant(overrides, sweep=True), RunMode.MULTIRUN, with_log_configuration=False
        )
        return _jobs(config)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        with explained():
            yield
    except Exception as error:
        raise _Refused(error) from error


def _settings(config: DictConfig) -> Settings:
    return settings_from_config(OmegaConf.masked_copy(config, [str(n) for n in config if n != "hydra"]))


def _given(config: DictConfig) -> dict[str, str]:
    return given_keys(list(OmegaConf.select(config, "hydra.overrides.task") or []))
