"""The average of the iterates: noise of single rounds goes out of the model that is tested and kept.

Polynomial decay (Shamir and Zhang 2013, arXiv 1212.1824, Section 4): with x_t the global part after round t,

    mean_t = (1 - (p + 1)/(t + p)) mean_{t-1} + (p + 1)/(t + p) x_t,

so that about the last t/(p + 1) rounds count, however long the run is; p = 0 is the plain mean.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]


class IterateAverage:
    """Averages the global part over the rounds.

    Attributes:
        iterate: the last global part that went in, from which training goes on; None before the first.
        mean: float32, the average.
        rounds: t.
    """

    def __init__(self, power: float) -> None:
        self._power = power
        self.iterate: Weights | None = None
        self.mean: Weights | None = None
        self.rounds = 0

    def add(self, iterate: Weights) -> Weights:
        """Take the global part after a round and return the average."""
        self.rounds += 1
        self.iterate = iterate
        if self.mean is None:
            self.mean = iterate
        part = (self._power + 1.0) / (self.rounds + self._power)
        moved = self.mean + part * (iterate.astype(np.float64) - self.mean)
        self.mean = moved.astype(np.float32)
        return self.mean

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a run that goes on needs beside the average, which is what it goes on from."""
        if self.iterate is None:
            return {}
        return {"iterate": self.iterate, "iterate-rounds": np.array([self.rounds])}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if "iterate" in state:
            self.iterate = np.array(state["iterate"], np.float32)
            self.rounds = int(state["iterate-rounds"][0])
