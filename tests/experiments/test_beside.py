"""Work in a second process at the start of a command; each case is a command of its own."""

import signal
import subprocess
import sys

import pytest

WAITS = "lambda: (time.sleep(30), print('waited'))"


def _run(work, meanwhile="lambda: None", after="print(made)"):
    code = (
        "import os, signal, sys, time\n"
        "from experiments.beside import beside\n"
        f"{work}\n"
        f"made = beside(work, meanwhile={meanwhile})\n"
        f"{after}\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_object_arrives_whole_whatever_its_size_and_whoever_is_first():
    work = "def work(hand_over): hand_over((os.getpid(), bytes(1 << 20)))"
    after = "print(made[0] != os.getpid(), len(made[1]))"
    for meanwhile in ("lambda: None", "lambda: time.sleep(0.5)"):
        assert _run(work, meanwhile, after).stdout == "True 1048576\n"


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("print('wrong key', file=sys.stderr); sys.exit(2)", 2),
        ("sys.exit('wrong key')", 1),
        ("raise ValueError('wrong key')", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
)
def test_a_failure_ends_the_command_at_once_with_the_same_status(end, status):
    result = _run(f"def work(hand_over): {end}", WAITS)
    assert (result.returncode, result.stdout) == (status, "")
    assert status > 128 or "wrong key" in result.stderr


def test_nothing_handed_over_is_a_quiet_end():
    result = _run("def work(hand_over): print('help text')", "lambda: time.sleep(0.1)")
    assert (result.returncode, result.stdout, result.stderr) == (0, "help text\n", "")


def test_a_failure_after_the_object_is_a_failure():
    assert _run("def work(hand_over): hand_over(1); sys.exit(3)").returncode == 3


def test_what_goes_wrong_meanwhile_is_raised_here():
    result = _run("def work(hand_over): time.sleep(0.2); hand_over(1)", "lambda: 1 / 0")
    assert result.returncode == 1
    assert result.stderr.count("Traceback") == 1
    assert "ZeroDivisionError" in result.stderr


def test_an_interrupt_is_told_once():
    work = "def work(hand_over): time.sleep(30)"
    result = _run(work, "lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(30))")
    assert result.stderr.count("KeyboardInterrupt") == 1
