"""The Flower ServerApp: `flwr run . --run-config 'overrides="scheme=proposed seed=3"'`."""

import shlex
from datetime import datetime
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server_app.run import run
from server_app.settings import compose_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Compose the settings from the run-config and run them on the connected devices."""
    settings = compose_settings(shlex.split(str(context.run_config.get("overrides", ""))))
    folder = str(context.run_config.get("out-dir", "")) or f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}"
    path = Path(folder).expanduser().resolve()
    print(f"records: {path}", flush=True)
    # With engine=flower this is a simulation that the airflower command has started on its own machine.
    run(settings, grid, path, on_nodes=settings.engine.name != "flower")
