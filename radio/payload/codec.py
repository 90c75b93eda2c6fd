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


@dataclass(frozen=True, eq=False)
class Packed:
    """An upload as it is sent, without header and checksum, which it gets when it leaves the machine.

    Attributes:
        num_weights: N.
        num_kept: retained weights.
        bits: per retained weight.
        coding: of the positions.
        scale: of the values at 16 bits, else 1.
        body: values and positions as `encode` writes them, uint8; may be a view of the weights themselves.
    """

    num_weights: int
    num_kept: int
    bits: int
    coding: PositionCoding
    scale: float
    body: NDArray[np.uint8]

    def tobytes(self) -> bytes:
        """Return the payload."""
        body = self.body.data
        header = HEADER.pack(
            _MAGIC, _VERSION, self.bits, self.coding, 0, self.num_weights, self.num_kept, self.scale, 0
        )
        return b"".join([header, CRC.pack(_checksum(header, body)), body])


def pack(
    values: ArrayLike,
    mask: ArrayLike,
    *,
    bits: int = 32,
    rng: np.random.Generator | None = None,
    check_finite: bool = True,
) -> Packed:
    """Gather the retained weights and their positions, as `encode` does; all `values` must stay as they are.

    For messages that do not leave the machine: `decode` takes it without writing and reading bytes.
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
    pieces = [np.frombuffer(part.data, np.uint8) for part in parts if part.size]
    body = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.uint8), *pieces])
    return Packed(n, kept, width, coding, scale, body)


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
    return pack(values, mask, bits=bits, rng=rng, check_finite=check_finite).tobytes()


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
    payload: bytes | bytearray | memoryview | NDArray[np.uint8] | Packed,
    *,
    num_weights: int,
    max_kept: int | None = None,
) -> Payload:
    """Check and open a payload.

    Args:
        payload: the bytes received, or what `pack` returned. At 32 bits the result refers to it: do not
            change it afterwards.
        num_weights: N that the receiver expects.
        max_kept: most retained weights allowed, e.g. what the plan gave this device.

    Raises:
        PayloadError: if anything about the bytes is not exactly as `encode` writes it.
    """
    if isinstance(payload, Packed):
        _check(payload, num_weights, max_kept)
        return _opened(payload)
    raw = np.frombuffer(payload, dtype=np.uint8)
    if raw.size < HEADER_BYTES:
        raise PayloadError(f"payload has {raw.size} bytes; the header alone has {HEADER_BYTES} (truncated?)")
    found = _read_header(raw)
    _check(found, num_weights, max_kept)
    stored = CRC.unpack_from(raw.data, HEADER.size)[0]
    if stored != _checksum(raw[: HEADER.size].data, found.body.data):
        raise PayloadError("checksum does not match: the payload was damaged")
    return _opened(found)


def _check(found: Packed, num_weights: int, max_kept: int | None) -> None:
    """Refuse what cannot be of `num_weights` weights.

    Raises:
        PayloadError: if it is another number, or the body has another length or coding than it makes.
    """
    n, kept = found.num_weights, found.num_kept
    if n != num_weights:
        raise PayloadError(f"payload is for {n} weights; expected {num_weights}")
    if kept > n or (max_kept is not None and kept > max_kept):
        raise PayloadError(
            f"payload keeps {kept} weights; the limit is {n if max_kept is None else min(n, max_kept)}"
        )
    size, expected = HEADER_BYTES + found.body.size, payload_bits(n, kept, found.bits) // 8
    if size != expected:
        raise PayloadError(
            f"payload has {size} bytes; {kept} of {n} weights at {found.bits} bits make {expected}"
        )
    if found.coding != position_bytes(n, kept)[0]:
        raise PayloadError(f"position coding {found.coding:d} is not the one for {kept} of {n} weights")


def _opened(found: Packed) -> Payload:
    split = value_bytes(found.num_kept, found.bits)
    values = unpack_values(found.body[:split], found.num_kept, found.bits, found.scale)
    positions = unpack_positions(found.body[split:], found.coding, found.num_weights, found.num_kept)
    size = HEADER_BYTES + found.body.size
    return Payload(values, found.num_weights, found.bits, found.coding, size, positions)


def _read_header(raw: NDArray[np.uint8]) -> Packed:
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
    return Packed(n, kept, width, PositionCoding(coding), scale, raw[HEADER_BYTES:])


def _checksum(header: bytes | memoryview, body: memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(header))
