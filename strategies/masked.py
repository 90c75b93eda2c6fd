"""From the uploads of a round to an aggregation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from protocol.messages import TrainReport
from protocol.messages import Upload as SentUpload
from radio import payload
from strategies.aggregation import ChosenAggregation, choose
from strategies.aggregation.clipped_mean import ClippedMean
from strategies.aggregation.masked_mean import Positions
from strategies.limits import FACTOR, UploadError, update_norm
from strategies.plan import Assignment, MeasuredPlan, OfdmaPlan, Outcome, RoundPlan, Upload, Weights
from strategies.records import Value
from strategies.settings import Weighting

F = TypeVar("F", bound=np.floating)


@dataclass(frozen=True, eq=False)
class MaskedUpload(Upload):
    """The retained weights of one device.

    Attributes:
        values: float32, shape (n,), n > 0.
        positions: where they belong; None: everywhere.
        vectors: what the local algorithm sends for these weights, float32 (n,), by name.
    """

    values: Weights
    positions: Positions | None
    vectors: Mapping[str, Weights]


class MaskedReceiver:
    """Decodes uploads and aggregates them (by default as Liu et al. 2024, eq. (26)).

    Args:
        plan: of the round.
        weights: the global part that was broadcast.
        weighting: of the devices in the aggregation.
        aggregation: what becomes of the uploads; None: each weight's mean over its keepers.
        limited: whether no device may send vectors of the local algorithm that are longer than `FACTOR` times
            their median; longer ones are clipped.
    """

    def __init__(
        self,
        plan: RoundPlan,
        weights: Weights,
        weighting: Weighting = "uniform",
        aggregation: ChosenAggregation | None = None,
        *,
        limited: bool = False,
    ) -> None:
        if not isinstance(plan.detail, OfdmaPlan | MeasuredPlan):
            raise TypeError(f"the plan's detail is a {type(plan.detail).__name__}; it has no digital uplink")
        self._detail = plan.detail
        self._weighting = weighting
        self._weights = weights
        self._weights_wide = weights.astype(np.float64)  # once, and not for the norm of each upload
        self._aggregator = (aggregation or choose("keepers_mean", {})).start(weights)
        factor = FACTOR if limited else np.inf
        nothing = np.zeros(weights.size, np.float32)
        names = self._detail.vectors
        self._vectors = {name: ClippedMean(nothing, factor=factor, times=1, over_all=True) for name in names}
        self._used = 0
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
        positions = Positions(upload.mask) if upload.num_kept < self._weights.size else None
        base: npt.NDArray[np.floating]
        if assignment.start is None:
            base = _at(positions, self._weights_wide)
        else:
            base = _at(positions, assignment.start.version.weights)
        vectors = {
            name: _read_vector(name, report, upload.num_kept, self._detail.bits_per_weight)
            for name in self._vectors
        }
        size = upload.num_bytes + sum(vector.num_bytes for vector in vectors.values())
        values = {name: vector.values for name, vector in vectors.items()}
        return MaskedUpload(update_norm(upload.values, base), size, upload.values, positions, values)

    def add(
        self,
        assignment: Assignment,
        report: TrainReport,
        upload: Upload | None,
        *,
        scale: float,
        num_examples: int,
    ) -> Mapping[str, Value]:
        """Take one upload."""
        wire_bytes = 0
        weight = float(num_examples) if self._weighting == "samples" else 1.0
        if upload is None:
            self._aggregator.add_nothing(weight)
            for mean in self._vectors.values():
                mean.add_nothing()
        else:
            assert isinstance(upload, MaskedUpload)
            positions = upload.positions
            self._aggregator.add(self._moved(assignment, upload, scale), positions, weight)
            for name, mean in self._vectors.items():
                mean.add(upload.vectors[name], positions)
            wire_bytes = upload.num_bytes + sum(vector.nbytes for vector in report.buffers.values())
        self._used += 1
        columns = self._detail.account(assignment.device, self._weights.size - assignment.num_pruned)
        self._bytes += wire_bytes
        self._bits += int(columns["uplink_bits"] or 0)
        self._latencies[assignment.device] = float(columns.get("latency_s") or 0.0)
        return {**columns, "wire_bytes": wire_bytes}

    def _started_from(self, assignment: Assignment) -> Weights:
        """Return the global part that a device was sent."""
        return self._weights if assignment.start is None else assignment.start.version.weights

    def _moved(self, assignment: Assignment, upload: MaskedUpload, scale: float) -> Weights:
        """Return what an upload asks for, (n,): as it is, unless it is stale or too large.

        The update of a stale one, relative to what it started from, is damped and added to the global part as
        it is now: u + s (u_k - u^v).
        """
        start = assignment.start
        stale = start is not None and start.staleness > 0
        if scale == 1.0 and not stale:
            return upload.values
        base = _at(upload.positions, self._started_from(assignment))
        present = _at(upload.positions, self._weights) if stale else base
        damping = start.weight if start is not None else 1.0
        moved: Weights = present + np.float32(scale * damping) * (upload.values - base)
        return moved

    def finish(self) -> Outcome:
        """Aggregate, and sum up the round."""
        result = self._aggregator.finish()
        columns = {
            "latency_s": self._detail.latency(self._latencies),
            "uplink_bits": self._bits,
            "wire_bytes": self._bytes,
            "uncovered_share": result.uncovered_share,
            "min_keepers": int(result.counts.min()),
        }
        vectors = {name: (mean.finish().weights, self._used) for name, mean in self._vectors.items()}
        return Outcome(result.weights, columns, result.counts > 0, vectors)


def _at(positions: Positions | None, weights: npt.NDArray[F]) -> npt.NDArray[F]:
    return weights if positions is None else positions.take(weights)


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
        upload = _decode(report.payload, num_weights)
    except payload.PayloadError as error:
        raise UploadError(str(error)) from error
    if upload.num_kept != expected:
        raise UploadError(f"the upload keeps {upload.num_kept} weights; the plan says {expected}")
    if upload.bits != bits:
        raise UploadError(f"the upload has {upload.bits} bits per weight; the plan says {bits}")
    return upload


def _read_vector(name: str, report: TrainReport, num_kept: int, bits: int) -> payload.Payload:
    """Return what a device sends for its retained weights beside them.

    Raises:
        UploadError: if it is absent, damaged, or not of all retained weights.
    """
    if name not in report.arrays:
        raise UploadError(f"the reply lacks the array {name!r} of the local algorithm")
    try:
        vector = _decode(report.arrays[name], num_kept)
    except payload.PayloadError as error:
        raise UploadError(f"the array {name!r}: {error}") from error
    if vector.num_kept != num_kept or vector.bits != bits:
        raise UploadError(
            f"the array {name!r} has {vector.num_kept} numbers of {vector.bits} bits; "
            f"the plan says {num_kept} of {bits}"
        )
    return vector


def _decode(upload: SentUpload, num_weights: int) -> payload.Payload:
    """Open an upload: of another machine bytes, of this one what was packed."""
    sent = upload if isinstance(upload, payload.Packed) else np.asarray(upload)
    return payload.decode(sent, num_weights=num_weights)
