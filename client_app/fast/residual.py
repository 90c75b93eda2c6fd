"""Residual networks in the layout that small convolutions like best, on one core.

`accelerate` finds the stem (convolution, normalisation, ReLU) and the blocks of `task.models.residual` in a
network and returns equal ones (within float32 rounding) with the same parameters. What makes them faster than
the layers one after the other, for `resnet8` on 50 pictures of 3 x 32 x 32:

- maps lie as (batch, height, width, channel), with which convolutions of few channels are up to half as fast
  again (`benchmarks/peers/profiles.py`);
- normalisation, shortcut and ReLU go over rows of channels, and a shortcut's gradient is added where it
  belongs, instead of being spread over a map of zeros first;
- a block is one step of differentiation: no gradient arrives in a layout that has to be copied.

Batch normalisation is that of one group per channel over one long picture. What is not being trained (the
running statistics of an evaluation) is left to the layers themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from task.models.residual import ResidualBlock

_convolution_backward = torch.ops.aten.convolution_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default
_LAST = torch.channels_last


def accelerate(layers: Sequence[nn.Module], dtype: torch.dtype = torch.float32) -> list[nn.Module]:
    """Return layers that compute the same with the same parameters, faster where that is known how.

    Args:
        layers: of an `nn.Sequential`; as many are returned.
        dtype: of the products; float32 only.
    """
    found = list(layers)
    if dtype != torch.float32 or not any(
        isinstance(one, ResidualBlock) for layer in found for one in layer.modules()
    ):
        return found
    if len(found) > 3 and type(found[2]) is nn.ReLU and _is_known(found[0], found[1]):
        found[:3] = [_Stem(found[0], found[1]), nn.Identity(), nn.Identity()]  # type: ignore[arg-type]
    return [_accelerated(layer) for layer in found]


def _accelerated(layer: nn.Module) -> nn.Module:
    if type(layer) is nn.Sequential:
        return nn.Sequential(*map(_accelerated, layer))
    if type(layer) is ResidualBlock:
        convs = layer.conv1, layer.conv2
        forms = [(conv.kernel_size, conv.padding, conv.stride) for conv in convs]
        usual = [((3, 3), (1, 1), (stride, stride)) for stride in (layer.stride, 1)]
        if forms == usual and all(map(_is_known, convs, layer.norms)):
            return _Block(layer)
    return layer


def _is_known(conv: nn.Module, norm: nn.Module) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and (conv.dilation, conv.groups) == ((1, 1), 1)
        and (type(norm) is nn.GroupNorm or (type(norm) is nn.BatchNorm2d and norm.momentum is not None))
        and norm.affine
    )


class _Stem(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, conv: nn.Conv2d, norm: nn.GroupNorm | nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the maps."""
        if not _is_trained(self.norm):
            return functional.relu(self.norm(self.conv(images)))
        maps, norm = images.contiguous(memory_format=_LAST), self.norm
        conv = functional.conv2d(maps, _last(self.conv), None, self.conv.stride, self.conv.padding)
        out: torch.Tensor
        out, *moments = _NormAndRelu.apply(conv, norm.weight, norm.bias, _form(norm))
        _note(norm, *moments)
        return out


class _Block(nn.Module):
    """What a `ResidualBlock` computes."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the block's maps."""
        block, (first, second) = self.block, self.block.norms
        if not (_is_trained(first) and _is_trained(second)):
            result: torch.Tensor = block(maps)
            return result
        form = _BlockForm(block.stride, block.more, _form(first), _form(second))
        out: torch.Tensor
        out, *moments = _BlockFunction.apply(
            form,
            maps.contiguous(memory_format=_LAST),
            *(_last(block.conv1), first.weight, first.bias),
            *(_last(block.conv2), second.weight, second.bias),
        )
        _note(first, *moments[:2])
        _note(second, *moments[2:])
        return out


def _last(conv: nn.Conv2d) -> torch.Tensor:
    return conv.weight.contiguous(memory_format=_LAST)


def _is_trained(norm: nn.Module) -> bool:
    return isinstance(norm, nn.GroupNorm) or norm.training


class _NormForm(NamedTuple):
    """What of a normalisation is no tensor: groups of channels, whether over all of a batch, epsilon."""

    groups: int
    of_batch: bool
    eps: float


class _BlockForm(NamedTuple):
    stride: int
    more: int
    first: _NormForm
    second: _NormForm


def _form(norm: nn.Module) -> _NormForm:
    if isinstance(norm, nn.GroupNorm):
        return _NormForm(norm.num_groups, False, norm.eps)
    assert isinstance(norm, nn.BatchNorm2d)
    return _NormForm(norm.num_features, True, norm.eps)


