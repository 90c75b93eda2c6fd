"""A Flower Grid that calls the ClientApp in worker processes of this machine: no Ray, no sockets.

Each worker is a persistent process with one torch thread. A device is served by whichever worker is
free; its Flower Context (hence its personal part) is kept here, in the parent, so a worker that dies costs
nobody anything: its devices are served again, and one that kills its process twice has failed the round.
Arrays that several messages of a batch share, such as the broadcast, lie in shared memory. Replies come in
the order of the messages.

One file, long as it is: one class, Flower's Grid from a message to its reply.
"""

from __future__ import annotations

import gc
import itertools
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from engines.allocator import keep_freed_memory
from engines.device_states import DeviceStates
from engines.placement import Placement
from engines.processors import usable_processors
from engines.shared_arrays import Block, Board
from engines.workers import FIRST_NODE, FORK, App, Runner, Worker, WorkerDiedError
from protocol.interrupts import held
from server_app.settings import Settings

log = logging.getLogger(__name__)

# A worker is given one device at a time: one that never answers has no neighbours to take with it. Those that
# wait for a worker get another one when it is at a device for more than that device's share of the round: the
# time until the deadline, divided among the devices of a worker.
_SUBSTITUTES, _LEAST_SHARE_SECONDS = 16, 1.0  # at once; so that many quick devices are not each called slow
_TOGETHER_PER_WORKER = 2  # tasks of devices that are trained together: the more at once, the better


