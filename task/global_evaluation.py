"""The global model on the whole test set, where no part of it is personal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from task.build import Task
from task.split import persistent_buffers

_BATCH = 256


@torch.inference_mode()
def test_global(
    task: Task, weights: npt.NDArray[np.float32], buffers: Mapping[str, npt.NDArray[Any]]
) -> dict[str, float]:
    """Return the mean loss and the metrics of a model on all test samples.

    Args:
        task: its network takes the weights over.
        weights: float32 (N_u,), all of them.
        buffers: running statistics by name, as vectors.
    """
    named, own = dict(task.model.named_parameters()), persistent_buffers(task.model)
    layout = task.split.global_part
    for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
        named[name].copy_(torch.from_numpy(weights[place].copy()).view(shape))
    for name, vector in buffers.items():
        own[name].copy_(torch.from_numpy(np.array(vector)).view(own[name].shape))
    task.model.eval()
    inputs, targets = task.data.test
    outputs, loss = [], 0.0
    for samples, truth in zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True):
        outputs.append(task.model(task.transform(samples)).to(torch.float32))
        loss += task.loss.total(outputs[-1], truth)
    found = torch.cat(outputs)
    values = {f"global_{metric.name}": metric.of(found, targets) for metric in task.metrics}
    return {"global_loss": loss / len(targets), **values}
