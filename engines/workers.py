"""Worker processes of the in-process engine: each serves devices one after the other, or many together.

A task is a list of messages with the states of their devices: one device's, so that the parent knows whom a
worker was serving if it dies, or those of devices that are trained together. Then a worker may be given the
next task while it is at work, so that it never waits for its parent.

One file, long as it is: both ends of a pipe, and what travels through it.
"""

from __future__ import annotations

import copyreg
import gc
import importlib
import io
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from engines.allocator import keep_freed_memory
from engines.mailbox import Mailbox
from engines.shared_arrays import Block, Board
from protocol import interrupts

FORK = sys.platform == "linux"  # elsewhere a fork of a process with threads is not safe
FIRST_NODE = 1000
TRAIN = "train"

TrainMany = Callable[..., list[Message]]


@dataclass(frozen=True)
class App:
    """What runs the devices.

    Attributes:
        reference: the ClientApp, as ``package.module:name``.
        num_devices: K.
        batch_devices: train so many devices at once, by the function `train_many` beside the ClientApp; 1:
            one after the other, by the ClientApp itself; None: as many as `devices_at_once` beside it says.
        device: where they are then trained, "cpu" or "cuda".
    """

    reference: str
    num_devices: int
    batch_devices: int | None = 1
    device: str = "cpu"

    def at_once(self, first: Message, number: int) -> int | None:
        """Return how many devices are to be trained at once; None: each by the ClientApp itself.

        Args:
            first: a message like those to all.
            number: of the messages that were sent together.
        """
        if first.metadata.message_type != TRAIN:
            return None
        chosen = self.batch_devices
        if chosen is None:
            chosen = self._chosen(first, number)
        return chosen if chosen > 1 or self.device != "cpu" else None

    def prepare(self, first: Message) -> None:
        """Have what all devices share made, by the function `prepare` beside the ClientApp."""
        with suppress(Exception):  # none; or what is wrong with the order, which the devices will say
            self._attribute("prepare")(first)

    def _chosen(self, first: Message, number: int) -> int:
        try:
            choose = cast(Callable[[Message, int], int], self._attribute("devices_at_once"))
            return choose(first, number)
        except Exception:  # no such function; or what is wrong with the order, which the devices will say
            return 1

    def load(self) -> ClientApp:
        """Import the ClientApp."""
        app = self._attribute(self.reference.partition(":")[2])
        if not isinstance(app, ClientApp):
            raise TypeError(f"{self.reference} is not a ClientApp")
        return app

    def load_many(self) -> TrainMany | None:
        """Import `train_many`; None if devices are trained one after the other.

        Raises:
            ValueError: if devices are to be trained at once and the ClientApp's module has no such function.
        """
        if self.batch_devices == 1 and self.device == "cpu":
            return None
        try:
            return cast(TrainMany, self._attribute("train_many"))
        except AttributeError as error:
            if self.batch_devices is None and self.device == "cpu":
                return None
            raise ValueError(
                f"engine.batch_devices = {self.batch_devices}, engine.device = {self.device}: the module of "
                f"{self.reference} has no function train_many"
            ) from error

    def _attribute(self, name: str) -> Any:
        return getattr(importlib.import_module(self.reference.partition(":")[0]), name)


class Runner:
    """Answers messages in this process."""

    def __init__(self, app: App) -> None:
        self._settings = app
        self._app = app.load()
        self._many = app.load_many()

    def run(
        self, messages: Sequence[Message], states: Sequence[bytes], at_once: int | None
    ) -> Iterator[tuple[Message, bytes | None]]:
        """Answer messages; an exception of a device becomes an error reply of its own.

        Args:
            messages: at most one for each device.
            states: the devices' pickled states, empty for a device without one.
            at_once: as from `App.at_once`.

        Yields:
            The reply to each message, in order, and the device's new state, None where it has not changed.
        """
        contexts = [
            self._context(message.metadata.dst_node_id, state)
            for message, state in zip(messages, states, strict=True)
        ]
        replies: Iterable[Message]
        if self._many is not None and at_once is not None:
            replies = self._many(messages, contexts, batch_devices=at_once, device=self._settings.device)
        else:
            replies = map(self._call, messages, contexts)
        for reply, context, before in zip(replies, contexts, states, strict=True):
            after = pickle.dumps(context.state, pickle.HIGHEST_PROTOCOL) if context.state else b""
            yield reply, None if after == before else after

    def _call(self, message: Message, context: Context) -> Message:
        before = dict(context.state)
        try:
            return self._app(message, context)
        except Exception:  # becomes an error reply, as in Flower's engines
            context.state.clear()
            context.state.update(before)
            reason = traceback.format_exc()
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)

    def _context(self, node: int, state: bytes) -> Context:
        return Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": node - FIRST_NODE, "num-partitions": self._settings.num_devices},
            state=pickle.loads(state) if state else RecordDict(),
            run_config={},
        )


class WorkerDiedError(RuntimeError):
    """A worker process ended before it had answered.

    Attributes:
        unanswered: the messages of its task that it had not answered, the one that it was serving first.
        untouched: the tasks that it had not begun.
    """

    def __init__(self, tasks: Iterable[Iterable[Message]], exit_code: int | None) -> None:
        super().__init__(f"the process died (exit code {exit_code})")
        self.unanswered, *self.untouched = [list(task) for task in tasks]
        self.exit_code = exit_code


