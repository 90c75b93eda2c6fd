"""Who owns a run folder: one process at a time, named in it, and only its own records.

A folder is claimed with a file lock of the operating system, which ends with its process however that ends;
the file says who holds it. A folder that says `running` without a living owner belongs to a run that was
killed. New folders are made exclusively: of two runs that begin in the same second, the second gets another
name.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: the process number alone says whether an owner lives
    fcntl = None  # type: ignore[assignment]

from protocol.guard import Guard, OpenSummary
from records.recorder import write_json
from schema import ConfigError

LOCK_FILE = "run.lock"
SUMMARY = "summary.json"
# Tells a process that its parent holds the lock of the folder that it is to work in.
_TOKEN = "AIRFLOWER_RUN_LOCK"
# What shows that a folder was used by a run; Hydra makes the folder and its own `.hydra` before.
_RECORDS = (SUMMARY, "rounds.csv", "draws.csv", "checkpoint")

RUNNING, KILLED = "running", "killed"
_GUARD_SECONDS = 5.0

_descriptors: dict[Path, int] = {}  # of the folders that this process owns


class FolderInUseError(ConfigError):
    """Another process works in the folder."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        pid: process number.
        host: name of its machine.
        since: when it began, local time.
        token: names this claim.
    """

    pid: int
    host: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


def new_folder(wanted: str | os.PathLike[str]) -> Path:
    """Make a folder that nobody else has: as named, or with ``-2``, ``-3``, ... behind its name.

    Raises:
        OSError: if the place cannot be written to.
    """
    path = Path(wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


@contextmanager
def owned(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Own a folder; it is made if it is not there. Within a process that owns it already, without effect.

    Args:
        folder: to claim.
        wait: whether to wait until its present owner has gone, rather than to give up.

    Raises:
        FolderInUseError: if another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    path = folder / LOCK_FILE
    if folder in _descriptors or _given_by_parent(path):
        yield
        return
    descriptor = _lock(path, wait)
    holder = Holder(os.getpid(), socket.gethostname(), _now(), secrets.token_hex(8))
    os.truncate(descriptor, 0)
    os.write(descriptor, json.dumps(vars(holder)).encode() + b"\n")
    _descriptors[folder] = descriptor
    try:
        yield
    finally:
        del _descriptors[folder]
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def lock_variables(folder: Path) -> dict[str, str]:
    """Return the environment of a process that is to work in a folder which this one owns."""
    holder = _read(folder / LOCK_FILE)
    return {_TOKEN: holder.token if holder is not None else ""}


def holder_of(folder: Path) -> Holder | None:
    """Return who holds a folder, or None if nobody that lives does."""
    path = folder / LOCK_FILE
    holder = _read(path)
    if holder is None:
        return None
    if fcntl is None or holder.host != socket.gethostname():
        return holder if _alive(holder) else None
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder
    except OSError:  # a file system without locks
        return holder if _alive(holder) else None
    else:
        return None
    finally:
        os.close(descriptor)


def status_of(folder: Path) -> tuple[str, str]:
    """Return how the run of a folder stands, and why; ``killed`` if it runs without a living process."""
    summary = read_summary(folder)
    status, reason = str(summary.get("status", "")), str(summary.get("reason", ""))
    if status == RUNNING and holder_of(folder) is None:
        dead = _read(folder / LOCK_FILE)
        return KILLED, _gone(dead)
    return status, reason


def settle(folder: Path) -> None:
    """Write down that the run of a folder was killed, if it was."""
    status, reason = status_of(folder)
    if status == KILLED:
        with suppress(OSError):
            write_json(folder / SUMMARY, {**read_summary(folder), "status": status, "reason": reason})


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Have the summary of a folder say "killed" if this process goes without having said how its run ended.

    To be used where the folder is owned, by this process or by the one that has started it.
    """
    own = Holder(os.getpid(), socket.gethostname(), _now(), "")
    holder = _read(folder / LOCK_FILE)
    summary = OpenSummary(
        str((folder / SUMMARY).resolve()),
        str((folder / LOCK_FILE).resolve()),
        holder.token if holder is not None else "",
        _gone(own),
    )
    with Guard(summary=summary):
        yield


def is_over(summary: Mapping[str, Any]) -> bool:
    """Return whether a summary says how its run has ended: completed, failed, interrupted or killed."""
    return summary.get("status") not in (None, RUNNING)


def _gone(holder: Holder | None) -> str:
    return f"{holder or 'its process'} is gone without having said how it ended"


def _now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


def read_summary(folder: Path) -> Mapping[str, Any]:
    """Return the summary of a folder; empty without a readable one."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def refuse_used(folder: Path) -> None:
    """See that no run has left its records in a folder.

    Raises:
        ConfigError: if one has.
    """
    if not any((folder / name).exists() for name in _RECORDS):
        return
    status, _ = status_of(folder)
    raise ConfigError(
        f"{folder} holds the records of another run ({status or 'of unknown end'}), which a second one would "
        f"overwrite. Choose another folder (hydra.run.dir=...), go on with that run (resume={folder}), or "
        "remove the folder"
    )


def forget_in_fork() -> None:
    """Let go of the locks in a fork: they are its parent's, and are to end with it."""
    for descriptor in _descriptors.values():
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_in_fork)


def _lock(path: Path, wait: bool) -> int:
    """Return a descriptor of the locked file, which is the one that `path` names."""
    told = False
    # The lock of a process that is gone: its guard has it for a moment, to write down how the run ended.
    deadline = time.monotonic() + _GUARD_SECONDS
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        if _try(descriptor, path):
            with suppress(OSError):
                if os.fstat(descriptor).st_ino == path.stat().st_ino:  # else its last owner has removed it
                    return descriptor
            os.close(descriptor)
            continue
        os.close(descriptor)
        holder = _read(path)
        if not wait and not (_is_gone(holder) and time.monotonic() < deadline):
            raise FolderInUseError(
                f"{path.parent} is being written by {holder or 'another process'}; wait for it, or choose "
                "another folder (hydra.run.dir=...)"
            )
        if wait and not told:
            print(f"airflower: {path.parent}: waiting for {holder or 'another process'}", flush=True)
            told = True
        time.sleep(0.2 if wait else 0.01)


def _try(descriptor: int, path: Path) -> bool:
    """Return whether the lock could be taken."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: the holder's number has to do
            pass
        else:
            return True
    holder = _read(path)
    return holder is None or not _alive(holder)


def _alive(holder: Holder) -> bool:
    """Return whether a holder may be alive: one on another machine is."""
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_gone(holder: Holder | None) -> bool:
    return holder is not None and not _alive(holder)


def _given_by_parent(path: Path) -> bool:
    token, holder = os.environ.get(_TOKEN), _read(path)
    return bool(token) and holder is not None and holder.token == token


def _read(path: Path) -> Holder | None:
    try:
        values = json.loads(path.read_bytes())
        return Holder(int(values["pid"]), str(values["host"]), str(values["since"]), str(values["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
