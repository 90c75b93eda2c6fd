"""The README's recipe for a policy and a scheduler of one's own works exactly as printed, in every engine."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
QUICK = (
    *("model=mlp", "rounds=1", "partition.samples_per_device=40", "partition.test_samples_per_device=20"),
    *("fleet.num_devices=3", "engine.workers=1"),
)


def write_as_printed(folder: Path) -> list[list[str]]:
    """Write the recipe's files, each under the name in its first line; return its commands' arguments."""
    recipe = README.read_text(encoding="utf-8").split("scheduler of your own", 1)[1].split("\n## ", 1)[0]
    commands = []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", recipe, re.DOTALL):
        if language == "bash":
            commands += [shlex.split(line)[1:] for line in block.splitlines()]
            continue
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block, encoding="utf-8")
    assert len(commands) == 3
    return commands


@pytest.mark.parametrize(
    "engine",
    [
        "inprocess",
        pytest.param("ray", marks=pytest.mark.exhaustive),
        pytest.param("flower", marks=pytest.mark.exhaustive),
    ],
)
def test_the_recipe_runs_as_printed(tmp_path, engine):
    for number, command in enumerate(write_as_printed(tmp_path)):
        out = f"hydra.run.dir=out{number}"
        small = [*QUICK, "air.num_selected=2"] if "scheme=over_the_air" in command else QUICK
        result = subprocess.run(
            # -P: an installed command does not have the working directory on its path
            [sys.executable, "-P", "-m", "experiments.cli", *command, *small, f"engine={engine}", out],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert (tmp_path / f"out{number}" / "rounds.csv").read_text().count("\n") == 2
