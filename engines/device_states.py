"""The devices' Flower states between rounds: in memory up to a limit, the longest unused ones on disk.

The file on disk has no name: it is gone with the process, however that ends.
"""

from __future__ import annotations

import logging
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import IO

log = logging.getLogger(__name__)


@dataclass
class _Slot:
    """Where a state lies in the file."""

    start: int
    room: int
    size: int


class DeviceStates:
    """Pickled states by node id; not opened here, but passed on to whoever serves the node.

    Args:
        memory_bytes: bytes to keep in memory; beyond them states go to a temporary file.
    """

    def __init__(self, memory_bytes: int) -> None:
        self._limit: float = memory_bytes
        self._states: OrderedDict[int, bytes] = OrderedDict()  # least recently used first
        self._in_memory = 0
        self._spilled: set[int] = set()
        self._slots: dict[int, _Slot] = {}
        self._end = 0
        self._file: IO[bytes] | None = None

    def get(self, node: int) -> bytes:
        """Return a node's state; empty for a node without one."""
        if node in self._spilled:
            return self._read(self._slots[node])
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
            oldest, old_state = next(iter(self._states.items()))
            try:
                self._write(oldest, old_state)
            except OSError as error:
                log.warning(
                    "the temporary folder takes no more states of devices (%s): they stay in memory, beyond "
                    "engine.state_memory_mib",
                    error,
                )
                self._limit = float("inf")
                return
            self._spilled.add(oldest)
            del self._states[oldest]
            self._in_memory -= len(old_state)

    def clear(self) -> None:
        """Forget every state."""
        self.close()
        self._states.clear()
        self._spilled.clear()
        self._slots.clear()
        self._in_memory = self._end = 0

    def close(self) -> None:
        """Remove what is on disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def spilled(self) -> int:
        """Number of states on disk."""
        return len(self._spilled)

    def _write(self, node: int, state: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="airflower-states-", buffering=0)  # noqa: SIM115
        slot = self._slots.get(node)
        if slot is None or slot.room < len(state):
            slot = _Slot(self._end, len(state), 0)
        self._file.seek(slot.start)
        rest = memoryview(state)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._end = max(self._end, slot.start + slot.room)
        slot.size = len(state)
        self._slots[node] = slot

    def _read(self, slot: _Slot) -> bytes:
        assert self._file is not None
        self._file.seek(slot.start)
        content = bytearray()
        while len(content) < slot.size:
            block = self._file.read(slot.size - len(content))
            if not block:
                raise OSError("the temporary file of device states was cut short")
            content += block
        return bytes(content)
