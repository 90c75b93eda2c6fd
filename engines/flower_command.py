"""Run one of Flower's commands so that only its own user's processes reach what it serves.

    python -P flower_command.py [--allow-user USER ...] flower-superlink ARGUMENTS...

Flower 1.42's SuperLink and SuperNode listen on TCP ports and ask nobody who they are: on loopback, every
account of the machine could run code through them. Linux tells to whom the other end of a connection within
the machine belongs (``/proc/net/tcp``, where an ident server looks). Connections of anybody else are cut
before a byte of them is read; root passes, who needs no door, and so do the users that are named, such as
the one of a reverse proxy. What comes from another machine has no other end here and is cut, too: so this
is for what listens on loopback.

Where the kernel does not tell (macOS), everybody is let in, as by Flower's own command, and a line says so.
Only the standard library and what Flower's commands import themselves.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import entry_points
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}
_ESTABLISHED = "01"  # a socket that nobody holds any more is shown as root's
_ROOT = 0
_LOOKS = 3  # the kernel prints the table piece by piece: what changes meanwhile can hide a row

Address = tuple[str, int]


def start_command(name: str, allowed: Sequence[str] = ()) -> list[str]:
    """Return the command line that starts one of Flower's commands in this way, but for its arguments.

    Args:
        name: of Flower's command.
        allowed: further users that may connect, by name or number.
    """
    users = [word for user in allowed for word in ("--allow-user", user)]
    return [sys.executable, "-P", __file__, *users, name]  # -P: this folder's modules are not to be imported


def owner(peer: Address, own: Address) -> int | None:
    """Return the user to whom the other end of a TCP connection belongs.

    Args:
        peer: address and port of the other end.
        own: address and port of this end.

    Returns:
        the user id; None if that end is not on this machine or is closed, or where the kernel does not tell.
    """
    for _ in range(_LOOKS):
        for table, first, second in _rows(peer, own):
            try:
                lines = table.read_text().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                fields = line.split()
                if fields[1:4] == [first, second, _ESTABLISHED]:
                    return int(fields[7])
    return None


def _rows(peer: Address, own: Address) -> list[tuple[Path, str, str]]:
    """Return in which tables, and under which two addresses, the other end would stand."""
    ends = [(_plain(host), port) for host, port in (peer, own)]
    versions = {address.version for address, _ in ends}
    if versions == {4}:  # the other end may as well be a socket for IPv6 that uses IPv4
        mapped = [(IPv6Address(f"::ffff:{address}"), port) for address, port in ends]
        return [(_TABLES[4], *map(_entry, ends)), (_TABLES[6], *map(_entry, mapped))]  # type: ignore[list-item]
    return [(_TABLES[6], *map(_entry, ends))] if versions == {6} else []  # type: ignore[list-item]


def _plain(host: str) -> IPv4Address | IPv6Address:
    address = ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _entry(end: tuple[IPv4Address | IPv6Address, int]) -> str:
    """Return an address and port as the kernel prints them: words of 32 bits in the machine's byte order."""
    packed = end[0].packed
    words = (int.from_bytes(packed[i : i + 4], sys.byteorder) for i in range(0, len(packed), 4))
    return "".join(f"{word:08X}" for word in words) + f":{end[1]:04X}"


def kernel_tells() -> bool:
    """Return whether the owner of a connection can be found here: tried with one of our own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()) as client:
            return owner(client.getsockname(), client.getpeername()) == os.geteuid()


def only_for(protocol: type[asyncio.Protocol], users: Iterable[int]) -> type[asyncio.Protocol]:
    """Return a protocol that serves these users on this machine as `protocol` does, and cuts off others."""
    allowed = frozenset(users)
    told: set[int | None] = set()

    def tell(user: int | None, peer: Address) -> None:
        if user not in told:  # once each: nobody is to fill the log
            told.add(user)
            whose = "of nobody here, or closed at once" if user is None else f"of user {user}"
            print(f"cut a connection from {peer[0]}:{peer[1]}, {whose}", flush=True)

    class OnlyFor(protocol):  # type: ignore[valid-type, misc]
        _served = False

        def connection_made(self, transport: Any) -> None:
            peer, own = (transport.get_extra_info(name)[:2] for name in ("peername", "sockname"))
            user = owner(peer, own)
            self._served = user in allowed
            if self._served:
                super().connection_made(transport)
            else:
                transport.abort()
                tell(user, peer)

        def data_received(self, data: bytes) -> None:
            if self._served:
                super().data_received(data)

        def eof_received(self) -> bool | None:
            return super().eof_received() if self._served else None

        def connection_lost(self, error: Exception | None) -> None:
            if self._served:
                super().connection_lost(error)

    return OnlyFor


def serve_only(users: Iterable[int]) -> None:
    """Have every uvicorn server of this process serve only these users."""
    from uvicorn.config import Config

    load = Config.load

    def guarded(self: Config) -> None:
        load(self)
        self.http_protocol_class = only_for(self.http_protocol_class, users)

    Config.load = guarded  # type: ignore[method-assign]


def _user_id(user: str) -> int:
    import pwd

    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SystemExit(f"--allow-user {user}: there is no such user") from None


def _ended(command: Callable[[], Any]) -> int:
    """Run Flower's command; return its exit code."""
    try:
        command()
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command that the arguments name; return its exit code."""
    given, users = list(arguments), []
    while given[:1] == ["--allow-user"]:
        users.append(_user_id(given[1]))
        del given[:2]
    (command,) = entry_points(group="console_scripts", name=given[0])
    sys.argv = given
    if kernel_tells():
        serve_only([os.geteuid(), _ROOT, *users])
    else:
        print(f"{given[0]}: this system does not tell whose a connection is: every account may use it")
    return _ended(command.load())


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # a server thread of a SuperNode whose work is over would keep the process
