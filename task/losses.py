"""What training minimises, by name: a function of outputs (n, ...) and targets (n, ...).

It returns one number for each sample, (n,), or one for the batch. Devices are computed together
(``engine.batch_devices``) only where each sample has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from registry import Registry
from task.dataset import Dataset

LossFunction = Callable[..., torch.Tensor]
LOSSES: Registry[LossFunction] = Registry("loss", key="task.loss")


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss with its options.

    Attributes:
        name: of `LOSSES`, or ``package.module:function``.
        function: computes it.
        options: its keyword arguments.
    """

    name: str
    function: LossFunction
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def plain_cross_entropy(self) -> bool:
        """Whether it is the one whose gradient the hand-written kernels know."""
        return self.name == "cross_entropy" and not self.options.get("label_smoothing")

    def mean(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean over the samples, a scalar."""
        if self.plain_cross_entropy and outputs.ndim == 2:
            return functional.cross_entropy(outputs, targets)
        found = self.function(outputs, targets, **self.options)
        return found if found.ndim == 0 else found.mean()

    def total(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
        """Return the sum over the samples."""
        if self.plain_cross_entropy and outputs.ndim == 2:
            return float(functional.cross_entropy(outputs, targets, reduction="sum"))
        found = self.function(outputs.to(torch.float32), targets, **self.options)
        return float(found) * len(targets) if found.ndim == 0 else float(found.sum())

    def each(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each sample, (n,).

        Raises:
            ValueError: if the function gives one number for the batch.
        """
        found = self.function(outputs, targets, **self.options)
        if found.shape != targets.shape[:1]:
            raise ValueError(
                f"task.loss = {self.name} returns {tuple(found.shape)} for {len(targets)} samples; "
                "one number for each sample is needed here"
            )
        return found


def make_loss(name: str | None, options: Mapping[str, Any], data: Dataset) -> Loss:
    """Return the loss called `name`; None: cross-entropy for labels, squares for real numbers.

    Raises:
        ValueError: if the name or an option is not valid, or the targets are of another kind.
    """
    chosen = name or ("mse" if data.num_classes is None else "cross_entropy")
    function = LOSSES.select(chosen, options)
    if chosen == "cross_entropy" and data.num_classes is None:
        raise ValueError(
            "task.loss = cross_entropy: the targets of the data set are real numbers; use mse, or give "
            "the data set labels and num_classes"
        )
    if chosen == "mse" and data.num_classes is not None:
        raise ValueError(
            f"task.loss = mse: the targets of the data set are labels of {data.num_classes} classes; use "
            "cross_entropy, or float targets without num_classes"
        )
    return Loss(chosen, function, dict(options))


@LOSSES.register("cross_entropy")
def cross_entropy(
    outputs: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Cross-entropy in nats; of sequences and maps the mean over their positions.

    Args:
        outputs: logits (n, C), or (n, ..., C) with targets (n, ...), or (n, C, ...) as torch has them.
        targets: labels (n, ...); -100 marks a position that does not count.
        label_smoothing: share of the truth that is spread over all classes (Szegedy et al. 2016), in [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"task.loss option label_smoothing = {label_smoothing}; it must be in [0, 1)")
    if targets.ndim == 1:
        return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=label_smoothing)
    losses = functional.cross_entropy(
        class_second(outputs, targets), targets, reduction="none", label_smoothing=label_smoothing
    )
    counted = (targets != -100).flatten(1)
    return losses.flatten(1).sum(1) / counted.sum(1).clamp(min=1)


def class_second(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return logits (n, C, ...) for targets (n, ...), whichever of the two usual orders they come in."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[:-1] == targets.shape:
        return outputs.movedim(-1, 1)
    return outputs


@LOSSES.register("mse")
def mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of the squared differences; outputs (n, 1) fit targets (n,)."""
    difference = _alike(outputs, targets) - targets
    return difference.square().flatten(1).mean(1) if difference.ndim > 1 else difference.square()


@LOSSES.register("bce")
def bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of yes or no: logits against targets in [0, 1], several for each sample (many labels).

    Labels 0 and 1 of a data set of two classes fit outputs (n, 1) or (n,).
    """
    truth = targets.to(outputs.dtype)
    losses = functional.binary_cross_entropy_with_logits(_alike(outputs, truth), truth, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _alike(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return outputs in the shape of the targets: a column for a vector; nothing else is broadcast."""
    if outputs.shape == targets.shape:
        return outputs
    if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1 and outputs.shape[:-1] == targets.shape:
        return outputs.squeeze(-1)
    raise ValueError(
        f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}"
    )


CROSS_ENTROPY = Loss("cross_entropy", cross_entropy)
