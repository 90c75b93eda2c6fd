"""A run whose process is killed is not "running" for ever, and nobody else's run is called killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from records.ownership import SUMMARY, guarded, lock_variables, owned, settle, status_of

ROOT = Path(__file__).parents[2]
SERVER = """
import sys, time
from pathlib import Path
from records.ownership import SUMMARY, guarded, owned
from records.recorder import write_json
folder = Path(sys.argv[1])
with owned(folder), guarded(folder):
    write_json(folder / SUMMARY, {"status": "running", "seed": 3})
    print("ready", flush=True)
    time.sleep(1000)
"""


def _server(folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    return server


def _end(server: subprocess.Popen[bytes], number: int) -> None:
    os.killpg(server.pid, number)
    server.wait(30)
    assert server.stdout is not None
    server.stdout.close()


def _final(folder: Path) -> dict[str, object]:
    deadline = time.monotonic() + 60
    while (found := json.loads((folder / SUMMARY).read_text()))["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return dict(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_process_leaves_a_true_status(tmp_path, number):
    """Its own handlers of signals are not part of it: none is installed here."""
    server = _server(tmp_path)
    _end(server, number)
    found = _final(tmp_path)
    assert (found["status"], found["seed"]) == ("killed", 3)
    assert f"process {server.pid} " in str(found["reason"])
    assert status_of(tmp_path)[0] == "killed"


def test_it_does_so_where_its_parent_owns_the_folder(tmp_path):
    """With engine=flower the airflower command does, and lives on."""
    with owned(tmp_path):
        server = _server(tmp_path, **lock_variables(tmp_path))
        _end(server, signal.SIGKILL)
        assert _final(tmp_path)["status"] == "killed"


def test_a_run_that_another_process_goes_on_with_is_left_alone(tmp_path):
    """The guard of the killed process may come late: a stopped one does here."""
    server = _server(tmp_path)
    (guard,) = (
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f'"command": {server.pid},'.encode() in path.read_bytes()
    )
    os.kill(guard, signal.SIGSTOP)
    _end(server, signal.SIGKILL)
    with owned(tmp_path):
        os.kill(guard, signal.SIGCONT)
        while Path(f"/proc/{guard}").exists():
            time.sleep(0.05)
        assert json.loads((tmp_path / SUMMARY).read_text())["status"] == "running"


def test_a_folder_whose_owner_was_killed_can_be_had_at_once(tmp_path):
    """Its guard holds the lock for a moment; that is no owner."""
    for _ in range(2):
        server = _server(tmp_path)
        _end(server, signal.SIGKILL)
        deadline = time.monotonic() + 1.0  # the guard looks every 0.2 s
        while time.monotonic() < deadline:
            with owned(tmp_path):
                pass


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_a_status_that_is_final_stays(tmp_path, status):
    with owned(tmp_path), guarded(tmp_path):
        (tmp_path / SUMMARY).write_text(json.dumps({"status": status}))
    settle(tmp_path)
    assert json.loads((tmp_path / SUMMARY).read_text()) == {"status": status}


def test_no_summary_is_made_where_there_was_none(tmp_path):
    with owned(tmp_path), guarded(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
