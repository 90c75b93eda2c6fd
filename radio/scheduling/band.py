"""Users and beams for a band whose channels differ over its subcarriers.

All subcarriers have the same users: each sends its whole update. The policy chooses users by the channels in
the middle of each group of subcarriers; every set that it finds gets a beam in each group, and the set
whose weakest user has the largest effective gain over the whole band (`radio.air.zero_forcing`) is taken. The
beam of a group is the max-min beam over some of its subcarriers.
On a flat channel all groups agree on users and beam, bit for bit with `radio.scheduling.schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from radio.air.zero_forcing import effective_gain, project
from radio.beamforming import beamform
from radio.beamforming.problem import Complex
from radio.scheduling.problem import Schedule, Users

_LOOKED_AT = 8  # subcarriers of a group that its beam is solved for

Groups = Sequence[NDArray[np.intp]]


@dataclass(frozen=True)
class BandSchedule:
    """Users and the receive beams of all subcarriers.

    Attributes:
        users: (M,) indices, ascending.
        beam: (F, N), unit norm.
        min_gain: least effective gain of the users, each with equal energy on all subcarriers.
        first: what the policy found in the first group.
    """

    users: Users
    beam: Complex
    min_gain: float
    first: Schedule


def schedule_band(
    middle: Complex,
    respond: Callable[[Users], Complex],
    groups: Groups,
    choose: Callable[[Complex], Schedule],
    *,
    beamformer: str = "fast",
) -> BandSchedule:
    """Choose users, and a receive beam for each group of subcarriers.

    Args:
        middle: (K, G, N) channels in the middle of each group.
        respond: from users to their channels on all subcarriers, (M, F, N).
        groups: subcarriers of each group.
        choose: from channels (K, N) to a schedule; the same for the same channels.
        beamformer: as for `radio.beamforming.beamform`.
    """
    sets: dict[tuple[int, ...], dict[int, Complex]] = {}
    found: list[Schedule] = []
    for group in range(len(groups)):
        channels = np.ascontiguousarray(middle[:, group])
        alike = group > 0 and bool((middle[:, group] == middle[:, 0]).all())
        found.append(found[0] if alike else choose(channels))
        sets.setdefault(tuple(found[-1].users.tolist()), {})[group] = found[-1].beam
    best: BandSchedule | None = None
    for users, beams in sets.items():
        chosen = np.array(users, dtype=np.int64)
        channels = respond(chosen)
        beam = group_beams(channels, groups, beams, method=beamformer)
        seen = project(channels, beam)
        gain = float(effective_gain(seen.real**2 + seen.imag**2).min())
        if best is None or gain > best.min_gain:
            best = BandSchedule(chosen, beam, gain, found[0])
    assert best is not None  # there is a group
    return best


def group_beams(
    channels: Complex,
    groups: Groups,
    known: Mapping[int, Complex],
    *,
    method: str = "fast",
    keep: bool = True,
) -> Complex:
    """Return the beams of all subcarriers, (F, N), one for each group.

    Args:
        channels: (M, F, N) of the users.
        groups: subcarriers of each group.
        known: beams (N,) of groups that have one already, from which the search starts.
        method: as for `radio.beamforming.beamform`.
        keep: whether such a beam stays where a group's channel is flat.
    """
    beam = np.empty(channels.shape[1:], dtype=np.complex128)
    for number, members in enumerate(groups):
        inside, start = channels[:, members], known.get(number)
        flat = bool((inside == inside[:, :1]).all())
        if flat and keep and start is not None:
            beam[members] = start
            continue
        looked_at = 1 if flat else min(_LOOKED_AT, members.size)
        seen = np.linspace(0, members.size - 1, looked_at).round().astype(int)
        rows = np.ascontiguousarray(inside[:, seen]).reshape(-1, channels.shape[2])
        initial: dict[str, Any] = {} if start is None else {"initial": start}
        beam[members] = beamform(rows, method=method, **initial).beam
    return beam
