"""Keeps a run going until it is completed: what has ended is started again, from the last checkpoint.

A run may lose its ServerApp, its SuperLink, its network, its supervisor or the whole machine. All that it
needs to go on lies in its folder: the checkpoints, the tables up to each of them, and the personal parts
that the nodes keep. So the rule is one and the same whoever died: look at the folder, submit the run again
with ``resume=`` that folder, and let it do again what was not stored. A supervisor that was killed itself is
started again with the same command line (by systemd, or by hand) and does just that.

A round in which no device answers is not stored (see `server_app.run`). When the network is down the run
fails after `fleet.max_failed_rounds` of them, is submitted again, and waits for its nodes.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import OmegaConf

from engines.superlink import Flwr
from records import checkpoint
from records.ownership import SUMMARY, holder_of, read_summary, settle, status_of
from records.recorder import ROUNDS, read_table
from schema import ConfigError
from server_app.resume import load_checkpoint
from server_app.run import RunFailedError
from server_app.settings import Settings, decides_nothing
from server_app.settings.overrides import override

log = logging.getLogger(__name__)

Started = TypeVar("Started")
TRIES = 10
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_FREE_SECONDS = 90.0  # a ServerApp whose SuperLink is gone has ended by then
# What a new start does not mend: how the summary of a failed run begins, or what its devices said.
_HOPELESS = ("ConfigError:", "DivergedError:")
_DIVERGED = "client_app.results.DivergedError"


class RunStoppedError(RunFailedError):
    """The operator has stopped the run; it is not started again."""


class Site(Protocol):
    """Where a run is submitted to."""

    flwr: Flwr
    run_id: str

    def bring_up(self) -> None:
        """See that there is a SuperLink, and no ServerApp of one that has ended.

        Raises:
            RunFailedError: if there is none.
        """
        ...

    def at_work(self, folder: Path) -> bool:
        """Return whether the run of a folder goes on by itself, so that `run` only follows it."""
        ...

    def run(self, overrides: Sequence[str], folder: Path, watch: Callable[[], None] = ...) -> dict[str, Any]:
        """Submit the run, unless it is at work, log its progress and return its summary.

        Raises:
            RunFailedError: if it does not complete.
        """
        ...


@dataclass(frozen=True)
class Standing:
    """What a folder holds for a run that is to be done in it.

    Attributes:
        completed: whether the run is completed.
        round: that is stored; 0: none.
        resume: overrides that let the run go on there.
    """

    completed: bool = False
    round: int = 0
    resume: tuple[str, ...] = ()


def standing(folder: Path, settings: Settings) -> Standing:
    """Look at what a run with these settings has left in a folder; what has stored nothing is cleared away.

    Raises:
        ConfigError: if it is the folder of a run with other settings, or nothing there can be used.
    """
    if (folder / "config.yaml").is_file():
        stored = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        checkpoint.refuse_other(
            f"--out {folder}", settings.to_dict(), stored, decides_nothing=decides_nothing
        )
    if status_of(folder)[0] == "completed" and len(read_table(folder / ROUNDS)) >= settings.rounds:
        return Standing(completed=True, round=_stored(folder))
    found = checkpoint.checkpoints(folder)
    if not found:
        _clear(folder)
        return Standing()
    wanted = folder
    try:
        usable = _load(folder, settings)
    except ConfigError:
        wanted = found[0][1]  # not every device has stored its part; better than to begin again
        usable = _load(wanted, settings)
    return Standing(round=usable.round, resume=(override("resume", str(wanted)),))


def _waits() -> Iterator[float]:
    """Yield the seconds between two starts."""
    wait = _FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, _LONGEST_WAIT)


def insist(
    start: Callable[[], Started], *, tries: int = TRIES, sleep: Callable[[float], None] = time.sleep
) -> Started:
    """Return what `start` returns; where it fails, as when a SuperLink is killed while it starts, try again.

    Raises:
        RunFailedError: that of the last try.
    """
    for left, wait in zip(range(tries - 1, -1, -1), _waits(), strict=False):
        try:
            return start()
        except RunFailedError as error:
            if not left:
                raise RunFailedError(f"{error} (given up after {tries} starts)") from error
            log.warning("%s; starting again in %g s", str(error).splitlines()[0], wait)
        sleep(wait)
    raise ValueError(f"tries = {tries}; at least 1")


def supervise(
    site: Site,
    settings: Settings,
    overrides: Sequence[str],
    folder: Path,
    *,
    watch: Callable[[], None] = lambda: None,
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Have the run completed, and return its summary.

    Args:
        site: where it is submitted.
        settings: that the overrides stand for.
        overrides: of the job.
        folder: of the records, absolute.
        watch: called now and then.
        tries: starts in a row without another round stored after which it is given up.
        sleep: waits between two starts.

    Raises:
        ConfigError: if the folder holds another run.
        RunFailedError: if it is given up; the text is the last reason.
        RunStoppedError: if the operator has stopped it.
    """
    failed, waits = 0, _waits()
    plain = [given for given in overrides if not given.startswith("resume=")]
    while True:
        stored, job = _stored(folder), list(overrides)
        try:
            site.bring_up()
            if not site.at_work(folder):
                _wait_until_free(folder)
                before = standing(folder, settings)
                if before.completed:
                    return dict(read_summary(folder))
                job = [*plain, *before.resume] if before.resume else job
            return site.run(job, folder, watch)
        except RunFailedError as error:
            reason = str(error)
        if reason.startswith(_HOPELESS) or _DIVERGED in reason:
            raise RunFailedError(reason)
        if site.run_id and site.flwr.status(site.run_id)[0] == "finished:stopped":
            raise RunStoppedError(f"the run was stopped ({reason})")
        if _stored(folder) > stored:
            failed, waits = 0, _waits()
        failed += 1
        if failed >= tries:
            raise RunFailedError(f"{reason} (given up: {failed} starts in a row without another round)")
        wait = next(waits)
        log.warning("the run has ended: %s; starting it again in %g s", reason.splitlines()[0], wait)
        sleep(wait)


def _load(path: Path, settings: Settings) -> checkpoint.Checkpoint:
    return load_checkpoint(dataclasses.replace(settings, resume=str(path)), quiet=True)


def _stored(folder: Path) -> int:
    found = checkpoint.checkpoints(folder)
    return found[0][0] if found else 0


def _wait_until_free(folder: Path) -> None:
    """Wait for a ServerApp that is about to end.

    Raises:
        RunFailedError: if it does not.
    """
    deadline = time.monotonic() + _FREE_SECONDS
    while (holder := holder_of(folder)) is not None:
        if time.monotonic() > deadline:
            raise RunFailedError(f"{folder} is still held by {holder}")
        time.sleep(0.1)
    settle(folder)


def _clear(folder: Path) -> None:
    """Remove the records of a run that has not stored a round."""
    for name in (SUMMARY, ROUNDS):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / checkpoint.FOLDER, ignore_errors=True)
