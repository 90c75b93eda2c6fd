"""User scheduling with receive beamforming: `schedule` is the only verb, a policy is one function.

| method | what it is |
|---|---|
| `branch_and_bound` | ours: the optimum with a proof, or the gap that is left when it stops |
| `multistart` | ours: many beams climb together, exact polish, user swaps; lowest MSE of the heuristics |
| `enhanced` | greedy growth by products, scored by a short ascent, one alternation; about 10 ms |
| `policy_greedy`, `policy` | arXiv 2508.00341, Algorithm 3 (L = 10 and L = 1) |
| `iterative` | arXiv 2508.00341, Algorithm 2 |
| `subgradient`, `iterative_reweighted` | baselines |
| `random_beamforming`, `random_selection` | lower baselines |
| `brute_force` | every set, small K |
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from radio.beamforming import BEAMFORMERS, joint_upper_bound, set_upper_bound
from radio.beamforming.problem import Beam, Complex, canonical_phase, check_channels, gains
from radio.scheduling import alternating, baselines, branch_and_bound, exact, greedy, multistart
from radio.scheduling.problem import Schedule, Selection, check_num_selected
from radio.scheduling.registry import SCHEDULERS, policy

__all__ = ["SCHEDULERS", "Schedule", "Selection", "policy", "schedule"]

# Importing them registers their policies.
_FAMILIES = (alternating, baselines, branch_and_bound, exact, greedy, multistart)


def schedule(
    channels: ArrayLike,
    num_selected: int,
    *,
    method: str = "multistart",
    beamformer: str = "fast",
    rng: np.random.Generator | None = None,
    upper_bound: bool = False,
    beamformer_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Schedule:
    """Choose users and receive beam: max over |S| = M, ||m|| = 1 of min over S of |m^H h_k|^2.

    This is the problem of arXiv 2508.00341, eqs. (8)-(9).

    Args:
        channels: (K, N) complex; row k is h_k. Scale row k by 1/(phi_k sigma_k) to weigh users.
        num_selected: M.
        method: a name of `SCHEDULERS`, or ``"package.module:function"``.
        beamformer: `radio.beamforming` method that solves the beam of a set.
        rng: random stream; None: a fixed seed, so that equal input gives equal output.
        upper_bound: also bound the joint optimum and the beam problem of the chosen set by semidefinite
            relaxation (not counted in `runtime_s`). `branch_and_bound` bounds the former by itself.
        beamformer_options: passed to the beamformer.
        options: passed to the policy.

    Raises:
        ValueError: for N = 0, M < 1, M > K, a non-finite or zero channel, an unknown method.
    """
    checked = check_channels(channels)
    count = check_num_selected(num_selected, len(checked))
    chosen_policy = SCHEDULERS.select(method, options)
    solver = BEAMFORMERS.find(beamformer)
    stream = np.random.default_rng(0) if rng is None else rng
    seed = int(stream.integers(2**63))
    extra = dict(beamformer_options or {})

    def solve_beam(subset: Complex, *, initial: Complex | None = None) -> Beam:
        # Each solve draws from the same seed: a policy that meets a set again finds the same beam again, and
        # two policies that are given equal streams treat equal sets equally.
        return solver(subset, rng=np.random.default_rng(seed), initial=initial, **extra)

    begin = time.perf_counter()
    found = chosen_policy(checked, count, beamformer=solve_beam, rng=stream, **options)
    if not isinstance(found, Selection):
        found = Selection(np.asarray(found, dtype=np.int64))
    users = np.sort(found.users)
    if len(users) != count or len(np.unique(users)) != count or users[0] < 0 or users[-1] >= len(checked):
        raise ValueError(f"scheduling method {method!r} chose {users.tolist()}: not {count} distinct users")
    beam = solve_beam(checked[users]).beam if found.beam is None else found.beam
    beam = canonical_phase(beam)
    runtime = time.perf_counter() - begin
    gain = float(gains(checked[users], beam).min())
    bounds = [] if found.upper_bound is None else [found.upper_bound]
    if upper_bound:
        bounds.append(joint_upper_bound(checked, count, incumbent=gain))
    return Schedule(
        users=users,
        beam=beam,
        min_gain=gain,
        runtime_s=runtime,
        upper_bound=max(min(bounds), gain) if bounds else None,
        set_upper_bound=max(set_upper_bound(checked[users]), gain) if upper_bound else None,
        method=method,
        status=found.status,
        iterations=found.iterations,
    )
