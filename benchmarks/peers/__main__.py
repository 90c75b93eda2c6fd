"""Every workload on every side, in turn, as one table.

python -m benchmarks.peers [--only W1 W2 ...] [--sides ours plain ...] [--repeats 3] [--environments FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import machine_facts
from benchmarks.peers.environments import SIDES, python_of
from benchmarks.peers.given import Given, vector
from benchmarks.peers.prepare import give
from benchmarks.peers.watched import Run, watch
from benchmarks.peers.workloads import WORKLOADS, Workload
from records.checkpoint import latest

ROOT = Path(__file__).resolve().parents[2]
_HEADER = (
    "| workload | side | s per round | processor s | x ours: wall | processor | spread of wall "
    "| first round, s | peak MiB | weights of ours, within |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=2,
        help="processes or threads of the others; ours takes a process for each processor. On a machine that "
        "does other work, too, take 1 and look at the processor seconds: threads that wait for others spin",
    )  # fmt: skip
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "airflower" / "peers")
    parser.add_argument("--json", type=Path, help="also every time, as JSON")
    arguments = parser.parse_args()
    pythons = {}
    for name in dict.fromkeys(["ours", *arguments.sides]):
        try:
            pythons[name] = python_of(name, arguments.environments)
        except Exception as error:  # no such Python here, no network: the others are measured all the same
            print(f"{SIDES[name].text} is left out: {error}", file=sys.stderr)
    print(json.dumps(machine_facts()))
    print(_HEADER, flush=True)
    everything, failed = {}, False
    for name in arguments.only:
        try:
            runs, apart = _measure(name, WORKLOADS[name], pythons, arguments.repeats, arguments.threads)
        except RuntimeError as error:  # of ours; the other workloads are measured all the same
            print(f"{name} is left out: {error}", file=sys.stderr)
            failed = True
            continue
        for line in _rows(name, WORKLOADS[name], runs, apart):
            print(line, flush=True)
        everything[name] = {side: [asdict(run) for run in found] for side, found in runs.items()}
    if arguments.json:
        arguments.json.write_text(json.dumps(everything))
    if failed:
        sys.exit(1)


def _measure(
    name: str, workload: Workload, pythons: dict[str, Path], repeats: int, threads: int
) -> tuple[dict[str, list[Run]], dict[str, float]]:
    """Return each side's runs, and how far its weights were from ours at the end."""
    sides = [side for side in pythons if not SIDES[side].workloads or name in SIDES[side].workloads]
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    apart: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        given: Given | None = None
        for repeat in range(repeats):
            for side in sides:
                folder = Path(scratch, f"{side}{repeat}")
                folder.mkdir()
                try:
                    runs[side].append(_run(side, workload, pythons[side], folder, Path(scratch), threads))
                except RuntimeError as error:
                    print(f"{SIDES[side].text}, {name}: {error}", file=sys.stderr)
                    continue
                if side == "ours":
                    given = given or give(workload, folder / "run", Path(scratch), threads)
                    with np.load(latest(folder / "run") / "server.npz") as archive:
                        ours = archive["weights"]
                    _check_training(given, ours)
                    apart[side] = 0.0
                elif given is not None:
                    theirs = vector(torch.load(Path(scratch, "final.pt"), weights_only=True), given)
                    apart[side] = float(np.abs(theirs - ours).max())
    return runs, apart


def _run(side: str, workload: Workload, python: Path, folder: Path, given: Path, threads: int) -> Run:
    if side == "ours":
        command = ["-m", "experiments.cli", *workload.overrides(), f"hydra.run.dir={folder / 'run'}"]
    else:
        launcher = [part.format(threads=threads) for part in SIDES[side].launcher]
        command = [*launcher, "-m", f"benchmarks.peers.{SIDES[side].module}", str(given)]
        (given / "final.pt").unlink(missing_ok=True)
    own = side in {"ours", "flower"}
    # Ours finds its packages as this process does; the others have theirs, and this source beside.
    path = os.pathsep.join([str(ROOT), *(sys.path if own else [])])
    return watch(
        [str(python), *command],
        folder=ROOT,
        log=folder / "log",
        variables={"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
    )


def _check_training(given: Given, weights: np.ndarray) -> None:
    """Make sure that the rounds moved the weights, and to a smaller loss where all of them are averaged.

    Raises:
        RuntimeError: if not.
    """
    first = vector(given.weights, given)
    if not np.isfinite(weights).all() or np.abs(weights - first).max() < 1e-4:
        raise RuntimeError("nothing was trained")
    if given.personal:
        return
    losses = []
    for values in (first, weights):
        model, place = given.network(), 0
        for parameter in model.parameters():
            parameter.data = torch.from_numpy(values[place : place + parameter.numel()]).view(parameter.shape)
            place += parameter.numel()
        step = max(1, given.images.shape[1] // 20)  # of all classes: they lie one after the other
        few = given.images[:, ::step].flatten(0, 1), given.labels[:, ::step].flatten()
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(model(few[0]), few[1])))
    if losses[1] >= losses[0]:
        raise RuntimeError(f"the loss was {losses[0]:.3f} before and is {losses[1]:.3f} after the rounds")
    print(f"loss before {losses[0]:.3f}, after {losses[1]:.3f}", file=sys.stderr)


def _rows(name: str, workload: Workload, runs: dict[str, list[Run]], apart: dict[str, float]) -> list[str]:
    lines = []
    ours = runs["ours"]
    for side, found in runs.items():
        if not found:
            lines.append(f"| {name}: {workload.text} | {SIDES[side].text} | failed | | | | | | | |")
            continue
        wall = [a.seconds / b.seconds for a, b in zip(found, ours, strict=False)]
        processor = [a.processor_s / b.processor_s for a, b in zip(found, ours, strict=False)]
        values = [run.seconds for run in found]
        lines.append(
            f"| {name}: {workload.text} | {SIDES[side].text} | {statistics.median(values):.3f} "
            f"| {statistics.median(run.processor_s for run in found):.3f} | {statistics.median(wall):.2f} "
            f"| {statistics.median(processor):.2f} | {min(values):.3f} - {max(values):.3f} "
            f"| {statistics.median(run.first_s for run in found):.1f} "
            f"| {max(run.peak_mib for run in found):.0f} | {apart[side]:.0e} |"
        )
    return lines


if __name__ == "__main__":
    main()
