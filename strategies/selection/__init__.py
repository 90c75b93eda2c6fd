"""Which devices take part, where not all do: one policy per file.

A policy is a function

    policy(candidates, number, rng, *, option=...) -> number distinct ones of candidates.devices

of what the server knows of the devices that could start now (`Candidates`). Its keyword-only parameters are
``selection.options``. One of the user's own is ``package.module:function``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry import Registry

Numbers = npt.NDArray[np.float64]
Devices = npt.NDArray[np.int64]
SelectionPolicy = Callable[..., Any]

SELECTIONS: Registry[SelectionPolicy] = Registry("selection policy", key="selection.policy")
SELECTIONS.register_at(
    uniform="strategies.selection.uniform:uniform",
    power_of_choice="strategies.selection.power_of_choice:power_of_choice",
    oort="strategies.selection.oort:oort",
)


@dataclass(frozen=True, eq=False)
class Candidates:
    """What the server knows of the devices that could start now; all (n,), in ascending order of device.

    Attributes:
        round: in which they would start, from 1.
        devices: their indices.
        samples: training samples that each counts with.
        loss: training loss that each reported last; NaN: it never did.
        latency: seconds that its last part in a round took, from order to upload; NaN: it never had one.
        last_round: in which its last upload was taken; 0: never.
        threshold: latency threshold of a round, s.
    """

    round: int
    devices: Devices
    samples: Numbers
    loss: Numbers
    latency: Numbers
    last_round: Devices
    threshold: float


class Selection:
    """A policy with its options, and what it goes by.

    Args:
        policy: a name or ``package.module:function``.
        options: of the policy.
        samples: of each device, (K,).
        threshold: latency threshold of a round, s.

    Raises:
        ValueError: if the name or an option is not valid, or the policy fails on a first trial.
    """

    def __init__(
        self,
        policy: str = "uniform",
        options: Mapping[str, Any] | None = None,
        *,
        samples: Sequence[int],
        threshold: float = 1.0,
    ) -> None:
        self.name = policy
        self._options = dict(options or {})
        self._policy = SELECTIONS.select(policy, self._options)
        self._threshold = threshold
        self._samples = np.asarray(samples, np.float64)
        self._loss = np.full(self._samples.size, np.nan)
        self._latency = np.full(self._samples.size, np.nan)
        self._last = np.zeros(self._samples.size, np.int64)
        self._try()

    def __call__(
        self, server_round: int, devices: Sequence[int], number: int, rng: np.random.Generator
    ) -> list[int]:
        """Return `number` of the devices, in ascending order; all of them if there are no more.

        Raises:
            ValueError: if the policy returns anything else.
        """
        if number >= len(devices):
            return list(devices)
        among = np.asarray(devices, np.int64)
        found = np.asarray(self._policy(self._known(server_round, among), number, rng, **self._options))
        chosen = sorted({int(device) for device in found.ravel().tolist()})
        if found.shape != (number,) or not set(chosen) <= set(devices) or len(chosen) != number:
            raise ValueError(
                f"selection.policy = {self.name} returned {found.tolist()}; {number} distinct ones of the "
                f"{len(devices)} candidates are expected"
            )
        return chosen

    def _known(self, server_round: int, among: Devices) -> Candidates:
        return Candidates(
            server_round,
            among,
            self._samples[among],
            self._loss[among],
            self._latency[among],
            self._last[among],
            self._threshold,
        )

    def note(self, server_round: int, device: int, *, loss: float | None, latency: float | None) -> None:
        """Take note of an upload that was used, with the training loss and seconds that came with it."""
        self._last[device] = server_round
        if loss is not None:
            self._loss[device] = loss
        if latency is not None:
            self._latency[device] = latency

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a resumed run needs; nothing where nothing of it counts."""
        if self.name == "uniform":
            return {}
        return {
            "selection-loss": self._loss.copy(),
            "selection-latency": self._latency.copy(),
            "selection-last": self._last.copy(),
        }

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if "selection-loss" in state:
            self._loss = np.array(state["selection-loss"], np.float64)
            self._latency = np.array(state["selection-latency"], np.float64)
            self._last = np.array(state["selection-last"], np.int64)

    def _try(self) -> None:
        """Choose once with nothing known and once with everything: what cannot work is found before training.

        Raises:
            ValueError: with what the policy raised, or what is wrong with what it returned.
        """
        everyone = range(self._samples.size)
        if len(everyone) < 2:
            return
        kept = self._loss, self._latency, self._last
        try:
            self(1, everyone, 1, np.random.default_rng(0))
            size = self._samples.size
            self._loss, self._latency = np.linspace(0.5, 2.0, size), np.linspace(0.5, 2.0, size)
            self._last = np.ones(size, np.int64)
            self(2, everyone, size - 1, np.random.default_rng(0))
        except ValueError:
            raise
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise ValueError(f"selection.policy = {self.name} fails on a first trial: {cause}") from error
        finally:
            self._loss, self._latency, self._last = kept
