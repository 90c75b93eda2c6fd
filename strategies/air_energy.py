"""Joules of over-the-air rounds: computing is paid when a round is planned, sending when the air has added.

A user inverts its channel, so that it sends with mean |b_k s_k|^2 watts for the airtime, which only its
update tells. Whether its battery can pay is decided before, at full power: a battery is never overdrawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from radio.energy import compute_energy, transmit_energy
from strategies.energy import EXHAUSTED, Batteries, Energy
from strategies.plan import AirPlan, RoundPlan
from strategies.records import Value

FloatVector = npt.NDArray[np.float64]


class AirPurse:
    """What users of the air spend.

    Args:
        energy: what devices may spend.
        fixed_time, compute_time: T0 and G of each device at its clock, s, (K,).
        num_weights: N_u.
    """

    def __init__(
        self, energy: Energy, fixed_time: FloatVector, compute_time: FloatVector, num_weights: int
    ) -> None:
        self._energy = energy
        self._fixed, self._compute, self._size = fixed_time, compute_time, num_weights
        self.batteries = Batteries(energy)

    def plan(self, devices: Sequence[int], make: Callable[[Sequence[int]], RoundPlan]) -> RoundPlan:
        """Return the plan for the devices that can pay for their parts, with what computing takes from them.

        Args:
            devices: that could take part.
            make: plans a round for some of them.
        """
        left, out = list(devices), set[int]()
        while left:
            plan = make(left)
            users = np.array([a.device for a in plan.assignments], dtype=np.int64)
            joules = self._computing(plan, users)
            most = joules + self._sending(plan.detail, users)
            poor = set(users[most > self.batteries.left[users] * (1 + 1e-9)].tolist())
            if not poor:
                return self._pay(plan, joules, out)
            out |= poor
            left = [device for device in left if device not in poor]
        return RoundPlan((), columns={"exhausted": len(out), "energy_j": 0.0}, absent=self._exhausted(out))

    def _computing(self, plan: RoundPlan, users: npt.NDArray[np.int64]) -> FloatVector:
        own = self._energy.of(users)
        kept = 1.0 - np.array([a.num_pruned for a in plan.assignments]) / self._size
        cycles = (self._fixed[users] + kept * self._compute[users]) * own.frequency
        return compute_energy(cycles, own.frequency, own.capacitance)

    def _sending(self, detail: object, users: npt.NDArray[np.int64]) -> FloatVector:
        """Return the joules of sending at full power."""
        if not isinstance(detail, AirPlan):
            return np.zeros(users.size)
        return transmit_energy(self._energy.power[users], detail.airtime + detail.digital)

    def _pay(self, plan: RoundPlan, joules: FloatVector, out: set[int]) -> RoundPlan:
        paid = tuple(
            replace(a, columns={**a.columns, **self.batteries.pay(a.device, spent, 0.0)})
            for a, spent in zip(plan.assignments, joules.tolist(), strict=True)
        )
        columns = {**plan.columns, "energy_j": float(joules.sum()), "exhausted": len(out)}
        return replace(plan, assignments=paid, columns=columns, absent=self._exhausted(out))

    def _exhausted(self, devices: set[int]) -> dict[int, Mapping[str, Value]]:
        return {
            device: {"status": EXHAUSTED, **self.batteries.pay(device, 0.0, 0.0)}
            for device in sorted(devices)
        }

    def sent(self, plan: RoundPlan, power: Mapping[int, float]) -> dict[int, dict[str, Value]]:
        """Take what sending cost from the batteries and return columns by device.

        Args:
            plan: of the round.
            power: of who sent: mean |b_k s_k|^2 relative to the device's largest power.
        """
        if not isinstance(plan.detail, AirPlan):
            return {}
        rows = {}
        digital = dict(zip(plan.detail.users.tolist(), plan.detail.digital.tolist(), strict=True))
        for device, share in power.items():
            seconds = share * plan.detail.airtime + digital[device]
            spent = float(transmit_energy(self._energy.power[device], seconds))
            row = self.batteries.pay(device, 0.0, spent)
            del row["compute_energy_j"]
            rows[device] = row
        return rows
