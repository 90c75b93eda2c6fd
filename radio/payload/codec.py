"""Writing and checked reading of payloads."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import BoolArray
from radio.payload.errors import PayloadError
from radio.payload.positions import pack_positions, unpack_positions
from radio.payload.sizes import (
    CRC,
    HEADER,
    HEADER_BYTES,
    PositionCoding,
    checked_bits,
    checked_counts,
    payload_bits,
    position_bytes,
    value_bytes,
)
from radio.payload.values import FloatVector, pack_values, unpack_values

_MAGIC = b"AFUP"
_VERSION = 1


def encode(
    values: ArrayLike,
    mask: ArrayLike,
    *,
    bits: int = 32,
    rng: np.random.Generator | None = None,
    check_finite: bool = True,
) -> bytes:
    """Write the retained weights and their positions.

    Args:
        values: (N,) float32, all weights of the global part; entries outside the mask are not looked at.
        mask: (N,) bool, True where a weight is retained.
        bits: per retained weight; 32 (exact), 16 or 8 (errors in the module text).
        rng: at 8 bits, round stochastically (unbiased) with this generator; default is to the nearest.
        check_finite: False lets NaN and infinities pass at 32 bits, for tests of the receiver.

    Returns:
        The payload, `payload_bits(N, n, bits) / 8` bytes.

    Raises:
        ValueError: if shapes differ, `bits` is unknown, or a retained value is not finite.
    """
    flat, kept_mask = np.asarray(values, dtype=np.float32), np.asarray(mask)
    width = checked_bits(bits)
    if flat.ndim != 1 or kept_mask.shape != flat.shape:
        raise ValueError(f"values has shape {flat.shape}, mask {kept_mask.shape}; both must be (N,)")
    if kept_mask.dtype != np.bool_:
        raise ValueError(f"mask has dtype {kept_mask.dtype}; it must be bool")
    n, kept = checked_counts(flat.size, int(np.count_nonzero(kept_mask)))
    # take() after flatnonzero() is six times as fast as indexing with an irregular mask.
    retained = np.ascontiguousarray(flat) if kept == n else flat.take(np.flatnonzero(kept_mask))
    if (check_finite or width != 32) and not np.isfinite(retained).all():
        bad = int(np.flatnonzero(kept_mask)[np.argmin(np.isfinite(retained))])
        raise ValueError(f"values[{bad}] = {flat[bad]} is not finite")

    scale, parts = pack_values(retained, width, rng)
    coding, _ = position_bytes(n, kept)
    parts += pack_positions(kept_mask, coding)
    buffers = [part.data.cast("B") if part.size else b"" for part in parts]
    header = HEADER.pack(_MAGIC, _VERSION, width, coding, 0, n, kept, scale, 0)
    return b"".join([header, CRC.pack(_checksum(header, buffers)), *buffers])


@dataclass(frozen=True, eq=False)
class Payload:
    """A checked payload.

    Attributes:
        values: (n,) float32 retained weights in the order of their positions; at 32 bits a read-only view
            of the received bytes.
        num_weights: N.
        bits: per retained weight.
        coding: of the positions.
        num_bytes: length on the wire.
    """

    values: FloatVector
    num_weights: int
    bits: int
    coding: PositionCoding
    num_bytes: int
    _positions: NDArray[np.uint8] | NDArray[np.int64]

    @property
    def num_kept(self) -> int:
        """Retained weights."""
        return int(self.values.size)

    @cached_property
    def mask(self) -> BoolArray:
        """(N,) bool, True where a weight was retained."""
        if self.coding == PositionCoding.NONE:
            return np.full(self.num_weights, self.num_kept > 0)
        if self.coding == PositionCoding.BITMAP:
            bitmap = self._positions.view(np.uint8)
            return np.unpackbits(bitmap, count=self.num_weights, bitorder="little").view(np.bool_)
        listed_kept = self.coding in (PositionCoding.KEPT_8, PositionCoding.KEPT_16)
        mask = np.full(self.num_weights, not listed_kept)
        mask[self._positions] = listed_kept
        return mask

    @cached_property
    def index(self) -> NDArray[np.intp]:
        """(n,) positions of the retained weights, increasing."""
        if self.coding in (PositionCoding.KEPT_8, PositionCoding.KEPT_16):
            return self._positions.astype(np.intp, copy=False)
        return np.flatnonzero(self.mask)

    def dense(self, fill: ArrayLike = 0.0) -> FloatVector:
        """Return (N,) float32 with `fill` (a number, or (N,)) where weights were pruned."""
        out = np.empty(self.num_weights, dtype=np.float32)
        out[...] = fill
        self.decode_into(out)
        return out

    def decode_into(self, out: FloatVector) -> None:
        """Overwrite the retained entries of `out`, (N,); leave the others as they are."""
        if self.coding == PositionCoding.NONE:
            if self.num_kept:
                out[...] = self.values
        else:
            out[self.index] = self.values

    def add_to(
        self, total: NDArray[np.floating], weight_sum: NDArray[np.floating], weight: float = 1.0
    ) -> None:
        """Add `weight` times the retained weights, and `weight` where there are any: two sums per weight.

        After all devices, total / weight_sum is the average over those that retained each weight
        (Liu et al. 2024, eq. (26)); where weight_sum is 0 no device did.

        Args:
            total: (N,) running sum of weighted values; float64 keeps the order of arrival out of the result
                to 1e-16.
            weight_sum: (N,) running sum of weights.
            weight: of this device.
        """
        values = self.values if weight == 1.0 else self.values * total.dtype.type(weight)
        if self.coding == PositionCoding.NONE:
            if self.num_kept:
                total += values
                weight_sum += weight
            return
        total[self.index] += values
        if self.coding != PositionCoding.BITMAP:
            weight_sum[self.index] += weight
        elif weight == 1.0:
            weight_sum += self.mask
        else:
            weight_sum += self.mask * weight_sum.dtype.type(weight)


def decode(
    payload: bytes | bytearray | memoryview, *, num_weights: int, max_kept: int | None = None
) -> Payload:
    """Check and open a payload.

    Args:
        payload: the bytes received. At 32 bits the result refers to them: do not change them afterwards.
        num_weights: N that the receiver expects.
        max_kept: most retained weights allowed, e.g. what the plan gave this device.

    Raises:
        PayloadError: if anything about the bytes is not exactly as `encode` writes it.
    """
    raw = np.frombuffer(payload, dtype=np.uint8)
    if raw.size < HEADER_BYTES:
        raise PayloadError(f"payload has {raw.size} bytes; the header alone has {HEADER_BYTES} (truncated?)")
    width, coding, n, kept, scale = _read_header(raw)
    if n != num_weights:
        raise PayloadError(f"payload is for {n} weights; expected {num_weights}")
    if kept > n or (max_kept is not None and kept > max_kept):
        raise PayloadError(
            f"payload keeps {kept} weights; the limit is {n if max_kept is None else min(n, max_kept)}"
        )
    expected = payload_bits(n, kept, width) // 8
    if raw.size != expected:
        raise PayloadError(
            f"payload has {raw.size} bytes; {kept} of {n} weights at {width} bits make {expected}"
        )
    if coding != position_bytes(n, kept)[0]:
        raise PayloadError(f"position coding {coding} is not the one for {kept} of {n} weights")
    body = raw[HEADER_BYTES:]
    stored = CRC.unpack_from(raw.data, HEADER.size)[0]
    if stored != _checksum(raw[: HEADER.size].data, [body.data] if body.size else []):
        raise PayloadError("checksum does not match: the payload was damaged")
    split = value_bytes(kept, width)
    values = unpack_values(body[:split], kept, width, scale)
    positions = unpack_positions(body[split:], PositionCoding(coding), n, kept)
    return Payload(values, n, width, PositionCoding(coding), int(raw.size), positions)


def _read_header(raw: NDArray[np.uint8]) -> tuple[int, int, int, int, float]:
    magic, version, width, coding, reserved, n, kept, scale, spare = HEADER.unpack_from(raw.data)
    if magic != _MAGIC:
        raise PayloadError(f"payload starts with {magic!r}; expected {_MAGIC!r}")
    if version != _VERSION:
        raise PayloadError(f"payload version {version} is unknown; expected {_VERSION}")
    if width not in (8, 16, 32):
        raise PayloadError(f"payload has {width} bits per weight; valid: 8, 16, 32")
    if coding not in PositionCoding.__members__.values():
        raise PayloadError(f"position coding {coding} is unknown")
    if reserved or spare:
        raise PayloadError("reserved header fields are not zero")
    if width == 16 and kept:
        fine = bool(np.isfinite(scale)) and scale > 0 and float(np.frexp(scale)[0]) == 0.5
        if not fine:
            raise PayloadError(f"scale = {scale} is not a power of two")
    elif scale != 1.0:
        raise PayloadError(f"scale = {scale}; must be 1 at {width} bits and {kept} weights")
    return width, coding, n, kept, scale


def _checksum(header: bytes | memoryview, buffers: list[bytes | memoryview]) -> int:
    crc = zlib.crc32(header)
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    return crc
