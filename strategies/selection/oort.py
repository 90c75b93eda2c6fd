"""Devices from which much is to be learned in little time, after Oort (Lai et al. 2021, arXiv 2010.06081).

The utility of a device (eq. (2) and Algorithm 1 there) is

    |B| loss (T / t)^penalty where t > T, with a bonus sqrt(0.1 ln R / L) for one not heard of for long,

with |B| its samples, t its last latency, T the latency threshold, R the round and L that of its last upload.
In place of the root mean square of the samples' losses, which devices do not report, stands their mean. The
bonus is relative to the largest utility, as the scales of losses differ.
"""

from __future__ import annotations

import numpy as np

from strategies.selection import Candidates, Devices, Numbers


def oort(
    candidates: Candidates,
    number: int,
    rng: np.random.Generator,
    *,
    exploration: float = 0.9,
    decay: float = 0.98,
    least_exploration: float = 0.2,
    cutoff: float = 0.95,
    penalty: float = 2.0,
) -> Devices:
    """Take some devices that never took part, and the others by chance in proportion to their utility.

    Lai et al. 2021, Algorithm 1.

    Args:
        candidates: to choose from.
        number: m.
        rng: draws.
        exploration: share of new devices in the first round, in [0, 1].
        decay: by which it falls from round to round, in (0, 1].
        least_exploration: below which it does not fall, in [0, 1].
        cutoff: devices count whose utility is at least this share of the m-th largest, in (0, 1].
        penalty: exponent for devices slower than the threshold, not negative.

    Raises:
        ValueError: if an option is out of range.
    """
    shares = {"exploration": exploration, "least_exploration": least_exploration}
    for name, given in {**shares, "decay": decay, "cutoff": cutoff}.items():
        if not 0 <= given <= 1 or (given == 0 and name not in shares):
            raise ValueError(f"selection.options.{name} = {given}; it must be a share, from 0 to 1")
    if penalty < 0:
        raise ValueError(f"selection.options.penalty = {penalty}; it must not be negative")
    new = np.flatnonzero(np.isnan(candidates.loss))
    known = np.flatnonzero(~np.isnan(candidates.loss))
    share = max(least_exploration, exploration * decay ** (candidates.round - 1))
    explored = min(new.size, max(round(share * number), number - known.size))
    fresh = rng.choice(new, explored, replace=False)
    exploited = number - explored
    value = utility(candidates, penalty)[known]
    chosen = np.empty(0, np.int64)
    if exploited:
        bar = cutoff * np.sort(value)[-exploited]
        eligible = np.flatnonzero(value >= bar)
        chance = value[eligible] + 1e-12 * max(1.0, float(value.max()))  # a utility of 0 has a chance, too
        chosen = known[rng.choice(eligible, exploited, replace=False, p=chance / chance.sum())]
    return np.asarray(candidates.devices[np.concatenate([fresh, chosen])], np.int64)


def utility(candidates: Candidates, penalty: float) -> Numbers:
    """Return the utility of each device, (n,); NaN where its loss is not known."""
    statistical = candidates.samples * np.maximum(candidates.loss, 0.0)
    last = np.maximum(candidates.last_round, 1)
    bonus = np.sqrt(0.1 * np.log(max(candidates.round, 1)) / last)
    known = statistical[~np.isnan(statistical)]
    scale = float(known.max()) if known.size else 1.0
    slow = np.isfinite(candidates.latency) & (candidates.latency > candidates.threshold)
    factor = np.where(slow, (candidates.threshold / np.where(slow, candidates.latency, 1.0)) ** penalty, 1.0)
    return np.asarray((statistical + scale * bonus) * factor)
