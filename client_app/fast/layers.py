"""Layers of many devices: forward and backward with a leading device dimension, gradients written out.

With D devices and B samples each:

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

_pool = torch.ops.aten.max_pool2d_with_indices.default
_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
_convolution_backward = torch.ops.aten.convolution_backward.default

Part = Literal["personal", "global_part"]


@dataclass(eq=False)
class Parameter:
    """A parameter of all devices: `value` and `gradient`, (D, *shape), are views of flat vectors."""

    part: Part
    place: slice
    shape: tuple[int, ...]
    trained: bool = True
    value: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class UnknownLayerError(ValueError):
    """A layer, or an option of one, that is not known here."""


class Layer(Protocol):
    """A layer of all devices.

    `forward` maps (D, B, ...) to (D, B, ...) and, with `keep`, remembers what `backward` needs; `backward`
    writes the gradients of its trained parameters and, with `passes`, returns that of its input.
    """

    parameters: Sequence[Parameter]

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        """Return the layer's output."""
        ...

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        """Take the gradient of the output."""
        ...


class _Linear:
    def __init__(self, weight: Parameter, bias: Parameter | None, dtype: torch.dtype) -> None:
        self.parameters = _present(weight, bias)
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        x = cast(x, self._dtype)
        if keep:
            self._kept = x
        weight = cast(self._weight.value, self._dtype).mT
        if self._bias is None:
            return torch.bmm(x, weight)
        return torch.baddbmm(cast(self._bias.value, self._dtype).unsqueeze(1), x, weight)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        gradient = cast(gradient, self._dtype)
        if self._weight.trained:
            if self._dtype == torch.float32:
                torch.bmm(gradient.mT, self._kept, out=self._weight.gradient)
            else:
                self._weight.gradient.copy_(torch.bmm(gradient.mT, self._kept))
        if self._bias is not None and self._bias.trained:
            torch.sum(gradient, 1, dtype=torch.float32, out=self._bias.gradient)
        return torch.bmm(gradient, cast(self._weight.value, self._dtype)) if passes else None


class _Convolution:
    """One convolution in D groups."""

    def __init__(
        self, layer: nn.Conv2d, weight: Parameter, bias: Parameter | None, dtype: torch.dtype
    ) -> None:
        self.parameters = _present(weight, bias)
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._window = list(layer.stride), _numbers(layer.padding), list(layer.dilation)
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        devices, batch = x.shape[:2]
        folded = cast(x, self._dtype).transpose(0, 1).flatten(1, 2)
        if keep:
            self._kept = folded
        bias = None if self._bias is None else cast(self._bias.value.flatten(), self._dtype)
        stride, padding, dilation = self._window
        maps = torch.conv2d(folded, self._kernels(), bias, stride, padding, dilation, devices)
        return maps.view(batch, devices, -1, *maps.shape[2:]).transpose(0, 1)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        devices, batch = gradient.shape[:2]
        folded = cast(gradient, self._dtype).transpose(0, 1).flatten(1, 2)
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
        return cast(self._weight.value.flatten(0, 1), self._dtype)


class _PatchConvolution:
    """Convolution of single-channel maps as a product with their patches."""

    def __init__(
        self, layer: nn.Conv2d, weight: Parameter, bias: Parameter | None, dtype: torch.dtype
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
        patches = nn.functional.unfold(cast(x, self._dtype).flatten(0, 1), self._size, *self._window)
        patches = patches.view(devices, batch, *patches.shape[1:])  # (D, B, k k, places)
        if keep:
            self._kept = patches
        maps = torch.matmul(self._kernels(), patches)
        if self._bias is not None:
            maps += cast(self._bias.value, self._dtype)[:, None, :, None]
        dilation, padding, stride = self._window
        rows, columns = (
            (self._maps[i] + 2 * padding[i] - dilation[i] * (self._size[i] - 1) - 1) // stride[i] + 1
            for i in (0, 1)
        )
        return maps.view(devices, batch, -1, rows, columns)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        flat = cast(gradient, self._dtype).flatten(3)
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
        return cast(self._weight.value.flatten(2).unsqueeze(1), self._dtype)  # (D, 1, out, k k)


class _MaxPool:
    parameters: Sequence[Parameter] = ()

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
    parameters: Sequence[Parameter] = ()

    def __init__(self) -> None:
        self._kept = torch.empty(0)

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        out = torch.relu(x)
        if keep:
            self._kept = out
        return out

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        result: torch.Tensor = _relu_backward(cast(gradient, self._kept.dtype), self._kept, 0.0)
        return result


class _Flatten:
    parameters: Sequence[Parameter] = ()

    def __init__(self) -> None:
        self._shape = torch.Size()

    def forward(self, x: torch.Tensor, *, keep: bool) -> torch.Tensor:
        self._shape = x.shape[2:]
        return x.flatten(2)

    def backward(self, gradient: torch.Tensor, *, passes: bool) -> torch.Tensor | None:
        return gradient.view(*gradient.shape[:2], *self._shape)


def stacked_layer(name: str, layer: nn.Module, parameters: dict[str, Parameter], dtype: torch.dtype) -> Layer:
    """Return the layer `layer`, called `name` in its network, for many devices.

    Raises:
        UnknownLayerError: if it, or an option of it, is not known here.
    """
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
    raise UnknownLayerError(
        f"layer {name!r} is {layer}; known are Linear, Conv2d (zero padding, one group), MaxPool2d, ReLU and "
        "Flatten"
    )


def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert; asking first is a fifth of the price of converting to the same type."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _present(weight: Parameter, bias: Parameter | None) -> Sequence[Parameter]:
    return (weight,) if bias is None else (weight, bias)


def _numbers(padding: str | tuple[int, ...]) -> list[int]:
    assert not isinstance(padding, str)
    return list(padding)


def _pair(value: int | tuple[int, ...]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
