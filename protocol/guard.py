"""Clears up after a process that is gone, however it went: the one mechanism for every command and engine.

A handler of signals is not enough: a process that is killed (SIGKILL, out of memory) runs none, and Flower's
and Ray's processes have sessions of their own, so that no process group holds them together. Therefore a
command marks all that it starts with a variable in the environment, which children inherit, and starts a
guard: a small process in a session of its own that waits for the command to end. The guard then ends whatever
still bears the mark, politely first, removes the command's temporary folders, and sees that the summary of a
run does not say "running" for ever.

Only the standard library, and a script that imports nothing else of ours: it is there in milliseconds and
takes 10 MB.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

MARK = "AIRFLOWER_GUARD"
GRACE_SECONDS = 5.0
_LOOK_SECONDS, _LONGEST_SECONDS = 0.2, 60.0
_BECOMING_SECONDS = 0.01


@dataclass(frozen=True)
class OpenSummary:
    """The summary of a run that is going on.

    Attributes:
        path: of the summary, a JSON file.
        lock: file that names who owns the run's folder, as JSON with a `token`, and is locked meanwhile.
        token: of the owner that the run has.
        reason: what the summary says if the process that works on the run has gone without a word.
    """

    path: str
    lock: str
    token: str
    reason: str

    def close(self) -> None:
        """Let the summary say "killed" if it says "running", unless another process goes on with the run."""
        with suppress(OSError, ValueError), open(self.lock, "rb+") as lock:
            alone = _locked(lock.fileno())
            if not alone and json.load(lock).get("token") != self.token:
                return
            summary = json.loads(Path(self.path).read_text())
            if summary.get("status") != "running":
                return
            fresh = Path(f"{self.path}.closing")
            text = json.dumps({**summary, "status": "killed", "reason": self.reason}, indent=2)
            fresh.write_text(text + "\n")
            fresh.replace(self.path)


class Guard:
    """Guards what this process starts and keeps; closed, it ends and removes all of that.

    Args:
        folders: removed with all that is in them once the processes are gone.
        summary: closed after that.
        grace_s: how long processes may take to end after SIGTERM, before SIGKILL.

    Attributes:
        variables: for the environment of the processes to be ended.
    """

    def __init__(
        self, *folders: Path, summary: OpenSummary | None = None, grace_s: float = GRACE_SECONDS
    ) -> None:
        mark = secrets.token_hex(16)
        # Ray renames its processes, which would overwrite the environment that shows the mark.
        self.variables = {MARK: mark, "SPT_NOENV": "1"}
        task = {
            "command": os.getpid(),
            "mark": mark,
            "folders": [str(folder) for folder in folders],
            "summary": asdict(summary) if summary else None,
            "grace_s": grace_s,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
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
        with suppress(BrokenPipeError, ValueError):  # closed before
            self._process.stdin.write(b"\n")  # the pipe stays open where a fork has it
            self._process.stdin.close()
        self._process.wait()


def marked(mark: str, variable: str = MARK) -> list[int]:
    """Return the ids of this user's processes that were started with this mark and have not ended."""
    wanted = f"{variable}={mark}"
    own = os.getpid()
    if Path("/proc/self/environ").is_file():
        found = []
        for entry in os.scandir("/proc"):
            if entry.name.isdecimal() and int(entry.name) != own:
                with suppress(OSError), open(f"/proc/{entry.name}/environ", "rb") as file:
                    if wanted.encode() in file.read().split(b"\0"):
                        found.append(int(entry.name))
        return [pid for pid in found if not _over(pid)]
    command = ["ps", "axeww", "-o", "pid=,command="]
    listing = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    lines = [line.split(None, 1) for line in listing.stdout.splitlines()]
    return [int(line[0]) for line in lines if len(line) == 2 and wanted in line[1] and int(line[0]) != own]


def end_marked(mark: str, grace_s: float = GRACE_SECONDS, variable: str = MARK) -> None:
    """End the processes with this mark, and those that they start meanwhile.

    Args:
        mark: value of the variable in their environment.
        grace_s: how long they may take after SIGTERM, before SIGKILL.
        variable: its name.
    """
    deadline = time.monotonic() + grace_s
    asked: set[int] = set()
    while alive := _marked_surely(mark, variable):
        hard = time.monotonic() > deadline
        for pid in alive:
            if hard or pid not in asked:
                asked.add(pid)
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL if hard else signal.SIGTERM)
        if time.monotonic() > deadline + _LONGEST_SECONDS:
            return
        time.sleep(0.05)


def _marked_surely(mark: str, variable: str) -> list[int]:
    """Look twice before saying that nobody is there: who is just becoming another program shows no mark."""
    found = marked(mark, variable)
    if not found:
        time.sleep(_BECOMING_SECONDS)
        found = marked(mark, variable)
    return found


def _over(pid: int) -> bool:
    """Return whether a process has ended and only its parent's look at it is missing."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[:1] == [b"Z"]
    return False


def _locked(descriptor: int) -> bool:
    """Return whether the file could be locked; True where there are no locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def clear_up(mark: str, folders: Iterable[str], summary: Mapping[str, Any] | None, grace_s: float) -> None:
    """End the processes, remove the folders, close the summary."""
    end_marked(mark, grace_s)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    if summary is not None:
        OpenSummary(**summary).close()


def _watch(command: int, **task: Any) -> None:
    """Wait until the command says so or is gone, and clear up after it."""
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    while os.getppid() == command:  # a process that it forked may hold our input open
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            break
    clear_up(**task)


if __name__ == "__main__":
    _watch(**json.loads(sys.argv[1]))
