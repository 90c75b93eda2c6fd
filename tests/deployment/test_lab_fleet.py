"""A run on a SuperLink that somebody else keeps running: its supervisor is killed, its network is cut."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.lab_fleet import SUBMITTED
from deploy.local_fleet import LocalFleet
from engines.inprocess import InProcessGrid
from engines.process_table import command_of, started_by
from engines.superlink import kill_all
from records.ownership import status_of
from records.recorder import read_table
from server_app.run import run
from server_app.settings import compose_settings
from tests.deployment.bad_links import LossyProxy
from tests.deployment.fleets import SMALL, rounds, wait

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

NODES = 2
COMMAND = Path(__file__).parents[2] / "deploy" / "local-fleet"  # `airflower-fleet run`
UNIT = COMMAND.parent / "systemd" / "airflower-run.service"
SHORT = ("evaluate_every=100", "fleet.round_timeout_s=30", "fleet.max_failed_rounds=1")


def unit_command(out: Path, overrides: Sequence[str]) -> list[str]:
    """Return the arguments of `airflower-fleet run` that systemd takes from the unit and its environment."""
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    command, subcommand, *words = line.split()
    assert (Path(command).name, subcommand) == ("airflower-fleet", "run")
    filled: list[str] = []
    for word in words:
        filled += overrides if word == "$OVERRIDES" else [word.replace("${OUT}", str(out))]
    return filled


class Supervisor:
    """What the unit of a run starts, in a process of its own, with a SuperLink that it knows as `lab`."""

    def __init__(self, fleet: LocalFleet, out: Path, *overrides: str) -> None:
        self.log = out.with_name(f"{out.name}.log")
        home = out.with_name("home")
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "none"\n[superlink.lab]\naddress = "127.0.0.1:{fleet.control_port}"\n'
            f'root-certificates = "{fleet.credentials.ca_certificate}"\n'
        )
        started = unit_command(out, [f"fleet.num_devices={NODES}", *overrides])
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(COMMAND), *started],
                stdout=output, stderr=subprocess.STDOUT, cwd=out.parent, start_new_session=True,
                env={**os.environ, "FLWR_HOME": str(home)},
            )  # fmt: skip

    def ended(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not over in {seconds:g} s:\n{self.log.read_text()[-3000:]}")


@pytest.fixture
def fleet(tmp_path):
    with LocalFleet(tmp_path / "fleet", NODES, tmp_path / "logs") as fleet:
        yield fleet


@pytest.fixture
def supervised(fleet, tmp_path):
    """Starts supervisors, and ends them."""
    started: list[Supervisor] = []

    def start(*overrides: str) -> Supervisor:
        started.append(Supervisor(fleet, tmp_path / "out", *overrides))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            kill_all(one.process)
            one.process.wait()


def test_a_supervisor_that_is_killed_finds_its_run_at_work_and_one_that_lost_it_goes_on(
    fleet, supervised, tmp_path
):
    job, out = (*SMALL, "rounds=6"), tmp_path / "out"
    for index in range(NODES):
        fleet.start_node(index)
    first = supervised(*job)
    wait(lambda: rounds(out) >= 2, "two rounds", out)
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    submitted = (out / SUBMITTED).read_bytes()
    second = supervised(*job)
    wait(lambda: rounds(out) >= 3, "a third", out)
    assert (out / SUBMITTED).read_bytes() == submitted
    for process in started_by(fleet.superlink.pid):
        if "flwr-serverapp" in command_of(process):
            process.kill()
    assert second.ended(600) == 0
    assert (out / SUBMITTED).read_bytes() != submitted
    assert "is at work; following it" in second.log.read_text()
    with InProcessGrid("client_app.app:app", NODES) as grid:
        run(compose_settings([*job, f"fleet.num_devices={NODES}"]), grid, tmp_path / "simulation")
    for name in ("rounds.csv", "devices.csv"):
        assert (out / name).read_bytes() == (tmp_path / "simulation" / name).read_bytes()


def test_a_network_that_is_cut_for_a_minute_costs_time_and_no_more_than_the_round_that_it_met(
    fleet, supervised, tmp_path
):
    out = tmp_path / "out"
    ways = [LossyProxy(fleet.port, random.Random(0), delay=0.0, loss=0.0) for _ in range(NODES)]
    try:
        for index, way in enumerate(ways):
            fleet.start_node(index, kept_running=True, superlink_port=way.port)
        command = supervised(*SMALL, *SHORT, "rounds=6")
        wait(lambda: rounds(out) >= 2, "two rounds", out)
        for way in ways:
            way.cut = True
        time.sleep(60)
        for way in ways:
            way.cut = False
            way.break_off()
        assert command.ended(600) == 0
    finally:
        for way in ways:
            way.close()
    assert status_of(out)[0] == "completed"
    table = read_table(out / "rounds.csv")
    assert [int(row["round"]) for row in table] == [*range(1, 7)]
    assert sum(bool(row["failed"]) for row in table) <= 1
    assert "starting it again" in command.log.read_text()
    assert "starts afresh" not in (out / "run.log").read_text()
