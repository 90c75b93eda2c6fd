"""The keys of what is learned: model, data set, and which device holds what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from schema import key
from schema.uses import PERSONALIZATION

# The personal part of the networks that are built in, unless a user chooses another; here, because settings
# are composed without torch.
OWN_PERSONAL: Mapping[str, tuple[str, ...]] = {
    "cnn": ("conv*",),
    "fedavg_cnn": ("conv*",),
    "lenet5": ("conv*",),
    "mlp": ("fc2*",),
    "resnet8": ("fc*",),
    "resnet20": ("fc*",),
    "lstm": ("head*",),
    "transformer": ("head*",),
}


def own_personal(model: str) -> list[str] | None:
    """Return what is personal of a network that is built in; None of any other."""
    found = OWN_PERSONAL.get(model)
    return None if found is None else list(found)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network and which of its parameters are personal."""

    name: str = key("of a model, or package.module:object")
    options: Mapping[str, Any] = key("parameters of the model")
    personal: tuple[str, ...] | None = key(
        "patterns of the names of personal parameters and buffers, or last:K, but_last:K (layers), "
        "batchnorm; []: all are global",
        used=PERSONALIZATION,
    )
    buffers: Literal["personal", "shared"] = key(
        "running statistics stay on the device (FedBN), or are sent and averaged by samples"
    )


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """The samples, and what is done to them."""

    name: str = key("of a data set, or package.module:object")
    root: str | None = key(
        "folder of the files, in torchvision's layout; null: ~/.cache/airflower", path=True, decides=False
    )
    download: bool = key("fetch the published archive when the files are not there", decides=False)
    options: Mapping[str, Any] = key("parameters of the data set")
    transform: str = key(
        "auto (pictures normalised by channel), standard, none, or package.module:function, given a batch"
    )
    transform_options: Mapping[str, Any] = key("parameters of a transform of one's own")
    augment: str | None = key(
        "of training batches: crop_flip, or package.module:function, given a batch and the device's generator"
    )
    augment_options: Mapping[str, Any] = key("parameters of the augmentation")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What training minimises, and what a test reports."""

    loss: str | None = key("cross_entropy, mse, bce, or package.module:function; null: what fits the targets")
    loss_options: Mapping[str, Any] = key("parameters of the loss, such as label_smoothing")
    metrics: tuple[str, ...] | None = key(
        "accuracy, balanced_accuracy, rmse, perplexity, package.module:function; null: what fits the targets"
    )


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Which device holds which images."""

    name: str = key("of a partition, or package.module:object")
    options: Mapping[str, Any] = key("parameters of the partition")
    samples_per_device: int | None = key(
        "cap on each device's training images; null: all of its part", unit="images", minimum=1
    )
    test_samples_per_device: int | None = key("the same for its test images", unit="images", minimum=1)
