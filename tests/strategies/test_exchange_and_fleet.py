"""A round closes at its deadline, each answer counts once, and a device keeps its place."""

import shutil
import subprocess
import time
from uuid import uuid4

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from protocol.arrays import vector_record
from protocol.messages import DEVICE
from strategies.exchange import exchange
from strategies.fleet import Fleet, FleetError
from strategies.identity import RosterFile, fingerprint, read_roster


class SlowGrid(Grid):
    """A grid whose nodes answer some pulls after they were asked.

    `delay[node]` is the number of pulls before the answer; None: never. `device[node]` is what the node
    says that it is; an exception class: it answers with an error.
    """

    def __init__(self, device, delay=None, twice=False):
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.device, self.delay, self.twice = dict(device), delay or {}, twice
        self.pulls, self.pending, self.asked, self.collectors = 0, {}, [], []

    def get_node_ids(self):
        return list(self.device)

    @property
    def run(self):
        raise NotImplementedError

    def set_run(self, run):
        raise NotImplementedError

    def create_message(self, *args, **options):
        raise NotImplementedError

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError

    def push_messages(self, messages):
        message_ids = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self.pending[identifier] = (message, self.pulls)
            self.asked.append(message.metadata.dst_node_id)
            message_ids.append(identifier)
        return message_ids

    def pull_messages(self, message_ids):
        self.pulls += 1
        replies = []
        for identifier in message_ids:
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
    assert grid.pulls < 100  # it waits between two looks: without that they would be tens of thousands


class Watched:
    """A collector that brings two replies at a time and notes that it was closed."""

    def __init__(self, grid, message_ids, seconds):
        self.closed = False
        grid.collectors.append(self)
        self.left = [Message(RecordDict(), reply_to=grid.pending[name][0]) for name in message_ids]

    def take(self, seconds):
        assert self.left, "asked for more although all are there"
        taken, self.left = self.left[:2], self.left[2:]
        return taken

    def close(self):
        self.closed = True


def test_a_round_is_over_as_soon_as_all_have_answered(monkeypatch):
    monkeypatch.setattr("strategies.exchange.Collector", Watched)
    grid = SlowGrid({1: 0, 2: 1, 3: 2})
    assert len(list(exchange(grid, _messages([1, 2, 3]), 3600.0))) == 3
    assert grid.collectors[0].closed


def test_nobody_looks_for_replies_any_more_when_a_round_has_failed(monkeypatch):
    def fails(self, seconds):
        raise ConnectionError("the link is gone")

    monkeypatch.setattr("strategies.exchange.Collector", Watched)
    monkeypatch.setattr(Watched, "take", fails)
    grid = SlowGrid({1: 0})
    with pytest.raises(ConnectionError):
        exchange(grid, _messages([1]), 3600.0)
    assert grid.collectors[0].closed


class HangingGrid(SlowGrid):
    """The call that brings the reply of a node in `hang` takes for ever, with all that it brings."""

    def __init__(self, device, delay, hang):
        super().__init__(device, delay)
        self.hang = hang

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
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


def test_of_sixty_four_nodes_one_that_hangs_takes_none_along():
    nodes = {node: node for node in range(1, 65)}
    replies = list(exchange(HangingGrid(nodes, {}, hang={5}), _messages(nodes), 1.0))
    assert {reply.metadata.src_node_id for reply in replies} == nodes.keys() - {5}


def test_of_more_nodes_one_that_hangs_takes_few_along():
    nodes = {node: node for node in range(1, 101)}
    replies = list(exchange(HangingGrid(nodes, {}, hang={5}), _messages(nodes), 1.0))
    assert len(replies) >= 98


def test_a_call_that_fails_now_and_then_costs_nobody_anything():
    """A SuperLink that is busy answers 500."""

    class Busy(SlowGrid):
        def pull_messages(self, message_ids):
            self.calls = getattr(self, "calls", 0) + 1
            if self.calls % 2:
                raise ConnectionError("500 Internal Server Error")
            return super().pull_messages(message_ids)

    nodes = {1: 0, 2: 1, 3: 2}
    assert len(list(exchange(Busy(nodes), _messages(nodes), 60.0))) == 3


def test_an_introduction_that_breaks_off_holds_nobody_up():
    fleet, grid = Fleet(3), HangingGrid({11: 0, 12: 1, 13: 2}, {12: 3}, hang={13})
    fleet.wait(grid, 0.5, at_least=2, poll=0.01)
    started = time.monotonic()
    fleet.refresh(grid)
    assert time.monotonic() - started < 0.5
    assert fleet.connected == [0, 1]


def test_what_goes_wrong_in_a_call_is_raised():
    class Broken(SlowGrid):
        def pull_messages(self, message_ids):
            raise ConnectionError("the SuperLink is gone")

    with pytest.raises(ConnectionError, match="gone"):
        exchange(Broken({1: 0}), _messages([1]), 60.0)


