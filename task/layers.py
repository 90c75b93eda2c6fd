"""The layers of any network in their order, and what ``last:2`` or ``batchnorm`` mean in it.

The schemes of the literature are told by layers, not by names: FedPer (Arivazhagan et al. 2019) and FedRep
(Collins et al. 2021) keep the last ones, LG-FedAvg (Liang et al. 2020) all but the last, FedBN (Li et al.
2021) the batch normalisation. A layer is a module that has weights itself; a normalisation belongs to the
layer before it, so that a residual network of twenty layers has twenty.
"""

from __future__ import annotations

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

BY_LAYER = re.compile(r"(last|but_last):(.*)", re.DOTALL)
BATCHNORM = "batchnorm"
SELECTORS = f"last:K (the last K layers), but_last:K (all others), {BATCHNORM}"

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def layers(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the names of each layer's parameters and buffers, in the order in which modules were added.

    Tied weights have one name, the first, in each of the layers that use them.
    """
    found: list[list[str]] = []
    for module, names in _owners(model):
        if found and isinstance(module, _NORMS):
            found[-1] += names
        else:
            found.append(names)
    return [tuple(names) for names in found]


def _owners(model: nn.Module) -> list[tuple[nn.Module, list[str]]]:
    """Return the modules that have weights themselves, with the names of these and of their buffers."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    found = []
    for prefix, module in model.named_modules():
        own = [first[id(parameter)] for parameter in module.parameters(recurse=False)]
        dotted = f"{prefix}." if prefix else ""
        buffers = [f"{dotted}{name}" for name, _ in module.named_buffers(recurse=False)]
        if own:
            found.append((module, own + buffers))
    return found


def select(model: nn.Module, pattern: str) -> frozenset[str] | None:
    """Return the parameters and buffers that a selector stands for; None for what is no selector.

    Raises:
        ValueError: if the network has no such layers.
    """
    if pattern == BATCHNORM:
        names = [name for module, own in _owners(model) if isinstance(module, _BatchNorm) for name in own]
        if not names:
            raise ValueError(
                f"{BATCHNORM!r} matches nothing: the network has no batch normalisation with weights; take "
                "one that has (resnet8, resnet20), or name other parameters"
            )
        return frozenset(names)
    if (match := BY_LAYER.fullmatch(pattern)) is None:
        return None
    found = layers(model)
    number = int(match[2]) if match[2].isdecimal() else 0
    if not 1 <= number < len(found):
        raise ValueError(
            f"{pattern!r}: the network has {len(found)} layers; the number after the colon is one of "
            f"1 to {len(found) - 1}"
            if len(found) > 1
            else f"{pattern!r}: the network has {len(found)} layer, which cannot be parted by layers"
        )
    last = frozenset(name for layer in found[-number:] for name in layer)
    if match[1] == "last":
        return last
    return frozenset(name for layer in found[:-number] for name in layer) - last
