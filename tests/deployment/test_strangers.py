"""Who stands in a fleet's network has the calls of a SuperNode and nothing else, with real processes.

A stranger with `ca.crt`, and a node of the fleet with its key, try what the operator can do: by Flower's own
command and by each of its calls. Meanwhile the honest nodes train, and the run ends as it should.
"""

import datetime
import os
import re
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import RegisterNodeFleetRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from deploy import exposure, gate
from deploy.credentials import make_node_key
from deploy.local_fleet import LocalFleet
from engines.superlink import Flwr, commands, environment, follow
from tests.deployment.doors import DOORS, NGINX_USER, asked_by, opened
from tests.deployment.fleets import SMALL, rounds, wait

pytestmark = [pytest.mark.slow, pytest.mark.fleet]

LINUX = pytest.mark.skipif(not Path("/proc/net/tcp").is_file(), reason="needs Linux's /proc/net/tcp")
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
NOBODY = 65534

EVIL = """
from pathlib import Path
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
Path({proof!r}).touch()
app = {kind}()
"""


def _evil_app(folder: Path, proof: Path) -> Path:
    """Write an app that leaves a trace wherever it is executed."""
    package = folder / "evil"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for kind in ("ServerApp", "ClientApp"):
        (package / f"{kind.lower()}.py").write_text(EVIL.format(proof=str(proof), kind=kind))
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "evil"\nversion = "1.0.0"\ndescription = ""\nlicense = "Apache-2.0"\n'
        '[tool.flwr.app]\npublisher = "evil"\nfab-include = ["evil/**/*.py"]\n'
        '[tool.flwr.app.components]\nserverapp = "evil.serverapp:app"\nclientapp = "evil.clientapp:app"\n'
    )
    return folder


def _signed(key: Path) -> dict[str, str]:
    """Return the headers with which a SuperNode proves that it has its key."""
    private = load_ssh_private_key(key.read_bytes(), None)
    assert isinstance(private, EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(private.public_key())).decode(),
        "flwr-timestamp": now,
        "flwr-signature": b64encode(sign_message(private, now.encode())).decode(),
    }


def _call(port: int, trust: Path, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
    import ssl

    context = ssl.create_default_context(cafile=str(trust))
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        kind = {"content-type": "application/protobuf", "accept": "application/protobuf"}
        return client.post(f"https://127.0.0.1:{port}{path}", content=body, headers={**kind, **headers})


@pytest.mark.parametrize("door", DOORS)
def test_a_stranger_and_a_node_of_the_fleet_have_no_control(tmp_path, door, capsys):
    out, proof = tmp_path / "out", tmp_path / "executed"
    app = _evil_app(tmp_path / "app", proof)
    make_node_key(tmp_path / "stranger")
    users = [NGINX_USER] if door == "nginx" and NGINX_USER else []
    with LocalFleet(tmp_path / "fleet", 2, tmp_path / "logs", allowed_users=users) as fleet:
        keys = fleet.credentials
        with opened(door, tmp_path / "door", keys, fleet.control_port) as port:
            for index in range(2):
                fleet.start_node(index, superlink_port=port)
            run_id = fleet.submit([*SMALL, "rounds=3", "evaluate_every=3"], out)
            wait(lambda: rounds(out) >= 1, "a first round", out)
            registered = _nodes(fleet)

            home = tmp_path / "stranger-home"
            home.mkdir()
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "127.0.0.1:{port}"\n'
                f'root-certificates = "{keys.ca_certificate}"\n'
            )
            stranger = Flwr(commands() / "flwr", tmp_path, environment(commands(), home))
            for attempt in (
                ("run", str(app), "lab"),
                ("supernode", "register", str(tmp_path / "stranger.pub"), "lab"),
                ("stop", run_id, "lab"),
            ):
                answer = stranger._json(*attempt)
                assert answer.get("success") is False, (attempt, answer)

            proofs: dict[str, dict[str, str]] = {"nothing": {}, "its own key": _signed(tmp_path / "stranger"),
                      "a key of the fleet": _signed(keys.node_key(0))}  # fmt: skip
            for who, headers in proofs.items():
                for _, path in PROTOBUF_REQUEST_TYPES:
                    if path not in gate.NODE_API:
                        status = _call(port, keys.ca_certificate, path, b"", headers).status_code
                        assert status == 404, (who, path)
            before = (tmp_path / "logs" / "superlink.log").read_text()
            assert "/v1/control/start-run" in before  # ours: the log would show theirs
            assert before.count("/v1/control/start-run") == 1

            # The calls that do pass ask for the key: without one, or for another node, they give nothing.
            # node-000 has one of the two ids, and its key is good for one of them only.
            answers: dict[str, list[int]] = {}
            for node in registered:
                beat = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=30)
                for who, headers in proofs.items():
                    response = _call(
                        port, keys.ca_certificate, "/v1/fleet/send-node-heartbeat",
                        beat.SerializeToString(), headers,
                    )  # fmt: skip
                    answers.setdefault(who, []).append(response.status_code)
            assert answers["nothing"] == answers["its own key"] == [401, 401]
            assert sorted(answers["a key of the fleet"]) == [200, 401]
            own = RegisterNodeFleetRequest(public_key=b"x").SerializeToString()
            assert _call(port, keys.ca_certificate, "/v1/fleet/register-node", own, {}).status_code == 404

            assert exposure.main([f"127.0.0.1:{port}", "--root-certificates", str(keys.ca_certificate)]) == 0
            said = capsys.readouterr().out
            assert "OPEN" not in said
            straight = f"127.0.0.1:{fleet.control_port}"
            assert exposure.main([straight, "--root-certificates", str(keys.ca_certificate)]) == 1
            assert "control (register keys, run apps, read logs): OPEN" in capsys.readouterr().out

            summary = follow(fleet.flwr, run_id, fleet.superlink, out)
            assert summary["status"] == "completed"
            assert summary["rounds_with_failures"] == 0
            assert _nodes(fleet) == registered  # nobody has been added
            runs = fleet.flwr._json("list", "airflower").get("runs")
            assert [str(run["run-id"]) for run in runs] == [run_id]
        assert not proof.exists()