def test_messages_that_were_not_taken_are_not_waited_for():
    class Refusing(SlowGrid):
        def push_messages(self, messages):
            message_ids = super().push_messages(messages)
            return [message_ids[0], None]

    assert len(list(exchange(Refusing({1: 0, 2: 1}), _messages([1, 2]), 60.0))) == 1


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

    def pull_messages(self, message_ids):
        first, *second = list(self.pending)
        now = time.monotonic()
        if second:
            self.second_at = min(self.second_at, now)
        due = {*second, *([first] if now > self.second_at + 0.15 else [])}
        return [self._answer(self.pending[name][0]) for name in message_ids if name in due]


def test_nothing_starts_while_a_known_node_has_an_old_question(monkeypatch):
    monkeypatch.setattr("strategies.fleet._ASK_AGAIN_SECONDS", 0.3)
    grid = ForgetfulGrid({11: 0})
    Fleet(1).wait(grid, 5.0, poll=0.01)
    assert grid.asked == [11, 11]
    assert time.monotonic() > grid.second_at + 0.15


class GivingUpGrid(SlowGrid):
    """The SuperLink says that the first question has expired; the second is answered at once."""

    def pull_messages(self, message_ids):
        first = next(iter(self.pending))
        gone = Error(ErrorCode.MESSAGE_UNAVAILABLE, "expired")
        return [
            Message(gone, reply_to=self.pending[name][0])
            if name == first
            else self._answer(self.pending[name][0])
            for name in message_ids
        ]


def test_nothing_starts_while_a_node_may_be_at_work_on_a_question_that_was_given_up(monkeypatch):
    monkeypatch.setattr("strategies.fleet._ASK_AGAIN_SECONDS", 0.3)
    grid, began = GivingUpGrid({11: 0}), time.monotonic()
    Fleet(1).wait(grid, 5.0, poll=0.01)
    assert grid.asked == [11, 11]
    assert time.monotonic() > began + 0.6


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


class KeyedGrid(SlowGrid):
    """Nodes with keys: `device[node]` as above, `key[node]` a public key, the oldest first."""

    def __init__(self, device, key):
        super().__init__(device)
        self.key = key

    def get_nodes(self):
        order = {node: place for place, node in enumerate(self.key)}
        return [
            NodeInfo(
                node_id=node, public_key=self.key[node], registered_at=f"2026-01-01T00:00:{order[node]:02d}"
            )
            for node in self.device
        ]


