"""A round closes at its deadline, each answer counts once, and a device keeps its place."""

import time
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from protocol.messages import DEVICE, vector_record
from strategies.exchange import exchange
from strategies.fleet import Fleet, FleetError


class SlowGrid:
    """A grid whose nodes answer some pulls after they were asked.

    `delay[node]` is the number of pulls before the answer; None: never. `device[node]` is what the node
    says that it is; an exception class: it answers with an error.
    """

    def __init__(self, device, delay=None, twice=False):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.device, self.delay, self.twice = dict(device), delay or {}, twice
        self.pulls, self.pending, self.asked = 0, {}, []

    def get_node_ids(self):
        return list(self.device)

    def push_messages(self, messages):
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self.pending[identifier] = (message, self.pulls)
            self.asked.append(message.metadata.dst_node_id)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, identifiers):
        self.pulls += 1
        replies = []
        for identifier in identifiers:
            message, since = self.pending[identifier]
            node = message.metadata.dst_node_id
            delay = self.delay.get(node, 0)
            if delay is not None and self.pulls - since > delay:
                replies += [self._answer(message)] * (2 if self.twice else 1)
        return replies

    def _answer(self, message):
        device = self.device[message.metadata.dst_node_id]
        if device is None:
            return Message(Error(5, "gone"), reply_to=message)
        return Message(RecordDict({DEVICE: ConfigRecord({"index": device})}), reply_to=message)


def _messages(nodes):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def test_replies_come_in_the_order_of_the_messages_and_once():
    grid = SlowGrid({1: 0, 2: 1, 3: 2}, {1: 3, 2: 0, 3: 1}, twice=True)
    replies = exchange(grid, _messages([1, 2, 3]), 10.0)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3]


def test_the_round_closes_with_whoever_answered():
    grid = SlowGrid({1: 0, 2: 1, 3: 2}, {2: None})
    started = time.monotonic()
    replies = exchange(grid, _messages([1, 2, 3]), 0.3)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 3]
    assert time.monotonic() - started >= 0.3


class HangingGrid(SlowGrid):
    """The call that brings the reply of a node in `hang` takes for ever, with all that it brings."""

    def __init__(self, device, delay, hang):
        super().__init__(device, delay)
        self.hang = hang

    def pull_messages(self, identifiers):
        replies = super().pull_messages(identifiers)
        if any(reply.metadata.src_node_id in self.hang for reply in replies):
            time.sleep(1000)
        return replies


def test_an_upload_that_breaks_off_holds_up_neither_the_round_nor_the_others():
    """Flower hands a reply out that was announced, and waits for its contents for minutes."""
    grid = HangingGrid({1: 0, 2: 1, 3: 2, 4: 3}, {3: 6}, hang={2, 4})
    started = time.monotonic()
    replies = exchange(grid, _messages([1, 2, 3, 4]), 1.0)
    assert [reply.metadata.src_node_id for reply in replies] == [1, 3]
    assert 1.0 <= time.monotonic() - started < 1.5


def test_of_many_nodes_one_that_hangs_takes_few_along():
    nodes = {node: node for node in range(1, 101)}
    replies = exchange(HangingGrid(nodes, {}, hang={5}), _messages(nodes), 1.0)
    assert len(replies) > 90


def test_an_introduction_that_breaks_off_holds_nobody_up():
    fleet, grid = Fleet(3), HangingGrid({11: 0, 12: 1, 13: 2}, {12: 3}, hang={13})
    fleet.wait(grid, 0.5, at_least=2, poll=0.01)
    started = time.monotonic()
    fleet.refresh(grid)
    assert time.monotonic() - started < 0.5
    assert fleet.connected == [0, 1]


def test_what_goes_wrong_in_a_call_is_raised():
    class Broken(SlowGrid):
        def pull_messages(self, identifiers):
            raise ConnectionError("the SuperLink is gone")

    with pytest.raises(ConnectionError, match="gone"):
        exchange(Broken({1: 0}), _messages([1]), 5.0)


