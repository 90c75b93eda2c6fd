"""Messages in, replies out, in order; and nothing of one run reaches the next."""

import gc

import pytest
from flwr.app import Message, RecordDict

from engines.inprocess import InProcessGrid
from protocol.interrupts import Interrupted
from protocol.messages import HELLO
from protocol.typed_messages import LazyMessages
from records.checkpoint import checkpoints
from records.ownership import status_of
from server_app.run import run
from server_app.settings import compose_settings
from tests.end_to_end.jobs import SMALL, records


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", [list, iter, None])
def test_replies_are_in_the_order_of_messages_that_may_be_made_late(workers, kind):
    with InProcessGrid("client_app.app:app", 9, workers) as grid:
        made = []

        def hello(node: int) -> Message:
            made.append(node)
            return Message(RecordDict(), dst_node_id=node, message_type=HELLO)

        nodes = sorted(grid.get_node_ids(), key=lambda node: node * 7 % 9)
        lazy = LazyMessages(hello, nodes)
        assert len(lazy) == 9
        replies = grid.send_and_receive(kind(lazy) if kind else lazy, timeout=60)
        coming = iter(replies)
        first = next(coming)
        if kind is None:
            assert len(made) < 9  # it was there before the last message was
        assert [reply.metadata.src_node_id for reply in (first, *coming)] == nodes
        assert made == nodes
        assert list(grid.send_and_receive([], timeout=60)) == []


@pytest.mark.parametrize("memory_mib", [1024.0, 0.005])  # at 0.005 MiB most states lie on the disk
def test_a_second_run_on_the_same_grid_starts_anew(tmp_path, memory_mib):
    settings = compose_settings(SMALL)
    with InProcessGrid("client_app.app:app", 10, state_memory_mib=memory_mib) as grid:
        for name in ("first", "second"):
            run(settings, grid, tmp_path / name)
            assert (grid._states.spilled > 0) == (memory_mib < 1)
    assert records(tmp_path / "first") == records(tmp_path / "second")


@pytest.mark.parametrize("kind", ["value", "function"])
def test_a_grid_that_says_stop_ends_the_run_as_a_signal_does(tmp_path, kind):
    """The Grid of Flower to come has a `should_stop`."""
    settings = compose_settings([*SMALL, "rounds=5"])

    class Ending(InProcessGrid):
        @property
        def should_stop(self):
            rounds = tmp_path / "run" / "rounds.csv"
            now = rounds.is_file() and len(rounds.read_text().splitlines()) > 2  # two rounds and the header
            return (lambda: now) if kind == "function" else now

    with Ending("client_app.app:app", 10) as grid, pytest.raises(Interrupted):
        run(settings, grid, tmp_path / "run")
    assert status_of(tmp_path / "run")[0] == "interrupted"
    assert [number for number, _ in checkpoints(tmp_path / "run")] == [2]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_loaded_before_the_first_message_is_not_searched_for_garbage_in_a_round(workers):
    gc.unfreeze()
    frozen = []
    for _ in range(2):
        with InProcessGrid("client_app.app:app", 2, workers) as grid:
            nodes = grid.get_node_ids()
            orders = [Message(RecordDict(), dst_node_id=node, message_type=HELLO) for node in nodes]
            assert len(list(grid.send_and_receive(orders, timeout=60))) == 2
        frozen.append(gc.get_freeze_count())
    assert frozen[0] > len(gc.get_objects())  # most of all that there is
    assert frozen[1] <= frozen[0]  # once: what a run leaves behind is garbage later on
