"""Rounds that do not wait, by the wall clock: an order stays out, and its reply is taken when it is there."""

import threading
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message

from engines.inprocess import InProcessGrid
from protocol.arrays import read_weights, weights_record
from protocol.messages import TrainOrder
from records.checkpoint import FinishedRound, Writer
from records.checkpoint.manifest import file_name
from records.recorder import Recorder
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies.wall_clock import AT_WORK, WallClock

DEVICES = 3


class HoldingGrid:
    """A grid whose messages are answered when they are asked for, but for those to devices that are held."""

    def __init__(self, inner: InProcessGrid) -> None:
        self.inner = inner
        self.held: set[int | None] = set()
        self.sent: list[Message] = []
        self._pending: dict[str, Message] = {}
        self._open: set[str] = set()  # messages whose reply was not taken yet
        self._time = 0.0
        self._lock = threading.Lock()

    def get_node_ids(self):
        return self.inner.get_node_ids()

    def push_messages(self, messages):
        message_ids = []
        for message in messages:
            identifier = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = identifier
            self.sent.append(message)
            self._open.add(identifier)
            self._pending[identifier] = message
            message_ids.append(identifier)
        return message_ids

    def now(self):
        """Time passes while nobody but devices that are held is to answer, on a busy machine as on any."""
        with self._lock:
            awaited = [i for i in self._open if i not in self._pending or not self._is_held(i)]
            self._time += 0.0 if awaited else 0.02
            return self._time

    def heard(self, reply):
        if reply is not None:
            with self._lock:
                self._open.discard(reply.metadata.reply_to_message_id)

    def _is_held(self, identifier):
        return self._pending[identifier].metadata.dst_node_id in self.held

    def pull_messages(self, message_ids):
        replies: list[Message] = []
        with self._lock:  # replies are looked for in several threads
            for identifier in message_ids:
                if identifier in self._pending and not self._is_held(identifier):
                    replies += self.inner.send_and_receive([self._pending.pop(identifier)])
        return replies


@pytest.fixture
def fleet():
    with InProcessGrid("client_app.app:app", DEVICES) as inner:
        yield HoldingGrid(inner)


def _strategy(grid, *overrides):
    settings = compose_settings(
        [
            "model=mlp", "channel=measured", "measured.probe=false", f"fleet.num_devices={DEVICES}",
            "partition.samples_per_device=20", "partition.test_samples_per_device=10",
            "radio.latency_threshold_ms=50", *overrides,
        ]
    )  # fmt: skip
    strategy = build_strategy(prepare(settings))
    strategy.fleet.wait(grid.inner, 10.0)
    whole: Any = strategy
    whole.heard = grid.heard
    if isinstance(strategy.mode, WallClock):
        strategy.mode._now = grid.now
    return strategy


def _round(strategy, grid, number, weights):
    """Do a round; return the global part after it and the row of each device."""
    orders = list(strategy.configure_train(number, weights_record(weights), ConfigRecord(), grid.inner))
    asked = [int(order.metadata.group_id.rpartition("/")[2]) for order in orders]
    updated, _ = strategy.aggregate_train(number, strategy.exchange(grid, orders, 600.0))
    rows = {device: dict(row) for device, row in strategy.log.devices.items()}
    return read_weights(updated), asked, rows


def test_a_slow_node_keeps_its_order_while_others_go_on_and_its_work_is_used(fleet):
    strategy = _strategy(fleet, "server.mode=deadline")
    versions = [np.zeros(strategy.num_weights, np.float32)]
    node = strategy.fleet.node_of(2)
    fleet.held.add(node)
    for number in (1, 2):
        weights, asked, rows = _round(strategy, fleet, number, versions[-1])
        versions.append(weights)
        assert asked == ([0, 1, 2] if number == 1 else [0, 1])
        assert [rows[device]["status"] for device in range(3)] == ["ok", "ok", AT_WORK]
        assert strategy.log.columns["at_work"] == 1
        assert list(strategy._evaluated()) == [0, 1]
    fleet.held.clear()
    number = 3
    weights, asked, rows = _round(strategy, fleet, number, weights)
    assert asked == [0, 1]  # device 2 is not asked again while its order is out
    assert [rows[device]["status"] for device in range(3)] == ["ok"] * 3
    assert (rows[2]["version"], rows[2]["staleness"]) == (0, number - 1)
    assert (rows[0]["version"], rows[0]["staleness"]) == (number - 1, 0)
    told = next(m for m in fleet.sent if m.metadata.dst_node_id == node)
    assert np.array_equal(read_weights(TrainOrder.from_records(told.content).weights), versions[0])
    assert strategy.log.columns["version"] == number
    assert strategy.log.columns["replies"] == 3
    assert _round(strategy, fleet, number + 1, weights)[1] == [0, 1, 2]  # its next order, at once


