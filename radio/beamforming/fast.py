"""`fast`: many starts climb together, the best few are polished exactly. NumPy and one SciPy routine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.beamforming.ascent import ascend, polish
from radio.beamforming.problem import Beam, Complex, finish, matched_filters, principal_beam, random_beams

_PARALLEL = 0.98  # |m_i^H m_j|^2 above which two climbed beams are taken to be the same optimum


def starting_beams(
    channels: Complex, count: int, rng: np.random.Generator, initial: Complex | None
) -> Complex:
    """Return `count` unit beams: the given one, the principal one, good matched filters, random ones."""
    fixed = [principal_beam(channels)[None]]
    if initial is not None:
        fixed.insert(0, (initial / np.linalg.norm(initial))[None])
    filters = matched_filters(channels)
    order = np.argsort(-np.abs(filters.conj() @ channels.T).min(axis=1), kind="stable")
    fixed.append(filters[order[: max(1, count * 5 // 8)]])
    beams = np.concatenate(fixed)[:count]
    return np.concatenate([beams, random_beams(rng, count - len(beams), channels.shape[1])])


def distinct(beams: Complex, order: NDArray[np.intp], count: int) -> list[int]:
    """Return the first `count` of `order` that are not nearly parallel to one already taken."""
    kept: list[int] = []
    for index in order:
        if kept and (np.abs(beams[kept].conj() @ beams[index]) ** 2).max() > _PARALLEL:
            continue
        kept.append(int(index))
        if len(kept) == count:
            break
    return kept


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    starts: int = 16,
    finished: int = 6,
    tolerance: float = 1e-6,
) -> Beam:
    """Many-start ascent with an exact polish (see `radio.beamforming.ascent`).

    Args:
        channels: (M, N), checked.
        rng: draws the random starts.
        initial: a beam to start from as well; the result is never worse.
        starts: beams that climb together; every distinct one is tried with a few exact steps.
        finished: of these, how many of the best are polished to the end.
        tolerance: relative gain growth at which a polish stops.

    Raises:
        ValueError: if `starts` or `finished` is below 1.
    """
    if starts < 1 or finished < 1:
        raise ValueError(f"starts = {starts} and finished = {finished} must be at least 1")
    # Slow sharpening: with the users fixed, a step costs next to nothing, and haste ends in worse optima.
    first = starting_beams(channels, starts, rng, initial)
    beams, values = ascend(channels, first, iterations=40, beta=1.0, growth=1.12)
    steps = 0
    tried, gained = [], []
    for index in distinct(beams, np.argsort(-values, kind="stable"), starts):
        beam, gain, made = polish(channels, beams[index], steps=4, tolerance=1e-4)
        tried.append(beam)
        gained.append(gain)
        steps += made
    trials = np.stack(tried)
    best, best_gain = trials[int(np.argmax(gained))], max(gained)
    for index in distinct(trials, np.argsort(-np.array(gained), kind="stable"), finished):
        beam, gain, made = polish(channels, trials[index], tolerance=tolerance)
        steps += made
        if gain > best_gain:
            best, best_gain = beam, gain
    return finish(channels, best, bound=None, status="converged", iterations=steps)
