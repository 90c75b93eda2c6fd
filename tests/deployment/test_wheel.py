"""The commands of an installed wheel, in an empty folder: no clone is there to find anything in."""

import os
import subprocess
import sys
import venv
from importlib.metadata import entry_points
from pathlib import Path

import flwr
import pytest

pytest.importorskip("hatchling")
pytestmark = pytest.mark.exhaustive

ROOT = Path(__file__).parents[2]
SMALL = ("model=mlp", "rounds=1", "partition.samples_per_device=40", "partition.test_samples_per_device=20")


HELP = {
    "airflower": "scheme",
    "airflower-reproduce": "p1_fig5",
    "airflower-fleet": "credentials",
    "airflower-supernode": "--auth-supernode-private-key",
}


class Installation:
    """A virtual environment with the wheel, beside the packages that the tests have."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        dist, place = folder / "dist", folder / "venv"
        _do([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)], ROOT)
        venv.create(place, with_pip=True, symlinks=True)
        self.commands = place / "bin"
        python = str(self.commands / "python")
        (wheel,) = dist.glob("*.whl")
        _do([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], self.work)
        packages = next((place / "lib").glob("python*/site-packages"))
        (packages / "others.pth").write_text(f"{Path(flwr.__file__).parents[1]}\n")
        for found in entry_points(group="console_scripts"):
            if found.dist is not None and found.dist.name == "flwr":  # as an installation has them
                script = self.commands / found.name
                module, _, function = found.value.partition(":")
                script.write_text(f"#!{python}\nfrom {module} import {function}\n{function}()\n")
                script.chmod(0o755)

    def run(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the wheel."""
        path = os.pathsep.join([str(self.commands), "/usr/bin", "/bin"])
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.commands / command), *arguments], cwd=self.work, env={**variables, "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip


def _do(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installation:
    return Installation(tmp_path_factory.mktemp("wheel"))


def test_the_code_is_that_of_the_wheel(installed):
    code = "import server_app, conf; print(server_app.__file__, *conf.__path__)"
    for path in installed.run("python", "-c", code).stdout.split():
        assert path.startswith(str(installed.commands.parent))


def test_a_run_and_its_report(installed):
    done = installed.run("airflower", *SMALL, "fleet.num_devices=2", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    assert '"completed"' in (installed.work / "out" / "summary.json").read_text()
    done = installed.run("airflower-report", "out", "--out", "report")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", HELP)
def test_a_command_says_what_it_takes(installed, command):
    done = installed.run(command, "--help")
    assert done.returncode == 0, done.stderr
    assert HELP[command] in done.stdout


def test_a_node_with_a_useless_setting_is_told_so(installed):
    done = installed.run(
        "airflower-supernode", "--insecure", "--node-config", "partition-id=7 num-partitions=2"
    )
    assert done.returncode == 2
    assert "partition-id" in done.stderr


def test_a_fleet_runs(installed):
    done = installed.run("airflower-fleet", "run", "--nodes", "2", "--out", "fleet", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"completed"' in (installed.work / "fleet" / "summary.json").read_text()
