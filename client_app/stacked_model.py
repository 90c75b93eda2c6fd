"""Many devices' copies of a network, computed as one set of tensors.

Activations and weights carry a leading device dimension, so that a step of a hundred devices is as many
kernel calls as a step of one. The gradients are written out layer by layer instead of recorded by autograd:
on small networks the recording takes longer than the products, and each gradient is written once, straight
to its place in a flat vector. No operation mixes devices, so a device that diverges harms no other.

What the layers become, with D devices and B images each:

- linear: a batched product (D, B, in) x (D, in, out);
- convolution of one channel: a batched product with the images' patches (as a grouped convolution it would
  be a depthwise one, whose weight gradient is slow on GPUs);
- other convolutions: one convolution in D groups of (B, D * channels) maps;
- pooling, ReLU, flattening: of D * B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import nn

from task.split import Layout, Split

_pool = torch.ops.aten.max_pool2d_with_indices.default
_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
_convolution_backward = torch.ops.aten.convolution_backward.default

Part = Literal["personal", "shared"]


@dataclass(eq=False)
class _Parameter:
    """A parameter of all devices: `value` and `gradient`, (D, *shape), are views of flat vectors."""

    part: Part
    place: slice
    shape: tuple[int, ...]
    trained: bool = True
    value: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class StackedModel:
    """D copies of a network, their weights and gradients in flat float32 matrices.

    Attributes:
        personal, shared: weights, (D, N_v) and (D, N_u), each with its `.grad` of the same shape; they are
            rebound by `use` and `hand_over`, else changed in place only.
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
            ValueError: if a layer, or an option of one, is not known here.
        """
        if not isinstance(module, nn.Sequential):
            raise ValueError(
                f"devices are batched for nn.Sequential networks only, not {type(module).__name__}"
            )
        self._device = torch.device(device)
        self._split = split
        parameters: dict[str, _Parameter] = {}
        layouts: tuple[tuple[Part, Layout], ...] = (("personal", split.personal), ("shared", split.shared))
        for part, layout in layouts:
            for (name, place), shape in zip(layout.slices().items(), layout.shapes, strict=True):
                parameters[name] = _Parameter(part, place, shape)
        self._parameters = list(parameters.values())
        self._layers = [
            _stacked(name, layer, parameters, dtype)
            for name, layer in module.named_children()
            if not getattr(layer, "only_layout", False)
        ]
        self._weights: dict[Part, torch.Tensor] = {}
        self._gradients: dict[Part, torch.Tensor] = {}
        self._common: torch.Tensor | None = None
        self._bound = False
        self.personal = self.shared = torch.empty(0)
        self.use(1)

    def use(self, devices: int) -> None:
        """Have so many copies: of fewer than before the first ones; of more, their weights are undefined."""
        if devices != len(self.shared):
            self.personal, self.shared = self._rows("personal", devices), self._rows("shared", devices)
            self._bound = False

    def read_shared_from(self, vector: torch.Tensor | None) -> None:
        """Let all copies have one shared part (N_u,), of which their gradients are; None: each has its own.

        What is read once for all copies stays in the cache.
        """
        self._common = vector
        self._bound = False

    def hand_over(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the personal and shared weights for good; the model takes new memory at its next `use`."""
        weights = self.personal, self.shared
        self.personal = self.shared = torch.empty(0)
        self._weights.clear()
        return weights

    def _rows(self, part: Part, devices: int) -> torch.Tensor:
        size = (self._split.personal if part == "personal" else self._split.shared).size
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
        devices = len(self.shared)
        for parameter in self._parameters:
            weights = self.personal if parameter.part == "personal" else self.shared
            assert weights.grad is not None
            shape = (devices, *parameter.shape)
            parameter.gradient = weights.grad[:, parameter.place].view(shape)
            if parameter.part == "shared" and self._common is not None:
                parameter.value = self._common[parameter.place].view(parameter.shape).expand(shape)
            else:
                parameter.value = weights[:, parameter.place].view(shape)

    def train_only(self, *, personal: bool = False, shared: bool = False) -> None:
        """Choose the parts that `backward` differentiates; nothing is computed for the other's sake."""
        for parameter in self._parameters:
            parameter.trained = personal if parameter.part == "personal" else shared

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
        self, inputs: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor, *, skip: int = 0
    ) -> torch.Tensor:
        """Write the gradients of each device's weighted cross-entropy into `.grad` of the chosen parts.

        Args:
            inputs: (D, B, 1, 28, 28) images, or the `features` after the first `skip` layers.
            labels: int64 (D, B).
            shares: (D, B), weight of each image in its device's loss: 1/n for the mean over n, 0 for an image
                that only fills up the batch.
            skip: layers that were computed before.

        Returns:
            The losses, (D,).
        """
        self._bind()
        first = max(self._first_trained(), skip)
        for position, layer in enumerate(self._layers[skip:], skip):
            inputs = layer.forward(inputs, keep=position >= first)
        logarithms = torch.log_softmax(_cast(inputs, torch.float32), dim=2)
        truth = labels.unsqueeze(2)
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


