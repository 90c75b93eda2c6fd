"""Which device is served first, where they take unequally long: those that took longest the last time.

Whichever worker is free serves the next device. As they come, the last may be the longest, and the other
workers wait for it: up to 2 - 1/m times the least time that m workers need, longest first at most
4/3 - 1/(3m) times (Graham 1969, "Bounds on multiprocessing timing anomalies"). What devices answer does not
depend on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from flwr.app import Message

_UNEQUAL = 1.5  # times the median: below it, who waits for the longest waits for little


class Placement:
    """Keeps how long each device took at each kind of message."""

    def __init__(self) -> None:
        self._seconds: dict[str, dict[int, float]] = {}

    def clear(self) -> None:
        """Forget all devices."""
        self._seconds.clear()

    def note(self, message: Message, seconds: float) -> None:
        """Keep what the device of this message took for it."""
        known = self._seconds.setdefault(message.metadata.message_type, {})
        known[message.metadata.dst_node_id] = seconds

    def unequal(self, kind: str) -> bool:
        """Return whether some device takes so much longer than most that it matters when it begins."""
        known = self._seconds.get(kind, {}).values()
        return bool(known) and max(known) > _UNEQUAL * statistics.median(known)

    def longest_first(self, messages: Iterable[Message]) -> list[Message]:
        """Return messages of one kind in the order of service; devices that are not known come first."""

        def seconds(message: Message) -> float:
            known = self._seconds.get(message.metadata.message_type, {})
            return known.get(message.metadata.dst_node_id, float("inf"))

        return sorted(messages, key=seconds, reverse=True)
