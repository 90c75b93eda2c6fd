from __future__ import annotations

import pickle
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from radio.payload import (
    Payload,
    PayloadError,
    PositionCoding,
    decode,
    encode,
    header_bits,
    linear_size,
    pack,
    payload_bits,
    value_bits,
)

HEADER = header_bits() // 8


def draw(seed: int, n: int, kept: float, scale: float = 1.0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return np.clip(scale * rng.standard_normal(n), -3.4e38, 3.4e38).astype(np.float32), rng.random(n) < kept


def reseal(payload: bytes | bytearray) -> bytes:
    """Write the right checksum over changed bytes, so that the checks behind it are reached."""
    raw = bytearray(payload)
    crc = zlib.crc32(raw[HEADER:], zlib.crc32(raw[: HEADER - 4]))
    raw[HEADER - 4 : HEADER] = struct.pack("<I", crc)
    return bytes(raw)


sizes = st.one_of(st.integers(1, 300), st.sampled_from([2047, 2048, 2049, 65_536, 65_537, 70_001]))
shares = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.95, 0.999, 1.0]))


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), sizes, shares)
def test_32_bits_come_back_exactly_and_the_size_is_the_model(seed: int, n: int, kept: float) -> None:
    values, mask = draw(seed, n, kept)
    payload = encode(values, mask)
    number = int(mask.sum())
    assert 8 * len(payload) == payload_bits(n, number)
    found = decode(payload, num_weights=n)
    np.testing.assert_array_equal(found.mask, mask)
    np.testing.assert_array_equal(found.values, values[mask])
    np.testing.assert_array_equal(found.index, np.flatnonzero(mask))
    np.testing.assert_array_equal(found.dense(-1.0), np.where(mask, values, np.float32(-1)))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), sizes, shares, st.floats(-36, 37))
def test_16_bits_keep_their_stated_error(seed: int, n: int, kept: float, exponent: float) -> None:
    values, mask = draw(seed, n, kept, 10.0**exponent)
    values *= np.random.default_rng(seed).choice([1, 1e-3, 1e-6, 0], n).astype(np.float32)
    values = np.clip(values, -3e38, 3e38)
    payload = encode(values, mask, bits=16)
    assert 8 * len(payload) == payload_bits(n, int(mask.sum()), 16)
    kept_values = values[mask].astype(np.float64)
    if kept_values.size:
        error = np.abs(decode(payload, num_weights=n).values - kept_values)
        largest = np.abs(kept_values).max()
        tiny = 2.0**-149  # below, float32 itself is a grid
        assert (error <= np.maximum(2.0**-11 * np.abs(kept_values), 2.0**-39 * largest) + tiny).all()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), sizes, shares, st.floats(-30, 38), st.booleans())
