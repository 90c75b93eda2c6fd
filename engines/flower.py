"""Flower's own simulation as an engine: a private SuperLink, `flwr run`, and an honest exit code.

What a bare ``flwr run .`` leaves to chance is settled here:

- The SuperLink is ours: its own state folder, port and lifetime, so no leftover of another run (its
  environment, working directory or code) is reused, and nothing stays behind.
- It starts in an empty folder: Ray's workers put that folder ahead of the app on ``sys.path``, and a
  folder with packages of the same names would shadow the app's.
- Runtime installation of dependencies is off: it would fetch other packages than those installed.
- The run's own summary decides success (see `engines.superlink`).
- Only the processes of the user reach it (see `engines.flower_command`): on loopback, it would run code for
  every account of the machine.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from engines.flower_command import start_command
from engines.processors import usable_processors
from engines.ray import credentials
from engines.superlink import (
    CONNECTION,
    Flwr,
    app_folder,
    commands,
    environment,
    follow,
    free_ports,
    stop_run,
    tell_the_end,
    wait_for,
    with_absolute_paths,
)
from engines.temporary import RAY, short_folder
from protocol.guard import Guard
from protocol.interrupts import held
from records.ownership import SUMMARY, lock_variables, owned, refuse_used
from server_app.resume import continues
from server_app.settings import Settings


def run_flower(settings: Settings, folder: Path) -> dict[str, Any]:
    """Run a job through `flwr run` on a private SuperLink and return its summary.

    Args:
        settings: the checked settings; the ServerApp gets these, and composes nothing.
        folder: where the records go.

    Raises:
        ConfigError: if Flower's commands cannot be found, or no temporary folder with a short path.
        RunFailedError: if the SuperLink does not start or the run does not complete.
    """
    command_folder = commands()
    folder = folder.resolve()
    with owned(folder):
        if not continues(settings, folder):
            refuse_used(folder)
        (folder / SUMMARY).unlink(missing_ok=True)
        with short_folder("airflower-", RAY) as scratch:
            return _run(settings, folder, Path(scratch), command_folder)


def _run(settings: Settings, folder: Path, scratch: Path, command_folder: Path) -> dict[str, Any]:
    home, neutral = scratch / "home", scratch / "cwd"
    home.mkdir()
    neutral.mkdir()
    port = free_ports(1)[0]
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    variables = {
        **environment(command_folder, home),
        "RAY_DEDUP_LOGS": "0",
        "RAY_TMPDIR": str(scratch),
        **credentials(),
        **lock_variables(folder),
    }
    command = [
        *start_command("flower-superlink"),
        *("--insecure", "--simulation", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    with held(), (folder / "superlink.log").open("wb") as output:
        guard = Guard(scratch)
        superlink = subprocess.Popen(
            command,
            cwd=neutral,
            env={**variables, **guard.variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    flwr = Flwr(command_folder / "flwr", neutral, {**variables, **guard.variables})
    run_id = ""
    try:
        wait_for(port, superlink, folder / "superlink.log")
        workers = settings.engine.workers or usable_processors()
        run_id = flwr.submit(
            app_folder(scratch),
            with_absolute_paths(settings),
            folder,
            scratch,
            federation=f"num-supernodes={settings.fleet.num_devices} client-resources-num-cpus=1 "
            f"init-args-num-cpus={workers}",
        )
        return follow(flwr, run_id, superlink, folder)
    except KeyboardInterrupt as signal:
        if run_id:
            stop_run(folder, signal)
        raise
    finally:
        with held():
            guard.close()
            superlink.wait()
            tell_the_end(folder)
