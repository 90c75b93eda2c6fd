"""Many devices' copies of a network, computed as one set of tensors.

Activations and weights carry a leading device dimension, so that a step of a hundred devices is as many
kernel calls as a step of one. The gradients are written out layer by layer (`client_app.fast.layers`) instead
of recorded by autograd: on small networks the recording takes longer than the products, and each gradient is
written once, straight to its place in a flat vector. No operation mixes devices, so a device that diverges
harms no other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from client_app.fast.layers import Parameter, Part, UnknownLayerError, cast, stacked_layer
from task.split import Layout, Split


class StackedNetwork:
    """D copies of a network, their weights and gradients in flat float32 matrices.

    Attributes:
        personal, global_part: weights, (D, N_v) and (D, N_u), each with its `.grad` of the same shape; they
            are rebound by `use` and `hand_over`, else changed in place only.
    """

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Take over the structure of a network, not its weights.

        Args:
            module: an `nn.Sequential` of Linear, Conv2d, MaxPool2d, ReLU and Flatten layers (and of layers
                that only change the memory layout), as `task.models` builds.
            split: names and places of the parameters in the vectors.
            device: where the tensors are.
            dtype: of the products inside the layers, float32 or bfloat16.

        Raises:
            UnknownLayerError: if a layer, or an option of one, is not known here.
        """
        if type(module) is not nn.Sequential:
            raise UnknownLayerError(
                f"devices are batched for nn.Sequential networks only, not {type(module).__name__}"
            )
        self._device = torch.device(device)
        self.split = split
        parameters: dict[str, Parameter] = {}
        layouts: tuple[tuple[Part, Layout], ...] = (
            ("personal", split.personal),
            ("global_part", split.global_part),
        )
        for part, layout in layouts:
            for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
                parameters[name] = Parameter(part, place, shape)
        self._parameters = list(parameters.values())
        self._layers = [
            stacked_layer(name, layer, parameters, dtype)
            for name, layer in module.named_children()
            if not getattr(layer, "only_layout", False)
        ]
        self._weights: dict[Part, torch.Tensor] = {}
        self._gradients: dict[Part, torch.Tensor] = {}
        self._common: torch.Tensor | None = None
        self._bound = False
        self.personal = self.global_part = torch.empty(0)
        self.use(1)

    buffer_names: tuple[str, ...] = ()
    draws = False
    most_devices: int | None = None
    fill_to = 8  # samples: few widths for fleets of all sizes, and little work in vain

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._device

    def use(self, devices: int) -> None:
        """Have so many copies: of fewer than before the first ones; of more, their weights are undefined."""
        if devices != len(self.global_part):
            self.personal, self.global_part = (
                self._rows("personal", devices),
                self._rows("global_part", devices),
            )
            self._bound = False

    def read_global_from(self, vector: torch.Tensor | None) -> None:
        """Let all copies have one global part (N_u,), of which their gradients are; None: each has its own.

        What is read once for all copies stays in the cache.
        """
        self._common = vector
        self._bound = False

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the personal and global weights for good; the model takes new memory at its next `use`."""
        weights = self.personal, self.global_part
        self.personal = self.global_part = torch.empty(0)
        self._weights.clear()
        return weights

    def load_buffers(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: no layer that is known here has buffers."""

    def copy_buffers(self) -> list[dict[str, Any]]:
        """Return none."""
        return [{} for _ in self.global_part]

    def drawing_from(self, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context without effect: no layer that is known here draws."""
        return nullcontext()

    def _rows(self, part: Part, devices: int) -> torch.Tensor:
        size = (self.split.personal if part == "personal" else self.split.global_part).size
        for matrices in (self._weights, self._gradients):
            if part not in matrices or len(matrices[part]) < devices:
                matrices[part] = torch.empty(devices, size, device=self._device)
        weights = self._weights[part][:devices]
        weights.grad = self._gradients[part][:devices]
        return weights

    def _bind(self) -> None:
        """Make the parameters the views that they are to be, if that has changed."""
        if self._bound:
            return
        self._bound = True
        devices = len(self.global_part)
        for parameter in self._parameters:
            weights = self.personal if parameter.part == "personal" else self.global_part
            assert weights.grad is not None
            shape = (devices, *parameter.shape)
            parameter.gradient = weights.grad[:, parameter.place].view(shape)
            if parameter.part == "global_part" and self._common is not None:
                parameter.value = self._common[parameter.place].view(parameter.shape).expand(shape)
            else:
                parameter.value = weights[:, parameter.place].view(shape)

    def train_only(self, *, personal: bool = False, global_part: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        for parameter in self._parameters:
            parameter.trained = personal if parameter.part == "personal" else global_part

    def frozen_layers(self) -> int:
        """Return how many first layers are constant while the chosen parts train; 0 if no weights are there.

        What these layers make of an image may be computed once and be given to `backward` again and again.
        """
        first = self._first_trained()
        return first if any(layer.parameters for layer in self._layers[:first]) else 0

    def features(self, inputs: torch.Tensor, layers: int) -> torch.Tensor:
        """Return what the first `layers` layers make of `inputs` (D, n, 1, 28, 28): (D, n, ...)."""
        self._bind()
        for layer in self._layers[:layers]:
            inputs = layer.forward(inputs, keep=False)
        return inputs

    def backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None, *, skip: int = 0
    ) -> torch.Tensor:
        """Write the gradients of each device's weighted cross-entropy into `.grad` of the chosen parts.

        Args:
            inputs: (D, B, 1, 28, 28) images, or the `features` after the first `skip` layers.
            labels: int64 (D, B).
            shares: (D, B), weight of each image in its device's loss: 1/n for the mean over n, 0 for an image
                that only fills up the batch; None: 1/B each.
            skip: layers that were computed before.

        Returns:
            The losses, (D,).
        """
        self._bind()
        first = max(self._first_trained(), skip)
        for position, layer in enumerate(self._layers[skip:], skip):
            inputs = layer.forward(inputs, keep=position >= first)
        logarithms = torch.log_softmax(cast(inputs, torch.float32), dim=2)
        truth = labels.unsqueeze(2)
        if shares is None:
            shares = torch.full(labels.shape, 1.0 / labels.shape[1], device=labels.device)
        weights = shares.unsqueeze(2)
        losses = (logarithms.gather(2, truth) * weights).sum(dim=(1, 2)).neg_()
        gradient = logarithms.exp_()
        gradient.scatter_add_(2, truth, gradient.new_full((), -1.0).expand(truth.shape)).mul_(weights)
        for position in range(len(self._layers) - 1, first - 1, -1):
            passed = self._layers[position].backward(gradient, passes=position > first)
            if passed is not None:
                gradient = passed
        return losses

    def _first_trained(self) -> int:
        return next(
            (
                position
                for position, layer in enumerate(self._layers)
                if any(parameter.trained for parameter in layer.parameters)
            ),
            len(self._layers),
        )
