"""A supervised run ends with the records of an undisturbed one, whatever its ServerApp dies of."""

import dataclasses
import json
import logging
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client_app.results import DivergedError
from deploy import cli
from deploy.lab_fleet import flwr_of
from deploy.supervise import RunStoppedError, insist, standing, supervise
from engines.inprocess import open_grid
from records.checkpoint import Writer
from records.recorder import read_table, write_json
from schema import ConfigError
from server_app.run import RunFailedError, run
from server_app.settings import Settings, compose_settings
from strategies import exchange
from tests.end_to_end.jobs import SMALL, records

JOB = (*SMALL, "fleet.num_devices=3", "checkpoint_every=1", "rounds=4", "fleet.max_failed_rounds=2")
SETTINGS = compose_settings(list(JOB))


def _settings(overrides: Sequence[str]) -> Settings:
    """Return the settings of the job; composing takes longer than a run."""
    changes: dict[str, Any] = {}
    for given in overrides[len(JOB) :]:
        name, _, value = given.partition("=")
        changes[name] = int(value) if value.isdecimal() else value
    return dataclasses.replace(SETTINGS, **changes)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--superlink", "lba"], "no such connection.*lab, other"),
        (["--superlink", "lab", "--root-certificates", "ca.crt"], "a connection has its own"),
        (["--superlink", "10.0.0.1:8000"], "needs --root-certificates"),
        (["--superlink", "10.0.0.1:8000", "--root-certificates", "ca.crt"], "ca.crt is no file"),
        (["--superlink", "10.0.0.1:"], "or HOST:PORT"),
        (["--nodes", "2", "--root-certificates", "ca.crt"], "makes its own"),
    ],
)
def test_a_superlink_that_is_not_known_is_said_at_once(tmp_path, monkeypatch, caplog, arguments, named):
    (tmp_path / "config.toml").write_text(
        '[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "localhost:8000"\n[superlink.other]\n'
    )
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_interrupt_once", lambda: None)
    assert cli.fleet(["run", *arguments, "--out", str(tmp_path / "out")]) == cli.CONFIG_ERROR
    assert re.search(named, caplog.text)


def test_an_address_makes_a_connection_of_its_own(tmp_path):
    (tmp_path / "ca.crt").write_text("")
    flwr = flwr_of("superlink.lab:8000", tmp_path, tmp_path / "ca.crt")
    home = Path(flwr._environment["FLWR_HOME"])
    made = tomllib.loads((home / "config.toml").read_text())["superlink"]
    assert made[made["default"]] == {
        "address": "superlink.lab:8000",
        "root-certificates": str((tmp_path / "ca.crt").resolve()),
    }
    assert flwr._connection == (made["default"],)


class _Killed(BaseException):
    """Ends a ServerApp without a word, as SIGKILL does."""


class Here:
    """Runs in this process; each start is killed in a certain round, or has no network from there on."""

    def __init__(self, monkeypatch, ends: Sequence[tuple[str, int]]) -> None:
        self.run_id, self.state, self.starts = "", "finished:failed", 0
        self.flwr: Any = SimpleNamespace(status=lambda _: (self.state, ""))
        self.ends = list(ends)
        self.monkeypatch = monkeypatch
        self.jobs: list[list[str]] = []

    def bring_up(self) -> None:
        self.starts += 1

    def at_work(self, folder: Path) -> bool:
        return False

    def run(self, overrides, folder, watch=lambda: None):
        self.run_id = str(self.starts)
        self.jobs.append(list(overrides))
        what, number = self.ends.pop(0) if self.ends else ("", 0)
        with self.monkeypatch.context() as patched, open_grid(SETTINGS, "client_app.app:app", 1) as grid:
            patched.setattr("server_app.run.draw_run", lambda _: None)
            if what == "kill":
                patched.setattr("server_app.run.round_line", self._kill_in(number))
            if what == "cut":
                for module in ("server_app.run", "strategies.base"):
                    patched.setattr(f"{module}.exchange", self._cut_from(number))
            try:
                return run(_settings(overrides), grid, folder)
            except _Killed:
                summary = json.loads((folder / "summary.json").read_text())
                write_json(folder / "summary.json", {**summary, "status": "running"})
                raise RunFailedError("killed") from None

    def _kill_in(self, number):
        def line(log, *_):
            if log.round >= number:
                raise _Killed
            return ""

        return line

    def _cut_from(self, number):
        def cut(grid, orders, timeout, *heard):
            orders = list(orders)
            late = any(int(order.metadata.group_id.partition("/")[0] or 0) >= number for order in orders)
            return [] if late else exchange.exchange(grid, orders, timeout, *heard)

        return cut


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        Here(patch, []).run(JOB, folder)
    return records(folder)


