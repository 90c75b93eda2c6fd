"""What leaves a device: weights of the global part and a few numbers; no image, no personal part."""

import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client_app import device, state
from client_app.app import app
from client_app.board import Meter
from protocol.arrays import weights_record
from protocol.messages import METRICS, REPORTED, UPLOAD, DeviceSpec, TrainOrder, TrainReport
from radio import payload

SPEC = DeviceSpec(
    seed=3,
    run_key="test",
    num_devices=3,
    model={"name": "mlp", "options": {"hidden": 5}},
    personal=("fc2*",),
    dataset={"name": "digits"},
    partition={"name": "iid"},
    training={"optimizer": "sgd", "personal_learning_rate": 0.02, "global_learning_rate": 0.02},
)


def _train(share: float = 0.0, **further: Any) -> tuple[Message, Context]:
    """Train as a node does, one message; return its reply and its Context."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    size = device.run_context(SPEC.to_json()).network.split.global_part.size
    weights = weights_record(np.zeros(size, np.float32))
    order = TrainOrder(round=1, num_pruned=int(share * size), spec=SPEC.to_json(), weights=weights)
    node: dict[str, Any] = {"partition-id": 1, "num-partitions": 3, **further}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    return app(Message(order.to_records(), dst_node_id=1, message_type="train"), context), context


@pytest.mark.parametrize("share", [0, 0.5])
def test_an_upload_holds_the_global_part_and_named_numbers_only(share):
    reply, context = _train(share)
    split = device.run_context(SPEC.to_json()).network.split
    size = split.global_part.size
    pruned = int(share * size)
    assert set(reply.content) == {UPLOAD, METRICS}
    array: Any
    (array,) = reply.content[UPLOAD].values()
    sent = payload.decode(array.numpy().tobytes(), num_weights=size)
    assert sent.mask.sum() == size - pruned
    # Its size leaves no room for anything else: the weights that were kept, where they are, and a header.
    assert array.numpy().size <= 4 * (size - pruned) + size / 8 + 64
    metrics = set(reply.content[METRICS]) - {"num-examples"}
    assert metrics <= REPORTED
    part = state.recall(context)
    assert part is not None
    personal = part.weights
    assert personal.size == split.personal.size
    assert not np.isin(np.asarray(sent.values, np.float32), personal[personal != 0]).any()


def test_joules_of_a_round_and_when_it_began_and_ended_reach_the_server(monkeypatch):
    monkeypatch.setattr(Meter, "joules", lambda meter: 2.5)
    before = time.time()
    reply, _ = _train(energy=True)
    assert reply.metadata.message_type == "train"  # by which the server knows what was on its way
    read = TrainReport.from_records(reply.content).metrics
    assert read["measured-energy-j"] == 2.5
    assert before <= read["measured-began-at"] < read["measured-ended-at"] <= time.time()
    assert "measured-energy-j" not in TrainReport.from_records(_train()[0].content).metrics


def test_a_number_that_the_server_would_not_read_is_not_reported():
    with pytest.raises(ValueError, match=r"nobody reads \['joules'\]"):
        TrainReport(None, 3, {"joules": 1.0})
