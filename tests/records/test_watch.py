"""A run whose process is killed is not "running" for ever."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from records.watch import REASON, close_summary, watched

ROOT = Path(__file__).parents[2]
SERVER = """
import os, sys, time
from pathlib import Path
from records.watch import watched
with watched(Path(sys.argv[1])):
    Path(sys.argv[1]).write_text('{"status": "running", "seed": 3}')
    print("ready", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_killed_server_leaves_a_true_status(tmp_path, number):
    summary = tmp_path / "summary.json"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(summary)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    os.killpg(server.pid, number)
    server.wait(30)
    deadline = time.monotonic() + 60
    while (found := json.loads(summary.read_text()))["status"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found == {"status": "failed", "reason": REASON, "seed": 3}


@pytest.mark.parametrize("status", ["completed", "failed", "interrupted"])
def test_a_status_that_is_final_stays(tmp_path, status):
    summary = tmp_path / "summary.json"
    with watched(summary):
        summary.write_text(json.dumps({"status": status}))
    close_summary(summary)
    assert json.loads(summary.read_text()) == {"status": status}


def test_no_summary_is_made_where_there_was_none(tmp_path):
    with watched(tmp_path / "summary.json"):
        pass
    assert list(tmp_path.iterdir()) == []
