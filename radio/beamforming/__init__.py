"""Receive beamforming for a fixed set of users: `beamform` is the only verb, a method is one file.

| method | what it is | when |
|---|---|---|
| `fast` | batched many-start ascent, exact polish of the best | always; milliseconds |
| `sca` | convex approximation from a few starts | to check `fast` |
| `dc` | difference of convex functions with bisection (arXiv 2508.00341, Algorithm 1), cvxpy | reference |
| `sdr` | semidefinite relaxation with random rounding, cvxpy | reference |

A further method is ``"package.module:function"`` with the signature of `radio.beamforming.fast.solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from radio.beamforming.bound import joint_upper_bound, set_upper_bound
from radio.beamforming.problem import Beam, canonical_phase, check_channels, gains

__all__ = [
    "METHODS",
    "Beam",
    "beamform",
    "canonical_phase",
    "check_channels",
    "gains",
    "joint_upper_bound",
    "set_upper_bound",
]

METHODS: dict[str, str] = {
    "fast": "radio.beamforming.fast:solve",
    "sca": "radio.beamforming.sca:solve",
    "dc": "radio.beamforming.dc:solve",
    "sdr": "radio.beamforming.sdr:solve",
}


def resolve(method: str) -> Callable[..., Beam]:
    """Return the solver called `method`; cvxpy is imported only when a method that needs it is.

    Raises:
        ValueError: if the name is neither known nor an importable ``"package.module:function"``.
    """
    target = METHODS.get(method, method)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute) if attribute else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"beamforming method {method!r} cannot be loaded: {error}") from error
    if not callable(found):
        raise ValueError(
            f"beamforming method {method!r} is unknown; "
            f"valid: {', '.join(METHODS)}, or 'package.module:function'"
        )
    solver: Callable[..., Beam] = found
    return solver


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
        method: one of `METHODS`, or ``"package.module:function"``.
        upper_bound: also certify: the semidefinite bound of this set (any method).
        rng: draws starting beams; None: a fixed seed, so that equal input gives equal output.
        options: passed to the method, for example ``initial`` (a beam (N,) that the result is never worse
            than) or ``starts``.

    Raises:
        ValueError: for N = 0, M = 0, a non-finite or zero channel, an unknown method.
    """
    checked = check_channels(channels)
    solver = resolve(method)
    found = solver(checked, rng=np.random.default_rng(0) if rng is None else rng, **options)
    if upper_bound and found.upper_bound is None:
        found = replace(found, upper_bound=max(set_upper_bound(checked), found.min_gain))
    return found
