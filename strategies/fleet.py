"""Which Flower node is which device.

Node ids are random, their order is that of a set, and nodes may register after the server has
started. Devices are therefore known by the index that they report (their ``partition-id``), asked
for once per node, and everything is ordered by that index. Nobody waits for an answer to that question
except before the first round: a node that does not answer costs the others nothing.

What a node says of itself is a claim. Where nodes have keys, an index belongs to the first key that held it,
for the whole run and those that continue it, whether its node is connected or not; a roster settles it for
good. A node that claims an index of another key, or another index than its own, is not used, and the log
says so.
Without keys (simulation) an index belongs to whoever holds it until that node is gone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from protocol import interrupts
from protocol.fields import MessageError
from protocol.messages import HELLO, HelloOrder, Introduction
from protocol.untrusted import last_line, safe_text
from strategies.exchange import Collector
from strategies.identity import RosterFile, fingerprint

log = logging.getLogger(__name__)

_ASK_AGAIN_SECONDS = 60.0
_NAMED_PROBLEMS = 3
_ANSWER_SECONDS = 0.1  # an answer that may be just arriving is waited for so long
_OWNERS = "fleet.owners"


class FleetError(RuntimeError):
    """The devices that the configuration names do not answer, or do not fit it."""


class Fleet:
    """The map between device indices and the nodes that are connected now.

    Args:
        num_devices: K.
        spec: JSON text of the `DeviceSpec`, which the nodes are asked about.
        roster: fingerprints of keys that own an index for good, or the file that says so.
        by_key: whether an index belongs to a key; without, to whoever holds it (nodes without keys).
    """

    def __init__(
        self,
        num_devices: int,
        *,
        spec: str = "",
        roster: Mapping[int, str] | RosterFile | None = None,
        by_key: bool = True,
    ) -> None:
        self.num_devices = num_devices
        self.introductions: dict[int, Introduction] = {}  # device index -> what its node said last
        self._question = HelloOrder(spec).to_records()
        self._problems: dict[int, str] = {}  # node id -> why it cannot take part
        self._by_key = by_key
        self._roster_file = roster if isinstance(roster, RosterFile) else None
        self._roster = dict(roster.owners if isinstance(roster, RosterFile) else roster or {})
        self._owner = dict(self._roster)  # device index -> fingerprint of the key that it belongs to
        self._key: dict[int, str] = {}  # node id -> fingerprint of its key
        self._seniority: dict[int, tuple[str, int]] = {}  # node id -> when its key was registered, node id
        self._claims: dict[int, Introduction] = {}  # node id -> what it says, until that is settled
        self._clashes: dict[int, str] = {}  # node id -> why it is not used
        self._index_of: dict[int, int] = {}  # node id -> device index, also of nodes that have left
        self._node_of: dict[int, int] = {}  # device index -> node id, connected now
        self._strangers: set[int] = set()  # node ids that are no device of this fleet
        self._misfit = ""  # what is wrong with the index of one of them
        self._questions: dict[str, int] = {}  # message id -> node that has not answered yet
        self._asked: dict[int, float] = {}  # node id -> when it was asked last
        self._lapsed: dict[int, float] = {}  # node id -> when it was asked what the SuperLink gave up
        self._collectors: list[tuple[float, Collector]] = []  # with when each closes by itself

    def wait(self, grid: Grid, timeout: float, *, at_least: int | None = None, poll: float = 0.2) -> None:
        """Wait until every device is connected, or `at_least` that many after `timeout` seconds.

        Raises:
            FleetError: if too few are there after `timeout` seconds; it says what is wrong with the others.
        """
        deadline = time.monotonic() + timeout
        while True:
            interrupts.check(grid)
            self.refresh(grid)
            if len(self._node_of) == self.num_devices and not self._asked_twice():
                return
            if time.monotonic() > deadline:
                break
            time.sleep(poll)
        if len(self._node_of) < (at_least or self.num_devices):
            raise FleetError(
                f"{len(self._node_of)} of {self.num_devices} devices (fleet.num_devices) are connected "
                f"after {timeout:g} s; start the others, or set fleet.num_devices accordingly"
                + "".join(f"; {problem}" for problem in self._what_is_wrong()[:_NAMED_PROBLEMS])
            )
        log.warning("starting with %d of %d devices", len(self._node_of), self.num_devices)

    def _asked_twice(self) -> bool:
        """Return whether a known node may still be at work on another of our questions.

        Flower's simulation gives a node its state when a message is begun, and takes it back when it is
        answered: an old question that is answered after the first training would undo it.
        """
        since = time.monotonic() - 2 * _ASK_AGAIN_SECONDS  # older ones have expired
        unanswered = [
            *self._lapsed.items(),
            *((node, self._asked[node]) for node in self._questions.values()),
        ]
        return any(node in self._index_of and asked > since for node, asked in unanswered)

    def refresh(self, grid: Grid) -> None:
        """Learn which nodes are connected, and which devices they are as far as they have told."""
        if self._roster_file is not None and self._roster_file.changed():
            self._take_roster(self._roster_file.owners)
        connected = self._look(grid)
        now = time.monotonic()
        unknown = [
            node
            for node in sorted(
                connected
                - self._index_of.keys()
                - self._strangers
                - self._claims.keys()
                - self._clashes.keys()
            )
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
        self._settle()
        # A device that has come back as another node takes its place once the old node is gone. While
        # both are connected the first stays: nobody takes over a device by naming its index.
        self._node_of = {device: node for device, node in self._node_of.items() if node in connected}
        for node in sorted(connected & self._index_of.keys()):
            device = self._index_of[node]
            if self._node_of.setdefault(device, node) != node:
                log.debug("node %d also calls itself device %d; it waits", node, device)

    def _take_roster(self, roster: Mapping[int, str]) -> None:
        """Go by a roster that has changed: who has lost an index is not used, who has one now is asked."""
        log.info("the roster has changed")
        former = self._roster
        self._roster = dict(roster)
        taken = {*roster.values()}
        self._owner = {
            device: key
            for device, key in self._owner.items()
            if device not in roster and key not in taken and former.get(device) != key
        } | self._roster
        lost = [
            node for node, device in self._index_of.items() if self._key.get(node) != self._owner.get(device)
        ]
        for node in lost:
            del self._index_of[node]
        self._node_of = {device: node for device, node in self._node_of.items() if node in self._index_of}
        for node in (*lost, *self._clashes):
            self._asked.pop(node, None)
        self._clashes.clear()

    def _look(self, grid: Grid) -> set[int]:
        """Return the nodes that are connected, and note their keys.

        Raises:
            FleetError: if there is a roster and nobody has a key.
        """
        if self._roster and getattr(grid, "immediate", False):
            raise FleetError("fleet.roster is for nodes with keys; the devices of a simulation have none")
        if not self._by_key or getattr(grid, "immediate", False) or not hasattr(grid, "get_nodes"):
            return set(grid.get_node_ids())
        nodes = list(grid.get_nodes())
        for node in nodes:
            if node.node_id not in self._key:
                self._key[node.node_id] = fingerprint(node.public_key)
                self._seniority[node.node_id] = (node.registered_at, node.node_id)
        return {node.node_id for node in nodes}

    def _settle(self) -> None:
        """Give the nodes that introduced themselves their index; the oldest key first."""
        for node in sorted(self._claims, key=lambda node: self._seniority.get(node, ("", node))):
            said = self._claims.pop(node)
            device = said.index
            key = self._key.get(node, "")
            if key or self._roster:
                owner = self._owner.get(device)
                own = next((index for index, name in self._owner.items() if name == key), None)
                if key and own is None and owner is None:
                    self._owner[device] = key
                elif own != device:
                    self._clash(node, device, key, owner, own)
                    continue
            self._index_of[node] = device
            self.introductions[device] = said
            for note in said.notes:
                log.warning("device %d: %s", device, safe_text(note))

    def _clash(self, node: int, device: int, key: str, owner: str | None, own: int | None) -> None:
        where = "by fleet.roster" if {device, own} & self._roster.keys() else "of this run"
        whose = (
            f"its key is that of device {own} {where}"
            if own is not None
            else f"device {device} belongs to the key {owner or 'of nobody'} {where}"
        )
        who = f"node {node} with {f'the key {key}' if key else 'no key'}"
        self._clashes[node] = f"{who} says that it is device {device}, but {whose}"
        log.warning(
            "clash: %s; the node is not used (two nodes with one partition-id, or a new key: "
            "fleet.roster says which key is which device)",
            self._clashes[node],
        )

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return which key owns which index, for the run that continues this one; nothing without keys."""
        if not self._owner:
            return {}
        text = json.dumps({str(device): key for device, key in sorted(self._owner.items())})
        return {_OWNERS: np.frombuffer(text.encode(), np.uint8)}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned; where the roster says something else, it is right."""
        if not self._by_key or _OWNERS not in state:
            return
        for device, key in json.loads(state[_OWNERS].tobytes()).items():
            if int(device) not in self._roster and key not in self._roster.values():
                self._owner[int(device)] = key

    def _answers(self, grid: Grid) -> Iterable[Message]:
        if getattr(grid, "immediate", False):
            return grid.pull_messages(message_ids=sorted(self._questions)) if self._questions else []
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
            if reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE:  # the node may have begun it all the same
                self._lapsed[node] = self._asked[node]
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
            self._claims[node] = said

    def _what_is_wrong(self) -> Sequence[str]:
        """Return why nodes that are there are no devices of this run."""
        return [*filter(None, [self._misfit]), *self._clashes.values(), *self._problems.values()]

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
