"""Processes are found with and without ``ps``."""

import os
import subprocess
import sys

import pytest

from engines import process_table

SLEEPS = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


@pytest.fixture
def family():
    """A child, which has a child of its own, that is there."""
    child = subprocess.Popen([sys.executable, "-c", SLEEPS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    yield child
    child.communicate(b"\n")


@pytest.mark.skipif(not os.path.isfile("/proc/self/stat"), reason="no /proc")
def test_what_was_started_is_found_without_ps(family, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = process_table.descendants(os.getpid())
    assert family.pid in found
    (grandchild,) = process_table.descendants(family.pid)
    assert grandchild in found
    assert "input()" in process_table.processes()[grandchild].command


def test_ps_and_proc_say_the_same(family, tmp_path):
    if subprocess.run(["ps"], capture_output=True, check=False).returncode:
        pytest.skip("no ps")
    with_ps, without = process_table.processes(tmp_path), process_table.processes()
    assert with_ps[family.pid].parent == without[family.pid].parent == os.getpid()
    assert SLEEPS in with_ps[family.pid].command
    assert SLEEPS in without[family.pid].command


def test_neither_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert process_table.processes(tmp_path) == {}


@pytest.mark.skipif(not os.path.isfile("/proc/self/stat"), reason="no /proc")
def test_one_that_has_ended_is_over():
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""], stdout=subprocess.PIPE)
    ended.stdout.read()  # closed as it ends
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    assert process_table.processes()[ended.pid].over
    ended.wait()
