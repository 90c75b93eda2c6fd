"""The emulated clock of rounds that do not wait for everybody: who is at work, and when each will be done.

Pure: no device is asked for anything here. What takes how long follows from the plans, so the order of events
is that of the emulated clock, (time, device), whatever the machines that do the training are at.

Times are kept relative to the start of the window that is open, so that a device which starts with it takes
exactly what its plan says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

# A device whose plan fills the window to the last bit is in time, whichever way the last bit was rounded.
_ROUNDING = 1e-9
# Times within a nanosecond are the same: equal devices come in the order of their indices on every machine.
_TICK = 1e-9


@dataclass(frozen=True)
class Work:
    """What a device is at.

    Attributes:
        device: its index.
        left: seconds from the start of the open window until it is done.
        awaited: whether the global part can gain from waiting for it.
        uploads: whether something will come in from it.
    """

    device: int
    left: float
    awaited: bool = True
    uploads: bool = True


class Clock:
    """Works of devices, taken in the order in which they end.

    Attributes:
        time: emulated seconds from the start of the run to the start of the open window.
    """

    def __init__(self, time: float = 0.0, works: Iterable[Work] = ()) -> None:
        self.time = time
        self._works: dict[int, Work] = {}
        for work in works:
            self.start(work)

    @property
    def works(self) -> Mapping[int, Work]:
        """What is going on, by device."""
        return self._works

    def start(self, work: Work) -> None:
        """Put a device to work.

        Raises:
            ValueError: if it is at work already, or would never be done.
        """
        if work.device in self._works:
            raise ValueError(f"device {work.device} is at work already")
        if not 0.0 <= work.left < math.inf:
            raise ValueError(f"device {work.device} would be done after {work.left} s")
        self._works[work.device] = work

    @property
    def awaited(self) -> list[Work]:
        """The works that are worth waiting for; all of them if none is."""
        return [work for work in self._works.values() if work.awaited] or list(self._works.values())

    def first(self) -> Work | None:
        """Return the work that ends first, of equals that of the lower index; None if nobody is at work."""
        return min(self._works.values(), key=_order, default=None)

    def pop(self) -> Work:
        """Take the work that ends first.

        Raises:
            ValueError: if nobody is at work.
        """
        work = self.first()
        if work is None:
            raise ValueError("nobody is at work")
        return self._works.pop(work.device)

    def until(self, seconds: float) -> list[Work]:
        """Take the works that end within so many seconds of the start of the window, in order."""
        done = []
        while (work := self.first()) is not None and work.left <= seconds * (1 + _ROUNDING):
            done.append(self.pop())
        return done

    def close(self, seconds: float) -> None:
        """Close the window after so many seconds; the next one opens."""
        self.time += seconds
        self._works = {
            device: replace(work, left=left if (left := work.left - seconds) > _TICK / 2 else 0.0)
            for device, work in self._works.items()
        }


def _order(work: Work) -> tuple[int, int]:
    return round(work.left / _TICK), work.device


def window(clock: Clock, threshold: float) -> float:
    """Return how long a window that closes at a deadline lasts, s.

    It closes at the first multiple of the threshold by which a device is done; or before, as soon as nobody
    is at work any more for whom it would be worth to stay open. So nobody waits where all are in time, and
    nothing is recorded of windows in which nothing happens.

    Args:
        clock: of the devices at work.
        threshold: s, positive.
    """
    first = clock.first()
    if first is None:
        return threshold
    multiples = max(1, math.ceil(first.left / threshold * (1 - _ROUNDING)))
    last = max(work.left for work in clock.awaited)
    deadline = multiples * threshold
    return last if last <= deadline * (1 + _ROUNDING) else deadline
