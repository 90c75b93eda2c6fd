"""Lower bounds on the beam power of many subproblems at once: a barrier method on their dual.

A subproblem (a node of the search) asks for the least ||m||^2 such that

    |h_k^H m| >= 1                        for the users that are forced in,
    |h_k^H m| >= 1 for at least r users   among those that are free,
    Re(c_i^* h_k(i)^H m) >= f_i           for cuts i, each on one forced user, |c_i| = 1, f_i >= 0.

One over that power is the largest minimum gain of a unit beam. Relaxed by X >= m m^H, its dual is

    max  sum_k lambda_k - s u + sum_i nu_i f_i - (1/4) v^H A^{-1} v
    s.t. A = I - sum_k lambda_k h_k h_k^H >= 0,  v = sum_i nu_i c_i h_k(i),
         lambda, nu >= 0,  lambda_k <= u for the free users,

with s = (free users) - r, because at most s of the free users, each of multiplier at most u, go unserved.
Every feasible point is a valid bound. Check: ||m||^2 = m^H A m + sum_k lambda_k |h_k^H m|^2, the served users
contribute at least sum lambda - s u to the last sum, and m^H A m >= Re(v^H m) - (1/4) v^H A^{-1} v. Without
cuts and forced users it is the joint bound of `radio.beamforming.bound`; with all users forced and cuts on
phases it is the enhanced relaxation of Lu and Liu, arXiv 1702.01974.

The barrier's Newton steps run on all subproblems of a batch together. What is returned is evaluated at an
interior point, less a margin for rounding: the bound holds whatever accuracy the solver reached.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from radio.beamforming.problem import Complex, Real

Mask = NDArray[np.bool_]
Index = NDArray[np.int64]

_EPS = float(np.finfo(np.float64).eps)
_STEPS = 120  # Newton steps after which a subproblem keeps the bound it has
_GROWTH = 6.0  # of the barrier weight, each time a point is near the path
_FIRST = 20.0  # barrier weight at the start
_SURE = 1e-9  # by which a bound passes its target, more than the rounding margin takes back


@dataclass
class Subproblems:
    """B subproblems of at most n users and p cuts each.

    Attributes:
        channels: (B, n, N); rows of users that are neither forced nor free are ignored.
        forced: (B, n), users that must be served.
        free: (B, n), users of which `needed` must be served; none or more than `needed` per subproblem.
        needed: (B,), r; 0 where no user is free.
        cut_user: (B, p), the user k(i) of each cut.
        turn: (B, p), c_i; 0: no cut.
        floor: (B, p), f_i.
    """

    channels: Complex
    forced: Mask
    free: Mask
    needed: Index
    cut_user: Index
    turn: Complex
    floor: Real

    def take(self, rows: NDArray[np.intp]) -> Subproblems:
        """Return some of them."""
        return Subproblems(
            self.channels[rows],
            self.forced[rows],
            self.free[rows],
            self.needed[rows],
            self.cut_user[rows],
            self.turn[rows],
            self.floor[rows],
        )


@dataclass
class Multipliers:
    """A dual point per subproblem: lambda (B, n), u (B,), nu (B, p), and the barrier weight there (B,)."""

    weights: Real
    cap: Real
    pulls: Real
    sharp: Real

    def take(self, rows: NDArray[np.intp]) -> Multipliers:
        """Return some of them."""
        return Multipliers(self.weights[rows], self.cap[rows], self.pulls[rows], self.sharp[rows])

    def put(self, rows: NDArray[np.intp], other: Multipliers) -> None:
        """Overwrite some of them."""
        self.weights[rows], self.cap[rows] = other.weights, other.cap
        self.pulls[rows], self.sharp[rows] = other.pulls, other.sharp


@dataclass
class Bounds:
    """What the dual points of a batch prove.

    Attributes:
        value: (B,), no m of the subproblem has ||m||^2 below it, or else ||m||^2 >= 1.
        at: the dual points.
        inverse: A^{-1}, (B, N, N).
        beam: y = A^{-1} v / 2, (B, N): the relaxed beam; zero without cuts.
    """

    value: Real
    at: Multipliers
    inverse: Complex
    beam: Complex


class _System:
    """What the Newton steps of a batch need and do not change."""

    def __init__(self, given: Subproblems) -> None:
        self.channels = given.channels
        self.conjugate = given.channels.conj()
        self.free = given.free
        self.active = given.forced | given.free
        self.some_free = given.free.any(axis=1)
        self.spare = (given.free.sum(axis=1) - given.needed).astype(np.float64)
        self.eye = np.eye(given.channels.shape[2])
        self.cuts = given.turn.shape[1]
        self.cut = given.turn != 0.0
        self.turn, self.floor, self.cut_user = given.turn, given.floor, given.cut_user
        self.rows = np.arange(len(given.channels))[:, None]
        self.pulling = given.channels[self.rows, given.cut_user] * given.turn[:, :, None]  # c_i h_k(i)
        degree = given.channels.shape[2] + self.active.sum(axis=1) + given.free.sum(axis=1)
        self.degree = (degree + self.cut.sum(axis=1) + self.cut.any(axis=1)).astype(np.float64)

    def outer(self, weights: Real) -> Complex:
        """Return sum_k lambda_k h_k h_k^H, (B, N, N)."""
        total: Complex = np.swapaxes(self.channels * weights[..., None], 1, 2) @ self.conjugate
        return total

    def drag(self, pulls: Real) -> Complex:
        """Return v, (B, N)."""
        total: Complex = (pulls[:, None, :] @ self.pulling)[:, 0]
        return total


def _inverse(matrices: Complex) -> Complex:
    return np.asarray(np.linalg.inv(matrices), dtype=np.complex128)


def _newton(system: _System, at: Multipliers) -> tuple[Real, Real, Multipliers]:
    """Return the dual value at a point, the Newton decrement there, and the point after one damped step."""
    count, users, _ = system.channels.shape
    size = users + system.cuts + 1
    active, free, sharp = system.active, system.free, at.sharp
    inverse = _inverse(system.eye - system.outer(at.weights))
    cross = system.conjugate @ inverse @ np.swapaxes(system.channels, 1, 2)  # (k, l): h_k^H A^{-1} h_l
    diagonal = np.arange(users)
    one = np.where(active, 1.0 / np.where(active, at.weights, 1.0), 0.0)
    room = np.where(free, 1.0 / np.where(free, at.cap[:, None] - at.weights, 1.0), 0.0)
    gradient = np.zeros((count, size))
    hessian = np.zeros((count, size, size))
    value: Real = at.weights.sum(axis=1) - system.spare * at.cap
    served = cross[:, diagonal, diagonal].real
    curved = cross.real**2 + cross.imag**2
    if system.cuts:
        drag = system.drag(at.pulls)
        beam = 0.5 * (inverse @ drag[:, :, None])[:, :, 0]
        value += (at.pulls * system.floor).sum(axis=1) - 0.5 * (drag.conj() * beam).sum(axis=1).real
        reach = (system.conjugate @ beam[:, :, None])[:, :, 0]  # h_k^H y
        served = served + sharp[:, None] * (reach.real**2 + reach.imag**2)
        weight = sharp[:, None, None]
        curved += 2.0 * weight * (reach.conj()[:, :, None] * cross * reach[:, None, :]).real
        side = cross[system.rows, :, system.cut_user].swapaxes(1, 2) * system.turn[:, None, :]
        mixed = weight * (reach.conj()[:, :, None] * side).real
        mixed[~active] = 0.0
        second = slice(users, users + system.cuts)
        hessian[:, :users, second] = mixed
        hessian[:, second, :users] = np.swapaxes(mixed, 1, 2)
        own = side[system.rows, system.cut_user] * system.turn.conj()[:, :, None]
        hessian[:, second, second] = 0.5 * weight * own.real
        each = np.where(system.cut, 1.0 / np.where(system.cut, at.pulls, 1.0), 0.0)
        place = users + np.arange(system.cuts)
        hessian[:, place, place] += np.where(system.cut, each**2, 1.0)
        gain = (system.turn.conj() * reach[system.rows, system.cut_user]).real
        gradient[:, second] = np.where(system.cut, sharp[:, None] * (system.floor - gain) + each, 0.0)
    curved[~(active[:, :, None] & active[:, None, :])] = 0.0
    hessian[:, :users, :users] = curved
    hessian[:, diagonal, diagonal] += np.where(active, one**2, 1.0) + room**2
    hessian[:, diagonal, -1] = hessian[:, -1, diagonal] = -(room**2)
    hessian[:, -1, -1] = np.where(system.some_free, (room**2).sum(axis=1), 1.0)
    gradient[:, :users] = np.where(active, sharp[:, None] - served + one - room, 0.0)
    gradient[:, -1] = np.where(system.some_free, room.sum(axis=1) - sharp * system.spare, 0.0)
    step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
    decrement: Real = np.maximum((gradient * step).sum(axis=1), 0.0)

    move = Multipliers(step[:, :users], step[:, -1], step[:, users:-1], sharp)
    limit = _longest(system, at, move, inverse)
    damped = np.maximum(1.0 / (1.0 + np.sqrt(decrement)), 0.7 * limit)
    length = np.minimum(np.minimum(np.where(decrement < 0.1, 1.0, damped), 0.9 * limit), 1.0)
    moved = Multipliers(
        at.weights + length[:, None] * move.weights,
        at.cap + length * move.cap,
        at.pulls + length[:, None] * move.pulls,
        sharp,
    )
    return value, decrement, moved


def _longest(system: _System, at: Multipliers, move: Multipliers, inverse: Complex) -> Real:
    """Return the length at which a step leaves the feasible set, (B,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = np.where(system.active & (move.weights < 0), -at.weights / move.weights, np.inf).min(axis=1)
        closing = move.weights - move.cap[:, None]
        room = at.cap[:, None] - at.weights
        limit = np.minimum(limit, np.where(system.free & (closing > 0), room / closing, np.inf).min(axis=1))
        if system.cuts:
            falling = system.cut & (move.pulls < 0)
            limit = np.minimum(limit, np.where(falling, -at.pulls / move.pulls, np.inf).min(axis=1))
        factor = np.linalg.cholesky(inverse)
        growth = np.swapaxes(factor, 1, 2).conj() @ system.outer(move.weights) @ factor
        top = np.linalg.eigvalsh(growth)[:, -1]
        reached: Real = np.minimum(limit, np.where(top > 0, 1.0 / top, np.inf))
    return reached


def _start(given: Subproblems) -> Multipliers:
    """Return equal multipliers well inside the feasible set.

    A parent's multipliers lie near the boundary of its children's sets: from there the barrier needs more
    steps than from here.
    """
    active = given.forced | given.free
    norms = (given.channels.real**2 + given.channels.imag**2).sum(axis=2)
    each = 0.3 / np.maximum(np.where(active, norms, 0.0).sum(axis=1), 1.0)
    return Multipliers(
        np.where(active, each[:, None], 0.0),
        2.0 * each,
        np.where(given.turn != 0.0, each[:, None], 0.0),
        np.full(len(each), _FIRST),
    )


def _climb(given: Subproblems, at: Multipliers, target: float, share: float, accuracy: float) -> None:
    """Follow the barrier's path until every subproblem is decided, and leave the points in `at`."""
    live = np.arange(len(at.cap))
    system, point = _System(given), at.take(live)
    for _ in range(_STEPS):
        value, decrement, moved = _newton(system, point)
        near = decrement < 1.0
        gap = (system.degree + np.sqrt(system.degree * decrement)) / point.sharp
        done = value >= target * (1.0 + _SURE)
        done |= near & (value + gap < target) & (gap < share * (target - value))
        done |= near & (gap < accuracy * target)
        at.put(live[done], point.take(np.flatnonzero(done)))
        left = np.flatnonzero(~done)
        if not len(left):
            return
        moved.sharp = np.where(near, point.sharp * _GROWTH, point.sharp)
        point = moved
        if len(left) < len(live):
            live, point, given = live[left], point.take(left), given.take(left)
            system = _System(given)
    at.put(live, point)


def certified(given: Subproblems, at: Multipliers) -> Bounds:
    """Return what the multipliers prove, rounding included.

    With the block matrix Z = [[A, -v/2], [-v^H/2, q]], every m of the subproblem has, for any q,

        ||m||^2 >= sum lambda - s u + sum nu f - q + [m; 1]^H Z [m; 1].

    Where the eigenvalues of Z, as computed, are not above what rounding can have added to them, the last term
    is at least -e (||m||^2 + 1) with e the difference. A beam of power above one does not beat an incumbent
    of gain one, so the claim is made for ||m||^2 <= 1 only.
    """
    system = _System(given)
    users, antennas = given.channels.shape[1:]
    at.weights = np.where(system.active, np.maximum(at.weights, 0.0), 0.0)
    at.weights = np.where(given.free, np.minimum(at.weights, at.cap[:, None]), at.weights)
    at.pulls = np.where(system.cut, np.maximum(at.pulls, 0.0), 0.0)
    slack = system.eye - system.outer(at.weights)
    value: Real = at.weights.sum(axis=1) - system.spare * at.cap
    norms = (given.channels.real**2 + given.channels.imag**2).sum(axis=2)
    size = 1.0 + (at.weights * (1.0 + norms)).sum(axis=1) + system.spare * np.abs(at.cap)
    inverse = _inverse(slack)
    beam = np.zeros(slack.shape[:2], dtype=np.complex128)
    block = slack
    if system.cuts:
        drag = system.drag(at.pulls)
        beam = 0.5 * (inverse @ drag[:, :, None])[:, :, 0]
        level = np.maximum(0.5 * (drag.conj() * beam).sum(axis=1).real, 0.0)
        value = value + (at.pulls * system.floor).sum(axis=1) - level
        block = np.empty((len(slack), antennas + 1, antennas + 1), dtype=np.complex128)
        block[:, :-1, :-1] = slack
        block[:, :-1, -1] = -0.5 * drag
        block[:, -1, :-1] = -0.5 * drag.conj()
        block[:, -1, -1] = level
        length = np.linalg.norm(system.pulling, axis=2)
        size += (at.pulls * (1.0 + length)).sum(axis=1) + level
    least = np.linalg.eigvalsh(block)[:, 0]
    rounding = 32.0 * (users + system.cuts + antennas) * _EPS * size
    value = value - 2.0 * np.maximum(rounding - least, 0.0) - rounding
    return Bounds(np.minimum(value, 1.0), at, inverse, beam)


def bound(given: Subproblems, *, target: float, share: float = 0.1, accuracy: float = 1e-7) -> Bounds:
    """Bound the beam power of a batch from below, as far as it matters for `target`.

    Args:
        given: the subproblems, scaled so that the incumbent's gain is at least one.
        target: at most one; a subproblem whose bound reaches it is done.
        share: one that cannot reach it is done when its bound is known to this share of the distance.
        accuracy: relative distance to its dual optimum at which any subproblem is done.
    """
    at = _start(given)
    try:
        _climb(given, at, target, share, accuracy)
    except np.linalg.LinAlgError:  # one subproblem's matrices broke: the others are solved without it
        if len(at.cap) > 1:
            for row in range(len(at.cap)):
                alone = np.array([row])
                at.put(alone, bound(given.take(alone), target=target, share=share, accuracy=accuracy).at)
    return certified(given, at)
