"""Every set of devices with the same chance."""

from __future__ import annotations

import numpy as np

from strategies.selection import Candidates, Devices


def uniform(candidates: Candidates, number: int, rng: np.random.Generator) -> Devices:
    """Draw without replacement."""
    return np.asarray(rng.choice(candidates.devices, number, replace=False), np.int64)
