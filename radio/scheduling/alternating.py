"""`iterative`: beam for the users, users for the beam, until the set stays.

arXiv 2508.00341, Algorithm 2.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from radio.beamforming.problem import Complex
from radio.scheduling.problem import BeamSolver, Selection, Users, best_for_beam, strongest
from radio.scheduling.registry import policy


@policy("iterative")
def iterative(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    start: Literal["norm", "random"] = "norm",
    rounds: int = 20,
) -> Selection:
    """Alternate; both half steps keep the incumbent, so the objective never falls and the loop ends.

    The published text leaves the first set open: the largest norms (default) or a random set.

    Raises:
        ValueError: for an unknown start.
    """
    if start == "norm":
        users: Users = strongest((channels.real**2 + channels.imag**2).sum(axis=1), num_selected)
    elif start == "random":
        users = np.sort(rng.choice(len(channels), num_selected, replace=False))
    else:
        raise ValueError(f"start = {start!r} is unknown; valid: norm, random")
    beam: Complex | None = None
    for count in range(1, rounds + 1):
        beam = beamformer(channels[users], initial=beam).beam
        following = best_for_beam(channels, beam, num_selected)
        if np.array_equal(following, users):
            return Selection(users, beam, iterations=count)
        users = following
    return Selection(users, beam, status="iteration_limit", iterations=rounds)
