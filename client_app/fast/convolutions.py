"""Two "same" convolutions, each with 2x2 max-pooling and ReLU, as one differentiable step made for one core.

`accelerate` finds these layers in a network and returns an equal one (within float32 rounding) with the same
parameters. What makes it faster than the layers one after the other, for the paper's CNN on one AVX-512 core:

- the first convolution, with its one input channel, has its channels last, and is pooled so; the second is
  done in the frequency domain (`fast.spectral`), with a seventh of the multiplications;
- the batch goes through in slices of 48 images, so that what one layer writes the next finds in the cache;
- the layout there, (height, width, channel, batch), needs no transposition within a layer, and pooling reads
  whole rows.

A step on fewer than `FEWEST` images is taken by the layers themselves. With `dtype` bfloat16 activations and
products are bfloat16 (twice the speed where the processor multiplies it); weights, their transforms and the
sums of their gradients stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from client_app.fast.spectral import Transforms, from_spectrum, to_spectrum, transforms

SLICE = 48  # images at once: large enough for the products, small enough for the cache (32 to 64 are alike)
# Images of a step below which the layers are faster: transforming the kernels and their gradients there and
# back takes as long as the direct sums of 11 images. A number, not a time taken in the run: the same steps
# have to round alike wherever and whenever they are taken.
FEWEST = 12

_pool = torch.ops.aten.max_pool2d_with_indices.default
_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
_convolution_backward = torch.ops.aten.convolution_backward.default
_WEIGHTS = [False, True, False]  # of a convolution's gradients: not those of maps and bias
_Saved = tuple[torch.Tensor, ...]


class FastConvolutions(nn.Module):
    """Twice conv - max-pool - ReLU, then flatten, of (batch, 1, n, n) images, n divisible by 4.

    Args:
        first, second: the convolutions.
        layers: all that this computes, these two among it; for steps on few images.
        dtype: of the products.
    """

    def __init__(
        self,
        first: nn.Conv2d,
        second: nn.Conv2d,
        layers: Sequence[nn.Module],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.layers = nn.Sequential(*layers)
        self.dtype = dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (batch, channels * n / 4 * n / 4), in the order of `nn.Flatten`."""
        parts = (self.first.weight, self.first.bias, self.second.weight, self.second.bias)
        if len(images) < FEWEST and self.dtype == torch.float32 and _learns(parts):
            out: torch.Tensor = self.layers(images)
            return out
        apply: Callable[..., torch.Tensor] = _Function.apply
        with torch.autocast("cpu", enabled=False):  # which products are bfloat16 is decided here
            return apply(self.dtype, images, *parts)


def accelerate(layers: Sequence[nn.Module], dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """Return layers that compute the same with the same parameters, faster where that is known how.

    Args:
        layers: of an `nn.Sequential` that takes (batch, 1, 28, 28) images.
        dtype: of the products, float32 or bfloat16.
    """
    found = [layer for layer in layers if not _only_layout(layer)]
    pattern = (nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Flatten)
    front = found[: len(pattern)]
    if len(front) < len(pattern) or not all(map(isinstance, front, pattern)):
        return list(layers)
    first, second = front[0], front[3]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    if first.in_channels != 1 or second.in_channels < 8 or not (_is_same(first) and _is_same(second)):
        return list(layers)  # few channels: the transforms cost more than they save
    if not (_halves(front[1]) and _halves(front[4])):
        return list(layers)
    replaced = layers[: 1 + next(i for i, layer in enumerate(layers) if layer is front[-1])]
    return [FastConvolutions(first, second, replaced, dtype), *found[len(pattern) :]]


def _learns(parts: Sequence[torch.Tensor | None]) -> bool:
    """Return whether a gradient will be asked for: without one the transforms cost a third as much."""
    return torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)


def _only_layout(layer: nn.Module) -> bool:
    return bool(getattr(layer, "only_layout", False))


def _halves(layer: nn.Module) -> bool:
    return isinstance(layer, nn.MaxPool2d) and (layer.kernel_size, layer.stride, layer.padding) == (2, 2, 0)


