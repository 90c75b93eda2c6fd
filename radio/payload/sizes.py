"""How many bits an upload takes: functions of the numbers of weights alone."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Literal

from radio.arrays import count

Bits = Literal[8, 16, 32]

HEADER = struct.Struct("<4sBBBBIIfI")  # without the checksum that follows it
CRC = struct.Struct("<I")
HEADER_BYTES = HEADER.size + CRC.size
BLOCK = 2048  # values that share a centre and a step at 8 bits
SCALE_BYTES = 8  # of that centre and step
_MAX_WEIGHTS = 2**32 - 1


class PositionCoding(IntEnum):
    """How the positions of the retained weights are written."""

    NONE = 0
    BITMAP = 1
    KEPT_16 = 2
    KEPT_8 = 3
    PRUNED_16 = 4
    PRUNED_8 = 5


def header_bits() -> int:
    """Return the size of the header in bits."""
    return 8 * HEADER_BYTES


def payload_bits(num_weights: int, num_kept: int, bits: int = 32) -> int:
    """Return the exact size in bits of an encoded payload: 8 * len(encode(...)).

    Args:
        num_weights: N.
        num_kept: retained weights, 0..N.
        bits: per retained weight; 32, 16 or 8.

    Raises:
        ValueError: if an argument is outside its range.
    """
    n, kept = checked_counts(num_weights, num_kept)
    return 8 * (HEADER_BYTES + value_bytes(kept, checked_bits(bits)) + position_bytes(n, kept)[1])


def value_bits(num_kept: int, bits: int = 32) -> int:
    """Return what the retained values themselves take on the wire, in bits: block scales, but no positions.

    Raises:
        ValueError: if an argument is outside its range.
    """
    return 8 * value_bytes(count("num_kept", num_kept), checked_bits(bits))


def upload_bits(
    num_weights: int, num_kept: int, bits: int = 32, *, vectors: int = 0, positions: bool = True
) -> int:
    """Return what an upload takes on the uplink, in bits; 0 where nothing is kept.

    Args:
        num_weights: N.
        num_kept: retained weights, 0..N.
        bits: per retained weight; 32, 16 or 8.
        vectors: further vectors that are sent for the retained weights, such as control variates; each is a
            payload of its own without positions.
        positions: False leaves out headers and positions, as `value_bits` does.

    Raises:
        ValueError: if an argument is outside its range.
    """
    if num_kept == 0:
        return 0
    if not positions:
        return (1 + vectors) * value_bits(num_kept, bits)
    return payload_bits(num_weights, num_kept, bits) + vectors * payload_bits(num_kept, num_kept, bits)


@dataclass(frozen=True)
class LinearSize:
    """A straight line that no payload exceeds, for solvers that want one.

    Attributes:
        bits_per_weight: slope: `bits`, and at 8 bits a weight's part of the scales of its block.
        overhead_bits: what an upload costs beside: header and bitmap, and at 8 bits a block begun.
    """

    bits_per_weight: float
    overhead_bits: float


def linear_size(num_weights: int, bits: int = 32, *, positions: bool = True, vectors: int = 0) -> LinearSize:
    """Return q and m with upload_bits(N, n, bits) <= q n + m for every n in 1..N.

    An allocation that charges q per retained weight and m per upload never lets a device miss its
    deadline. The line touches the size of bitmap-coded uploads: at every n with 32 and
    16 bits, and at 8 bits where a block has just begun.

    Args:
        num_weights: N.
        bits: per retained weight; 32, 16 or 8.
        positions: False leaves out header and positions, as `value_bits` does.
        vectors: as in `upload_bits`.

    Raises:
        ValueError: if an argument is outside its range.
    """
    n, _ = checked_counts(num_weights, 0)
    width = checked_bits(bits)
    blocks = 8 * SCALE_BYTES if width == 8 else 0
    overhead = (1 + vectors) * header_bits() + 8 * bitmap_bytes(n) if positions else 0
    # ceil(n / 2048) <= (n + 2047) / 2048
    return LinearSize(
        (1 + vectors) * (width + blocks / BLOCK),
        overhead + (1 + vectors) * (blocks * (BLOCK - 1) / BLOCK),
    )


def checked_counts(num_weights: int, num_kept: int) -> tuple[int, int]:
    """Return N and the number kept after checking both."""
    n, kept = count("num_weights", num_weights, 1), count("num_kept", num_kept)
    if n > _MAX_WEIGHTS:
        raise ValueError(f"num_weights = {n} must be <= {_MAX_WEIGHTS}")
    if kept > n:
        raise ValueError(f"num_kept = {kept} must be <= num_weights = {n}")
    return n, kept


def checked_bits(bits: int) -> int:
    """Return the bits per weight after checking them."""
    if bits not in (8, 16, 32):
        raise ValueError(f"bits = {bits} is unknown; valid: 8, 16, 32")
    return int(bits)


def blocks_of(n: int, size: int) -> int:
    """Return how many blocks of a size n entries need."""
    return -(-n // size)


def bitmap_bytes(n: int) -> int:
    """Return the size of a bitmap of n positions."""
    return blocks_of(n, 8)


def value_bytes(kept: int, bits: int) -> int:
    """Return the size of the retained values, with the scales of their blocks."""
    return kept * bits // 8 + (SCALE_BYTES * blocks_of(kept, BLOCK) if bits == 8 else 0)


@lru_cache(maxsize=256)
def position_bytes(n: int, kept: int) -> tuple[PositionCoding, int]:
    """Return the cheapest coding and its size; ties go to the first."""
    if kept in (0, n):
        return PositionCoding.NONE, 0
    fewer_kept = 2 * kept <= n
    listed = kept if fewer_kept else n - kept
    sizes = {
        PositionCoding.BITMAP: bitmap_bytes(n),
        (PositionCoding.KEPT_16 if fewer_kept else PositionCoding.PRUNED_16): 4 * blocks_of(n, 1 << 16)
        + 2 * listed,
        (PositionCoding.KEPT_8 if fewer_kept else PositionCoding.PRUNED_8): 2 * blocks_of(n, 1 << 8) + listed,
    }
    best = min(sizes, key=lambda coding: (sizes[coding], coding))
    return best, sizes[best]
