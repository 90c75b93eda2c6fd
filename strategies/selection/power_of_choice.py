"""Of some devices drawn at random, those with the largest loss (Cho, Wang and Joshi 2020, arXiv 2010.01243).

The variant rpow-d of the paper: of each device the loss counts that it reported when it took part last, so
that nothing is sent to choose. A device that has never taken part comes first.
"""

from __future__ import annotations

import numpy as np

from strategies.selection import Candidates, Devices


def power_of_choice(
    candidates: Candidates, number: int, rng: np.random.Generator, *, drawn: int | None = None
) -> Devices:
    """Draw devices with chances in proportion to their samples, and take those with the largest loss.

    Args:
        candidates: to choose from.
        number: m.
        rng: draws.
        drawn: d, at least m; None: 2 m.

    Raises:
        ValueError: if `drawn` is below 1.
    """
    if drawn is not None and drawn < 1:
        raise ValueError(f"selection.options.drawn = {drawn}; it must be at least 1")
    size = candidates.devices.size
    d = min(max(number, 2 * number if drawn is None else drawn), size)
    # A device without samples has nothing to learn from; it is drawn only where there are no others.
    weight = np.where(candidates.samples > 0, candidates.samples, 1e-9)
    some = rng.choice(size, d, replace=False, p=weight / weight.sum())
    loss = np.where(np.isnan(candidates.loss), np.inf, candidates.loss)[some]
    return candidates.devices[some[np.argsort(-loss, kind="stable")[:number]]]
