"""Orders out, replies in, until the round closes: Flower's `send_and_receive` with a shorter wait and an end.

Flower looks for replies every 3 s, which alone makes a round of two exchanges 3 s longer on average. Here
the wait starts at 20 ms and grows to a second.

Flower also hands a reply out as soon as its node has announced it, and then waits for its contents: a node
that dies in the middle of its upload holds that call up for three minutes, and with it the replies that the
same call brings. Replies are therefore looked for in several threads, each for its own share of the
messages, and a round that closes leaves behind the threads that hang.

A grid that does its work when it is asked for replies (attribute `immediate`) has no waiting to shorten and
is left to its own method.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from protocol import interrupts

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT, _GROWTH = 0.02, 1.0, 1.5
_LOOK_SECONDS = 0.2  # a run that is told to stop notices within so long
# Up to so many messages, no node can hold another's reply up.
_THREADS = 16


class Collector:
    """Collects the replies to messages until it is closed.

    Args:
        grid: the connected nodes.
        identifiers: the messages.
        seconds: after which it closes by itself.
    """

    def __init__(self, grid: Grid, identifiers: Sequence[str], seconds: float) -> None:
        self._grid = grid
        self._deadline = time.monotonic() + seconds
        self._closed = threading.Event()
        self._found: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        shares = [identifiers[start::_THREADS] for start in range(min(_THREADS, len(identifiers)))]
        for share in shares:
            threading.Thread(target=self._look, args=(set(share),), name="replies", daemon=True).start()

    def take(self, seconds: float) -> Iterable[Message]:
        """Return a reply, waiting for it for at most `seconds`, and those that are there with it.

        Raises:
            Exception: whatever the grid raised.
        """
        taken: list[Message] = []
        try:
            while True:
                found = self._found.get(timeout=max(0.0, seconds) if not taken else 0.0)
                if isinstance(found, BaseException):
                    raise found
                taken.append(found)
        except queue.Empty:
            return taken

    def close(self) -> None:
        """Stop looking; a call that hangs is left behind."""
        self._closed.set()

    def _look(self, waiting: set[str]) -> None:
        pause = _FIRST_WAIT
        try:
            while waiting and not self._closed.is_set() and time.monotonic() < self._deadline:
                for reply in self._grid.pull_messages(sorted(waiting)):
                    waiting.discard(reply.metadata.reply_to_message_id)
                    self._found.put(reply)
                    pause = _FIRST_WAIT  # others tend to be close behind
                if waiting:
                    self._closed.wait(pause)
                    pause = min(_GROWTH * pause, _LONGEST_WAIT)
        except BaseException as error:  # raised again where the replies are taken
            self._found.put(error)


def exchange(grid: Grid, messages: Iterable[Message], timeout: float) -> Iterable[Message]:
    """Send messages and return the replies that came within `timeout` seconds, at most one per message.

    What arrives later is never looked at. Replies are in the order of the messages, so that nothing
    depends on the order of arrival. To be gone through once: of an immediate grid they are there only as they
    are asked for.

    Args:
        grid: the connected nodes.
        messages: to send; none sends nothing.
        timeout: seconds after which the round closes with whoever has answered.
    """
    if getattr(grid, "immediate", False):
        return grid.send_and_receive(messages, timeout=timeout)
    outgoing = list(messages)
    if not outgoing:
        return []
    deadline = time.monotonic() + timeout
    # An identifier is None where the SuperLink did not take the message: its node has just left.
    sent = [identifier for identifier in grid.push_messages(outgoing) if identifier]
    waiting, replies = set(sent), {}
    collector = Collector(grid, sent, timeout)
    try:
        while waiting and (remaining := deadline - time.monotonic()) > 0:
            interrupts.check()
            for reply in collector.take(min(remaining, _LOOK_SECONDS)):
                identifier = reply.metadata.reply_to_message_id
                if identifier in waiting:
                    waiting.discard(identifier)
                    replies[identifier] = reply
    finally:
        collector.close()
    return [replies[identifier] for identifier in sent if identifier in replies]
