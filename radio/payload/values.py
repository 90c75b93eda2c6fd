"""The retained values as bytes: float32, scaled float16, or int8 codes in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.payload.errors import PayloadError
from radio.payload.sizes import BLOCK, blocks_of

FloatVector = NDArray[np.float32]

_LEVELS = 127


def pack_values(
    retained: FloatVector, width: int, rng: np.random.Generator | None
) -> tuple[float, list[NDArray[np.generic]]]:
    """Return the scale for the header, and the arrays that make up the values."""
    if width == 32 or retained.size == 0:
        return 1.0, [retained.astype("<f4", copy=False)]
    if width == 16:
        exponent = int(np.frexp(np.abs(retained).max())[1]) - 15
        exponent = min(max(exponent, -126), 127)  # the scale itself must be a normal float32
        return float(2.0**exponent), [np.ldexp(retained, -exponent).astype("<f2")]
    padded = np.full(blocks_of(retained.size, BLOCK) * BLOCK, retained[-1], dtype=np.float32)
    padded[: retained.size] = retained
    block = padded.reshape(-1, BLOCK)
    low, high = block.min(axis=1, keepdims=True), block.max(axis=1, keepdims=True)
    centre = low * np.float32(0.5) + high * np.float32(0.5)  # halved first: the sum may overflow
    half = np.maximum(high - centre, centre - low)
    step = half / np.float32(_LEVELS)
    codes = block - centre
    np.divide(codes, step, out=codes, where=step > 0)
    codes[step[:, 0] == 0] = 0
    if rng is None:
        np.rint(codes, out=codes)
    else:
        codes += rng.random(codes.shape, dtype=np.float32)
        np.floor(codes, out=codes)
    np.clip(codes, -_LEVELS, _LEVELS, out=codes)
    scales = np.concatenate([centre, step], axis=1).astype("<f4", copy=False)
    return 1.0, [scales, codes.astype(np.int8).reshape(-1)[: retained.size]]


def unpack_values(body: NDArray[np.uint8], kept: int, width: int, scale: float) -> FloatVector:
    """Return the (kept,) values; raises a PayloadError for what `pack_values` does not write."""
    if width == 32:
        values = body.view("<f4")
    elif width == 16:
        values = body.view("<f2").astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            values *= np.float32(scale)
    else:
        blocks = blocks_of(kept, BLOCK)
        scales = body[: 8 * blocks].view("<f4").reshape(blocks, 2)
        codes = body[8 * blocks :].view(np.int8)
        if not np.isfinite(scales).all() or bool((scales[:, 1] < 0).any()):
            raise PayloadError("a block scale is negative or not finite")
        if bool((codes == -128).any()):
            raise PayloadError("code -128 does not exist")
        repeat = np.minimum(BLOCK, kept - BLOCK * np.arange(blocks))
        with np.errstate(over="ignore"):
            values = codes * np.repeat(scales[:, 1], repeat)
            values += np.repeat(scales[:, 0], repeat)
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        raise PayloadError(f"retained value {bad} = {values[bad]} is not finite")
    result: FloatVector = values
    return result
