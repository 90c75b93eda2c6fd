"""The round of Liu et al. 2024 as a plain PyTorch loop: what a competent user would write in an afternoon.

Data in memory, ordinary layers and optimisers, PyTorch's own threads, devices one after the other. It knows
nothing of this project but the order of the mini-batches, so that both can be compared weight by weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

Batches = Callable[[int, int], Sequence[Iterable[torch.Tensor | slice]]]


@dataclass(frozen=True)
class Plan:
    """What the baseline trains with.

    Attributes:
        pruning_ratio: share of the global part that each device prunes.
        learning_rate: of plain SGD, on both parts.
        freeze: switch off the gradients of the part that does not train, as a careful user would.
    """

    pruning_ratio: float
    learning_rate: float
    freeze: bool = False


def paper_cnn() -> nn.Sequential:
    """Return the paper's network: two 5x5 convolutions (personal), two linear layers (global)."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


class PlainFederation:
    """All devices and the server, in one process.

    Args:
        model: the network; its first two layers with parameters are personal.
        data: images (n, 1, 28, 28) and labels (n,) of each device.
        batches: (round, device) to the indices of the personal, trial and global mini-batches.
        plan: the settings.
    """

    def __init__(
        self,
        model: nn.Sequential,
        data: list[tuple[torch.Tensor, torch.Tensor]],
        batches: Batches,
        plan: Plan,
    ) -> None:
        self.model, self.data, self.batches, self.plan = model, data, batches, plan
        self.personal_parameters = [*model[0].parameters(), *model[3].parameters()]
        self.global_parameters = [*model[7].parameters(), *model[9].parameters()]
        self.global_weights = [parameter.detach().clone() for parameter in self.global_parameters]
        own = [parameter.detach().clone() for parameter in self.personal_parameters]
        self.personal_weights = [[weight.clone() for weight in own] for _ in data]
        self.loss = nn.CrossEntropyLoss()

    def round(self, number: int) -> None:
        """Train every device and average each global weight over the devices that kept it."""
        sums = [torch.zeros_like(weight) for weight in self.global_weights]
        counts = [torch.zeros_like(weight) for weight in self.global_weights]
        for device in range(len(self.data)):
            masks = self.train(number, device)
            for total, count, weight, mask in zip(sums, counts, self.global_parameters, masks, strict=True):
                total.add_(weight.detach() * mask)
                count.add_(mask)
        for old, total, count in zip(self.global_weights, sums, counts, strict=True):
            old.copy_(torch.where(count > 0, total / count.clamp(min=1), old))

    def train(self, number: int, device: int) -> list[torch.Tensor]:
        """Personal steps, trial steps, pruning, masked steps; the result is in the model."""
        images, labels = self.data[device]
        personal_batches, trial_batches, global_batches = self.batches(number, device)
        self._load(self.personal_parameters, self.personal_weights[device])
        self._load(self.global_parameters, self.global_weights)

        self._freeze(self.global_parameters, self.personal_parameters)
        optimizer = torch.optim.SGD(self.personal_parameters, lr=self.plan.learning_rate)
        for batch in personal_batches:
            self.model.zero_grad()
            self.loss(self.model(images[batch]), labels[batch]).backward()
            optimizer.step()
        self.personal_weights[device] = [weight.detach().clone() for weight in self.personal_parameters]

        self._freeze(self.personal_parameters, self.global_parameters)
        for batch in trial_batches:
            self.model.zero_grad()
            self.loss(self.model(images[batch]), labels[batch]).backward()
        importance = torch.cat([weight.grad.abs().flatten() for weight in self.global_parameters])  # type: ignore[union-attr]
        size = importance.numel()
        kept = importance.topk(int(size - self.plan.pruning_ratio * size)).indices
        flat = torch.zeros(size)
        flat[kept] = 1.0
        parts = torch.split(flat, [weight.numel() for weight in self.global_parameters])
        masks = [part.view_as(weight) for part, weight in zip(parts, self.global_parameters, strict=True)]

        self._load(self.global_parameters, [w * m for w, m in zip(self.global_weights, masks, strict=True)])
        optimizer = torch.optim.SGD(self.global_parameters, lr=self.plan.learning_rate)
        for batch in global_batches:
            self.model.zero_grad()
            self.loss(self.model(images[batch]), labels[batch]).backward()
            for weight, mask in zip(self.global_parameters, masks, strict=True):
                assert weight.grad is not None
                weight.grad *= mask
            optimizer.step()
        return masks

    def _freeze(self, frozen: list[nn.Parameter], trained: list[nn.Parameter]) -> None:
        if self.plan.freeze:
            for weight in frozen:
                weight.requires_grad_(False)
            for weight in trained:
                weight.requires_grad_(True)

    @staticmethod
    @torch.no_grad()
    def _load(parameters: list[nn.Parameter], values: list[torch.Tensor]) -> None:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
