"""Reference solution of the joint allocation by a convex solver: for checking, not for a hot path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from radio.arrays import FloatArray


@dataclass(frozen=True)
class ReferenceAllocation:
    """What the convex solver found; the optimum is flat, so trust the objective before the point.

    Attributes:
        bandwidth_fraction: (K,) b.
        pruning_ratio: (K,) rho.
        objective: sum of w rho, left-out devices counting with rho = 1.
    """

    bandwidth_fraction: FloatArray
    pruning_ratio: FloatArray
    objective: float


def allocate_cvxpy(
    full_band_rate: ArrayLike,
    slack: ArrayLike,
    compute_time: ArrayLike,
    payload_bits: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    max_pruning_ratio: float = 1.0,
    overhead_bits: ArrayLike = 0.0,
    solver: str = "CLARABEL",
) -> ReferenceAllocation:
    """Solve the problem of `radio.allocation.allocate` with cvxpy, in y = 1 - rho.

    b(y) = (Q y + m) / (r (D - y G)) is convex; with c = G / D it splits into a linear part and
    y^2 / (1 - c y), a second-order cone. This form is well conditioned; minimising over b with
    `min(1, inv_pos)` stalls at 1e-6. All devices with positive slack and rate pay for `overhead_bits`
    (under max_pruning_ratio = 1 and m > 0 that is an upper bound on the best choice of uploaders).

    Args:
        full_band_rate, slack, compute_time, payload_bits, weights, max_pruning_ratio, overhead_bits:
            as in `allocate`, of shape (K,).
        solver: any cvxpy solver for second-order cones.

    Raises:
        RuntimeError: if the solver does not report an optimum.
    """
    import cvxpy as cp  # slow to import, and only checks need it

    r, d, g, q, m, w = np.broadcast_arrays(
        *(
            np.asarray(a, dtype=np.float64)
            for a in (
                full_band_rate,
                slack,
                compute_time,
                payload_bits,
                overhead_bits,
                1.0 if weights is None else weights,
            )
        )
    )
    on = (d > 0) & (r > 0)
    b, rho = np.zeros(r.shape), np.ones(r.shape)
    if on.any():
        c, scale = g[on] / d[on], 1.0 / (r[on] * d[on])
        y, t = cp.Variable(int(on.sum())), cp.Variable(int(on.sum()))
        room = 1 - cp.multiply(c, y)
        bits_linear, bits_curved = q[on] + c * m[on], c * q[on] + c**2 * m[on]
        share = cp.multiply(scale * bits_linear, y) + scale * m[on] + cp.multiply(scale * bits_curved, t)
        limits = [
            y >= 1 - max_pruning_ratio,
            y <= 1,
            cp.SOC(room + t, cp.vstack([2 * y, room - t]), axis=0),  # t (1 - c y) >= y^2
            cp.sum(share) <= 1,
        ]
        problem = cp.Problem(cp.Maximize(w[on] @ y), limits)
        tight = (
            {"tol_gap_abs": 1e-11, "tol_gap_rel": 1e-11, "tol_feas": 1e-11} if solver == "CLARABEL" else {}
        )
        problem.solve(solver=solver, **tight)
        if problem.status not in ("optimal", "optimal_inaccurate"):
            raise RuntimeError(f"{solver} ended with status {problem.status!r}")
        kept = np.clip(y.value, 0.0, 1.0)
        b[on] = scale * (q[on] * kept + m[on]) / (1 - c * kept)
        rho[on] = 1 - kept
    return ReferenceAllocation(b, rho, float((w * rho).sum()))
