"""SIGINT, SIGTERM and SIGHUP end a command like an exception: once, and never in the middle of a change.

`Interrupted` is raised in the main thread as soon as no `held` section is open. Where another thread does the
work (Flower's simulation called from this process), `noted` keeps the main thread going, and that thread
looks for the signal with `check`. Where the work is done in a process that others start and end, a file tells
it to stop (`stop_file`, `request`).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# The terminal and the shell may both tell of one hang-up, and one Ctrl-C be pressed twice: a second SIGINT
# within this time is the same one. A later one means that the user does not want to wait.
_AGAIN_SECONDS = 1.0


class Interrupted(KeyboardInterrupt):
    """The process was told to stop.

    Attributes:
        number: of the signal.
        from_outside: whether it came as a signal to this process, rather than by a file.
    """

    def __init__(self, number: int, *, from_outside: bool = True) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.from_outside = from_outside

    @property
    def exit_status(self) -> int:
        """The status of a process that the signal ended, as shells show it."""
        return 128 + self.number


class _State:
    """What this process knows of signals."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.when = 0.0
        self.pending = False  # it is still to be raised
        self.held = 0
        self.noted_only = False
        self.raised = False  # by `check`: what follows is the tidying up
        self.file: Path | None = None


_state = _State()


def check(grid: object = None) -> None:
    """Raise `Interrupted`, once, if this process was told to stop and nothing was raised yet.

    Args:
        grid: Flower's; where it has a `should_stop`, a value or a function, it may tell so, too.
    """
    if _state.raised:
        return
    number = _state.received if _state.noted_only else None
    from_outside = number is not None
    if number is None and _state.file is not None:
        with suppress(OSError, ValueError):
            number = int(_state.file.read_text() or signal.SIGTERM)
    if number is None:
        asked = getattr(grid, "should_stop", False)
        number = signal.SIGTERM if (asked() if callable(asked) else asked) else None
    if number is not None:
        _state.raised = True
        raise Interrupted(number, from_outside=from_outside)


@contextmanager
def stop_file(path: Path) -> Iterator[None]:
    """Let `check` look for a file that tells this process to stop; it is removed at the end."""
    _state.file, _state.raised = path, False
    path.unlink(missing_ok=True)
    try:
        yield
    finally:
        _state.file = None
        path.unlink(missing_ok=True)


def request(path: Path, number: int) -> None:
    """Tell the process that looks for this file to stop, as by a signal."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(str(int(number)))
    temporary.replace(path)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals raise `Interrupted` here; one that is ignored from outside (`nohup`) stays so.

    Without effect in another thread than the main one, and inside another such section.
    """
    if threading.current_thread() is not threading.main_thread() or _installed():
        yield
        return
    _reset()
    previous = {
        number: handler
        for number in SIGNALS
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None)
    }
    for number in previous:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _reset()


@contextmanager
def held() -> Iterator[None]:
    """Finish what is inside before a signal is raised: a change that must not be left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if not _state.held and _state.pending and not _state.noted_only:
            _state.pending = False
            assert _state.received is not None
            raise Interrupted(_state.received)


@contextmanager
def noted() -> Iterator[None]:
    """Only note signals inside: another thread looks for them with `check`."""
    _state.noted_only = True
    try:
        yield
    finally:
        _state.noted_only = False


def ignore() -> None:
    """Leave the signals to the process that started this one, which ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def default() -> None:
    """Let the signals end this process at once: a fork that has nothing to tidy up."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _installed() -> bool:
    return any(signal.getsignal(number) is _handle for number in SIGNALS)


def _reset() -> None:
    _state.received, _state.pending, _state.held, _state.noted_only = None, False, 0, False
    _state.raised = False


def _handle(number: int, _frame: FrameType | None) -> None:
    now = time.monotonic()
    if _state.received is not None:
        impatient = number == signal.SIGINT and now - _state.when > _AGAIN_SECONDS
        if not impatient or _state.noted_only:
            return
    _state.received, _state.when = number, now
    if _state.noted_only:
        return
    if _state.held:
        _state.pending = True
    else:
        raise Interrupted(number)
