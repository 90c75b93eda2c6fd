"""How far one device may move the global part in a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


class UploadError(ValueError):
    """An upload that cannot be used; costs its device the round."""


@dataclass(frozen=True)
class NormLimit:
    """A limit on the Euclidean norm of a device's update over the weights that it kept.

    Attributes:
        norm: the limit; infinite: none.
        action: what happens above it: the upload is rejected, or its update is scaled down to the limit.

    Raises:
        ValueError: if the limit is not positive.
    """

    norm: float = math.inf
    action: Literal["reject", "clip"] = "reject"

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise ValueError(f"norm = {self.norm}; the limit of an update must be positive")
        if self.action not in ("reject", "clip"):
            raise ValueError(f"action = {self.action!r}; valid: reject, clip")

    def apply(self, update: Vector) -> tuple[Vector, float]:
        """Return the update, scaled down if it must be, and its norm before; a rough one far below the limit.

        Args:
            update: float32, shape (n,).

        Raises:
            UploadError: if a value is not finite, or the norm is above a limit that rejects.
        """
        rough = float(np.einsum("i,i->", update, update)) ** 0.5  # in float32: a fifth of the time
        if math.isfinite(rough) and rough <= 0.5 * self.norm:
            return update, rough
        # In float64: the squares of finite float32 values cannot overflow there. Summed by NumPy itself: BLAS
        # wakes a second thread for a dot product of this length, and waits for it where cores are busy.
        norm = math.sqrt(np.square(update, dtype=np.float64).sum())
        if not math.isfinite(norm):
            raise UploadError("the update holds values that are not finite")
        if norm <= self.norm:
            return update, norm
        if self.action == "reject":
            raise UploadError(
                f"the update has norm {norm:.3g}, above fleet.upload_norm_limit = {self.norm:g}"
            )
        return (update * (self.norm / norm)).astype(np.float32), norm
