"""Many devices' copies of any network as one set of tensors, by `torch.func`: what `stacked` does not know.

The forward pass and its gradient are written once for one device and mapped over a leading device dimension,
so that a step of a hundred small networks is as many kernel calls as a step of one. Weights and gradients lie
in the rows of two matrices, as in `client_app.fast.stacked`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, vmap

from task.losses import CROSS_ENTROPY, Loss
from task.split import Split, persistent_buffers

Part = Literal["personal", "global_part"]
_Parameters = dict[str, torch.Tensor]


class VmappedNetwork:
    """D copies of any module that draws nothing, their weights and gradients in flat float32 matrices.

    Args:
        module: the network, batch first; its structure and the first values of its buffers are taken over,
            not its weights.
        split: names and places of the parameters in the vectors.
        loss: of each sample.
        fill_to: batches of unequal sizes are filled up to a multiple of this many samples; 1 unless a
            sample's output is known not to depend on the others of its batch.
        device: where the tensors are.

    Attributes:
        split, personal, global_part, most_devices, fill_to, buffer_names: as in `client_app.network.Network`.
    """

    most_devices: int | None = None
    draws = False

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        *,
        loss: Loss = CROSS_ENTROPY,
        fill_to: int = 8,
        device: torch.device | str = "cpu",
    ) -> None:
        self.split, self.fill_to = split, fill_to
        self._module, self._device, self._loss_of = module, torch.device(device), loss
        where = self._device
        self._first_buffers = {
            name: buffer.detach().clone().to(where) for name, buffer in persistent_buffers(module).items()
        }
        # Constants (buffers that are no state) are the same for all.
        self._constants = {
            name: buffer.detach().to(where)
            for name, buffer in module.named_buffers()
            if name not in self._first_buffers
        }
        self.buffer_names = tuple(self._first_buffers)
        self._all_buffers: dict[str, torch.Tensor] = {}
        self._frozen = {
            name: parameter.detach().clone().to(where)
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        }
        self._trained: dict[Part, bool] = {"personal": True, "global_part": True}
        self._matrices: dict[Part, torch.Tensor] = {}
        self._gradients: dict[Part, torch.Tensor] = {}
        self._common: torch.Tensor | None = None
        self._norms = [
            one
            for one in module.modules()
            if isinstance(one, nn.modules.batchnorm._BatchNorm) and one.track_running_stats
        ]
        self._step: Callable[..., tuple[_Parameters, torch.Tensor]] = vmap(grad_and_value(self._loss))
        self.personal = self.global_part = torch.empty(0)
        self.use(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    def use(self, devices: int) -> None:
        """Have so many copies: of fewer than before the first ones; of more, their weights are undefined."""
        self._module.train()
        if devices == len(self.global_part):
            return
        for name, first in self._first_buffers.items():
            if len(self._all_buffers.get(name, ())) < devices:
                self._all_buffers[name] = first.expand(devices, *first.shape).clone()
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
        frozen |= {name: trained.pop(name) for name in self._frozen if name in trained}
        buffers = {name: values[: len(self.global_part)] for name, values in self._all_buffers.items()}
        alone = [one for one in self._norms if inputs.shape[1] == 1]
        for norm in alone:  # a batch of one has no variance: see ModuleNetwork
            norm.eval()
        gradients, losses = self._step(trained, frozen, buffers, inputs, labels, shares)
        for norm in alone:
            norm.train()
        for part, chosen in self._trained.items():
            if chosen:
                self._keep(part, gradients)
        return losses

    def _loss(
        self,
        trained: _Parameters,
        frozen: _Parameters,
        buffers: _Parameters,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        shares: torch.Tensor,
    ) -> torch.Tensor:
        """Return one device's weighted loss; its running statistics are changed in place."""
        state = {**frozen, **trained, **buffers, **self._constants}
        logits = functional_call(self._module, state, (inputs,))
        return torch.dot(self._loss_of.each(logits.to(torch.float32), labels), shares)

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
            kept[:, place] = gradients[name].flatten(1) if name in gradients else 0.0

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the personal and global weights for good; new memory is taken at the next `use`."""
        weights = self.personal, self.global_part
        self.personal = self.global_part = torch.empty(0)
        self._matrices.clear()
        return weights

    def load_buffers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Set the buffers of each copy; one that is not named has its first value."""
        for name, first in self._first_buffers.items():
            rows = self._all_buffers[name]
            for row, state in zip(rows, states, strict=False):
                given = state.get(name)
                row.copy_(first if given is None else torch.from_numpy(np.array(given)).view(first.shape))

    def copy_buffers(self) -> list[dict[str, Any]]:
        """Return the buffers of each copy."""
        found = {name: rows.flatten(1).cpu().numpy() for name, rows in self._rows_of_buffers().items()}
        return [
            {name: rows[device].copy() for name, rows in found.items()}
            for device in range(len(self.global_part))
        ]

    def _rows_of_buffers(self) -> dict[str, torch.Tensor]:
        number = len(self.global_part)
        return {
            name: values[:number].unsqueeze(1) if values.ndim == 1 else values[:number]
            for name, values in self._all_buffers.items()
        }

    def drawing_from(self, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context without effect: a network that draws is not computed here."""
        return nullcontext()
