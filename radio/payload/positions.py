"""The positions of the retained weights as bytes: a bitmap or lists of indices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from radio.arrays import BoolArray
from radio.payload.errors import PayloadError
from radio.payload.sizes import PositionCoding, blocks_of


def pack_positions(mask: BoolArray, coding: PositionCoding) -> list[NDArray[np.generic]]:
    """Return the arrays that make up the positions of a mask."""
    if coding == PositionCoding.NONE:
        return []
    if coding == PositionCoding.BITMAP:
        return [np.packbits(mask, bitorder="little")]
    low_bits, count_type, low_type = _index_format(coding)
    listed = mask if coding in (PositionCoding.KEPT_16, PositionCoding.KEPT_8) else ~mask
    index = np.flatnonzero(listed)
    counts = np.bincount(index >> low_bits, minlength=blocks_of(mask.size, 1 << low_bits))
    return [counts.astype(count_type), (index & ((1 << low_bits) - 1)).astype(low_type)]


def unpack_positions(
    body: NDArray[np.uint8], coding: PositionCoding, n: int, kept: int
) -> NDArray[np.uint8] | NDArray[np.int64]:
    """Return the bitmap or the indices; raises a PayloadError for what `pack_positions` does not write."""
    if coding == PositionCoding.NONE:
        return body
    if coding == PositionCoding.BITMAP:
        if n % 8 and int(body[-1]) >> (n % 8):
            raise PayloadError("padding bits of the bitmap are not zero")
        whole = body.size - body.size % 8
        marked = int(np.bitwise_count(body[whole:]).sum(dtype=np.int64))
        marked += int(np.bitwise_count(body[:whole].view(np.uint64)).sum(dtype=np.int64))
        if marked != kept:
            raise PayloadError(f"bitmap marks {marked} weights; the header says {kept}")
        return body
    low_bits, count_type, low_type = _index_format(coding)
    listed = kept if coding in (PositionCoding.KEPT_16, PositionCoding.KEPT_8) else n - kept
    blocks = blocks_of(n, 1 << low_bits)
    split = blocks * np.dtype(count_type).itemsize
    counts = body[:split].view(count_type).astype(np.int64)
    if int(counts.sum()) != listed:
        raise PayloadError(f"index counts sum to {int(counts.sum())}; the header says {listed}")
    index = np.repeat(np.arange(blocks, dtype=np.int64) << low_bits, counts)
    index += body[split:].view(low_type)
    if bool((np.diff(index) <= 0).any()):
        raise PayloadError("indices are not strictly increasing")
    if int(index[-1]) >= n:
        raise PayloadError(f"index {int(index[-1])} is out of range for {n} weights")
    return index


def _index_format(coding: PositionCoding) -> tuple[int, str, str]:
    """Return the number of low bits, and the types of the counts and of the low parts."""
    if coding in (PositionCoding.KEPT_16, PositionCoding.PRUNED_16):
        return 16, "<u4", "<u2"
    return 8, "<u2", "<u1"
