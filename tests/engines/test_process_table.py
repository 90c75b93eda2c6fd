"""What a process has started is found, whoever started it among them."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from engines.process_table import command_of, descendants, has_ended, living, started_by

SLEEPS = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


@pytest.fixture
def family():
    """A child, which has a child of its own, that is there."""
    child = subprocess.Popen([sys.executable, "-c", SLEEPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    yield child
    child.communicate(b"\n")


def test_what_was_started_is_found_without_ps(family, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = descendants(os.getpid())
    assert family.pid in found
    (grandchild,) = started_by(family.pid)
    assert grandchild.pid in found
    assert "input()" in command_of(grandchild)
    assert "input()" in living()[grandchild.pid]


def test_one_that_has_ended_is_over_before_and_after_its_parent_looks():
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    process = psutil.Process(ended.pid)
    assert not has_ended(psutil.Process())
    ended.stdout.read()  # closed as it ends
    psutil.wait_procs([process], timeout=0)
    deadline = time.monotonic() + 60
    while not has_ended(process):
        assert time.monotonic() < deadline
    assert ended.pid not in living()
    ended.wait()
    assert has_ended(process)
    assert command_of(process) == ""
    assert started_by(ended.pid) == []
