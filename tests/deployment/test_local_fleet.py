"""`deploy/local-fleet`: one command, a fleet of real processes with TLS and keys, nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.credentials import make_node_key
from engines.inprocess import InProcessGrid
from engines.process_table import command_of, started_by
from engines.superlink import commands, free_ports, kill_all
from server_app.run import run
from server_app.settings import compose_settings
from tests.deployment.fleets import SMALL, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

COMMAND = Path(__file__).parents[2] / "deploy" / "local-fleet"


def _stranger(folder: Path, name: str, port: str, *security: str) -> subprocess.Popen[bytes]:
    """Start a SuperNode that is none of the fleet."""
    with (folder / f"{name}.log").open("wb") as output:
        return subprocess.Popen(
            [
                str(commands() / "flower-supernode"), *security, "--superlink", f"127.0.0.1:{port}",
                "--port", str(free_ports(1)[0]), "--node-config", "partition-id=0 num-partitions=5",
            ],
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "FLWR_HOME": str(folder / name), "PATH": f"{commands()}:{os.environ['PATH']}"},
        )  # fmt: skip


def test_one_command_gives_the_records_of_the_simulation_while_strangers_knock(tmp_path):
    overrides = [*SMALL, "rounds=10"]
    out, scratch = tmp_path / "out", tmp_path / "t"
    scratch.mkdir()
    make_node_key(tmp_path / "unknown")
    strangers: dict[str, subprocess.Popen[bytes]] = {}
    lines: list[str] = []
    port = ""
    with subprocess.Popen(
        [sys.executable, str(COMMAND), "--nodes", "5", "--out", str(out), *overrides],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE, text=True,
    ) as fleet:  # fmt: skip
        assert fleet.stdout is not None
        for line in fleet.stdout:
            lines.append(line)
            if found := re.search(r"on 127\.0\.0\.1:(\d+)", line):
                port = found[1]
            if re.match(r"round +1/10 ", line):
                trust = next(scratch.glob("*/keys/ca.crt"))
                secured = ("--root-certificates", str(trust), "--auth-supernode-private-key")
                strangers["key"] = _stranger(tmp_path, "key", port, *secured, str(tmp_path / "unknown"))
                strangers["plain"] = _stranger(tmp_path, "plain", port, "--insecure")
            if re.match(r"round +10/10 ", line):
                assert strangers["key"].wait(60) != 0
                assert strangers["plain"].poll() is None  # it tries for ever
    for stranger in strangers.values():
        kill_all(stranger)
        stranger.wait()
    assert fleet.returncode == 0, "".join(lines)
    assert sum(line.startswith("round ") for line in lines) == 10
    assert processes_of(tmp_path) == []
    assert list(scratch.glob("airflower-*")) == []
    assert "Exit Code: 305" in (tmp_path / "key.log").read_text()
    for name in strangers:
        assert "SuperNode ID" not in (tmp_path / f"{name}.log").read_text()
    assert (out / "logs" / "superlink.log").read_text().count("Activated node_id") == 5
    with InProcessGrid("client_app.app:app", 5) as grid:
        run(compose_settings([*overrides, "fleet.num_devices=5"]), grid, tmp_path / "simulation")
    for name in ("rounds.csv", "devices.csv"):
        assert (out / name).read_text() == (tmp_path / "simulation" / name).read_text()


def test_a_superlink_that_is_killed_while_it_starts_costs_some_seconds(tmp_path):
    command = [sys.executable, str(COMMAND), "--nodes", "2", "--out", str(tmp_path / "out"), *SMALL]
    with subprocess.Popen(
        [*command, "rounds=1"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as fleet:
        while not (links := [one for one in started_by(fleet.pid) if "flower-superlink" in command_of(one)]):
            assert fleet.poll() is None
            time.sleep(0.05)
        os.kill(links[0].pid, signal.SIGKILL)
        said = fleet.communicate(timeout=300)[0]
    assert fleet.returncode == 0, said
    assert "superlink did not start" in said
    assert "starting again in 1 s" in said
    assert processes_of(tmp_path) == []


def test_a_run_that_fails_is_a_failure_of_the_command_and_leaves_nothing(tmp_path):
    result = subprocess.run(
        [
            sys.executable, str(COMMAND), "--nodes", "2", "--out", str(tmp_path / "out"), *SMALL, "rounds=1",
            "training.global_learning_rate=1e38",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert result.returncode == 1, result.stdout + result.stderr
    assert "no device gave a usable reply" in result.stdout
    assert not processes_of(tmp_path)


def test_interrupted_even_twice_it_leaves_nothing(tmp_path):
    scratch = tmp_path / "t"
    scratch.mkdir()
    with subprocess.Popen(
        [sys.executable, str(COMMAND), "--nodes", "2", "--out", str(tmp_path / "out"), *SMALL, "rounds=1000"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE, text=True,
    ) as fleet:  # fmt: skip
        assert fleet.stdout is not None
        for line in fleet.stdout:
            if re.match(r"round +1/1000 ", line):
                fleet.send_signal(signal.SIGINT)
                time.sleep(2.0)
                fleet.send_signal(signal.SIGTERM)
    assert fleet.returncode == 130
    assert processes_of(tmp_path) == []
    assert list(scratch.glob("airflower-*")) == []


def test_a_wrong_setting_is_named_before_anything_starts(tmp_path):
    wrong = subprocess.run(
        [sys.executable, str(COMMAND), "--nodes", "2", "rounds=-1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert wrong.returncode == 2
    assert "rounds" in wrong.stdout
    assert list(tmp_path.iterdir()) == []
