"""Keys that nobody else can read, and a certificate that TLS accepts."""

import shutil
import socket
import ssl
import stat
import subprocess
import threading

import pytest

from deploy.credentials import make_credentials


def test_private_keys_are_the_owners_only(tmp_path):
    made = make_credentials(tmp_path / "keys", nodes=2)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.folder.rglob("*")}
    for name in ("ca.key", "server.key", "node-000", "node-001"):
        assert modes[name] == 0o600
    assert stat.S_IMODE(made.folder.stat().st_mode) == modes["nodes"] == 0o700


def test_nothing_is_overwritten(tmp_path):
    made = make_credentials(tmp_path, nodes=1)
    before = made.server_key.read_bytes()
    with pytest.raises(FileExistsError):
        make_credentials(tmp_path, nodes=1)
    assert made.server_key.read_bytes() == before


def _handshake(made, name, trusted=None):
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.server_certificate, made.server_key)
    client = ssl.create_default_context(cafile=str(trusted or made.ca_certificate))
    near, far = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(server, far))
    thread.start()
    try:
        with near, client.wrap_socket(near, server_hostname=name) as secured:
            return secured.version()
    finally:
        thread.join()


def _serve(context, connection):
    with connection:
        try:
            context.wrap_socket(connection, server_side=True).close()
        except (ssl.SSLError, OSError):
            return


def test_the_certificate_is_trusted_for_its_hosts_and_by_its_ca_only(tmp_path):
    made = make_credentials(tmp_path / "a", nodes=1, hosts=["superlink.lab", "127.0.0.1"])
    assert _handshake(made, "superlink.lab").startswith("TLS")
    assert _handshake(made, "127.0.0.1").startswith("TLS")
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(made, "other.lab")
    other = make_credentials(tmp_path / "b", nodes=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(made, "superlink.lab", trusted=other.ca_certificate)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_node_keys_are_openssh_keys(tmp_path):
    made = make_credentials(tmp_path, nodes=1)
    public = subprocess.run(
        ["ssh-keygen", "-y", "-f", str(made.node_key(0))], capture_output=True, text=True, check=True
    ).stdout
    assert public.split()[:2] == made.node_key(0).with_suffix(".pub").read_text().split()[:2]
    assert public.startswith("ecdsa-sha2-nistp384")
