"""Nothing that a command has started outlives it, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol import guard
from protocol.guard import Guard

ROOT = Path(__file__).parents[2]

# A command with a child in another session that has a child in yet another one, deaf to SIGTERM, and a fork.
COMMAND = """
import os, signal, subprocess, sys, time
from pathlib import Path
from protocol.guard import Guard
DEAF = '''
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(1000)
'''
FAR = '''
import os, subprocess, sys
print(os.getpid(), flush=True)
subprocess.run([sys.executable, "-c", os.environ["DEAF"]], start_new_session=True)
'''
scratch = Path(sys.argv[1]) / "scratch"
scratch.mkdir()
with Guard(scratch) as guard:
    env = {**os.environ, **guard.variables, "DEAF": DEAF}
    subprocess.Popen([sys.executable, "-c", FAR], env=env, start_new_session=True)
    if os.fork() == 0:
        time.sleep(3)  # holds the command's open files
        os._exit(0)
    if sys.argv[2] == "leave":
        time.sleep(1.5)
        sys.exit(0)
    time.sleep(1000)
"""


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]
    except OSError:
        return False


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGHUP", "leave"])
def test_all_that_was_started_ends_with_the_command(tmp_path, how):
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path), how],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert command.stdout is not None
    started = [int(command.stdout.readline()) for _ in range(2)]
    assert all(map(_alive, started))
    if how != "leave":
        os.kill(command.pid, getattr(signal, how))
    command.wait(60)
    deadline = time.monotonic() + 60
    while any(map(_alive, started)) or (tmp_path / "scratch").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_can_be_closed_while_a_fork_has_its_pipe():
    with Guard():
        child = os.fork()
        if child == 0:
            time.sleep(1000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_processes_of_others_are_left_alone():
    with Guard() as mine, Guard() as theirs:
        other = subprocess.Popen(["sleep", "1000"], env={**os.environ, **theirs.variables})
        mine.close()
        assert other.poll() is None
        theirs.close()
        assert other.wait(30) == -signal.SIGTERM


def test_a_process_that_is_just_becoming_another_program_is_not_missed(monkeypatch):
    """Between the two it shows no environment, and so no mark."""
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, guard.MARK: "becoming"})
    looks: list[list[int]] = []
    look = guard.marked

    def marked(mark, variable=guard.MARK):
        looks.append(look(mark, variable) if looks else [])
        return looks[-1]

    monkeypatch.setattr(guard, "marked", marked)
    try:
        guard.end_marked("becoming")
        assert child.wait(10) == -signal.SIGTERM
    finally:
        child.kill()
