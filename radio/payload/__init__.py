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

from radio.payload.codec import Packed, Payload, decode, encode, pack
from radio.payload.errors import PayloadError
from radio.payload.sizes import (
    Bits,
    LinearSize,
    PositionCoding,
    header_bits,
    linear_size,
    payload_bits,
    upload_bits,
    value_bits,
)

__all__ = [
    "Bits",
    "LinearSize",
    "Packed",
    "Payload",
    "PayloadError",
    "PositionCoding",
    "decode",
    "encode",
    "header_bits",
    "linear_size",
    "pack",
    "payload_bits",
    "upload_bits",
    "value_bits",
]
