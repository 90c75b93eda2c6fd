"""Messages in, replies out, in order."""

import pytest
from flwr.app import Message, RecordDict

from engines.inprocess import InProcessGrid
from protocol.messages import HELLO
from protocol.typed_messages import LazyMessages


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
