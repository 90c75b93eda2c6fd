"""Search learning settings: whole rounds in one plain loop, without Flower and without a radio.

    python -m benchmarks.learning_search --dataset digits --rounds 40 --learning-rate 0.02 0.05 --seeds 0 1 2

Devices hold two labels each, convolutions personal; the server averages each weight over the devices that
kept it (a weight that nobody kept stays). Pruning ratios are fixed per device; the default is what the joint
optimum assigns in the calibrated profile at 25 ms, every channel at its mean. For each setting and seed:
mean and worst personalised test accuracy along the rounds, and seconds per round.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client_app.algorithms import make_algorithm
from client_app.evaluation import evaluate
from client_app.local_round import local_round
from client_app.network import ModuleNetwork
from client_app.results import DivergedError
from protocol.streams import generator, torch_seed
from protocol.training import TrainingSpec
from task.datasets import load_dataset
from task.models import build_model
from task.partition import partition
from task.split import split_parameters
from task.transforms import ready

CALIBRATED_RATIOS = (
    0,
    0.174647,
    0.308002,
    0.408517,
    0.490749,
    0.561157,
    0.623219,
    0.679037,
    0.729987,
    0.777022,
)


@dataclass(frozen=True)
class Case:
    """One setting of the search: data, pruning ratios and local training."""

    dataset: str
    model: str
    personal: tuple[str, ...]
    ratios: tuple[float, ...]
    samples: int | None
    test_samples: int | None
    spec: TrainingSpec


@dataclass(frozen=True)
class Curve:
    """Mean and worst accuracy and mean loss at the evaluated rounds, and seconds per round."""

    rounds: list[int]
    mean: list[float]
    worst: list[float]
    loss: list[float]
    seconds_per_round: float


def average_over_contributors(
    current: npt.NDArray[np.float32],
    uploads: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]],
) -> npt.NDArray[np.float32]:
    """Average each weight over the devices that kept it; where nobody did, return the current value."""
    total = np.zeros_like(current)
    count = np.zeros(current.size, dtype=np.int32)
    for values, mask in uploads:
        total += values
        count += mask
    return np.where(count > 0, total / np.maximum(count, 1), current).astype(np.float32)


def train(case: Case, rounds: int, seed: int, evaluate_every: int) -> Curve:
    """Run `rounds` rounds of one case on one core.

    Raises:
        DivergedError: if a device's training diverges.
    """
    data = load_dataset(case.dataset)
    num_devices = len(case.ratios)
    parts = partition(
        "labels",
        data.train[1],
        data.test[1],
        num_devices,
        generator(seed, "partition"),
        samples_per_device=case.samples,
        test_samples_per_device=case.test_samples,
    )
    train_sets = [ready(data, data.train, part.train) for part in parts]
    test_sets = [ready(data, data.test, part.test) for part in parts]
    module = build_model(case.model, generator=torch.Generator().manual_seed(torch_seed(seed, "init")))
    split = split_parameters(module, case.personal)
    model = ModuleNetwork(module, split)
    global_part = model.global_part[0].numpy().copy()
    personal = [model.personal[0].numpy().copy() for _ in parts]
    num_pruned = [math.ceil(ratio * split.global_part.size - 1e-9) for ratio in case.ratios]

    curve = Curve([], [], [], [], 0.0)
    started = time.perf_counter()
    for round_number in range(1, rounds + 1):
        uploads = []
        for device, (images, labels) in enumerate(train_sets):
            batches = torch.Generator().manual_seed(torch_seed(seed, "batches", round_number, device))
            result = local_round(
                model,
                images,
                labels,
                broadcast=global_part,
                personal=personal[device],
                num_pruned=num_pruned[device],
                algorithm=make_algorithm(case.spec.algorithm, case.spec.options),
                training=case.spec,
                generator=batches,
            )
            personal[device] = result.personal
            uploads.append((result.global_part, result.mask))
        global_part = average_over_contributors(global_part, uploads)
        if round_number % evaluate_every == 0 or round_number == rounds:
            tests = [
                evaluate(model, global_part=global_part, personal=mine, images=images, labels=labels)
                for mine, (images, labels) in zip(personal, test_sets, strict=True)
            ]
            curve.rounds.append(round_number)
            curve.mean.append(float(np.mean([test.accuracy for test in tests])))
            curve.worst.append(min(test.accuracy for test in tests))
            curve.loss.append(float(np.mean([test.loss for test in tests])))
    seconds = (time.perf_counter() - started) / rounds
    return Curve(curve.rounds, curve.mean, curve.worst, curve.loss, seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning_search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--model", default="cnn")
    parser.add_argument("--personal", nargs="*", default=["conv*"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--evaluate-every", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ratio", type=float, default=None, help="one pruning ratio for all devices")
    parser.add_argument("--samples", type=int, default=None, help="training images per device, at most")
    parser.add_argument("--test-samples", type=int, default=None, help="test images per device, at most")
    parser.add_argument("--algorithm", nargs="+", default=["alternating"])
    parser.add_argument("--optimizer", nargs="+", default=["sgd"])
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[0.02])
    parser.add_argument("--global-scale", type=float, nargs="+", default=[1.0], help="global / personal rate")
    parser.add_argument("--momentum", type=float, nargs="+", default=[0.0])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32])
    parser.add_argument("--personal-steps", type=int, nargs="+", default=[2])
    parser.add_argument("--global-steps", type=int, nargs="+", default=[2])
    return parser.parse_args()


def main() -> None:
    """Run the grid given on the command line."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    args = _arguments()
    ratios = CALIBRATED_RATIOS if args.ratio is None else (args.ratio,) * len(CALIBRATED_RATIOS)
    grid = itertools.product(
        args.algorithm,
        args.optimizer,
        args.learning_rate,
        args.global_scale,
        args.momentum,
        args.batch_size,
        args.personal_steps,
        args.global_steps,
    )
    for algorithm, optimizer, rate, scale, momentum, batch, personal_steps, global_steps in grid:
        spec = TrainingSpec(
            algorithm=algorithm,
            optimizer=optimizer,
            personal_learning_rate=rate,
            global_learning_rate=rate * scale,
            momentum=momentum,
            batch_size=batch,
            personal_steps=personal_steps,
            global_steps=global_steps,
        )
        case = Case(
            dataset=args.dataset,
            model=args.model,
            personal=tuple(args.personal),
            ratios=ratios,
            samples=args.samples,
            test_samples=args.test_samples,
            spec=spec,
        )
        print(
            f"\n{algorithm} {optimizer} rate {rate:g} (global x{scale:g}) momentum {momentum:g} "
            f"batch {batch} steps {personal_steps}+{global_steps} mean ratio {np.mean(ratios):.3f}",
            flush=True,
        )
        for seed in args.seeds:
            try:
                curve = train(case, args.rounds, seed, args.evaluate_every)
            except DivergedError as error:
                print(f"  seed {seed}: {error}", flush=True)
                continue
            points = " ".join(
                f"{r}:{m:.3f}/{w:.2f}" for r, m, w in zip(curve.rounds, curve.mean, curve.worst, strict=True)
            )
            print(
                f"  seed {seed}: {curve.seconds_per_round:.2f} s/round, loss {curve.loss[-1]:.3f}", flush=True
            )
            print(f"    round:mean/worst {points}", flush=True)


if __name__ == "__main__":
    main()
