"""A trained network, ready to use: samples as they are stored in, the network's outputs out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from task.build import Learning
from task.dataset import Dataset
from task.models import build_model
from task.split import Layout, Split, persistent_buffers, split_parameters
from task.transforms import Transform, make_transform

Arrays = Mapping[str, npt.NDArray[Any]]


class WeightsError(ValueError):
    """Stored weights do not fit the network that they are said to be of."""


@dataclass(frozen=True)
class TaskFacts:
    """What a trained network needs to be put together again without its data.

    Attributes:
        model: keyword arguments of `build_model` (name and options).
        personal: glob patterns of what is personal.
        learning: fields of `task.build.Learning`.
        num_classes: labels are below; 0: real numbers are predicted, `outputs` of them.
        outputs: of the network.
        sample_shape, sample_dtype: of one sample as it is stored, such as (1, 28, 28) and "uint8".
        mean, std: of each channel, by which samples are normalised.
        label_names: a name for each class, or ().
    """

    model: Mapping[str, Any]
    personal: tuple[str, ...]
    learning: Mapping[str, Any]
    num_classes: int
    outputs: int
    sample_shape: tuple[int, ...]
    sample_dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_names: tuple[str, ...]

    @staticmethod
    def from_json(text: str) -> TaskFacts:
        """Read what `to_json` wrote.

        Raises:
            WeightsError: if the text is something else.
        """
        try:
            values = json.loads(text)
            lists = ("personal", "sample_shape", "mean", "std", "label_names")
            return TaskFacts(**{**values, **{name: tuple(values[name]) for name in lists}})
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(f"the description of the model is not readable: {error}") from error

    def to_json(self) -> str:
        """Return a JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def transform(self) -> Transform:
        """Return what makes samples ready for the network."""
        how = Learning(**self.learning)
        dtype = getattr(torch, self.sample_dtype)
        sample = torch.zeros((1, *self.sample_shape), dtype=dtype)
        target = torch.zeros(1, dtype=torch.int64) if self.num_classes else torch.zeros(1, self.outputs)
        data = Dataset(
            train=(sample, target),
            test=(sample, target),
            num_classes=self.num_classes or None,
            mean=self.mean or None,
            std=self.std or None,
        )
        return make_transform(how.transform, dict(how.transform_options), data)


def facts_of(
    data: Dataset, *, model: Mapping[str, Any], personal: Sequence[str], learning: Mapping[str, Any]
) -> TaskFacts:
    """Return what a network trained on `data` is; the rest as the fields of `TaskFacts`."""
    whole_numbers = not data.train[0].is_floating_point() and not data.pictures
    mean, std = ((), ()) if whole_numbers else data.statistics
    return TaskFacts(
        model=model,
        personal=tuple(personal),
        learning=learning,
        num_classes=data.num_classes or 0,
        outputs=data.num_classes or math.prod(data.train[1].shape[1:]),
        sample_shape=data.sample_shape,
        sample_dtype=str(data.train[0].dtype).removeprefix("torch."),
        mean=mean,
        std=std,
        label_names=data.label_names,
    )


class TrainedModel(nn.Module):
    """A network and what makes samples ready for it.

    Attributes:
        network: the network, with its own names of parameters and buffers.
        facts: what it is.
        origin: where the weights come from, for people.
    """

    def __init__(self, network: nn.Module, facts: TaskFacts, origin: str = "") -> None:
        super().__init__()
        self.network, self.facts, self.origin = network, facts, origin
        self._transform = facts.transform
        self.eval()

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return a name for each class, or ()."""
        return self.facts.label_names

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the network's outputs (n, ...) for samples (n, ...) as stored: pictures as bytes."""
        outputs: torch.Tensor = self.network(self._transform(samples))
        return outputs

    @torch.inference_mode()
    def predict(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the class of each sample, int64 (n,); of a regression the prediction itself."""
        outputs = self(samples)
        found: torch.Tensor = outputs.argmax(dim=1) if self.facts.num_classes else outputs
        return found

    def example(self, number: int = 2) -> torch.Tensor:
        """Return samples of the right shape and type, all 0."""
        return torch.zeros((number, *self.facts.sample_shape), dtype=getattr(torch, self.facts.sample_dtype))


def trained_model(
    facts: TaskFacts,
    *,
    global_part: npt.NDArray[np.float32],
    personal: npt.NDArray[np.float32] | None = None,
    buffers: Arrays | None = None,
    init: torch.Generator,
    origin: str = "",
) -> TrainedModel:
    """Put a network and its weights together.

    Args:
        facts: what the network is.
        global_part: float32 (N_u,).
        personal: float32 (N_v,); None: the initial ones, of a device that never trained.
        buffers: running statistics by name; one that is not there has its first value.
        init: generator of the initial weights.
        origin: where the weights come from.

    Raises:
        WeightsError: if the weights are of another network.
        ValueError: if the network cannot be built.
    """
    network = build_model(
        **facts.model, num_classes=facts.outputs, sample_shape=facts.sample_shape, generator=init
    )
    split = split_parameters(network, facts.personal, Learning(**facts.learning).buffers)
    _fill(network, split.global_part, global_part, "global")
    if personal is not None:
        _fill(network, split.personal, personal, "personal")
    _fill_buffers(network, split, buffers or {})
    return TrainedModel(network, facts, origin)


@torch.no_grad()
def _fill(network: nn.Module, layout: Layout, weights: npt.NDArray[np.float32], part: str) -> None:
    if weights.shape != (layout.size,):
        raise WeightsError(
            f"the stored {part} part has {weights.size} weights, that of the network {layout.size}; was the "
            "network's code changed since?"
        )
    named = dict(network.named_parameters())
    for name, where in layout.slices().items():
        named[name].copy_(torch.from_numpy(weights[where]).view_as(named[name]))


@torch.no_grad()
def _fill_buffers(network: nn.Module, split: Split, buffers: Arrays) -> None:
    named = persistent_buffers(network)
    for name in (*split.personal_buffers, *split.shared_buffers):
        if name in buffers:
            named[name].copy_(torch.from_numpy(np.asarray(buffers[name])).view_as(named[name]))