class Worker:
    """One worker process as its parent sees it.

    Args:
        app: what runs the devices.
        board: where arrays that messages share are posted.

    Attributes:
        connection: readable when a reply is there, or the process is gone.
        tasks: its tasks, the one that it is at work on first; of each, the messages that have no reply yet.
        seconds: that it was at work on the last task that it finished.
    """

    def __init__(self, app: App, board: Board) -> None:
        self._app = app
        self._board = board
        self._fork = FORK
        # Two of each kind: the next task and its answers do not touch those of the last one.
        self._mailboxes = [(Mailbox(shared=self._fork), Mailbox(shared=self._fork)) for _ in range(2)]
        self._start()

    def _start(self) -> None:
        # A fork has all that its parent has imported and loaded; the parent has one torch thread, and a fork
        # would not carry a pool over.
        method = "fork" if self._fork else "spawn"
        context = cast(multiprocessing.context.DefaultContext, multiprocessing.get_context(method))
        self.connection, child = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(child, self.connection, self._app, self._mailboxes, self._board if self._fork else None),
            daemon=True,
            name="airflower-worker",
        )
        self._process.start()
        child.close()
        self._block = 0
        self._pair = 0
        self.tasks: deque[deque[Message]] = deque()
        self._since, self.seconds = 0.0, 0.0

    def submit(
        self,
        messages: Sequence[Message],
        states: Sequence[bytes],
        block: Block | None,
        at_once: int | None,
    ) -> bool:
        """Hand over a task, unless it is too large for a worker that is at work.

        Args:
            messages: at least one.
            states: the devices' pickled states, empty for none.
            block: the arrays that messages share.
            at_once: as from `App.at_once`.

        Returns:
            Whether the worker has taken it.
        """
        pickler = partial(_Pickler, block=block)
        size = self._mailboxes[self._pair][0].put((messages, states), pickler)
        task: bytes | int
        if size is not None:
            task = size
        elif self.tasks:  # it may be writing to the pipe itself, and both would wait for the other
            return False
        else:
            buffer = io.BytesIO()
            pickler(buffer).dump((messages, states))
            task = buffer.getvalue()
        new = block if block is not None and block.number != self._block else None
        self._block = block.number if block is not None else self._block
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone: collect() reports it
            self.connection.send((new, self._pair, at_once, task))
        self._pair = 1 - self._pair
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(deque(messages))
        return True

    def collect(self) -> list[tuple[Message, Message, bytes | None]]:
        """Return the next messages, each with its reply and the device's new state where it has changed.

        Raises:
            WorkerDiedError: if the process died; it has then been replaced.
        """
        try:
            pair, answers = self.connection.recv()
        except (EOFError, ConnectionResetError, pickle.UnpicklingError):
            self._process.join(5)
            error = WorkerDiedError(self.tasks, self._process.exitcode)
            self.restart()
            raise error from None
        if pair is not None:
            answers = self._mailboxes[pair][1].take(answers)
        collected = [(self.tasks[0].popleft(), reply, state) for reply, state in answers]
        if not self.tasks[0]:
            self.tasks.popleft()
            now = time.monotonic()
            self.seconds, self._since = now - self._since, now
        return collected

    def is_slow(self, share: float) -> bool:
        """Return whether it has been at work on its task for more than `share` seconds per device."""
        return bool(self.tasks) and time.monotonic() - self._since > share * len(self.tasks[0])

    def restart(self) -> None:
        """Replace the process."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.kill()
        self._process.join()


class _Pickler(pickle.Pickler):
    """Pickles messages with a reference in place of each shared array."""

    def __init__(self, file: Any, *, block: Block | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared = block.entries if block else {}
        # Asked for arrays only; `persistent_id` would be called for every string and number.
        self.dispatch_table = {**copyreg.dispatch_table, Array: self._reduce}

    def _reduce(self, array: Array) -> Any:
        if id(array) in self._shared:
            return _shared_array, (id(array),)
        return array.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


_shared: dict[int, Array] = {}  # in a worker: the arrays of the last block, by their identity in the parent


def _shared_array(identity: int) -> Array:
    return _shared[identity]


def _serve(
    connection: Connection,
    parent_end: Connection,
    app: App,
    mailboxes: Sequence[tuple[Mailbox, Mailbox]],
    board: Board | None,
) -> None:
    """Run in a worker process: answer messages until the parent is gone."""
    parent_end.close()  # inherited; while it is open here, the parent's end of the pipe never closes
    interrupts.ignore()  # the parent is told as well, and ends its workers when it is done with them
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    runner = Runner(app)
    # What the fork inherited is not searched for garbage, and so stays shared: 60 MB of each worker.
    gc.freeze()
    while True:
        try:
            block, pair, at_once, task = connection.recv()
        except EOFError:
            return
        if block is not None:
            _shared.clear()
            assert board is not None
            _shared.update(board.read(block))
        inbox, outbox = mailboxes[pair]
        messages, states = pickle.loads(task) if isinstance(task, bytes) else inbox.take(task)
        answers = list(runner.run(messages, states, at_once))
        # A pipe takes some kilobytes at a time: an upload would wake the parent dozens of times.
        size = outbox.put(answers)
        connection.send((None, answers) if size is None else (pair, size))


def _end_with_parent() -> None:
    """End this process when its parent has ended, in the middle of whatever it does.

    The sentinel is a pipe whose other end the parent holds, and those of its workers that were started later:
    the last of these ends at once, then the one before it, and so on.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
