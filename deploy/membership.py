"""Who belongs to a fleet: ``airflower-fleet approve``, ``rotate``, ``revoke`` and ``list``.

Two places say it: the SuperLink, which answers to registered keys only, and the roster, which says which key
is which device. These commands change both, in an order that leaves no moment in which a node that belongs to
the fleet is refused, or one that does not is let in. A line of the roster notes the node's name and the id
that the SuperLink knows it by; a key that was revoked stays there as a comment.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Protocol

from deploy.enrolment import Request, read_request
from records.ownership import owned
from schema import ConfigError
from server_app.run import RunFailedError
from strategies.identity import Entry, read_entries

_NODE = re.compile(r"\bnode=(\d+)\b")


class Register(Protocol):
    """The SuperLink's list of keys, as `engines.superlink.Flwr` gives it."""

    def register(self, public_key: Path, name: str) -> str:
        """Register a public key; return the node's id."""
        ...

    def unregister(self, node: str) -> None:
        """Have a node refused from now on."""
        ...

    def nodes(self) -> Sequence[dict[str, str]]:
        """Return what is known of each node."""
        ...


class Membership:
    """The roster and the SuperLink's register of a fleet, changed together.

    Args:
        roster: the file; made by the first approval.
        register: the SuperLink's.
    """

    def __init__(self, roster: Path, register: Register) -> None:
        self.roster, self._register = roster, register

    def approve(self, request: Request) -> str:
        """Let a node in, and return its id.

        Raises:
            ConfigError: if its index or key is in the roster already.
            RunFailedError: if the SuperLink does not take it.
        """
        with self._changing() as entries:
            for entry in entries:
                if entry.fingerprint == request.fingerprint:
                    raise ConfigError(f"{self.roster}: this key is that of device {entry.index} already")
                if entry.index == request.device:
                    raise ConfigError(
                        f"{self.roster}: device {entry.index} has the key {entry.fingerprint}; "
                        "`airflower-fleet rotate` gives it another one, `revoke` takes it away"
                    )
            node = self._registered(request)
            try:
                self._write([*self._lines(), _line(request, node)])
            except OSError:
                self._register.unregister(node)
                raise
        return node

    def rotate(self, request: Request) -> tuple[str, Entry]:
        """Give a device another key; return its new id, and the entry of the old key, which is refused now.

        Raises:
            ConfigError: if the device is not in the roster, or has the key already.
            RunFailedError: if the SuperLink does not take it.
        """
        with self._changing() as entries:
            old = self._find(entries, str(request.device))
            if any(entry.fingerprint == request.fingerprint for entry in entries):
                raise ConfigError(f"{self.roster}: this key is there already; a rotation needs a new one")
            former = self._node(old)
            node = self._registered(request)
            lines = self._lines()
            lines[old.line - 1 : old.line] = [_former("rotated", lines[old.line - 1]), _line(request, node)]
            try:
                self._write(lines)
            except OSError:
                self._register.unregister(node)
                raise
            self._register.unregister(former)
        return node, old

    def revoke(self, who: str) -> Entry:
        """Have a node refused for good.

        Args:
            who: index, name or fingerprint.

        Raises:
            ConfigError: if nobody is called that.
            RunFailedError: if the SuperLink does not do it.
        """
        with self._changing() as entries:
            entry = self._find(entries, who)
            self._register.unregister(self._node(entry))  # first: from now on it is refused
            lines = self._lines()
            lines[entry.line - 1] = _former("revoked", lines[entry.line - 1])
            self._write(lines)
        return entry

    def table(self) -> Sequence[tuple[str, ...]]:
        """Return device, name, node id, status and fingerprint of everybody, with a heading."""
        known = {node["node-id"]: node for node in self._register.nodes()}
        rows = [("device", "name", "node", "status", "key")]
        for entry in sorted(self._entries(), key=lambda entry: entry.index):
            node = _node_of(entry)
            status = known.pop(node, {}).get("status", "not registered")
            rows.append((str(entry.index), _name_of(entry) or "-", node or "-", status, entry.fingerprint))
        for node, facts in known.items():
            if facts["status"] != "unregistered":
                rows.append(("-", "-", node, facts["status"], "not in the roster"))
        return rows

    def _registered(self, request: Request) -> str:
        with tempfile.TemporaryDirectory() as folder:
            public = Path(folder) / f"{request.name}.pub"
            public.write_text(f"{request.public_key}\n")
            return self._register.register(public, request.name)

    def _find(self, entries: Sequence[Entry], who: str) -> Entry:
        found = [entry for entry in entries if who in (str(entry.index), _name_of(entry), entry.fingerprint)]
        if len(found) != 1:
            problem = "names several devices" if found else "is no device, name or fingerprint of it"
            raise ConfigError(f"{self.roster}: {who!r} {problem}")
        return found[0]

    def _node(self, entry: Entry) -> str:
        if node := _node_of(entry):
            return node
        raise ConfigError(
            f"{self.roster}, line {entry.line}: it does not say which node this is; `flwr supernode list` "
            "shows the nodes, and node=<id> behind the key notes it"
        )

    @contextmanager
    def _changing(self) -> Iterator[Sequence[Entry]]:
        """Let nobody else change the roster meanwhile."""
        lock = self.roster.with_name(f".{self.roster.name}.lock")
        try:
            with owned(lock, wait=True):
                yield self._entries()
        except OSError as error:
            raise ConfigError(f"{error.filename or self.roster}: {error.strerror or error}") from error

    def _entries(self) -> Sequence[Entry]:
        if not self.roster.is_file():
            return []
        try:
            return read_entries(self.roster)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def _lines(self) -> list[str]:
        return self.roster.read_text(encoding="utf-8").splitlines() if self.roster.is_file() else []

    def _write(self, lines: Sequence[str]) -> None:
        """Replace the roster at once: runs look at it while they last."""
        fresh = self.roster.with_name(f".{self.roster.name}.new")
        with fresh.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.roster)


