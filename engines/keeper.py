"""A process that outlives its parent just long enough to tidy up after it.

Flower's SuperLink starts processes in sessions of their own, and those start more (Ray has a dozen). A
command that is told to stop ends them itself. One that is *killed* cannot; so it starts them below a keeper,
which waits for the end of the pipe that its parent holds: then it ends what was started below it, and what
names the scratch folder on its command line, removes that folder and ends. On Linux it adopts what its
children leave behind. Without a command it only waits and tidies up.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from engines.process_table import descendants, processes
from protocol import interrupts

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 20.0
_LEFTOVER_SECONDS = 2.0  # what the command left behind may end by itself for so long
_SET_CHILD_SUBREAPER = 36  # of Linux's prctl


class Kept:
    """A command that runs below a keeper.

    Args:
        command: to run; its processes end when this one does, however that ends. Nothing: see above.
        folder: scratch folder, removed when this process is gone.
        cwd, env, output: of the command.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, *, cwd: Path, env: Mapping[str, str], output: IO[bytes]
    ) -> None:
        root = str(Path(__file__).resolve().parents[1])
        start = f"import sys; sys.path.insert(0, {root!r}); from engines.keeper import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", start, str(folder), *command],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def end(self) -> None:
        """End the command and all that it started, and wait until they are gone."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(2 * _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def main() -> None:
    """Run the command and wait for its end, or for that of the parent."""
    folder, *command = sys.argv[1:]
    _adopt_orphans()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) if command else None
    interrupts.ignore()
    parent_gone = threading.Event()
    threading.Thread(target=_wait_for_parent, args=(parent_gone,), daemon=True).start()
    while not parent_gone.wait(_LOOK_SECONDS):
        if process is not None and process.poll() is not None:
            break
    _end_all(process, folder)
    if process is not None and not parent_gone.is_set():
        os._exit(process.returncode if process.returncode >= 0 else 1)  # the parent says what is next
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _end_all(process: subprocess.Popen[bytes] | None, folder: str) -> None:
    """End the command politely, and then whatever is left."""
    if process is not None:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
    deadline = time.monotonic() + _GRACE_SECONDS
    polite = time.monotonic() + _LEFTOVER_SECONDS
    while (left := _left(folder)) and time.monotonic() < deadline:
        if time.monotonic() > polite:
            for pid in left:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        _reap()


def _left(folder: str) -> set[int]:
    """Return what is alive of the processes below this one, and of those that name the folder."""
    below = descendants(os.getpid())
    return {
        pid
        for pid, entry in processes().items()
        if pid != os.getpid() and not entry.over and (pid in below or folder in entry.command)
    }


def _reap() -> None:
    """Take note of the end of adopted processes."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _wait_for_parent(gone: threading.Event) -> None:
    with suppress(OSError):
        while os.read(0, 1 << 10):
            pass
    gone.set()


def _adopt_orphans() -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
