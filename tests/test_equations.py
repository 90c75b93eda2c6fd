"""docs/equations.md: every function is there and names its equation, and no named equation is missing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPERS = {"1": "Liu et al. 2024", "2": "2508.00341"}
CITATION = re.compile(r"\b[Ee]q(?:uation)?s?\.?\s+((?:\(\d+\)(?:\s*(?:-|,|and|to|or)\s*)?)+)", re.DOTALL)
ROOMS = ("radio", "task", "protocol", "client_app", "strategies")


def numbers(text: str) -> set[int]:
    """Equations in a text such as "(8)-(10), (54)": 8, 9, 10, 54."""
    found = set()
    for first, last in re.findall(r"\((\d+)\)(?:\s*-\s*\((\d+)\))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def rows() -> Iterator[tuple[str, set[int], str]]:
    """Yield the paper, the equations and one `file:function` of every row."""
    paper = ""
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        if heading := re.match(r"## (\d):", line):
            paper = heading[1]
        if line.startswith("| ("):
            equation, _, places = line.strip("| ").split(" | ")
            for place in re.findall(r"`([^`]+:[^`]+)`", places):
                yield paper, numbers(equation), place


def documented(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and docstring of the module ("") and of all classes and functions in a file."""

    def inside(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                own = f"{name}.{child.name}".lstrip(".")
                yield own, ast.get_docstring(child) or ""
                yield from inside(child, own)

    tree = ast.parse(file.read_text())
    yield "", ast.get_docstring(tree) or ""
    yield from inside(tree, "")


def cited(text: str) -> set[int]:
    """Equations that a docstring names."""
    return {number for match in CITATION.findall(text) for number in numbers(match)}


@pytest.mark.parametrize(("paper", "equations", "place"), list(rows()), ids=str)
def test_the_function_exists_and_names_the_equation(paper: str, equations: set[int], place: str) -> None:
    file, name = place.split(":")
    texts = dict(documented(ROOT / file))
    assert name in texts, f"{file} has no {name}"
    assert equations & cited(texts[name]), f"the docstring of {place} names none of {sorted(equations)}"
    assert PAPERS[paper] in texts[name] + texts[""], f"neither {place} nor its module names the paper"


def test_every_equation_has_a_row_whose_functions_name_it() -> None:
    """A range is not covered by a function that names one end of it only."""
    together: dict[tuple[str, frozenset[int]], set[int]] = {}
    for paper, equations, place in rows():
        file, name = place.split(":")
        named = cited(dict(documented(ROOT / file))[name])
        together.setdefault((paper, frozenset(equations)), set()).update(named)
    for (paper, wanted), named in together.items():
        assert wanted <= named, f"paper {paper}: nothing names {sorted(wanted - named)}"


def test_no_equation_named_in_the_code_is_missing() -> None:
    listed: dict[str, set[int]] = {"1": set(), "2": set()}
    for paper, equations, _ in rows():
        listed[paper] |= equations
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            texts = list(documented(file))
            of_file = [paper for paper, source in PAPERS.items() if source in texts[0][1]]
            for name, text in texts:
                papers = [paper for paper, source in PAPERS.items() if source in text] or of_file
                missing = cited(text) - set().union(*(listed[paper] for paper in papers)) if papers else set()
                assert not missing, f"{file.relative_to(ROOT)}:{name} names {sorted(missing)}"
