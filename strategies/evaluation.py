"""What devices report of their tests, and what it says of the round.

Every number is a claim: an accuracy moves the means by the device's share and no more, and a loss decides
about the run only together with the losses of half of the devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

import numpy as np
from flwr.app import Message, MetricRecord

from protocol.messages import METRICS, MessageError, real_number, whole_number
from strategies.records import Value


@dataclass(frozen=True)
class Evaluation:
    """One device's test.

    Attributes:
        accuracy: share of its test images that it names right, in [0, 1].
        loss: mean cross-entropy, nats; infinite where it is no finite number.
        num_test: its test images, as it claims.
    """

    accuracy: float
    loss: float
    num_test: int

    @classmethod
    def from_message(cls, message: Message) -> Evaluation:
        """Read a reply, trusting none of it.

        Raises:
            MessageError: if a number is absent, of the wrong type, or cannot be one of a test.
        """
        metrics = message.content.get(METRICS)
        if not isinstance(metrics, MetricRecord):
            raise MessageError(f"the reply lacks the MetricRecord {METRICS!r}")
        accuracy, loss = real_number(metrics, "accuracy"), real_number(metrics, "loss")
        num_test = whole_number(metrics, "num-examples")
        if not 0.0 <= accuracy <= 1.0:
            raise MessageError(f"accuracy = {accuracy!r} in the reply; it must be in [0, 1]")
        if loss < 0.0:
            raise MessageError(f"loss = {loss!r} in the reply; a cross-entropy is not negative")
        if num_test < 1:
            raise MessageError(f"num-examples = {num_test} in the reply; it must be at least 1")
        return cls(accuracy, loss if math.isfinite(loss) else math.inf, num_test)

    def diverged(self, limit: float) -> bool:
        """Return whether the loss is not finite, or above `limit`."""
        return not self.loss <= limit or math.isinf(self.loss)


def summarise(
    evaluations: Mapping[int, Evaluation], counts: Mapping[int, int], limit: float
) -> dict[str, Value]:
    """Return the columns of a round.

    The accuracies are those of all devices that were evaluated. Losses of devices that have diverged have no
    part in the mean of the losses; how many these are is a column of its own. In the median they count: it is
    above `limit` where more than half have diverged.

    Args:
        evaluations: by device, at least one.
        counts: test images that each counts with in ``accuracy_samples``.
        limit: loss above which a device has diverged, nats.
    """
    accuracies = [evaluation.accuracy for evaluation in evaluations.values()]
    losses = [evaluation.loss for evaluation in evaluations.values() if not evaluation.diverged(limit)]
    right = math.fsum(evaluation.accuracy * counts[k] for k, evaluation in evaluations.items())
    return {
        "accuracy_mean": float(np.mean(accuracies)),
        "accuracy_samples": right / sum(counts[k] for k in evaluations),
        "accuracy_worst": min(accuracies),
        "loss_mean": float(np.mean(losses)) if losses else None,
        "loss_median": median_low([evaluation.loss for evaluation in evaluations.values()]),
        "evaluated": len(evaluations),
        "diverged": len(evaluations) - len(losses),
    }
