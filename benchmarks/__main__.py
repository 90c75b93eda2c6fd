"""Every speed figure of the project beside its baseline, measured in one run.

python -m benchmarks [--quick] [--json FILE] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from benchmarks import averaging, batched, engines, local_training, own_networks, scale
from benchmarks.measure import HEADER, machine_facts

PARTS = {
    "device": local_training.device_figures,
    "training": local_training.figures,
    "batched": batched.figures,
    "own": own_networks.figures,
    "averaging": averaging.figures,
    "engines": engines.figures,
    "scale": scale.figures,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed figures with baselines.")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # before workers fork; the baseline takes what it is given
    facts = machine_facts()
    print("; ".join(f"{name} {value}" for name, value in facts.items()), end="\n\n", flush=True)
    print(HEADER, flush=True)
    found = []
    for name in arguments.only:
        for figure in PARTS[name](quick=arguments.quick):
            print(figure.row(), flush=True)
            found.append(figure)
    if arguments.json:
        report = {"machine": facts, "figures": [figure.to_dict() for figure in found]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
