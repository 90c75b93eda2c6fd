"""What a device puts on the uplink: its retained weights and where they belong.

Little-endian layout, every length a function of (N, number kept, bits) alone, so that the bits the
latency model charges are the bits on the wire (`payload_bits`):

    header     28 bytes: magic "AFUP", version, bits per weight, position coding, 0, N, number kept,
               scale (float32), 0 (4 bytes), CRC-32 of everything else
    values     32: float32. 16: float16 of value / scale. 8: for each block of 2048 values a float32
               centre and step, then int8 codes
    positions  the cheapest of five codings:
               none      nothing is pruned, or everything
               bitmap    N bits, padded with zeros to a byte
               index16   a count (uint32) per 65 536 positions, then the low 16 bits of every kept index
               index8    a count (uint16) per 256 positions, then the low 8 bits of every kept index
               the two index codings exist for kept and for pruned positions, whichever are fewer

Errors of the coded values. 32 bits: none. 16: the scale is the power of two that puts the largest
magnitude v_max in [2^14, 2^15), so |error| <= max(2^-11 |v|, 2^-39 v_max). 8: |error| <= range / 508
with the range (max - min) of the block, plus float32 rounding (2^-22 v_max); with stochastic rounding
twice that, but zero in the mean.

`decode` trusts nothing: exactly one byte string is accepted for what it says, every other is refused.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from radio.arrays import BoolArray, count

Bits = Literal[8, 16, 32]
FloatVector = NDArray[np.float32]

_MAGIC = b"AFUP"
_VERSION = 1
_HEADER = struct.Struct("<4sBBBBIIfI")  # without the checksum that follows it
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
_BLOCK = 2048  # values that share a centre and a step at 8 bits
_SCALE_BYTES = 8  # of that centre and step
_LEVELS = 127
_MAX_WEIGHTS = 2**32 - 1


class PayloadError(ValueError):
    """The bytes are not a payload; the text says what is wrong with them."""


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
    return 8 * _HEADER_BYTES


def payload_bits(num_weights: int, num_kept: int, bits: int = 32) -> int:
    """Return the exact size in bits of an encoded payload: 8 * len(encode(...)).

    Args:
        num_weights: N.
        num_kept: retained weights, 0..N.
        bits: per retained weight; 32, 16 or 8.

    Raises:
        ValueError: if an argument is outside its range.
    """
    n, kept = _counts(num_weights, num_kept)
    return 8 * (_HEADER_BYTES + _value_bytes(kept, _checked_bits(bits)) + _position_bytes(n, kept)[1])


def value_bits(num_kept: int, bits: int = 32) -> int:
    """Return what the retained values themselves take on the wire, in bits: block scales, but no positions.

    Raises:
        ValueError: if an argument is outside its range.
    """
    return 8 * _value_bytes(count("num_kept", num_kept), _checked_bits(bits))


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
    n, _ = _counts(num_weights, 0)
    width = _checked_bits(bits)
    blocks = 8 * _SCALE_BYTES if width == 8 else 0
    overhead = (1 + vectors) * header_bits() + 8 * _bitmap_bytes(n) if positions else 0
    # ceil(n / 2048) <= (n + 2047) / 2048
    return LinearSize(
        (1 + vectors) * (width + blocks / _BLOCK),
        overhead + (1 + vectors) * (blocks * (_BLOCK - 1) / _BLOCK),
    )


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
    width = _checked_bits(bits)
    if flat.ndim != 1 or kept_mask.shape != flat.shape:
        raise ValueError(f"values has shape {flat.shape}, mask {kept_mask.shape}; both must be (N,)")
    if kept_mask.dtype != np.bool_:
        raise ValueError(f"mask has dtype {kept_mask.dtype}; it must be bool")
    n, kept = _counts(flat.size, int(np.count_nonzero(kept_mask)))
    # take() after flatnonzero() is six times as fast as indexing with an irregular mask.
    retained = np.ascontiguousarray(flat) if kept == n else flat.take(np.flatnonzero(kept_mask))
    if (check_finite or width != 32) and not np.isfinite(retained).all():
        bad = int(np.flatnonzero(kept_mask)[np.argmin(np.isfinite(retained))])
        raise ValueError(f"values[{bad}] = {flat[bad]} is not finite")

    scale, parts = _pack_values(retained, width, rng)
    coding, _ = _position_bytes(n, kept)
    parts += _pack_positions(kept_mask, coding)
    buffers = [part.data.cast("B") if part.size else b"" for part in parts]
    header = _HEADER.pack(_MAGIC, _VERSION, width, coding, 0, n, kept, scale, 0)
    return b"".join([header, _CRC.pack(_checksum(header, buffers)), *buffers])


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
    if raw.size < _HEADER_BYTES:
        raise PayloadError(f"payload has {raw.size} bytes; the header alone has {_HEADER_BYTES} (truncated?)")
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
    if coding != _position_bytes(n, kept)[0]:
        raise PayloadError(f"position coding {coding} is not the one for {kept} of {n} weights")
    body = raw[_HEADER_BYTES:]
    stored = _CRC.unpack_from(raw.data, _HEADER.size)[0]
    if stored != _checksum(raw[: _HEADER.size].data, [body.data] if body.size else []):
        raise PayloadError("checksum does not match: the payload was damaged")
    split = _value_bytes(kept, width)
    values = _unpack_values(body[:split], kept, width, scale)
    positions = _unpack_positions(body[split:], PositionCoding(coding), n, kept)
    return Payload(values, n, width, PositionCoding(coding), int(raw.size), positions)


def _read_header(raw: NDArray[np.uint8]) -> tuple[int, int, int, int, float]:
    magic, version, width, coding, reserved, n, kept, scale, spare = _HEADER.unpack_from(raw.data)
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


def _counts(num_weights: int, num_kept: int) -> tuple[int, int]:
    n, kept = count("num_weights", num_weights, 1), count("num_kept", num_kept)
    if n > _MAX_WEIGHTS:
        raise ValueError(f"num_weights = {n} must be <= {_MAX_WEIGHTS}")
    if kept > n:
        raise ValueError(f"num_kept = {kept} must be <= num_weights = {n}")
    return n, kept


def _checked_bits(bits: int) -> int:
    if bits not in (8, 16, 32):
        raise ValueError(f"bits = {bits} is unknown; valid: 8, 16, 32")
    return int(bits)


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _bitmap_bytes(n: int) -> int:
    return _blocks(n, 8)


def _value_bytes(kept: int, bits: int) -> int:
    return kept * bits // 8 + (_SCALE_BYTES * _blocks(kept, _BLOCK) if bits == 8 else 0)


@lru_cache(maxsize=256)
def _position_bytes(n: int, kept: int) -> tuple[PositionCoding, int]:
    """Return the cheapest coding and its size; ties go to the first."""
    if kept in (0, n):
        return PositionCoding.NONE, 0
    fewer_kept = 2 * kept <= n
    listed = kept if fewer_kept else n - kept
    sizes = {
        PositionCoding.BITMAP: _bitmap_bytes(n),
        (PositionCoding.KEPT_16 if fewer_kept else PositionCoding.PRUNED_16): 4 * _blocks(n, 1 << 16)
        + 2 * listed,
        (PositionCoding.KEPT_8 if fewer_kept else PositionCoding.PRUNED_8): 2 * _blocks(n, 1 << 8) + listed,
    }
    best = min(sizes, key=lambda coding: (sizes[coding], coding))
    return best, sizes[best]


def _index_format(coding: PositionCoding) -> tuple[int, str, str]:
    """Return the number of low bits, and the types of the counts and of the low parts."""
    if coding in (PositionCoding.KEPT_16, PositionCoding.PRUNED_16):
        return 16, "<u4", "<u2"
    return 8, "<u2", "<u1"


def _checksum(header: bytes | memoryview, buffers: list[bytes | memoryview]) -> int:
    crc = zlib.crc32(header)
    for buffer in buffers:
        crc = zlib.crc32(buffer, crc)
    return crc


def _pack_values(
    retained: FloatVector, width: int, rng: np.random.Generator | None
) -> tuple[float, list[NDArray[np.generic]]]:
    if width == 32 or retained.size == 0:
        return 1.0, [retained.astype("<f4", copy=False)]
    if width == 16:
        exponent = int(np.frexp(np.abs(retained).max())[1]) - 15
        exponent = min(max(exponent, -126), 127)  # the scale itself must be a normal float32
        return float(2.0**exponent), [np.ldexp(retained, -exponent).astype("<f2")]
    padded = np.full(_blocks(retained.size, _BLOCK) * _BLOCK, retained[-1], dtype=np.float32)
    padded[: retained.size] = retained
    block = padded.reshape(-1, _BLOCK)
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


def _unpack_values(body: NDArray[np.uint8], kept: int, width: int, scale: float) -> FloatVector:
    if width == 32:
        values = body.view("<f4")
    elif width == 16:
        values = body.view("<f2").astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            values *= np.float32(scale)
    else:
        blocks = _blocks(kept, _BLOCK)
        scales = body[: 8 * blocks].view("<f4").reshape(blocks, 2)
        codes = body[8 * blocks :].view(np.int8)
        if not np.isfinite(scales).all() or bool((scales[:, 1] < 0).any()):
            raise PayloadError("a block scale is negative or not finite")
        if bool((codes == -128).any()):
            raise PayloadError("code -128 does not exist")
        repeat = np.minimum(_BLOCK, kept - _BLOCK * np.arange(blocks))
        with np.errstate(over="ignore"):
            values = codes * np.repeat(scales[:, 1], repeat)
            values += np.repeat(scales[:, 0], repeat)
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        raise PayloadError(f"retained value {bad} = {values[bad]} is not finite")
    result: FloatVector = values
    return result


def _pack_positions(mask: BoolArray, coding: PositionCoding) -> list[NDArray[np.generic]]:
    if coding == PositionCoding.NONE:
        return []
    if coding == PositionCoding.BITMAP:
        return [np.packbits(mask, bitorder="little")]
    low_bits, count_type, low_type = _index_format(coding)
    listed = mask if coding in (PositionCoding.KEPT_16, PositionCoding.KEPT_8) else ~mask
    index = np.flatnonzero(listed)
    counts = np.bincount(index >> low_bits, minlength=_blocks(mask.size, 1 << low_bits))
    return [counts.astype(count_type), (index & ((1 << low_bits) - 1)).astype(low_type)]


def _unpack_positions(
    body: NDArray[np.uint8], coding: PositionCoding, n: int, kept: int
) -> NDArray[np.uint8] | NDArray[np.int64]:
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
    blocks = _blocks(n, 1 << low_bits)
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
