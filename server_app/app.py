"""The Flower ServerApp: `flwr run . --run-config 'overrides="scheme=proposed seed=3"'`."""

import json
from datetime import datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from protocol.own_files import find_own_modules
from server_app.overrides import split
from server_app.run import SUMMARY, run
from server_app.schema import build
from server_app.settings import Settings, compose_settings
from server_app.watch import watched

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Take the settings from the run-config, or compose them, and run them on the connected devices."""
    find_own_modules()
    given = str(context.run_config.get("settings", ""))
    if given:
        settings = build(Settings, json.loads(given))
    else:
        settings = compose_settings(split(str(context.run_config.get("overrides", ""))))
    folder = str(context.run_config.get("out-dir", "")) or f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}"
    path = Path(folder).expanduser().resolve()
    print(f"records: {path}", flush=True)
    with watched(path / SUMMARY):
        # With engine=flower this is a simulation that the airflower command has started on its own machine.
        run(settings, grid, path, on_nodes=settings.engine.name != "flower")
