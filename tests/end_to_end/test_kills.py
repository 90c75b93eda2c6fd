"""What SIGKILL leaves: nothing but the records, from which the run goes on as if nothing had happened.

AIRFLOWER_TEST_KILLS sets the number of trials, 200 for instance.
"""

import os
import subprocess
import sys
from pathlib import Path


def test_killed_runs_are_resumed_to_the_same_files_and_leave_nothing_behind():
    count = os.environ.get("AIRFLOWER_TEST_KILLS", "2")
    script = Path(__file__).with_name("kills.py")
    done = subprocess.run(
        [sys.executable, str(script), "--count", count], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} trials, every result equal" in done.stdout
