"""Devices in chains: in each, a device has all merits of the next one.

Where one device gains from any share at least what another does, the other need not be served before it: the
two could change places. Of a chain only the number that is served is to be decided.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from radio.arrays import FloatArray


def chains_of(devices: NDArray[np.intp], merits: FloatArray | None) -> Iterator[NDArray[np.intp]]:
    """Yield the devices in chains, the best first: each goes below the first chain's last that is above it.

    Args:
        devices: (n,) indices.
        merits: (n, M) of these devices; one is above another if all of its are at least as large. None: no
            two can be compared, and each is a chain of its own.
    """
    if merits is None or not devices.size:
        yield from devices[:, np.newaxis]
        return
    order = np.lexsort(-merits.T)  # nobody is below a later one; of equals the first comes first
    devices, merits = devices[order], merits[order]
    if (merits[1:] <= merits[:-1]).all():
        yield devices
        return
    new = np.flatnonzero(np.append(True, (merits[1:] != merits[:-1]).any(axis=1)))
    lowest, chains = np.empty((0, merits.shape[1])), list[list[NDArray[np.intp]]]()
    for start, end in itertools.pairwise([*new.tolist(), devices.size]):
        above = np.flatnonzero((lowest >= merits[start]).all(axis=1))
        if above.size:
            chains[above[0]].append(devices[start:end])
            lowest[above[0]] = merits[start]
        else:
            chains.append([devices[start:end]])
            lowest = np.concatenate([lowest, merits[start : start + 1]])
    yield from map(np.concatenate, chains)
