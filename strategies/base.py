"""The skeleton that every scheme shares: orders out, replies in, faults contained, rows written.

A scheme decides two things only: how a round is *planned* (`WirelessStrategy.plan`) and how uploads
*become* a next global part (`WirelessStrategy.receive`), towards which the server takes its step
(`strategies.server_optimizers`).

One file, long as it is: one class, the steps of a round in the order in which they happen.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from protocol.arrays import mask_record, read_weights, vectors_record, weights_record
from protocol.fields import MessageError
from protocol.messages import EvaluateOrder, ProbeOrder, TrainOrder, TrainReport
from protocol.streams import generator
from protocol.typed_messages import Body, LazyMessages, TypedMessage, read
from protocol.untrusted import last_line, safe_text
from strategies.buffers import SharedBuffers
from strategies.continuation import Continuation
from strategies.evaluation import ACCURACY, Evaluation, GlobalTest, MetricColumns, summarise
from strategies.exchange import exchange
from strategies.fleet import Fleet
from strategies.intake import Intake
from strategies.journeys import DOWNLOAD, UPLOAD, Journeys
from strategies.limits import NormHistory, NormLimit, UploadError
from strategies.modes import Mode, Synchronous
from strategies.plan import Assignment, Outcome, Receiver, RoundPlan, Weights
from strategies.records import DEVICE_COLUMNS, ROUND_COLUMNS, RoundLog, Value
from strategies.sample_counts import SampleCounts
from strategies.selection import Selection
from strategies.server_optimizers import ServerStep
from strategies.versions import Version

log = logging.getLogger(__name__)

FloatVector = npt.NDArray[np.float64]


# Why a device had no part in a round although it was to have one.
NOT_CONNECTED = "not connected"


class DivergedError(ArithmeticError):
    """Training diverged; going on would write meaningless rows."""


class WirelessStrategy(Strategy):
    """A Flower strategy over a planned radio round.

    Attributes:
        fleet: which node is which device.
        log: rows of the current round.
        run: names this run; keys what devices keep on their disks.
        continued: the checkpoint that it continues.
        message_ttl: seconds after which an order that was not fetched is void; None: Flower's default.
        norm_limit: how far one device may move the global part; default: as far as it likes.
        train_counts, test_counts: images that each device counts with; default: what it claims first.
        norms: norms of the updates of the latest rounds.
        buffers: running statistics that devices share.
        metrics: what devices measure in a test.
        global_test: tests the global model on the whole test set, or None.
        server: the server's step along what the uploads ask for; default: all the way.
        vectors: what the local algorithm sends and receives beside the global part, float32 (N_u,) by name:
            the sum of all that was sent, each divided by the number of devices of the run.
        mode: when a round closes; default: with all in that take part.
        selection: which devices take part, where not all do; default: by lot.
    """

    def __init__(
        self,
        *,
        seed: int,
        num_weights: int,
        spec: str,
        fleet: Fleet,
        mode: Mode | None = None,
        selection: Selection | None = None,
        evaluate_every: int = 1,
        evaluate_participants: bool = False,
        last_round: int | None = None,
        min_replies: int = 1,
        divergence_loss: float = np.inf,
        run: str = "",
        continued: Continuation | None = None,
        message_ttl: float | None = None,
        norm_limit: NormLimit | None = None,
        train_counts: SampleCounts | None = None,
        test_counts: SampleCounts | None = None,
        buffers: SharedBuffers | None = None,
        metrics: Sequence[MetricColumns] = (ACCURACY,),
        global_test: GlobalTest | None = None,
        server: ServerStep | None = None,
        vectors: Sequence[str] = (),
    ) -> None:
        self.seed = seed
        self.num_weights = num_weights
        self.spec = spec
        self.fleet = fleet
        self.mode: Mode = mode or Synchronous(fleet.num_devices)
        self.selection = selection or Selection(samples=[1] * fleet.num_devices)
        self.evaluate_every = evaluate_every
        self.evaluate_participants = evaluate_participants
        self.last_round = last_round
        self.min_replies = min_replies
        self.divergence_loss = divergence_loss
        self.run = run
        self.continued = continued or Continuation()
        self.message_ttl = message_ttl
        self.norm_limit = norm_limit or NormLimit()
        self.train_counts = train_counts or SampleCounts()
        self.test_counts = test_counts or SampleCounts(what="test images")
        self.norms = NormHistory()
        self.buffers = buffers or SharedBuffers({})
        self.metrics = tuple(metrics)
        self.global_test = global_test
        self.server = server or ServerStep()
        self.vectors: dict[str, Weights] = {name: np.zeros(num_weights, np.float32) for name in vectors}
        self.log = RoundLog(0)
        # Whoever watches: told of every order and answer (kind of message or "replied", device, round).
        self.notice: Callable[[str, int | None, int | None], None] = lambda kind, device, server_round: None
        self._plan = RoundPlan(())
        self._journeys = Journeys()
        self._damping: dict[int, float] = {}  # device -> by what its upload counts less because it is stale
        self._weights: Weights = np.zeros(0, np.float32)

    # Columns beyond those of every scheme.
    scheme_round_columns: ClassVar[tuple[str, ...]] = ()
    scheme_device_columns: ClassVar[tuple[str, ...]] = ()
    # What was measured of a device in a round.
    device_timing_columns: ClassVar[tuple[str, ...]] = (
        "measured_train_seconds",
        "measured_energy_j",
        DOWNLOAD,
        UPLOAD,
    )

    @property
    def round_columns(self) -> tuple[str, ...]:
        """Columns of the row of a round, in order."""
        further = [column for metric in self.metrics if metric is not ACCURACY for column in metric.of_round]
        if self.global_test is not None:
            further += ["global_loss", *(f"global_{metric.name}" for metric in self.metrics)]
        return (*ROUND_COLUMNS, *self.mode.round_columns, *further, *self.scheme_round_columns)

    @property
    def device_columns(self) -> tuple[str, ...]:
        """Columns of the row of a device, in order."""
        further = [metric.of_device for metric in self.metrics if metric is not ACCURACY]
        return (*DEVICE_COLUMNS, *self.mode.device_columns, *further, *self.scheme_device_columns)

    @property
    def reported_columns(self) -> tuple[str, ...]:
        """Columns that devices fill with what they report."""
        return ("personal_loss", "global_loss", *self.device_timing_columns)

    @cached_property
    def _reported_as(self) -> Mapping[str, str]:
        """Those columns, and what they are called in reports."""
        return {name: name.replace("_", "-") for name in self.reported_columns}

    # What a scheme decides ---------------------------------------------------------------------

    @abstractmethod
    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Plan the round for the devices that could take part, in ascending order."""

    @abstractmethod
    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> Receiver:
        """Return the receiver of a round; `weights` is the global part that was broadcast."""

    def concluded(self, outcome: Outcome) -> None:
        """Record what only the uploads of a round could tell (nothing by default)."""

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs beyond the global part; schemes add to it."""
        return {
            **self.norms.state(),
            **self.buffers.state(),
            **self.server.state(),
            **self.mode.state(),
            **self.selection.state(),
            **{f"vector-{name}": vector for name, vector in self.vectors.items()},
            "train-counts": self.train_counts.state(),
            "test-counts": self.test_counts.state(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        self.buffers.restore(state)
        if "norms" in state:
            self.norms.restore(state)
        self.server.restore(state)
        self.mode.restore(state)
        self.selection.restore(state)
        for name in self.vectors:
            self.vectors[name] = np.asarray(state[f"vector-{name}"], np.float32)
        for name, counts in (("train-counts", self.train_counts), ("test-counts", self.test_counts)):
            if name in state:
                counts.restore(state[name])

    def probe(self, device: int) -> ProbeOrder | None:
        """Return the timed transfer that a device is asked for in this round (none by default)."""
        return None

    # Training ----------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Plan the round and return one train order per device that takes part.

        The orders are written as they are asked for: the first devices work while the last are still to come.
        """
        self.log = RoundLog(server_round)
        self._weights = read_weights(arrays)
        self.fleet.refresh(grid)
        started = time.perf_counter()
        self._plan = self.mode.plan(server_round, self)
        self.log.columns["measured_plan_seconds"] = round(time.perf_counter() - started, 6)
        self.log.columns.update(self._plan.columns)
        self.buffers.begin()
        sent = _Broadcasts(self.present)
        for device, row in self._plan.absent.items():
            self.log.device(device, row)
        mask = None if self._plan.mask is None else mask_record(self._plan.mask)
        present: list[tuple[Assignment, int]] = []
        for assignment in self._plan.assignments:
            self._expect(assignment)
            node = self.fleet.node_of(assignment.device)
            if node is None:
                self.fail(assignment.device, NOT_CONNECTED)
            else:
                present.append((assignment, node))

        def order(to: tuple[Assignment, int]) -> Message:
            assignment, node = to
            weights, buffers, vectors = sent.of(assignment)
            what = TrainOrder(
                round=server_round,
                num_pruned=assignment.num_pruned,
                spec=self.spec,
                weights=weights,
                mask=mask if assignment.num_pruned < self.num_weights else None,
                run=self.run,
                **self.continued.for_device(assignment.device),
                probe=self.probe(assignment.device),
                buffers=buffers,
                vectors=vectors,
            )
            return self._message(what, node, "train", server_round, assignment.device, grid)

        return LazyMessages(order, present)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take what can be used of the replies; every fault costs its own device the round.

        Replies are taken in the order of the devices, each as soon as those before it are there, and then
        dropped: while others still train, and without holding the uploads of all.
        """
        self._damping = {a.device: a.start.weight for a in self._plan.assignments if a.start is not None}
        intake = Intake(self, self.receive(server_round, self._plan, self._weights))
        waiting = deque(self._plan.assignments)
        expected = {assignment.device for assignment in waiting}
        arrived: dict[int, Message] = {}
        for device, reply in self._attribute(replies, expected):
            if device in expected:
                expected.discard(device)  # a second reply of a device is not looked at
                arrived[device] = reply
            while waiting and (waiting[0].device in arrived or self._absent(waiting[0].device)):
                self._take(waiting.popleft(), arrived, intake)
        for assignment in waiting:
            self._take(assignment, arrived, intake)
        intake.close()
        self.norms.close(intake.norms)
        failed = [device for device, row in sorted(self.log.devices.items()) if row["status"] == "failed"]
        self.log.columns.update(
            {
                "participants": len(self._plan.assignments),
                "replies": intake.used,
                "failed": ";".join(str(device) for device in failed),
                "starved": sum(a.num_pruned >= self.num_weights for a in self._plan.assignments),
            }
        )
        if intake.used < self.min_replies:
            log.warning(
                "round %d: %d usable replies, %d needed: the global part stays as it was",
                server_round,
                intake.used,
                self.min_replies,
            )
            self.log.columns.update(self.mode.close(changed=False))
            return None, None
        self.buffers.finish()
        outcome = intake.receiver.finish()
        self.log.columns.update(outcome.columns)
        self.concluded(outcome)
        weights = self.server(self._weights, outcome.weights, outcome.covered)
        for name, (mean, number) in outcome.vectors.items():
            self.vectors[name] = self.vectors[name] + np.float32(number / self.fleet.num_devices) * mean
        if not np.isfinite(weights).all():
            raise DivergedError(f"round {server_round}: the global part left the finite numbers")
        self._weights = weights
        self.log.columns.update(self.mode.close(changed=True))
        return weights_record(weights), MetricRecord({"replies": intake.used})

    def exchange(self, grid: Grid, orders: Iterable[Message], timeout: float) -> Iterable[Message]:
        """Send train orders and return the replies that are there when the round closes."""
        return exchange(grid, orders, timeout, self.heard)

    def _expect(self, assignment: Assignment) -> None:
        """Open a device's row: it has failed until its reply is used."""
        self.log.device(assignment.device, {"status": "failed", **assignment.columns})
        if assignment.num_pruned >= self.num_weights:
            self.log.device(assignment.device, {"kept_weights": 0})  # starved, whether it answers or not

    def _take(self, assignment: Assignment, arrived: dict[int, Message], intake: Intake) -> None:
        """Take a device's reply, if there is one."""
        device = assignment.device
        reply = arrived.pop(device, None)
        if reply is None:
            if self.log.devices[device].get("reason") is None:
                self.fail(device, "no reply before the round closed")
            return
        try:
            report = read(reply, TrainReport)
            self.buffers.check(report.buffers, uploads=assignment.num_pruned < self.num_weights)
            intake.take(assignment, report)
        except (MessageError, UploadError) as error:
            self.fail(device, str(error))

    def accepted(self, device: int, report: TrainReport, columns: Mapping[str, Value]) -> None:
        """Record a device whose reply is used."""
        damping = self._damping.get(device, 1.0)
        self.buffers.add(report.buffers, damping * int(columns.get("num_examples") or 0))
        found = report.metrics
        loss = found.get("global-loss", found.get("personal-loss"))
        latency = columns.get("latency_s", columns.get("measured_total_seconds"))
        self.selection.note(
            self.log.round, device, loss=loss, latency=latency if isinstance(latency, float) else None
        )
        self.log.device(
            device,
            {
                "status": "ok",
                **columns,
                **{name: found[key] for name, key in self._reported_as.items() if key in found},
                **self._journeys.columns(device, found),
            },
        )
        if found.get("state-set-aside"):
            log.warning(
                "round %d, device %d: its stored personal part was damaged and set aside",
                self.log.round,
                device,
            )
        if lost := found.get("state-lost"):
            log.warning(
                "round %d, device %d: nothing is left of its personal part of round %d, which the checkpoint "
                "expects: it starts afresh",
                self.log.round,
                device,
                lost,
            )

    def _absent(self, device: int) -> bool:
        return self.log.devices[device].get("reason") == NOT_CONNECTED

    @property
    def at_work(self) -> Set[int]:
        """Return the devices whose order is still out: what else they are asked for would wait for that."""
        return frozenset()

    # Evaluation --------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the connected devices (or this round's) for their personalised accuracy, when it is time to."""
        if server_round % self.evaluate_every and server_round != self.last_round:
            return []
        weights, buffers = weights_record(self._weights), self.buffers.record()

        def order(device: int) -> EvaluateOrder:
            return EvaluateOrder(
                server_round,
                self.spec,
                weights,
                run=self.run,
                buffers=buffers,
                **self.continued.for_device(device),
            )

        return [
            self._message(order(device), node, "evaluate", server_round, device, grid)
            for device in self._evaluated()
            if (node := self.fleet.node_of(device)) is not None
        ]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Record each device's accuracy, their mean and the worst."""
        arrived: dict[int, Message] = {}
        for device, reply in self._attribute(replies, set(self._evaluated()), training=False):
            arrived.setdefault(device, reply)
        evaluations: dict[int, Evaluation] = {}
        counts: dict[int, int] = {}
        for device in sorted(arrived):
            try:
                evaluation = Evaluation.from_message(arrived[device], self.metrics)
            except MessageError as error:
                reason = safe_text(error)
                log.warning("round %d, device %d: evaluation not used: %s", server_round, device, reason)
                self.log.device(device, {"evaluation": "unusable"})
                continue
            evaluations[device] = evaluation
            counts[device] = self.test_counts.counted(device, evaluation.num_test)
            diverged = evaluation.diverged(self.divergence_loss)
            if diverged:
                log.warning("round %d, device %d: its test loss is %g", server_round, device, evaluation.loss)
            self.log.device(
                device,
                {
                    "evaluation": "diverged" if diverged else "ok",
                    "num_test": counts[device],
                    "test_loss": evaluation.loss,
                    **{metric.of_device: evaluation.values[metric.name] for metric in self.metrics},
                },
            )
        if not evaluations:
            return None
        columns = summarise(evaluations, counts, self.divergence_loss, self.metrics)
        if self.global_test is not None:
            columns |= self.global_test(self._weights, self.buffers.values)
        self.log.columns.update(columns)
        number = sum(evaluation.diverged(self.divergence_loss) for evaluation in evaluations.values())
        if 2 * number > len(evaluations):
            raise DivergedError(
                f"round {server_round}: the test loss of {number} of {len(evaluations)} devices is infinite "
                f"or above fleet.divergence_loss = {self.divergence_loss:g}: less noise, a smaller step or "
                "fewer local steps may help"
            )
        return MetricRecord(
            {name: value for name, value in columns.items() if isinstance(value, int | float)}
        )

    def summary(self) -> None:
        """Log what this strategy is."""
        log.info(
            "%s: %d global weights, %d devices", type(self).__name__, self.num_weights, self.fleet.num_devices
        )

    # Shared machinery --------------------------------------------------------------------------

    def _evaluated(self) -> Iterable[int]:
        if self.evaluate_participants:
            return [assignment.device for assignment in self._plan.assignments]
        return self.fleet.connected

    @property
    def present(self) -> Version:
        """The global part as it is, and what is broadcast with it; the number is the mode's."""
        return Version(0, self._weights, dict(self.buffers.values), dict(self.vectors))

    def choose(self, server_round: int, devices: Sequence[int], number: int, turn: int) -> Sequence[int]:
        """Return `number` of these devices; `turn` counts the choices of the round, from 0."""
        keys = (server_round, turn) if turn else (server_round,)
        return self.selection(server_round, devices, number, generator(self.seed, "participation", *keys))

    def _message(
        self, order: Body, node: int, kind: str, server_round: int, device: int, grid: Grid
    ) -> Message:
        # The group names the device too: an error made by the SuperLink for a dead node has the
        # SuperLink as its source, and only the group tells whose it is.
        self.notice(kind, device, server_round)
        group = f"{server_round}/{device}"
        address = {"dst_node_id": node, "message_type": kind, "group_id": group, "ttl": self.message_ttl}
        if getattr(grid, "immediate", False):
            return TypedMessage(order, **address)
        if kind == "train":
            self._journeys.sent(device)
        return Message(order.to_records(), **address)  # type: ignore[call-overload,no-any-return]

    def heard(self, reply: Message | None) -> None:
        """Pass on that a device has answered, or without a reply that time goes by."""
        if reply is None:
            self.notice("", None, None)
            return
        device = self.fleet.device_of(reply.metadata.src_node_id)
        if device is None:
            device = _device_of_group(reply.metadata.group_id)
        if device is not None:
            if reply.metadata.message_type == "train":
                self._journeys.heard(device)
            self.notice("failed" if reply.has_error() else "replied", device, self.log.round)

    def _attribute(
        self, replies: Iterable[Message], expected: Set[int], *, training: bool = True
    ) -> Iterator[tuple[int, Message]]:
        """Yield each usable reply with its device, and note the errors."""
        for reply in replies:
            # A device is known by its node, which Flower authenticates, never by what it claims.
            device = self.fleet.device_of(reply.metadata.src_node_id)
            if device is None and reply.has_error():
                device = _device_of_group(reply.metadata.group_id)
            if device is None or device not in expected:
                log.warning("a reply of node %d is not expected and not used", reply.metadata.src_node_id)
            elif reply.has_error():
                reason = reply.error.reason or f"error {reply.error.code}"
                if training:
                    self.fail(device, reason)
                else:
                    log.warning(
                        "round %d, device %d: no evaluation: %s", self.log.round, device, last_line(reason)
                    )
                    self.log.device(device, {"evaluation": "failed"})
            else:
                yield device, reply

    def fail(self, device: int, reason: str) -> None:
        """Record a device that has lost its round; the reason may be its own words."""
        short = last_line(reason)
        log.warning("round %d, device %d: not used: %s", self.log.round, device, short)
        self.log.device(device, {"status": "failed", "reason": short})


class _Broadcasts:
    """What devices are sent, as records: one for each version, whoever gets it."""

    def __init__(self, present: Version) -> None:
        self._present = present
        self._known: dict[int | None, tuple[ArrayRecord, ArrayRecord | None, ArrayRecord | None]] = {}

    def of(self, assignment: Assignment) -> tuple[ArrayRecord, ArrayRecord | None, ArrayRecord | None]:
        """Return weights, running statistics and the local algorithm's vectors for a device."""
        version = self._present if assignment.start is None else assignment.start.version
        number = None if assignment.start is None else version.number
        if number not in self._known:
            self._known[number] = (
                weights_record(version.weights),
                vectors_record(version.buffers) if version.buffers else None,
                vectors_record(version.vectors) if version.vectors else None,
            )
        return self._known[number]


def _device_of_group(group: str) -> int | None:
    _, _, device = group.rpartition("/")
    return int(device) if device.isdecimal() else None