@torch.no_grad()
def _note(norm: nn.Module, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move running statistics as `nn.BatchNorm2d` does."""
    if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None:
        return
    assert norm.momentum is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance, norm.momentum)
    norm.num_batches_tracked += 1


class _Normalised(NamedTuple):
    """What the gradient of a normalisation needs.

    Attributes:
        centred: (n, p, c): n pictures of p places, or one of all places.
        scale: (n, c), one over the standard deviation of each channel's group.
    """

    centred: torch.Tensor
    scale: torch.Tensor


def _rows(maps: torch.Tensor, form: _NormForm) -> torch.Tensor:
    """View (b, c, h, w) maps as (n, p, c)."""
    rows = maps.permute(0, 2, 3, 1)
    return rows.reshape(1, -1, rows.shape[-1]) if form.of_batch else rows.flatten(1, 2)


def _of_groups(values: torch.Tensor, groups: int) -> torch.Tensor:
    """Sum (n, c) over the channels of each group, and return it for every channel."""
    pictures, channels = values.shape
    sums = values.view(pictures, groups, -1).sum(2, keepdim=True)
    return sums.expand(-1, -1, channels // groups).reshape(pictures, channels)


def _normalise(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, form: _NormForm
) -> tuple[torch.Tensor, _Normalised, torch.Tensor, torch.Tensor]:
    """Return normalised rows, what their gradient needs, means and unbiased variances (n, c)."""
    number = rows.shape[1] * rows.shape[2] // form.groups
    mean = _of_groups(rows.sum(1), form.groups) / number
    centred = rows - mean[:, None]
    squares = _of_groups((centred * centred).sum(1), form.groups)
    scale = (squares / number + form.eps).rsqrt()
    out = torch.addcmul(bias, centred, (scale * weight)[:, None])
    return out, _Normalised(centred, scale), mean, squares / max(1, number - 1)


def _normalise_backward(
    gradient: torch.Tensor, kept: _Normalised, weight: torch.Tensor, form: _NormForm
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of rows, weight and bias."""
    centred, scale = kept
    number = gradient.shape[1] * gradient.shape[2] // form.groups
    sums, products = gradient.sum(1), (gradient * centred).sum(1)
    of_mean = _of_groups(sums * weight, form.groups) / number
    of_scale = _of_groups(products * weight, form.groups) / number
    inner = torch.addcmul((-scale * of_mean)[:, None], centred, (-(scale**3) * of_scale)[:, None])
    inner.addcmul_(gradient, (scale * weight)[:, None])
    return inner, (products * scale).sum(0), sums.sum(0)


class _NormAndRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, form: _NormForm
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows, kept, mean, variance = _normalise(_rows(maps, form), weight, bias, form)
        out = _as_maps(rows.relu_(), maps)
        ctx.save_for_backward(*kept, out, weight)
        ctx.form = form
        ctx.mark_non_differentiable(mean, variance)
        return out, mean[0], variance[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        centred, scale, out, weight = ctx.saved_tensors
        through = _relu_backward(gradient.contiguous(memory_format=_LAST), out, 0.0)
        kept = _Normalised(centred, scale)
        inner, of_weight, of_bias = _normalise_backward(_rows(through, ctx.form), kept, weight, ctx.form)
        return _as_maps(inner, out), of_weight, of_bias, None


def _as_maps(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """View (n, p, c) rows as (b, c, h, w)."""
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class _BlockFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, form: _BlockForm, maps: torch.Tensor, *parts: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        weight1, scale1, shift1, weight2, scale2, shift2 = parts
        conv = functional.conv2d(maps, weight1, None, form.stride, 1)
        rows, first, *moments = _normalise(_rows(conv, form.first), scale1, shift1, form.first)
        middle = _as_maps(rows.relu_(), conv)
        conv = functional.conv2d(middle, weight2, None, 1, 1)
        rows, second, *more = _normalise(_rows(conv, form.second), scale2, shift2, form.second)
        out = _as_maps(rows, conv)
        _short(out, form).add_(maps[:, :, :: form.stride, :: form.stride])
        out.relu_()
        ctx.save_for_backward(maps, weight1, scale1, weight2, scale2, *first, middle, *second, out)
        ctx.form = form
        moments = [one[0] for one in (*moments, *more)]
        ctx.mark_non_differentiable(*moments)
        return (out, *moments)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        maps, weight1, scale1, weight2, scale2, *kept, out = ctx.saved_tensors
        first, middle, second = _Normalised(*kept[:2]), kept[2], _Normalised(*kept[3:])
        form, needed = ctx.form, ctx.needs_input_grad[1:]
        through = _relu_backward(gradient.contiguous(memory_format=_LAST), out, 0.0)
        rows, of_scale2, of_shift2 = _normalise_backward(
            _rows(through, form.second), second, scale2, form.second
        )
        inner, of_weight2 = _convolved(_as_maps(rows, out), middle, weight2, 1, (any(needed[:4]), needed[4]))
        grads: list[torch.Tensor | None] = [None, None, None, None, of_weight2, of_scale2, of_shift2]
        if inner is not None:
            inner = _relu_backward(inner, middle, 0.0)
            rows, grads[2], grads[3] = _normalise_backward(
                _rows(inner, form.first), first, scale1, form.first
            )
            grads[0], grads[1] = _convolved(
                _as_maps(rows, middle), maps, weight1, form.stride, (needed[0], needed[1])
            )
        if grads[0] is not None:
            grads[0][:, :, :: form.stride, :: form.stride] += _short(through, form)
        return (None, *grads)


def _short(maps: torch.Tensor, form: _BlockForm) -> torch.Tensor:
    """Return the channels that the shortcut leads to."""
    half = form.more // 2
    return maps[:, half : maps.shape[1] - (form.more - half)]


def _convolved(
    gradient: torch.Tensor, maps: torch.Tensor, weight: torch.Tensor, stride: int, needed: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of a convolution's maps and weights, those that are needed."""
    of_maps, of_weight, _ = _convolution_backward(
        gradient, maps, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, [*needed, False]
    )
    return of_maps, of_weight
