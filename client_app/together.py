"""How many devices of a round are best trained as one set of tensors, where nobody says.

A step of a tiny network is mostly the calls of its operations: some sixty microseconds of arithmetic in a
millisecond. Together, a hundred devices make as many calls as one. Where arithmetic is what takes the time,
nothing is gained; where the weights of all leave the cache, something is lost.

What is chosen depends on the run and on the number of devices that are asked at once: not on times, on
processors or on workers, so that a seed gives the same bits everywhere. A few devices are trained one after
the other, as they always were: together, they would round differently for little gain.
"""

from __future__ import annotations

import statistics
from functools import lru_cache

from client_app.device import RunContext, run_context
from task.work import multiply_adds

FEWEST_DEVICES = 32  # of a round
# Of a device's step, forwards. On one core of an AMD EPYC an MLP of 20 k weights with 8 samples (0.16 M)
# and with 30 (0.6 M) is 5 times as fast together, LeNet-5 with 8 (3.3 M) twice, with 30 (12 M) as fast.
MOST_MULTIPLY_ADDS = 4e6
MOST_WEIGHTS = 1 << 20  # of all devices of a chunk: with gradients and activations what a core's cache holds
LEAST_CHUNK = 8  # below, reading weights costs what the calls did


def devices_at_once(spec: str, devices: int) -> int:
    """Return how many of a round's devices are to be trained as one set of tensors; 1: one after the other.

    Args:
        spec: the run, as in its orders.
        devices: that are asked to train at once.
    """
    return _chunk(spec) if devices >= FEWEST_DEVICES else 1


@lru_cache(maxsize=4)
def _chunk(spec: str) -> int:
    run = run_context(spec)
    split = run.network.split
    chunk = MOST_WEIGHTS // max(1, split.personal.size + split.global_part.size)
    return chunk if chunk >= LEAST_CHUNK and _step(run) <= MOST_MULTIPLY_ADDS else 1


def _step(run: RunContext) -> float:
    """Return the multiply-adds of a forward pass over a device's mini-batch."""
    parts = [part.train for part in run.parts]
    samples = min(run.training.batch_size, statistics.median_high(part.size for part in parts))
    first = next(part for part in parts if part.size)[:1]
    work = multiply_adds(run.task.model, run.network.split, run.task.train(first)[0])
    return samples * (work.personal + work.of_global)
