"""One round of the skeleton that every scheme shares: what goes out, what comes in, what is written down."""

import dataclasses
import logging
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from engines.inprocess import InProcessGrid
from protocol.arrays import read_weights, weights_record
from protocol.messages import METRICS, UNKNOWN_ROUND, EvaluateOrder, TrainOrder, TrainReport
from protocol.streams import generator
from radio import payload
from server_app.job import prepare
from server_app.settings import compose_settings
from server_app.strategy import build_strategy
from strategies.base import DivergedError
from strategies.continuation import Continuation, HeldPart
from strategies.plan import Outcome

DEVICES, N = 5, 260
CONTINUED = Continuation("/old", 2, "that", {1: HeldPart(2, "that"), 3: HeldPart(1, "before")})
START = np.linspace(-1, 1, N).astype(np.float32)
# Half of 260 weights each: device k keeps those at positions k, k + 2, k + 4, ...
KEPT = [(np.arange(N) + k) % 2 == 0 for k in range(DEVICES)]
MOVE = [1 + k / 10 for k in range(DEVICES)]  # what device k adds to its weights


@pytest.fixture(scope="module")
def grid():
    with InProcessGrid("client_app.app:app", DEVICES) as grid:
        yield grid


def _strategy(grid, *overrides, **options):
    settings = compose_settings(
        [
            "model=mlp", "model.personal=[fc1*]", "scheme=fixed_ratio", f"fleet.num_devices={DEVICES}",
            "seed=4",
            *overrides,
        ]
    )  # fmt: skip
    strategy = build_strategy(prepare(settings), **options)
    strategy.fleet.wait(grid, 10.0)
    return strategy


def _orders(strategy, grid, number=1):
    orders = strategy.configure_train(number, weights_record(START), ConfigRecord(), grid)
    return [_numbered(order) for order in orders]


def _numbered(order):
    order.metadata.__dict__["_message_id"] = str(uuid4())
    return order


def _answer(order, device, keep=None, num_examples=7, **metrics):
    mask = KEPT[device] if keep is None else keep
    upload = payload.encode((START + MOVE[device]).astype(np.float32), mask)
    content = TrainReport(np.frombuffer(upload, np.uint8), num_examples, metrics).to_records()
    return Message(content, reply_to=order)


def _mean(*devices):
    """Eq. (26) over these devices."""
    count = sum(KEPT[k].astype(int) for k in devices)
    total = sum(KEPT[k] * (START.astype(float) + MOVE[k]) for k in devices)
    return np.where(count > 0, total / np.maximum(count, 1), START)


def test_every_device_gets_its_own_order(grid):
    strategy = _strategy(grid, "fleet.round_timeout_s=17", run="this", continued=CONTINUED)
    plan = strategy.plan
    strategy.plan = lambda *a: dataclasses.replace(plan(*a), mask=np.arange(N) % 2 == 0)
    orders = strategy.configure_train(3, weights_record(START), ConfigRecord(), grid)
    assert len(orders) == DEVICES
    for device, order in enumerate(orders):
        assert order.metadata.dst_node_id == strategy.fleet.node_of(device)
        assert order.metadata.message_type == "train"
        assert order.metadata.group_id == f"3/{device}"
        assert order.metadata.ttl > 17.0  # an order outlives the round: clocks differ
        told = TrainOrder.from_records(order.content)
        assert (told.round, told.num_pruned, told.spec) == (3, 130, strategy.spec)
        assert (told.resume_dir, told.resume_round, told.run) == ("/old", 2, "this")
        assert told.resume_run == ("before" if device == 3 else "that")  # it was away when "that" ran
        assert told.resume_part == {1: 2, 3: 1}.get(device, UNKNOWN_ROUND)
        assert np.array_equal(read_weights(told.weights), START)
        assert told.mask["bitmap"].numpy().tolist() == [0b10101010] * 32 + [0b10100000]
        assert told.probe is None
    assert strategy.log.round == 3
    assert strategy.log.columns["measured_plan_seconds"] < 5


