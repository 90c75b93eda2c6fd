"""Baselines of the comparison: subgradient, iterative reweighted, random beamforming, random selection.

Each finds a beam first and serves the M strongest users of it, except random selection.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from radio.beamforming.problem import Complex, canonical_phase, gains, matched_filters, random_beams
from radio.scheduling.problem import BeamSolver, Selection, best_for_beam
from radio.scheduling.registry import policy


def _served(
    channels: Complex, target: float, count: int, outer: int, inner: int
) -> tuple[Complex, float, int]:
    """Maximise the number of users of gain >= target; also return the best `count`-th gain met on the way."""
    users, antennas = channels.shape
    filters = matched_filters(channels)
    starts = np.concatenate([np.full((1, antennas), 1.0 / np.sqrt(antennas), dtype=complex), filters])
    power = np.abs(starts.conj() @ channels.T) ** 2
    beam = starts[np.argmax((power >= target).sum(axis=1))]
    level = np.partition(power, users - count, axis=1)[:, users - count]
    best, best_level = starts[np.argmax(level)], float(level.max())
    most = int((gains(channels, beam) >= target).sum())
    for _ in range(outer):
        before = beam
        projected = channels.conj() @ beam  # c_k = h_k^H m
        size = projected.real**2 + projected.imag**2
        multiplier = 1.0 - 0.02 * (size < target)
        current = beam
        kept = beam
        for i in range(1, inner + 1):
            last = current
            current = channels.T @ (multiplier * projected)
            current = current / max(float(np.linalg.norm(current)), 1e-300)
            inner_product = channels.conj() @ current
            actual = inner_product.real**2 + inner_product.imag**2
            served = int((actual >= target).sum())
            if served > most:
                most, kept = served, current
            reached = float(np.partition(actual, users - count)[users - count])
            if reached > best_level:
                best, best_level = current, reached
            linear = 2.0 * (projected.conj() * inner_product).real - size
            shortfall = np.maximum(target - linear, 0.0)
            step = 0.1 / np.sqrt(i)
            multiplier = np.maximum(multiplier - step * (shortfall - target + linear), 1e-10)
            if np.linalg.norm(current - last) < 1e-3:
                break
        beam = kept if kept is not before else current
        if most == users or np.linalg.norm(beam - before) < 1e-3 or most >= count:
            break
    return best, best_level, most


@policy("subgradient")
def subgradient(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    variant: Literal["bisection", "direct"] = "bisection",
    bisections: int = 15,
    outer: int = 100,
    inner: int = 1000,
) -> Selection:
    """Serve as many users as possible above a target gain, and bisect the target (Kim et al. 2023, adapted).

    Kim, Swindlehurst, Park, "Beamforming vector design and device selection in over-the-air federated
    learning", IEEE TWC 2023, solve for a free number of users; the fixed number is reached by bisection.
    Variant "direct" follows the M-th strongest user only: 200 cheap steps, higher MSE.

    Raises:
        ValueError: for an unknown variant.
    """
    del beamformer, rng
    norms = (channels.real**2 + channels.imag**2).sum(axis=1)
    scale = np.sqrt(norms.mean())
    scaled = channels / scale  # the step sizes presume gains of the order of one per antenna ...
    scaled = scaled * np.sqrt(channels.shape[1])  # ... as for unit-power channels
    if variant == "direct":
        beam = matched_filters(scaled)[np.argmax(norms)]
        best, best_level = beam, -1.0
        for i in range(1, 202):
            projected = scaled.conj() @ beam
            power = projected.real**2 + projected.imag**2
            user = int(np.argpartition(power, len(power) - num_selected)[len(power) - num_selected])
            if power[user] > best_level:
                best, best_level = beam, float(power[user])
            beam = beam + 0.1 / np.sqrt(i) * scaled[user] * projected[user] / max(
                abs(projected[user]), 1e-300
            )
            beam = beam / np.linalg.norm(beam)
        return Selection(best_for_beam(channels, best, num_selected), canonical_phase(best), iterations=201)
    if variant != "bisection":
        raise ValueError(f"variant = {variant!r} is unknown; valid: bisection, direct")
    squared = (scaled.real**2 + scaled.imag**2).sum(axis=1)
    low, high = 0.0, float(np.sort(squared)[-num_selected])
    best, best_level = matched_filters(scaled)[int(np.argmax(squared))], -1.0
    for _ in range(bisections):
        target = 0.5 * (low + high)
        beam, level, served = _served(scaled, target, num_selected, outer, inner)
        if level > best_level:
            best, best_level = beam, level
        if served >= num_selected:
            low = max(target, best_level)
        else:
            high = target
        if high <= low:
            break
    return Selection(
        best_for_beam(channels, best, num_selected), canonical_phase(best), iterations=bisections
    )


@policy("iterative_reweighted")
def iterative_reweighted(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    exponent: float = 1.0,
    rounds: int = 30,
) -> Selection:
    """Repeat: m = top eigenvector of sum_k w_k h_k h_k^H, w_k proportional to |h_k^H m|^q; q = `exponent`."""
    del beamformer
    beam = channels.sum(axis=0)
    norm = float(np.linalg.norm(beam))
    beam = beam / norm if norm > 0.0 else random_beams(rng, 1, channels.shape[1])[0]
    count = 0
    while count < rounds:
        count += 1
        weights = np.abs(channels @ beam.conj()) ** exponent
        total = float(weights.sum())
        weights = weights / total if total > 0.0 else np.full(len(channels), 1.0 / len(channels))
        following = np.linalg.eigh((channels.T * weights) @ channels.conj())[1][:, -1]
        change = 1.0 - abs(np.vdot(following, beam))
        beam = following
        if change < 1e-6:
            break
    return Selection(best_for_beam(channels, beam, num_selected), canonical_phase(beam), iterations=count)


@policy("random_beamforming")
def random_beamforming(
    channels: Complex, num_selected: int, *, beamformer: BeamSolver, rng: np.random.Generator
) -> Selection:
    """One random beam and its M strongest users; the mean MSE does not depend on N."""
    del beamformer
    beam = random_beams(rng, 1, channels.shape[1])[0]
    return Selection(best_for_beam(channels, beam, num_selected), canonical_phase(beam))


@policy("random_selection")
def random_selection(
    channels: Complex, num_selected: int, *, beamformer: BeamSolver, rng: np.random.Generator
) -> Selection:
    """Draw M users uniformly; the beamformer does the rest."""
    del beamformer
    return Selection(np.sort(rng.choice(len(channels), num_selected, replace=False)))
