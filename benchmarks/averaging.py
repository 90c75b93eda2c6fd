"""Server path: decode and average 1 000 pruned uploads, against boolean indexing and `np.add.at`."""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from unittest import mock

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Figure, interleave, quartiles, ratio_of
from radio import payload
from strategies.aggregation import masked_mean
from strategies.aggregation.masked_mean import MaskedAverage

WEIGHTS, KEPT = 402_826, 0.52


def uploads(number: int, seed: int = 0) -> list[bytes]:
    """Return encoded uploads of random weights under random masks."""
    rng = np.random.default_rng(seed)
    kept = int(KEPT * WEIGHTS)
    made = []
    for _ in range(number):
        mask = np.zeros(WEIGHTS, np.bool_)
        mask[rng.choice(WEIGHTS, kept, replace=False, shuffle=False)] = True
        made.append(payload.encode(rng.standard_normal(WEIGHTS, np.float32), mask))
    return made


def decode_and_average(received: list[bytes]) -> npt.NDArray[np.float32]:
    """Check, open and average uploads, as the server does."""
    average = MaskedAverage(WEIGHTS)
    for upload in received:
        opened = payload.decode(upload, num_weights=WEIGHTS)
        average.add(opened.values, opened.mask)
    return average.result(np.zeros(WEIGHTS, np.float32)).weights


def average_only(opened: list[payload.Payload]) -> npt.NDArray[np.float32]:
    """Average uploads that are open already."""
    average = MaskedAverage(WEIGHTS)
    for upload in opened:
        mask = np.unpackbits(upload._positions.view(np.uint8), count=WEIGHTS, bitorder="little")
        average.add(upload.values, mask.view(np.bool_))
    return average.result(np.zeros(WEIGHTS, np.float32)).weights


def add_at(opened: list[payload.Payload]) -> npt.NDArray[np.float32]:
    """Average with NumPy's own loop for adding at places, as is done where there are few."""
    with mock.patch.object(masked_mean, "_SPARSE", sys.maxsize):
        return average_only(opened)


def boolean_indexing(opened: list[payload.Payload]) -> npt.NDArray[np.float32]:
    """Average with sum[mask] += values, as one would write it first."""
    total, count = np.zeros(WEIGHTS), np.zeros(WEIGHTS)
    for upload in opened:
        mask = np.unpackbits(upload._positions.view(np.uint8), count=WEIGHTS, bitorder="little")
        kept = mask.view(np.bool_)
        total[kept] += upload.values
        count += kept
    return np.divide(total, count, out=np.zeros(WEIGHTS), where=count > 0).astype(np.float32)


def figures(*, quick: bool) -> list[Figure]:
    """Measure gigabytes of decoded float32 weights per second on one core."""
    number, repeats = (100, 3) if quick else (1000, 5)
    received = uploads(number)
    opened = [payload.decode(upload, num_weights=WEIGHTS) for upload in received]
    assert np.allclose(decode_and_average(received), boolean_indexing(opened), rtol=1e-6, atol=1e-7)
    times = interleave(
        {
            "index": lambda: boolean_indexing(opened),
            "add_at": lambda: add_at(opened),
            "average": lambda: average_only(opened),
            "whole": lambda: decode_and_average(received),
        },
        repeats,
        clock=time.process_time,
    )
    tracemalloc.start()
    decode_and_average(received[:100])
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    gigabytes = 4e-9 * WEIGHTS * number
    found = []
    for name, base, text, baseline in (
        ("average", "index", "masked averaging", "NumPy boolean indexing"),
        ("average", "add_at", "masked averaging", "the same with np.add.at"),
        ("whole", "index", "decoding (with checksum) and averaging", "boolean indexing, without decoding"),
    ):
        ratio, spread = ratio_of(times[base], times[name])
        found.append(
            Figure(
                name=f"{text} of {number} uploads of {WEIGHTS} weights, {KEPT:.0%} kept",
                value=gigabytes / statistics.median(times[name]),
                unit="GB of decoded weights per processor s",
                baseline=baseline,
                ratio=ratio,
                spread=spread,
                memory_mib=peak,
                details={
                    "GB of kept weights per s": round(KEPT * gigabytes / statistics.median(times[name]), 2),
                    "quartiles, GB per s": " - ".join(
                        f"{gigabytes / t:.2f}" for t in reversed(quartiles(times[name]))
                    ),
                    "peak": "MiB above the uploads",
                },
            )
        )
    return found