def test_what_can_be_used_is_used_and_every_fault_is_its_own_devices(grid, caplog):
    strategy = _strategy(grid)
    orders = _orders(strategy, grid)
    stranger = _answer(orders[0], 0)
    stranger.metadata.__dict__["_src_node_id"] = 12345
    replies = [
        _answer(orders[4], 4, **{"personal-loss": 0.25, "global-loss": 0.5, "measured-train-seconds": 2.0}),
        Message(Error(7, "Traceback\n  in line 3\nOSError: no space left\n"), reply_to=orders[1]),
        stranger,
        _answer(orders[3], 3, keep=np.arange(N) < 129),
        _answer(orders[0], 0, num_examples=9),
        _answer(orders[0], 2),
    ]
    with caplog.at_level(logging.WARNING):
        updated, summary = strategy.aggregate_train(1, replies)
    np.testing.assert_allclose(read_weights(updated), _mean(0, 4), rtol=0, atol=1e-6)
    assert dict(summary) == {"replies": 2}
    rows = strategy.log.devices
    assert [rows[k]["status"] for k in range(DEVICES)] == ["ok", "failed", "failed", "failed", "ok"]
    assert rows[1]["reason"] == "OSError: no space left"
    assert "no reply" in rows[2]["reason"]
    assert "129 weights; the plan says 130" in rows[3]["reason"]
    assert rows[0].get("reason") is rows[4].get("reason") is None
    assert (rows[4]["personal_loss"], rows[4]["global_loss"]) == (0.25, 0.5)
    assert rows[4]["measured_train_seconds"] == 2.0
    assert (rows[0]["num_examples"], rows[4]["num_examples"], rows[4]["kept_weights"]) == (9, 7, 130)
    assert "personal_loss" not in rows[0]
    columns = strategy.log.columns
    assert (columns["participants"], columns["replies"], columns["failed"]) == (5, 2, "1;2;3")
    assert columns["uncovered_share"] == 0.5
    assert columns["min_keepers"] == 0
    assert columns["wire_bytes"] == rows[0]["wire_bytes"] + rows[4]["wire_bytes"] > 2 * 4 * 130
    assert "node 12345 is not expected" in caplog.text


class Nodes:
    """The devices of a grid as nodes, whose replies come when they come."""

    def __init__(self, grid):
        self.get_node_ids = grid.get_node_ids


def test_download_and_upload_of_nodes_are_recorded(grid):
    strategy, clock = _strategy(grid), [1000.0]
    strategy._journeys._now = lambda: clock[0]
    orders = _orders(strategy, Nodes(grid))
    stamps = {"measured-began-at": 1003.0, "measured-ended-at": 1010.0}
    replies = [_answer(order, device, **stamps) for device, order in enumerate(orders)]
    for device, reply in enumerate(replies):
        clock[0] = 1011.0 + device
        strategy.heard(reply)
    strategy.aggregate_train(1, replies)
    for device in range(DEVICES):
        row = strategy.log.devices[device]
        assert row["measured_download_seconds"] == pytest.approx(3.0)
        assert row["measured_upload_seconds"] == pytest.approx(1.0 + device)
    assert {"measured_download_seconds", "measured_upload_seconds"} <= set(strategy.device_timing_columns)


def test_the_error_of_a_dead_node_comes_from_elsewhere_and_is_known_by_its_group(grid):
    strategy = _strategy(grid)
    orders = _orders(strategy, grid)
    error = Message(Error(3, ""), reply_to=orders[2])
    error.metadata.__dict__["_src_node_id"] = 1
    odd = Message(Error(3, "whose?"), reply_to=orders[1])
    odd.metadata.__dict__.update(_src_node_id=1, _group_id="1/x")
    strategy.aggregate_train(1, [odd, error, _answer(orders[0], 0)])
    assert strategy.log.devices[2]["reason"] == "error 3"
    assert "no reply" in strategy.log.devices[1]["reason"]


