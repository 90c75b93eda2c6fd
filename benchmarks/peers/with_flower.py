"""Flower's simulation on Ray."""

from __future__ import annotations

import os
import warnings

from flwr.simulation import run_simulation

from benchmarks.peers.flower_app import client_app, server_app
from benchmarks.peers.given import folder_of_side, load

if __name__ == "__main__":
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine starts it slowly
    warnings.simplefilter("ignore")
    side = load(folder_of_side())
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=len(side.images),
        backend_config={
            "client_resources": {"num_cpus": 1},
            "init_args": {"num_cpus": side.threads, "include_dashboard": False},
        },
    )