def _line(request: Request, node: str) -> str:
    return f"{request.device} {request.public_key} {request.name} node={node}"


def _former(what: str, line: str) -> str:
    return f"# {what} {date.today()}: {line}"


def _node_of(entry: Entry) -> str:
    found = _NODE.search(entry.comment)
    return found[1] if found else ""


def _name_of(entry: Entry) -> str:
    return _NODE.sub("", entry.comment).strip()


def main(command: str, arguments: Sequence[str] | None) -> int:
    """Run one of the commands; return its exit code."""
    parser = argparse.ArgumentParser(prog=f"airflower-fleet {command}", description=_TEXTS[command])
    if command in ("approve", "rotate"):
        parser.add_argument("request", type=Path, help="of `airflower-supernode enrol`, KEY.csr")
        parser.add_argument(
            "--fingerprint", help="that the node showed; without it, it is shown here and asked for"
        )
    if command == "revoke":
        parser.add_argument("who", help="index of the device, name, or fingerprint")
    parser.add_argument("--roster", type=Path, default=Path("keys/roster"), help="(keys/roster)")
    parser.add_argument(
        "--superlink",
        default="",
        metavar="NAME",
        help="a connection in the Flower home (its default), or HOST:PORT",
    )
    parser.add_argument(
        "--root-certificates",
        type=Path,
        metavar="FILE",
        help="certificate of the CA, with --superlink HOST:PORT",
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            from deploy.lab_fleet import flwr_of

            members = Membership(
                options.roster, flwr_of(options.superlink, Path(folder), options.root_certificates)
            )
            for line in _done(command, members, options):
                print(line)
    except (ConfigError, RunFailedError) as error:
        print(f"airflower-fleet: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _done(command: str, members: Membership, options: argparse.Namespace) -> Iterator[str]:
    if command == "list":
        rows = members.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        return
    if command == "revoke":
        entry = members.revoke(options.who)
        yield f"device {entry.index} ({entry.fingerprint}) is refused from now on"
        return
    request = read_request(options.request)
    _confirm(request, options.fingerprint)
    if command == "approve":
        node = members.approve(request)
        yield f"device {request.device}, {request.name}: approved as node {node} ({request.fingerprint})"
    else:
        node, old = members.rotate(request)
        yield f"device {request.device}, {request.name}: now node {node} ({request.fingerprint})"
        yield f"its former key is refused from now on ({old.fingerprint})"


def _confirm(request: Request, given: str | None, ask: Callable[[str], str] = input) -> None:
    """See that the request is the one that the node has made, not one that was put in its place.

    Raises:
        ConfigError: if it is not, or nobody can say.
    """
    if given is None:
        print(f"device {request.device}, {request.name}: {request.fingerprint}")
        try:
            given = ask("Does the node show the same fingerprint? Type yes, or the fingerprint: ").strip()
        except EOFError:
            raise ConfigError("--fingerprint is needed where nobody can be asked") from None
        if given == "yes":
            return
    if given != request.fingerprint:
        raise ConfigError(
            f"the request has the key {request.fingerprint}, not {given!r}: it is not the one that the node "
            "has made; nothing was changed"
        )


_TEXTS = {
    "approve": "Let a node into the fleet: register the key of its request, and note it in the roster.",
    "rotate": "Give a device that is in the roster a new key; the former one is refused from then on.",
    "revoke": "Have a node refused for good. Its key cannot be registered again.",
    "list": "List the devices of the roster, and what the SuperLink knows of their nodes.",
}
