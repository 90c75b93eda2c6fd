"""What this process has started, by psutil."""

from __future__ import annotations

from contextlib import suppress

import psutil


def descendants(*pids: int) -> set[int]:
    """Return the ids of the processes that processes have started, and of those that these have."""
    return {child.pid for child in started_by(*pids)}


def started_by(*pids: int) -> list[psutil.Process]:
    """Return the processes that processes have started, and those that these have; one may end any time."""
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        with suppress(psutil.Error):
            found |= {child.pid: child for child in psutil.Process(pid).children(recursive=True)}
    return list(found.values())


def has_ended(process: psutil.Process) -> bool:
    """Return whether a process is over, and at most its parent's look at it is missing."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True


def command_of(process: psutil.Process) -> str:
    """Return the command line of a process, separated by spaces; none of one that is over."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def living() -> dict[int, str]:
    """Return the command line of every process of this machine that is not over, by its id."""
    return {process.pid: command_of(process) for process in psutil.process_iter() if not has_ended(process)}
