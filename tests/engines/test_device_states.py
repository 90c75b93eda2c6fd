"""States beyond the memory limit go to disk and come back unchanged."""

from engines.device_states import DeviceStates


def _state(value: int) -> bytes:
    return bytes([value]) * 4000


def test_states_survive_on_disk_and_are_replaced():
    states = DeviceStates(3 * 4000)
    for node in range(10):
        states.put(node, _state(node))
    assert states.spilled == 7
    assert [states.get(node) for node in range(10)] == [_state(node) for node in range(10)]
    states.put(2, _state(20))
    assert states.get(2) == _state(20)
    assert states.spilled == 7  # 2 is back, another one went
    states.close()


def test_a_node_without_a_state_has_an_empty_one():
    states = DeviceStates(10)
    assert states.get(5) == b""
    assert states.spilled == 0
