"""A Flower Grid that calls the ClientApp in worker processes of this machine: no Ray, no sockets.

Each worker is a persistent process with one torch thread. A device is served by whichever worker is
free; its Flower Context (hence its personal part) lives here, in the parent, and travels with its
messages, so a worker that dies costs the one device that it was serving its round and nobody else
anything. Arrays that several messages of a batch share, such as the broadcast, cross to each worker
once. Replies are returned in the order of the messages.
"""

from __future__ import annotations

import importlib
import io
import logging
import multiprocessing
import pickle
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, cast
from uuid import uuid4

from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from server_app.engines.allocator import keep_freed_memory
from server_app.engines.device_states import DeviceStates

log = logging.getLogger(__name__)

_FIRST_NODE = 1000
_SHARE_FROM_BYTES = 1 << 15


class InProcessGrid(Grid):
    """Devices 0..K-1 as nodes of a Grid.

    Args:
        client_app: where the ClientApp is, as ``package.module:name``.
        num_devices: K.
        workers: number of processes; 1 runs the devices inside the calling process (a device that
            kills its process then kills the run, and no deadline can interrupt it).
        state_memory_mib: personal parts kept in memory; those beyond it go to a temporary folder.
    """

    immediate = True  # asked for replies, it makes them: see strategies.exchange

    def __init__(
        self, client_app: str, num_devices: int, workers: int = 1, *, state_memory_mib: float = 1024.0
    ) -> None:
        if num_devices < 1 or workers < 1:
            raise ValueError(f"num_devices = {num_devices} and workers = {workers}; both must be at least 1")
        # Flower's Message constructor asks this class who is sending.
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._client_app = client_app
        self._num_devices = num_devices
        self._states = DeviceStates(int(state_memory_mib * 2**20))
        self._pending: dict[str, Message] = {}
        self._run: Any = None
        self._app = load_client_app(client_app) if workers == 1 else None
        if workers == 1:
            keep_freed_memory()
        self._workers = [] if workers == 1 else [_Worker(client_app) for _ in range(workers)]

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker processes."""
        for worker in self._workers:
            worker.stop()
        self._workers = []
        self._states.close()

    # Flower's Grid interface -------------------------------------------------------------------

    def set_run(self, run: Any) -> None:
        """Keep the run that Flower describes."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run, if one was set."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all devices."""
        return range(_FIRST_NODE, _FIRST_NODE + self._num_devices)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they are worked on when their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = str(uuid4())
            message.metadata.__dict__["_message_id"] = identifier
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Work on pushed messages and return their replies."""
        return self._process([self._pending.pop(i) for i in list(message_ids) if i in self._pending], None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Work on messages and return the replies that are there within `timeout` seconds."""
        identifiers = self.push_messages(messages)
        return self._process([self._pending.pop(i) for i in identifiers], timeout)

    # Execution ---------------------------------------------------------------------------------

    def _process(self, messages: list[Message], timeout: float | None) -> list[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: dict[str, Message] = {}
        if self._app is not None:
            for message in messages:
                if deadline is not None and time.monotonic() > deadline:
                    break
                context = self._context(message.metadata.dst_node_id)
                replies[message.metadata.message_id] = call(self._app, message, context)
                self._states.put(context.node_id, context.state)
        else:
            self._process_in_workers(messages, deadline, replies)
        return [replies[i] for message in messages if (i := message.metadata.message_id) in replies]

    def _context(self, node: int) -> Context:
        return Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": node - _FIRST_NODE, "num-partitions": self._num_devices},
            state=self._states.get(node),
            run_config={},
        )

    def _process_in_workers(
        self, messages: list[Message], deadline: float | None, replies: dict[str, Message]
    ) -> None:
        shared = _shared_arrays(messages)
        waiting = deque(messages)
        idle = list(self._workers)
        busy: dict[Connection, _Worker] = {}
        while waiting or busy:
            while waiting and idle:
                worker = idle.pop()
                message = waiting.popleft()
                worker.submit(message, self._context(message.metadata.dst_node_id), shared)
                busy[worker.connection] = worker
            remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ready = wait(list(busy), remaining)
            if not ready:
                for worker in busy.values():
                    log.warning("device %d had not answered when the round closed", worker.device)
                    worker.restart()
                break
            for connection in ready:
                worker = busy.pop(cast(Connection, connection))
                reply, state = worker.collect()
                replies[worker.message.metadata.message_id] = reply
                if state is not None:
                    self._states.put(worker.message.metadata.dst_node_id, state)
                idle.append(worker)
        for worker in self._workers:
            worker.forget_arrays()


def call(app: ClientApp, message: Message, context: Context) -> Message:
    """Call a ClientApp; an exception becomes an error reply, as in Flower's engines."""
    before = dict(context.state)
    try:
        return app(message, context)
    except Exception:
        context.state.clear()
        context.state.update(before)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, traceback.format_exc()), reply_to=message)


