"""The networks of the papers and of federated averaging, for pictures of any size.

Every network is an `nn.Sequential` of named layers, so that parameter names tell the layer ("conv1.weight",
"fc2.bias": what the personal/shared split goes by) and a phase that trains only the last layers can compute
what comes before them once. Two choices are made for speed and change no result beyond float32 rounding:
max-pooling stands before the ReLU (the two commute, and the ReLU then works on a quarter of the entries), and
the first feature map is laid out channels-last for the second convolution.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from task.models.registry import MODELS, Shape, positive


class ChannelsLast(nn.Module):
    """Change the memory layout of a (batch, channel, height, width) tensor to channels-last; values stay."""

    only_layout = True  # what `client_app.fast.convolutions.accelerate` may leave out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x`, its channels adjacent in memory."""
        return x.contiguous(memory_format=torch.channels_last)


def _sequential(**layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential()
    for layer_name, layer in layers.items():
        model.add_module(layer_name, layer)
    return model


def _picture(name: str, sample_shape: Shape, least: int) -> Shape:
    """Return (channels, height, width).

    Raises:
        ValueError: if samples are no pictures, or smaller than `least`.
    """
    if len(sample_shape) != 3 or min(sample_shape[1:]) < least:
        raise ValueError(
            f"model {name} is for pictures (channels, height, width) of at least {least} x {least}; the "
            "samples "
            f"of the data set have shape {sample_shape}"
        )
    return sample_shape


@MODELS.register("cnn")
def cnn(
    num_classes: int,
    sample_shape: Shape,
    *,
    kernel_size: int = 5,
    hidden: int = 128,
    norm: Literal["none", "batch"] = "none",
) -> nn.Sequential:
    """Two "same" convolutions (32, 64 channels) and two linear layers (Liu et al. 2024, experiments).

    The paper's feature maps (32x14x14, 64x7x7) force stride 1 and "same" padding; it does not print the
    kernel size. With 5x5 the convolutions hold 52 096 weights and the linear layers 402 826. `norm` = batch
    normalises after each convolution, as FedBN needs it (Li et al. 2021).
    """
    if norm not in ("none", "batch"):
        raise ValueError(f"model option norm = {norm!r}; valid: none, batch")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"model option kernel_size = {kernel_size}; 'same' padding needs an odd size >= 1")
    padding = kernel_size // 2
    channels, height, width = _picture("cnn", sample_shape, 4)
    batch = norm == "batch"
    return _sequential(
        conv1=nn.Conv2d(channels, 32, kernel_size, padding=padding),
        layout1=ChannelsLast(),
        **({"bn1": nn.BatchNorm2d(32)} if batch else {}),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 64, kernel_size, padding=padding),
        **({"bn2": nn.BatchNorm2d(64)} if batch else {}),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(64 * (height // 4) * (width // 4), positive("hidden", hidden)),
        relu3=nn.ReLU(),
        fc2=nn.Linear(hidden, num_classes),
    )


@MODELS.register("fedavg_cnn")
def fedavg_cnn(num_classes: int, sample_shape: Shape) -> nn.Sequential:
    """The network of federated averaging (McMahan et al. 2017, section 3): 1 663 370 weights at 28x28.

    Two 5x5 convolutions (32, 64 channels), each with 2x2 pooling, and 512 units: `cnn` with a wider layer.
    """
    return cnn(num_classes, sample_shape, kernel_size=5, hidden=512)


@MODELS.register("lenet5")
def lenet5(num_classes: int, sample_shape: Shape) -> nn.Sequential:
    """LeNet-5 in today's form (max-pooling, ReLU; first convolution padded): 61 706 weights at 28x28."""
    channels, height, width = _picture("lenet5", sample_shape, 12)
    return _sequential(
        conv1=nn.Conv2d(channels, 6, 5, padding=2),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        conv2=nn.Conv2d(6, 16, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        flatten=nn.Flatten(),
        fc1=nn.Linear(16 * ((height // 2 - 4) // 2) * ((width // 2 - 4) // 2), 120),
        relu3=nn.ReLU(),
        fc2=nn.Linear(120, 84),
        relu4=nn.ReLU(),
        fc3=nn.Linear(84, num_classes),
    )


@MODELS.register("mlp")
def mlp(num_classes: int, sample_shape: Shape, *, hidden: int = 25) -> nn.Sequential:
    """One hidden layer; 19 885 weights with 25 units at 28x28. Small, for studies of many devices."""
    return _sequential(
        flatten=nn.Flatten(),
        fc1=nn.Linear(math.prod(sample_shape), positive("hidden", hidden)),
        relu1=nn.ReLU(),
        fc2=nn.Linear(hidden, num_classes),
    )