class InProcessGrid(Grid):
    """Devices 0..K-1 as nodes of a Grid; they keep their states for one run, see `begin_run`.

    Args:
        client_app: where the ClientApp is, as ``package.module:name``.
        num_devices: K.
        workers: number of processes; 1 runs the devices inside the calling process (a device that
            kills its process then kills the run, and no deadline can interrupt it).
        state_memory_mib: personal parts kept in memory; those beyond it go to a temporary folder.
        batch_devices: devices that are trained as one set of tensors; 1: one after the other; None: as many
            as `devices_at_once` beside the ClientApp says of a round.
        device: where, "cpu" or "cuda".

    Attributes:
        most_at_once: the most devices that were trained as one set of tensors so far.

    Raises:
        ValueError: if a number is not positive.
    """

    immediate = True  # asked for replies, it makes them: see strategies.exchange

    def __init__(
        self,
        client_app: str,
        num_devices: int,
        workers: int = 1,
        *,
        state_memory_mib: float = 1024.0,
        batch_devices: int | None = 1,
        device: str = "cpu",
    ) -> None:
        if min(num_devices, workers, 1 if batch_devices is None else batch_devices) < 1:
            raise ValueError(
                f"num_devices = {num_devices}, workers = {workers} and batch_devices = {batch_devices}; "
                "all must be at least 1"
            )
        # Flower's Message constructor asks this class who is sending.
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self._app = App(client_app, num_devices, batch_devices, device)
        self._app.load_many()  # a module without the function is found here
        self._num_workers = workers
        self._states = DeviceStates(int(state_memory_mib * 2**20))
        self._placement = Placement()
        self._pending: dict[str, Message] = {}
        self._numbers = itertools.count(1)
        self._run: Any = None
        # Both are made when the first messages are there: workers are forks, and what the caller has loaded
        # by then, such as the data set, they need not load again.
        self._runner: Runner | None = None
        self._workers: list[Worker] = []
        self._board: Board | None = None
        self._at_work: Iterator[Message] | None = None
        self._at_once: int | None = None  # of the devices at work; see `App.at_once`
        self.most_at_once = 1
        self._tried_twice: set[str] = set()  # messages, of those at work

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

    def begin_run(self) -> None:
        """Forget what devices keep of the run before: in every run they start as they would in the first."""
        self._states.clear()
        self._placement.clear()
        self.most_at_once = 1

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
        return range(FIRST_NODE, FIRST_NODE + self._app.num_devices)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; they are worked on when their replies are pulled."""
        identifiers = []
        for message in messages:
            identifier = self._number(message)
            self._pending[identifier] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Work on pushed messages and yield their replies."""
        found = [self._pending.pop(i) for i in list(message_ids) if i in self._pending]
        return self._begin(found, len(found), None)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Work on messages and yield the replies that are there within `timeout` seconds.

        A reply comes as soon as it and those to the messages before it are there; work goes on while the
        caller looks at it. Nothing is done before the first is asked for. Work also begins before the last
        message is there, if `messages` has a length.
        """
        if not isinstance(messages, Sized):
            messages = list(messages)
        return self._begin(messages, len(messages), timeout)

    def _begin(self, messages: Iterable[Message], number: int, timeout: float | None) -> Iterator[Message]:
        if self._at_work is not None:  # whoever asked for those replies has left
            self._at_work.close()  # type: ignore[attr-defined]
        self._tried_twice.clear()
        self._at_work = self._process(messages, number, timeout)
        return self._at_work

    def _number(self, message: Message) -> str:
        """Return the identifier of a message; the first time it gets one."""
        if not message.metadata.message_id:
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
        return message.metadata.message_id

    # Execution ---------------------------------------------------------------------------------

    def _process(self, messages: Iterable[Message], number: int, timeout: float | None) -> Iterator[Message]:
        if not number:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        coming = iter(messages)
        first = next(coming)
        if not self._workers and self._runner is None:  # before the workers fork
            self._app.prepare(first)
        self._at_once = self._app.at_once(first, number)
        together = self._at_once is not None
        if (self._at_once or 1) > self.most_at_once:
            self.most_at_once = cast(int, self._at_once)
            log.info("engine.batch_devices: up to %d devices as one set of tensors", self.most_at_once)
        coming = itertools.chain([first], coming)
        if self._num_workers == 1:
            yield from self._process_here(_tasks(coming, number if together else 1), deadline)
            return
        size = max(1, number // (_TOGETHER_PER_WORKER * self._num_workers)) if together else 1
        waiting, replies = deque[str](), dict[str, Message]()

        def noted(messages: Iterable[Message]) -> Iterator[Message]:
            for message in messages:
                waiting.append(self._number(message))
                yield message

        coming = noted(coming)
        if not together and self._placement.unequal(first.metadata.message_type):
            coming = iter(self._placement.longest_first(coming))
        head = [*itertools.islice(coming, max(size, 2))]  # what these share, all do
        tasks = _tasks(itertools.chain(head, coming), size)

        if self._board is None:
            self._board = Board(shared=FORK)  # before the workers fork
        block = self._board.post(head)
        share = None
        if deadline is not None:
            share = (deadline - time.monotonic()) * self._num_workers / number
            share = max(share, _LEAST_SHARE_SECONDS)
        for answered in self._process_in_workers(tasks, block, deadline, share, ahead=2 if together else 1):
            replies.update(answered)
            while waiting and waiting[0] in replies:
                yield replies.pop(waiting.popleft())
        for identifier in waiting:
            if identifier in replies:
                yield replies.pop(identifier)

    def _process_here(self, tasks: Iterable[list[Message]], deadline: float | None) -> Iterator[Message]:
        if self._runner is None:
            self._runner = Runner(self._app)
            _settle_memory()
        for task in tasks:
            if deadline is not None and time.monotonic() > deadline:
                return
            for message in task:
                self._number(message)
            answers = self._runner.run(task, self._states_of(task), self._at_once)
            for message, (reply, state) in zip(task, answers, strict=True):
                with held():
                    self._keep(message, state)
                yield reply

    def _process_in_workers(
        self,
        tasks: Iterator[list[Message]],
        block: Block | None,
        deadline: float | None,
        share: float | None,
        *,
        ahead: int,
    ) -> Iterator[dict[str, Message]]:
        """Yield replies by the message that they answer, as they come.

        Args:
            tasks: each for one worker, begun as soon as it is there.
            block: the arrays that messages share.
            deadline: after which no reply is waited for.
            share: seconds that a device may take while others wait; None with no deadline.
            ahead: tasks for a worker at once; more than one if they are so short that waiting would show.
        """
        if not self._workers:
            self._app.load()
            assert self._board is not None
            _settle_memory()
            with held():
                self._workers = [Worker(self._app, self._board) for _ in range(self._num_workers)]
        again = deque[list[Message]]()  # to be done before the next of the tasks
        busy: dict[Connection, Worker] = {}

        def feed() -> None:
            while True:
                worker = min(self._workers, key=lambda worker: len(worker.tasks))
                if len(worker.tasks) == ahead:
                    return
                task = again.popleft() if again else next(tasks, None)
                if task is None:
                    return
                if not worker.submit(task, self._states_of(task), block, self._at_once):
                    again.appendleft(task)
                    return
                busy[worker.connection] = worker

        try:
            with held():
                feed()
            while busy:
                remaining = None if deadline is None else max(deadline - time.monotonic(), 0.0)
                ready = wait(list(busy), remaining if share is None else min(remaining or 0.0, share / 4))
                if not ready and deadline is not None and time.monotonic() >= deadline:
                    break
                with held():
                    answered = self._collect(ready, busy, again)
                    if share is not None and (slow := [w for w in busy.values() if w.is_slow(share)]):
                        again.extend(itertools.islice(tasks, 0 if again else 1))
                        self._relieve(slow, busy, again)
                    feed()  # before the caller looks at the replies
                yield answered
        finally:  # the round has closed, or the caller has left
            with held():
                for worker in busy.values():
                    late = [_device(message) for task in worker.tasks for message in task]
                    log.warning("devices %s had not answered when the round closed", late)
                    worker.restart()
                while len(self._workers) > self._num_workers:
                    self._workers.pop().stop()

    def _relieve(
        self, slow: Sequence[Worker], busy: dict[Connection, Worker], again: deque[list[Message]]
    ) -> None:
        """Have those served that wait behind slow devices, by workers that are slow or for one.

        A worker that has nothing but a slow device goes on until the round closes, and another one serves
        those that wait. One that has more, as devices are trained together, is replaced, and what it had is
        done again: what it was at device by device, as it does not show which of them is slow.
        """
        alone = 0
        for worker in slow:
            now, *later = (list(task) for task in worker.tasks)
            if len(now) == 1 and not later:
                alone += 1
                continue
            again.extend([*later, *([message] for message in now)])
            del busy[worker.connection]
            worker.restart()
        while again and len(self._workers) < self._num_workers + min(alone, _SUBSTITUTES):
            self._workers.append(Worker(self._app, cast(Board, self._board)))

    def _collect(
        self, ready: Iterable[object], busy: dict[Connection, Worker], again: deque[list[Message]]
    ) -> dict[str, Message]:
        """Take what workers have answered, and keep the devices' states."""
        answered: dict[str, Message] = {}
        for connection in ready:
            worker = busy[cast(Connection, connection)]
            try:
                collected = worker.collect()
                if len(collected) == 1:
                    self._placement.note(collected[0][0], worker.seconds)
                for message, reply, state in collected:
                    answered[message.metadata.message_id] = reply
                    self._keep(message, state)
            except WorkerDiedError as error:
                error_replies, unfinished = self._after_death(error)
                answered |= error_replies
                again.extendleft(unfinished)
            if not worker.tasks:
                del busy[cast(Connection, connection)]
        return answered

    def _after_death(self, error: WorkerDiedError) -> tuple[dict[str, Message], list[list[Message]]]:
        """Return an error for the device that killed its process twice, and the tasks that are left to do."""
        lost, again = error.unanswered, error.untouched
        if len(lost) > 1:
            # Which one it was shows when each is served alone.
            return {}, [*([message] for message in lost), *again]
        (culprit,) = lost
        number = culprit.metadata.message_id
        if number not in self._tried_twice:
            # The process may have been killed from outside, for want of memory for one: done again, the same
            # order gives the same reply.
            self._tried_twice.add(number)
            return {}, [[culprit], *again]
        reason = f"the process that ran device {_device(culprit)} died (exit code {error.exit_code})"
        reply = Message(Error(ErrorCode.UNKNOWN, reason), reply_to=culprit)
        return {number: reply}, again

    def _keep(self, message: Message, state: bytes | None) -> None:
        if state is not None:
            self._states.put(message.metadata.dst_node_id, state)

    def _states_of(self, messages: Sequence[Message]) -> list[bytes]:
        return [self._states.get(message.metadata.dst_node_id) for message in messages]


