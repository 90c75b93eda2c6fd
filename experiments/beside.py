"""Two things at once at the start of a command, on two cores: what Python's threads cannot do."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any


def beside(work: Callable[[Callable[[Any], None]], None], meanwhile: Callable[[], object]) -> Any:
    """Return the object that `work`, in a process of its own, hands over; do `meanwhile` in this one.

    If `work` fails, or ends without a word, this process exits with the same status as soon as it does.

    Args:
        work: called in a fork of this process with a function that takes one object that can be pickled.
        meanwhile: called here. It must not depend on `work`.

    Raises:
        SystemExit: with the status of `work`, if there is no object.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os._exit(_status_of(work, write_end))
    os.close(write_end)
    with open(read_end, "rb") as pipe, _exit_with(child):
        meanwhile()
        handed_over = pipe.read()
        status = _exit_status(os.waitpid(child, 0)[1])
    if status or not handed_over:
        sys.exit(status)
    return pickle.loads(handed_over)


def _status_of(work: Callable[[Callable[[Any], None]], None], write_end: int) -> int:
    """Do `work` in the fork and return its exit status; what called this function must not go on there."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the other process says that it was interrupted
    status = 1
    try:
        with open(write_end, "wb") as pipe:
            work(lambda made: pickle.dump(made, pipe, pickle.HIGHEST_PROTOCOL))
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BrokenPipeError:  # the other process has gone
        pass
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    return status


@contextlib.contextmanager
def _exit_with(child: int) -> Iterator[None]:
    """Exit at once when the child fails: its message is out, and nobody wants to wait for an import."""

    def look(_signal: int, _frame: FrameType | None) -> None:
        try:
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # asked for already
            return
        if ended is not None and (ended.si_status or ended.si_code != os.CLD_EXITED):
            os._exit(_exit_status(os.waitpid(child, 0)[1]))

    previous = signal.signal(signal.SIGCHLD, look)
    try:
        look(signal.SIGCHLD, None)  # it may have ended before anybody listened
        yield
    finally:
        signal.signal(signal.SIGCHLD, previous)


def _exit_status(wait_status: int) -> int:
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
