"""What leaves a device: weights of the global part and a few numbers; no image, no personal part."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client_app import device, state
from client_app.app import app
from protocol.arrays import weights_record
from protocol.messages import METRICS, REPORTED, UPLOAD, DeviceSpec, TrainOrder
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


@pytest.mark.parametrize("share", [0, 0.5])
def test_an_upload_holds_the_global_part_and_named_numbers_only(share):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    split = device.run_context(SPEC.to_json()).network.split
    size = split.global_part.size
    weights = weights_record(np.zeros(size, np.float32))
    pruned = int(share * size)
    order = TrainOrder(round=1, num_pruned=pruned, spec=SPEC.to_json(), weights=weights)
    node: dict[str, Any] = {"partition-id": 1, "num-partitions": 3}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={})
    reply = app(Message(order.to_records(), dst_node_id=1, message_type="train"), context)
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
