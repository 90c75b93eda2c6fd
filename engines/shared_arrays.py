"""Large arrays that several messages hold, such as the broadcast: in shared memory, once for all workers.

The memory is anonymous and inherited by the workers' fork: it has no name, needs no room in ``/dev/shm``, and
is gone with the last process that has it, however that ended.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import Array, Message

from protocol.typed_messages import array_records

# Of addresses; memory is taken as it is written to. What has no room travels in each message.
_CAPACITIES = (1 << 28, 1 << 26, 1 << 24)
_SHARE_FROM_BYTES = 1 << 15  # below, a copy in each message is cheaper than the block


@dataclass(frozen=True)
class Entry:
    """Where an array's serialised bytes lie in a board, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    start: int
    size: int


@dataclass(frozen=True)
class Block:
    """Arrays on the board, by the identity that they have in the parent process.

    Attributes:
        number: of the block; a later one takes its place on the board.
        entries: by `id` of the array.
    """

    number: int
    entries: Mapping[int, Entry]


class Board:
    """Memory that a process writes and its forks read; one block at a time.

    Args:
        shared: made before a fork, which then has the same memory; else there is no room for anything.
    """

    def __init__(self, *, shared: bool) -> None:
        self._memory: mmap.mmap | None = None
        self._blocks = 0
        for size in _CAPACITIES if shared else ():
            with suppress(OSError):  # the process may not have so many addresses
                self._memory = mmap.mmap(-1, size)
                break

    def post(self, messages: Iterable[Message]) -> Block | None:
        """Write the large arrays that more than one of the messages has; None if there are none, or no room.

        No worker may be at work on what was posted before.
        """
        arrays = common_arrays(messages)
        needed = sum(len(array.data) for array in arrays.values())
        if not arrays or self._memory is None or needed > len(self._memory):
            return None
        entries, start = {}, 0
        for identity, array in arrays.items():
            size = len(array.data)
            self._memory[start : start + size] = array.data
            entries[identity] = Entry(array.dtype, tuple(array.shape), array.stype, start, size)
            start += size
        self._blocks += 1
        return Block(self._blocks, entries)

    def read(self, block: Block) -> dict[int, Array]:
        """Return copies of the arrays of a block, by the same identities."""
        assert self._memory is not None
        return {
            identity: Array(
                dtype=entry.dtype,
                shape=entry.shape,
                stype=entry.stype,
                data=self._memory[entry.start : entry.start + entry.size],
            )
            for identity, entry in block.entries.items()
        }


def common_arrays(messages: Iterable[Message]) -> dict[int, Array]:
    """Return the large arrays that more than one of the messages has, by identity."""
    found: dict[int, Array] = {}
    uses: Counter[int] = Counter()
    for message in messages:
        for record in array_records(message):
            for array in record.values():
                found[id(array)] = array
                uses[id(array)] += 1
    return {i: array for i, array in found.items() if uses[i] > 1 and len(array.data) >= _SHARE_FROM_BYTES}