def _public_key():
    return (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


KEYS = [_public_key() for _ in range(4)]


def _joined(fleet, grid):
    for _ in range(3):
        fleet.refresh(grid)
    return {device: fleet.node_of(device) for device in fleet.connected}


def test_a_node_that_waits_for_an_index_does_not_get_it_when_its_device_reboots(caplog):
    grid = KeyedGrid({21: 0, 22: 1}, {21: KEYS[0], 22: KEYS[1], 5: KEYS[2]})
    fleet = Fleet(2)
    fleet.wait(grid, 1.0)
    grid.device[5] = 1  # registered, with a lower node id, and patient
    assert _joined(fleet, grid) == {0: 21, 1: 22}
    del grid.device[22]  # the device reboots
    assert _joined(fleet, grid) == {0: 21}
    assert fleet.device_of(5) is None  # nothing that it sends is taken for the device's
    grid.device[22] = 1  # with a key it is the same node
    assert _joined(fleet, grid) == {0: 21, 1: 22}
    (clash,) = [record.message for record in caplog.records if "clash" in record.message]
    assert fingerprint(KEYS[2]) in clash
    assert fingerprint(KEYS[1]) in clash
    assert "device 1" in clash


def test_of_two_nodes_that_come_at_once_the_key_that_was_registered_first_has_the_index():
    grid = KeyedGrid({7: 0, 99: 0, 50: 1}, {99: KEYS[0], 7: KEYS[1], 50: KEYS[2]})
    assert _joined(Fleet(2), grid) == {0: 99, 1: 50}


def test_a_key_has_one_index():
    """A node that was device 0 in the run before is not device 1 in the run that continues it."""
    before = Fleet(2)
    _joined(before, KeyedGrid({1: 0}, {1: KEYS[0]}))
    fleet = Fleet(2)
    fleet.restore(before.state())
    assert _joined(fleet, KeyedGrid({8: 1, 9: 0}, {8: KEYS[0], 9: KEYS[1]})) == {}
    assert _joined(fleet, KeyedGrid({10: 0, 11: 1}, {10: KEYS[0], 11: KEYS[2]})) == {0: 10, 1: 11}


def test_a_roster_settles_it_for_good():
    roster = {0: fingerprint(KEYS[0]), 1: fingerprint(KEYS[1])}
    grid = KeyedGrid({1: 0, 2: 1, 3: 0}, {3: KEYS[2], 1: KEYS[1], 2: KEYS[0]})
    assert _joined(Fleet(2, roster=roster), grid) == {}  # swapped, and a third one
    grid = KeyedGrid({1: 0, 2: 1, 3: 0}, {3: KEYS[2], 1: KEYS[0], 2: KEYS[1]})
    assert _joined(Fleet(2, roster=roster), grid) == {0: 1, 1: 2}
    before = Fleet(2)
    _joined(before, KeyedGrid({1: 0, 2: 1}, {1: KEYS[3], 2: KEYS[1]}))
    after = Fleet(2, roster=roster)  # device 0 was given a new key
    after.restore(before.state())
    assert _joined(after, KeyedGrid({5: 0, 2: 1, 1: 0}, {1: KEYS[3], 5: KEYS[0], 2: KEYS[1]})) == {0: 5, 1: 2}


def test_a_clash_is_named_where_devices_are_missing():
    fleet = Fleet(2)
    with pytest.raises(
        FleetError, match=r"1 of 2 devices .*says that it is device 0, but device 0 belongs to"
    ):
        fleet.wait(KeyedGrid({1: 0, 2: 0}, {1: KEYS[0], 2: KEYS[1]}), 0.3, poll=0.01)


def test_where_keys_do_not_count_an_index_is_free_when_its_node_is_gone():
    fleet = Fleet(1, by_key=False)
    grid = KeyedGrid({21: 0}, {21: KEYS[0], 5: KEYS[1]})
    fleet.wait(grid, 1.0)
    grid.device = {5: 0}
    assert _joined(fleet, grid) == {0: 5}
    assert fleet.state() == {}


def test_one_node_outside_the_fleet_does_not_keep_the_others_from_starting():
    fleet = Fleet(2)
    fleet.wait(SlowGrid({11: 0, 12: 1, 13: 7}), 5.0, poll=0.01)
    assert fleet.connected == [0, 1]


def _roster_line(index, pem, comment="node"):
    text = load_pem_public_key(pem).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return f"{index} {text} {comment}\n"


def test_a_roster_is_read_as_openssh_writes_keys(tmp_path):
    path = tmp_path / "roster"
    path.write_text("# the laboratory\n\n" + _roster_line(1, KEYS[1]) + _roster_line(0, KEYS[0]))
    assert read_roster(path, 2) == {0: fingerprint(KEYS[0]), 1: fingerprint(KEYS[1])}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_fingerprints_are_those_that_openssh_shows(tmp_path):
    path = tmp_path / "node.pub"
    path.write_text(_roster_line(0, KEYS[0])[2:])
    shown = subprocess.run(
        ["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert fingerprint(KEYS[0]) == shown.split()[1]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (_roster_line(2, KEYS[0]), "line 1: '2' is no index"),
        (_roster_line("-1", KEYS[0]), "line 1: '-1' is no index"),
        (_roster_line(0, KEYS[0]) + _roster_line(0, KEYS[1]), "line 2"),
        (_roster_line(0, KEYS[0]) + _roster_line(1, KEYS[0]), "line 2"),
        ("0 keys/nodes/node-000.pub\n", "line 1: no public key"),
        ("# nobody\n", "names no device"),
    ],
)
def test_a_wrong_roster_is_named(tmp_path, text, named):
    (tmp_path / "roster").write_text(text)
    with pytest.raises(ValueError, match=named):
        read_roster(tmp_path / "roster", 2)


def test_a_run_goes_by_a_roster_that_changes_meanwhile(tmp_path, caplog):
    """A device gets a new key: its new node has the index at once, the old one never again."""
    path = tmp_path / "roster"
    path.write_text(_roster_line(0, KEYS[0]) + _roster_line(1, KEYS[1]))
    grid = KeyedGrid({1: 0, 2: 1}, {1: KEYS[0], 2: KEYS[1], 3: KEYS[2]})
    fleet = Fleet(2, roster=RosterFile(path, 2))
    assert _joined(fleet, grid) == {0: 1, 1: 2}
    grid.device[3] = 1  # has started with the new key, before the operator has approved it
    assert _joined(fleet, grid) == {0: 1, 1: 2}
    path.write_text(
        _roster_line(0, KEYS[0]) + "# rotated: " + _roster_line(1, KEYS[1]) + _roster_line(1, KEYS[2])
    )
    assert _joined(fleet, grid) == {0: 1, 1: 3}
    assert fleet.device_of(2) is None
    path.write_text("1 half a li")  # is being edited
    assert _joined(fleet, grid) == {0: 1, 1: 3}
    assert "the former one holds" in caplog.text
    path.write_text("# revoked: " + _roster_line(0, KEYS[0]) + _roster_line(1, KEYS[2]))
    assert _joined(fleet, grid)[1] == 3
    after = Fleet(2, roster=RosterFile(path, 2))
    after.restore(fleet.state())
    assert _joined(after, grid)[1] == 3
