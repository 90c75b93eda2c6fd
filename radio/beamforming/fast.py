"""`fast`: many starts climb together, the best few are polished exactly. NumPy and one SciPy routine."""

from __future__ import annotations

import numpy as np

from radio.beamforming.ascent import ascend, polish
from radio.beamforming.problem import Beam, Complex, finish, matched_filters, principal_beam, random_beams


def starting_beams(
    channels: Complex, count: int, rng: np.random.Generator, initial: Complex | None
) -> Complex:
    """Return `count` unit beams: the given one, the principal one, good matched filters, random ones."""
    fixed = [principal_beam(channels)[None]]
    if initial is not None:
        fixed.insert(0, (initial / np.linalg.norm(initial))[None])
    filters = matched_filters(channels)
    order = np.argsort(-np.abs(filters.conj() @ channels.T).min(axis=1), kind="stable")
    fixed.append(filters[order[: max(1, count // 3)]])
    beams = np.concatenate(fixed)[:count]
    return np.concatenate([beams, random_beams(rng, count - len(beams), channels.shape[1])])


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    starts: int = 16,
    polished: int = 8,
    tolerance: float = 1e-6,
) -> Beam:
    """Many-start ascent with an exact polish (see `radio.beamforming.ascent`).

    Args:
        channels: (M, N), checked.
        rng: draws the random starts.
        initial: a beam to start from as well; the result is never worse.
        starts: beams that climb together.
        polished: of these, how many are tried with the exact step; half of them are finished.
        tolerance: relative gain growth at which a polish stops.
    """
    if starts < 1 or polished < 1:
        raise ValueError(f"starts = {starts} and polished = {polished} must be at least 1")
    # Slower sharpening than the joint search uses: with the users fixed, an extra step costs next to nothing.
    first = starting_beams(channels, starts, rng, initial)
    beams, values = ascend(channels, first, iterations=30, growth=1.16)
    order = np.argsort(-values, kind="stable")[:polished]
    steps = 0
    trials: list[tuple[float, Complex]] = []
    for index in order:
        beam, gain, made = polish(channels, beams[index], steps=4, tolerance=1e-4)
        trials.append((gain, beam))
        steps += made
    trials.sort(key=lambda trial: -trial[0])
    best_gain, best = trials[0]
    for _, start in trials[: (polished + 1) // 2]:
        beam, gain, made = polish(channels, start, tolerance=tolerance)
        steps += made
        if gain > best_gain:
            best, best_gain = beam, gain
    return finish(channels, best, bound=None, status="converged", iterations=steps)
