"""The values of each weight in order, for what is decided by rank."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranked(
    uploads: npt.NDArray[np.float32], masks: npt.NDArray[np.bool_], weights: Floats
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Return each weight's values in ascending order, with the weights of their devices.

    The order is total (by value, then by device weight), so that what is summed along it depends on no order
    of arrival, bit for bit.

    Args:
        uploads: float32 (K, N).
        masks: bool (K, N).
        weights: (K,) of the devices.

    Returns:
        Values (K, N) and device weights (K, N), the keepers first, then zeros; number of keepers (N,).
    """
    keepers = masks.sum(0, dtype=np.int64)
    values = np.where(masks, uploads, np.float32(np.inf))
    values += np.float32(0.0)  # -0.0 and 0.0 are one value
    if (weights == weights[0]).all():
        values.sort(axis=0)
        factors = np.full(values.shape, weights[0])
    else:
        factors = np.broadcast_to(weights[:, None], values.shape)
        order = np.lexsort((factors, values), axis=0)
        values, factors = np.take_along_axis(values, order, 0), np.take_along_axis(factors, order, 0)
    kept = np.arange(len(values))[:, None] < keepers
    return np.where(kept, values, 0.0).astype(np.float64), np.where(kept, factors, 0.0), keepers
