"""Test a device's personalised model: the dense global part with the device's own personal part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from client_app.network import ModuleNetwork, Vector


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one device on its test part.

    Attributes:
        loss: mean cross-entropy in nats (not finite for a diverged model).
        accuracy: share of right answers.
        num_samples: size of the test part.
    """

    loss: float
    accuracy: float
    num_samples: int


@torch.inference_mode()
def evaluate(
    model: ModuleNetwork,
    *,
    global_part: Vector,
    personal: Vector,
    images: torch.Tensor,
    labels: torch.Tensor,
    batch_size: int = 256,
) -> Evaluation:
    """Load both parts into `model` and test it.

    Args:
        model: its weights are overwritten.
        global_part: float32 (N_u,), dense.
        personal: float32 (N_v,).
        images: float32 (n, 1, 28, 28), n >= 1.
        labels: int64 (n,).
        batch_size: images per forward pass; does not change the result beyond rounding.

    Raises:
        ValueError: if a vector has the wrong shape or there are no images.
    """
    num_samples = int(labels.numel())
    if num_samples == 0:
        raise ValueError("the test part has no images")
    model.load(personal=personal, global_part=global_part)
    model.module.eval()
    loss, right = 0.0, 0
    for batch, truth in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        logits = model.forward(batch)
        loss += float(torch.nn.functional.cross_entropy(logits, truth, reduction="sum"))
        right += int((logits.argmax(dim=1) == truth).sum())
    return Evaluation(loss / num_samples, right / num_samples, num_samples)
