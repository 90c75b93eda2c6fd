"""`multistart`: ours. Many beams climb together, the best are polished exactly, then users are swapped.

The semidefinite bound shows that the beam of a given set is rarely the loss: the choice of users is. So the
search runs over beams, for which the best users are known exactly (the M strongest):

1. starts: matched filters, principal beams of greedily grown sets under three rules, random beams;
2. all climb the M-th largest gain together (`radio.beamforming.ascent.ascend`);
3. the best alternate exact convex steps and user choice until the set stays; equal sets are met once;
4. the best local optima are improved by swaps: leave a user out, re-aim the beam, let another in;
5. the beam of the winner is found by the chosen beamformer, from the incumbent.

The result of `policy_greedy` is one of the incumbents. Users whose ||h_k||^2 is below the incumbent's gain
can be in no better set and are left out of the search: that is lossless.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from radio.beamforming.ascent import ascend, polish
from radio.beamforming.problem import Complex, Real, gains, matched_filters, principal_beam, random_beams
from radio.scheduling.greedy import Rule, candidate_sets, policy_greedy
from radio.scheduling.problem import BeamSolver, Selection, Users, best_for_beam, strongest
from radio.scheduling.registry import policy

_RULES: tuple[Rule, ...] = ("min", "sum", "product")


@dataclass
class _Point:
    gain: float
    users: Users
    beam: Complex


@dataclass
class _Search:
    """Local search over users; remembers the sets it has solved."""

    channels: Complex
    count: int
    seen: dict[bytes, _Point] = field(default_factory=dict)
    solved: int = 0

    def settle(self, beam: Complex, steps: int, tolerance: float) -> _Point:
        """Alternate users and polish from a beam until the set repeats."""
        best: _Point | None = None
        while True:
            users = best_for_beam(self.channels, beam, self.count)
            key = users.tobytes()
            if best is not None and np.array_equal(users, best.users):
                return best
            known = self.seen.get(key)
            if known is not None:
                return known if best is None or known.gain > best.gain else best
            beam, gain, _ = polish(self.channels[users], beam, steps=steps, tolerance=tolerance)
            self.solved += 1
            point = _Point(gain, users, beam)
            self.seen[key] = point
            if best is not None and gain <= best.gain:
                return best
            best = point

    def improve(self, point: _Point, partners: int, budget: int) -> _Point:
        """Swap one user at a time, taking the first improvement, until none is left."""
        tried: set[bytes] = set()
        stop = self.solved + budget
        since = 0
        while since < self.count and self.solved < stop:
            order = point.users[np.argsort(gains(self.channels[point.users], point.beam), kind="stable")]
            for leaver in order:
                since += 1
                better = self._without(point, int(leaver), partners, tried)
                if better is not None:
                    point, since = better, 0
                    break
                if since >= self.count or self.solved >= stop:
                    break
        return point

    def _without(self, point: _Point, leaver: int, partners: int, tried: set[bytes]) -> _Point | None:
        rest = point.users[point.users != leaver]
        if len(rest):
            beam, freed, _ = polish(self.channels[rest], point.beam, steps=4, tolerance=1e-3)
            self.solved += 1
            if freed <= point.gain * (1.0 + 1e-6):  # leaving this user out frees nothing
                return None
        else:
            beam = point.beam
        power = gains(self.channels, beam)
        power[point.users] = -1.0
        joiners = strongest(power, min(partners, len(power)))
        for joiner in joiners[np.argsort(-power[joiners], kind="stable")]:
            if power[joiner] < 0.0:
                return None
            users = np.sort(np.append(rest, joiner))
            key = users.tobytes()
            if key in tried:
                continue
            tried.add(key)
            chosen = self.channels[users]
            trial, gain, _ = polish(chosen, beam, steps=3, tolerance=1e-3)
            self.solved += 1
            if gain > 0.9 * point.gain:
                trial, gain, _ = polish(chosen, trial, steps=12, tolerance=1e-4)
            if gain > point.gain * (1.0 + 1e-6):
                settled = self.settle(trial, 12, 1e-4)
                own = _Point(gain, users, trial)
                return settled if settled.gain > gain else own
        return None


@policy("multistart")
def multistart(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    random_starts: int = 200,
    matched_starts: int = 256,
    candidates: int = 10,
    climb: int = 15,
    settled: int = 40,
    improved: int = 2,
    partners: int = 2,
    budget: int = 300,
) -> Selection:
    """Search beams for the joint optimum, then swap users.

    Args:
        channels: (K, N), checked.
        num_selected: M.
        beamformer: solver of the winner's beam and of the `policy_greedy` incumbent.
        rng: draws the random starts.
        random_starts: random beams to start from.
        matched_starts: matched filters of at most this many users, the strongest.
        candidates: seed users per growth rule.
        climb: ascent steps of the joint climb.
        settled: beams alternated to a fixed set after the climb.
        improved: local optima improved by swaps.
        partners: users tried in place of one left out.
        budget: convex solves per improved optimum.
    """
    norms: Real = (channels.real**2 + channels.imag**2).sum(axis=1)
    # A power of two: the incumbent is then bit for bit what `policy_greedy` finds in the caller's units.
    scale = float(2.0 ** np.round(0.5 * np.log2(norms.mean())))
    scaled = channels / scale
    norms = norms / scale**2
    users = policy_greedy(scaled, num_selected, beamformer=beamformer, rng=rng, candidates=candidates).users
    first = beamformer(scaled[users])
    incumbent = _Point(first.min_gain, users, first.beam)
    if len(channels) == num_selected:
        return Selection(users, first.beam, iterations=1)

    keep = np.flatnonzero(norms >= incumbent.gain * (1.0 - 1e-9))  # holds the incumbent's users themselves
    pool = scaled[keep]
    sets = np.concatenate([candidate_sets(pool, num_selected, candidates, rule) for rule in _RULES])
    sets = np.unique(np.sort(sets, axis=1), axis=0)
    strong = strongest(norms[keep], min(matched_starts, len(keep)))
    starts = np.concatenate(
        [
            incumbent.beam[None],
            np.stack([principal_beam(pool[chosen]) for chosen in sets]),
            matched_filters(pool[strong]),
            random_beams(rng, random_starts, channels.shape[1]),
        ]
    )
    beams, values = ascend(
        pool, starts, count=num_selected, iterations=climb, growth=1.35 ** (15.0 / max(climb, 1))
    )

    search = _Search(pool, num_selected)
    points = [search.settle(incumbent.beam, 12, 1e-4)]
    for index in np.argsort(-values, kind="stable")[:settled]:
        points.append(search.settle(beams[index], 12, 1e-4))
    points.sort(key=lambda point: -point.gain)
    best = points[0]
    started: set[bytes] = set()
    for point in points:
        if len(started) >= improved:
            break
        if point.users.tobytes() in started:
            continue
        started.add(point.users.tobytes())
        reached = search.improve(point, partners, budget)
        if reached.gain > best.gain:
            best = reached
    final = beamformer(pool[best.users], initial=best.beam)
    if final.min_gain < incumbent.gain:
        return Selection(incumbent.users, incumbent.beam, iterations=search.solved)
    return Selection(keep[best.users], final.beam, iterations=search.solved)