def _settle_memory() -> None:
    """Keep what is freed, as uploads come and go, and leave alone what is there for good.

    What is loaded by now, some million objects of libraries, is not searched for garbage again: 0.17 s in the
    middle of a round, and pages that workers would share no longer. Once: what a run leaves is garbage later.
    """
    keep_freed_memory()
    if not gc.get_freeze_count():
        gc.freeze()


def open_grid(
    settings: Settings, client_app: str = "client_app.app:app", workers: int | None = None
) -> InProcessGrid:
    """Return the grid that the settings describe.

    Args:
        settings: the checked settings.
        client_app: where the ClientApp is, as ``package.module:name``.
        workers: processes; default: `engine.workers`, else one per core, and one process for a GPU.
    """
    engine, devices = settings.engine, settings.fleet.num_devices
    cores = 1 if engine.device == "cuda" else usable_processors()
    return InProcessGrid(
        client_app,
        devices,
        workers or engine.workers or min(cores, devices),
        state_memory_mib=engine.state_memory_mib,
        batch_devices=engine.batch_devices,
        device=engine.device,
    )


def _device(message: Message) -> int:
    return message.metadata.dst_node_id - FIRST_NODE


def _tasks(messages: Iterator[Message], size: int) -> Iterator[list[Message]]:
    while task := [*itertools.islice(messages, size)]:
        yield task
