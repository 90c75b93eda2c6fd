"""What a network computes for a sample: multiply-adds of one forward pass, by the parts that own the weights.

Counted once by the formulas of `torch.utils.flop_counter`, that is matrix products and convolutions; what
works entry by entry (activations, normalisation, pooling) counts for nothing beside them, an embedding is a
look-up.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.module_tracker import ModuleTracker

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
    counting = _Counting()
    # Fused kernels (a whole recurrent layer of oneDNN) are one operation that no counter knows.
    with seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oneDNN's switch warns of Intel's GPUs
        with torch.backends.mkldnn.flags(enabled=False), counting.inside, counting:
            network(inputs)
    counts = {name: flops / 2 / _SAMPLES for name, flops in counting.flops.items()}
    total = counts.pop("Global", 0.0)
    inclusive = {
        name.removeprefix(type(network).__name__).removeprefix("."): own for name, own in counts.items()
    }
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


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of every module that is at work, by its name, as torch's FlopCounterMode does.

    That one imports torch's compiler when it meets the first operation, which takes 1.1 s.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # 0.1 s, of which most runs have nothing

        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: Counter[str] = Counter()
        self._formulas = flop_registry
        self.inside = ModuleTracker()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self._formulas.get(func._overloadpacket)
        if formula is None:
            with self:  # one that is made of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None:
            number = formula(*args, **kwargs, out_val=result)
            self.flops.update(dict.fromkeys(self.inside.parents, number))
        return result


# A subclass's method is wrapped by what imports the compiler.
_Counting.__torch_dispatch__ = inspect.unwrap(_Counting.__torch_dispatch__)  # type: ignore[method-assign]
