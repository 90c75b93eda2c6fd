"""Ends what a command has started when the command is gone, however it went.

A handler of signals is not enough: a command that is killed (SIGKILL, out of memory) runs none, and Flower's
processes have sessions of their own, so that no process group holds them together. Therefore the command
marks all that it starts with a variable in the environment, which children inherit, and starts a guard: a
small process in a session of its own that waits for the command to end, then ends whatever still bears the
mark, politely first, and removes the command's temporary folders.

Only the standard library: the guard is there in milliseconds and takes 10 MB.
"""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

MARK = "AIRFLOWER_GUARD"
_LOOK_SECONDS, _GRACE_SECONDS, _LONGEST_SECONDS = 0.2, 5.0, 60.0


class Guard:
    """Guards the processes that are started with `variables` in their environment.

    Args:
        folders: removed with all that is in them once the processes are gone.
    """

    def __init__(self, *folders: Path) -> None:
        mark = secrets.token_hex(16)
        self.variables = {MARK: mark}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, mark, str(os.getpid()), *map(str, folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != MARK},
            cwd="/",
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End what is left, and wait until it is gone."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def marked(mark: str) -> list[int]:
    """Return the ids of this user's processes that were started with this mark."""
    wanted = f"{MARK}={mark}"
    own = os.getpid()
    if Path("/proc/self/environ").is_file():
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and int(entry.name) != own:
                with suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
                    if wanted.encode() in file.read().split(b"\0"):
                        found.append(int(entry.name))
        return found
    listing = subprocess.run(
        ["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    )
    lines = [line.split(None, 1) for line in listing.stdout.splitlines()]
    return [int(line[0]) for line in lines if len(line) == 2 and wanted in line[1] and int(line[0]) != own]


def end_marked(mark: str) -> None:
    """End the processes with this mark, and those that they start meanwhile."""
    deadline = time.monotonic() + _GRACE_SECONDS
    asked: set[int] = set()
    while alive := [pid for pid in marked(mark) if not _over(pid)]:
        hard = time.monotonic() > deadline
        for pid in alive:
            if hard or pid not in asked:
                asked.add(pid)
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
        if time.monotonic() > deadline + _LONGEST_SECONDS:
            return
        time.sleep(0.05)


def _over(pid: int) -> bool:
    """Return whether a process has ended and only its parent's look at it is missing."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[:1] == [b"Z"]
    return False


def watch(mark: str, command: int, folders: Sequence[str]) -> None:
    """Wait until the command has closed our input or is gone, and clear up after it."""
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    while os.getppid() == command:  # a process that it forked may hold our input open
        if select.select([0], [], [], _LOOK_SECONDS)[0] and not os.read(0, 1):
            break
    end_marked(mark)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
