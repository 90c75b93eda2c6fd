"""What rounds cost the devices in joules, and what is left of their batteries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from strategies.records import Value

FloatVector = npt.NDArray[np.float64]

# Columns of each device's row.
ENERGY_COLUMNS = ("compute_energy_j", "transmit_energy_j", "battery_j")
# Columns of the round's row: joules of all devices, devices that could not pay for a round.
ENERGY_ROUND_COLUMNS = ("energy_j", "exhausted")
EXHAUSTED = "exhausted"  # status of a device that sits a round out because its battery cannot pay for it


@dataclass(frozen=True, eq=False)
class Energy:
    """What devices may spend, in SI units, each (K,).

    Attributes:
        capacitance: kappa, J s^2: a cycle at f Hz costs kappa f^2.
        frequency: f_k, Hz; the largest where a policy chooses it.
        min_frequency: the least that a policy may choose, Hz.
        power: p_k, W; the largest where a policy chooses it.
        budget: E_k per round, J; infinite: none.
        battery: what each device has at the start of a run, J; infinite: it never runs out.
    """

    capacitance: FloatVector
    frequency: FloatVector
    min_frequency: FloatVector
    power: FloatVector
    budget: FloatVector
    battery: FloatVector

    def of(self, devices: npt.NDArray[np.int_]) -> Energy:
        """Return what some devices may spend, in that order."""
        return Energy(*(getattr(self, field.name)[devices] for field in fields(self)))


class Batteries:
    """What is left; a device that cannot pay for its part of a round sits it out."""

    def __init__(self, energy: Energy) -> None:
        self.left = energy.battery.copy()

    def take(
        self, devices: npt.NDArray[np.int_], compute: FloatVector, transmit: FloatVector
    ) -> list[float | None]:
        """Take what devices spend on computing and sending, J, (n,); return what each has left.

        None: its battery never runs out.
        """
        left = np.maximum(0.0, self.left[devices] - compute - transmit)
        self.left[devices] = left
        return [joules if joules < np.inf else None for joules in left.tolist()]

    def pay(self, device: int, compute: float, transmit: float) -> dict[str, Value]:
        """Take what a device spends from its battery and return its columns."""
        (left,) = self.take(np.array([device]), np.array([compute]), np.array([transmit]))
        return {"compute_energy_j": compute, "transmit_energy_j": transmit, "battery_j": left}

    def state(self) -> Mapping[str, FloatVector]:
        """Return what a resumed run needs."""
        return {"battery": self.left.copy()}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if "battery" in state:
            self.left = np.asarray(state["battery"], np.float64).copy()
