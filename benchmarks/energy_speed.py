"""Joint optima of time and energy for many devices: seconds and certificates.

    python -m benchmarks.energy_speed [devices]

Loads are relative to a cell that starves most of 100 000 devices (3), and one that starves none (1e-5).
"""

from __future__ import annotations

import sys
import time

import numpy as np

from radio.allocation.energy_aware import allocate_energy, verify_energy
from tests.radio.energy_cases import draw_terms


def main() -> None:
    devices = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(f"{devices} devices: load, alpha, charge | CPU-s | duality gap, KKT residual | sending")
    for load, alpha, charge in (
        (3.0, 0.0, False), (3.0, 0.0, True), (1e-3, 0.0, False), (1e-5, 0.0, False), (1e-5, 0.0, True),
        (1e-3, 1.0, False),
    ):  # fmt: skip
        for seed in (1, 2, 3):
            terms = draw_terms(seed, devices, load=load, charge=charge)
            started = time.process_time()
            found = allocate_energy(terms, alpha=alpha)
            spent = time.process_time() - started
            judged = verify_energy(terms, found, alpha=alpha)
            sending = int(np.sum(found.pruning_ratio < 1))
            print(
                f"{load:g}, {alpha:g}, {charge} | {spent:.2f} | "
                f"{judged.duality_gap:.1e}, {judged.residual:.1e} | {sending}",
                flush=True,
            )


if __name__ == "__main__":
    main()
