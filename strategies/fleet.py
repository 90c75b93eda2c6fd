"""Which Flower node is which device.

Node ids are random, their order is that of a set, and nodes may register after the server has
started. Devices are therefore known by the index that they report (their ``partition-id``), asked
for once per node, and everything is ordered by that index. Nobody waits for an answer to that question
except before the first round: a node that does not answer costs the others nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from protocol.messages import HELLO, HelloOrder, Introduction, MessageError
from protocol.untrusted import last_line, safe_text
from strategies.exchange import Collector

log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 60.0
_NAMED_PROBLEMS = 3
_ANSWER_SECONDS = 0.1  # an answer that may be just arriving is waited for so long


class FleetError(RuntimeError):
    """The devices that the configuration names do not answer, or do not fit it."""


class Fleet:
    """The map between device indices and the nodes that are connected now."""

    def __init__(self, num_devices: int, *, spec: str = "") -> None:
        self.num_devices = num_devices
        self.introductions: dict[int, Introduction] = {}  # device index -> what its node said last
        self._question = HelloOrder(spec).to_records()
        self._problems: dict[int, str] = {}  # node id -> why it cannot take part
        self._index_of: dict[int, int] = {}  # node id -> device index, also of nodes that have left
        self._node_of: dict[int, int] = {}  # device index -> node id, connected now
        self._strangers: set[int] = set()  # node ids that are no device of this fleet
        self._misfit = ""  # what is wrong with the index of one of them
        self._questions: dict[str, int] = {}  # message id -> node that has not answered yet
        self._asked: dict[int, float] = {}  # node id -> when it was asked last
        self._collectors: list[tuple[float, Collector]] = []  # with when each closes by itself

    def wait(self, grid: Grid, timeout: float, *, at_least: int | None = None, poll: float = 0.2) -> None:
        """Wait until every device is connected, or `at_least` that many after `timeout` seconds.

        Raises:
            FleetError: if too few are there after `timeout` seconds, or a node lies outside the fleet.
        """
        deadline = time.monotonic() + timeout
        while True:
            self.refresh(grid)
            if self._misfit:
                raise FleetError(self._misfit)
            if len(self._node_of) == self.num_devices and not self._asked_twice():
                return
            if time.monotonic() > deadline:
                break
            time.sleep(poll)
        if len(self._node_of) < (at_least or self.num_devices):
            raise FleetError(
                f"{len(self._node_of)} of {self.num_devices} devices (fleet.num_devices) are connected "
                f"after {timeout:g} s; start the others, or set fleet.num_devices accordingly"
                + "".join(f"; {problem}" for problem in list(self._problems.values())[:_NAMED_PROBLEMS])
            )
        log.warning("starting with %d of %d devices", len(self._node_of), self.num_devices)

    def _asked_twice(self) -> bool:
        """Return whether a known node may still be at work on another of our questions.

        Flower's simulation gives a node its state when a message is begun, and takes it back when it is
        answered: an old question that is answered after the first training would undo it.
        """
        since = time.monotonic() - 2 * _ASK_AGAIN_SECONDS  # older ones have expired
        return any(node in self._index_of and self._asked[node] > since for node in self._questions.values())

    def refresh(self, grid: Grid) -> None:
        """Learn which nodes are connected, and which devices they are as far as they have told."""
        connected = set(grid.get_node_ids())
        now = time.monotonic()
        unknown = [
            node
            for node in sorted(connected - self._index_of.keys() - self._strangers)
            if now - self._asked.get(node, -_ASK_AGAIN_SECONDS) >= _ASK_AGAIN_SECONDS
        ]
        if unknown:
            messages = [
                Message(self._question, dst_node_id=node, message_type=HELLO, ttl=_ASK_AGAIN_SECONDS)
                for node in unknown
            ]
            asked = []
            for node, identifier in zip(unknown, grid.push_messages(messages), strict=False):
                if identifier:
                    self._questions[identifier] = node
                    self._asked[node] = now
                    asked.append(identifier)
            if not getattr(grid, "immediate", False):
                # Longer than the question lives: one that was begun in time is answered later.
                collector = Collector(grid, asked, 2 * _ASK_AGAIN_SECONDS)
                self._collectors.append((now + 2 * _ASK_AGAIN_SECONDS, collector))
        for reply in self._answers(grid):
            self._introduce(reply)
        # A device that has come back as another node takes its place once the old node is gone. While
        # both are connected the first stays: nobody takes over a device by naming its index.
        self._node_of = {device: node for device, node in self._node_of.items() if node in connected}
        for node in sorted(connected & self._index_of.keys()):
            device = self._index_of[node]
            if self._node_of.setdefault(device, node) != node:
                log.debug("node %d also calls itself device %d; it waits", node, device)

    def _answers(self, grid: Grid) -> Iterable[Message]:
        if getattr(grid, "immediate", False):
            return grid.pull_messages(sorted(self._questions)) if self._questions else []
        found = [
            reply
            for _, collector in self._collectors
            for reply in collector.take(_ANSWER_SECONDS if self._questions else 0.0)
        ]
        now = time.monotonic()
        self._collectors = [(until, collector) for until, collector in self._collectors if until > now]
        return found

    def _introduce(self, reply: Message) -> None:
        node = self._questions.pop(reply.metadata.reply_to_message_id, None)
        if node is None:
            return
        if not reply.has_content():
            log.warning("node %d did not introduce itself: %s", node, last_line(reply.error.reason))
            return
        try:
            said = Introduction.from_records(reply.content)
        except MessageError as error:
            log.warning("node %d did not say which device it is: %s", node, safe_text(error))
            self._strangers.add(node)
            return
        index = said.index
        if not 0 <= index < self.num_devices:
            self._strangers.add(node)
            self._misfit = (
                f"a node is device {index} (its partition-id), but fleet.num_devices = {self.num_devices}; "
                "set fleet.num_devices to the size of the fleet"
            )
            log.warning("node %d is not used: %s", node, self._misfit)
        elif said.problem:
            self._has_problem(node, f"device {index} cannot take part: {safe_text(said.problem)}")
        else:
            self._problems.pop(node, None)
            self._index_of[node] = index
            self.introductions[index] = said
            for note in said.notes:
                log.warning("device %d: %s", index, safe_text(note))

    def _has_problem(self, node: int, problem: str) -> None:
        """Leave a node out until it says that it can take part; it is asked again in a while."""
        if self._problems.get(node) != problem:
            log.warning("%s; it is asked again every %g s", problem, _ASK_AGAIN_SECONDS)
        self._problems[node] = problem

    def device_of(self, node: int) -> int | None:
        """Return the device index of a node, or None for one that never introduced itself."""
        return self._index_of.get(node)

    def node_of(self, device: int) -> int | None:
        """Return the node id of a device, or None while it is not connected."""
        return self._node_of.get(device)

    @property
    def connected(self) -> Sequence[int]:
        """Indices of the connected devices, in order."""
        return sorted(self._node_of)
