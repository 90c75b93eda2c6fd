"""`sca`: successive convex approximation from a few starts, each run to convergence."""

from __future__ import annotations

import numpy as np

from radio.beamforming.ascent import polish
from radio.beamforming.problem import Beam, Complex, best_matched_filter, finish, principal_beam, random_beams


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    starts: int = 5,
    steps: int = 200,
    tolerance: float = 1e-6,
) -> Beam:
    """Best of `starts` convex-approximation runs: best matched filter, principal beam, then random beams.

    The convex step is the least-distance problem of `radio.beamforming.ascent`, solved exactly.

    Args:
        channels: (M, N), checked.
        rng: draws the random starts.
        initial: a beam to start from as well; the result is never worse.
        starts: runs.
        steps: convex steps per run.
        tolerance: relative gain growth at which a run stops.
    """
    if starts < 1:
        raise ValueError(f"starts = {starts} must be at least 1")
    beams: list[Complex] = [] if initial is None else [initial / np.linalg.norm(initial)]
    beams += [best_matched_filter(channels), principal_beam(channels)]
    beams = beams[:starts]
    beams += list(random_beams(rng, starts - len(beams), channels.shape[1]))
    best, best_gain, total, limited = beams[0], -1.0, 0, False
    for start in beams:
        beam, gain, made = polish(channels, start, steps=steps, tolerance=tolerance)
        total += made
        limited |= made == steps
        if gain > best_gain:
            best, best_gain = beam, gain
    status = "iteration_limit" if limited else "converged"
    return finish(channels, best, bound=None, status=status, iterations=total)
