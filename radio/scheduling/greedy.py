"""`policy`, `policy_greedy` and the preset `enhanced`: sets grown greedily from the strongest users.

Theorem 5.1 of arXiv 2508.00341 bounds the loss of a set by its largest pairwise angle, so a set is grown by
the user of best inner products |h_i^H h_k| with those already in (eqs. (21)-(22)):

* rule "min": largest minimum inner product, the reading of (21) that the theorem asks for (default);
* rules "sum" and "product": ours, same cost, lower MSE.

`policy` grows one set from the strongest user. `policy_greedy` grows L sets from the L strongest users and
keeps the one of best score, a cheap stand-in for its max-min gain; the beam problem is solved once.
Rows of the K x K Gram matrix are formed on demand and for all L sets at once: memory is O(L K).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from radio.arrays import choice
from radio.beamforming.ascent import ascend
from radio.beamforming.problem import Complex, Real, gains, principal_beam
from radio.scheduling.problem import BeamSolver, Selection, Users, best_for_beam, strongest
from radio.scheduling.registry import policy

Rule = Literal["min", "sum", "product"]
Score = Literal["pairwise", "matched", "principal", "mm", "beam"]


def grow_sets(channels: Complex, num_selected: int, seeds: Users, rule: Rule = "min") -> Users:
    """Grow one set per seed user, (L, M) indices in the order of choice (arXiv 2508.00341, eqs. (21)-(22)).

    Ties go to the lower index.

    Raises:
        ValueError: for an unknown rule.
    """
    choice("rule", rule, Rule)
    transposed = np.ascontiguousarray(channels.T)
    count = len(seeds)
    rows = np.arange(count)
    sets = np.empty((count, num_selected), dtype=np.int64)
    sets[:, 0] = seeds
    merit = np.empty(0)
    taken = np.zeros((count, len(channels)), dtype=bool)
    taken[rows, seeds] = True
    for position in range(1, num_selected):
        inner = channels[sets[:, position - 1]].conj() @ transposed
        # Squares order like magnitudes under "min" and "product"; only "sum" needs the root.
        row = inner.real**2
        row += inner.imag**2
        if rule == "sum":
            np.sqrt(row, out=row)
        if position == 1:
            merit = row
        elif rule == "min":
            np.minimum(merit, row, out=merit)
        elif rule == "sum":
            merit += row
        else:
            merit *= row
            merit /= np.maximum(merit.max(axis=1, keepdims=True), 1e-300)  # only the order matters
        merit[taken] = -1.0
        chosen = merit.argmax(axis=1)
        sets[:, position] = chosen
        taken[rows, chosen] = True
    return sets


def score_set(channels: Complex, users: Users, score: Score, beamformer: BeamSolver) -> float:
    """Return the surrogate objective of one set.

    "pairwise": min over i != j of |h_i^H h_j| (the appendix's objective); "matched": the bound of Corollary
    5.2; "principal": min gain of the principal beam; "mm": min gain after a short smooth ascent; "beam": a
    full solve.

    Raises:
        ValueError: for an unknown score.
    """
    chosen = channels[users]
    if score in {"pairwise", "matched"}:
        gram = np.abs(chosen.conj() @ chosen.T)
        if score == "matched":
            return float((gram.min(axis=1) ** 2 / gram.diagonal()).max())
        np.fill_diagonal(gram, np.inf)
        return float(gram.min()) if len(users) > 1 else float(np.linalg.norm(chosen))
    if score == "principal":
        return float(gains(chosen, principal_beam(chosen)).min())
    if score == "mm":
        return float(ascend(chosen, principal_beam(chosen)[None])[1][0])
    choice("score", score, Score)
    return beamformer(chosen).min_gain


def candidate_sets(channels: Complex, num_selected: int, candidates: int, rule: Rule) -> Users:
    """Return the sets grown from the `candidates` users of largest norm, (L, M).

    Raises:
        ValueError: if `candidates` is below 1.
    """
    if candidates < 1:
        raise ValueError(f"candidates = {candidates} must be at least 1")
    norms: Real = (channels.real**2 + channels.imag**2).sum(axis=1)
    top = strongest(norms, min(candidates, len(channels)))
    return grow_sets(channels, num_selected, top[np.argsort(-norms[top], kind="stable")], rule)


@policy("policy_greedy")
def policy_greedy(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    candidates: int = 10,
    rule: Rule = "min",
    score: Score = "pairwise",
) -> Selection:
    """Grow `candidates` sets (the paper's L) and keep the best scored one (Algorithm 3)."""
    del rng  # deterministic
    sets = candidate_sets(channels, num_selected, candidates, rule)
    if len(sets) == 1:
        return Selection(np.sort(sets[0]), iterations=1)
    scores = [score_set(channels, users, score, beamformer) for users in sets]
    return Selection(np.sort(sets[int(np.argmax(scores))]), iterations=len(sets))


@policy("policy")
def policy_single(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    rule: Rule = "min",
) -> Selection:
    """`policy_greedy` with L = 1."""
    return policy_greedy(
        channels, num_selected, beamformer=beamformer, rng=rng, candidates=1, rule=rule, score="pairwise"
    )


@policy("enhanced")
def enhanced(
    channels: Complex,
    num_selected: int,
    *,
    beamformer: BeamSolver,
    rng: np.random.Generator,
    candidates: int = 10,
    rule: Rule = "product",
    score: Score = "mm",
) -> Selection:
    """`policy_greedy` with our rule and score, then one sweep of users-for-the-beam, beam-for-the-users."""
    first = policy_greedy(
        channels, num_selected, beamformer=beamformer, rng=rng, candidates=candidates, rule=rule, score=score
    )
    beam = beamformer(channels[first.users]).beam
    users = best_for_beam(channels, beam, num_selected)
    if not np.array_equal(users, first.users):
        beam = beamformer(channels[users], initial=beam).beam
    return Selection(users, beam, iterations=first.iterations)
