"""What SIGKILL of a fleet's ServerApp leaves: a true status, and records from which the run goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.fleet]


def test_killed_server_apps_are_resumed_to_the_same_files_and_leave_nothing_behind():
    """AIRFLOWER_TEST_KILLS sets the number of trials, 30 for instance."""
    count = os.environ.get("AIRFLOWER_TEST_KILLS", "3")
    script = Path(__file__).with_name("fleet_kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--count", count], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} trials, every result equal" in done.stdout


def test_a_supervised_run_ends_by_itself_whatever_is_killed():
    """ServerApp, SuperLink and supervisor, once each; AIRFLOWER_TEST_KILLS sets how many."""
    count = os.environ.get("AIRFLOWER_TEST_KILLS", "1")
    script = Path(__file__).with_name("supervised_kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--count", count], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} trials, every result equal" in done.stdout
