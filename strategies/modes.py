"""When a round closes: with everybody in (`Synchronous`), or on the emulated clock without (`Overlapping`).

In the latter a device that is late goes on, and its upload is taken in the round in which it is done. What it
sends is taken as an update of the version that it started from, damped by its staleness. FedBuff (Nguyen et
al. 2022, arXiv 2106.06639), FedAsync (Xie et al. 2019, arXiv 1903.03934) and the fixed periods of TT-Fed are
of this kind.

A device keeps its share of the band until it is done; who starts meanwhile shares what is left of it. The
training itself is done when its result is due, from the version that the device was sent, as part of that
round (learning rates and mini-batches are that round's, too). So between two rounds nothing of it is under
way, and a run that is stopped there goes on as if it never was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from strategies.clock import Clock, Work, window
from strategies.plan import Assignment, OfdmaPlan, RoundPlan, Slot
from strategies.records import Value
from strategies.versions import Start, Version, load, staleness_weight, store

Rows = Mapping[str, Value]
_STATE = "rounds-under-way"
_LEAST_BAND = 1e-9  # a share of the band below this is none
NO_RATE = "the channel is dead: no rate at any share of the band"


class Scheme(Protocol):
    """What a mode needs of the strategy."""

    @property
    def present(self) -> Version:
        """Return the global part as it is; its number is the mode's."""
        ...

    def choose(self, server_round: int, devices: Sequence[int], number: int, turn: int) -> Sequence[int]:
        """Return `number` of these devices; `turn` counts the choices of the round, from 0."""
        ...

    def plan(self, server_round: int, devices: Sequence[int], *, band: float = 1.0) -> RoundPlan:
        """Plan for devices that start now, with so much of the band."""
        ...

    def totals(self, rows: Sequence[Rows], absent: Sequence[Rows]) -> dict[str, Value]:
        """Return the columns of a round that sum up those of its devices, and of those that sat it out."""
        ...

    @property
    def empty(self) -> OfdmaPlan:
        """Return the detail of a plan for nobody."""
        ...


