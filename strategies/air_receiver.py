"""Collects the updates that the air will add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.messages import TrainReport
from radio import payload
from strategies.limits import update_norm
from strategies.masked import read_upload
from strategies.plan import AirPlan, Assignment, Outcome, RoundPlan, Upload, Weights
from strategies.records import Value


@dataclass(frozen=True, eq=False)
class _Received(Upload):
    """One user's update: its retained entries."""

    update: payload.Payload


@dataclass(frozen=True, eq=False)
class AirUpdate:
    """One user's update, dense with zeros where pruned, and its mask."""

    values: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_]
    num_examples: int


Combine = Callable[[RoundPlan, Weights, Mapping[int, AirUpdate]], Outcome]
"""From plan, broadcast weights and updates by user to the next weights and the columns of the round."""


def air_plan(plan: RoundPlan) -> AirPlan:
    """Return the plan of an analog uplink.

    Raises:
        TypeError: if the round has another one.
    """
    if not isinstance(plan.detail, AirPlan):
        raise TypeError(f"the plan's detail is a {type(plan.detail).__name__}; an AirPlan is needed")
    return plan.detail


class AirReceiver:
    """Collects the updates of a round; the air adds them all at once.

    Args:
        plan: of the round.
        weights: the global part that was broadcast.
        combine: what the server makes of the superposition.
    """

    def __init__(self, plan: RoundPlan, weights: Weights, combine: Combine) -> None:
        self._plan = plan
        self._combine = combine
        self._weights = weights
        self._updates: dict[int, AirUpdate] = {}
        self._bytes = 0

    def open(self, assignment: Assignment, report: TrainReport) -> _Received | None:
        """Decode and check one user's update; what the air superposes travels as float32."""
        upload = read_upload(assignment, report, self._weights.size, bits=32)
        if upload is None or upload.num_kept == 0:
            return None
        return _Received(update_norm(upload.values), upload.num_bytes, upload)

    def add(
        self,
        assignment: Assignment,
        report: TrainReport,
        upload: Upload | None,
        *,
        scale: float,
        num_examples: int,
    ) -> Mapping[str, Value]:
        """Keep one user's update."""
        columns: dict[str, Value] = {
            "kept_weights": self._weights.size - assignment.num_pruned,
            "wire_bytes": 0,
        }
        if upload is None:
            return columns
        assert isinstance(upload, _Received)
        values = upload.update.dense()
        if scale < 1.0:
            values *= np.float32(scale)
        self._updates[assignment.device] = AirUpdate(values, upload.update.mask, num_examples)
        self._bytes += upload.num_bytes
        return {**columns, "wire_bytes": upload.num_bytes}

    def finish(self) -> Outcome:
        """Let the air add the updates."""
        if not self._updates:
            return Outcome(self._weights, {"wire_bytes": 0}, np.zeros(self._weights.size, np.bool_))
        found = self._combine(self._plan, self._weights, self._updates)
        return found._replace(columns={**found.columns, "wire_bytes": self._bytes})
