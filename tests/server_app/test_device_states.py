"""States beyond the memory limit go to disk and come back unchanged."""

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from server_app.engines.device_states import DeviceStates


def _state(value: int) -> RecordDict:
    return RecordDict({"personal": ArrayRecord({"weights": Array(np.full(1000, value, np.float32))})})


def _value(states: DeviceStates, node: int) -> float:
    weights = states.get(node)["personal"]["weights"].numpy()
    assert (weights == weights[0]).all()
    return float(weights[0])


def test_states_survive_on_disk_and_are_replaced():
    states = DeviceStates(3 * 4200)
    for node in range(10):
        states.put(node, _state(node))
    assert states.spilled == 7
    assert [_value(states, node) for node in range(10)] == list(range(10))
    states.put(2, _state(20))
    assert _value(states, 2) == 20
    assert states.spilled == 7  # 2 is back, another one went
    states.close()


def test_a_node_without_a_state_has_an_empty_one():
    states = DeviceStates(10)
    assert len(states.get(5)) == 0
    assert states.spilled == 0
