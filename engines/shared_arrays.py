"""Large arrays that several messages hold, such as the broadcast: in shared memory, once for all workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

from flwr.app import Array, Message

from protocol.parcels import array_records

_SHARE_FROM_BYTES = 1 << 15  # below, a copy in each message is cheaper than the block


@dataclass(frozen=True)
class Entry:
    """Where an array's serialised bytes lie in a block, and what they are."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    start: int
    size: int


@dataclass(frozen=True)
class Block:
    """Arrays in one piece of shared memory, by the identity that they have in the parent process.

    Attributes:
        name: of the shared memory.
        entries: by `id` of the array.
    """

    name: str
    entries: Mapping[int, Entry]

    def read(self) -> dict[int, Array]:
        """Return the arrays, copied out of the shared memory, by the same identities."""
        memory = SharedMemory(name=self.name)
        try:
            return {
                identity: Array(
                    dtype=entry.dtype,
                    shape=entry.shape,
                    stype=entry.stype,
                    data=bytes(_view(memory)[entry.start : entry.start + entry.size]),
                )
                for identity, entry in self.entries.items()
            }
        finally:
            memory.close()


@contextmanager
def shared_arrays(messages: Iterable[Message]) -> Iterator[Block | None]:
    """Hold the large arrays that more than one of the messages has in a block; None if there are none."""
    arrays = _common(messages)
    if not arrays:
        yield None
        return
    memory = SharedMemory(create=True, size=sum(len(array.data) for array in arrays.values()))
    try:
        entries, start = {}, 0
        for identity, array in arrays.items():
            size = len(array.data)
            _view(memory)[start : start + size] = array.data
            entries[identity] = Entry(array.dtype, tuple(array.shape), array.stype, start, size)
            start += size
        yield Block(memory.name, entries)
    finally:
        memory.close()
        memory.unlink()


def _common(messages: Iterable[Message]) -> dict[int, Array]:
    found: dict[int, Array] = {}
    uses: Counter[int] = Counter()
    for message in messages:
        for record in array_records(message):
            for array in record.values():
                found[id(array)] = array
                uses[id(array)] += 1
    return {i: array for i, array in found.items() if uses[i] > 1 and len(array.data) >= _SHARE_FROM_BYTES}


def _view(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None  # it is open
    return memory.buf
