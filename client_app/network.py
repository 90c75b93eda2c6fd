"""A network as local training sees it: two flat vectors per device, and a gradient for each.

`Network` is all that an algorithm asks for. It stands for the copies of D devices at once, their weights in
the rows of two matrices: one device is a stack of one. `ModuleNetwork` is any `nn.Module`, for one device;
`client_app.fast.stacked.StackedNetwork` is many devices' copies as one set of tensors.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client_app.fast.convolutions import accelerate
from client_app.precision import product_type
from task.split import Layout, Split

Vector = npt.NDArray[np.float32] | torch.Tensor
Kernels = Literal["fast", "plain"]


class Network(Protocol):
    """Copies of one network, for D devices.

    Attributes:
        split: names and places of the parameters in the vectors.
        personal, global_part: float32 weights (D, N_v) and (D, N_u), each with its `.grad` of the same shape;
            changed in place, rebound by `use` and `hand_over` only.
        most_devices: how many devices it can hold at once; None: any number.
        fill_to: batches of unequal sizes are filled up to a multiple of this many samples.
    """

    split: Split
    personal: torch.Tensor
    global_part: torch.Tensor
    most_devices: int | None
    fill_to: int

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


class ModuleNetwork:
    """Any `nn.Module` as the network of one device, its weights in two flat float32 vectors.

    Loading a broadcast is one copy, an optimiser step or a masking one pass over one vector, whatever the
    number of layers. The module that is passed in is taken over: its parameters become views.

    Args:
        module: the network; batch first.
        split: names and places of its parameters.
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
        self, module: nn.Module, split: Split, *, precision: str = "float32", kernels: Kernels = "fast"
    ) -> None:
        parameters = dict(module.named_parameters())
        if sorted(parameters) != sorted((*split.personal.names, *split.global_part.names)):
            raise ValueError("split does not hold exactly the parameters of the module")
        if any(True for _ in module.buffers()):
            raise ValueError(
                "the module has buffers (batch normalisation?), which belong to neither the personal nor the "
                "global part; use layers without running statistics, such as GroupNorm"
            )
        self.module = module
        self.split = split
        self.personal = _flatten(parameters, split.personal)
        self.global_part = _flatten(parameters, split.global_part)
        self._parameters = {
            "personal": [parameters[name] for name in split.personal.names],
            "global_part": [parameters[name] for name in split.global_part.names],
        }
        self._trained = True, True
        self._dtype = product_type(precision)
        self._layers: list[nn.Module] = [module]
        if isinstance(module, nn.Sequential):
            self._layers = list(module.children())
            if kernels == "fast":
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
            if any(parameter.requires_grad for parameter in layer.parameters()):
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
        """Write the gradient of the mean cross-entropy into `.grad` of the trained vectors; see `Network`."""
        for vector, trained in ((self.personal, self._trained[0]), (self.global_part, self._trained[1])):
            if trained:
                assert vector.grad is not None
                vector.grad.zero_()
        forward = nn.Sequential(*self._layers[skip:]) if skip else self.forward
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype != torch.float32, cache_enabled=False):
            logits = forward(inputs[0])
        logits = logits.to(torch.float32)
        if shares is None:
            loss = nn.functional.cross_entropy(logits, labels[0])
        else:
            loss = nn.functional.cross_entropy(logits, labels[0], reduction="none") @ shares[0]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach().unsqueeze(0)

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return copies of the personal and global weights, (1, N_v) and (1, N_u)."""
        return self.personal.clone(), self.global_part.clone()


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