class Mode(Protocol):
    """Decides who starts and whose uploads a round takes."""

    round_columns: tuple[str, ...]
    device_columns: tuple[str, ...]

    def plan(self, server_round: int, scheme: Any) -> RoundPlan:
        """Return the plan of a round."""
        ...

    def close(self, *, changed: bool) -> dict[str, Value]:
        """Take note of whether the round made a new version, and return what is recorded of it."""
        ...

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs."""
        ...

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        ...


@dataclass
class Synchronous:
    """Every round takes what it has asked for.

    Attributes:
        num_devices: K.
        per_round: devices that take part; None: all.
    """

    num_devices: int
    per_round: int | None = None
    round_columns: tuple[str, ...] = ()
    device_columns: tuple[str, ...] = ()

    def plan(self, server_round: int, scheme: Any) -> RoundPlan:
        """Plan for the devices that are chosen."""
        everyone = range(self.num_devices)
        chosen = scheme.choose(server_round, everyone, self.per_round or self.num_devices, 0)
        plan: RoundPlan = scheme.plan(server_round, chosen)
        return plan

    def close(self, *, changed: bool) -> dict[str, Value]:
        """Record nothing."""
        return {}

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return nothing: between rounds nothing is under way."""
        return {}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back nothing."""


@dataclass(frozen=True, eq=False)
class _Pending:
    """What is known of a device at work."""

    assignment: Assignment
    slot: Slot
    version: Version


class Overlapping:
    """Rounds that close at a deadline, or with so many uploads, whoever is still at work.

    Args:
        num_devices: K.
        at_work: devices that are at work at once, at most.
        threshold: s; a round closes at the first multiple of it by which a device is done (`clock.window`).
        buffer: uploads with which a round closes instead; None: at the deadline.
        exponent: a of the staleness weight (1 + s)^-a.
    """

    round_columns: tuple[str, ...] = ("time_s", "version", "staleness", "at_work")
    device_columns: tuple[str, ...] = ("version", "staleness")

    def __init__(
        self,
        num_devices: int,
        *,
        at_work: int | None = None,
        threshold: float,
        buffer: int | None = None,
        exponent: float = 0.5,
    ) -> None:
        self.num_devices = num_devices
        self.at_work = at_work or num_devices
        self.threshold = threshold
        self.buffer = buffer
        self.exponent = exponent
        self.version = 0
        self._clock = Clock()
        self._pending: dict[int, _Pending] = {}

    def plan(self, server_round: int, scheme: Scheme) -> RoundPlan:
        """Start who can, let the clock run until the round closes, and return what has come in by then."""
        turn = _Turn(server_round, scheme, replace(scheme.present, number=self.version))
        self._start(turn, 0.0)
        if self.buffer is None:
            seconds = window(self._clock, self.threshold)
            done = self._clock.until(seconds)
        else:
            seconds, done = self._fill(turn, self.buffer)
        self._clock.close(seconds)
        taken = [self._pending.pop(work.device) for work in sorted(done, key=lambda work: work.device)]
        return self._planned(turn, taken, seconds)

    def _fill(self, turn: _Turn, buffer: int) -> tuple[float, list[Work]]:
        """Return when so many uploads are in, or nobody is worth waiting for, and who is done by then.

        A device whose upload lies in the buffer rests until the round closes: it would start from the
        version that it has just used.
        """
        done: list[Work] = []
        uploads, now = 0, 0.0
        while uploads < buffer and any(work.awaited for work in self._clock.works.values()):
            done.append(self._clock.pop())
            now = max(now, done[-1].left)  # times within a tick come in the order of devices
            uploads += done[-1].uploads
            if uploads < buffer:
                self._start(turn, now, resting={work.device for work in done})
        if not done:  # only devices that send nothing are at work
            seconds = window(self._clock, self.threshold)
            return seconds, self._clock.until(seconds)
        return now, done

    def _start(self, turn: _Turn, now: float, resting: set[int] | frozenset[int] = frozenset()) -> None:
        """Put as many devices to work as there may be, with what is left of the band."""
        number = self.at_work - len(self._pending) + len(resting)
        idle = [
            device
            for device in range(self.num_devices)
            if device not in self._pending and device not in turn.absent
        ]
        held = sum(self._pending[device].slot.share for device in self._clock.works)
        band = 1.0 - held
        if number < 1 or not idle or (self._clock.works and band < _LEAST_BAND):
            return
        chosen = turn.scheme.choose(turn.round, idle, min(number, len(idle)), turn.number)
        plan = turn.scheme.plan(turn.round, chosen, band=band)
        turn.note(plan)
        assert isinstance(plan.detail, OfdmaPlan)
        for assignment in plan.assignments:
            device, slot = assignment.device, plan.detail.slots[assignment.device]
            if not math.isfinite(slot.latency):
                turn.absent[device] = {**assignment.columns, "status": "failed", "reason": NO_RATE}
                continue
            uploads = slot.bits > 0 and not slot.lost
            self._clock.start(Work(device, now + slot.latency, awaited=slot.counts, uploads=uploads))
            self._pending[device] = _Pending(assignment, slot, turn.version)

    def _planned(self, turn: _Turn, taken: Sequence[_Pending], seconds: float) -> RoundPlan:
        """Put what has come in into a plan."""
        assignments, stale = [], []
        for pending in taken:
            staleness = self.version - pending.version.number
            stale.append(staleness)
            start = Start(pending.version, staleness, staleness_weight(staleness, self.exponent))
            row = {
                **pending.assignment.columns,
                "version": pending.version.number,
                "staleness": staleness,
            }
            assignments.append(replace(pending.assignment, columns=row, start=start))
        columns: dict[str, Value] = {
            **turn.columns,
            **turn.scheme.totals(
                [assignment.columns for assignment in assignments], list(turn.absent.values())
            ),
            "latency_s": seconds,
            "time_s": self._clock.time,
            "staleness": float(np.mean(stale)) if stale else None,
            "at_work": len(self._pending),
        }
        slots = {pending.assignment.device: pending.slot for pending in taken}
        return RoundPlan(
            tuple(assignments),
            columns=columns,
            detail=replace(turn.scheme.empty, slots=slots, seconds=seconds),
            absent=turn.absent,
        )

    def close(self, *, changed: bool) -> dict[str, Value]:
        """Count the versions."""
        self.version += changed
        return {"version": self.version}

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the clock, who is at work at what, and the versions that they started from."""
        works = [
            {
                "work": asdict(work),
                "pruned": self._pending[device].assignment.num_pruned,
                "columns": dict(self._pending[device].assignment.columns),
                "slot": asdict(self._pending[device].slot),
                "version": self._pending[device].version.number,
            }
            for device, work in self._clock.works.items()
        ]
        text = json.dumps({"time": self._clock.time, "version": self.version, "works": works})
        used = {pending.version.number: pending.version for pending in self._pending.values()}
        return {_STATE: np.frombuffer(text.encode(), np.uint8), **store(used)}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        told = json.loads(state[_STATE].tobytes())
        versions = load(state)
        self.version = told["version"]
        self._clock = Clock(told["time"], [Work(**one["work"]) for one in told["works"]])
        self._pending = {
            one["work"]["device"]: _Pending(
                Assignment(one["work"]["device"], one["pruned"], one["columns"]),
                Slot(**one["slot"]),
                versions[one["version"]],
            )
            for one in told["works"]
        }


class _Turn:
    """What a round gathers while it is planned."""

    def __init__(self, server_round: int, scheme: Scheme, version: Version) -> None:
        self.round, self.scheme, self.version = server_round, scheme, version
        self.number = 0  # of plans so far
        self.absent: dict[int, Rows] = {}
        self.columns: dict[str, Value] = {}

    def note(self, plan: RoundPlan) -> None:
        """Take note of the plan of devices that start."""
        self.number += 1
        self.absent |= plan.absent
        self.columns = {**plan.columns, **self.columns}
