"""A network whose personal and shared parameters are views of two flat vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client_app.precision import product_type
from task.fast_convolutions import accelerate
from task.split import Layout, Split

Vector = npt.NDArray[np.float32] | torch.Tensor


class FlatModel:
    """A network, its weights in two flat float32 vectors and their gradients in two more.

    Loading a broadcast is one copy, an optimiser step or a masking one pass over one vector, whatever the
    number of layers. The module that is passed in is taken over: its parameters become views.
    With `precision` "bfloat16" the products of the layers are of that type, where that is faster.

    Attributes:
        module: the network, (n, 1, 28, 28) images to (n, classes) logits.
        forward: the same network with the same parameters, computed in the fastest way known.
        split: names and places of the parameters in the vectors.
        personal, shared: weights (N_v,) and (N_u,); assign with `load` or in place, never rebind.
    """

    def __init__(self, module: nn.Module, split: Split, *, precision: str = "float32") -> None:
        parameters = dict(module.named_parameters())
        if sorted(parameters) != sorted((*split.personal.names, *split.shared.names)):
            raise ValueError("split does not hold exactly the parameters of the module")
        if any(True for _ in module.buffers()):
            raise ValueError(
                "the module has buffers (batch normalisation?), which belong to neither the personal nor the "
                "shared part; use layers without running statistics, such as GroupNorm"
            )
        self.module = module
        self.split = split
        self.personal = _flatten(parameters, split.personal)
        self.shared = _flatten(parameters, split.shared)
        self._parameters = {
            "personal": [parameters[name] for name in split.personal.names],
            "shared": [parameters[name] for name in split.shared.names],
        }
        self._trained = True, True
        self._dtype = product_type(precision)
        self.forward = module
        self._layers: list[nn.Module] = []
        if isinstance(module, nn.Sequential):
            self._layers = accelerate(list(module.children()), self._dtype)
            self.forward = nn.Sequential(*self._layers)

    @torch.no_grad()
    def load(self, *, personal: Vector | None = None, shared: Vector | None = None) -> None:
        """Copy flat vectors into the network.

        Raises:
            ValueError: if a vector has the wrong shape.
        """
        if personal is not None:
            self.personal.copy_(as_vector("personal", personal, self.split.personal.size))
        if shared is not None:
            self.shared.copy_(as_vector("shared", shared, self.split.shared.size))

    def train_only(self, *, personal: bool = False, shared: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        self._trained = personal, shared
        for part, trained in (("personal", personal), ("shared", shared)):
            for parameter in self._parameters[part]:
                parameter.requires_grad_(trained)

    def backward(self, forward: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Write the gradient of the mean cross-entropy of a batch into `.grad` of the trained vectors.

        Args:
            forward: `self.forward`, or its last layers as given by `frozen_prefix`.
            inputs: what `forward` takes, batch first.
            labels: int64 (batch,).

        Returns:
            The loss, a scalar without graph.
        """
        for vector, trained in ((self.personal, self._trained[0]), (self.shared, self._trained[1])):
            if trained:
                assert vector.grad is not None
                vector.grad.zero_()
        with torch.autocast("cpu", torch.bfloat16, enabled=self._dtype != torch.float32, cache_enabled=False):
            logits = forward(inputs)
        loss = nn.functional.cross_entropy(logits.to(torch.float32), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def frozen_prefix(self) -> tuple[nn.Sequential, nn.Sequential] | None:
        """Split the network where its first trained parameter is.

        Returns:
            (layers whose output is constant while the chosen parts train, the other layers), or None if the
            first layer with parameters trains, or the module is not an `nn.Sequential`.
        """
        for position, layer in enumerate(self._layers):
            if any(parameter.requires_grad for parameter in layer.parameters()):
                frozen = self._layers[:position]
                if not any(True for layer in frozen for _ in layer.parameters()):
                    return None
                return nn.Sequential(*frozen), nn.Sequential(*self._layers[position:])
        return None


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
    """Move parameters into one vector and make them, and their gradients, views of it."""
    vector = torch.zeros(layout.size)
    vector.grad = torch.zeros(layout.size)
    for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
        parameter = parameters[name]
        vector[place] = parameter.detach().reshape(-1)
        parameter.data = vector[place].view(shape)
        parameter.grad = vector.grad[place].view(shape)
    return vector
