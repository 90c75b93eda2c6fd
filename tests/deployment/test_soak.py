"""Five minutes of what `soak.py` does for hours; and that its checks find what they look for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployment.soak import Use, growing, halves, longest_pause

SCRIPT = Path(__file__).with_name("soak.py")


@pytest.mark.slow
@pytest.mark.fleet
def test_a_fleet_on_bad_links_neither_leaks_nor_stalls_nor_forgets():
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), "--minutes", "5"], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    assert "device rounds were lost" in done.stdout


def test_what_grows_is_found():
    before = Use(200.0, 40, 0)
    assert growing(before, Use(240.0, 45, 2)) == []
    assert growing(before, Use(400.0, 40, 0)) == ["MB"]
    assert growing(before, Use(200.0, 90, 9)) == ["files", "shared"]


def test_a_stalled_round_is_found_also_at_the_end():
    assert longest_pause([10.0, 20.0, 55.0], 0.0, 60.0) == 35.0
    assert longest_pause([10.0, 20.0], 0.0, 100.0) == 80.0


def test_what_a_fleet_unpacks_at_first_is_not_taken_for_growth_in_the_second_half():
    assert halves([46, *[2262] * 99]) == (2262, 2262)
    assert halves([*range(100)]) == (59, 99)
