"""Best-first branch and bound over users in or out, and over the phases of those that are in.

A node says of each user whether it is out, free or in, and of some that are in where the phase of h_k^H m
lies (`radio.branching.nodes`). `radio.branching.dual` bounds many nodes at once. A node's relaxed X is also
rounded to a beam, and the best of them polished, so that the incumbent improves on the way.

Pairs of users exclude each other by their closed form (`radio.beamforming.bound.pair_bounds`).

The upper bound of the result is the weakest bound of all nodes that are open or were closed, so that it holds
whenever the search stops.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count as counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from radio.arrays import count as checked_count
from radio.arrays import non_negative
from radio.beamforming.ascent import polish
from radio.beamforming.bound import pair_bounds, worthwhile_users
from radio.beamforming.problem import Complex, gains
from radio.branching.dual import bound
from radio.branching.nodes import FREE, IN, MARGIN, Node, gather, narrow, reachable, split, tighten, top_beams

Status = Literal["proved", "time_limit", "node_limit"]

_BATCH = 64
_POLISHED = 2  # relaxed beams polished per batch
_WORTH = 0.5  # of the incumbent's gain, from which a relaxed beam is polished


@dataclass(frozen=True)
class Progress:
    """Where a search stands.

    Attributes:
        seconds: since its start.
        nodes: bounded so far.
        gain: best minimum gain found.
        upper_bound: no choice exceeds it.
    """

    seconds: float
    nodes: int
    gain: float
    upper_bound: float


@dataclass(frozen=True)
class Found:
    """Result of a search.

    Attributes:
        users: (M,) indices, ascending.
        beam: (N,), unit norm.
        gain: their minimum gain.
        upper_bound: no M users and unit beam exceed it.
        status: "proved" if the bound is within the gap asked for, else the limit that was met.
        nodes: subproblems bounded.
    """

    users: NDArray[np.int64]
    beam: Complex
    gain: float
    upper_bound: float
    status: Status
    nodes: int


class _Search:
    """Open nodes, the incumbent, and the weakest bound of what was closed.

    Channels are scaled so that the first incumbent has a gain of one.
    """

    def __init__(self, channels: Complex, users: NDArray[np.int64], beam: Complex, gap: float) -> None:
        self.scale = float(gains(channels[users], beam).min())
        self.users, self.beam, self.gain = users, beam, 1.0
        self.count, self.gap = len(users), gap
        self.pool = worthwhile_users(channels, self.count, self.scale * (1.0 + gap))
        self.channels = channels[self.pool] / np.sqrt(self.scale)
        self.closed = self.target if len(self.pool) < len(channels) else np.inf
        self.nodes = 0
        self.open: list[tuple[float, int, Node]] = []
        self._order = counter()
        self._met: set[bytes] = set()
        if len(self.pool) >= self.count:
            self.pairs = pair_bounds(self.channels)
            self._push(Node(np.full(len(self.pool), FREE if self.count < len(self.pool) else IN)))

    def _push(self, node: Node) -> None:
        heapq.heappush(self.open, (node.bound, next(self._order), node))

    @property
    def target(self) -> float:
        """Beam power from which a node holds nothing better than the incumbent by more than the gap."""
        return 1.0 / (self.gain * (1.0 + self.gap))

    @property
    def least(self) -> float:
        """Beam power that every choice needs."""
        return min(self.closed, self.open[0][0] if self.open else np.inf)

    def progress(self, seconds: float) -> Progress:
        """Return where the search stands, in the caller's units."""
        upper = max(self.gain, 1.0 / self.least if self.least > 0.0 else np.inf)
        return Progress(seconds, self.nodes, self.gain * self.scale, upper * self.scale)

    def step(self) -> None:
        """Bound and split the open nodes of weakest bound."""
        taken: list[Node] = []
        while self.open and len(taken) < _BATCH and self.open[0][0] < self.target:
            taken.append(heapq.heappop(self.open)[2])
        for cut in (False, True):
            group = [node for node in taken if bool(node.sectors) == cut]
            if group:
                self._expand(group)

    def finished(self) -> bool:
        """Whether no open node can hold anything better; closes those that cannot."""
        if self.open and self.open[0][0] < self.target:
            return False
        self.closed = self.least
        self.open.clear()
        return True

    def _expand(self, nodes: list[Node]) -> None:
        self.nodes += len(nodes)
        target = self.target
        role = np.stack([node.role for node in nodes])
        alive = narrow(role, self.pairs * target > 1.0 + MARGIN, self.count)
        if not alive.all():
            self.closed = min(self.closed, target)
        if not alive.any():
            return
        kept = [node for node, lives in zip(nodes, alive, strict=True) if lives]
        batch = gather(self.channels, kept, role[alive], self.count)
        found = bound(batch.given, target=target)
        found.value = np.maximum(found.value, [node.bound for node in kept])
        values, vectors = top_beams(found)
        self._round(vectors[:, :, -1])
        cut = batch.given.turn.shape[1] > 0
        main = found.beam if cut else vectors[:, :, -1] * np.sqrt(values[:, -1:])
        target = self.target
        over = found.value >= target
        if over.any():
            self.closed = min(self.closed, float(found.value[over].min()))
        most = reachable(batch.given, found, target)
        role, changed = tighten(batch, found, most, target)
        for row in np.flatnonzero(~over):
            if changed[row] and not (role[row] == FREE).any():  # a set is left: bound it before its phases
                self._push(Node(role[row], float(found.value[row]), kept[row].sectors))
                continue
            children = split(batch, int(row), role[row], found, most, main, target)
            for child in children:
                self._push(child)
            if not children:
                self.closed = min(self.closed, float(found.value[row]))

    def _round(self, beams: Complex) -> None:
        """Try beams (B, N) with the users that each suits best."""
        power = np.abs(beams.conj() @ self.channels.T) ** 2
        spare = power.shape[1] - self.count
        chosen = np.argpartition(power, spare - 1, axis=1)[:, spare:] if spare else np.argsort(power, axis=1)
        level = np.take_along_axis(power, chosen, axis=1).min(axis=1)
        tried = 0
        for row in np.argsort(-level, kind="stable"):
            if level[row] < _WORTH * self.gain or tried >= _POLISHED:
                return
            users = np.sort(chosen[row])
            if users.tobytes() in self._met and level[row] <= self.gain:
                continue
            self._met.add(users.tobytes())
            tried += 1
            beam, gain, _ = polish(self.channels[users], beams[row], steps=30, tolerance=1e-8)
            if gain > self.gain:
                self.users, self.beam, self.gain = self.pool[users], beam, gain


