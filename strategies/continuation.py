"""The checkpoint that a run continues, as its devices need to know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from protocol.messages import UNKNOWN_ROUND


@dataclass(frozen=True)
class HeldPart:
    """Where a device's personal part of a checkpoint is.

    Attributes:
        round: after which it stands; 0: the device had none yet; `UNKNOWN_ROUND`: not known.
        run: the run in whose folder a device with a folder of its own keeps it. A run may be started many
            times, and a device may have been away in some of them.
    """

    round: int = UNKNOWN_ROUND
    run: str = ""


_NOTHING = HeldPart()


class ContinuedFields(TypedDict):
    """Fields of `protocol.messages.TrainOrder`, `EvaluateOrder` and `SaveOrder`."""

    resume_dir: str
    resume_round: int
    resume_run: str
    resume_part: int


@dataclass(frozen=True)
class Continuation:
    """The checkpoint that a run continues; by default it continues none.

    Attributes:
        directory: folder from which a device without one of its own takes its personal part, or "".
        round: last round of the checkpoint, or 0.
        run: the run that wrote it, or "".
        parts: each device's personal part in it, where it is known.
    """

    directory: str = ""
    round: int = 0
    run: str = ""
    parts: Mapping[int, HeldPart] = field(default_factory=dict)

    def for_device(self, device: int) -> ContinuedFields:
        """Return what an order to this device says of the checkpoint."""
        part = self.parts.get(device, _NOTHING)
        return {
            "resume_dir": self.directory,
            "resume_round": self.round,
            "resume_run": part.run or self.run,
            "resume_part": part.round,
        }


__all__ = ["Continuation", "HeldPart"]
