"""`global`: the best beam of a fixed set, proved: the semidefinite bound, sharpened by branching on phases.

Where the semidefinite bound of a set is not reached by any beam, the phase of h_k^H m is confined to sectors:
on a sector of half-width w <= pi/2, |z| >= 1 implies Re(e^{-j c} z) >= cos w, which is linear. Sectors are
split at the user that the relaxed beam serves worst until bound and beam meet (Lu and Liu, arXiv 1702.01974).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from radio.beamforming import fast
from radio.beamforming.problem import Beam, Complex, finish
from radio.branching import search


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    gap_db: float = 0.001,
    max_nodes: int = 20_000,
    time_limit_s: float | None = None,
) -> Beam:
    """Start from `fast` and branch until no beam is better by more than `gap_db`.

    Args:
        channels: (M, N), checked.
        rng: draws the random starts of `fast`.
        initial: a beam to start from as well; the result is never worse.
        gap_db: distance of bound and gain, in dB, that counts as proved; the status is then "proved".
        max_nodes: subproblems after which to stop with status "node_limit"; the bound holds all the same.
        time_limit_s: seconds after which to stop with status "time_limit"; the result then depends on the
            machine.

    Raises:
        ValueError: for a negative gap or time limit, or fewer than one node.
    """
    first = fast.solve(channels, rng=rng, initial=initial)
    users = np.arange(len(channels))
    found = search(channels, users, first.beam, gap_db=gap_db, max_nodes=max_nodes, time_limit_s=time_limit_s)
    beam = finish(channels, found.beam, bound=None, status=found.status, iterations=found.nodes)
    return replace(beam, upper_bound=max(found.upper_bound, beam.min_gain))
