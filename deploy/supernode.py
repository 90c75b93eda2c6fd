"""Keeps the SuperNode of a box running: `deploy/supernode` is ``flower-supernode`` that does not stay down.

A SuperNode ends where an operator would simply start it again: the SuperLink still lists the one that was
killed a moment ago and refuses its successor (exit code 305), its key is not registered yet, or a connection
broke in the middle of a TLS handshake. In the last case Flower's own command does not even end: its work is
over, and a server thread keeps the process; here it ends when Flower's main function does. It is started
again after a wait that doubles up to a quarter of a minute; one that had been up for a while starts over with
a short wait. What no new start mends (a wrong argument, an unreadable key, another Flower version) ends it.

Beside it runs the warm process (see `warm`), unless one is there already.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from deploy import warm
from engines.superlink import commands, end

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 15.0
_SETTLED_SECONDS = 60.0

# Exit codes of Flower for what a new start does not mend; argparse ends with 2 for a wrong argument.
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_HOPELESS = frozenset({2, 302, 303, 304, 600, 602, 603, 604, 605, 606})
_START = """
import os, sys
from importlib.metadata import entry_points
(command,) = entry_points(group="console_scripts", name="flower-supernode")
code = 0
try:
    command.load()()
except SystemExit as ending:
    code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
finally:
    sys.stdout.flush()
    sys.stderr.flush()
os._exit(code)
"""
_EXIT_CODE = re.compile(rb"Exit Code: (\d+)")


class Waits:
    """How long to wait before each new start."""

    def __init__(self) -> None:
        self._next = _FIRST_WAIT

    def after(self, up_seconds: float) -> float:
        """Return the wait, in s, after a SuperNode that was up for so long."""
        if up_seconds >= _SETTLED_SECONDS:
            self._next = _FIRST_WAIT
        wait, self._next = self._next, min(2 * self._next, _LONGEST_WAIT)
        return wait


def keep_running(arguments: Sequence[str]) -> int:
    """Run ``flower-supernode`` with these arguments until it is stopped.

    It is stopped by an exception, such as a handler of SIGTERM raises; nothing of it then stays behind.
    It returns only where starting it again is no use: 2.
    """
    found = commands()
    with tempfile.TemporaryDirectory(prefix="airflower-warm-") as folder:
        variables = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        variables.setdefault("FLWR_SUPEREXEC_TASK_POLL_INTERVAL", "0.1")
        variables["PYTHONUNBUFFERED"] = "1"  # its output goes through a pipe, and is to be seen at once
        warm_process = None
        if "AIRFLOWER_WARM_SOCKET" not in variables:
            variables |= warm.environment(Path(folder), found)
            warm_process = subprocess.Popen(
                [sys.executable, "-I", warm.__file__, variables["AIRFLOWER_WARM_SOCKET"]],
                env=variables,
                start_new_session=True,
            )
        try:
            return _again_and_again([*start_command(), *arguments], variables)
        finally:
            if warm_process is not None:
                end(warm_process)


def start_command() -> list[str]:
    """Return the command that runs a SuperNode and ends when its work is over."""
    return [sys.executable, "-P", "-c", _START]  # -P: what lies in the working directory is not imported


def _again_and_again(command: Sequence[str], variables: Mapping[str, str]) -> int:
    waits = Waits()
    while True:
        started = time.monotonic()
        code = _run(command, variables)
        if code in _HOPELESS:
            return 2
        wait = waits.after(time.monotonic() - started)
        print(f"supernode: ended with {_named(code)}; starting it again in {wait:g} s", flush=True)
        time.sleep(wait)


def _run(command: Sequence[str], variables: Mapping[str, str]) -> int:
    """Run the SuperNode to its end, and return Flower's exit code or, without one, the process's."""
    # A signal that came between its start and our knowing of it would leave it behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        process = subprocess.Popen(
            command,
            env=variables,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_unblock,  # noqa: PLW1509  # no other thread runs here
        )
    except BaseException:
        _unblock()
        raise
    assert process.stdout is not None
    named: list[int] = []
    reader = threading.Thread(target=_pass_on, args=(process.stdout, named), daemon=True)
    try:
        _unblock()
        reader.start()
        code = process.wait()
    finally:
        end(process)  # what it started holds its pipe and its port
        if reader.ident is not None:
            reader.join(5.0)
    return named[-1] if named and code else code


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)


def _pass_on(stream: IO[bytes], named: list[int]) -> None:
    """Copy the SuperNode's output to ours, and note the exit code that it names."""
    for line in stream:
        os.write(1, line)
        if match := _EXIT_CODE.search(line):
            named.append(int(match[1]))


def _named(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
