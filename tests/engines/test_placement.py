"""The longest first: near the best that m workers can do, and only where devices differ."""

import itertools
import time

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from engines.inprocess import InProcessGrid
from engines.placement import Placement
from engines.workers import FIRST_NODE


@pytest.fixture(autouse=True, scope="module")
def sender():
    """Somebody who sends: Flower's messages are not made without."""
    with InProcessGrid("client_app.app:app", 1):
        yield


def message(node: int, kind: str = "train") -> Message:
    return Message(RecordDict({"x": ArrayRecord()}), dst_node_id=node, message_type=kind)


def makespan(seconds: list[float], workers: int) -> float:
    """Return when the last of the workers is done, if whoever is free takes the next."""
    free = [0.0] * workers
    for one in seconds:
        free[free.index(min(free))] += one
    return max(free)


def shortest(seconds: list[float], workers: int) -> float:
    """Return the least time of all assignments."""
    places = itertools.product(range(workers), repeat=len(seconds))
    loads = (
        [sum(s for s, at in zip(seconds, place, strict=True) if at == worker) for worker in range(workers)]
        for place in places
    )
    return min(map(max, loads))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(2, 3))
def test_the_longest_first_is_within_a_third_of_the_best(seconds, workers):
    placement = Placement()
    for node, one in enumerate(seconds):
        placement.note(message(node + 2), float(one))
    order = placement.longest_first(message(node + 2) for node in range(len(seconds)))
    served = [float(seconds[one.metadata.dst_node_id - 2]) for one in order]
    bound = 4 / 3 - 1 / (3 * workers)
    assert makespan(served, workers) <= bound * shortest(list(map(float, seconds)), workers) + 1e-9


def test_kinds_of_messages_are_told_apart_and_forgotten():
    placement = Placement()
    for node, seconds in ((2, 1.0), (3, 1.1), (4, 3.0)):
        placement.note(message(node), seconds)
        placement.note(message(node, "evaluate"), 1.0)
    assert placement.unequal("train")
    assert not placement.unequal("evaluate")
    assert not placement.unequal("query")
    assert [m.metadata.dst_node_id for m in placement.longest_first(map(message, (2, 9, 4)))] == [9, 4, 2]
    placement.clear()
    assert not placement.unequal("train")


app = ClientApp()


@app.train()
def _train(message: Message, context: Context) -> Message:
    begun = time.monotonic()
    time.sleep(0.15 if message.metadata.dst_node_id == FIRST_NODE + 5 else 0.01)
    return Message(RecordDict({"begun": MetricRecord({"begun": begun})}), reply_to=message)


def test_a_long_device_begins_first_once_it_is_known():
    with InProcessGrid("tests.engines.test_placement:app", 6, 2) as grid:
        nodes = sorted(grid.get_node_ids())
        early = []
        for _ in range(4):  # the first times are those of imports
            replies = list(grid.send_and_receive([message(node) for node in nodes], timeout=60))
            assert [reply.metadata.src_node_id for reply in replies] == nodes  # as they were asked
            begun = [float(str(reply.content.metric_records["begun"]["begun"])) for reply in replies]
            early.append(begun[-1] <= sorted(begun)[1])  # two begin at once
        assert any(early[2:])
