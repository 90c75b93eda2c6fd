"""From the uploads of a round to the masked mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protocol.messages import TrainReport
from radio import payload
from strategies.averaging import MaskedAverage, Positions
from strategies.limits import UploadError, update_norm
from strategies.plan import Assignment, MeasuredPlan, OfdmaPlan, RoundPlan, Upload, Weights
from strategies.records import Value
from strategies.settings import Weighting


@dataclass(frozen=True, eq=False)
class MaskedUpload(Upload):
    """The retained weights of one device.

    Attributes:
        values: float32, shape (n,), n > 0.
        positions: where they belong; None: everywhere.
    """

    values: Weights
    positions: Positions | None


class MaskedReceiver:
    """Decodes uploads and averages each weight over its contributors (Liu et al. 2024, eq. (26)).

    Args:
        plan: of the round.
        weights: the global part that was broadcast.
        weighting: of the devices in the average.
    """

    def __init__(self, plan: RoundPlan, weights: Weights, weighting: Weighting = "uniform") -> None:
        if not isinstance(plan.detail, OfdmaPlan | MeasuredPlan):
            raise TypeError(f"the plan's detail is a {type(plan.detail).__name__}; it has no digital uplink")
        self._detail = plan.detail
        self._weighting = weighting
        self._weights = weights
        self._average = MaskedAverage(weights.size)
        self._bytes = 0
        self._bits = 0
        self._latencies: dict[int, float] = {}

    def open(self, assignment: Assignment, report: TrainReport) -> MaskedUpload | None:
        """Decode and check one upload."""
        if isinstance(self._detail, OfdmaPlan) and self._detail.slots[assignment.device].lost:
            raise UploadError("outage: the channel was worse than planned, and the upload is lost")
        upload = read_upload(assignment, report, self._weights.size, self._detail.bits_per_weight)
        if upload is None or upload.num_kept == 0:
            return None
        positions, base = None, self._weights
        if upload.num_kept < self._weights.size:
            positions = Positions(upload.mask)
            base = positions.take(self._weights)
        return MaskedUpload(update_norm(upload.values, base), upload.num_bytes, upload.values, positions)

    def add(
        self,
        assignment: Assignment,
        report: TrainReport,
        upload: Upload | None,
        *,
        scale: float,
        num_examples: int,
    ) -> Mapping[str, Value]:
        """Add one upload to the average."""
        wire_bytes = 0
        if upload is not None:
            assert isinstance(upload, MaskedUpload)
            weight = float(num_examples) if self._weighting == "samples" else 1.0
            values, positions = upload.values, upload.positions
            if scale < 1.0:
                base = self._weights if positions is None else positions.take(self._weights)
                values = base + np.float32(scale) * (values - base)
            if positions is None:
                self._average.add_dense(values, weight)
            else:
                self._average.add(values, positions, weight)
            wire_bytes = upload.num_bytes + sum(vector.nbytes for vector in report.buffers.values())
        columns = self._detail.account(assignment.device, self._weights.size - assignment.num_pruned)
        self._bytes += wire_bytes
        self._bits += int(columns["uplink_bits"] or 0)
        self._latencies[assignment.device] = float(columns.get("latency_s") or 0.0)
        return {**columns, "wire_bytes": wire_bytes}

    def finish(self) -> tuple[Weights, Mapping[str, Value]]:
        """Average, and sum up the round."""
        average = self._average.result(self._weights)
        return average.weights, {
            "latency_s": self._detail.latency(self._latencies),
            "uplink_bits": self._bits,
            "wire_bytes": self._bytes,
            "uncovered_share": average.uncovered_share,
            "min_keepers": int(average.counts.min()),
        }


def read_upload(
    assignment: Assignment, report: TrainReport, num_weights: int, bits: int
) -> payload.Payload | None:
    """Return a device's upload as far as it is what the plan says; None where nothing was sent.

    Raises:
        UploadError: if it is absent, damaged, or keeps another number of weights or other bits of each than
            planned, for which the round was accounted.
    """
    expected = num_weights - assignment.num_pruned
    if report.payload is None:
        if expected:
            raise UploadError(f"the reply has no upload; the plan says {expected} weights")
        return None
    try:
        upload = payload.decode(report.payload.data, num_weights=num_weights)
    except payload.PayloadError as error:
        raise UploadError(str(error)) from error
    if upload.num_kept != expected:
        raise UploadError(f"the upload keeps {upload.num_kept} weights; the plan says {expected}")
    if upload.bits != bits:
        raise UploadError(f"the upload has {upload.bits} bits per weight; the plan says {bits}")
    return upload
