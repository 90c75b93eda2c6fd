"""Test a device's personalised model: the dense global part with the device's own personal part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from client_app.network import Arrays, ModuleNetwork, Vector
from task.metrics import METRICS, Metric

ACCURACY = Metric("accuracy", METRICS["accuracy"])


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one device on its test part.

    Attributes:
        loss: mean loss (of cross-entropy in nats; not finite for a diverged model).
        num_samples: size of the test part.
        values: of each metric, by name.
    """

    loss: float
    num_samples: int
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of right answers; NaN where samples have no label."""
        return self.values.get("accuracy", math.nan)


@torch.inference_mode()
def evaluate(
    model: ModuleNetwork,
    *,
    global_part: Vector,
    personal: Vector,
    images: torch.Tensor,
    labels: torch.Tensor,
    buffers: Arrays | None = None,
    metrics: Sequence[Metric] = (ACCURACY,),
    batch_size: int = 256,
) -> Evaluation:
    """Load both parts into `model` and test it.

    Args:
        model: its weights are overwritten.
        global_part: float32 (N_u,), dense.
        personal: float32 (N_v,).
        images: (n, ...), samples as the network takes them, n >= 1.
        labels: targets (n, ...).
        buffers: running statistics by name; one that is not there has its first value.
        metrics: what is measured beside the loss.
        batch_size: samples per forward pass; does not change the result beyond rounding.

    Raises:
        ValueError: if a vector has the wrong shape or there are no samples.
    """
    num_samples = len(labels)
    if num_samples == 0:
        raise ValueError("the test part has no images")
    model.load(personal=personal, global_part=global_part)
    if model.buffer_names:
        model.load_buffers([buffers or {}])
    model.module.eval()
    loss, outputs = 0.0, []
    for batch, truth in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        outputs.append(model.forward(batch))
        loss += model.loss.total(outputs[-1], truth)
    found = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return Evaluation(
        loss / num_samples, num_samples, {metric.name: metric.of(found, labels) for metric in metrics}
    )
