"""The timed transfer: a slow link is seen as slow, and only the ordered device is timed."""

import socket
import threading
import time

import pytest

from client_app.probe import send_probe
from protocol.messages import ProbeOrder
from strategies.probe_sink import ProbeSink


@pytest.fixture
def sink():
    with ProbeSink("127.0.0.1", 0, 1 << 17) as sink:
        yield sink


def _shaped(target: str, bits_per_second: float) -> str:
    """Forward one connection to `target` no faster than that; return where to connect."""
    listener = socket.create_server(("127.0.0.1", 0))
    host, _, port = target.rpartition(":")

    def serve() -> None:
        source, _ = listener.accept()
        with source, socket.create_connection((host, int(port))) as out:
            while block := source.recv(2048):
                time.sleep(8 * len(block) / bits_per_second)
                out.sendall(block)
            out.shutdown(socket.SHUT_WR)
            out.recv(1)
        listener.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_shaped_link_is_measured_at_its_rate(sink):
    order, rate = sink.order(4), 4e6
    assert send_probe(order, _shaped(order.address, rate)) == order.size
    assert 0 < sink.rate(4) <= 1.1 * rate  # a busy machine can only make it slower
    assert sink.rate(3) is None


def test_a_token_is_good_for_one_transfer(sink):
    order = sink.order(4)
    send_probe(order, order.address)
    measured = sink.rate(4)
    assert measured > 0
    send_probe(order, order.address)
    assert sink.rate(4) == measured
    sink.order(4)
    assert sink.rate(4) is None


def test_an_unknown_token_is_not_timed(sink):
    sink.order(4)
    send_probe(ProbeOrder(sink.address, bytes(16), 1 << 17), sink.address)
    assert sink.rate(4) is None


def test_an_unreachable_sink_costs_nothing_else():
    assert send_probe(ProbeOrder("127.0.0.1:1", bytes(16), 1000), "127.0.0.1:1") == 0
    assert send_probe(ProbeOrder("nonsense", bytes(16), 1000), "nonsense") == 0
