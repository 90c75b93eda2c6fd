"""What a network computes for a sample: multiply-adds of one forward pass, by the parts that own the weights.

Counted once with `torch.utils.flop_counter`, that is matrix products and convolutions; what works entry by
entry (activations, normalisation, pooling) counts for nothing beside them, an embedding is a look-up.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from task.randomness import seeded
from task.split import Split

_SAMPLES = 2  # batch normalisation in training wants more than one


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a forward pass for one sample.

    Attributes:
        personal: with weights that stay on the device.
        of_global: with those that are trained together.
    """

    personal: float
    of_global: float


def multiply_adds(model: nn.Module, split: Split, sample: torch.Tensor) -> Work:
    """Count the multiply-adds of a network.

    What a module computes is shared out between the parts by its own weights, those of modules inside it left
    out; what one without any weights computes (a product of two activations), by the weights of the network.

    Args:
        model: the network; unchanged afterwards.
        split: its parts.
        sample: one sample (1, ...) as the network takes it.
    """
    network = copy.deepcopy(model).train()
    inputs = sample.expand(_SAMPLES, *sample.shape[1:]).contiguous()
    # Fused kernels (a whole recurrent layer of oneDNN) are one operation that no counter knows.
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN's switch warns of Intel's GPUs
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            network(inputs)
    inclusive = {
        name.removeprefix(type(network).__name__).removeprefix("."): sum(by_operation.values()) / 2 / _SAMPLES
        for name, by_operation in counter.get_flop_counts().items()
        if name != "Global"
    }
    total = counter.get_total_flops() / 2 / _SAMPLES
    personal = frozenset(split.personal.names)
    first = {id(parameter): name for name, parameter in network.named_parameters()}
    share_of_all = split.personal.size / max(1, split.personal.size + split.global_part.size)
    mine = counted = 0.0
    for name, module in network.named_modules():
        inner = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        whole = total if not name else inclusive.get(name, 0.0)
        own = whole - sum(inclusive.get(child, 0.0) for child in inner)
        weights = {first[id(p)]: p.numel() for p in module.parameters(recurse=False)}
        share = (
            sum(size for one, size in weights.items() if one in personal) / sum(weights.values())
            if weights
            else share_of_all
        )
        mine += share * own
        counted += own
    return Work(personal=mine, of_global=counted - mine)
