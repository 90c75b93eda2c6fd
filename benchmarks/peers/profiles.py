"""Where the processor time of a device's round goes, by operation, on one thread.

python -m benchmarks.peers.profiles [--only W1 W1a W2 W4] [--operations 8]
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Iterator

from flwr.app import Context, RecordDict
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.workloads import WORKLOADS, Workload
from client_app import device
from engines.allocator import keep_freed_memory
from protocol.arrays import weights_record
from protocol.messages import TrainOrder
from server_app.job import prepare
from server_app.settings import compose_settings

_ROUNDS = 6  # of which the first does not count


def main() -> None:
    known = [name for name in WORKLOADS if name not in ("W2all", "W3")]  # as W2; trained together
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.profiles", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    parser.add_argument("--operations", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    print("| workload | ms of a device | where | share |\n|---|---:|---|---:|", flush=True)
    for name in arguments.only:
        milliseconds, shares = _profile(WORKLOADS[name])
        for number, (where, share) in enumerate(shares[: arguments.operations]):
            first = f"| {name} | {milliseconds:.1f} |" if not number else "| | |"
            print(f"{first} {where} | {share:.0%} |", flush=True)


def _profile(workload: Workload) -> tuple[float, list[tuple[str, float]]]:
    """Return the processor time of a device's order in ms, and each operation's share of it."""
    rounds = _rounds(workload)
    times = [next(rounds) for _ in range(_ROUNDS)][1:]
    with profile(activities=[ProfilerActivity.CPU]) as found:
        next(rounds)
    inside = {event.key: event.self_cpu_time_total / 1e6 for event in found.key_averages()}
    total = sum(inside.values())
    shares = [(f"`{key}`", seconds / total) for key, seconds in inside.items()]
    return 1e3 * statistics.median(times), sorted(shares, key=lambda share: -share[1])


def _rounds(workload: Workload) -> Iterator[float]:
    """Have one device answer an order again and again; yield the processor seconds that it took."""
    job = prepare(compose_settings(workload.overrides()))
    spec, weights = job.spec.to_json(), weights_record(job.initial_weights)
    context = Context(1, 1, {"partition-id": 0, "num-partitions": workload.devices}, RecordDict(), {})
    number = 0
    while True:
        number += 1
        order = TrainOrder(number, 0, spec, weights)
        started = time.process_time()
        device.train(order, context)
        yield time.process_time() - started


if __name__ == "__main__":
    main()
