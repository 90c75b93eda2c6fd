"""Who is at the other end of a connection within this machine, and that nobody else is served."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn

from engines import flower_command
from engines.flower_command import kernel_tells, owner

LINUX = pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="the kernel tells on Linux")
NOBODY = 65534
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
REST = "00000000:00000000 00:00000000 00000000"


def _table(path: Path, *rows: str) -> Path:
    path.write_text(HEAD + "".join(f"   {number}: {row}\n" for number, row in enumerate(rows)))
    return path


@pytest.mark.skipif(sys.byteorder != "little", reason="the lines are a little-endian machine's")
def test_the_kernels_table_is_read_as_proc_5_describes_it(tmp_path, monkeypatch):
    """127.0.0.1:39546 -> 127.0.0.1:33303 as Linux 6 printed it, and what is like it and is not it."""
    v4 = _table(
        tmp_path / "tcp",
        f"0100007F:8217 00000000:0000 0A {REST}  1001        0 11 1 0",  # the listener
        f"0100007F:8217 0100007F:9A7A 01 {REST}  1002        0 12 1 0",  # the near end
        f"0100007F:9A7A 0100007F:8217 01 {REST}  1003        0 13 1 0",  # the far end
        f"0100007F:9A7B 0100007F:8217 05 {REST}     0        0 0 1 0",  # closed: shown as root's
        f"0200007F:9A7C 0100007F:8217 01 {REST}  1004        0 14 1 0",  # 127.0.0.2
    )
    v6 = _table(
        tmp_path / "tcp6",
        f"{24 * '0'}01000000:9A7D {24 * '0'}01000000:8217 01 {REST}  1005        0 15 1 0",
        f"{16 * '0'}FFFF00000100007F:9A7E {16 * '0'}FFFF00000100007F:8217 01 {REST}  1006        0 16 1 0",
    )
    monkeypatch.setattr(flower_command, "_TABLES", {4: v4, 6: v6})
    server = ("127.0.0.1", 33303)
    assert owner(("127.0.0.1", 39546), server) == 1003
    assert owner(("127.0.0.1", 39547), server) is None
    assert owner(("127.0.0.2", 39548), server) == 1004
    assert owner(("127.0.0.1", 39548), server) is None
    assert owner(("::1", 39549), ("::1", 33303)) == 1005
    assert owner(("127.0.0.1", 39550), server) == 1006  # a socket for IPv6 that uses IPv4
    assert owner(("::ffff:127.0.0.1", 39546), ("::ffff:127.0.0.1", 33303)) == 1003  # and a server's
    assert owner(("192.0.2.7", 39546), server) is None  # another machine
    monkeypatch.setattr(flower_command, "_TABLES", {4: tmp_path / "none", 6: tmp_path / "none"})
    assert owner(("127.0.0.1", 39546), server) is None
    assert not kernel_tells()


def test_a_row_that_a_change_of_the_table_has_hidden_is_looked_for_again(monkeypatch):
    row = f"   0: 0100007F:9A7A 0100007F:8217 01 {REST}  1003        0 13 1 0\n"

    texts = [HEAD, HEAD + row]
    table = SimpleNamespace(read_text=lambda: texts.pop(0))
    monkeypatch.setattr(flower_command, "_TABLES", {4: table, 6: Path("/nowhere")})
    monkeypatch.setattr(sys, "byteorder", "little")
    assert owner(("127.0.0.1", 39546), ("127.0.0.1", 33303)) == 1003


@LINUX
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_connection_of_our_own_is_ours_until_it_is_closed(family, host):
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"no {host} here")
        listener.listen()
        client = socket.create_connection(listener.getsockname()[:2])
        served, peer = listener.accept()
        with served:
            assert owner(peer[:2], served.getsockname()[:2]) == os.geteuid()
            assert kernel_tells()
            client.close()
            assert owner(peer[:2], served.getsockname()[:2]) is None


async def _hello(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@contextlib.contextmanager
def _served(users: list[int], http: str) -> Iterator[int]:
    """Serve hello to these users as Flower serves its interfaces; yield the port."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Config, "load", uvicorn.Config.load)  # put back afterwards
        flower_command.serve_only(users)
        config = uvicorn.Config(
            _hello, host="127.0.0.1", port=0, http=http, ws="none", lifespan="off", log_level="warning"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join(10)


ASK = """
import os, socket, sys
port, user = map(int, sys.argv[1:])
"x".encode("idna")  # imports what the other user may not read
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
with socket.create_connection(("127.0.0.1", port), timeout=20) as s:
    try:
        s.sendall(b"POST /v1/control/start-run HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n\\r\\n")
        while block := s.recv(4096):
            sys.stdout.write(block.decode())
    except ConnectionError:
        pass
"""


def _ask(port: int, user: int = 0) -> str:
    """Return what a process of a user gets to a call that would start a run; 0: our own user."""
    command = [sys.executable, "-I", "-S", "-c", ASK, str(port), str(user)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@LINUX
@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_others_are_cut_off_with_a_word_in_the_log(http, caplog, capsys):
    stranger = os.geteuid() + 12345  # we are nobody to a server of this user
    with _served([stranger], http) as port:
        assert _ask(port) == ""
        assert _ask(port) == ""
    assert capsys.readouterr().out.count(f"of user {os.geteuid()}") == 1
    with _served([stranger, os.geteuid()], http) as port:
        assert _ask(port).endswith("\n\nhello")
    assert not [record for record in caplog.records if record.levelname == "ERROR"], caplog.text


@LINUX
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_account_of_this_machine_is_cut_off():
    with _served([0], "auto") as port:
        assert _ask(port, NOBODY) == ""
        assert _ask(port).endswith("hello")
    with _served([0, NOBODY], "auto") as port:
        assert _ask(port, NOBODY).endswith("hello")


def test_a_user_that_is_not_there_is_said_before_anything_is_served():
    with pytest.raises(SystemExit, match="--allow-user no-such-user: there is no such user"):
        flower_command.main(["--allow-user", "no-such-user", "flower-superlink"])
