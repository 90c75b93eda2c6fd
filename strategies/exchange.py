"""Orders out, replies in, until the round closes: Flower's `send_and_receive` with a shorter wait and an end.

Flower looks for replies every 3 s, which alone makes a round of two exchanges 3 s longer on average. Here
the wait starts at 20 ms and grows to a second.

Flower also hands a reply out as soon as its node has announced it, and then waits for its contents: a node
that dies in the middle of its upload holds that call up for three minutes, and with it the replies that the
same call brings. Replies are therefore looked for in several threads, each for its own share of the
messages, and a round that closes leaves behind the threads that hang. Up to `_THREADS` messages, no node can
hold another's reply up. A call costs the SuperLink about as much for one message as for many; so the more
threads there are, the less often each of them looks.

A SuperLink that is busy answers a call with an error now and then. The call is then made again; only what
stays broken ends the run.

A grid that does its work when it is asked for replies (attribute `immediate`) has no waiting to shorten and
is left to its own method.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from protocol import interrupts

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT, _GROWTH = 0.02, 1.0, 1.5
_FAILED_WAIT = 0.3  # at least, after a call that failed
_LOOK_SECONDS = 0.2  # a run that is told to stop notices within so long
_THREADS = 64
_OFTEN = 16  # so many threads may look as often as the waits above say; with more, all wait longer
_TRIES = 8  # of a call that fails; the waits between them make five seconds


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
        self._slower = max(1.0, len(shares) / _OFTEN)
        for share in shares:
            threading.Thread(target=self._look, args=(set(share),), name="replies", daemon=True).start()

    def take(self, seconds: float) -> Sequence[Message]:
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
        pause, failures = _FIRST_WAIT, 0
        try:
            while waiting and not self._closed.is_set() and time.monotonic() < self._deadline:
                try:
                    replies = list(self._grid.pull_messages(message_ids=sorted(waiting)))
                    failures = 0
                except Exception as error:
                    failures += 1
                    if failures == _TRIES:
                        raise
                    log.debug("replies could not be asked for: %s; trying again", error)
                    replies, pause = [], max(pause, _FAILED_WAIT)
                for reply in replies:
                    waiting.discard(reply.metadata.reply_to_message_id)
                    self._found.put(reply)
                    pause = _FIRST_WAIT  # others tend to be close behind
                if waiting:
                    self._closed.wait(self._slower * pause)
                    pause = min(_GROWTH * pause, _LONGEST_WAIT)
        except BaseException as error:  # raised again where the replies are taken
            self._found.put(error)


Heard = Callable[[Message | None], None]


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, heard: Heard | None = None
) -> Iterable[Message]:
    """Send messages and return the replies that came within `timeout` seconds, at most one per message.

    What arrives later is never looked at. Replies are in the order of the messages, so that nothing
    depends on the order of arrival. To be gone through once: of an immediate grid they are there only as they
    are asked for.

    Args:
        grid: the connected nodes.
        messages: to send; none sends nothing.
        timeout: seconds after which the round closes with whoever has answered.
        heard: told of each reply as it comes, and now and then of nothing (None) while there is none.
    """
    if getattr(grid, "immediate", False):
        replies_now = grid.send_and_receive(messages, timeout=timeout)
        return replies_now if heard is None else _told(replies_now, heard)
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
            interrupts.check(grid)
            taken = collector.take(min(remaining, _LOOK_SECONDS))
            if heard is not None and not taken:
                heard(None)
            for reply in taken:
                if heard is not None:
                    heard(reply)
                identifier = reply.metadata.reply_to_message_id
                if identifier in waiting:
                    waiting.discard(identifier)
                    replies[identifier] = reply
    finally:
        collector.close()
    return [replies[identifier] for identifier in sent if identifier in replies]


def _told(replies: Iterable[Message], heard: Heard) -> Iterator[Message]:
    for reply in replies:
        heard(reply)
        yield reply