def test_8_bits_keep_their_stated_error(
    seed: int, n: int, kept: float, exponent: float, stochastic: bool
) -> None:
    values, mask = draw(seed, n, kept, 10.0**exponent)
    values = np.clip(values, -3.4e38, 3.4e38).astype(np.float32)
    rng = np.random.default_rng(seed) if stochastic else None
    payload = encode(values, mask, bits=8, rng=rng)
    assert 8 * len(payload) == payload_bits(n, int(mask.sum()), 8)
    retained = values[mask].astype(np.float64)
    found = decode(payload, num_weights=n).values
    for at in range(0, retained.size, 2048):
        block = retained[at : at + 2048]
        limit = np.ptp(block) / 508 * (2 if stochastic else 1) * (1 + 1e-5) + np.abs(block).max() * 2.0**-22
        assert (np.abs(found[at : at + 2048] - block) <= limit).all()


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(sizes, st.integers(1, 10**7)),
    st.data(),
    st.sampled_from([8, 16, 32]),
)
def test_no_payload_exceeds_the_line_and_some_lie_on_it(seed: int, n: int, data: Any, bits: int) -> None:
    """What an allocation charges for n weights is at least what n weights take on the wire."""
    kept = data.draw(st.integers(1, n))
    line, bare = linear_size(n, bits), linear_size(n, bits, positions=False)
    assert payload_bits(n, kept, bits) <= line.bits_per_weight * kept + line.overhead_bits + 1e-6
    assert value_bits(kept, bits) <= bare.bits_per_weight * kept + bare.overhead_bits + 1e-6
    # A block of scales just begun: nothing smaller would do.
    first = 2048 * ((kept - 1) // 2048) + 1
    tight = bare.bits_per_weight * first + bare.overhead_bits
    assert value_bits(first, bits) == pytest.approx(tight, rel=1e-12)
    bitmap = header_bits() + 8 * -(-n // 8)
    assert line.overhead_bits - bare.overhead_bits == bitmap


def test_stochastic_rounding_is_unbiased() -> None:
    values = np.linspace(-1, 1, 1000, dtype=np.float32) ** 3
    mask = np.ones(1000, dtype=bool)
    rng = np.random.default_rng(0)
    runs = [decode(encode(values, mask, bits=8, rng=rng), num_weights=1000).values for _ in range(400)]
    assert np.abs(np.mean(runs, axis=0) - values).max() < 5 * (2 / 254) / np.sqrt(12 * 400) * 2


def test_constant_blocks_are_exact_at_8_bits() -> None:
    values = np.full(5000, 0.1, dtype=np.float32)
    found = decode(encode(values, np.ones(5000, dtype=bool), bits=8), num_weights=5000)
    np.testing.assert_array_equal(found.values, values)


@pytest.mark.parametrize(
    ("kept", "coding"),
    [
        (402_826, PositionCoding.NONE),
        (402_800, PositionCoding.PRUNED_16),
        (390_000, PositionCoding.PRUNED_8),
        (201_413, PositionCoding.BITMAP),
        (30_000, PositionCoding.KEPT_8),
        (100, PositionCoding.KEPT_16),
        (0, PositionCoding.NONE),
    ],
)
def test_positions_take_the_smallest_coding(kept: int, coding: PositionCoding) -> None:
    n = 402_826
    mask = np.zeros(n, dtype=bool)
    mask[np.random.default_rng(kept).permutation(n)[:kept]] = True
    values = np.arange(n, dtype=np.float32)
    payload = encode(values, mask)
    found = decode(payload, num_weights=n)
    assert found.coding == coding
    np.testing.assert_array_equal(found.mask, mask)
    bitmap = header_bits() + 8 * -(-n // 8) + 32 * kept
    assert 8 * len(payload) <= bitmap
    if coding == PositionCoding.BITMAP:
        assert 8 * len(payload) == bitmap


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 400))
@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_over_devices_are_the_masked_average(bits: int, dtype: type, seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    total: Any = np.zeros(n, dtype=dtype)
    weight_sum: Any = np.zeros(n, dtype=dtype)
    expected, expected_weight = np.zeros(n), np.zeros(n)
    for kept, weight in ((0.0, 1.0), (0.05, 2.0), (0.5, 1.0), (0.6, 3.0), (0.97, 1.0), (1.0, 0.5)):
        values, mask = draw(int(rng.integers(2**32)), n, kept)
        payload = decode(encode(values, mask, bits=bits), num_weights=n)
        payload.add_to(total, weight_sum, weight)
        expected[mask] += weight * payload.values.astype(np.float64)
        expected_weight[mask] += weight
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weight_sum, expected_weight)


def test_decoding_makes_no_copy_of_exact_values_and_accepts_any_buffer() -> None:
    values, mask = draw(0, 1000, 0.5)
    payload = encode(values, mask)
    found = decode(memoryview(bytearray(payload)), num_weights=1000)
    assert not found.values.flags.owndata
    assert decode(bytearray(payload), num_weights=1000).num_bytes == len(payload)


# --- what encode refuses ---


def test_encode_refuses_by_name() -> None:
    ones = np.ones(4, dtype=bool)
    with pytest.raises(ValueError, match=r"values\[2\] = nan is not finite"):
        encode(np.array([0, 1, np.nan, 2], dtype=np.float32), ones)
    with pytest.raises(ValueError, match="bits = 4"):
        encode(np.zeros(4), ones, bits=4)
    with pytest.raises(ValueError, match="mask"):
        encode(np.zeros(4), np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="mask has dtype int"):
        encode(np.zeros(4), np.ones(4, dtype=int))
    masked_nan = np.array([np.nan, 1, 2, 3], dtype=np.float32)
    assert decode(encode(masked_nan, ~np.isnan(masked_nan)), num_weights=4).num_kept == 3


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), sizes, shares, st.sampled_from([8, 16, 32]))
def test_what_stays_on_the_machine_is_opened_as_if_it_had_travelled(
    seed: int, n: int, kept: float, bits: int
) -> None:
    values, mask = draw(seed, n, kept)
    packed = pack(values, mask, bits=bits)
    assert packed.tobytes() == encode(values, mask, bits=bits)
    here = decode(pickle.loads(pickle.dumps(packed)), num_weights=n)
    there = decode(packed.tobytes(), num_weights=n)
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.mask, there.mask)
    assert (here.bits, here.coding, here.num_bytes) == (there.bits, there.coding, there.num_bytes)


# --- what decode refuses ---


def test_what_stays_on_the_machine_is_refused_like_bytes() -> None:
    packed = pack(*draw(1, 1000, 0.5))
    with pytest.raises(PayloadError, match="for 1000 weights; expected 999"):
        decode(packed, num_weights=999)
    with pytest.raises(PayloadError, match="the limit is 100"):
        decode(packed, num_weights=1000, max_kept=100)
    with pytest.raises(PayloadError, match=r"bytes; .* make"):
        decode(replace(packed, body=packed.body[:-1]), num_weights=1000)
    with pytest.raises(PayloadError, match="coding 2 is not the one"):
        decode(replace(packed, coding=PositionCoding.KEPT_16), num_weights=1000)
    broken = packed.body.copy()
    broken[:4] = 0xFF  # a NaN
    with pytest.raises(PayloadError, match="not finite"):
        decode(replace(packed, body=broken), num_weights=1000)


