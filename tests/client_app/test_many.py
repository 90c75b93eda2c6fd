"""Many devices' orders answered together, against `device.train` for each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from client_app import app, device, many, state
from client_app.results import DivergedError
from protocol.arrays import mask_record, weights_record
from protocol.fields import MessageError
from protocol.messages import DeviceSpec, TrainOrder, TrainReport
from radio import payload

DEVICES = 12
SPEC = DeviceSpec(
    seed=3,
    run_key="test",
    num_devices=DEVICES,
    model={"name": "mlp", "options": {"hidden": 5}},
    personal=("fc2*",),
    dataset={"name": "digits"},
    partition={"name": "iid"},
    training={"optimizer": "sgd", "personal_learning_rate": 0.02, "global_learning_rate": 0.02},
)


def _context(index: int, **config) -> Context:
    node = {"partition-id": index, "num-partitions": DEVICES, **config}
    return Context(run_id=1, node_id=index, node_config=node, state=RecordDict(), run_config={})


def _size(spec=SPEC) -> int:
    return device.run_context(spec.to_json()).network.split.global_part.size


def _orders(spec=SPEC, **values) -> list[TrainOrder]:
    size = _size(spec)
    weights = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(0.05)
    order = TrainOrder(round=1, num_pruned=0, spec=spec.to_json(), weights=weights_record(weights), **values)
    return [replace(order, num_pruned=size * (k % 5) // 4) for k in range(DEVICES)]


def _contexts() -> list[Context]:
    return [_context(index) for index in range(DEVICES)]


def _personal(context: Context) -> np.ndarray | None:
    part = state.recall(context)
    return None if part is None else part.weights


def _decode(report: TrainReport) -> payload.Payload:
    assert report.payload is not None
    return payload.decode(report.payload.tobytes(), num_weights=_size())


def _assert_equal(mine: TrainReport | Exception, theirs: TrainReport) -> None:
    assert isinstance(mine, TrainReport)
    assert mine.num_examples == theirs.num_examples
    when = {"measured-began-at", "measured-ended-at"}  # said by a device that trains alone, as a node does
    assert mine.metrics.keys() - when == theirs.metrics.keys() - when
    for name in {"personal-loss", "global-loss"} & theirs.metrics.keys():
        assert mine.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-5)
    if theirs.payload is None:
        assert mine.payload is None
        return
    assert mine.payload is not None
    a, b = _decode(mine), _decode(theirs)
    assert len(a.values) == len(b.values)
    same = a.mask == b.mask
    assert same.mean() > 0.999
    full = [np.zeros(one.num_weights, np.float32) for one in (a, b)]
    for vector, one in zip(full, (a, b), strict=True):
        vector[one.mask] = one.values
    np.testing.assert_allclose(full[0][same], full[1][same], atol=1e-5)


@pytest.mark.parametrize("uplink", ["digital", "analog"])
@pytest.mark.parametrize("batch_devices", [1, 5, 100])
def test_reports_and_personal_parts_equal_those_of_each_device(batch_devices, uplink):
    spec = replace(SPEC, uplink=uplink)
    together, alone = _contexts(), _contexts()
    for number in (1, 2):  # the second round starts from what the first kept
        orders = [replace(order, round=number) for order in _orders(spec)]
        reports = many.train_many(orders, together, batch_devices=batch_devices)
        for report, order, context in zip(reports, orders, alone, strict=True):
            _assert_equal(report, device.train(order, context))
    for mine, theirs in zip(together, alone, strict=True):
        np.testing.assert_allclose(_personal(mine), _personal(theirs), atol=1e-5)


def test_one_device_per_batch_is_the_ordinary_path_bit_for_bit():
    together, alone = _contexts(), _contexts()
    for report, order, context in zip(
        many.train_many(_orders(), together, batch_devices=1), _orders(), alone, strict=True
    ):
        assert isinstance(report, TrainReport)
        expected = device.train(order, context)
        assert (report.payload is None) == (expected.payload is None)
        assert report.payload is None or report.payload.tobytes() == expected.payload.tobytes()


def test_a_mask_from_the_server_is_used():
    mask = np.random.default_rng(1).random(_size()) < 0.5
    orders = [replace(order, mask=mask_record(mask), num_pruned=int((~mask).sum())) for order in _orders()]
    for report in many.train_many(orders, _contexts(), batch_devices=100):
        assert isinstance(report, TrainReport)
        assert report.payload is not None
        np.testing.assert_array_equal(_decode(report).mask, mask)


def test_orders_with_other_weights_or_rounds_keep_apart():
    orders = _orders()
    other = weights_record(np.full(_size(), 0.01, np.float32))
    orders = [
        replace(order, weights=other if k % 2 else order.weights, round=1 + k % 3)
        for k, order in enumerate(orders)
    ]
    reports = many.train_many(orders, _contexts(), batch_devices=100)
    for report, order, context in zip(reports, orders, _contexts(), strict=True):
        _assert_equal(report, device.train(order, context))


def test_what_goes_wrong_on_one_device_stays_there():
    orders, contexts = _orders(), _contexts()
    size, own = _size(), device.run_context(SPEC.to_json()).initial_personal.size
    orders[1] = replace(orders[1], num_pruned=size + 1)
    orders[2] = replace(orders[2], weights=weights_record(np.zeros(3, np.float32)))
    orders[3] = replace(orders[3], weights=ArrayRecord({}))
    contexts[4] = _context(DEVICES)
    contexts[5] = _context(5, **{"uplink-bps": -1.0})
    state.remember(contexts[6], state.Part(np.full(own, np.nan, np.float32), 1))
    state.remember(contexts[7], state.Part(np.zeros(own + 1, np.float32), 1))
    contexts[8] = _context(8, **{"state-dir": "not/absolute"})
    reports = many.train_many(orders, contexts, batch_devices=100)
    kinds = (ValueError, MessageError, MessageError, MessageError, MessageError, DivergedError, ValueError)
    for report, kind in zip(reports[1:8], kinds, strict=True):
        assert isinstance(report, kind)
    assert isinstance(reports[8], state.StateError)
    assert _personal(contexts[1]) is None  # a device that fails keeps what it had
    assert np.isnan(_personal(contexts[6])).all()
    for index in (0, 9, 10, 11):
        _assert_equal(reports[index], device.train(_orders()[index], _context(index)))


def test_without_the_wanted_processor_every_device_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reports = many.train_many(_orders(), _contexts(), batch_devices=4, device="cuda")
    assert all(isinstance(report, RuntimeError | AssertionError) for report in reports)
    with pytest.raises(ValueError, match="batch_devices = 0"):
        many.train_many([], [], batch_devices=0)


def test_messages_are_answered_in_order_and_errors_are_replies():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    orders = _orders()
    messages = [
        Message(order.to_records(), dst_node_id=100 + k, message_type="train")
        for k, order in enumerate(orders)
    ]
    changed: list[Any] = [message.content["order"] for message in messages]
    changed[2]["round"] = "one"
    changed[3]["num-pruned"] = -1
    replies = app.train_many(messages, _contexts(), batch_devices=5)
    for k, (message, reply) in enumerate(zip(messages, replies, strict=True)):
        assert reply.metadata.reply_to_message_id == message.metadata.message_id
        if k in (2, 3):
            assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            assert ("'round'" if k == 2 else "num_pruned = -1") in reply.error.reason
        else:
            _assert_equal(TrainReport.from_records(reply.content), device.train(orders[k], _context(k)))
