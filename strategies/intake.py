"""Which uploads of a round are let in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from protocol.messages import TrainReport
from strategies.limits import NormHistory, NormLimit, UploadError
from strategies.plan import Assignment, Receiver, Upload
from strategies.records import RoundLog, Value
from strategies.sample_counts import SampleCounts


class Keeper(Protocol):
    """What the intake needs of the strategy."""

    log: RoundLog
    norm_limit: NormLimit
    norms: NormHistory
    train_counts: SampleCounts

    def accepted(self, device: int, report: TrainReport, columns: Mapping[str, Value]) -> None:
        """Record a device whose reply is used."""
        ...

    def fail(self, device: int, reason: str) -> None:
        """Record a device that has lost its round."""
        ...


@dataclass(frozen=True)
class _Held:
    """A report whose upload waits for the limit of the round."""

    assignment: Assignment
    report: TrainReport
    upload: Upload


# While the limit of a round follows from the round itself, uploads wait for it: all of them, as long as they
# take no more than this; else the first so many, in the order of the devices.
_HELD_BYTES = 1 << 28
_HELD_UPLOADS = 32


class Intake:
    """Lets the uploads of one round in, in the order of the devices.

    Where the limit on their norms follows from earlier rounds, each is decided on as it comes, and its memory
    is free again; else they wait until the round's own norms tell.

    Attributes:
        receiver: takes what is let in.
        norms: of all uploads that could be read.
        used: replies that were used.
    """

    def __init__(self, strategy: Keeper, receiver: Receiver) -> None:
        self._strategy = strategy
        self.receiver = receiver
        self.norms: list[float] = []
        self.used = 0
        self._held: list[_Held] = []
        fixed = strategy.norm_limit.norm
        self._limit = strategy.norms.limit() if fixed is None else fixed

    def take(self, assignment: Assignment, report: TrainReport) -> None:
        """Decide on a device's report, now or later.

        Raises:
            UploadError: if it cannot be used.
        """
        upload = self.receiver.open(assignment, report)
        if upload is None:
            self._admit(assignment, report, None, 1.0)
            return
        self.norms.append(upload.norm)
        self._strategy.log.device(assignment.device, {"update_norm": upload.norm})
        if self._limit is not None:
            self._decide(_Held(assignment, report, upload), self._limit)
            return
        self._held.append(_Held(assignment, report, upload))
        held_bytes = sum(held.upload.num_bytes for held in self._held)
        if len(self._held) >= _HELD_UPLOADS and held_bytes > _HELD_BYTES:
            self._settle()

    def close(self) -> None:
        """Decide on those that wait."""
        if self._held:
            self._settle()

    def _settle(self) -> None:
        self._limit = self._strategy.norms.limit(self.norms)
        assert self._limit is not None
        for held in self._held:
            try:
                self._decide(held, self._limit)
            except UploadError as error:
                self._strategy.fail(held.assignment.device, str(error))
        self._held = []

    def _decide(self, held: _Held, limit: float) -> None:
        scale = self._strategy.norm_limit.scale(held.upload.norm, limit)
        self._admit(held.assignment, held.report, held.upload, scale)

    def _admit(
        self, assignment: Assignment, report: TrainReport, upload: Upload | None, scale: float
    ) -> None:
        counted = self._strategy.train_counts.counted(assignment.device, report.num_examples)
        columns = self.receiver.add(assignment, report, upload, scale=scale, num_examples=counted)
        self._strategy.accepted(assignment.device, report, {"num_examples": counted, **columns})
        self.used += 1