def load_client_app(reference: str) -> ClientApp:
    """Import a ClientApp given as ``package.module:name``."""
    module, _, name = reference.partition(":")
    app = getattr(importlib.import_module(module), name)
    if not isinstance(app, ClientApp):
        raise TypeError(f"{reference} is not a ClientApp")
    return app


def _shared_arrays(messages: list[Message]) -> dict[int, Array]:
    """Return the large arrays that several messages hold, by identity."""
    found: dict[int, Array] = {}
    uses: Counter[int] = Counter()
    for message in messages:
        for record in message.content.array_records.values():
            for array in record.values():
                found[id(array)] = array
                uses[id(array)] += 1
    return {i: array for i, array in found.items() if uses[i] > 1 and len(array.data) >= _SHARE_FROM_BYTES}


class _Worker:
    """One worker process as its parent sees it."""

    def __init__(self, client_app: str) -> None:
        self._client_app = client_app
        self._start()

    def _start(self) -> None:
        # Forking spares the workers the seconds that importing torch takes; the parent has then not
        # started any thread pool, which a fork would not carry over.
        method = "fork" if sys.platform == "linux" else "spawn"
        context = cast(multiprocessing.context.DefaultContext, multiprocessing.get_context(method))
        self.connection, child = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(child, self.connection, self._client_app),
            daemon=True,
            name="airflower-worker",
        )
        self._process.start()
        child.close()
        self._held: set[int] = set()

    @property
    def device(self) -> int:
        """Index of the device that is being served."""
        return self.message.metadata.dst_node_id - _FIRST_NODE

    def submit(self, message: Message, context: Context, shared: Mapping[int, Array]) -> None:
        """Hand a message to the process."""
        self.message = message
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, shared)
        pickler.dump((message, context))
        new = {i: shared[i] for i in pickler.referenced - self._held}
        self._held |= pickler.referenced
        with suppress(BrokenPipeError, ConnectionResetError):  # it is gone: collect() reports it
            self.connection.send((new, buffer.getvalue()))

    def collect(self) -> tuple[Message, RecordDict | None]:
        """Return the reply and the device's new state; an error reply and None if the process died."""
        try:
            reply, state = self.connection.recv()
            return reply, state
        except (EOFError, ConnectionResetError, pickle.UnpicklingError):
            self._process.join(5)
            reason = f"the process that ran device {self.device} died (exit code {self._process.exitcode})"
            self.restart()
            return Message(Error(ErrorCode.UNKNOWN, reason), reply_to=self.message), None

    def forget_arrays(self) -> None:
        """Let the process drop the arrays of the finished batch."""
        if self._held:
            self.connection.send((None, b""))
            self._held = set()

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

    def __init__(self, file: io.BytesIO, shared: Mapping[int, Array]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._shared = shared
        self.referenced: set[int] = set()

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, Array) and id(obj) in self._shared:
            self.referenced.add(id(obj))
            return id(obj)
        return None


class _Unpickler(pickle.Unpickler):
    """Resolves the references of `_Pickler`."""

    def __init__(self, file: io.BytesIO, arrays: Mapping[int, Array]) -> None:
        super().__init__(file)
        self._arrays = arrays

    def persistent_load(self, pid: Any) -> Array:
        return self._arrays[pid]


def _serve(connection: Connection, parent_end: Connection, client_app: str) -> None:
    """Run in a worker process: answer messages until the parent is gone."""
    parent_end.close()  # inherited; while it is open here, the parent's end of the pipe never closes
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    torch.set_num_threads(1)
    keep_freed_memory()
    app = load_client_app(client_app)
    arrays: dict[int, Array] = {}
    while True:
        try:
            new, task = connection.recv()
        except EOFError:
            return
        if new is None:
            arrays.clear()
            continue
        arrays.update(new)
        message, context = _Unpickler(io.BytesIO(task), arrays).load()
        reply = call(app, message, context)
        connection.send((reply, context.state))
