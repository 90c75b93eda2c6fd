"""The devices' Flower states between rounds: in memory up to a limit, the longest unused ones on disk."""

from __future__ import annotations

import pickle
import tempfile
from collections import OrderedDict
from pathlib import Path

from flwr.app import RecordDict


class DeviceStates:
    """States by node id; a node without one has an empty state.

    Args:
        memory_bytes: array bytes to keep in memory; beyond them states go to a temporary folder.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._limit = memory_bytes
        self._states: OrderedDict[int, RecordDict] = OrderedDict()  # least recently used first
        self._sizes: dict[int, int] = {}
        self._in_memory = 0
        self._spilled: set[int] = set()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def get(self, node: int) -> RecordDict:
        """Return a node's state; whoever changes it calls `put`."""
        if node in self._spilled:
            return pickle.loads(self._file(node).read_bytes())  # type: ignore[no-any-return]  # written below
        state = self._states.get(node)
        if state is None:
            return RecordDict()
        self._states.move_to_end(node)
        return state

    def put(self, node: int, state: RecordDict) -> None:
        """Keep a node's state."""
        self._in_memory -= self._sizes.pop(node, 0)
        size = sum(len(array.data) for record in state.array_records.values() for array in record.values())
        self._states[node] = state
        self._states.move_to_end(node)
        self._sizes[node] = size
        self._in_memory += size
        self._spilled.discard(node)
        while self._in_memory > self._limit and len(self._states) > 1:
            oldest, old_state = self._states.popitem(last=False)
            self._file(oldest).write_bytes(pickle.dumps(old_state, pickle.HIGHEST_PROTOCOL))
            self._in_memory -= self._sizes.pop(oldest)
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