def _nodes(fleet: LocalFleet) -> set[int]:
    return {int(node["node-id"]) for node in fleet.flwr._json("supernode", "list", "airflower")["nodes"]}


@LINUX
def test_whoever_listens_on_the_nodes_network_finds_one_port(tmp_path):
    """The SuperLink itself, and the nodes' own interfaces, are on loopback."""
    with LocalFleet(tmp_path / "fleet", 1, tmp_path / "logs") as fleet:
        listening = _listening_with(_node(fleet, tmp_path))
        assert {address for address, _ in listening} == {"0100007F"}


@LINUX
@ROOT
def test_another_account_of_the_machine_reaches_the_door_only(tmp_path):
    with LocalFleet(tmp_path / "fleet", 1, tmp_path / "logs") as fleet:
        ports = {port for _, port in _listening_with(_node(fleet, tmp_path))}
        assert ports > {fleet.port, fleet.control_port}
        for port in ports - {fleet.port}:
            for tls in (False, True):
                assert asked_by(NOBODY, port, tls=tls) == "", port
        assert " 404 " in asked_by(NOBODY, fleet.port, tls=True)
        assert "HTTP/1.1 " in asked_by(0, fleet.control_port, tls=True)  # the same call, by its own user
        for port in ports - {fleet.port, fleet.control_port}:
            assert "HTTP/1.1 " in asked_by(0, port, tls=False)


@LINUX
@ROOT
def test_another_account_does_not_reach_the_superlink_of_a_simulation(tmp_path):
    run = [sys.executable, "-m", "experiments.cli", "engine=flower", "rounds=1", "hydra.run.dir=out", *SMALL]
    with subprocess.Popen(run, cwd=tmp_path) as process:
        try:
            log = tmp_path / "out" / "superlink.log"
            wait(lambda: log.is_file() and "running on http" in log.read_text(), "a SuperLink", tmp_path)
            port = int(re.search(r"running on http://127.0.0.1:(\d+)", log.read_text())[1])
            assert asked_by(NOBODY, port, tls=False) == ""
            assert "HTTP/1.1 " in asked_by(0, port, tls=False)
            assert process.wait(400) == 0
        finally:
            process.terminate()


def _node(fleet: LocalFleet, folder: Path) -> int:
    """Start a SuperNode as `airflower-supernode` does; return its process once it listens."""
    node = fleet.start_node(0, tended=True)
    wait(lambda: "Application startup" in (folder / "logs" / "node-000.log").read_text(), "it", folder)
    return node.pid


def _listening_with(pid: int) -> set[tuple[str, int]]:
    """Return where the processes of a fleet listen, one of which is `pid`: addresses in hex, and ports."""
    mark = dict(
        item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item
    )
    pids = [
        entry.name for entry in os.scandir("/proc")
        if entry.name.isdecimal() and mark["AIRFLOWER_GUARD"] in _environ(entry.name)
    ]  # fmt: skip
    inodes = {link for pid in pids for link in _sockets(pid)}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                listening.add((address, int(port, 16)))
    return listening


def _environ(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""


def _sockets(pid: str) -> list[str]:
    found = subprocess.run(
        ["ls", "-l", f"/proc/{pid}/fd"], capture_output=True, text=True, check=False
    ).stdout
    return [part.split("]")[0] for part in found.split("socket:[")[1:]]
