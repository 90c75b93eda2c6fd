"""Units, containers and image name what exists: options, paths, keys."""

import fnmatch
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from deploy.credentials import make_credentials
from engines.superlink import commands

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


def _unit_command(unit: Path) -> list[str]:
    text = unit.read_text().replace("\\\n", " ")
    return shlex.split(re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1])


COMMANDS = {
    **{unit.name: _unit_command(unit) for unit in UNITS},
    **{f"compose {name}": shlex.split(service["command"]) for name, service in SERVICES.items()},
}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options that the commands have."""
    found = {}
    gate = "import sys; from deploy.cli import fleet; sys.exit(fleet())"  # installed or not
    for name, command in (
        ("flower-superlink", [str(commands() / "flower-superlink")]),
        ("flower-supernode", [str(commands() / "flower-supernode")]),
        ("airflower-fleet gate", [sys.executable, "-c", gate, "gate"]),
        ("airflower-fleet superlink", [sys.executable, "-c", gate, "superlink"]),
        ("airflower-fleet run", [sys.executable, "-c", gate, "run"]),
    ):
        text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT)
        found[name] = set(re.findall(r"--[a-z][a-z-]+", text.stdout))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_one_of_the_command(name, options):
    command = COMMANDS[name]
    which = Path(command[0]).name
    assert which in SCRIPTS
    if which == "airflower-fleet":
        which = f"{which} {command[1]}"
    which = which.replace("airflower-supernode", "flower-supernode")  # it hands them on
    known = options[which]
    if which == "airflower-fleet superlink":
        known |= options["flower-superlink"]  # and so does this
    given = {word for word in command if word.startswith("--")}
    assert given
    assert given <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_units(tmp_path):
    """In a root of its own, where the commands that the units start exist."""
    for unit in UNITS:
        target = tmp_path / "etc/systemd/system" / unit.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(unit, target)
        command = tmp_path / _unit_command(unit)[0].lstrip("/")
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text("#!/bin/sh\n")
        command.chmod(0o755)
    for target in ("sysinit", "basic", "shutdown", "network-online", "multi-user"):
        (tmp_path / "etc/systemd/system" / f"{target}.target").write_text("[Unit]\nDescription=stub\n")
    result = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", *(unit.name for unit in UNITS)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [line for line in result.stderr.splitlines() if "airflower" in line]
    assert result.returncode == 0, result.stderr
    assert said == []


def test_nothing_but_the_door_listens_beyond_loopback():
    """No unit, container or line of the guide opens the SuperLink itself to the fleet's network."""
    guide = (ROOT / "docs" / "deployment.md").read_text().replace("\\\n", " ")
    printed = [
        shlex.split(line) for line in guide.splitlines() if line.startswith("airflower-fleet superlink ")
    ]
    superlinks = [command for command in COMMANDS.values() if command[1] == "superlink"]
    assert not [name for name, command in COMMANDS.items() if "flower-superlink" in command[0]]
    assert "\nflower-superlink " not in guide
    assert len(superlinks) == 2
    assert len(printed) == 1
    for command in (*superlinks, *printed):
        assert "--host" not in command or command[command.index("--host") + 1] == "127.0.0.1"
        assert "--enable-supernode-auth" in command
        assert not {"--insecure", "--control-api-address", "--fleet-api-address"} & set(command)
    assert SERVICES["gate"]["network_mode"] == "service:superlink"
    assert SERVICES["superlink"]["ports"] == ["8443:8443"]
    for name, service in SERVICES.items():
        assert name == "superlink" or "ports" not in service
    for name, command in COMMANDS.items():
        if "node" in name:
            assert command[command.index("--superlink") + 1] in ("superlink:8443", "${SUPERLINK}")


def test_units_find_flowers_helpers_and_start_in_an_empty_folder():
    """The SuperLink starts `flower-superexec` from its PATH; what lies in the folder shadows the app."""
    for unit in UNITS:
        text = unit.read_text()
        assert "RuntimeDirectory=" in text
        assert "WorkingDirectory=/run/" in text
        assert "NoNewPrivileges=true" in text
    superlink = DEPLOY / "systemd" / "airflower-superlink.service"
    assert "Environment=PATH=/opt/airflower/venv/bin:" in superlink.read_text()


@pytest.mark.parametrize("script", ["local-fleet", "make-test-ca", "supernode", "predict"])
def test_a_clones_command_finds_the_clones_environment_or_says_what_is_missing(tmp_path, script):
    """As run by a system's Python, which has neither Flower nor airflower."""
    (tmp_path / "deploy").mkdir()
    for name in (script, "shim.py"):
        shutil.copy(DEPLOY / name, tmp_path / "deploy")
    command = [sys.executable, "-I", "-S", str(tmp_path / "deploy" / script), "--nodes", "2"]
    bare = subprocess.run(command, capture_output=True, text=True, check=False)
    assert bare.returncode == 2
    assert f"{script}: airflower is not installed for {sys.executable}" in bare.stderr
    assert "Traceback" not in bare.stderr
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "the environment runs $@"\n')
    python.chmod(0o755)
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == f"the environment runs {tmp_path / 'deploy' / script} --nodes 2\n"


def test_a_container_sees_no_private_key_but_its_own(tmp_path):
    made = make_credentials(tmp_path / "keys", nodes=2)
    private = {str(path.relative_to(tmp_path)) for path in made.folder.rglob("*")} - {
        "keys/nodes", "keys/ca.crt", "keys/server.crt", "keys/nodes/node-000.pub", "keys/nodes/node-001.pub",
    }  # fmt: skip
    seen = {}
    for name, service in SERVICES.items():
        mounts = [mount.split(":") for mount in service["volumes"] if mount.startswith("..")]
        for source, target, mode in mounts:
            assert (tmp_path / source.removeprefix("../")).is_file()
            assert mode == "ro"
            assert target in " ".join(COMMANDS[f"compose {name}"])
        seen[name] = {source.removeprefix("../") for source, _, _ in mounts} & private
    assert seen == {
        "superlink": {"keys/server.key"},
        "gate": {"keys/server.key"},
        "node-0": {"keys/nodes/node-000"},
        "node-1": {"keys/nodes/node-001"},
    }


def test_the_image_gets_the_packages_and_nothing_that_lies_around():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in "#"]
    assert patterns[0] == "*"
    taken = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for needed in (*(f"{package}/__init__.py" for package in packages), "pyproject.toml", "README.md"):
        assert any(fnmatch.fnmatch(needed, pattern) for pattern in taken), needed
    for stray in ("keys/ca.key", "outputs/x/checkpoint/a.npz", ".venv/bin/python", ".git/config"):
        assert not any(fnmatch.fnmatch(stray, pattern) for pattern in taken), stray


def test_the_images_torch_is_the_projects():
    line = next(x for x in (DEPLOY / "Dockerfile").read_text().splitlines() if "whl/cpu" in x)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for name in ("torch", "torchvision"):
        wanted = next(x for x in dependencies if re.match(rf"{name}[<>=]", x))
        assert f'"{wanted}"' in line


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose")
def test_compose_accepts_the_file():
    subprocess.run(
        ["docker-compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
