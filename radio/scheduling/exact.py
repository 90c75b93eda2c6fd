"""`brute_force`: every set of M users, for small K only."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np

from radio.beamforming.bound import pair_bounds
from radio.beamforming.problem import Complex
from radio.scheduling.problem import BeamSolver, Selection, Users
from radio.scheduling.registry import policy


@policy("brute_force")
def brute_force(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    max_sets: int = 20_000,
) -> Selection:
    """Solve the beam of all C(K, M) sets and keep the best.

    A set is skipped where its weakest norm, or a pair of its users, cannot reach the incumbent: the gain of
    two users alone is known in closed form and bounds every set that holds them.

    Raises:
        ValueError: if there are more than `max_sets` sets.
    """
    del rng
    users = len(channels)
    total = comb(users, num_selected)
    if total > max_sets:
        raise ValueError(
            f"brute_force would try C({users}, {num_selected}) = {total} sets; "
            f"the limit max_sets is {max_sets}"
        )
    pair = pair_bounds(channels)
    best: Users = np.arange(num_selected)
    best_beam = beamformer(channels[best]).beam
    best_gain = -1.0
    solved = 0
    index = np.array(list(combinations(range(users), num_selected)), dtype=np.int64)
    limits = np.array([pair[np.ix_(chosen, chosen)].min() for chosen in index])
    for row in np.argsort(-limits, kind="stable"):  # promising sets first, so that the rest is cut off
        if limits[row] <= best_gain:
            break
        found = beamformer(channels[index[row]])
        solved += 1
        if found.min_gain > best_gain:
            best, best_beam, best_gain = index[row], found.beam, found.min_gain
    return Selection(best, best_beam, iterations=solved)
