"""One run, whatever the door: `run(settings, grid, folder)` drives the rounds and leaves the records.

A run owns its folder while it lasts. One that is told to stop (`protocol.interrupts`) leaves the last
finished round as a checkpoint, and a summary that says so.

One file, long as it is: a run from its first line to its last, in that order.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from omegaconf import OmegaConf

from protocol import interrupts
from protocol.archives import write_file
from protocol.arrays import read_weights, weights_record
from protocol.interrupts import held
from records import checkpoint
from records.checkpoint import FinishedRound, Writer
from records.clock import RoundClock
from records.figure import draw_run
from records.live import Live
from records.ownership import SUMMARY, guarded, owned, refuse_used
from records.progress import end_line, round_line, starved_line
from records.recorder import DEVICES, ROUNDS, HistoryError, Recorder, read_table, write_json
from records.stop import EarlyStop
from records.summary import device_energy, run_facts, starved_rounds, summarise
from records.trackers import Tracker
from schema import ConfigError
from server_app.devices import write_fleet
from server_app.job import Job, prepare
from server_app.privacy import privacy_spent
from server_app.results import TASK
from server_app.resume import continues, load_checkpoint, open_checkpoint
from server_app.settings import Settings
from server_app.strategy import build_strategy
from server_app.tracking import track
from strategies.base import DivergedError, WirelessStrategy
from strategies.exchange import exchange
from strategies.probe_sink import ProbeSink
from strategies.settings import MeasuredSettings

log = logging.getLogger(__name__)

LOG_FILE = "run.log"
OWN_LOGGERS = ("server_app", "records", "strategies")  # whose lines are the run's
STOP_FILE = "run.stop"  # made in its folder, it tells a run to stop
_START_POLL_SECONDS = 0.25
_LAST_WORDS_SECONDS = 30.0  # devices have so long to store their parts when a run is told to stop


class RunFailedError(RuntimeError):
    """The run cannot go on; the text says why."""


def run(settings: Settings, grid: Grid, folder: Path, *, on_nodes: bool = False) -> dict[str, Any]:
    """Run the job that `settings` describe on the devices of `grid`, and record it in `folder`.

    `on_nodes` says that the devices are nodes of a fleet: each may keep its data sets where it likes.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigError: if the configuration cannot be used; nothing has then been trained.
        RunFailedError: if no device answered for `fleet.max_failed_rounds` rounds in a row.
        FleetError: if the devices do not connect.
    """
    return record_run(settings, folder, lambda: _run(settings, grid, folder, on_nodes))


def record_run(settings: Settings, folder: Path, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Do `work` between a summary that says running and one that says how it ended; return the latter.

    The folder is owned meanwhile.

    Raises:
        ConfigError: if another process owns it, or it holds the records of another run.
    """
    with owned(folder):
        in_place = continues(settings, folder)
        if in_place:  # what is wrong is to be found before anything of that run is overwritten
            load_checkpoint(settings, quiet=True)
        else:
            refuse_used(folder)
        write_file(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings.to_dict())).encode())
        facts = run_facts(seed=settings.seed, scheme=settings.scheme.name, dataset=settings.dataset.name)
        with (
            guarded(folder),
            _log_file(folder / LOG_FILE, append=in_place),
            interrupts.stop_file(folder / STOP_FILE),
        ):
            write_json(folder / SUMMARY, {"status": "running", **facts})
            try:
                final = work()
            except BaseException as error:
                status, reason = "failed", f"{type(error).__name__}: {error}"
                if isinstance(error, KeyboardInterrupt):
                    status, reason = "interrupted", str(error) or "SIGINT"
                ended = {"status": status, "reason": reason, **facts}
                with held():
                    write_json(folder / SUMMARY, ended)
                log.warning("%s", end_line(ended, folder))
                raise
            with held():
                summary = {"status": "completed", **facts, **final}
                write_json(folder / SUMMARY, summary)
            log.info("%s", end_line(summary, folder))
    return summary


@contextmanager
def _log_file(path: Path, *, append: bool) -> Iterator[None]:
    """Keep what the project's own loggers say in the run folder, whatever the application does with it."""
    handler = logging.FileHandler(
        path, mode="a" if append else "w", encoding="utf-8", errors="backslashreplace"
    )
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


