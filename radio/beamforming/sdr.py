"""`sdr`: semidefinite relaxation with random rounding and its bound (cvxpy, for reference).

max t s.t. h_k^H M h_k >= t, M >= 0, tr M = 1, solved through the dual min over the simplex of
lambda_max(sum_k lambda_k h_k h_k^H). The bound is that dual evaluated at the solver's multipliers after
projection onto the simplex, hence valid whatever the solver's accuracy; M is the multiplier of the matrix
constraint. Beams are drawn from CN(0, M) next to the top eigenvector, and the best few are polished.
"""

from __future__ import annotations

import warnings

import numpy as np

from radio.beamforming.ascent import polish
from radio.beamforming.dc import embed, unembed
from radio.beamforming.problem import Beam, Complex, finish, random_beams


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    roundings: int = 100,
    polished: int = 3,
    solver: str = "CLARABEL",
) -> Beam:
    """Relax, round, polish.

    Args:
        channels: (M, N), checked.
        rng: draws the roundings.
        initial: a beam to keep as incumbent; the result is never worse.
        roundings: beams drawn from CN(0, M).
        polished: of all beams, how many are polished by the exact convex step (0: plain rounding).
        solver: cvxpy solver name.
    """
    import cvxpy as cp

    users, antennas = channels.shape
    scale = float(np.linalg.norm(channels, axis=1).min())
    scaled = channels / scale
    multiplier = cp.Variable(users, nonneg=True)
    level = cp.Variable()
    outer = np.stack([embed(np.outer(h, h.conj())).ravel() for h in scaled], axis=1)
    weighted = cp.reshape(outer @ multiplier, (2 * antennas, 2 * antennas), order="C")
    constraint = level * np.eye(2 * antennas) - weighted >> 0
    problem = cp.Problem(cp.Minimize(level), [constraint, cp.sum(multiplier) == 1])
    try:
        with warnings.catch_warnings():  # inaccuracy is read from the status
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=solver)
        status = {"optimal": "converged", "optimal_inaccurate": "inaccurate"}.get(problem.status, "failed")
    except cp.error.SolverError:
        status = "failed"
    bound: float | None = None
    beams = [] if initial is None else [(initial / np.linalg.norm(initial))[None]]
    dual = constraint.dual_value
    if status != "failed" and multiplier.value is not None and dual is not None:
        weights = np.maximum(multiplier.value, 0.0)
        weights /= weights.sum()
        bound = float(np.linalg.eigvalsh((channels.T * weights) @ channels.conj())[-1]) * (1.0 + 1e-12)
        values, vectors = np.linalg.eigh(unembed(np.asarray(dual)))
        beams.append(vectors[:, -1][None])
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        beams.append(random_beams(rng, roundings, antennas) @ root.T)
    else:
        beams.append(random_beams(rng, roundings, antennas))
    drawn = np.concatenate(beams)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    order = np.argsort(-np.abs(drawn.conj() @ scaled.T).min(axis=1), kind="stable")
    best = drawn[order[0]]
    best_gain = -1.0
    steps = 1
    for index in order[:polished]:
        beam, gain, made = polish(scaled, drawn[index])
        steps += made
        if gain > best_gain:
            best, best_gain = beam, gain
    return finish(channels, best, bound=bound, status=status, iterations=steps)