def test_messages_that_were_not_taken_are_not_waited_for():
    class Refusing(SlowGrid):
        def push_messages(self, messages):
            identifiers = super().push_messages(messages)
            return [identifiers[0], None]

    assert len(exchange(Refusing({1: 0, 2: 1}), _messages([1, 2]), 60.0)) == 1


def test_an_absent_device_is_named_at_the_start():
    fleet = Fleet(3)
    with pytest.raises(FleetError, match="2 of 3 devices"):
        fleet.wait(SlowGrid({11: 0, 12: 2}), 0.1, poll=0.01)
    fleet.wait(SlowGrid({11: 0, 12: 2}), 0.1, at_least=2, poll=0.01)
    assert fleet.connected == [0, 2]


def test_a_node_outside_the_fleet_is_a_mistake_at_the_start_and_ignored_later():
    with pytest.raises(FleetError, match=r"device 7 .* fleet.num_devices = 2"):
        Fleet(2).wait(SlowGrid({11: 0, 12: 7}), 1.0, poll=0.01)
    fleet, grid = Fleet(2), SlowGrid({11: 0, 12: 1})
    fleet.wait(grid, 1.0)
    grid.device[13] = 7
    fleet.refresh(grid)
    fleet.refresh(grid)
    assert fleet.connected == [0, 1]
    assert grid.asked.count(13) == 1


def test_a_node_that_never_answers_holds_nobody_up():
    fleet, grid = Fleet(2), SlowGrid({11: 0, 12: 1}, {13: None})
    fleet.wait(grid, 1.0)
    grid.device[13] = 0
    for _ in range(5):
        fleet.refresh(grid)
    assert grid.asked.count(13) == 1
    assert fleet.connected == [0, 1]


class ForgetfulGrid(SlowGrid):
    """Answers the second question at once, and the first 0.15 s later."""

    second_at = float("inf")

    def pull_messages(self, identifiers):
        first, *second = list(self.pending)
        now = time.monotonic()
        if second:
            self.second_at = min(self.second_at, now)
        due = {*second, *([first] if now > self.second_at + 0.15 else [])}
        return [self._answer(self.pending[name][0]) for name in identifiers if name in due]


def test_nothing_starts_while_a_known_node_has_an_old_question(monkeypatch):
    monkeypatch.setattr("strategies.fleet._ASK_AGAIN_SECONDS", 0.3)
    grid = ForgetfulGrid({11: 0})
    Fleet(1).wait(grid, 5.0, poll=0.01)
    assert grid.asked == [11, 11]
    assert time.monotonic() > grid.second_at + 0.15


def test_a_device_that_comes_back_as_another_node_takes_its_place():
    fleet, grid = Fleet(2), SlowGrid({11: 0, 12: 1})
    fleet.wait(grid, 1.0)
    grid.device[5] = 1  # restarted without a key: a new node, while the old one is still listed
    fleet.refresh(grid)
    assert fleet.node_of(1) == 12  # naming an index takes no device over
    del grid.device[12]
    fleet.refresh(grid)
    assert fleet.node_of(1) == 5
    assert fleet.device_of(12) == 1  # a reply that it sent before is still its own


def test_a_device_that_joins_late_is_found():
    fleet, grid = Fleet(2), SlowGrid({11: 0}, {12: 1})
    fleet.wait(grid, 0.05, at_least=1, poll=0.01)
    grid.device[12] = 1
    fleet.refresh(grid)
    fleet.refresh(grid)
    assert fleet.connected == [0, 1]


def test_a_node_that_answers_with_an_error_is_no_device():
    fleet = Fleet(1)
    with pytest.raises(FleetError, match="0 of 1"):
        fleet.wait(SlowGrid({11: None}), 0.05, poll=0.01)


@pytest.mark.parametrize(
    "vector", [np.arange(5, dtype=np.float32), np.zeros(0, np.uint8), np.ones(3, np.uint8)]
)
def test_a_vector_record_is_what_flower_makes(vector):
    assert vector_record("x", vector) == ArrayRecord({"x": Array(vector)})
