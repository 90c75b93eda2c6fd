"""The processes of this machine: read from /proc where there is one, as containers often lack ``ps``."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Entry:
    """A process.

    Attributes:
        parent: id of the process that has it as a child now.
        over: whether it has ended, and only its parent's look at it is missing.
        command: its command line, separated by spaces.
    """

    parent: int
    over: bool
    command: str


def processes(proc: Path = _PROC) -> dict[int, Entry]:
    """Return the processes by their ids; none where neither /proc nor ``ps`` tells.

    Args:
        proc: where Linux shows processes.
    """
    return _from_proc(proc) if (proc / "self" / "stat").is_file() else _from_ps()


def descendants(*pids: int) -> set[int]:
    """Return the ids of the processes that processes have started, and of those that these have."""
    children: dict[int, list[int]] = {}
    for pid, entry in processes().items():
        children.setdefault(entry.parent, []).append(pid)
    found: set[int] = set()
    look = [*pids]
    while look:
        born = [child for child in children.get(look.pop(), []) if child not in found]
        found.update(born)
        look += born
    return found


def _from_proc(proc: Path) -> dict[int, Entry]:
    found = {}
    for item in os.scandir(proc):
        if item.name.isdecimal():
            with suppress(OSError, ValueError, IndexError):  # it may end while it is looked at
                # The name, in brackets, may hold spaces and brackets.
                state, parent = (proc / item.name / "stat").read_bytes().rpartition(b")")[2].split()[:2]
                command = (proc / item.name / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(item.name)] = Entry(int(parent), state == b"Z", command.decode(errors="replace"))
    return found


def _from_ps() -> dict[int, Entry]:
    command = ["ps", "-ewwo", "pid=,ppid=,stat=,args="]
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return {}
    found = {}
    for line in result.stdout.splitlines():
        fields = line.split(None, 3)
        if len(fields) == 4 and not fields[3].startswith("ps -e"):
            found[int(fields[0])] = Entry(int(fields[1]), fields[2].startswith("Z"), fields[3])
    return found
