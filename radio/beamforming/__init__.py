"""Receive beamforming for a fixed set of users: `beamform` is the only verb, a method is one file.

| method | what it is | when |
|---|---|---|
| `fast` | batched many-start ascent, exact polish of the best | always; milliseconds |
| `global` | branch and bound on phases: the optimum with a proof | to know; up to seconds |
| `sca` | convex approximation from a few starts | to check `fast` |
| `dc` | difference of convex functions with bisection (arXiv 2508.00341, Algorithm 1), cvxpy | reference |
| `sdr` | semidefinite relaxation with random rounding, cvxpy | reference |

A further method is ``"package.module:function"`` with the signature of `radio.beamforming.fast.solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from radio.beamforming.bound import joint_upper_bound, set_upper_bound
from radio.beamforming.problem import Beam, canonical_phase, check_channels, gains
from registry import Registry

__all__ = [
    "BEAMFORMERS",
    "Beam",
    "beamform",
    "canonical_phase",
    "check_channels",
    "gains",
    "joint_upper_bound",
    "set_upper_bound",
]

# cvxpy is imported only when a method that needs it is asked for.
BEAMFORMERS: Registry[Callable[..., Beam]] = Registry(
    "beamforming method", key="scheduler.beamformer", given={"rng", "initial"}
)
BEAMFORMERS.register_at(
    fast="radio.beamforming.fast:solve",
    sca="radio.beamforming.sca:solve",
    dc="radio.beamforming.dc:solve",
    sdr="radio.beamforming.sdr:solve",
    **{"global": "radio.beamforming.global_:solve"},  # a word of the language
)


def beamform(
    channels: ArrayLike,
    *,
    method: str = "fast",
    upper_bound: bool = False,
    rng: np.random.Generator | None = None,
    **options: Any,
) -> Beam:
    """Maximise min_k |m^H h_k|^2 over unit beams m (arXiv 2508.00341, eq. (10)).

    Args:
        channels: (M, N) complex; row k is h_k of a selected user, scaled by 1/(phi_k sigma_k) to weigh it.
        method: a name of `BEAMFORMERS`, or ``"package.module:function"``.
        upper_bound: also certify: the semidefinite bound of this set (any method).
        rng: draws starting beams; None: a fixed seed, so that equal input gives equal output.
        options: passed to the method, for example ``initial`` (a beam (N,) that the result is never worse
            than) or ``starts``.

    Raises:
        ValueError: for N = 0, M = 0, a non-finite or zero channel, an unknown method.
    """
    checked = check_channels(channels)
    solver = BEAMFORMERS.find(method)
    found = solver(checked, rng=np.random.default_rng(0) if rng is None else rng, **options)
    if upper_bound and found.upper_bound is None:
        found = replace(found, upper_bound=max(set_upper_bound(checked), found.min_gain))
    return found
