"""The keys of what is learned: model, data set, and which device holds what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keys import key
from keys.uses import PERSONALIZATION


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network and which of its parameters are personal."""

    name: str = key("of a model, or package.module:object")
    options: Mapping[str, Any] = key("parameters of the model")
    personal: tuple[str, ...] = key(
        "patterns of the personal parameters' names; []: all are global", used=PERSONALIZATION
    )


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """The images."""

    name: str = key("of a data set, or package.module:object")
    root: str | None = key(
        "folder of the files, in torchvision's layout; null: ~/.cache/airflower", path=True, decides=False
    )
    download: bool = key("fetch the published archive when the files are not there", decides=False)


@dataclass(frozen=True, kw_only=True)
class PartitionSettings:
    """Which device holds which images."""

    name: str = key("of a partition, or package.module:object")
    options: Mapping[str, Any] = key("parameters of the partition")
    samples_per_device: int | None = key(
        "cap on each device's training images; null: all of its part", unit="images", minimum=1
    )
    test_samples_per_device: int | None = key("the same for its test images", unit="images", minimum=1)
