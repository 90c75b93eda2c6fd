"""A network as local training sees it: two flat vectors per device, and a gradient for each.

`Network` is all that an algorithm asks for. It stands for the copies of D devices at once, their weights in
the rows of two matrices: one device is a stack of one. `ModuleNetwork` is any `nn.Module`, for one device;
`client_app.fast.stacked.StackedNetwork` is many devices' copies as one set of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client_app.fast import convolutions, residual
from client_app.precision import product_type
from task.losses import CROSS_ENTROPY, Loss
from task.randomness import seeded
from task.split import Layout, Split, persistent_buffers

Vector = npt.NDArray[np.float32] | torch.Tensor
Kernels = Literal["fast", "plain"]
Arrays = Mapping[str, npt.NDArray[Any]]
"""Buffers by name, each as one vector."""

# Layers that make the same of a sample whatever else is in its batch, in training and in tests, and draw
# nothing.
_PURE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.Flatten, nn.Identity, nn.ReLU, nn.ReLU6,
    nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Softplus, nn.MaxPool1d, nn.MaxPool2d,
    nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.GroupNorm, nn.LayerNorm,
)  # fmt: skip
_NORMS = nn.modules.batchnorm._BatchNorm
_HOLDERS = (nn.Sequential, nn.ModuleList)


class Network(Protocol):
    """Copies of one network, for D devices.

    Attributes:
        split: names and places of the parameters in the vectors.
        personal, global_part: float32 weights (D, N_v) and (D, N_u), each with its `.grad` of the same shape;
            changed in place, rebound by `use` and `hand_over` only.
        most_devices: how many devices it can hold at once; None: any number.
        fill_to: batches of unequal sizes are filled up to a multiple of this many samples.
        buffer_names: buffers of each copy that are state (running statistics); () if it has none.
        draws: whether a step may draw random numbers (dropout).
    """

    split: Split
    personal: torch.Tensor
    global_part: torch.Tensor
    most_devices: int | None
    fill_to: int
    buffer_names: tuple[str, ...]
    draws: bool

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        ...

    def use(self, devices: int) -> None:
        """Have so many copies: of fewer than before the first ones; of more, their weights are undefined."""
        ...

    def read_global_from(self, vector: torch.Tensor | None) -> None:
        """Let all copies have the global part `vector` (N_u,); None: each has its own."""
        ...

    def train_only(self, *, personal: bool = False, global_part: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        ...

    def frozen_layers(self) -> int:
        """Return how many first layers are constant while the chosen parts train; 0 if no weights are there.

        What these layers make of a sample may be computed once and be given to `backward` again and again.
        """
        ...

    def features(self, inputs: torch.Tensor, layers: int) -> torch.Tensor:
        """Return what the first `layers` layers make of `inputs` (D, n, ...): (D, n, ...)."""
        ...

    def backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None, *, skip: int = 0
    ) -> torch.Tensor:
        """Write the gradients of each device's loss into `.grad` of the chosen parts.

        Args:
            inputs: (D, B, ...) samples, or the `features` after the first `skip` layers.
            labels: int64 (D, B).
            shares: (D, B), weight of each sample in its device's loss, 0 for one that only fills up the
                batch; None: 1/B each.
            skip: layers that were computed before.

        Returns:
            The losses, (D,), without graph.
        """
        ...

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the personal and global weights for good: nothing that comes later changes them."""
        ...

    def load_buffers(self, states: Sequence[Arrays]) -> None:
        """Set the buffers of each copy; one that is not named has its first value."""
        ...

    def copy_buffers(self) -> list[dict[str, npt.NDArray[Any]]]:
        """Return the buffers of each copy."""
        ...

    def drawing_from(self, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context in which each copy draws from a stream of its own."""
        ...


class ModuleNetwork:
    """Any `nn.Module` as the network of one device, its weights in two flat float32 vectors.

    Loading a broadcast is one copy, an optimiser step or a masking one pass over one vector, whatever the
    number of layers. The module that is passed in is taken over: its parameters become views.

    Args:
        module: the network; batch first.
        split: names and places of its parameters.
        loss: what `backward` differentiates.
        precision: "bfloat16" for products of that type inside the layers, where that is faster.
        kernels: "fast" computes layers that `client_app.fast` knows with it; "plain" never does.

    Attributes:
        module: the network.
        forward: the same network with the same parameters, computed as `kernels` says.
        split, personal, global_part: as in `Network`, with D = 1.
    """

    most_devices: int | None = 1
    fill_to = 1

    def __init__(
        self,
        module: nn.Module,
        split: Split,
        *,
        loss: Loss = CROSS_ENTROPY,
        precision: str = "float32",
        kernels: Kernels = "fast",
    ) -> None:
        parameters = dict(module.named_parameters())
        if sorted(parameters) != sorted((*split.personal.names, *split.global_part.names)):
            raise ValueError("split does not hold exactly the parameters of the module")
        self.module = module
        self.split = split
        self.loss = loss
        self._buffers = persistent_buffers(module)
        self.buffer_names = tuple(self._buffers)
        self._first_buffers = {name: buffer.detach().clone() for name, buffer in self._buffers.items()}
        self.draws = not all(
            isinstance(one, (*_HOLDERS, _NORMS)) or _is_pure(one) for one in module.modules()
        )
        self._norms = [one for one in module.modules() if isinstance(one, _NORMS) and one.track_running_stats]
        self._frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
        self.personal = _flatten(parameters, split.personal)
        self.global_part = _flatten(parameters, split.global_part)
        # What the network's author froze stays frozen: it gets no gradient.
        self._parameters = {
            part: [parameters[name] for name in layout.names if name not in self._frozen]
            for part, layout in (("personal", split.personal), ("global_part", split.global_part))
        }
        self._trained = True, True
        self._dtype = product_type(precision)
        self._layers: list[nn.Module] = [module]
        if type(module) is nn.Sequential:  # what derives from it may do more than call its layers
            self._layers = list(module.children())
            if kernels == "fast":
                for accelerate in (convolutions.accelerate, residual.accelerate):
                    self._layers = accelerate(self._layers, self._dtype)
        self.forward: nn.Module = nn.Sequential(*self._layers)

    @property
    def device(self) -> torch.device:
        """The processor."""
        return self.global_part.device

    @torch.no_grad()
    def load(self, *, personal: Vector | None = None, global_part: Vector | None = None) -> None:
        """Copy flat vectors into the network.

        Raises:
            ValueError: if a vector has the wrong shape.
        """
        if personal is not None:
            self.personal[0].copy_(as_vector("personal", personal, self.split.personal.size))
        if global_part is not None:
            self.global_part[0].copy_(as_vector("global_part", global_part, self.split.global_part.size))

    def use(self, devices: int) -> None:
        """Get ready to train the one device.

        Raises:
            ValueError: if there are more.
        """
        if devices != 1:
            raise ValueError(f"devices = {devices}; a plain module is the network of one")
        self.module.train()

    def read_global_from(self, vector: torch.Tensor | None) -> None:
        """Start from a copy of `vector` (N_u,)."""
        if vector is not None:
            self.global_part.copy_(vector)

    def train_only(self, *, personal: bool = False, global_part: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        self._trained = personal, global_part
        for part, trained in (("personal", personal), ("global_part", global_part)):
            for parameter in self._parameters[part]:
                parameter.requires_grad_(trained)

    def frozen_layers(self) -> int:
        """Return how many first layers are constant while the chosen parts train; see `Network`."""
        for position, layer in enumerate(self._layers):
            if any(parameter.requires_grad for parameter in layer.parameters()) or not _is_pure(layer):
                weighty = any(True for layer in self._layers[:position] for _ in layer.parameters())
                return position if weighty else 0
        return 0

    @torch.no_grad()
    def features(self, inputs: torch.Tensor, layers: int) -> torch.Tensor:
        """Return what the first `layers` layers make of `inputs` (1, n, ...)."""
        out: torch.Tensor = nn.Sequential(*self._layers[:layers])(inputs[0])
        return out.unsqueeze(0)

    def backward(
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None = None, *, skip: int = 0
    ) -> torch.Tensor:
        """Write the gradient of the mean loss into `.grad` of the trained vectors; see `Network`."""
        for vector, trained in ((self.personal, self._trained[0]), (self.global_part, self._trained[1])):
            if trained:
                assert vector.grad is not None
                vector.grad.zero_()
        forward = nn.Sequential(*self._layers[skip:]) if skip else self.forward
        if self._norms and inputs.shape[1] == 1:
            return self._backward_of_one(inputs, labels, shares)
        return self._backward(forward, inputs, labels, shares)

    def _backward_of_one(
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None
    ) -> torch.Tensor:
        """A batch of one has no variance: it is normalised by the running statistics, which then stay."""
        for norm in self._norms:
            norm.eval()
        try:
            return self._backward(self.forward, inputs, labels, shares)
        finally:
            for norm in self._norms:
                norm.train()

    def _backward(
        self, forward: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor | None
    ) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype != torch.float32, cache_enabled=False):
            logits = forward(inputs[0])
        logits = logits.to(torch.float32)
        loss = (
            self.loss.mean(logits, labels[0])
            if shares is None
            else self.loss.each(logits, labels[0]) @ shares[0]
        )
        if loss.requires_grad:  # a part may be out of reach of the loss
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of the personal and global weights, (1, N_v) and (1, N_u)."""
        return self.personal.clone(), self.global_part.clone()

    @torch.no_grad()
    def load_buffers(self, states: Sequence[Arrays]) -> None:
        """Set the buffers; one that is not named has its first value.

        Raises:
            ValueError: if one has another number of entries.
        """
        (state,) = states
        for name, buffer in self._buffers.items():
            if name not in state:
                buffer.copy_(self._first_buffers[name])
                continue
            values = np.asarray(state[name])
            if values.size != buffer.numel():
                raise ValueError(f"buffer {name} has {values.size} entries; the model needs {buffer.numel()}")
            buffer.copy_(torch.from_numpy(values.copy()).view(buffer.shape))

    def copy_buffers(self) -> list[dict[str, npt.NDArray[Any]]]:
        """Return the buffers, each as one vector."""
        return [{name: buffer.detach().flatten().numpy().copy() for name, buffer in self._buffers.items()}]

    def drawing_from(self, seeds: Sequence[int]) -> AbstractContextManager[None]:
        """Return a context in which the network draws from a stream of its own, and no other stream moves."""
        return seeded(seeds[0]) if self.draws and seeds else nullcontext()


def as_vector(name: str, values: Vector, size: int) -> torch.Tensor:
    """Return `values` as a float32 tensor of shape (size,), without a copy where possible.

    Raises:
        ValueError: if the shape is another one.
    """
    if not isinstance(values, torch.Tensor):
        array = np.asarray(values, dtype=np.float32)
        # Records from the network are read-only, and torch wraps only writable memory without a warning.
        values = torch.from_numpy(array if array.flags.writeable else array.copy())
    if values.shape != (size,):
        raise ValueError(f"{name} has shape {tuple(values.shape)}; the model needs ({size},)")
    return values.to(torch.float32)


def _is_pure(layer: nn.Module) -> bool:
    """Return whether a layer is known to make the same of a sample at any time, in any company."""
    if getattr(layer, "only_layout", False):
        return True
    if type(layer).__module__.startswith("client_app.fast."):
        return not any(isinstance(one, _NORMS) for one in layer.modules())
    if type(layer) in _HOLDERS:
        return all(map(_is_pure, layer.children()))
    return type(layer) in _PURE


@torch.no_grad()
def _flatten(parameters: dict[str, nn.Parameter], layout: Layout) -> torch.Tensor:
    """Move parameters into one row and make them, and their gradients, views of it."""
    row = torch.zeros(1, layout.size)
    row.grad = torch.zeros(1, layout.size)
    for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
        parameter = parameters[name]
        row[0, place] = parameter.detach().reshape(-1)
        parameter.data = row[0, place].view(shape)
        parameter.grad = row.grad[0, place].view(shape)
    return row
