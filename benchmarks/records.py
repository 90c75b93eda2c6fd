"""One small job per scheme and engine, for comparing the records of two versions byte for byte.

``python -m benchmarks.records FOLDER`` runs the jobs; ``--against OTHER`` then compares ``rounds.csv`` and
``devices.csv`` with those that another version left in OTHER. Columns that only one version has are named
and left out of the comparison.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import subprocess
import sys
from pathlib import Path

_SMALL = (
    "model=mlp",
    "rounds=3",
    "fleet.num_devices=6",
    "partition.samples_per_device=40",
    "engine.workers=1",
)
_TIGHT = ("radio.bandwidth_hz=1.2e7", "radio.latency_threshold_ms=10")  # so that weights are pruned
_AIR = ("air.num_selected=4", "air.antennas=4")
_TIGHT_AIR = (*_AIR, "radio.bandwidth_hz=6e5", "radio.latency_threshold_ms=12")

JOBS: dict[str, tuple[str, ...]] = {
    "default": ("rounds=3",),
    "proposed": ("scheme=proposed", *_SMALL, *_TIGHT),
    "equal_bandwidth": ("scheme=equal_bandwidth", *_SMALL, *_TIGHT),
    "equal_bandwidth_joint_rho": ("scheme=equal_bandwidth_joint_rho", *_SMALL, *_TIGHT),
    "personalization_only": ("scheme=personalization_only", *_SMALL),
    "pruning_only": ("scheme=pruning_only", *_SMALL, *_TIGHT),
    "fedavg": ("scheme=fedavg", *_SMALL),
    "fixed_ratio": ("scheme=fixed_ratio", "scheme.pruning_ratio=0.4", *_SMALL),
    "simultaneous": ("scheme=simultaneous", *_SMALL, *_TIGHT),
    "printed_formula": ("scheme=printed_formula", *_SMALL, *_TIGHT),
    "over_the_air": ("scheme=over_the_air", *_SMALL, *_AIR),
    "over_the_air_models": ("scheme=over_the_air", "air.payload=model", "air.snr_db=20", *_SMALL, *_AIR),
    "error_free": ("scheme=error_free", *_SMALL, *_AIR),
    "aircomp_pruned": ("scheme=aircomp_pruned", *_SMALL, *_TIGHT_AIR),
    "aircomp_pruned_bitmap": ("scheme=aircomp_pruned", "air.count_mode=bitmap", *_SMALL, *_TIGHT_AIR),
    "lenet5_fedavg": ("scheme=fedavg", "model=lenet5", "training=fedavg", *_SMALL[1:]),
    "sgd_8bit_samples": (
        "scheme=proposed",
        "training=fedavg",
        "scheme.weighting=samples",
        "radio.bits_per_weight=8",
        *_SMALL,
        *_TIGHT,
    ),
    "batched": ("scheme=proposed", "engine.batch_devices=6", *_SMALL, *_TIGHT),
    "two_workers": ("scheme=proposed", *_SMALL[:-1], "engine.workers=2", *_TIGHT),
    "ray": ("scheme=proposed", "engine=ray", *_SMALL[:-1], *_TIGHT),
    "flower": ("scheme=proposed", "engine=flower", *_SMALL[:-1], *_TIGHT),
}
_TABLES = ("rounds.csv", "devices.csv")


def record(folder: Path, names: list[str]) -> None:
    """Run the jobs, each into a folder of its name."""
    for name in names:
        print(name, flush=True)
        target = folder / name
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run(
            [str(Path(sys.executable).with_name("airflower")), *JOBS[name], f"hydra.run.dir={target}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )


def differences(mine: Path, theirs: Path) -> list[str]:
    """Return what differs between two tables, as lines."""
    found = []
    tables = []
    for path in (mine, theirs):
        with path.open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    here, there = tables
    if len(here) != len(there):
        return [f"{len(here)} rows here, {len(there)} there"]
    columns_here, columns_there = list(here[0]) if here else [], list(there[0]) if there else []
    if only := [name for name in columns_here if name not in columns_there]:
        found.append(f"columns only here: {', '.join(only)}")
    if only := [name for name in columns_there if name not in columns_here]:
        found.append(f"columns only there: {', '.join(only)}")
    for name in columns_here:
        if name in columns_there and (
            rows := [i for i, (a, b) in enumerate(zip(here, there, strict=True)) if a[name] != b[name]]
        ):
            i = rows[0]
            found.append(f"{name}: {len(rows)} rows differ, first {i}: {here[i][name]} / {there[i][name]}")
    return found


def main() -> None:
    """Run the jobs and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", nargs="*", choices=JOBS, default=list(JOBS))
    arguments = parser.parse_args()
    record(arguments.folder, arguments.only)
    if arguments.against is None:
        return
    unlike = 0
    for name in arguments.only:
        for table in _TABLES:
            for line in differences(arguments.folder / name / table, arguments.against / name / table):
                unlike += 1
                print(f"{name}/{table}: {line}")
    print("equal" if not unlike else f"{unlike} differences")
    sys.exit(bool(unlike))


if __name__ == "__main__":
    main()
