"""`dc`: the published solver, difference of convex functions inside a bisection (cvxpy, for reference).

rank M = 1 exactly if tr M - ||M||_2 = 0. For a fixed target t the concave part -||M||_2 is linearised at
the top eigenvector u of the last M: minimise tr((I - u u^H) M) over M >= 0, tr M = 1, h_k^H M h_k >= t
(arXiv 2508.00341, eqs. (11)-(14) and Algorithm 1).

The semidefinite program is solved through its dual, max t sum(lambda) + mu subject to
(I - u u^H) - sum_k lambda_k h_k h_k^H - mu I >= 0, lambda >= 0. Written as a primal over structured real
matrices it leaves interior-point solvers with numerical failures that make the bisection collapse. M is the
multiplier of the matrix constraint, averaged over the structure of the real embedding and scaled to trace 1.

The method is local: "no rank-one solution found at t" does not prove that there is none, so the bisection
may end low. The best beam ever seen is returned, never the last M.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from radio.beamforming.bound import set_upper_bound
from radio.beamforming.problem import (
    Beam,
    Complex,
    Real,
    best_matched_filter,
    finish,
    gains,
    random_beams,
)


def embed(matrix: Complex) -> Real:
    """Return the real symmetric [[Re, -Im], [Im, Re]] of a Hermitian matrix, (2N, 2N)."""
    return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]])


def unembed(matrix: Real) -> Complex:
    """Average a symmetric (2N, 2N) matrix over the structure of `embed`, (N, N) Hermitian, trace 1."""
    n = len(matrix) // 2
    averaged = matrix[:n, :n] + matrix[n:, n:] + 1j * (matrix[n:, :n] - matrix[:n, n:])
    averaged = 0.5 * (averaged + averaged.conj().T)
    return np.asarray(averaged / averaged.trace().real)


@dataclass
class _Step:
    """The parametrised dual of the linearised problem, compiled once per set of users."""

    problem: Any
    target: Any
    projector: Any
    constraint: Any
    solver: str

    @classmethod
    def build(cls, channels: Complex, solver: str) -> _Step:
        import cvxpy as cp

        users, antennas = channels.shape
        multiplier = cp.Variable(users, nonneg=True)
        mu = cp.Variable()
        target = cp.Parameter(nonneg=True)
        projector = cp.Parameter((2 * antennas, 2 * antennas), symmetric=True)
        outer = np.stack([embed(np.outer(h, h.conj())).ravel() for h in channels], axis=1)
        weighted = cp.reshape(outer @ multiplier, (2 * antennas, 2 * antennas), order="C")
        constraint = projector - weighted - mu * np.eye(2 * antennas) >> 0
        # target * sum(multiplier) is a parameter times an affine expression, so the compiled form is reused.
        problem = cp.Problem(cp.Maximize(target * cp.sum(multiplier) + mu), [constraint])
        return cls(problem, target, projector, constraint, solver)

    def solve(self, t: float, u: Complex) -> tuple[str, Complex | None]:
        """Return ("ok" | "infeasible" | "failed", M or None)."""
        import cvxpy as cp

        self.target.value = t
        self.projector.value = embed(np.eye(len(u)) - np.outer(u, u.conj()))
        try:
            with warnings.catch_warnings():  # inaccuracy is read from the status
                warnings.simplefilter("ignore", UserWarning)
                self.problem.solve(solver=self.solver)
        except cp.error.SolverError:
            return "failed", None
        if self.problem.status in ("unbounded", "unbounded_inaccurate"):
            return "infeasible", None
        if self.problem.status not in ("optimal", "optimal_inaccurate"):
            return "failed", None
        value = self.constraint.dual_value
        if value is None or not np.isfinite(value).all() or np.trace(value) <= 0.0:
            return "failed", None
        return "ok", unembed(np.asarray(value))


def solve(
    channels: Complex,
    *,
    rng: np.random.Generator,
    initial: Complex | None = None,
    target_tolerance: float = 1e-3,
    rank_tolerance: float = 1e-5,
    progress_tolerance: float = 1e-7,
    dc_steps: int = 60,
    solver: str = "CLARABEL",
) -> Beam:
    """Bisection on the target gain with the rank test of arXiv 2508.00341, eqs. (11)-(14) (Algorithm 1).

    Args:
        channels: (M, N), checked.
        rng: draws the cold start of every bisection step.
        initial: a beam to keep as incumbent; the result is never worse.
        target_tolerance: bisection width, relative to its first upper end.
        rank_tolerance: 1 - lambda_max(M) that counts as rank one.
        progress_tolerance: least fall of that number per step before giving up on a target.
        dc_steps: linearisations per target.
        solver: cvxpy solver name.
    """
    bound = set_upper_bound(channels)
    scale = np.sqrt(bound)  # the programs are solved with a largest conceivable gain of 1
    scaled = channels / scale
    step = _Step.build(scaled, solver)
    best = best_matched_filter(scaled)
    best_gain = float(gains(scaled, best).min())
    if initial is not None:
        start = initial / np.linalg.norm(initial)
        start_gain = float(gains(scaled, start).min())
        if start_gain > best_gain:
            best, best_gain = start, start_gain
    low, high = best_gain, 1.0
    solved = failures = 0
    while high - low > target_tolerance:
        t = 0.5 * (low + high)
        u = random_beams(rng, 1, channels.shape[1])[0]
        gap_before, feasible, retried = np.inf, False, False
        for _ in range(dc_steps):
            state, matrix = step.solve(t, u)
            solved += 1
            if state == "failed":
                failures += 1
                if retried:
                    break
                retried = True
                u = random_beams(rng, 1, channels.shape[1])[0]
                continue
            if matrix is None:
                break
            values, vectors = np.linalg.eigh(matrix)
            u = vectors[:, -1]
            gap = 1.0 - float(values[-1])
            gain = float(gains(scaled, u).min())
            if gain > best_gain:
                best, best_gain = u, gain
            if gap <= rank_tolerance or gain >= t:
                feasible = True
                break
            if gap_before - gap < progress_tolerance:
                break
            gap_before = gap
        if feasible:
            low = max(t, best_gain)
        else:
            high = t
        low = max(low, best_gain)
    status = "converged" if failures == 0 else "solver_failures"
    return finish(channels, best, bound=bound, status=status, iterations=solved)
