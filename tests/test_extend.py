"""The templates of docs/extend run exactly as they are printed, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = sorted(
    page for page in (Path(__file__).parents[1] / "docs" / "extend").glob("*.md") if page.stem != "README"
)
OWN = Path(__file__).parents[1] / "docs" / "bring_your_own.md"
BLOCK = re.compile(r"(?:`(?P<name>[\w./-]+)`:\n\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


def test_the_overview_lists_every_page() -> None:
    overview = (PAGES[0].parent / "README.md").read_text()
    assert set(re.findall(r"\]\((\w+\.md)\)", overview)) == {page.name for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, OWN], ids=lambda page: page.stem)
def test_the_page_runs_as_printed(page: Path, tmp_path: Path) -> None:
    commands = 0
    for block in BLOCK.finditer(page.read_text()):
        if block["name"]:
            file = tmp_path / block["name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block["text"])
        elif block["kind"] == "bash":
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            done = subprocess.run(
                ["bash", "-euc", block["text"]],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{block['text']}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            commands += 1
    assert commands, f"{page.name} has no command"
