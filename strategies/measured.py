"""Pruning ratios from what the devices really take: no emulated channel, no control of the bandwidth.

A device times its own training with a monotonic clock. Its uplink rate is either the figure that its
operator states, or that of a timed transfer (`strategies.probe_sink`). Both estimates are the median of
the last few rounds, so that one odd round changes nothing and a lasting change shows within half the
window. The ratio of the next round is the smallest with

    compute + (overhead + (1 - rho) Q) / rate  <=  margin * threshold.

The compute time is taken as it was measured, although pruning may shorten it: the budget then holds
either way. A device that had an order and did not answer in time is taken to be twice as slow for every round
that it misses, until it answers again; one that was not connected is not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid

from protocol.messages import ProbeOrder, TrainReport
from radio import payload
from strategies.aggregation import ChosenAggregation
from strategies.base import NOT_CONNECTED, WirelessStrategy
from strategies.masked import MaskedReceiver
from strategies.plan import Assignment, MeasuredPlan, RoundPlan, Weights
from strategies.records import Value
from strategies.settings import Weighting
from strategies.wall_clock import WallClock

FloatVector = npt.NDArray[np.float64]

# A device that misses more rounds than this is not taken to be slower still.
_MOST_MISSED = 10


class UplinkProbe(Protocol):
    """Measures the uplink rate of each device."""

    def order(self, device: int) -> ProbeOrder:
        """Return what the device is told to do for the measurement of this round."""
        ...

    def rate(self, device: int) -> float | None:
        """Return the rate measured since the last order, in bit/s; None if there is none."""
        ...


@dataclass(frozen=True)
class MeasuredLink:
    """The budget of a round and how the estimates are made.

    Attributes:
        threshold: compute plus transfer of each device, s.
        bits_per_weight: 32, 16 or 8.
        window: rounds whose median is the estimate.
        margin: share of the threshold that is planned with, in (0, 1].
        initial_pruning_ratio: of a device of which nothing is known yet.
        max_pruning_ratio: no device prunes more.

    Raises:
        ValueError: if a value is not valid.
    """

    threshold: float
    bits_per_weight: int = 32
    window: int = 3
    margin: float = 0.9
    initial_pruning_ratio: float = 0.0
    max_pruning_ratio: float = 1.0

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ValueError(f"threshold = {self.threshold}; it must be positive, in s")
        if self.window < 1:
            raise ValueError(f"window = {self.window}; it must be at least 1 round")
        if not 0 < self.margin <= 1:
            raise ValueError(f"margin = {self.margin}; it must be in (0, 1]")
        for name in ("initial_pruning_ratio", "max_pruning_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}; it must be in [0, 1]")


class RunningMedian:
    """The median of the last few samples.

    Args:
        window: how many.
    """

    def __init__(self, window: int) -> None:
        self._samples: deque[float] = deque(maxlen=window)

    def add(self, sample: float) -> None:
        """Take a sample."""
        self._samples.append(sample)

    @property
    def value(self) -> float | None:
        """The estimate; None without any sample."""
        return median(self._samples) if self._samples else None

    @property
    def samples(self) -> list[float]:
        """The samples that count, oldest first."""
        return list(self._samples)


def num_kept(
    link: MeasuredLink,
    num_weights: int,
    compute: float | None,
    rate: float | None,
    penalty: float = 1.0,
    further_bits: int = 0,
    vectors: int = 0,
) -> int:
    """Return how many of `num_weights` a device can train and send within the budget.

    Args:
        link: the budget.
        num_weights: N_u.
        compute: s, or None if unknown.
        rate: bit/s, or None if unknown.
        penalty: how many times slower than that the device is taken to be.
        further_bits: of what is sent with any upload.
        vectors: further vectors that are sent for the retained weights.
    """
    least = num_weights - int(np.floor(link.max_pruning_ratio * num_weights + 1e-9))
    if compute is None or rate is None:
        most = int(np.floor((1.0 - link.initial_pruning_ratio) * num_weights + 1e-9))
    else:
        bits = (link.margin * link.threshold - penalty * compute) * rate / penalty - further_bits

        def size(kept: int) -> int:
            return payload.upload_bits(num_weights, kept, link.bits_per_weight, vectors=vectors)

        most = num_weights
        if bits < size(num_weights):
            # The size of an upload grows with what it keeps; a step of the coding may hide one weight.
            low, high = 0, num_weights
            while high - low > 1:
                middle = (low + high) // 2
                if size(middle) <= bits:
                    low = middle
                else:
                    high = middle
            most = low
    return max(least, most)


@dataclass
class _Estimates:
    """What is known of one device."""

    compute: RunningMedian
    rate: RunningMedian
    missed: int = 0


class MeasuredStrategy(WirelessStrategy):
    """Masked averaging with pruning ratios that follow measured compute and uplink."""

    scheme_round_columns = ("min_keepers", "pruning_ratio_mean", "latency_threshold_s")
    scheme_device_columns = ("pruning_ratio", "rate_source")
    device_timing_columns: ClassVar[tuple[str, ...]] = (
        *WirelessStrategy.device_timing_columns,
        "measured_compute_seconds",
        "measured_seconds_per_weight_step",
        "measured_uplink_bps",
        "measured_transfer_seconds",
        "measured_total_seconds",
    )

    def __init__(
        self,
        *,
        link: MeasuredLink,
        probe: UplinkProbe | None = None,
        weighting: Weighting = "uniform",
        aggregation: ChosenAggregation | None = None,
        **skeleton: Any,
    ) -> None:
        super().__init__(**skeleton)
        self.link = link
        self.uplink_probe = probe
        self.weighting = weighting
        self.aggregation = aggregation
        self._estimates = {
            device: _Estimates(RunningMedian(link.window), RunningMedian(link.window))
            for device in range(self.fleet.num_devices)
        }

    def plan(self, server_round: int, devices: Sequence[int]) -> RoundPlan:
        """Choose each ratio from the device's own estimates."""
        assignments = []
        for device in devices:
            known = self._estimates[device]
            kept = num_kept(
                self.link,
                self.num_weights,
                known.compute.value,
                known.rate.value,
                penalty=2.0**known.missed,
                further_bits=self.buffers.bits,
                vectors=len(self.vectors),
            )
            pruned = self.num_weights - kept
            assignments.append(Assignment(device, pruned, {"pruning_ratio": pruned / self.num_weights}))
        ratios = [assignment.num_pruned / self.num_weights for assignment in assignments]
        return RoundPlan(
            tuple(assignments),
            columns={
                "pruning_ratio_mean": float(np.mean(ratios)) if ratios else None,
                "latency_threshold_s": self.link.threshold,
            },
            detail=MeasuredPlan(
                self.link.bits_per_weight, self.num_weights, self.buffers.bits, tuple(self.vectors)
            ),
        )

    def probe(self, device: int) -> ProbeOrder | None:
        """Ask for a timed transfer."""
        return self.uplink_probe.order(device) if self.uplink_probe else None

    def receive(self, server_round: int, plan: RoundPlan, weights: Weights) -> MaskedReceiver:
        """Return a receiver that aggregates the retained weights."""
        limited = self.norm_limit.norm != np.inf
        return MaskedReceiver(plan, weights, self.weighting, self.aggregation, limited=limited)

    def accepted(self, device: int, report: TrainReport, columns: Mapping[str, Value]) -> None:
        """Take the measurements of a device whose reply is used, and record them."""
        measured = self._measure(device, report, int(columns["uplink_bits"] or 0))
        super().accepted(device, report, {**columns, **measured})

    def _measure(self, device: int, report: TrainReport, bits: int) -> dict[str, Value]:
        """Update the estimates and return the columns of what the device took for `bits`."""
        known = self._estimates[device]
        known.missed = 0
        rate, source = report.metrics.get("stated-uplink-bps"), "operator"
        if rate is None:
            rate = self.uplink_probe.rate(device) if self.uplink_probe else None
            source = "none" if rate is None else "timed transfer"
        compute = report.metrics.get("measured-compute-seconds")
        if compute is not None and compute > 0:
            known.compute.add(compute)
        if rate is not None and rate > 0:
            known.rate.add(rate)
        columns: dict[str, Value] = {"rate_source": source}
        if rate:
            columns["measured_uplink_bps"] = rate
            columns["measured_transfer_seconds"] = bits / rate
            if compute is not None:
                columns["measured_total_seconds"] = compute + bits / rate
        return columns

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take the replies; devices that gave nothing usable are taken to be slower than thought."""
        if isinstance(self.mode, WallClock):
            replies = list(replies)
            self._plan = self.mode.narrow(self._plan, replies, self.fleet)
            for assignment in self._plan.assignments:
                self._expect(assignment)
            for device, row in self.mode.at_work_columns.items():
                self.log.device(device, row)
        taken = super().aggregate_train(server_round, replies)
        self.close_round(self._plan)
        return taken

    def exchange(self, grid: Grid, orders: Iterable[Message], timeout: float) -> Iterable[Message]:
        """Send train orders and return the replies that are there when the round closes."""
        if isinstance(self.mode, WallClock):
            return self.mode.exchange(grid, orders, self.fleet, self.heard)
        return super().exchange(grid, orders, timeout)

    @property
    def at_work(self) -> Set[int]:
        """Return the devices whose order is still out."""
        return self.mode.busy if isinstance(self.mode, WallClock) else super().at_work

    def _evaluated(self) -> Iterable[int]:
        busy = self.at_work
        return [device for device in super()._evaluated() if device not in busy]

    def close_round(self, plan: RoundPlan) -> None:
        """Note which devices had an order and gave nothing usable."""
        for assignment in plan.assignments:
            device = assignment.device
            row = self.log.devices.get(device, {})
            if row.get("status") != "ok" and row.get("reason") != NOT_CONNECTED:
                self._estimates[device].missed = min(self._estimates[device].missed + 1, _MOST_MISSED)

    def state(self) -> Mapping[str, npt.NDArray[np.generic]]:
        """Return the samples behind the estimates."""
        stored = dict(super().state())
        for device, known in self._estimates.items():
            stored[f"compute-{device}"] = np.array(known.compute.samples, dtype=np.float64)
            stored[f"rate-{device}"] = np.array(known.rate.samples, dtype=np.float64)
        return stored

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take the samples back."""
        super().restore(state)
        for device, known in self._estimates.items():
            for name, estimate in (("compute", known.compute), ("rate", known.rate)):
                for sample in state.get(f"{name}-{device}", np.zeros(0)).tolist():
                    estimate.add(sample)