@pytest.mark.parametrize(
    "ends", [[("kill", 1), ("cut", 1), ("kill", 4)], [("kill", 3), ("kill", 3)], [("cut", 2), ("cut", 4)]]
)
def test_the_records_are_those_of_an_undisturbed_run(whole, tmp_path, monkeypatch, ends):
    waited: list[float] = []
    summary = supervise(Here(monkeypatch, ends), SETTINGS, JOB, tmp_path, sleep=waited.append)
    assert summary["status"] == "completed"
    assert records(tmp_path) == whole
    assert len(waited) == len(ends)


def test_a_network_that_is_down_costs_no_round(whole, tmp_path, monkeypatch):
    here = Here(monkeypatch, [("cut", 3)])
    supervise(here, SETTINGS, JOB, tmp_path, sleep=lambda _: None)
    assert here.starts == 2
    assert here.jobs[1][-1].startswith("resume=")
    assert records(tmp_path) == whole


def test_without_progress_it_is_given_up_and_waits_longer_each_time(tmp_path, monkeypatch):
    waited: list[float] = []
    here = Here(monkeypatch, [("kill", 1)] * 9)
    with pytest.raises(RunFailedError, match="given up: 4 starts"):
        supervise(here, SETTINGS, JOB, tmp_path, tries=4, sleep=waited.append)
    assert waited == [1.0, 2.0, 4.0]


def test_progress_starts_the_count_anew(whole, tmp_path, monkeypatch):
    here = Here(monkeypatch, [("kill", number) for number in (2, 3, 4)])
    supervise(here, SETTINGS, JOB, tmp_path, tries=2, sleep=lambda _: None)
    assert records(tmp_path) == whole


@pytest.mark.parametrize(
    "reason",
    [
        "ConfigError: rounds = -1",
        f"RunFailedError: no device gave a usable reply in 3 round(s): {DivergedError}:<'training diverged'>",
    ],
)
def test_what_no_start_mends_is_not_started_again(tmp_path, monkeypatch, reason):
    """Training with the same seed diverges again."""
    here = Here(monkeypatch, [])
    monkeypatch.setattr(here, "run", lambda *_: (_ for _ in ()).throw(RunFailedError(reason)))
    with pytest.raises(RunFailedError, match=re.escape(reason)):
        supervise(here, SETTINGS, JOB, tmp_path, sleep=lambda _: pytest.fail("waits for another start"))


def test_a_run_that_its_operator_has_stopped_stays_so(tmp_path, monkeypatch):
    here = Here(monkeypatch, [("kill", 2)])
    here.state = "finished:stopped"
    with pytest.raises(RunStoppedError):
        supervise(here, SETTINGS, JOB, tmp_path, sleep=lambda _: pytest.fail("waits for another start"))


def test_a_completed_run_is_not_done_again_but_goes_on_to_more_rounds(tmp_path, monkeypatch):
    supervise(Here(monkeypatch, []), SETTINGS, JOB, tmp_path)
    again = Here(monkeypatch, [])
    assert supervise(again, SETTINGS, JOB, tmp_path)["status"] == "completed"
    assert again.jobs == []
    more = [*JOB, "rounds=5"]
    supervise(again, _settings(more), more, tmp_path)
    assert len(read_table(tmp_path / "rounds.csv")) == 5


def test_the_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    supervise(Here(monkeypatch, []), SETTINGS, JOB, tmp_path)
    other = [*JOB, "seed=9"]
    with pytest.raises(ConfigError, match="seed is 9 here and 1 there"):
        standing(tmp_path, _settings(other))


def test_a_fleet_stores_every_round_unless_it_is_told_otherwise(tmp_path, monkeypatch, caplog):
    stored = []
    monkeypatch.setattr("server_app.run.draw_run", lambda _: None)
    monkeypatch.setattr(Writer, "save", lambda self, finished, *_: stored.append(finished.round))
    caplog.set_level(logging.ERROR)
    for name, more, on_nodes in (("a", None, True), ("b", None, False), ("c", 0, True)):
        chosen = dataclasses.replace(SETTINGS, checkpoint_every=more)
        with open_grid(chosen, "client_app.app:app", 1) as grid:
            run(chosen, grid, tmp_path / name, on_nodes=on_nodes)
    assert stored == [1, 2, 3, 4, 4, 4]


def test_a_fleet_that_does_not_start_is_started_again_until_it_has_failed_often_enough():
    outcomes: list[RunFailedError | str] = [RunFailedError("the SuperLink ended") for _ in range(2)]
    outcomes.append("a fleet")
    waits: list[float] = []

    def start() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, RunFailedError):
            raise outcome
        return outcome

    assert insist(start, tries=3, sleep=waits.append) == "a fleet"
    assert waits == [1.0, 2.0]
    outcomes.extend([RunFailedError("no port")] * 2)
    with pytest.raises(RunFailedError, match=r"no port \(given up after 2 starts\)"):
        insist(start, tries=2, sleep=waits.append)
    assert not outcomes