def _is_same(layer: nn.Conv2d) -> bool:
    size = layer.kernel_size[0]
    return (
        layer.kernel_size == (size, size)
        and size % 2 == 1
        and layer.padding == (size // 2, size // 2)
        and (layer.stride, layer.dilation, layer.groups) == ((1, 1), (1, 1), 1)
        and layer.bias is not None
    )


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, images: torch.Tensor, *parts: torch.Tensor) -> torch.Tensor:
        needed = ctx.needs_input_grad[2:]
        matrices = transforms(images.shape[2] // 2, parts[2].shape[-1], dtype)
        stages = (
            _DirectStage(parts[0], parts[1], dtype, learns=any(needed[:2])),
            _SpectralStage(parts[2], parts[3], matrices, learns=any(needed[2:]), passes=any(needed[:2])),
        )
        outputs, saved = [], []
        for few in torch.split(images, SLICE):
            maps, kept = few, []
            for stage in stages:
                maps, keep = stage.forward(maps)
                kept.append(keep)
            outputs.append(maps.permute(3, 2, 0, 1).flatten(1))
            if any(needed):
                saved.append(kept)
        ctx.stages, ctx.saved, ctx.last, ctx.dtype = stages, saved, maps.shape, dtype
        return torch.cat(outputs).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        first, second = ctx.stages
        height, width, channels, _ = ctx.last
        for few, kept in zip(torch.split(gradient, SLICE), ctx.saved, strict=True):
            maps = few.view(-1, channels, height, width).permute(2, 3, 1, 0).to(ctx.dtype).contiguous()
            inner = second.backward(maps, kept[1])
            if inner is not None:
                first.backward(inner, kept[0])
        ctx.saved = []
        wanted = zip((*first.gradients(), *second.gradients()), ctx.needs_input_grad[2:], strict=True)
        return None, None, *(result if needed else None for result, needed in wanted)


class _DirectStage:
    """Convolution of images as torch does it with channels last; pooling; ReLU."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, *, learns: bool) -> None:
        self._weight = _channels_last(weight.detach().to(dtype))
        self._bias = bias.detach().to(dtype)
        self._learns = learns
        self._gradient: torch.Tensor | None = None
        self._bias_gradient = torch.zeros_like(bias)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, _Saved]:
        few = _channels_last(images.to(self._weight.dtype))
        maps = functional.conv2d(few, self._weight, None, 1, self._padding)
        pooled, places = _pool(maps, (2, 2))
        pooled += self._bias[:, None, None]  # a quarter of the additions, as in `_pool_and_relu`
        pooled.relu_()
        return pooled.permute(2, 3, 1, 0).contiguous(), (few, pooled, places) if self._learns else ()

    def backward(self, gradient: torch.Tensor, saved: _Saved) -> None:
        few, pooled, places = saved
        gradient = gradient.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
        through = _relu_backward(gradient, pooled, 0.0)
        self._bias_gradient += through.sum((0, 2, 3), dtype=torch.float32)
        shape = (len(few), pooled.shape[1], *few.shape[2:])
        # Only the form of the maps is looked at: what was in them is gone, and its memory in use again.
        form = torch.empty(shape, dtype=through.dtype, memory_format=torch.channels_last)
        spread = _pool_backward(through, form, (2, 2), (2, 2), [0, 0], [1, 1], False, places)
        _, gradient, _ = _convolution_backward(
            spread, few, self._weight, None, [1, 1], [self._padding] * 2, [1, 1], False, [0, 0], 1, _WEIGHTS
        )
        kernels = gradient.to(torch.float32)
        self._gradient = kernels if self._gradient is None else self._gradient.add_(kernels)

    @property
    def _padding(self) -> int:
        return self._weight.shape[-1] // 2

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return self._gradient, None if self._gradient is None else self._bias_gradient


def _channels_last(maps: torch.Tensor) -> torch.Tensor:
    """View (b, 1, h, w) so that torch takes the one channel for the last."""
    _, _, height, width = maps.shape
    return maps.contiguous().as_strided(maps.shape, (height * width, 1, width, 1))


class _SpectralStage:
    """Convolution in the frequency domain; pooling; ReLU."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        matrices: Transforms,
        *,
        learns: bool,
        passes: bool,
    ) -> None:
        self._matrices = matrices
        self._constant = self._matrices.num_frequencies - self._matrices.real_columns.shape[0]
        self._bias = bias
        self._shape = weight.shape
        self._blocks = kernel_blocks(weight, self._matrices).to(matrices.rows.dtype)
        self._learns, self._passes = learns, passes
        self._gradient: torch.Tensor | None = None
        self._bias_gradient = torch.zeros_like(bias)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, _Saved]:
        spectrum = to_spectrum(maps, self._matrices)
        product = from_spectrum(torch.bmm(self._blocks, spectrum), self._matrices)
        needed = self._learns or self._passes
        pooled, saved = _pool_and_relu(product, self._bias, needed=needed)
        return pooled, (spectrum, *saved) if needed else ()

    def backward(self, gradient: torch.Tensor, saved: _Saved) -> torch.Tensor | None:
        spectrum, *pooling = saved
        product = _undo_pool_and_relu(gradient.view(pooling[0].shape), *pooling)
        of_product = to_spectrum(product, self._matrices)
        if self._learns:
            # Frequency (0, 0) is the sum over the map.
            self._bias_gradient += of_product[self._constant, : self._shape[0]].sum(1, dtype=torch.float32)
            if self._gradient is None:
                self._gradient = torch.bmm(of_product, spectrum.mT).to(torch.float32)
            elif of_product.dtype == torch.float32:
                self._gradient.baddbmm_(of_product, spectrum.mT)
            else:
                self._gradient += torch.bmm(of_product, spectrum.mT)
        if not self._passes:
            return None
        return from_spectrum(torch.bmm(self._blocks.mT, of_product), self._matrices)

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self._gradient is None:
            return None, None
        return kernel_gradient(self._gradient, self._shape, self._matrices), self._bias_gradient


