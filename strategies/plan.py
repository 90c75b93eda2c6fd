"""What a round's plan says, and how its uploads are received."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from protocol.messages import TrainReport
from radio import payload
from radio.channel.cell import ChannelVectors
from strategies.records import Value
from strategies.versions import Start

Weights = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Assignment:
    """One device's part in a round.

    Attributes:
        device: index of the device.
        num_pruned: weights of the global part that it prunes; all of them: it uploads nothing.
        columns: what the plan records of it.
        start: what it started from, where rounds do not wait for it; None: this round's broadcast.
    """

    device: int
    num_pruned: int
    columns: Mapping[str, Value] = field(default_factory=dict)
    start: Start | None = None


@dataclass(frozen=True)
class Slot:
    """What a device's part in an OFDMA round costs.

    Attributes:
        bits: on the uplink.
        latency: of the device, s.
        counts: whether the round waits for it.
        lost: whether its upload does not get through: the channel is worse than the plan took it for.
        share: of the band, which it keeps until it is done.
    """

    bits: int
    latency: float
    counts: bool
    lost: bool = False
    share: float = 0.0


@dataclass(frozen=True)
class OfdmaPlan:
    """Orthogonal shares of the band.

    Attributes:
        bits_per_weight: of every upload.
        slots: of each device.
        vectors: names of what the local algorithm sends beside the retained weights.
        seconds: that the round takes, where it does not wait for all; None: as long as they need.
    """

    bits_per_weight: int
    slots: Mapping[int, Slot]
    vectors: tuple[str, ...] = ()
    seconds: float | None = None

    def account(self, device: int, num_kept: int) -> dict[str, Value]:
        """Return the columns of what a device kept and sent; it keeps what was planned."""
        slot = self.slots[device]
        return {"kept_weights": num_kept, "uplink_bits": slot.bits, "latency_s": slot.latency}

    def latency(self, spent: Mapping[int, float]) -> float:
        """Return how long the round takes, s: a device that failed holds its planned slot.

        A device left out of the global part is not waited for, unless all are: then the round is over when
        the last has done what it does for itself.

        Args:
            spent: seconds of the devices that answered.
        """
        if self.seconds is not None:
            return self.seconds
        alone = not any(slot.counts for slot in self.slots.values())
        waited = [
            spent.get(device, slot.latency) for device, slot in self.slots.items() if slot.counts or alone
        ]
        return max(waited, default=0.0)


@dataclass(frozen=True)
class MeasuredPlan:
    """Uploads over real links: nothing is emulated.

    Attributes:
        bits_per_weight: of every upload.
        num_weights: N_u.
        further_bits: of what is sent with any upload: shared running statistics.
        vectors: names of what the local algorithm sends beside the retained weights.
    """

    bits_per_weight: int
    num_weights: int
    further_bits: int = 0
    vectors: tuple[str, ...] = ()

    def account(self, device: int, num_kept: int) -> dict[str, Value]:
        """Return the columns of what a device kept and sent."""
        bits = 0
        if num_kept:
            vectors = len(self.vectors)
            bits = self.further_bits + payload.upload_bits(
                self.num_weights, num_kept, self.bits_per_weight, vectors=vectors
            )
        return {"kept_weights": num_kept, "uplink_bits": bits}

    def latency(self, spent: Mapping[int, float]) -> None:
        """Return nothing."""


@dataclass(frozen=True, eq=False)
class AirPlan:
    """Who sends at once, over which channels, to which beam; rows are the users, ascending.

    Attributes:
        users: (M,) devices.
        channels: (M, N) of these users, true and as the server knows them; over subcarriers (M, F, N).
        beam: (N,) unit-norm receive beam; or (F, N).
        airtime: of the analog upload, s.
        digital: (M,) how long each user sends digitally beside it, s.
    """

    users: npt.NDArray[np.int64]
    channels: ChannelVectors
    beam: npt.NDArray[np.complex128]
    airtime: float = 0.0
    digital: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))


@dataclass(frozen=True)
class RoundPlan:
    """Who does what in a round, and all that its receiver needs to know.

    Attributes:
        assignments: in ascending order of device.
        mask: a mask that every device uses, shape (N_u,), or None if each makes its own.
        columns: what the plan records of the round.
        detail: what the plan of this kind of uplink holds; None: no device takes part.
    """

    assignments: tuple[Assignment, ...]
    mask: npt.NDArray[np.bool_] | None = None
    columns: Mapping[str, Value] = field(default_factory=dict)
    detail: OfdmaPlan | AirPlan | MeasuredPlan | None = None
    absent: Mapping[int, Mapping[str, Value]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Upload:
    """An upload that could be read; what it holds is its receiver's business.

    Attributes:
        norm: Euclidean norm of the update over the weights that the device kept.
        num_bytes: on the wire.
    """

    norm: float
    num_bytes: int


class Outcome(NamedTuple):
    """What the uploads of a round make.

    Attributes:
        weights: the next global part, float32 (N_u,).
        columns: what is recorded of the round.
        covered: bool (N_u,), weights of which something was received; None: all of them.
        vectors: by name the mean (N_u,) of what the devices that took part sent beside, and how many took
            part.
        power: of devices that sent by analog means, their mean power relative to their largest.
    """

    weights: Weights
    columns: Mapping[str, Value]
    covered: npt.NDArray[np.bool_] | None = None
    vectors: Mapping[str, tuple[Weights, int]] = MappingProxyType({})
    power: Mapping[int, float] = MappingProxyType({})


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

    def finish(self) -> Outcome:
        """Return what all uploads make."""
        ...
