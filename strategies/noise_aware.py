"""Server momentum that knows the noise: it adds rounds up as far as they can be trusted, and no further.

Heavy ball (Hsu et al. 2019, arXiv 1909.06335) makes steps 1/(1 - beta) times as long, which clean rounds can
bear and noisy ones cannot. The receiver over the air knows the variance V of the noise in what it received,
Delta, and so the share of signal in it,

    t = S / (S + V),   S = (mean square of Delta - V)_+
    m <- beta t m + Delta
    u <- u + m.

Without noise this is heavy ball, and in noise alone federated averaging.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

_VELOCITY = "air-velocity"


class NoiseAwareMomentum:
    """Momentum over the rounds.

    Attributes:
        velocity: m, float32 (N_u,); None before the first round.
    """

    def __init__(self, beta: float) -> None:
        self._beta = beta
        self.velocity: npt.NDArray[np.float32] | None = None

    def step(self, change: npt.NDArray[np.float64], noise_variance: float) -> npt.NDArray[np.float64]:
        """Take Delta (N_u,) with its noise variance per entry, and return m."""
        if self._beta == 0.0:
            return change
        power = float(change @ change) / change.size
        trust = max(power - noise_variance, 0.0) / power if power > 0.0 else 0.0
        moved = change if self.velocity is None else self._beta * trust * self.velocity + change
        self.velocity = moved.astype(np.float32)
        return moved

    def state(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return what a run that goes on needs."""
        return {} if self.velocity is None else {_VELOCITY: self.velocity}

    def restore(self, state: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Take back what `state` returned."""
        if _VELOCITY in state:
            self.velocity = np.array(state[_VELOCITY], np.float32)
