"""What a round's plan says, and how its uploads are received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from protocol.messages import TrainReport
from strategies.records import Value

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Assignment:
    """One device's part in a round.

    Attributes:
        device: index of the device.
        num_pruned: weights of the global part that it prunes; all of them: it uploads nothing.
        columns: what the plan records of it.
    """

    device: int
    num_pruned: int
    columns: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundPlan:
    """Who does what in a round.

    Attributes:
        assignments: in ascending order of device.
        mask: a mask that every device uses, shape (N_u,), or None if each makes its own.
        columns: what the plan records of the round.
    """

    assignments: tuple[Assignment, ...]
    mask: npt.NDArray[np.bool_] | None = None
    columns: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Upload:
    """An upload that could be read; what it holds is its receiver's business.

    Attributes:
        norm: Euclidean norm of the update over the weights that the device kept.
        num_bytes: on the wire.
    """

    norm: float
    num_bytes: int


class Receiver(Protocol):
    """Turns the uploads of one round into the next global part, one device at a time."""

    def open(self, assignment: Assignment, report: TrainReport) -> Upload | None:
        """Read one device's upload; None if the plan says that it sends nothing.

        Raises:
            UploadError: if it cannot be used.
        """
        ...

    def add(
        self,
        assignment: Assignment,
        report: TrainReport,
        upload: Upload | None,
        *,
        scale: float,
        num_examples: int,
    ) -> Mapping[str, Value]:
        """Take one device's upload and return what is recorded of it.

        Args:
            assignment: its part in the round.
            report: what it answered.
            upload: what `open` returned for it.
            scale: by which its update is multiplied first, in (0, 1].
            num_examples: training images that it counts with.
        """
        ...

    def finish(self) -> tuple[Weights, Mapping[str, Value]]:
        """Return the next global part, float32 of shape (N_u,), and what is recorded of the round."""
        ...
