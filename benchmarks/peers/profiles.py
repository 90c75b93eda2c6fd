"""Where the processor time of a device's round goes, by operation, and how fast its products are; one thread.

python -m benchmarks.peers.profiles [--only W1 W1a W2 W3 W4] [--operations 8]

W3, whose devices are trained together, is profiled whole, server and devices in one process, and by Python's
profiler, which makes calls look dearer than they are.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, RecordDict
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers.workloads import WORKLOADS, Workload
from client_app import device
from engines.allocator import keep_freed_memory
from engines.inprocess import open_grid
from protocol.arrays import weights_record
from protocol.messages import TrainOrder
from server_app.job import prepare
from server_app.run import run
from server_app.settings import compose_settings

_ROUNDS, _MANY_ROUNDS = 6, 20  # of which the first does not count


def main() -> None:
    known = [name for name in WORKLOADS if name != "W2all"]  # as W2
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.profiles", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=known, default=known)
    parser.add_argument("--operations", type=int, default=8)
    arguments = parser.parse_args()
    keep_freed_memory()
    warnings.simplefilter("ignore")
    print("| workload | ms of a device | where | share |\n|---|---:|---|---:|", flush=True)
    for name in arguments.only:
        milliseconds, shares = (_together if name == "W3" else _profile)(WORKLOADS[name])
        for number, (where, share) in enumerate(shares[: arguments.operations]):
            first = f"| {name} | {milliseconds:.1f} |" if not number else "| | |"
            print(f"{first} {where} | {share:.0%} |", flush=True)
    print("\n| product | GFLOP/s |\n|---|---:|")
    for text, speed in _speeds():
        print(f"| {text} | {speed:.0f} |", flush=True)


def _speeds() -> Iterator[tuple[str, float]]:
    """Yield products and convolutions, some of them those of our networks, and their speeds."""
    torch.set_num_threads(1)
    wide = torch.randn(1024, 1024)
    yield "one of 1024 x 1024", _speed(partial(torch.mm, wide, wide), 1024**3)
    kernels, spectrum = torch.randn(130, 128, 64), torch.randn(130, 64, 48)
    number = kernels.numel() * 48
    yield "130 of 128 x 64 by 64 x 48 (W1, W2)", _speed(partial(torch.bmm, kernels, spectrum), number)
    grouped, maps = kernels.view(-1, 64, 1, 1), spectrum.view(1, -1, 1, 48)
    one_by_one = partial(torch.conv2d, maps, grouped, groups=130)
    yield "the same as a grouped convolution", _speed(one_by_one, number)
    for inputs, outputs, size in ((3, 16, 32), (16, 16, 32), (64, 64, 8)):
        for layout in (torch.contiguous_format, torch.channels_last):
            images = torch.randn(50, inputs, size, size).to(memory_format=layout)
            weight = torch.randn(outputs, inputs, 3, 3).to(memory_format=layout)
            where = "channels last" if layout == torch.channels_last else "channels first"
            text = f"3 x 3 convolution of 50 x {inputs} x {size} x {size} to {outputs} channels, {where} (W4)"
            number = 9 * images.numel() * outputs
            yield text, _speed(partial(torch.conv2d, images, weight, padding=1), number)


def _speed(product: Callable[[], object], multiply_adds: int) -> float:
    """Return GFLOP per processor second, the median of many."""
    times = []
    for _ in range(25):
        started = time.process_time()
        product()
        times.append(time.process_time() - started)
    return 2e-9 * multiply_adds / statistics.median(times[3:])


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


_OF_A_ROUND = {  # functions whose time is that of a stage, those that they call included
    "training": ("local_round.py", "rounds"),
    "orders": ("base.py", "order"),
    "reading orders, states of devices": ("device.py", "accept"),
    "reports": ("device.py", "report"),
    "plan": ("modes.py", "plan"),
    "messages": ("typed_messages.py", "__init__"),
    "reading uploads": ("masked.py", "read_upload"),
    "norms of uploads": ("limits.py", "update_norm"),
    "sums": ("masked.py", "add"),
    "what is said of a device": ("base.py", "accepted"),
    "live view": ("live.py", "notice"),
    "rows": ("recorder.py", "record"),
}


def _together(workload: Workload) -> tuple[float, list[tuple[str, float]]]:
    """Return the time of a round by device in ms, and the share of each stage."""
    recorder, seconds = cProfile.Profile(), Counter[tuple[str, str]]()
    for rounds in (2, _MANY_ROUNDS):  # the first does not count
        settings = compose_settings([*workload.overrides(), f"rounds={rounds}", "engine.workers=1"])
        with tempfile.TemporaryDirectory() as scratch, open_grid(settings) as grid:
            if rounds == _MANY_ROUNDS:
                recorder.enable()
            run(settings, grid, Path(scratch))
            recorder.disable()
    for (file, _, name), times in pstats.Stats(recorder).stats.items():  # type: ignore[attr-defined]
        seconds[Path(file).name, name] += times[3]
    total = seconds["run.py", "_round"] + seconds[_OF_A_ROUND["rows"]]
    shares = [(text, seconds[key] / total) for text, key in _OF_A_ROUND.items()]
    return 1e3 * total / _MANY_ROUNDS / workload.of_round, sorted(shares, key=lambda share: -share[1])


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