@contextmanager
def uplink_probe(measured: MeasuredSettings | None) -> Iterator[ProbeSink | None]:
    """Listen for timed transfers while a run on measured radio, if it is one, lasts.

    Raises:
        ConfigError: if the address cannot be listened on.
    """
    if measured is None or not measured.probe:
        yield None
        return
    try:
        sink = ProbeSink(
            measured.probe_host, measured.probe_port, measured.probe_bytes, measured.probe_address
        )
    except OSError as error:
        raise ConfigError(
            f"measured.probe_host = {measured.probe_host}, "
            f"measured.probe_port = {measured.probe_port}: {error}"
        ) from error
    with sink:
        yield sink


def _run(settings: Settings, grid: Grid, folder: Path, on_nodes: bool) -> dict[str, Any]:
    measured = settings.measured if settings.channel.source == "measured" else None
    with uplink_probe(measured) as probe, open_checkpoint(settings) as start:
        job = prepare(settings, on_nodes=on_nodes)
        # The name of a run decides nothing of it: only where devices keep what belongs to it.
        strategy = build_strategy(
            job,
            run=secrets.token_hex(8),
            continued=start.continuation if start else None,
            probe=probe,
        )
        if start:
            strategy.restore(start.state)
            strategy.fleet.restore(start.state)
        try:
            recorder = Recorder(
                folder,
                round_columns=strategy.round_columns,
                device_columns=strategy.device_columns,
                device_timing_columns=strategy.device_timing_columns,
                history=start.run_folder if start else None,
                until=start.manifest.tables if start else None,
            )
        except HistoryError as error:
            raise ConfigError(f"resume = {settings.resume}: {error}") from error
        write_file(folder / TASK, job.facts.to_json().encode())
        if start and start.run_folder == folder.resolve():
            checkpoint.discard_after(folder, start.round)
        if settings.channel.source != "measured":
            write_fleet(folder, settings)
        strategy.summary()
        getattr(grid, "begin_run", lambda: None)()  # a grid of one's own may have served another run
        stop = EarlyStop(settings.stop, strategy.round_columns)
        stop.replay(read_table(folder / ROUNDS))
        strategy.fleet.wait(
            grid,
            settings.fleet.start_timeout_s,
            at_least=settings.fleet.min_devices,
            poll=_START_POLL_SECONDS,
        )
        data = job.data.with_own(strategy.fleet.introductions)
        log.info("%s", data.line())
        if warning := data.warning():
            log.warning("%s", warning)
        every = settings.checkpoint_every
        writer = Writer(
            folder,
            settings.to_dict(),
            recorder,
            start,
            every=int(job.spec.own_data_root) if every is None else every,
            replaced=checkpoint.note_start(folder, strategy.run) if on_nodes else (),
        )
        live = Live(folder, settings.rounds)
        strategy.notice = live.notice
        with track(settings, folder) as tracker, closing(live):
            _rounds(job, strategy, grid, recorder, tracker, writer, stop)
    rows = read_table(folder / ROUNDS)
    _draw(folder)
    starved = starved_rounds(folder / DEVICES, rows)
    if starved:
        log.info("%s", starved_line(starved, len(rows)))
    totals: dict[str, Any] = {"starved_rounds": starved} if starved else {}
    if spent := device_energy(folder / DEVICES):
        totals["device_energy_j"] = spent
    return {
        **summarise(rows),
        **totals,
        **stop.summary(),
        **privacy_spent(settings, rows, read_table(folder / DEVICES)),
        "data": data.summary(),
        "batch_devices": getattr(grid, "most_at_once", 1),  # of engine.batch_devices=null: what was chosen
        "checkpoint_round": writer.stored_round,
        "records": recorder.digests,
    }


