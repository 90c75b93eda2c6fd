"""A typed message says what the message of the same body says."""

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.supercore.task_identity import TaskIdentity

from protocol.arrays import mask_record, read_weights, vectors_record, weights_record
from protocol.fields import MessageError
from protocol.messages import EvaluateOrder, ProbeOrder, TrainOrder, TrainReport
from protocol.typed_messages import TypedMessage, array_records, read, reply

ADDRESS: dict[str, Any] = {"dst_node_id": 7, "message_type": "train", "group_id": "1/0"}


@pytest.fixture(autouse=True)
def _sender():
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def _order_of(message) -> Any:
    """The order in the content, in which a test may put anything."""
    return message.content["order"]


def _order() -> TrainOrder:
    return TrainOrder(
        round=3, num_pruned=2, spec="{}", weights=weights_record(np.arange(5, dtype=np.float32))
    )


def _report() -> TrainReport:
    return TrainReport(np.arange(9, dtype=np.uint8), 4, {"global-loss": 0.5})


def test_its_records_are_those_of_the_message_and_its_body_comes_back():
    order = _order()
    typed, message = TypedMessage(order, **ADDRESS), Message(order.to_records(), **ADDRESS)
    assert read(typed, TrainOrder) is order
    travelled = read(pickle.loads(pickle.dumps(typed)), TrainOrder)
    from_records = read(message, TrainOrder)
    np.testing.assert_array_equal(read_weights(travelled.weights), read_weights(from_records.weights))
    assert (travelled.round, travelled.num_pruned) == (from_records.round, from_records.num_pruned)
    assert array_records(typed) == array_records(message)
    assert typed.content == message.content
    assert typed.metadata.group_id == message.metadata.group_id
    assert typed.has_content()
    assert not typed.has_error()


def test_a_changed_content_counts():
    typed = TypedMessage(_order(), **ADDRESS)
    _order_of(typed)["round"] = 4
    assert read(typed, TrainOrder).round == 4
    _order_of(typed)["round"] = "four"
    with pytest.raises(MessageError, match="'round'"):
        read(typed, TrainOrder)
    with pytest.raises(MessageError, match="metrics"):
        read(TypedMessage(_order(), **ADDRESS), TrainReport)


def test_typed_messages_answer_typed_messages_and_messages_answer_messages():
    for sent, kind in (
        (TypedMessage(_order(), **ADDRESS), TypedMessage),
        (Message(_order().to_records(), **ADDRESS), Message),
    ):
        answer = reply(sent, _report())
        assert type(answer) is kind
        assert answer.metadata.src_node_id == 7
        report = read(answer, TrainReport)
        assert report.metrics == {"global-loss": 0.5}
        np.testing.assert_array_equal(report.payload, _report().payload)


FURTHER: dict[str, Any] = {
    "mask": mask_record(np.array([True, False, True, True, False])),
    "probe": ProbeOrder("192.0.2.1:4", bytes(range(16)), 100),
    "buffers": vectors_record({"norm.running_mean": np.arange(3, dtype=np.float32)}),
    "vectors": vectors_record({"control": np.arange(5, dtype=np.float32)}),
}


@pytest.mark.parametrize("given", [(), *((name,) for name in FURTHER), tuple(FURTHER)])
def test_an_order_comes_back_from_its_records_with_all_that_it_had(given):
    order = dataclasses.replace(_order(), **{name: FURTHER[name] for name in given})
    assert TrainOrder.from_records(order.to_records()) == order


@pytest.mark.parametrize("buffers", [None, FURTHER["buffers"]])
def test_so_does_an_order_to_evaluate(buffers):
    order = EvaluateOrder(3, "{}", _order().weights, buffers=buffers)
    assert EvaluateOrder.from_records(order.to_records()) == order