def test_a_device_that_is_not_there_is_said_and_holds_nobody_up(grid):
    strategy = _strategy(grid)
    present = strategy.fleet.node_of
    strategy.fleet.node_of = lambda device: None if device == 1 else present(device)
    orders = _orders(strategy, grid)
    assert [order.metadata.group_id for order in orders] == ["1/0", "1/2", "1/3", "1/4"]
    answers = [_answer(order, device) for order, device in zip(orders, (0, 2, 3, 4), strict=True)]
    updated, _ = strategy.aggregate_train(1, answers)
    assert strategy.log.devices[1]["reason"] == "not connected"
    assert strategy.log.columns["replies"] == 4
    np.testing.assert_allclose(read_weights(updated), _mean(0, 2, 3, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("answers", "moves"), [(2, False), (3, True)])
def test_too_few_replies_leave_the_global_part_as_it_was(grid, answers, moves):
    strategy = _strategy(grid, "fleet.min_replies=3")
    orders = _orders(strategy, grid)
    replies = [_answer(order, device) for device, order in enumerate(orders[:answers])]
    updated, summary = strategy.aggregate_train(1, replies)
    assert (updated is not None) == (summary is not None) == moves
    assert strategy.log.columns["replies"] == answers
    (order, *_) = strategy.configure_evaluate(1, weights_record(START), ConfigRecord(), grid)
    tested = read_weights(EvaluateOrder.from_records(order.content).weights)
    np.testing.assert_allclose(tested, _mean(0, 1, 2) if moves else START, rtol=0, atol=1e-6)


def test_the_servers_step_is_the_one_that_was_chosen(grid):
    """A quarter of the way from what there was to the mean of the uploads."""
    strategy = _strategy(grid, "server.learning_rate=0.25")
    orders = _orders(strategy, grid)
    updated, _ = strategy.aggregate_train(1, [_answer(orders[0], 0), _answer(orders[1], 1)])
    expected = START + 0.25 * (_mean(0, 1) - START)
    np.testing.assert_allclose(read_weights(updated), expected, rtol=0, atol=1e-6)


def test_weights_that_are_no_numbers_end_the_run(grid):
    strategy = _strategy(grid)
    orders = _orders(strategy, grid)
    receive = strategy.receive

    def overflows(*arguments):
        receiver = receive(*arguments)
        receiver.finish = lambda: Outcome(np.full(N, np.inf, np.float32), {})
        return receiver

    strategy.receive = overflows
    with pytest.raises(DivergedError, match="round 9"):
        strategy.aggregate_train(9, [_answer(orders[0], 0)])


def test_a_state_that_was_set_aside_is_said(grid, caplog):
    strategy = _strategy(grid)
    orders = _orders(strategy, grid)
    with caplog.at_level(logging.WARNING):
        strategy.aggregate_train(
            1, [_answer(orders[0], 1, **{"state-set-aside": 1.0}), _answer(orders[1], 1)]
        )
    assert [line for line in caplog.messages if "set aside" in line] == [
        "round 1, device 0: its stored personal part was damaged and set aside"
    ]


@pytest.mark.parametrize("few", [None, 2])
def test_who_takes_part(grid, few):
    strategy = _strategy(grid, f"fleet.devices_per_round={few or 'null'}")
    seen = []
    for number in range(1, 30):
        _orders(strategy, grid, number)
        seen.append(tuple(sorted(strategy.log.devices)))
        stream = generator(4, "participation", number)
        expected = range(DEVICES) if few is None else sorted(stream.choice(DEVICES, few, replace=False))
        assert seen[-1] == tuple(expected)
    assert len(set(seen)) == (1 if few is None else 10)


# --- evaluation ---


def _test_result(order, accuracy, loss, **more):
    order.metadata.__dict__["_message_id"] = str(uuid4())
    metrics = {"accuracy": accuracy, "loss": loss, "num-examples": 10, **more}
    return Message(RecordDict({METRICS: MetricRecord(metrics)}), reply_to=order)


def _evaluate(strategy, grid, number=1):
    return list(strategy.configure_evaluate(number, weights_record(START), ConfigRecord(), grid))


def test_rounds_of_evaluation(grid):
    strategy = _strategy(grid, "evaluate_every=3", "rounds=8")
    _orders(strategy, grid)
    asked = [number for number in range(1, 9) if _evaluate(strategy, grid, number)]
    assert asked == [3, 6, 8]


@pytest.mark.parametrize("participants", [False, True])
def test_who_is_tested(grid, participants):
    strategy = _strategy(
        grid, "fleet.devices_per_round=2", f"fleet.evaluate={'participants' if participants else 'all'}",
        "fleet.round_timeout_s=17", run="this", continued=CONTINUED,
    )  # fmt: skip
    _orders(strategy, grid, 6)
    orders = _evaluate(strategy, grid, 6)
    tested = sorted(strategy.log.devices) if participants else list(range(DEVICES))
    assert [order.metadata.group_id for order in orders] == [f"6/{device}" for device in tested]
    for device, order in zip(tested, orders, strict=True):
        assert order.metadata.message_type == "evaluate"
        assert order.metadata.dst_node_id == strategy.fleet.node_of(device)
        assert order.metadata.ttl > 17.0
        told = EvaluateOrder.from_records(order.content)
        assert (told.round, told.spec) == (6, strategy.spec)
        assert (told.resume_dir, told.resume_round, told.run) == ("/old", 2, "this")
        assert told.resume_run == ("before" if device == 3 else "that")  # it was away when "that" ran
        assert told.resume_part == {1: 2, 3: 1}.get(device, UNKNOWN_ROUND)
        assert np.array_equal(read_weights(told.weights), START)


def test_accuracies_are_averaged_over_those_that_can_be_used(grid):
    strategy = _strategy(grid)
    _orders(strategy, grid)
    orders = _evaluate(strategy, grid)
    first = _test_result(orders[0], 0.5, 1.0)
    replies = [
        _test_result(orders[4], 1.0, 0.125),
        first,
        _test_result(orders[0], 0.0, 9.0),
        _test_result(orders[1], 1.5, 1.0),
        _test_result(orders[2], 0.0, 2.0),
        Message(Error(5, "gone"), reply_to=_numbered(orders[3])),
    ]
    summary = strategy.aggregate_evaluate(1, replies)
    expected = {
        "accuracy_mean": 0.5, "accuracy_worst": 0.0, "loss_mean": 3.125 / 3, "evaluated": 3,
    }  # fmt: skip
    for name, value in expected.items():
        assert strategy.log.columns[name] == pytest.approx(value), name
        assert summary[name] == pytest.approx(value), name
    rows = strategy.log.devices
    assert (rows[0]["test_accuracy"], rows[0]["test_loss"]) == (0.5, 1.0)
    assert (rows[4]["test_accuracy"], rows[4]["test_loss"]) == (1.0, 0.125)
    assert rows[2]["test_accuracy"] == 0.0
    assert "test_accuracy" not in rows[1]
    assert "test_accuracy" not in rows[3]
    assert rows[3]["status"] == "failed"  # it has not trained either; its test says nothing of that
    assert strategy.aggregate_evaluate(1, []) is None


def test_a_device_that_trained_and_could_not_be_tested_has_trained(grid):
    strategy = _strategy(grid)
    orders = _orders(strategy, grid)
    strategy.aggregate_train(1, [_answer(order, device) for device, order in enumerate(orders)])
    tests = _evaluate(strategy, grid)
    strategy.aggregate_evaluate(1, [Message(Error(5, "gone"), reply_to=_numbered(tests[3]))])
    assert [row["status"] for _, row in sorted(strategy.log.devices.items())] == ["ok"] * DEVICES
    assert "reason" not in strategy.log.devices[3]


@pytest.mark.parametrize(("loss", "ends"), [(100.0, False), (100.5, True)])
def test_a_loss_that_all_share_ends_the_run_above_the_limit(grid, loss, ends):
    strategy = _strategy(grid, "fleet.divergence_loss=100")
    _orders(strategy, grid)
    replies = [_test_result(order, 0.1, loss) for order in _evaluate(strategy, grid)]
    if ends:
        with pytest.raises(DivergedError, match="round 1"):
            strategy.aggregate_evaluate(1, replies)
    else:
        strategy.aggregate_evaluate(1, replies)
        assert strategy.log.columns["loss_mean"] == pytest.approx(loss)