def _rounds(
    job: Job,
    strategy: WirelessStrategy,
    grid: Grid,
    recorder: Recorder,
    tracker: Tracker,
    writer: Writer,
    stop: EarlyStop,
) -> None:
    settings, start = job.settings, writer.start
    finished = FinishedRound(
        start.round if start else 0,
        start.weights if start else job.initial_weights,
        start.state if start else {},
        recorder.marks,
    )
    silent, answered = 0, finished
    try:
        for server_round in range(finished.round + 1, settings.rounds + 1):
            if stop.reason:
                log.info("the run ends after round %d: %s", finished.round, stop.reason)
                break
            interrupts.check(grid)
            arrays = weights_record(finished.weights)
            weights, clock = _round(
                strategy, grid, recorder, server_round, arrays, settings.fleet.round_timeout_s
            )
            with held():
                recorder.record(strategy.log, clock.seconds)
                writer.note(strategy.log)
                known = {**strategy.state(), **strategy.fleet.state()}
                state = {name: np.array(value) for name, value in known.items()}
                finished = FinishedRound(server_round, weights, state, recorder.marks)
            tracker.record(server_round, {**strategy.log.columns, **clock.seconds})
            log.info("%s", round_line(strategy.log, settings.rounds, clock.seconds))
            asked = strategy.log.columns["participants"]  # none, where no battery can pay for a round
            silent = 0 if strategy.log.columns["replies"] or not asked else silent + 1
            if not silent:
                answered = finished
            last = stop.see(server_round, strategy.log.columns) or server_round == settings.rounds
            if silent == settings.fleet.max_failed_rounds or (silent and last):
                raise RunFailedError(_why(strategy, silent))
            # What a network that is down has cost is not stored: who continues the run does it again.
            if not silent and (last or writer.due(server_round)):
                writer.save(finished, grid, strategy, settings.fleet.round_timeout_s)
        if start and finished.round == start.round and writer.stored_round is None:
            writer.save(finished, grid, strategy, settings.fleet.round_timeout_s)
    except KeyboardInterrupt as signal:
        _last_words(signal, answered, writer, strategy, grid)
        raise


def _round(
    strategy: WirelessStrategy,
    grid: Grid,
    recorder: Recorder,
    server_round: int,
    arrays: ArrayRecord,
    timeout: float,
) -> tuple[npt.NDArray[np.float32], RoundClock]:
    """Do one round; return the global part after it and the seconds that it took."""
    clock = RoundClock()
    orders = strategy.configure_train(server_round, arrays, ConfigRecord(), grid)
    clock.lap("measured_train_seconds")
    # Where replies come one by one, each is taken while the others still train.
    replies = clock.waiting("measured_train_seconds", strategy.exchange(grid, orders, timeout))
    updated, _ = strategy.aggregate_train(server_round, replies)
    arrays = updated or arrays
    clock.lap("measured_aggregate_seconds")
    orders = strategy.configure_evaluate(server_round, arrays, ConfigRecord(), grid)
    try:
        strategy.aggregate_evaluate(server_round, exchange(grid, orders, timeout, strategy.heard))
    except DivergedError:  # the row of the round shows which devices, and how
        recorder.record(strategy.log, clock.seconds)
        raise
    clock.lap("measured_evaluate_seconds")
    return read_weights(arrays), clock


def _last_words(
    signal: KeyboardInterrupt, finished: FinishedRound, writer: Writer, strategy: WirelessStrategy, grid: Grid
) -> None:
    """Leave the last finished round as a checkpoint, unless there is one already."""
    log.warning("%s: stopping", str(signal) or "SIGINT")
    begun = writer.start.round if writer.start is not None else 0
    if finished.round > begun and writer.stored_round != finished.round:
        writer.save(finished, grid, strategy, _LAST_WORDS_SECONDS)
    if writer.stored_round is not None:
        log.warning("round %d is stored: go on with resume=%s", writer.stored_round, writer.run_folder)
    elif writer.start is not None:
        log.warning("stopped before another round was finished: go on with the same resume=")
    else:
        log.warning("stopped before any round was finished")


def _draw(folder: Path) -> None:
    """Draw the run's figure; a run that has finished does not fail for want of one."""
    try:
        draw_run(folder)
    except Exception as error:  # fonts, caches and disks fail in many ways
        log.warning("the figure could not be drawn: %s: %s", type(error).__name__, error)


def _why(strategy: WirelessStrategy, silent: int) -> str:
    rows = strategy.log.devices.values()  # those that were only tested have no status
    reasons = {str(row.get("reason")) for row in rows if row.get("status") == "failed"}
    shown = "; ".join(sorted(reasons)[:3])
    return (
        f"no device gave a usable reply in {silent} round(s), the last one {strategy.log.round} "
        f"(fleet.max_failed_rounds): {shown}"
    )
