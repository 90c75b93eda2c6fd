"""One random stream per purpose, so that no result depends on the order in which devices answer.

A stream is keyed by (seed, purpose, *keys), for example ``("batches", round, device)``. Two different
keys give independent streams (NumPy's `SeedSequence` spawning), and the same key always the same one,
in whatever process it is asked for.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Purpose = Literal[
    "init",
    "partition",
    "placement",
    "channel",
    "participation",
    "scheduling",
    "noise",
    "batches",
    "devices",
    "privacy",
]

# The position in this tuple is part of the key: append only, or old runs can no longer be repeated.
_PURPOSES: tuple[str, ...] = get_args(Purpose)


def _sequence(seed: int, purpose: Purpose, keys: tuple[int, ...]) -> np.random.SeedSequence:
    if seed < 0:
        raise ValueError(f"seed = {seed} is negative; a seed is an integer >= 0 (config key: seed)")
    return np.random.SeedSequence(entropy=seed, spawn_key=(_PURPOSES.index(purpose), *keys))


def generator(seed: int, purpose: Purpose, *keys: int) -> np.random.Generator:
    """Return the NumPy generator of one purpose (and round, and device).

    Raises:
        ValueError: if `seed` is negative or `purpose` is unknown.
    """
    return np.random.default_rng(_sequence(seed, purpose, keys))


def torch_seed(seed: int, purpose: Purpose, *keys: int) -> int:
    """Return a 63-bit seed for `torch.Generator.manual_seed`, of the same stream key.

    Raises:
        ValueError: if `seed` is negative or `purpose` is unknown.
    """
    return int(_sequence(seed, purpose, keys).generate_state(1, np.uint64)[0] >> 1)
