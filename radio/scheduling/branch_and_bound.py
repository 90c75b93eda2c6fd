"""`branch_and_bound`: ours. The joint choice of users and beam, with a proof.

`multistart` finds a choice; `radio.branching` then shows that no other is better, or finds it. It can be
stopped at any time: the upper bound holds, and the gap between the two is what is not yet proved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from radio.beamforming.problem import Complex
from radio.branching import Progress, search
from radio.scheduling.multistart import multistart
from radio.scheduling.problem import BeamSolver, Selection
from radio.scheduling.registry import policy


@policy("branch_and_bound")
def branch_and_bound(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    gap_db: float = 0.001,
    max_nodes: int = 100_000,
    time_limit_s: float | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Selection:
    """Search users and beam until no choice is better by more than `gap_db`.

    Args:
        channels: (K, N), checked.
        num_selected: M.
        beamformer: solver of the beams in `multistart`.
        rng: draws the random starts of `multistart`.
        gap_db: distance of bound and gain, in dB, that counts as proved; the status is then "proved".
        max_nodes: subproblems after which to stop with status "node_limit".
        time_limit_s: seconds of branching after which to stop with status "time_limit". The result then
            depends on the machine; without it equal seeds give equal results.
        watch: told of gain and bound as the search goes on.

    Raises:
        ValueError: for a negative gap or time limit, or fewer than one node.
    """
    first = multistart(channels, num_selected, beamformer=beamformer, rng=rng)
    beam = beamformer(channels[first.users]).beam if first.beam is None else first.beam
    found = search(
        channels,
        first.users,
        beam,
        gap_db=gap_db,
        max_nodes=max_nodes,
        time_limit_s=time_limit_s,
        watch=watch,
    )
    return Selection(found.users, found.beam, found.status, found.nodes, found.upper_bound)
