"""Keeps the status of a run true when its ServerApp is killed: nobody else may be there to say so.

The ServerApp starts a small process in a session of its own that waits until the ServerApp has ended. If the
summary then still says "running", it never will be anything else: the process writes that the run has failed.
Only the standard library, so that it costs 10 MB and a few milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REASON = "the ServerApp ended without a result: it was stopped or killed"


@contextmanager
def watched(summary: Path) -> Iterator[None]:
    """Watch over a summary while this process lives, at most until the end of the section."""
    # A guard of the processes of a command (engines/guard.py) would take the watcher for one of them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOWER_")}
    watcher = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(summary.resolve())],
        stdin=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert watcher.stdin is not None
        with suppress(BrokenPipeError):
            watcher.stdin.close()
        watcher.wait()


def close_summary(path: Path) -> None:
    """Let the summary of a run that nobody works on any more say so."""
    with suppress(OSError, ValueError):
        summary = json.loads(path.read_text())
        if summary.get("status") == "running":
            text = json.dumps({**summary, "status": "failed", "reason": REASON}, indent=2) + "\n"
            fresh = path.with_name(f"{path.name}.closing")
            fresh.write_text(text)
            fresh.replace(path)


if __name__ == "__main__":
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    while os.read(0, 1):  # nobody writes: this waits for the other end to close, as it does with its process
        pass
    close_summary(Path(sys.argv[1]))
