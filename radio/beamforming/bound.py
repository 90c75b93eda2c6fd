"""Upper bounds on the max-min gain by semidefinite relaxation, without a general SDP solver.

*Fixed set.* Dropping the rank of M = m m^H gives max t s.t. h_k^H M h_k >= t, tr M = 1, M >= 0. Its dual is

    min over lambda in the simplex of  lambda_max( sum_k lambda_k h_k h_k^H ),

and *every* lambda in the simplex gives a valid bound, so rounding cannot make the certificate wrong.

*Users and beam together.* Let x_k in [0, 1], sum x = M, be the relaxed choice of users, and ask for
h_k^H X h_k >= t x_k. With s_k = t (1 - x_k) this is linear in (X, t, s):

    max t  s.t.  h_k^H X h_k >= t - s_k,  s >= 0,  sum_k s_k <= (K - M) t,  tr X = 1,  X >= 0,

and the dual, in which again every feasible point is a valid bound, is

    min over (lambda, u) of lambda_max( sum_k lambda_k h_k h_k^H )
    s.t. 0 <= lambda_k <= u,  sum_k lambda_k = 1 + (K - M) u.

Check: if M users have |m^H h_k|^2 >= t, then sum_k lambda_k |m^H h_k|^2 >= t times the least sum of M
multipliers >= t (1 + (K - M) u - (K - M) u) = t. With K = M it is the bound of the fixed set.

Both duals are solved by a log-barrier Newton method on K + 2 unknowns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.beamforming.problem import Complex, Real

MAX_USERS = 2000  # the Newton matrix is K x K


def _barrier(scaled: Complex, spare: int, start: Real, tolerance: float) -> Real:
    """Minimise lambda_max of the weighted sum; unknowns (lambda_1..K [, u], s).

    `spare` = K - M. Without spare users u has no role and is left out.
    """
    users, antennas = scaled.shape
    capped = spare > 0
    size = users + capped + 1
    normal = np.zeros(size)  # the equality: sum lambda - spare u = 1
    normal[:users] = 1.0
    if capped:
        normal[users] = -float(spare)
    point = start.copy()
    degree = antennas + users * (2 if capped else 1)
    system = np.zeros((size + 1, size + 1))
    system[size, :size] = normal
    system[:size, size] = normal
    eye = np.eye(antennas)
    hermitian = scaled.T

    def value(at: Real, sharp: float) -> float:
        weights = at[:users]
        room = at[users] - weights if capped else weights
        if weights.min() <= 0.0 or room.min() <= 0.0:
            return np.inf
        slack = at[-1] * eye - (hermitian * weights) @ scaled.conj()
        try:
            factor = np.linalg.cholesky(slack)
        except np.linalg.LinAlgError:
            return np.inf
        barrier = -2.0 * np.log(np.diag(factor).real).sum() - np.log(weights).sum()
        if capped:
            barrier -= np.log(room).sum()
        return float(sharp * at[-1] + barrier)

    sharp = degree / max(point[-1], 1e-300)
    while True:
        for _ in range(30):
            weights = point[:users]
            inverse = np.linalg.inv(point[-1] * eye - (hermitian * weights) @ scaled.conj())
            spread = scaled.conj() @ inverse  # row k: h_k^H P
            cross = spread @ hermitian  # (k, l): h_k^H P h_l
            gradient = np.zeros(size)
            gradient[:users] = cross.diagonal().real - 1.0 / weights
            gradient[-1] = sharp - inverse.trace().real
            system[:size, :size] = 0.0
            hessian = system[:size, :size]
            hessian[:users, :users] = cross.real**2 + cross.imag**2
            diagonal = np.arange(users)
            hessian[diagonal, diagonal] += 1.0 / weights**2
            mixed = -(spread.real**2 + spread.imag**2).sum(axis=1)
            hessian[:users, -1] = mixed
            hessian[-1, :users] = mixed
            hessian[-1, -1] = (inverse.real**2 + inverse.imag**2).sum()
            if capped:
                room = 1.0 / (point[users] - weights)
                gradient[:users] += room
                gradient[users] = -room.sum()
                hessian[diagonal, diagonal] += room**2
                hessian[:users, users] = -(room**2)
                hessian[users, :users] = -(room**2)
                hessian[users, users] = (room**2).sum()
            right = np.append(-gradient, 0.0)
            try:
                step = np.linalg.solve(system, right)[:size]
            except np.linalg.LinAlgError:
                return point
            decrement = float(-gradient @ step)
            if not np.isfinite(decrement) or decrement < 1e-8:
                break
            length, here = 1.0, value(point, sharp)
            while length > 1e-12 and value(point + length * step, sharp) > here - 0.25 * length * decrement:
                length *= 0.5
            if length <= 1e-12:
                return point
            point = point + length * step
        if degree / sharp < tolerance * point[-1]:
            return point
        sharp *= 12.0


def _top(scaled: Complex, weights: Real) -> float:
    return float(np.linalg.eigvalsh((scaled.T * weights) @ scaled.conj())[-1])


def pair_bounds(channels: Complex) -> Real:
    """Return max over unit m of min(|m^H h_i|^2, |m^H h_j|^2) for every pair, (K, K); diagonal ||h_i||^2.

    With a = ||h_i||^2 <= b = ||h_j||^2 and r = |h_i^H h_j|: a, if r >= a (the matched filter of the weaker
    user already serves the stronger), else (a b - r^2) / (a + b - 2 r), the squared distance of the origin
    from the line through both phase-aligned channels.
    """
    gram = np.abs(channels.conj() @ channels.T)
    norms = gram.diagonal().copy()
    low = np.minimum(norms[:, None], norms[None, :])
    high = np.maximum(norms[:, None], norms[None, :])
    spread = np.maximum(low + high - 2.0 * gram, 1e-300)
    both = np.maximum(low * high - gram**2, 0.0) / spread
    bounds: Real = np.where(gram >= low * (1.0 - 1e-12), low, np.minimum(both, low))
    return bounds


def worthwhile_users(channels: Complex, count: int, incumbent: float) -> NDArray[np.int64]:
    """Return the users that a set of `count` users with a gain above `incumbent` may hold, ascending.

    Lossless: such a set is a clique of users whose pair bounds exceed the incumbent, so each member has at
    least count - 1 such partners. Users without are dropped until none is left to drop.
    """
    threshold = incumbent * (1.0 + 1e-9)
    users = np.flatnonzero((channels.real**2 + channels.imag**2).sum(axis=1) > threshold)
    if not 0 < len(users) <= MAX_USERS:
        return users
    partner = pair_bounds(channels[users]) > threshold
    while len(users):
        kept = partner.sum(axis=1) >= count  # the diagonal counts the user itself
        if kept.all():
            break
        users, partner = users[kept], partner[np.ix_(kept, kept)]
    return users


def joint_upper_bound(
    channels: Complex, count: int, *, incumbent: float = 0.0, tolerance: float = 1e-7
) -> float:
    """Return a number that no choice of `count` users and unit beam exceeds in minimum gain.

    Args:
        channels: (K, N), checked.
        count: users to choose, M; with M = K it is the bound of the fixed set.
        incumbent: a gain that some choice reaches. Users that cannot be part of a better one are left out, so
            the bound is tighter; it is never below the incumbent, and equal to it if that is proved optimal.
        tolerance: relative distance to the optimum of the relaxation.

    With more than `MAX_USERS` users only the M-th largest ||h_k||^2 is returned.
    """
    if incumbent > 0.0:
        channels = channels[worthwhile_users(channels, count, incumbent)]
        if len(channels) < count:
            return incumbent
        return max(incumbent, joint_upper_bound(channels, count, tolerance=tolerance))
    norms = (channels.real**2 + channels.imag**2).sum(axis=1)
    by_norm = float(np.partition(norms, len(norms) - count)[len(norms) - count])
    if len(channels) > MAX_USERS:
        return by_norm
    users = len(channels)
    spare = users - count
    scale = float(norms.mean())
    scaled = channels / np.sqrt(scale)
    if spare:
        ratio = 0.5 * (1.0 + users / spare)  # u / lambda of an interior point with equal multipliers
        each = 1.0 / (users - ratio * spare)
        weights = np.full(users, each)
        start = np.append(weights, ratio * each)
    else:
        weights = np.full(users, 1.0 / users)
        start = weights.copy()
    start = np.append(start, 1.5 * _top(scaled, weights))
    point = _barrier(scaled, spare, start, tolerance)
    # Back onto the feasible set exactly, then evaluate there: valid whatever the solver did.
    if spare:
        cap = float(point[users])
        weights = np.clip(point[:users], 0.0, cap)
        weights /= max(weights.sum() - spare * cap, 1e-300)
    else:
        weights = np.maximum(point[:users], 0.0)
        weights /= weights.sum()
    return min(by_norm, scale * _top(scaled, weights) * (1.0 + 1e-12))


def set_upper_bound(channels: Complex, *, tolerance: float = 1e-7) -> float:
    """Return the semidefinite bound of a fixed set, (M, N) channels."""
    return joint_upper_bound(channels, len(channels), tolerance=tolerance)
