"""The Flower ServerApp: `flwr run . --run-config 'overrides="scheme=proposed seed=3"'`."""

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TextIO

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from protocol.interrupts import Interrupted, interruptible
from protocol.own_files import find_own_modules
from records.ownership import new_folder
from schema import build
from server_app.run import OWN_LOGGERS, run
from server_app.run_config import overrides_of
from server_app.settings import Settings, compose_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Take the settings from the run-config, or compose them, and run them on the connected devices."""
    find_own_modules()
    given = str(context.run_config.get("settings", ""))
    if given:
        settings = build(Settings, json.loads(given))
    else:
        settings = compose_settings(overrides_of(context.run_config))
    folder = str(context.run_config.get("out-dir", ""))
    path = Path(folder).expanduser() if folder else new_folder(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}")
    print(f"records: {path.resolve()}", flush=True)
    _show_progress()
    try:
        with interruptible():
            # With engine=flower this is a simulation that the airflower command has started on its machine.
            run(settings, grid, path.resolve(), on_nodes=settings.engine.name != "flower")
    except Interrupted as signal:
        if signal.from_outside:
            os.kill(os.getpid(), signal.number)  # now it is Flower's to end this process
        raise RuntimeError(f"the run was stopped by {signal}") from signal


def _show_progress() -> None:
    """Print the lines of the run, so that ``flwr run --stream`` and ``flwr log`` show them."""
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Progress) for handler in logger.handlers):
            logger.addHandler(_Progress(sys.stdout))


class _Progress(logging.StreamHandler[TextIO]):
    """Plain lines; of its own type, so that it is added once."""
