"""The commands `deploy/local-fleet` and `deploy/make-test-ca`."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from deploy.credentials import make_credentials
from server_app.schema import ConfigError

log = logging.getLogger(__name__)

CONFIG_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130


def local_fleet(arguments: Sequence[str] | None = None) -> int:
    """Run a job on a fleet of processes on this machine; return 0 only if the run completed."""
    parser = argparse.ArgumentParser(
        prog="local-fleet",
        description="Start a SuperLink with TLS and N authenticated SuperNodes here, run the job, stop all.",
    )
    parser.add_argument("--nodes", type=int, required=True, metavar="N", help="number of SuperNodes")
    parser.add_argument("--out", type=Path, help="folder of the records (default: outputs/date/time-fleet)")
    parser.add_argument("--state-dir", type=Path, help="folder of the personal parts (default: thrown away)")
    parser.add_argument("--resources", action="store_true", help="report memory, processor time and bytes")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as of the airflower command")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    _interrupt_once()
    folder = (options.out or Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}-fleet")).resolve()
    try:
        _run(options, folder)
    except ConfigError as error:
        log.error("local-fleet: %s", error)
        return CONFIG_ERROR
    except KeyboardInterrupt:
        log.error("local-fleet: interrupted")
        return INTERRUPTED
    except Exception as error:
        log.error("local-fleet: the run failed: %s: %s", type(error).__name__, error)
        return RUN_ERROR
    return 0


def _run(options: argparse.Namespace, folder: Path) -> None:
    from deploy.local_fleet import LocalFleet
    from deploy.resources import Usage
    from engines.superlink import absolute
    from server_app.settings import compose_settings

    if options.nodes < 1:
        raise ConfigError(f"--nodes {options.nodes}; a fleet has at least 1 node")
    if any(override.startswith("fleet.num_devices=") for override in options.overrides):
        raise ConfigError("fleet.num_devices is given by --nodes")
    settings = compose_settings([f"fleet.num_devices={options.nodes}", *options.overrides])
    log.info("records: %s", folder)
    with tempfile.TemporaryDirectory(prefix="airflower-fleet-") as scratch:
        state = options.state_dir.resolve() if options.state_dir else None
        with LocalFleet(Path(scratch), options.nodes, folder / "logs", state_dir=state) as fleet:
            log.info("SuperLink (TLS, SuperNode keys) on 127.0.0.1:%d", fleet.port)
            for index in range(options.nodes):
                fleet.start_node(index)
            log.info("%d SuperNodes started", options.nodes)
            usage = Usage()
            watch = usage.sample if options.resources else (lambda: None)
            fleet.run(absolute(settings, options.overrides), folder, watch)
            if options.resources:
                facts = fleet.flwr.run_facts(fleet.run_id)
                for line in usage.lines(
                    folder / "logs" / "warm.log", facts, nodes=options.nodes, rounds=settings.rounds
                ):
                    log.info("%s", line)


def make_test_ca(arguments: Sequence[str] | None = None) -> int:
    """Make a test CA, the SuperLink's certificate and SuperNode keys."""
    parser = argparse.ArgumentParser(
        prog="make-test-ca",
        description="Make a CA, the SuperLink's certificate and SuperNode keys for a trial fleet.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=10, metavar="N", help="number of SuperNode keys (10)")
    parser.add_argument(
        "--host",
        action="append",
        dest="hosts",
        help="name or address of the SuperLink; repeatable (localhost and 127.0.0.1)",
    )
    parser.add_argument("--days", type=int, default=365, help="validity of the certificates (365)")
    options = parser.parse_args(arguments)
    try:
        make_credentials(
            options.folder,
            nodes=options.nodes,
            hosts=options.hosts or ("localhost", "127.0.0.1"),
            days=options.days,
        )
    except (ValueError, OSError) as error:
        print(f"make-test-ca: {error}", file=sys.stderr)
        return CONFIG_ERROR
    print(f"CA, certificate and {options.nodes} keys: {options.folder}")
    return 0


def supernode(arguments: Sequence[str] | None = None) -> int:
    """Keep ``flower-supernode`` running with these arguments and a warm process beside it."""
    from deploy.supernode import keep_running

    _interrupt_once()
    try:
        return keep_running(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        return 0  # told to stop: not a failure to a supervisor


def _interrupt_once() -> None:
    """Let the first Ctrl-C or SIGTERM unwind, and no other disturb it: nothing is to stay behind."""

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