class _Layer(Protocol):
    """A layer of all devices.

    `forward` maps (D, B, ...) to (D, B, ...) and, with `keep`, remembers what `backward` needs; `backward`
    writes the gradients of its trained parameters and, with `passes`, returns that of its input.
    """

    parameters: Sequence[_Parameter]

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor: ...

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None: ...


class _Linear:
    def __init__(self, weight: _Parameter, bias: _Parameter | None, dtype: torch.dtype) -> None:
        self.parameters = _present(weight, bias)
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        x = _cast(x, self._dtype)
        if keep:
            self._kept = x
        weight = _cast(self._weight.value, self._dtype).mT
        if self._bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(_cast(self._bias.value, self._dtype).unsqueeze(1), x, weight)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        gradient = _cast(gradient, self._dtype)
        if self._weight.trained:
            if self._dtype == torch.float32:
                torch.bmm(gradient.mT, self._kept, out=self._weight.gradient)
            else:
                self._weight.gradient.copy_(torch.bmm(gradient.mT, self._kept))
        if self._bias is not None and self._bias.trained:
            torch.sum(gradient, 1, dtype=torch.float32, out=self._bias.gradient)
        return torch.bmm(gradient, _cast(self._weight.value, self._dtype)) if passes else None


class _Convolution:
    """One convolution in D groups."""

    def __init__(
        self, layer: nn.Conv2d, weight: _Parameter, bias: _Parameter | None, dtype: torch.dtype
    ) -> None:
        self.parameters = _present(weight, bias)
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._window = list(layer.stride), _numbers(layer.padding), list(layer.dilation)
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        devices, batch = x.shape[:2]
        folded = _cast(x, self._dtype).transpose(0, 1).flatten(1, 2)
        if keep:
            self._kept = folded
        bias = None if self._bias is None else _cast(self._bias.value.flatten(), self._dtype)
        stride, padding, dilation = self._window
        maps = torch.conv2d(folded, self._kernels(), bias, stride, padding, dilation, devices)
        return maps.view(batch, devices, -1, *maps.shape[2:]).transpose(0, 1)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        devices, batch = gradient.shape[:2]
        folded = _cast(gradient, self._dtype).transpose(0, 1).flatten(1, 2)
        of_bias = self._bias is not None and self._bias.trained
        wanted = [passes, self._weight.trained, of_bias]
        stride, padding, dilation = self._window
        of_input, of_weight, bias_gradient = _convolution_backward(
            folded,
            self._kept,
            self._kernels(),
            [folded.shape[1]],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            devices,
            wanted,
        )
        if self._weight.trained:
            self._weight.gradient.copy_(of_weight.view(self._weight.gradient.shape))
        if self._bias is not None and self._bias.trained:
            self._bias.gradient.copy_(bias_gradient.view(self._bias.gradient.shape))
        if not passes:
            return None
        maps: torch.Tensor = of_input.view(batch, devices, -1, *of_input.shape[2:]).transpose(0, 1)
        return maps

    def _kernels(self) -> torch.Tensor:
        return _cast(self._weight.value.flatten(0, 1), self._dtype)