def kernel_blocks(weight: torch.Tensor, matrices: Transforms) -> torch.Tensor:
    """Transform (o, c, k, k) kernels to (F, 2o, 2c).

    Each complex number is a real 2x2 block, so that one real product per frequency convolves.
    """
    outputs, inputs, _, _ = weight.shape
    count = matrices.num_frequencies
    spectrum = torch.mm(matrices.kernel, weight.reshape(outputs * inputs, -1).T)
    spectrum = spectrum.view(count, 2, outputs, inputs)
    blocks = weight.new_empty(count, 2, outputs, 2, inputs)
    blocks[:, 0, :, 0] = spectrum[:, 0]
    blocks[:, 1, :, 1] = spectrum[:, 0]
    blocks[:, 1, :, 0] = spectrum[:, 1]
    blocks[:, 0, :, 1] = -spectrum[:, 1]
    return blocks.view(count, 2 * outputs, 2 * inputs)


def kernel_gradient(blocks: torch.Tensor, shape: torch.Size, matrices: Transforms) -> torch.Tensor:
    """Return the gradient (o, c, k, k) from sums of outer products of spectra, (F, 2o, 2c)."""
    outputs, inputs, _, _ = shape
    blocks = blocks.view(matrices.num_frequencies, 2, outputs, 2, inputs)
    spectrum = blocks.new_empty(matrices.num_frequencies, 2, outputs, inputs)
    spectrum[:, 0] = blocks[:, 0, :, 0] + blocks[:, 1, :, 1]
    spectrum[:, 1] = blocks[:, 1, :, 0] - blocks[:, 0, :, 1]
    flat = spectrum.view(2 * matrices.num_frequencies, outputs * inputs)
    return torch.mm(matrices.kernel_back, flat).T.reshape(shape)


def _as_image(maps: torch.Tensor) -> torch.Tensor:
    """View (h, w, c, b) as one channels-last image, which is what the pooling kernel likes best."""
    height, width, channels, batch = maps.shape
    return maps.view(1, height, width, channels * batch).permute(0, 3, 1, 2)


def _pool_and_relu(maps: torch.Tensor, bias: torch.Tensor, *, needed: bool) -> tuple[torch.Tensor, _Saved]:
    """Pool (h, w, c, b) maps by 2 x 2, then add a bias: the largest with a bias is the largest plus it."""
    height, width, channels, batch = maps.shape
    pooled, places = _pool(_as_image(maps), (2, 2))
    out = pooled.permute(0, 2, 3, 1).view(height // 2, width // 2, channels, batch)
    out += bias[:, None]
    return out.relu_(), (out, places) if needed else ()


def _undo_pool_and_relu(gradient: torch.Tensor, out: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return the gradient with respect to the maps before pooling."""
    through = _as_image(_relu_backward(gradient, out, 0.0))
    height, width = 2 * out.shape[0], 2 * out.shape[1]
    # Only the form of the maps is looked at: what was in them is gone, and its memory in use again.
    form = _as_image(out.new_empty(height, width, *out.shape[2:]))
    spread: torch.Tensor = _pool_backward(through, form, (2, 2), (2, 2), [0, 0], [1, 1], False, places)
    return spread.permute(0, 2, 3, 1).view(height, width, *out.shape[2:])
