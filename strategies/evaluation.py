"""What devices report of their tests, and what it says of the round.

Every number is a claim: an accuracy moves the means by the device's share and no more, and a loss decides
about the run only together with the losses of half of the devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MetricRecord

from protocol.fields import MessageError, real_number, whole_number
from protocol.messages import METRICS
from strategies.records import Value

GlobalTest = Callable[[npt.NDArray[np.float32], Mapping[str, npt.NDArray[Any]]], Mapping[str, Value]]
"""From the global part and the shared buffers to the columns of a test on the whole test set."""


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    pairs = zip(values, weights, strict=True)
    return math.fsum(value * weight for value, weight in pairs) / sum(weights)


@dataclass(frozen=True)
class MetricColumns:
    """What devices measure in a test, and how it is recorded.

    Attributes:
        name: of the metric.
        combine: the value over all samples, from each device's value and number of samples.
        lower_is_better: whether the worst device is that with the highest value.
        least, most: what it can be at all.
    """

    name: str
    combine: Callable[[Sequence[float], Sequence[float]], float] = _mean
    lower_is_better: bool = False
    least: float = -math.inf
    most: float = math.inf

    @property
    def of_round(self) -> tuple[str, str, str]:
        """Columns of the row of a round: mean over devices, over samples, worst device."""
        return f"{self.name}_mean", f"{self.name}_samples", f"{self.name}_worst"

    @property
    def of_device(self) -> str:
        """Column of the row of a device."""
        return f"test_{self.name}"


ACCURACY = MetricColumns("accuracy", least=0.0, most=1.0)


@dataclass(frozen=True)
class Evaluation:
    """One device's test.

    Attributes:
        loss: mean loss (of cross-entropy in nats); infinite where it is no finite number.
        num_test: its test samples, as it claims.
        values: of each metric, by name.
    """

    loss: float
    num_test: int
    values: Mapping[str, float]

    @classmethod
    def from_message(cls, message: Message, expected: Sequence[MetricColumns] = (ACCURACY,)) -> Evaluation:
        """Read a reply, trusting none of it.

        Raises:
            MessageError: if a number is absent, of the wrong type, or cannot be one of a test.
        """
        metrics = message.content.get(METRICS)
        if not isinstance(metrics, MetricRecord):
            raise MessageError(f"the reply lacks the MetricRecord {METRICS!r}")
        values = {metric.name: real_number(metrics, metric.name) for metric in expected}
        for metric in expected:
            value = values[metric.name]
            if not metric.least <= value <= metric.most:
                limits = f"[{metric.least:g}, {metric.most:g}]"
                raise MessageError(f"{metric.name} = {value!r} in the reply; it must be in {limits}")
        loss, num_test = real_number(metrics, "loss"), whole_number(metrics, "num-examples")
        if loss < 0.0 and ACCURACY in expected:
            raise MessageError(f"loss = {loss!r} in the reply; a cross-entropy is not negative")
        if num_test < 1:
            raise MessageError(f"num-examples = {num_test} in the reply; it must be at least 1")
        return cls(loss if math.isfinite(loss) else math.inf, num_test, values)

    def diverged(self, limit: float) -> bool:
        """Return whether the loss is not finite, or above `limit`."""
        return not self.loss <= limit or math.isinf(self.loss)


def summarise(
    evaluations: Mapping[int, Evaluation],
    counts: Mapping[int, int],
    limit: float,
    metrics: Sequence[MetricColumns] = (ACCURACY,),
) -> dict[str, Value]:
    """Return the columns of a round.

    The metrics are those of all devices that were evaluated. Losses of devices that have diverged have no
    part in the mean of the losses; how many these are is a column of its own. In the median they count: it is
    above `limit` where more than half have diverged.

    Args:
        evaluations: by device, at least one.
        counts: test samples that each counts with in the columns over samples.
        limit: loss above which a device has diverged.
        metrics: what was measured.
    """
    losses = [evaluation.loss for evaluation in evaluations.values() if not evaluation.diverged(limit)]
    columns: dict[str, Value] = {}
    for metric in metrics:
        values = [evaluation.values[metric.name] for evaluation in evaluations.values()]
        worst = max(values) if metric.lower_is_better else min(values)
        over_samples = metric.combine(values, [float(counts[device]) for device in evaluations])
        of_round = (float(np.mean(values)), over_samples, worst)
        columns |= dict(zip(metric.of_round, of_round, strict=True))
    return {
        **columns,
        "loss_mean": float(np.mean(losses)) if losses else None,
        "loss_median": median_low([evaluation.loss for evaluation in evaluations.values()]),
        "evaluated": len(evaluations),
        "diverged": len(evaluations) - len(losses),
    }
