"""What is wrong with a connection is said: not "check your network connection" for everything."""

import datetime
import socket
import ssl
import struct
import threading
from contextlib import contextmanager

import pytest

from deploy import credentials, exposure
from deploy.credentials import make_credentials
from engines.diagnose import trouble
from engines.superlink import free_ports


@contextmanager
def _server(made=None, *, cuts=False):
    """Accept connections on loopback: with TLS, or with plain answers; or cut them after the handshake."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = None
    if made is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.server_certificate, made.server_key)

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    if context:
                        secured = context.wrap_socket(connection, server_side=True)
                        if cuts:
                            secured.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            secured.close()
                        else:
                            secured.recv(1)
                    else:
                        connection.recv(1000)
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


class _Clock(datetime.datetime):
    shift = datetime.timedelta()

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.now(tz) + cls.shift


@pytest.fixture
def made_at(tmp_path, monkeypatch):
    def make(days, name="keys", **options):
        monkeypatch.setattr(credentials, "datetime", _Clock)
        monkeypatch.setattr(_Clock, "shift", datetime.timedelta(days=days))
        return make_credentials(tmp_path / name, nodes=1, days=30, **options)

    return make


def test_a_good_connection_is_no_trouble(made_at):
    made = made_at(0)
    with _server(made) as address:
        assert trouble(address, made.ca_certificate) == ""


def test_a_superlink_of_another_user_is_named(made_at, capsys):
    made = made_at(0)
    with _server(made, cuts=True) as address:
        assert "serves the user that started it" in trouble(address, made.ca_certificate)
        assert exposure.main([address, "--root-certificates", str(made.ca_certificate)]) == 1
    assert "cuts the connection" in capsys.readouterr().out


@pytest.mark.parametrize(("days", "said"), [(-60, "has expired"), (60, "not valid yet")])
def test_a_certificate_out_of_time_is_named(made_at, days, said):
    made = made_at(days)
    with _server(made) as address:
        assert said in trouble(address, made.ca_certificate)


def test_another_ca_is_named(made_at):
    made, other = made_at(0), made_at(0, "other")
    with _server(made) as address:
        assert f"not signed by {other.ca_certificate}" in trouble(address, other.ca_certificate)


def test_another_name_is_named(made_at, monkeypatch):
    monkeypatch.setattr(credentials, "LOOPBACK", ())
    made = made_at(0, hosts=["superlink.lab"])
    with _server(made) as address:
        assert "is for other names" in trouble(address, made.ca_certificate)


def test_a_port_that_another_program_has_taken_is_named(made_at):
    with _server() as address:
        assert "without TLS; another program may have taken the port" in trouble(
            address, made_at(0).ca_certificate
        )


def test_an_address_where_nobody_is_is_named(made_at):
    trust = made_at(0).ca_certificate
    (port,) = free_ports(1)
    assert trouble(f"127.0.0.1:{port}", trust) == f"nothing listens on 127.0.0.1:{port}"
    assert "nowhere.invalid has no address" in trouble("nowhere.invalid:1", trust)
    assert "is no host:port" in trouble("localhost", trust)
    assert "cannot be read" in trouble(f"127.0.0.1:{port}", trust.with_name("none.crt"))