def search(
    channels: Complex,
    users: NDArray[np.int64],
    beam: Complex,
    *,
    gap_db: float,
    max_nodes: int,
    time_limit_s: float | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Found:
    """Improve on a first choice until no other is better by more than `gap_db`.

    Args:
        channels: (K, N), checked.
        users: (M,) the first choice; with M = K only the beam is searched.
        beam: (N,), unit norm, of positive gain for them.
        gap_db: distance of bound and gain, in dB, that counts as proved.
        max_nodes: subproblems after which to stop.
        time_limit_s: seconds after which to stop, or None. The result then depends on the machine.
        watch: told where the search stands, before each batch of nodes and at the end.

    Raises:
        ValueError: for a negative gap or time limit, or fewer than one node.
    """
    gap = float(10.0 ** (non_negative("gap_db", gap_db) / 10.0) - 1.0)
    checked_count("max_nodes", max_nodes, 1)
    limit = np.inf if time_limit_s is None else float(non_negative("time_limit_s", time_limit_s))
    begin = time.perf_counter()
    state = _Search(channels, np.sort(users), beam, gap)
    status: Status = "proved"
    while not state.finished():
        seconds = time.perf_counter() - begin
        if watch is not None:
            watch(state.progress(seconds))
        if seconds >= limit or state.nodes >= max_nodes:
            status = "time_limit" if seconds >= limit else "node_limit"
            break
        state.step()
    reached = state.progress(time.perf_counter() - begin)
    if watch is not None:
        watch(reached)
    return Found(state.users, state.beam, reached.gain, reached.upper_bound, status, state.nodes)
