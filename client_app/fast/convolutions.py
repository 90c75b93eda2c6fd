"""Two "same" convolutions, each with 2x2 max-pooling and ReLU, as one differentiable step made for one core.

`accelerate` finds these layers in a network and returns an equal one (within float32 rounding) with the same
parameters. What makes it faster than the layers one after the other, for the paper's CNN on one AVX-512 core:

- the first convolution, with its one input channel, is a matrix product on gathered patches, a pooling
  window at a time; the second is done in the frequency domain (`fast.spectral`), with a seventh of
  the multiplications;
- the batch goes through in slices of 48 images, so that what one layer writes the next finds in the cache;
- the layout (height, width, channel, batch) needs no transposition anywhere, and pooling reads whole rows.

A step on fewer than `FEWEST` images is taken by the layers themselves. With `dtype` bfloat16 activations and
products are bfloat16 (twice the speed where the processor multiplies it); weights, their transforms and the
sums of their gradients stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from client_app.fast.spectral import Transforms, from_spectrum, to_spectrum, transforms

SLICE = 48  # images at once: large enough for the products, small enough for the cache (32 to 64 are alike)
# Images of a step below which the layers are faster: transforming the kernels and their gradients there and
# back takes as long as the direct sums of 11 images. A number, not a time taken in the run: the same steps
# have to round alike wherever and whenever they are taken.
FEWEST = 12

_pool = torch.ops.aten.max_pool2d_with_indices.default
_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
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
            _PatchStage(parts[0], parts[1], dtype, learns=any(needed[:2])),
            _SpectralStage(parts[2], parts[3], matrices, learns=any(needed[2:]), passes=any(needed[:2])),
        )
        outputs, saved = [], []
        for few in torch.split(images, SLICE):
            maps = few.permute(2, 3, 1, 0).to(dtype).contiguous()
            kept = []
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


class _PatchStage:
    """Convolution of images as products with their patches; pooling; ReLU.

    One product gives the four outputs of a pooling window from the (k+1) x (k+1) patch that they share: a
    third fewer numbers to gather than of four patches of their own, and matrices large enough for the
    processor's products, which take a third of the time for half more multiplications.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, *, learns: bool) -> None:
        self._shape = weight.shape
        self._table = window_table(weight, bias).to(dtype)
        self._learns = learns
        self._gradient: torch.Tensor | None = None

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, _Saved]:
        height, width, _, batch = maps.shape
        patches = gather_patches(maps, self._shape[-1])
        product = torch.bmm(self._table.expand(len(patches), -1, -1), patches)
        windows = product.view(4 * len(patches), 1, -1, batch)  # a map of one column, pooled by fours
        pooled, saved = _pool_and_relu(windows, (4, 1), self._learns)
        return pooled.view(height // 2, width // 2, -1, batch), (patches, *saved) if self._learns else ()

    def backward(self, gradient: torch.Tensor, saved: _Saved) -> None:
        patches, *pooling = saved
        product = _undo_pool_and_relu(gradient, (4, 1), *pooling)
        outputs, batch = product.shape[2:]
        windows = product.view(len(patches), 4 * outputs, batch)
        table = torch.bmm(windows, patches.mT).sum(0, dtype=torch.float32)
        self._gradient = table if self._gradient is None else self._gradient.add_(table)

    def gradients(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if self._gradient is None:
            return None, None
        return table_gradient(self._gradient, self._shape)


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
        # The largest of four with a bias is the largest plus the bias: a quarter of the additions.
        pooled, saved = _pool_and_relu(product, (2, 2), needed, self._bias)
        return pooled, (spectrum, *saved) if needed else ()

    def backward(self, gradient: torch.Tensor, saved: _Saved) -> torch.Tensor | None:
        spectrum, *pooling = saved
        product = _undo_pool_and_relu(gradient, (2, 2), *pooling)
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


def gather_patches(maps: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """Gather what each 2x2 window of outputs sees of (h, w, c, b) maps.

    Returns:
        (h w / 4, c (k + 1)^2 + 1, b), the last row 1, for the bias.
    """
    height, width, channels, batch = maps.shape
    pad = kernel_size // 2
    padded = maps.new_zeros(height + 2 * pad, width + 2 * pad, channels, batch)
    padded[pad : pad + height, pad : pad + width] = maps
    row, column, channel, sample = padded.stride()
    windows = padded.as_strided(
        (height // 2, width // 2, channels, kernel_size + 1, kernel_size + 1, batch),
        (2 * row, 2 * column, channel, row, column, sample),
    )
    patches = maps.new_empty(height // 2, width // 2, channels * (kernel_size + 1) ** 2 + 1, batch)
    patches[:, :, :-1].view(windows.shape).copy_(windows)
    patches[:, :, -1] = 1.0
    return patches.flatten(0, 1)


_WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))  # row by row, as pooling goes through it: ties take the first


def window_table(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Lay (o, c, k, k) kernels and biases (o,) out for `gather_patches`: (4 o, c (k + 1)^2 + 1)."""
    outputs, inputs, size, _ = weight.shape
    table = weight.new_zeros(4, outputs, inputs, size + 1, size + 1)
    for place, (down, right) in zip(table, _WINDOW, strict=True):
        place[:, :, down : down + size, right : right + size] = weight
    return torch.cat([table.view(4 * outputs, -1), bias.repeat(4)[:, None]], 1)


def table_gradient(table: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of kernels of `shape` (o, c, k, k) and of biases from that of `window_table`."""
    outputs, inputs, size, _ = shape
    places = table[:, :-1].reshape(4, outputs, inputs, size + 1, size + 1)
    kernels = sum(
        place[:, :, down : down + size, right : right + size]
        for place, (down, right) in zip(places, _WINDOW, strict=True)
    )
    assert isinstance(kernels, torch.Tensor)
    return kernels, table[:, -1].view(4, outputs).sum(0)


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


def _pool_and_relu(
    maps: torch.Tensor, window: tuple[int, int], needed: bool, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, _Saved]:
    height, width, channels, batch = maps.shape
    high, wide = window
    image = _as_image(maps)
    if needed or wide > 1:
        pooled, places = _pool(image, window)
        out = pooled.permute(0, 2, 3, 1).view(height // high, width // wide, channels, batch)
    else:  # nobody asks for the places of the maxima: a third of the time
        out = maps.view(height // high, high, width, channels, batch).amax(1)
    if bias is not None:
        out += bias[:, None]
    return out.relu_(), (out, places) if needed else ()


def _undo_pool_and_relu(
    gradient: torch.Tensor,
    window: tuple[int, int],
    out: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """Return the gradient with respect to the maps before pooling."""
    through = _as_image(_relu_backward(gradient.view(out.shape), out, 0.0))
    height, width = window[0] * out.shape[0], window[1] * out.shape[1]
    # Only the form of the maps is looked at: what was in them is gone, and its memory in use again.
    form = _as_image(out.new_empty(height, width, *out.shape[2:]))
    spread: torch.Tensor = _pool_backward(through, form, window, window, [0, 0], [1, 1], False, places)
    return spread.permute(0, 2, 3, 1).view(height, width, *out.shape[2:])
