"""How far rounding alone carries the same steps apart: what the last column of the peers' table is beside.

python -m benchmarks.peers.rounding [--workload W2] [--rounds 1 3 12]
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers.given import Given, steps, vector
from benchmarks.peers.prepare import give
from benchmarks.peers.workloads import WORKLOADS, Workload
from records.checkpoint import latest


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.rounding", description=__doc__)
    parser.add_argument("--workload", choices=[name for name in WORKLOADS if name != "W1a"], default="W2")
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 3, 12])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| rounds | largest step | of | and | weights within |\n|---:|---:|---|---|---:|", flush=True)
    for rounds in arguments.rounds:
        workload = replace(WORKLOADS[arguments.workload], rounds=rounds)
        with tempfile.TemporaryDirectory() as scratch:
            weights, first = _weights(workload, Path(scratch))
        for one, other in itertools.combinations(weights, 2):
            moved, apart = np.abs(weights[one] - first).max(), np.abs(weights[one] - weights[other]).max()
            print(f"| {rounds} | {moved:.2g} | {one} | {other} | {apart:.1e} |", flush=True)


def _weights(workload: Workload, scratch: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the weights of the end, by who took the steps, and the first ones."""
    found = {}
    for kernels in ("fast", "plain"):
        folder = scratch / kernels
        command = ["-m", "experiments.cli", *workload.overrides(), f"training.kernels={kernels}"]
        subprocess.run(
            [sys.executable, *command, f"hydra.run.dir={folder}"], check=True, stdout=subprocess.DEVNULL
        )
        with np.load(latest(folder) / "server.npz") as archive:
            found[f"ours, {kernels} kernels"] = archive["weights"].astype(np.float64)
    given = give(workload, scratch / "fast", scratch, 1)
    for kind in (torch.float32, torch.float64):
        found[f"a plain loop, {str(kind).removeprefix('torch.')}"] = _loop(given, kind)
    return found, vector(given.weights, given).astype(np.float64)


def _loop(given: Given, kind: torch.dtype) -> np.ndarray:
    """Take the steps one after the other, and average."""
    given = replace(given, images=given.images.to(kind))
    model = given.network().to(kind)
    own = dict(model.named_parameters())
    weights = {name: value.to(kind) for name, value in given.weights.items()}
    for number, devices in enumerate(given.participants, 1):
        uploads = []
        for device in devices:
            model.load_state_dict(weights, strict=False)
            steps(given, model, number, device)
            uploads.append({name: parameter.detach().clone() for name, parameter in own.items()})
        weights = {name: torch.stack([upload[name] for upload in uploads]).mean(0) for name in own}
    return vector(weights, given).astype(np.float64)


if __name__ == "__main__":
    main()
