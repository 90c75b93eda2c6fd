"""Flower's simulation on Ray, called from this process: no SuperLink, hence a quicker start.

With RAY_ADDRESS set, Ray joins that cluster (Ray itself reads the variable) and the devices run on all of its
machines, which must have the same packages and this source tree; else it starts a cluster on this machine.
`flwr.simulation.run_simulation` is deprecated and is the only way that needs no SuperLink; engine=flower is
the way that Flower recommends.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from engines.processors import usable_processors
from engines.temporary import RAY, short_folder
from protocol.guard import Guard
from protocol.interrupts import Interrupted, noted, request
from server_app.run import STOP_FILE, run
from server_app.settings import Settings


def run_ray(
    settings: Settings, folder: Path, client_app: str = "client_app.app:app", workers: int | None = None
) -> dict[str, Any]:
    """Run a job through Flower's Ray simulation and return its summary.

    Args:
        settings: the checked settings.
        folder: where the records go.
        client_app: where the ClientApp is, as ``package.module:name``.
        workers: devices at work at once; default: `engine.workers`, else one per core.

    Raises:
        ConfigError: if there is no temporary folder with a short path.
        what `server_app.run.run` raises.
    """
    from engines.workers import App

    server_app = ServerApp()
    summaries: list[dict[str, Any]] = []

    stopped: list[Interrupted] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            summaries.append(run(settings, grid, folder))
        except Interrupted as told:  # raised again in the main thread, once Ray has ended
            stopped.append(told)

    backend: dict[str, Any] = {"client_resources": {"num_cpus": 1, "num_gpus": 0}}
    if "RAY_ADDRESS" not in os.environ:  # the size of an existing cluster is not ours to set
        count = workers or settings.engine.workers or usable_processors()
        backend["init_args"] = {"num_cpus": count}
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.WARNING)
    with warnings.catch_warnings(), noted(), _scratch(local="init_args" in backend):
        warnings.simplefilter("ignore", DeprecationWarning)
        _do_without_home(folder)
        from flwr.simulation import run_simulation

        try:
            _start_ray(backend.get("init_args", {}))
            run_simulation(
                server_app=server_app,
                client_app=App(client_app, settings.fleet.num_devices).load(),
                num_supernodes=settings.fleet.num_devices,
                backend_config=backend,
            )
        except BaseException:  # Ray has not started: the ServerApp's thread would wait for its devices
            if folder.is_dir():
                request(folder / STOP_FILE, signal.SIGTERM)
            raise
    if stopped:
        raise stopped[0]
    return summaries[0]


def _start_ray(arguments: dict[str, Any]) -> None:
    """Start Ray or join it, as Flower would; SIGTERM stays ours, as Ray's handler ends the process."""
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    # Ray's processes inherit the environment, and not what this one has added to its path.
    variables = {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(runtime_env={"env_vars": variables}, include_dashboard=False, **arguments)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@cache
def credentials() -> dict[str, str]:
    """Return variables for a Ray of our own: it listens on all addresses, to those with its token.

    Ray reads the token once per process, so every run of this process (the jobs of a sweep) has the same one.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _scratch(*, local: bool) -> Iterator[None]:
    """Keep Ray's files in a folder that goes when this process ends, and its processes with it."""
    if not local or "RAY_TMPDIR" in os.environ:
        yield
        return
    with short_folder("airflower-ray-", RAY) as name, Guard(Path(name)) as guard:
        before = dict(os.environ)
        os.environ.update(guard.variables, RAY_TMPDIR=name, **credentials())  # Ray's processes inherit them
        try:
            yield
        finally:
            import ray

            ray.shutdown()  # before its processes are ended: it would abort this one
            os.environ.clear()
            os.environ.update(before)


def _do_without_home(folder: Path) -> None:
    """Name a place where Flower would keep credentials, which are not used here, if the user has no home."""
    try:
        Path.home()
    except RuntimeError:
        os.environ.setdefault("FLWR_HOME", str(folder / ".flwr"))