def test_a_checkpoint_does_not_wait_for_who_is_at_work_and_keeps_its_part_of_before(fleet, tmp_path):
    strategy = _strategy(fleet, "server.mode=deadline")
    recorder = Recorder(
        tmp_path,
        round_columns=strategy.round_columns,
        device_columns=strategy.device_columns,
        device_timing_columns=strategy.device_timing_columns,
    )
    writer = Writer(tmp_path, {}, recorder, every=1)
    weights, node = np.zeros(strategy.num_weights, np.float32), strategy.fleet.node_of(2)
    parts = []
    for number, held in ((1, True), (2, False), (3, True)):
        fleet.held = {node} if held else set()
        weights = _round(strategy, fleet, number, weights)[0]
        writer.note(strategy.log)
        before = len(fleet.sent)
        manifest = writer.save(FinishedRound(number, weights, {}, recorder.marks), fleet, strategy, 20.0)
        fleet._open &= set(fleet._pending)  # the checkpoint's own messages are answered
        asked = {message.metadata.dst_node_id for message in fleet.sent[before:]}
        assert asked == {strategy.fleet.node_of(device) for device in range(DEVICES)} - fleet.held
        assert not manifest.missing
        parts.append(manifest.devices[2])
    assert [part.round for part in parts] == [0, 1, 1]  # the order of the first round was done in the second
    assert parts[2] == parts[1]
    stored = tmp_path / "checkpoint" / "round-000003" / "personal" / file_name(2, 1)
    assert stored.stat().st_size == parts[2].size


def test_a_buffer_closes_a_round_with_so_many_replies(fleet):
    strategy = _strategy(fleet, "server.mode=buffered", "server.buffer=2")
    fleet.held.add(strategy.fleet.node_of(0))
    weights, asked, rows = _round(strategy, fleet, 1, np.zeros(strategy.num_weights, np.float32))
    assert asked == [0, 1, 2]
    assert [rows[device]["status"] for device in range(3)] == [AT_WORK, "ok", "ok"]
    fleet.held.clear()
    fleet.held.add(strategy.fleet.node_of(1))
    _, asked, rows = _round(strategy, fleet, 2, weights)
    assert asked == [1, 2]
    assert rows[0]["staleness"] == 1


def test_an_order_whose_time_is_up_or_whose_node_has_left_costs_its_device_that_work(fleet):
    strategy = _strategy(fleet, "server.mode=deadline", "fleet.round_timeout_s=0.3")
    fleet.held.add(strategy.fleet.node_of(1))
    weights = np.zeros(strategy.num_weights, np.float32)
    rows: dict = {1: {"status": AT_WORK}}
    number = 0
    while rows[1]["status"] == AT_WORK:
        number += 1
        weights, _, rows = _round(strategy, fleet, number, weights)
        assert rows[0]["status"] == rows[2]["status"] == "ok"
    assert (rows[1]["status"], rows[1]["reason"]) == ("failed", "no reply before the round closed")
    present = strategy.fleet.node_of
    strategy.fleet.node_of = lambda device: None if device == 1 else present(device)
    _, asked, rows = _round(strategy, fleet, number + 1, weights)
    assert asked == [0, 2]
    assert (rows[1]["status"], rows[1]["reason"]) == ("failed", "not connected")


def test_where_all_answer_in_time_a_round_is_the_one_that_waits(fleet):
    waits, goes = _strategy(fleet), _strategy(fleet, "server.mode=deadline")
    start = np.zeros(waits.num_weights, np.float32)
    assert np.array_equal(_round(waits, fleet, 1, start)[0], _round(goes, fleet, 1, start)[0])
    goes.restore({**waits.state(), **goes.state()})
    assert goes.mode.version == 1
