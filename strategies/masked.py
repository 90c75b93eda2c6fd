"""From the uploads of a round to the masked mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np

from protocol.messages import TrainReport
from radio import payload
from strategies.averaging import MaskedAverage, Positions
from strategies.base import Assignment, RoundPlan, Weights
from strategies.limits import NormLimit, UploadError
from strategies.records import Value


class Accounting(Protocol):
    """What the receiver asks of its strategy."""

    weighting: Literal["uniform", "samples"]
    norm_limit: NormLimit

    def account(self, assignment: Assignment, num_kept: int, report: TrainReport) -> Mapping[str, Value]:
        """Return the columns of what a device kept and sent."""
        ...

    def round_latency(self, plan: RoundPlan, spent: Mapping[int, float]) -> float | None:
        """Return how long the emulated round takes, from the seconds of the devices that answered."""
        ...


class MaskedReceiver:
    """Decodes uploads and averages each weight over its keepers."""

    def __init__(self, strategy: Accounting, plan: RoundPlan, weights: Weights) -> None:
        self._strategy = strategy
        self._plan = plan
        self._weights = weights
        self._average = MaskedAverage(weights.size)
        self._bytes = 0
        self._bits = 0
        self._latencies: dict[int, float] = {}

    def add(self, assignment: Assignment, report: TrainReport) -> Mapping[str, Value]:
        """Decode one upload and add it to the average."""
        num_weights = self._weights.size
        expected = num_weights - assignment.num_pruned
        wire_bytes = 0
        if report.payload is not None:
            try:
                upload = payload.decode(report.payload.data, num_weights=num_weights)
            except payload.PayloadError as error:
                raise UploadError(str(error)) from error
            if upload.values.size != expected:
                raise UploadError(f"the upload keeps {upload.values.size} weights; the plan says {expected}")
            weight = float(report.num_examples) if self._strategy.weighting == "samples" else 1.0
            if expected == num_weights:
                self._average.add_dense(self._limited(upload.values, self._weights), weight)
            else:
                positions = Positions(upload.mask)
                values = self._limited(upload.values, positions.take(self._weights))
                self._average.add(values, positions, weight)
            wire_bytes = report.payload.size
        elif expected:
            raise UploadError(f"the reply has no upload; the plan says {expected} weights")
        columns = self._strategy.account(assignment, expected, report)
        self._bytes += wire_bytes
        self._bits += int(columns["uplink_bits"] or 0)
        self._latencies[assignment.device] = float(columns.get("latency_s") or 0.0)
        return {**columns, "wire_bytes": wire_bytes}

    def _limited(self, values: Weights, broadcast: Weights) -> Weights:
        """Return a device's weights within the limit on its update of what it was sent."""
        limit = self._strategy.norm_limit
        if math.isinf(limit.norm):
            return values
        with np.errstate(over="ignore", invalid="ignore"):
            update = values - broadcast
        kept, norm = limit.apply(update)
        return values if norm <= limit.norm else broadcast + kept

    def finish(self) -> tuple[Weights, Mapping[str, Value]]:
        """Average, and sum up the round."""
        average = self._average.result(self._weights)
        return average.weights, {
            "latency_s": self._strategy.round_latency(self._plan, self._latencies),
            "uplink_bits": self._bits,
            "wire_bytes": self._bytes,
            "uncovered_share": average.uncovered_share,
            "min_keepers": int(average.counts.min()),
        }
