"""The devices' Flower states between rounds: in memory up to a limit, the longest unused ones on disk."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from pathlib import Path


class DeviceStates:
    """Pickled states by node id; not opened here, but passed on to whoever serves the node.

    Args:
        memory_bytes: bytes to keep in memory; beyond them states go to a temporary folder.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._limit = memory_bytes
        self._states: OrderedDict[int, bytes] = OrderedDict()  # least recently used first
        self._in_memory = 0
        self._spilled: set[int] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, node: int) -> bytes:
        """Return a node's state; empty for a node without one."""
        if node in self._spilled:
            return self._file(node).read_bytes()
        state = self._states.get(node, b"")
        if state:
            self._states.move_to_end(node)
        return state

    def put(self, node: int, state: bytes) -> None:
        """Keep a node's state."""
        self._in_memory += len(state) - len(self._states.get(node, b""))
        self._states[node] = state
        self._states.move_to_end(node)
        self._spilled.discard(node)
        while self._in_memory > self._limit and len(self._states) > 1:
            oldest, old_state = self._states.popitem(last=False)
            self._file(oldest).write_bytes(old_state)
            self._in_memory -= len(old_state)
            self._spilled.add(oldest)

    def close(self) -> None:
        """Remove what is on disk."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def spilled(self) -> int:
        """Number of states on disk."""
        return len(self._spilled)

    def _file(self, node: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="airflower-states-")
        return Path(self._folder.name, str(node))
