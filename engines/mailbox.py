"""Memory that a process shares with its forks, for what is too large for a pipe.

A pipe holds some hundred kilobytes: beyond them its writer stops until its reader has time. Here the writer
leaves its pickle behind and goes on; the reader is told its size through the pipe.
"""

from __future__ import annotations

import mmap
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

_CAPACITY = 1 << 26  # of addresses; memory is taken as it is written to
_pickler = partial(pickle.Pickler, protocol=pickle.HIGHEST_PROTOCOL)


class Mailbox:
    """Room for one object at a time.

    Args:
        shared: made before a fork, which then has the same memory; else there is no room for anything.
    """

    def __init__(self, *, shared: bool) -> None:
        self._memory = None
        if shared:
            with suppress(OSError):  # the process may not have so many addresses: the pipe then has to do
                self._memory = mmap.mmap(-1, _CAPACITY)

    def put(self, content: object, pickler: Callable[[Any], pickle.Pickler] = _pickler) -> int | None:
        """Leave an object in place of the last one; return the size of its pickle, or None without room."""
        if self._memory is None:
            return None
        self._memory.seek(0)
        try:
            pickler(self._memory).dump(content)
        except ValueError:  # the end of the memory
            return None
        return self._memory.tell()

    def take(self, size: int) -> Any:
        """Return the object whose pickle has `size` bytes; nothing of it refers to the mailbox."""
        assert self._memory is not None
        with memoryview(self._memory) as view, view[:size] as pickled:
            return pickle.loads(pickled)
