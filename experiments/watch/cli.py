"""The `airflower-watch` command."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live

from experiments.watch.serve import HOST, server
from experiments.watch.state import Snapshot, look, newest
from experiments.watch.terminal import render
from schema import ConfigError

_SECONDS = 1.0
CONFIG_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 if the run completed or goes on, 1 if it ended badly, 2 if there is no such run, 130 if interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="airflower-watch",
        description="Show a run or a sweep while it goes on: rounds, accuracy, devices. It only reads.",
    )
    parser.add_argument("folder", nargs="?", type=Path, help="of a run or sweep (default: the newest here)")
    parser.add_argument("--once", action="store_true", help="show what there is, and leave")
    parser.add_argument(
        "--serve",
        type=int,
        metavar="PORT",
        help=f"until Ctrl-C as a page, /state.json and /metrics (Prometheus) on {HOST}; 0: any free port",
    )
    options = parser.parse_args(arguments)
    try:
        folder = options.folder or newest(Path.cwd())
        snapshot = look(folder)
        with ExitStack() as stack:
            serves = options.serve is not None and not options.once
            if serves:
                _serve(options.serve, folder, stack)
            status = _show(folder, snapshot, once=options.once)
            if serves:
                _stay()
            return status
    except ConfigError as error:
        print(f"airflower-watch: {error}", file=sys.stderr)
        return CONFIG_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _serve(port: int, folder: Path, stack: ExitStack) -> None:
    try:
        found = server(port, lambda: look(folder))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--serve {port}: {error}; 0 takes any free port") from error
    stack.callback(found.server_close)
    stack.callback(found.shutdown)
    threading.Thread(target=found.serve_forever, daemon=True, name="watch").start()
    print(f"http://{HOST}:{found.server_address[1]}/", flush=True)


def _stay() -> None:
    """Let the page be read, and the last numbers be scraped, until somebody ends it."""
    print("the run has ended; the page stays until Ctrl-C", flush=True)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()


def _show(folder: Path, snapshot: Snapshot, *, once: bool) -> int:
    console = Console()
    if once or not console.is_terminal:
        while not once and not snapshot.over:
            time.sleep(_SECONDS)
            snapshot = look(folder)
        console.print(render(snapshot, console))
        return _status(snapshot)
    with Live(render(snapshot, console), console=console, auto_refresh=False) as live:
        while not snapshot.over:
            time.sleep(_SECONDS)
            snapshot = look(folder)
            live.update(render(snapshot, console), refresh=True)
    return _status(snapshot)


def _status(snapshot: Snapshot) -> int:
    bad = snapshot.sweep.failed > 0 if snapshot.sweep is not None else snapshot.status != "completed"
    return RUN_ERROR if snapshot.over and bad else 0


if __name__ == "__main__":
    sys.exit(main())
