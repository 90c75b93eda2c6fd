"""What the house promises of its files: short, or with a reason; the server's room holds its task alone."""

import ast
from pathlib import Path

import pytest

from tests.test_import_directions import RANK

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for room in RANK for path in (ROOT / room).rglob("*.py"))
LONG, ROOM = 350, 2500


@pytest.mark.parametrize("path", [path for path in FILES if path.read_text().count("\n") > LONG], ids=str)
def test_a_long_file_says_why_it_is_one(path):
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert "one file" in docstring.lower(), (
        f"{path.relative_to(ROOT)} has more than {LONG} lines, and no reason"
    )


def test_the_server_keeps_to_its_side_of_a_round():
    lines = sum(path.read_text().count("\n") for path in (ROOT / "server_app").rglob("*.py"))
    assert lines < ROOM
