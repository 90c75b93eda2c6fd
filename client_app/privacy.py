"""What a device does to its update before it leaves: the Gaussian mechanism.

The update d is clipped to the norm C and, on a digital uplink, sent with noise on every entry::

    d min(1, C / |d|) + N(0, (z C)^2 I)

(Dwork and Roth 2014, appendix A; clipping as in McMahan et al. 2018, arXiv 1710.06963). Over the air the
noise is the receiver's (arXiv 2510.23463), and the device only clips. Computed in float64; that such noise is
not quite Gaussian (Mironov 2012) is not accounted for.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


def privatised(update: Vector, clip_norm: float, deviation: float, rng: np.random.Generator | None) -> Vector:
    """Return what is sent of an update.

    Args:
        update: float32, shape (n,).
        clip_norm: C, positive.
        deviation: z C, of the noise on every entry; 0: none.
        rng: draws it.

    Returns:
        float32, shape (n,).
    """
    exact = update.astype(np.float64)
    norm = float(np.sqrt(np.einsum("i,i->", exact, exact)))
    if norm > clip_norm:
        exact *= clip_norm / norm
    if deviation > 0.0:
        assert rng is not None
        exact += rng.normal(0.0, deviation, exact.size)
    return exact.astype(np.float32)
