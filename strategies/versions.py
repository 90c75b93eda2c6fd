"""Versions of the global part: what devices at work started from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Version:
    """The global part after so many aggregations, and what is broadcast with it.

    Attributes:
        number: aggregations before it.
        weights: float32 (N_u,).
        buffers: running statistics that devices share, by name.
        vectors: what the local algorithm receives beside, float32 (N_u,) by name.
    """

    number: int
    weights: Weights
    buffers: Arrays = field(default_factory=dict)
    vectors: Arrays = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Start:
    """Where the work began whose upload a round takes.

    Attributes:
        version: what the device was sent.
        staleness: versions that were made since.
        weight: by which its update is multiplied, in (0, 1].
    """

    version: Version
    staleness: int
    weight: float


def staleness_weight(staleness: int, exponent: float) -> float:
    """Return (1 + s)^-a, the polynomial weight of Xie et al. 2019 (arXiv 1903.03934, section 5.2)."""
    return float((1.0 + staleness) ** -exponent)


def store(versions: Mapping[int, Version]) -> dict[str, npt.NDArray[Any]]:
    """Return versions as named arrays, for a checkpoint."""
    found: dict[str, npt.NDArray[Any]] = {"version-numbers": np.array(sorted(versions), np.int64)}
    for number, version in versions.items():
        found[f"version-{number}"] = version.weights
        for kind in ("buffers", "vectors"):
            arrays: Arrays = getattr(version, kind)
            found |= {f"version-{number}-{kind}-{name}": array for name, array in arrays.items()}
    return found


def load(state: Arrays) -> dict[int, Version]:
    """Return the versions that `store` made arrays of."""
    found = {}
    for number in state["version-numbers"].tolist():
        parts = {}
        for kind in ("buffers", "vectors"):
            prefix = f"version-{number}-{kind}-"
            parts[kind] = {
                name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
            }
        found[number] = Version(number, np.asarray(state[f"version-{number}"], np.float32), **parts)
    return found
