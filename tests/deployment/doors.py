"""The two doors between a fleet's network and a SuperLink, our gate and nginx, for tests that try both."""

import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy import gate
from deploy.credentials import Credentials
from engines.superlink import free_ports

NGINX = Path(__file__).parents[2] / "deploy" / "nginx" / "airflower.conf"
_NGINX_USERS = [entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("www-data", "nginx")]
NGINX_USER = next(iter(_NGINX_USERS), "nobody") if os.geteuid() == 0 else ""
DOORS = [
    "gate",
    pytest.param(
        "nginx",
        marks=pytest.mark.skipif(
            shutil.which("nginx") is None,
            reason="nginx is not installed (Debian: apt-get install nginx-light)",
        ),
    ),
]


def nginx_configuration(folder: Path, keys: Credentials, port: int, superlink_port: int) -> str:
    """Return a whole nginx configuration around the file that the guide recommends, with our places."""
    text = NGINX.read_text()
    for old, new in (
        ("listen 8443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("server 127.0.0.1:8000;", f"server 127.0.0.1:{superlink_port};"),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    text = text.replace("/etc/airflower/keys", str(keys.folder))
    temporary = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = f"user {NGINX_USER};\n" if NGINX_USER else ""  # only root may choose
    return (
        f"{user}daemon off;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\nworker_processes 1;\n"
        f"events {{ worker_connections 128; }}\nhttp {{\n{temporary}\n{text}\n}}\n"
    )


@contextmanager
def opened(door: str, folder: Path, keys: Credentials, superlink_port: int) -> Iterator[int]:
    """Start a door in front of the SuperLink on a port of loopback; yield the door's own port."""
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    if door == "gate":
        options = gate.GateOptions(
            "127.0.0.1", port, f"127.0.0.1:{superlink_port}",
            keys.server_certificate, keys.server_key, keys.ca_certificate,
        )  # fmt: skip
        command = [sys.executable, "-I", gate.__file__, *gate.arguments(options)]
    else:
        configuration = folder / "nginx.conf"
        configuration.write_text(nginx_configuration(folder, keys, port, superlink_port))
        command = [str(shutil.which("nginx")), "-p", str(folder), "-c", str(configuration)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def ask(port: int, keys: Credentials, request: bytes) -> tuple[int, bytes]:
    """Send raw bytes over TLS; return the status of the first answer (0: none) and all that came back."""
    context = ssl.create_default_context(cafile=str(keys.ca_certificate))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        answer = b""
        try:
            secured.sendall(request)
            while block := secured.recv(65536):
                answer += block
        except (ConnectionError, ssl.SSLError):
            pass  # cut off: an answer, or none, has come before
    found = re.match(rb"HTTP/1\.[01] (\d+)", answer)
    return (int(found[1]) if found else 0), answer


def post(target: str, body: bytes = b"", *headers: str, method: str = "POST") -> bytes:
    """Return a raw request."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(header.lower().startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


_AS_ANOTHER = """
import os, socket, ssl, sys
user, port, secured = map(int, sys.argv[1:])
context = ssl._create_unverified_context()
"x".encode("idna")  # imports what the other user may not read
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
    try:
        if secured:
            connection = context.wrap_socket(connection)
        connection.sendall(b"POST /v1/control/list-runs HTTP/1.1\\r\\nhost: localhost\\r\\n"
                           b"content-length: 0\\r\\nconnection: close\\r\\n\\r\\n")
        print(connection.recv(4096).decode(errors="replace"))
    except (OSError, ssl.SSLError):
        pass
"""


def asked_by(user: int, port: int, *, tls: bool) -> str:
    """Return what a process of another user of this machine (0: of ours) gets to a call of the operator."""
    command = [sys.executable, "-I", "-c", _AS_ANOTHER, str(user), str(port), str(int(tls))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
