"""Rounds that do not wait, on real nodes: the same modes as `strategies.modes`, by the wall clock.

An order stays out until its reply is in or its time is up, over as many rounds as that takes; a node gets its
next order as soon as the round that took its last reply has closed. What is late is then an update of the
version that it was sent, as in simulation. A node that is at work is not asked for its accuracy: it would
answer when it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.serverapp import Grid

from protocol import interrupts
from strategies.exchange import Collector, Heard
from strategies.exchange import exchange as exchange_once
from strategies.fleet import Fleet
from strategies.plan import Assignment, RoundPlan
from strategies.records import Value
from strategies.versions import Start, Version, staleness_weight

_LOOK_SECONDS = 0.2  # a run that is told to stop notices within so long
_STATE = "versions-made"
AT_WORK = "at work"  # status of a device whose order is still out when its round closes


@dataclass(frozen=True, eq=False)
class _Out:
    """An order that is out.

    Attributes:
        assignment: what was ordered.
        version: that was sent with it.
        node: to which it was sent; None: to none, as the device is not connected.
        until: on the monotonic clock, when its time is up.
    """

    assignment: Assignment
    version: Version
    node: int | None
    until: float


class WallClock:
    """Rounds that close at a deadline, or with so many replies, whoever is still at work.

    Args:
        num_devices: K.
        at_work: devices that are at work at once, at most.
        threshold: s from a round's orders to its end; without a reply by then it ends at the next multiple.
        buffer: replies with which a round ends instead; None: at the deadline.
        exponent: a of the staleness weight (1 + s)^-a.
        timeout: s after which an order is given up.
        now: the clock, s.
    """

    round_columns: tuple[str, ...] = ("version", "staleness", "at_work")
    device_columns: tuple[str, ...] = ("version", "staleness")

    def __init__(
        self,
        num_devices: int,
        *,
        at_work: int | None = None,
        threshold: float,
        buffer: int | None = None,
        exponent: float = 0.5,
        timeout: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_devices = num_devices
        self.at_work = at_work or num_devices
        self.threshold = threshold
        self.buffer = buffer
        self.exponent = exponent
        self.timeout = timeout
        self.version = 0
        self._now = now
        self._out: dict[int, _Out] = {}
        self._staleness: float | None = None  # of the last round's uploads, in the mean
        self._collectors: list[tuple[Collector, set[str]]] = []  # with the messages that are not answered
        self._all_in = False  # a grid that makes replies when it is asked for them leaves none open

    @property
    def busy(self) -> frozenset[int]:
        """Devices whose order is out."""
        return frozenset(self._out)

    def plan(self, server_round: int, scheme: Any) -> RoundPlan:
        """Plan for devices that are not at work; who is not connected is told of where there is room."""
        idle = [device for device in range(self.num_devices) if device not in self._out]
        there = [device for device in idle if scheme.fleet.node_of(device) is not None]
        number = min(len(there), self.at_work - len(self._out))
        chosen = list(scheme.choose(server_round, there, number, 0)) if number > 0 else []
        if self.at_work == self.num_devices or not (chosen or self._out):
            chosen = sorted({*chosen, *(device for device in idle if device not in there)})
        plan: RoundPlan = scheme.plan(server_round, chosen)
        version = replace(scheme.present, number=self.version)
        for assignment in plan.assignments:
            node = scheme.fleet.node_of(assignment.device)
            self._out[assignment.device] = _Out(assignment, version, node, self._now() + self.timeout)
        return plan

    def exchange(
        self, grid: Grid, messages: Iterable[Message], fleet: Fleet, heard: Heard
    ) -> Iterable[Message]:
        """Send orders, and return the replies that are in when the round closes, also to earlier orders.

        `heard` as in `strategies.exchange.exchange`.
        """
        self._all_in = bool(getattr(grid, "immediate", False))
        if self._all_in:
            return exchange_once(grid, messages, self.timeout, heard)
        outgoing = list(messages)
        identifiers = [one for one in grid.push_messages(outgoing) if one] if outgoing else []
        if identifiers:  # one is None where the node has just left: its order is given up when its time is up
            self._collectors.append((Collector(grid, identifiers, self.timeout), set(identifiers)))
        return self._until_closed(fleet, heard)

    def _until_closed(self, fleet: Fleet, heard: Heard) -> list[Message]:
        replies: list[Message] = []
        answered: set[int | None] = set()
        deadline = self._now() + self.threshold
        while self._waiting(fleet) - answered:
            interrupts.check()
            if self.buffer is not None and len(answered) >= self.buffer:
                break
            if self.buffer is None and self._now() >= deadline:
                if replies:
                    break
                deadline += self.threshold
            taken = self._take()
            if not taken:
                heard(None)
            for reply in taken:
                heard(reply)
                replies.append(reply)
                answered.add(device_of(reply, fleet))
        return replies

    def _take(self) -> list[Message]:
        """Return replies that are there, waiting a little for the first."""
        share = _LOOK_SECONDS / max(1, len(self._collectors))
        replies = []
        for collector, open_messages in self._collectors:
            for reply in collector.take(share):
                open_messages.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        self._collectors = [found for found in self._collectors if found[1]]
        return replies

    def _waiting(self, fleet: Fleet) -> set[int]:
        """Return the devices that may still answer: with time left, as the nodes to which they were sent."""
        now = self._now()
        if self._all_in:
            return set()
        return {
            device
            for device, out in self._out.items()
            if out.node is not None and now < out.until and fleet.node_of(device) == out.node
        }

    def narrow(self, plan: RoundPlan, replies: Sequence[Message], fleet: Fleet) -> RoundPlan:
        """Return the plan of the devices whose work has ended: answered, given up, or never begun."""
        waiting = self._waiting(fleet) - {device_of(reply, fleet) for reply in replies}
        ended = {device: out for device, out in sorted(self._out.items()) if device not in waiting}
        self._out = {device: self._out[device] for device in sorted(waiting)}
        assignments = []
        for out in ended.values():
            staleness = self.version - out.version.number
            row = {**out.assignment.columns, "version": out.version.number, "staleness": staleness}
            start = Start(out.version, staleness, staleness_weight(staleness, self.exponent))
            assignments.append(replace(out.assignment, columns=row, start=start))
        stale = [assignment.start.staleness for assignment in assignments if assignment.start is not None]
        self._staleness = float(np.mean(stale)) if stale else None
        if not self._out:  # nobody's answer is waited for any more
            for collector, _ in self._collectors:
                collector.close()
            self._collectors = []
        return replace(plan, assignments=tuple(assignments))

    @property
    def at_work_columns(self) -> Mapping[int, Mapping[str, Value]]:
        """What is recorded of the devices at work, in this round."""
        return {
            device: {**out.assignment.columns, "version": out.version.number, "status": AT_WORK}
            for device, out in self._out.items()
        }

    def close(self, *, changed: bool) -> dict[str, Value]:
        """Count the versions."""
        self.version += changed
        return {"version": self.version, "staleness": self._staleness, "at_work": len(self._out)}

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return how many versions there were; orders that are out are out of reach of a run that goes on."""
        return {_STATE: np.array(self.version)}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        self.version = int(state[_STATE])


def device_of(reply: Message, fleet: Fleet) -> int | None:
    """Return whose reply it is: by its node; of an error of the SuperLink by the group of the message."""
    device = fleet.device_of(reply.metadata.src_node_id)
    if device is None and reply.has_error():
        group = reply.metadata.group_id.rpartition("/")[2]
        return int(group) if group.isdecimal() else None
    return device
