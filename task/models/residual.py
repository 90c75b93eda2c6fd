"""Residual networks for small pictures (He et al. 2016, section 4.2), with batch or group normalisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from task.models.registry import MODELS, Shape, positive

Norm = Literal["batch", "group"]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that has no weights (option A of the paper).

    Attributes:
        stride: of the first convolution and of the shortcut.
        more: channels that the block adds.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self._names = [f"{'bn' if norm == 'batch' else 'gn'}{place}" for place in (1, 2)]
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.add_module(self._names[0], _norm(norm, outputs))
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.add_module(self._names[1], _norm(norm, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's maps."""
        first, second = self.norms
        out = second(self.conv2(functional.relu(first(self.conv1(x)))))
        if self.stride > 1 or self.more:
            half = self.more // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.more - half))
        return functional.relu(out + x)

    @property
    def norms(self) -> tuple[nn.Module, nn.Module]:
        """The two normalisations."""
        first, second = (self.get_submodule(name) for name in self._names)
        return first, second


def _norm(kind: Norm, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)
    raise ValueError(f"model option norm = {kind!r}; valid: batch, group")


def _resnet(blocks: int, num_classes: int, sample_shape: Shape, norm: Norm, width: int) -> nn.Sequential:
    if len(sample_shape) != 3:
        raise ValueError(
            f"a resnet is for pictures (channels, height, width); the samples have shape {sample_shape}"
        )
    positive("width", width)
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(sample_shape[0], width, 3, padding=1, bias=False))
    model.add_module("bn1" if norm == "batch" else "gn1", _norm(norm, width))
    model.add_module("relu1", nn.ReLU())
    inputs = width
    for stage, outputs in enumerate((width, 2 * width, 4 * width), 1):
        layer = nn.Sequential()
        for place in range(blocks):
            layer.append(ResidualBlock(inputs, outputs, 2 if place == 0 and stage > 1 else 1, norm))
            inputs = outputs
        model.add_module(f"layer{stage}", layer)
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("fc", nn.Linear(inputs, num_classes))
    return model


@MODELS.register("resnet8")
def resnet8(num_classes: int, sample_shape: Shape, *, norm: Norm = "batch", width: int = 16) -> nn.Sequential:
    """Three stages of one block: 75 290 weights for 10 classes in colour."""
    return _resnet(1, num_classes, sample_shape, norm, width)


@MODELS.register("resnet20")
def resnet20(
    num_classes: int, sample_shape: Shape, *, norm: Norm = "batch", width: int = 16
) -> nn.Sequential:
    """Three stages of three blocks: 269 722 weights for 10 classes in colour (the paper's 0.27 million)."""
    return _resnet(3, num_classes, sample_shape, norm, width)
