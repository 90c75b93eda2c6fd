"""Many devices' copies of any network as one set of tensors, by `torch.func`: what `stacked` does not know.

The forward pass and its gradient are written once for one device and mapped over a leading device dimension,
so that a step of a hundred small networks is as many kernel calls as a step of one. Weights and gradients lie
in the rows of two matrices, as in `client_app.fast.stacked`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from task.split import Split

Part = Literal["personal", "global_part"]
_Parameters = dict[str, torch.Tensor]


class VmappedNetwork:
    """D copies of any module without buffers, their weights and gradients in flat float32 matrices.

    Args:
        module: the network, batch first; its structure is taken over, not its weights.
        split: names and places of the parameters in the vectors.
        device: where the tensors are.

    Attributes:
        split, personal, global_part, most_devices, fill_to: as in `client_app.network.Network`.
    """

    most_devices: int | None = None
    fill_to = 8

    def __init__(self, module: nn.Module, split: Split, *, device: torch.device | str = "cpu") -> None:
        self.split = split
        self._module, self._device = module, torch.device(device)
        self._trained: dict[Part, bool] = {"personal": True, "global_part": True}
        self._matrices: dict[Part, torch.Tensor] = {}
        self._gradients: dict[Part, torch.Tensor] = {}
        self._common: torch.Tensor | None = None
        self._step: Callable[..., tuple[_Parameters, torch.Tensor]] = vmap(grad_and_value(self._loss))
        self.personal = self.global_part = torch.empty(0)
        self.use(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    def use(self, devices: int) -> None:
        """Have so many copies: of fewer than before the first ones; of more, their weights are undefined."""
        if devices == len(self.global_part):
            return
        self.personal, self.global_part = self._rows("personal", devices), self._rows("global_part", devices)

    def _rows(self, part: Part, devices: int) -> torch.Tensor:
        size = (self.split.personal if part == "personal" else self.split.global_part).size
        for matrices in (self._matrices, self._gradients):
            if part not in matrices or len(matrices[part]) < devices:
                matrices[part] = torch.empty(devices, size, device=self._device)
        rows = self._matrices[part][:devices]
        rows.grad = self._gradients[part][:devices]
        return rows

    def read_global_from(self, vector: torch.Tensor | None) -> None:
        """Let all copies have the global part `vector` (N_u,); None: each has its own."""
        self._common = vector

    def train_only(self, *, personal: bool = False, global_part: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        self._trained = {"personal": personal, "global_part": global_part}

    def frozen_layers(self) -> int:
        """Return 0: where a network that is no chain of layers could be cut is not known."""
        return 0

    def features(self, inputs: torch.Tensor, layers: int) -> torch.Tensor:
        """Return `inputs`: no layer is cut off."""
        return inputs

    def backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None, *, skip: int = 0
    ) -> torch.Tensor:
        """Write the gradients of each device's loss into `.grad` of the chosen parts; see `Network`."""
        if shares is None:
            shares = torch.full(labels.shape, 1.0 / labels.shape[1], device=labels.device)
        trained: _Parameters = {}
        frozen: _Parameters = {}
        for part, chosen in self._trained.items():
            (trained if chosen else frozen).update(self._parameters(part))
        gradients, losses = self._step(trained, frozen, inputs, labels, shares)
        for part, chosen in self._trained.items():
            if chosen:
                self._keep(part, gradients)
        return losses

    def _loss(
        self,
        trained: _Parameters,
        frozen: _Parameters,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        shares: torch.Tensor,
    ) -> torch.Tensor:
        """Return one device's weighted cross-entropy."""
        logits = functional_call(self._module, {**frozen, **trained}, (inputs,))
        losses = nn.functional.cross_entropy(logits.to(torch.float32), labels, reduction="none")
        return torch.dot(losses, shares)

    def _parameters(self, part: Part) -> _Parameters:
        """Return the devices' parameters (D, *shape) by name, as views."""
        layout = self.split.personal if part == "personal" else self.split.global_part
        rows = self.personal if part == "personal" else self.global_part
        if part == "global_part" and self._common is not None:
            rows = self._common.expand(len(rows), -1)
        return {
            name: rows[:, place].view(len(rows), *shape)
            for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True)
        }

    def _keep(self, part: Part, gradients: _Parameters) -> None:
        layout = self.split.personal if part == "personal" else self.split.global_part
        kept = (self.personal if part == "personal" else self.global_part).grad
        assert kept is not None
        for name, place in layout.slices().items():
            kept[:, place] = gradients[name].flatten(1)

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the personal and global weights for good; new memory is taken at the next `use`."""
        weights = self.personal, self.global_part
        self.personal = self.global_part = torch.empty(0)
        self._matrices.clear()
        return weights