class _PatchConvolution:
    """Convolution of single-channel maps as a product with their patches."""

    def __init__(
        self, layer: nn.Conv2d, weight: _Parameter, bias: _Parameter | None, dtype: torch.dtype
    ) -> None:
        self.parameters = _present(weight, bias)
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._size = layer.kernel_size
        assert not isinstance(layer.padding, str)
        self._window = layer.dilation, layer.padding, layer.stride
        self._maps: tuple[int, int] = 0, 0
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        devices, batch, _, height, width = x.shape
        self._maps = height, width
        patches = nn.functional.unfold(_cast(x, self._dtype).flatten(0, 1), self._size, *self._window)
        patches = patches.view(devices, batch, *patches.shape[1:])  # (D, B, k k, places)
        if keep:
            self._kept = patches
        maps = torch.matmul(self._kernels(), patches)
        if self._bias is not None:
            maps += _cast(self._bias.value, self._dtype)[:, None, :, None]
        dilation, padding, stride = self._window
        rows, columns = (
            (self._maps[i] + 2 * padding[i] - dilation[i] * (self._size[i] - 1) - 1) // stride[i] + 1
            for i in (0, 1)
        )
        return maps.view(devices, batch, -1, rows, columns)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        flat = _cast(gradient, self._dtype).flatten(3)
        if self._weight.trained:
            products = torch.matmul(flat, self._kept.mT).sum(1, dtype=torch.float32)
            self._weight.gradient.copy_(products.view(self._weight.gradient.shape))
        if self._bias is not None and self._bias.trained:
            self._bias.gradient.copy_(flat.sum((1, 3), dtype=torch.float32))
        if not passes:
            return None
        patches = torch.matmul(self._kernels().mT, flat)
        maps = nn.functional.fold(patches.flatten(0, 1), self._maps, self._size, *self._window)
        return maps.view(*gradient.shape[:2], *maps.shape[1:])

    def _kernels(self) -> torch.Tensor:
        return _cast(self._weight.value.flatten(2).unsqueeze(1), self._dtype)  # (D, 1, out, k k)


class _MaxPool:
    parameters: Sequence[_Parameter] = ()

    def __init__(self, layer: nn.MaxPool2d) -> None:
        self._window = [_pair(n) for n in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)]
        self._ceil = layer.ceil_mode
        self._kept = torch.empty(0), torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        maps = x.flatten(0, 1)
        pooled, places = _pool(maps, *self._window, self._ceil)
        if keep:
            self._kept = maps, places
        out: torch.Tensor = pooled.view(*x.shape[:2], *pooled.shape[1:])
        return out

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        if not passes:
            return None
        maps, places = self._kept
        spread: torch.Tensor = _pool_backward(gradient.flatten(0, 1), maps, *self._window, self._ceil, places)
        return spread.view(*gradient.shape[:2], *spread.shape[1:])


class _Relu:
    parameters: Sequence[_Parameter] = ()

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        out = torch.relu(x)
        if keep:
            self._kept = out
        return out

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        result: torch.Tensor = _relu_backward(_cast(gradient, self._kept.dtype), self._kept, 0.0)
        return result


class _Flatten:
    parameters: Sequence[_Parameter] = ()

    def __init__(self) -> None:
        self._shape = torch.Size()

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        self._shape = x.shape[2:]
        return x.flatten(2)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        return gradient.view(*gradient.shape[:2], *self._shape)


def _stacked(name: str, layer: nn.Module, parameters: dict[str, _Parameter], dtype: torch.dtype) -> _Layer:
    if isinstance(layer, nn.Linear):
        return _Linear(parameters[f"{name}.weight"], parameters.get(f"{name}.bias"), dtype)
    if isinstance(layer, nn.Conv2d):
        plain = layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if plain:
            kind = _PatchConvolution if layer.in_channels == 1 else _Convolution
            return kind(layer, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"), dtype)
    elif isinstance(layer, nn.MaxPool2d):
        if not layer.return_indices:
            return _MaxPool(layer)
    elif isinstance(layer, nn.ReLU):
        return _Relu()
    elif isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) == (1, -1):
        return _Flatten()
    raise ValueError(
        f"devices cannot be batched: layer {name!r} is {layer}; known are Linear, Conv2d (zero padding, one "
        "group), MaxPool2d, ReLU and Flatten; train one device after the other (one device per batch) instead"
    )


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert; asking first is a fifth of the price of converting to the same type."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _present(weight: _Parameter, bias: _Parameter | None) -> Sequence[_Parameter]:
    return (weight,) if bias is None else (weight, bias)


def _numbers(padding: str | tuple[int, ...]) -> list[int]:
    assert not isinstance(padding, str)
    return list(padding)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
