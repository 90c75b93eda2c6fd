"""The commands `airflower-fleet` and `airflower-supernode`.

One file, long as it is: a short function for each of them, beside its arguments.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from schema import ConfigError

if TYPE_CHECKING:
    from server_app.settings import Settings

log = logging.getLogger(__name__)

CONFIG_ERROR, RUN_ERROR, INTERRUPTED = 2, 1, 130
_STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def fleet(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand of ``airflower-fleet``; return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in _COMMANDS:
        return _COMMANDS[given[0]](given[1:])
    parser = argparse.ArgumentParser(prog="airflower-fleet", description="Fleets of SuperNodes.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in _COMMANDS.items():
        text = str(command.__doc__).partition("\n")[0].rstrip(".")
        commands.add_parser(name, help=text, add_help=False)
    parser.parse_args(given)
    return CONFIG_ERROR


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a job on a fleet, and keep it going until it is completed.

    Returns:
        0 only if the run completed.
    """
    parser = argparse.ArgumentParser(
        prog="airflower-fleet run",
        description="Run a job on a fleet of processes here (--nodes), or on the one of a running SuperLink "
        "(--superlink). What ends is started again, and the run goes on from its last checkpoint. The same "
        "command with the same --out goes on with a run that was interrupted or killed.",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="start a SuperLink (TLS) and N SuperNodes with keys here",
    )
    where.add_argument(
        "--superlink", metavar="NAME",
        help="a connection in the Flower home, to a SuperLink on this machine; or HOST:PORT",
    )  # fmt: skip
    parser.add_argument(
        "--root-certificates",
        type=Path,
        metavar="FILE",
        help="certificate of the CA, with --superlink HOST:PORT",
    )
    parser.add_argument("--out", type=Path, help="folder of the records (default: outputs/date/time-fleet)")
    parser.add_argument(
        "--state-dir", type=Path, help="folder of the personal parts, with --nodes (default: OUT/state)"
    )
    parser.add_argument(
        "--tries", type=int, default=10, metavar="N",
        help="starts in a row without another round stored, after which the run is given up (10)",
    )  # fmt: skip
    parser.add_argument(
        "--resources", action="store_true", help="report memory, processor time and bytes, with --nodes"
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as of the airflower command")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    _interrupt_once()
    folder = (options.out or Path(f"outputs/{datetime.now():%Y-%m-%d/%H-%M-%S}-fleet")).resolve()
    try:
        _check_platform()
        if options.tries < 1:
            raise ConfigError(f"--tries {options.tries}; a run is started at least once")
        _run_here(options, folder) if options.nodes is not None else _run_there(options, folder)
    except ConfigError as error:
        log.error("airflower-fleet: %s", error)
        return CONFIG_ERROR
    except KeyboardInterrupt:
        log.error("airflower-fleet: interrupted; the same command with --out %s goes on with the run", folder)
        return INTERRUPTED
    except Exception as error:
        log.error("airflower-fleet: the run failed: %s: %s", type(error).__name__, error)
        return RUN_ERROR
    return 0


def _check_platform() -> None:
    """Raise ConfigError where processes cannot be forked and told to stop as fleets need it."""
    lacks = [name for name in ("fork", "killpg") if not hasattr(os, name)]
    lacks += [name for name in ("SIGHUP",) if not hasattr(signal, name)]
    if lacks:
        raise ConfigError(
            f"fleets run on Linux and macOS; this Python ({sys.platform}) lacks {', '.join(lacks)}"
        )


def _composed(given: Sequence[str]) -> tuple[Settings, list[str]]:
    """Return the settings of a job, and its overrides with paths that hold everywhere."""
    from engines.superlink import absolute, with_absolute_paths
    from server_app.settings import compose_settings

    settings = compose_settings(list(given))
    return with_absolute_paths(settings), absolute(settings, given)


def _run_here(options: argparse.Namespace, folder: Path) -> None:
    from deploy.credentials import roster
    from deploy.local_fleet import LocalFleet
    from deploy.resources import Usage
    from deploy.supervise import insist, standing, supervise
    from engines.superlink import tell_the_end
    from engines.temporary import SOCKET, short_folder
    from records.ownership import holder_of, owned
    from server_app.settings.overrides import override

    if options.root_certificates is not None:
        raise ConfigError("--root-certificates is for --superlink HOST:PORT; this fleet makes its own")
    if options.nodes < 1:
        raise ConfigError(f"--nodes {options.nodes}; a fleet has at least 1 node")
    if any(override.startswith("fleet.num_devices=") for override in options.overrides):
        raise ConfigError("fleet.num_devices is given by --nodes")
    settings, overrides = _composed([f"fleet.num_devices={options.nodes}", *options.overrides])
    log.info("records: %s", folder)
    with owned(folder / "logs"), ExitStack() as last:  # one supervisor at a time
        if holder_of(folder) is None and standing(folder, settings).completed:
            log.info("the run was completed before")
            return
        last.callback(tell_the_end, folder)  # when the ServerApp is gone
        state = (options.state_dir or folder / "state").resolve()

        def start() -> LocalFleet:
            scratch = Path(last.enter_context(short_folder("airflower-fleet-", SOCKET)))
            return last.enter_context(
                LocalFleet(scratch, options.nodes, folder / "logs", state_dir=state, throw_away=True)
            )

        started = insist(start, tries=options.tries)
        log.info("SuperLink (TLS, SuperNode keys) on 127.0.0.1:%d", started.port)
        log.info("its control API, for the operator: 127.0.0.1:%d, loopback only", started.control_port)
        for index in range(options.nodes):
            started.start_node(index, tended=True)
        log.info("%d SuperNodes started", options.nodes)
        if settings.fleet.roster is None and settings.fleet.identity == "key":
            # The keys are new each time: a run that continues another one is told whose is whose.
            overrides.append(override("fleet.roster", str(roster(started.credentials, options.nodes))))
        usage = Usage()

        def watch() -> None:
            started.tend()
            if options.resources:
                usage.sample()

        supervise(started, settings, overrides, folder, watch=watch, tries=options.tries)
        if options.resources:
            facts = started.flwr.run_facts(started.run_id)
            warm_log = folder / "logs" / "warm.log"
            for line in usage.lines(warm_log, facts, nodes=options.nodes, rounds=settings.rounds):
                log.info("%s", line)


def _run_there(options: argparse.Namespace, folder: Path) -> None:
    from deploy.lab_fleet import LabFleet
    from deploy.supervise import supervise
    from records.ownership import owned

    for option in ("state_dir", "resources"):
        if getattr(options, option):
            raise ConfigError(f"--{option.replace('_', '-')} is for --nodes; a lab has its own")
    settings, overrides = _composed(options.overrides)
    log.info("records: %s", folder)
    with owned(folder / "logs"), tempfile.TemporaryDirectory(prefix="airflower-lab-") as scratch:
        fleet = LabFleet(options.superlink, Path(scratch), options.root_certificates)
        supervise(fleet, settings, overrides, folder, tries=options.tries)


def make_test_ca(arguments: Sequence[str] | None = None) -> int:
    """Make a CA, the SuperLink's certificate and SuperNode keys."""
    from deploy.credentials import make_credentials, roster

    parser = argparse.ArgumentParser(
        prog="airflower-fleet credentials",
        description="Make a CA, the SuperLink's certificate and, for trials, SuperNode keys.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--nodes",
        type=int,
        default=10,
        metavar="N",
        help="number of SuperNode keys, for trials (10); 0: each node makes its own",
    )
    parser.add_argument(
        "--host",
        action="append",
        dest="hosts",
        help="name or address of the SuperLink; repeatable (localhost and 127.0.0.1 are always in it)",
    )
    parser.add_argument("--days", type=int, default=365, help="validity of the certificates (365)")
    options = parser.parse_args(arguments)
    try:
        made = make_credentials(
            options.folder, nodes=options.nodes, hosts=options.hosts or (), days=options.days
        )
        if options.nodes:
            roster(made, options.nodes)
    except (ValueError, OSError) as error:
        print(f"airflower-fleet: {error}", file=sys.stderr)
        return CONFIG_ERROR
    print(f"CA, certificate and {options.nodes} keys: {options.folder}")
    return 0


def superlink(arguments: Sequence[str] | None = None) -> int:
    """Run flower-superlink so that only its own user on this machine reaches it."""
    import ipaddress

    from engines.flower_command import start_command
    from engines.superlink import commands

    parser = argparse.ArgumentParser(
        prog="airflower-fleet superlink",
        allow_abbrev=False,  # other options are Flower's
        description="Run flower-superlink on loopback, with these arguments, so that only its own user on "
        "this machine (and root) reaches it; nodes reach it through a gate. Also sees to its PATH.",
        epilog="All other arguments are those of flower-superlink: flower-superlink --help.",
    )
    parser.add_argument(
        "--allow-user", action="append", default=[], metavar="USER",
        help="a further user that may connect, such as the reverse proxy's (www-data); repeatable",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address of loopback (127.0.0.1)")
    options, given = parser.parse_known_args(arguments)
    try:
        loopback = options.host == "localhost" or ipaddress.ip_address(options.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        print(
            f"airflower-fleet: --host {options.host}: whoever reaches a SuperLink can run code through it, "
            "so it listens on loopback; nodes come through the gate (airflower-fleet gate, or nginx)",
            file=sys.stderr,
        )
        return CONFIG_ERROR
    path = os.pathsep.join([str(commands()), os.environ.get("PATH", "")])  # its helpers are there
    command = [*start_command("flower-superlink", options.allow_user), "--host", options.host, *given]
    sys.stdout.flush()
    os.execve(command[0], command, {**os.environ, "PATH": path})


def serve_gate(arguments: Sequence[str] | None = None) -> int:
    """Pass the calls of SuperNodes on to a SuperLink on loopback, and no others."""
    from deploy import gate

    return gate.main(arguments)


def check(arguments: Sequence[str] | None = None) -> int:
    """Look at a SuperLink from here: is it reachable, and is only what nodes need?

    Returns:
        0 if it is reachable and its control interface is not.
    """
    from deploy.exposure import main

    return main(arguments)


def approve(arguments: Sequence[str] | None = None) -> int:
    """Let a node into the fleet by the request that it made."""
    from deploy.membership import main

    return main("approve", arguments)


def rotate(arguments: Sequence[str] | None = None) -> int:
    """Give a device another key."""
    from deploy.membership import main

    return main("rotate", arguments)


def revoke(arguments: Sequence[str] | None = None) -> int:
    """Have a node refused for good."""
    from deploy.membership import main

    return main("revoke", arguments)


def list_members(arguments: Sequence[str] | None = None) -> int:
    """List the devices of the roster and their nodes."""
    from deploy.membership import main

    return main("list", arguments)


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": run,
    "credentials": make_test_ca,
    "superlink": superlink,
    "gate": serve_gate,
    "check": check,
    "approve": approve,
    "rotate": rotate,
    "revoke": revoke,
    "list": list_members,
}


def supernode(arguments: Sequence[str] | None = None) -> int:
    """Keep ``flower-supernode`` running with these arguments and a warm process beside it.

    ``predict`` asks the model that a node has trained instead.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["predict"]:
        from deploy.predict import main

        return main(given[1:])
    if given[:1] == ["enrol"]:
        return _enrol(given[1:])
    _interrupt_once()
    try:
        _check_platform()
        from deploy.supernode import NodeOptions, keep_running, with_state_dir
        from engines.flower_command import start_command

        if {"--help", "-h", "--version", "-V"} & set(given):
            return subprocess.call([*start_command("flower-supernode"), *given])
        options = NodeOptions.read(given)
        for line in options.check().splitlines():
            print(f"supernode: {line}", flush=True)
        given, note = with_state_dir(given)
        if note:
            print(f"supernode: {note}", flush=True)
        return keep_running(given, options)
    except ConfigError as error:
        print(f"supernode: {error}", file=sys.stderr)
        return CONFIG_ERROR
    except KeyboardInterrupt:
        return 0  # told to stop: not a failure to a supervisor


def _enrol(arguments: Sequence[str]) -> int:
    from deploy.enrolment import enrol

    parser = argparse.ArgumentParser(
        prog="airflower-supernode enrol",
        description="Make this node's own key, and a request for the operator of the fleet. The key stays.",
    )
    parser.add_argument("key", type=Path, help="file of the private key; KEY.pub and KEY.csr are made too")
    parser.add_argument("--device", type=int, required=True, metavar="N", help="index of the device")
    parser.add_argument("--name", default="", help="of the node, for people (device-N)")
    options = parser.parse_args(arguments)
    try:
        request = enrol(options.key, options.device, options.name)
    except ConfigError as error:
        print(f"airflower-supernode: {error}", file=sys.stderr)
        return CONFIG_ERROR
    print(f"device {request.device}, {request.name}: {request.fingerprint}")
    print(f"send {options.key}.csr to the operator, and tell the fingerprint another way")
    print(f"then: airflower-supernode --auth-supernode-private-key {options.key} ...")
    return 0


def _interrupt_once() -> None:
    """Let the first Ctrl-C, SIGTERM or SIGHUP unwind, and no other disturb it: nothing is to stay behind."""

    def interrupt(*_: object) -> None:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays so
            signal.signal(number, interrupt)
