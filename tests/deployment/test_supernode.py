"""`deploy/supernode` starts what ended again, unless that is no use, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy import supernode
from deploy.supernode import NodeOptions
from engines.flower_command import start_command
from schema import ConfigError

SCRIPT = Path(__file__).parents[2] / "deploy" / "supernode"


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A `flower-supernode` that ends as the lines of a plan say, one line a start."""
    fake = tmp_path / "flower-supernode"
    monkeypatch.setattr(supernode, "start_command", lambda _: [str(fake)])
    monkeypatch.setattr(supernode, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("AIRFLOWER_WARM_SOCKET", str(tmp_path / "none"))

    def plan(*ends: str) -> Path:
        starts = tmp_path / "starts"
        cases = "".join(f"{number}) {end} ;;\n" for number, end in enumerate(ends, 1))
        fake.write_text(
            f'#!/bin/sh\necho "$@" >> {starts}\ncase $(wc -l < {starts}) in\n{cases}esac\nexit 99\n'
        )
        fake.chmod(0o755)
        return starts

    return plan


REFUSED = "echo 'Exit Code: 305'; exit 1"
WRONG_KEY = "echo 'Exit Code: 302'; exit 1"


def test_refused_broken_and_killed_ones_are_started_again(node, capfd):
    starts = node(REFUSED, "exit 0", "kill -9 $$", WRONG_KEY)
    assert supernode.keep_running(["--superlink", "there:8000"]) == 2
    assert starts.read_text().splitlines() == ["--superlink there:8000"] * 4
    said = capfd.readouterr().out
    assert "Exit Code: 305" in said  # its output is passed on
    for ended in ("exit code 305;", "exit code 0;", "signal 9;"):
        assert f"ended with {ended}" in said


@pytest.mark.parametrize("end", [WRONG_KEY, "exit 2", "echo 'Exit Code: 606'; exit 1"])
def test_what_no_new_start_mends_ends_it(node, end):
    starts = node(end, end)
    assert supernode.keep_running([]) == 2
    assert len(starts.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("partition-id=7 num-partitions=2", "partition-id = 7 and num-partitions = 2"),
        ("partition-id=2 num-partitions=2", "below the second"),
        ("partition-id=-1 num-partitions=2", "counts from 0"),
        ("num-partitions=2", "partition-id = None"),
        ("partition-id=0.5 num-partitions=2", "partition-id = 0.5"),
    ],
)
def test_a_node_that_no_run_could_use_does_not_start(config, text):
    with pytest.raises(ConfigError, match=text):
        NodeOptions.read(["--insecure", "--node-config", config]).check()


def test_waits_grow_to_a_limit_and_start_over_after_a_while():
    waits = supernode.Waits()
    assert [waits.after(1.0) for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert [waits.after(100.0), waits.after(1.0)] == [1.0, 2.0]


def test_it_ends_when_the_work_of_flowers_command_is_over(tmp_path, monkeypatch):
    """Flower's own process is kept by a server thread that nobody stops."""
    package = tmp_path / "stand_in.py"
    package.write_text(
        "import threading, time\ndef main():\n    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    )
    about = tmp_path / "stand_in-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stand_in\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[console_scripts]\nstand-in = stand_in:main\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run(start_command("stand-in"), env=environment, check=True, timeout=60)


def test_it_is_flowers_command():
    result = subprocess.run(
        [*start_command("flower-supernode"), "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert "--auth-supernode-private-key" in result.stdout


def test_told_to_stop_it_ends_with_its_supernode(tmp_path):
    fake = tmp_path / "bin" / "flower-supernode"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    fake.chmod(0o755)
    script = (
        "import sys; from deploy import cli, supernode; "
        f"supernode.start_command = lambda _: [{str(fake)!r}]; sys.exit(cli.supernode([]))"
    )
    keeper = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "AIRFLOWER_WARM_SOCKET": "none"}, cwd=SCRIPT.parents[1],
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    keeper.send_signal(signal.SIGTERM)
    assert keeper.wait(30) == 0
    pid = int((tmp_path / "pid").read_text())
    while psutil.pid_exists(pid):  # it has ended; nobody may have taken note of that yet
        assert time.monotonic() < deadline
        time.sleep(0.05)
