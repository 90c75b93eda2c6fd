"""Nodes of the search: what they say of each user, how they are narrowed without loss, how they are split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from radio.beamforming.problem import Complex, Real
from radio.branching.dual import Bounds, Mask, Subproblems

Roles = NDArray[np.int8]
OUT, FREE, IN = np.int8(0), np.int8(1), np.int8(2)

MARGIN = 1e-9  # relative; an exclusion keeps this distance from its threshold
_TRUST = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4, 1e5)
_WIDEN = 1e-12  # radians added to a part of a sector, so that rounding leaves no gap between parts
_NARROW = 1e-7  # radians; a sector below is not split again


@dataclass(frozen=True)
class Sector:
    """The phase of h_k^H m is within `width` of `centre`, radians; that of the first user is set to zero."""

    centre: float
    width: float

    def cut(self) -> tuple[complex, float] | None:
        """Return (c, f) with Re(c^* z) >= f for every z of the sector with |z| >= 1; None if there is none.

        The sides of the sector, linear as well, were tried and saved no nodes.
        """
        if self.width > 0.5 * math.pi:
            return None
        return complex(np.exp(1j * self.centre)), max(math.cos(self.width), 0.0)

    def halves(self, phase: float) -> tuple[Sector, Sector]:
        """Split near `phase`."""
        offset = (phase - self.centre + math.pi) % (2.0 * math.pi) - math.pi
        cut = min(max(offset, -0.5 * self.width), 0.5 * self.width)
        low, high = 0.5 * (cut + self.width), 0.5 * (self.width - cut)
        return (
            Sector(self.centre + cut - low, low + _WIDEN),
            Sector(self.centre + cut + high, high + _WIDEN),
        )


def thirds(phase: float) -> tuple[Sector, Sector, Sector]:
    """Return three sectors that cover the circle, the first around `phase`."""
    width = math.pi / 3.0 + _WIDEN
    turn = 2.0 * math.pi / 3.0
    return Sector(phase, width), Sector(phase + turn, width), Sector(phase - turn, width)


@dataclass(frozen=True)
class Node:
    """One subproblem: each user's role (K,), the sectors of some that are in, and its parent's bound."""

    role: Roles
    bound: float = 0.0
    sectors: dict[int, Sector] = field(default_factory=dict)


def narrow(role: Roles, compatible: Mask, count: int) -> Mask:
    """Leave out users that `count` compatible users cannot hold; works on `role` (B, K) in place.

    A user that is in rules out those not compatible with it, a user needs `count` - 1 partners, `count` users
    in leave the others out, and `count` users left are all in.

    Returns:
        Which of the nodes hold a set of `count` users still, (B,).
    """
    partner = compatible.astype(np.float32)  # whole numbers below 2**24 are exact
    alive = np.ones(len(role), dtype=bool)
    while True:
        before = role.copy()
        clash = (role == IN).astype(np.float32) @ (1.0 - partner) > 0.0
        few = (role > OUT).astype(np.float32) @ partner < count
        alive &= ~((clash | few) & (role == IN)).any(axis=1)
        role[(clash | few) & (role == FREE)] = OUT
        chosen, left = (role == IN).sum(axis=1), (role > OUT).sum(axis=1)
        alive &= (left >= count) & (chosen <= count)
        role[(chosen == count)[:, None] & (role == FREE)] = OUT
        role[(left == count)[:, None] & (role == FREE)] = IN
        if (role == before)[alive].all():
            return alive


@dataclass
class Batch:
    """Nodes side by side as subproblems; column j of a row stands for user ``users[row, j]``."""

    nodes: list[Node]
    role: Roles
    users: NDArray[np.int64]
    given: Subproblems


def gather(channels: Complex, nodes: Sequence[Node], role: Roles, count: int) -> Batch:
    """Write nodes with the narrowed roles (B, K) as subproblems of the users that are not out."""
    active = role > OUT
    width = int(active.sum(axis=1).max())
    users = np.argsort(~active, axis=1, kind="stable")[:, :width]
    own = np.take_along_axis(role, users, axis=1)
    forced, free = own == IN, own == FREE
    needed = np.where(free.any(axis=1), count - forced.sum(axis=1), 0)
    cuts = [
        [
            (int(np.flatnonzero(users[row] == user)[0]), *cut)
            for user, sector in node.sectors.items()
            if (cut := sector.cut()) is not None
        ]
        for row, node in enumerate(nodes)
    ]
    most = max(len(one) for one in cuts)
    cut_user = np.zeros((len(nodes), most), dtype=np.int64)
    turn = np.zeros((len(nodes), most), dtype=np.complex128)
    floor = np.zeros((len(nodes), most))
    for row, one in enumerate(cuts):
        for place, (user, direction, least) in enumerate(one):
            cut_user[row, place], turn[row, place], floor[row, place] = user, direction, least
    given = Subproblems(channels[users], forced, free, needed, cut_user, turn, floor)
    return Batch(list(nodes), role, users, given)


def top_beams(found: Bounds) -> tuple[Real, Complex]:
    """Return the relaxed X = y y^H + A^{-1} / sharpness of each node: eigenvalues and eigenvectors."""
    lifted = found.inverse / found.at.sharp[:, None, None]
    lifted = lifted + found.beam[:, :, None] * found.beam[:, None, :].conj()
    values, vectors = np.linalg.eigh(lifted)
    return values, vectors


def reachable(given: Subproblems, found: Bounds, target: float) -> Real:
    """Return what |h_k^H m|^2 is at most for any m of a node with ||m||^2 <= target, (B, n).

    The dual point gives (m - y)^H A (m - y) <= d, d = target - bound. With y = 0, adding t times that to
    ||m||^2 <= target leaves m in an ellipsoid for every t >= 0.
    """
    channels, conjugate = given.channels, given.channels.conj()
    room = np.maximum(target - found.value, 0.0)
    if given.turn.shape[1]:
        reach = np.abs((conjugate @ found.beam[:, :, None])[:, :, 0])
        spread = ((conjugate @ found.inverse) * channels).sum(axis=2).real
        most: Real = (reach + np.sqrt(np.maximum(room[:, None] * spread, 0.0))) ** 2
        return most
    values, vectors = np.linalg.eigh(found.inverse)
    slack = 1.0 / np.maximum(values, 1.0)  # eigenvalues of A are at most one
    power = np.abs(conjugate @ vectors) ** 2
    most = np.full(power.shape[:2], np.inf)
    for trust in _TRUST:
        inside = (power / (trust * slack + 1.0)[:, None, :]).sum(axis=2)
        most = np.minimum(most, inside * (trust * room + target)[:, None])
    return most


def tighten(batch: Batch, found: Bounds, most: Real, target: float) -> tuple[Roles, Mask]:
    """Decide free users by the dual point; return the roles (B, K) and which rows changed.

    A user that no better beam can serve is out. Without a free user the bound is higher by u - lambda_k:
    where that reaches the target, the user is in.
    """
    given, at = batch.given, found.at
    drop = given.free & (most < 1.0 - MARGIN)
    without = found.value[:, None] + at.cap[:, None] - at.weights
    must = given.free & ~drop & (without >= target * (1.0 + MARGIN))
    role = batch.role.copy()
    row, column = np.nonzero(drop)
    role[row, batch.users[row, column]] = OUT
    row, column = np.nonzero(must)
    role[row, batch.users[row, column]] = IN
    changed: Mask = np.any(drop | must, axis=1)
    return role, changed


def split(
    batch: Batch, row: int, role: Roles, found: Bounds, most: Real, main: Complex, target: float
) -> list[Node]:
    """Split one node at a user, or at a phase where its bound no longer depends on the free users.

    Args:
        batch: of the node.
        row: its place.
        role: (K,), its tightened roles.
        found: the bounds of the batch.
        most: (B, n), see `reachable`.
        main: (B, N), the relaxed beam, or without cuts the main part of the relaxed X.
        target: of the bound.

    Returns:
        Children that cover it; none if no phase is left to split.
    """
    node, users, at = batch.nodes[row], batch.users[row], found.at
    value = float(found.value[row])
    free = batch.given.free[row]
    held = at.weights[row][free].sum() - at.cap[row] * (free.sum() - batch.given.needed[row])
    open_users = np.flatnonzero(free & (role[users] == FREE))

    def on_user() -> list[Node]:
        # Of equal multipliers (many are at the cap) the user that is hardest to serve: being in costs most.
        merit = at.weights[row][open_users] - 1e-3 * most[row][open_users]
        user = users[open_users[int(np.argmax(merit))]]
        children = []
        for part in (IN, OUT):
            own = role.copy()
            own[user] = part
            children.append(Node(own, value, node.sectors))
        return children

    chosen = np.flatnonzero(batch.given.forced[row])
    if len(open_users) and (held > 1e-3 * (target - value) or len(chosen) < 2):
        return on_user()
    reach = batch.given.channels[row].conj() @ main[row]
    sectors = dict(node.sectors)
    if not sectors:
        first = chosen[int(np.argmax(at.weights[row][chosen]))]
        sectors[int(users[first])] = Sector(0.0, 0.0)
        reach = reach * np.exp(-1j * np.angle(reach[first]))
    widths = np.array([sectors[int(users[k])].width if int(users[k]) in sectors else math.pi for k in chosen])
    candidates = chosen[widths > _NARROW]
    if not len(candidates):
        return on_user() if len(open_users) else []
    missing = np.maximum(1.0 - np.abs(reach[candidates]) ** 2, 0.0)
    if missing.max() > MARGIN:  # the user that the beam serves worst, by what serving it is worth
        at_worst = int(np.argmax(missing * at.weights[row][candidates]))
    else:  # the bound is not yet sharp enough to tell
        at_worst = int(np.argmax(widths[widths > _NARROW]))
    user = int(users[candidates[at_worst]])
    phase = float(np.angle(reach[candidates[at_worst]]))
    parts = sectors[user].halves(phase) if user in sectors else thirds(phase)
    return [Node(role, value, sectors | {user: part}) for part in parts]