def refuse(payload: bytes | bytearray, text: str, n: int = 1000, **limits: int) -> None:
    with pytest.raises(PayloadError, match=text):
        decode(payload, num_weights=n, **limits)


@pytest.fixture
def sample() -> bytes:
    return encode(*draw(1, 1000, 0.5))


def test_truncated_and_overlong_payloads(sample: bytes) -> None:
    refuse(b"", "0 bytes; the header")
    refuse(sample[:10], "10 bytes; the header")
    refuse(sample[:-1], "bytes; .* make")
    refuse(sample + b"\0", "bytes; .* make")


def test_wrong_numbers(sample: bytes) -> None:
    refuse(sample, "for 1000 weights; expected 999", n=999)
    kept = decode(sample, num_weights=1000).num_kept
    decode(sample, num_weights=1000, max_kept=kept)
    refuse(sample, f"keeps {kept} weights; the limit is {kept - 1}", max_kept=kept - 1)


@pytest.mark.parametrize(
    ("at", "value", "text"),
    [
        (0, 0, "starts with"),
        (4, 9, "version 9"),
        (5, 12, "12 bits per weight"),
        (6, 77, "position coding 77 is unknown"),
        (6, 0, "position coding 0 is not the one"),
        (7, 1, "reserved"),
        (16, 1, "scale"),
        (20, 1, "reserved"),
        (12, 1, "make"),
    ],
)
def test_damaged_headers(sample: bytes, at: int, value: int, text: str) -> None:
    raw = bytearray(sample)
    raw[at] = value
    refuse(reseal(raw), text)


def test_flipped_bits_are_noticed(sample: bytes) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        raw = bytearray(sample)
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        refuse(raw, ".")


def test_values_that_are_not_finite() -> None:
    values, mask = draw(1, 1000, 0.5)
    values[np.flatnonzero(mask)[3]] = np.nan
    refuse(encode(values, mask, check_finite=False), "retained value 3 = nan")
    half = bytearray(encode(*draw(1, 1000, 0.5), bits=16))
    half[HEADER + 1] = 0x7C
    half[HEADER] = 0
    refuse(reseal(half), "retained value 0 = inf")
    half = bytearray(encode(*draw(1, 1000, 0.5), bits=16))
    half[16:20] = struct.pack("<f", 0.3)
    refuse(reseal(half), "power of two")
    byte = bytearray(encode(*draw(1, 1000, 0.5), bits=8))
    byte[HEADER : HEADER + 4] = struct.pack("<f", np.inf)
    refuse(reseal(byte), "block scale")
    byte = bytearray(encode(*draw(1, 1000, 0.5), bits=8))
    byte[HEADER + 8] = 0x80
    refuse(reseal(byte), "code -128")


def test_bitmap_that_contradicts_the_header() -> None:
    payload = encode(*draw(1, 1001, 0.5))
    raw = bytearray(payload)
    raw[-1] |= 0x80
    refuse(reseal(raw), "padding bits", n=1001)
    raw = bytearray(payload)
    raw[-2] ^= 1
    refuse(reseal(raw), "bitmap marks", n=1001)


def test_index_lists_out_of_order_or_range() -> None:
    n = 1000
    mask = np.zeros(n, dtype=bool)
    mask[[5, 300, 301, 999]] = True
    payload = encode(np.ones(n), mask)
    assert decode(payload, num_weights=n).coding == PositionCoding.KEPT_16
    start = HEADER + 4 * 4
    raw = bytearray(payload)
    raw[start] = 9
    refuse(reseal(raw), "index counts sum to 9")
    for position, text in ((5, "strictly increasing"), (4, "strictly increasing"), (1000, None)):
        raw = bytearray(payload)
        raw[start + 4 + (2 if text else 6) : start + 4 + (4 if text else 8)] = struct.pack("<H", position)
        refuse(reseal(raw), text or "index 1000 is out of range")


@settings(deadline=None, max_examples=400)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.95, 1.0]),
    st.sampled_from([8, 16, 32]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(-3, 3),
)
def test_mutations_are_refused_or_decode_to_something_sound(
    seed: int, kept: float, bits: int, changes: list[tuple[int, int]], longer: int
) -> None:
    """With the checksum made right, so that only the checks behind it protect."""
    n = 701
    raw = bytearray(encode(*draw(seed % 50, n, kept), bits=bits))
    for at, value in changes:
        raw[at % len(raw)] = value
    raw = raw[:longer] if longer < 0 else raw + bytes(longer)
    changed = reseal(raw) if len(raw) >= HEADER else bytes(raw)
    try:
        found: Payload = decode(changed, num_weights=n)
    except PayloadError:
        return
    assert found.mask.shape == (n,)
    assert found.mask.sum() == found.num_kept == found.values.size
    assert np.isfinite(found.values).all()
    assert 8 * len(changed) == payload_bits(n, found.num_kept, found.bits)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(noise, num_weights=100)
