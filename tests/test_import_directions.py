"""Radio maths knows no Flower, learning code no radio; Flower code is where the two meet."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

BOTTOM = {"registry", "schema"}  # every package may import them
ALLOWED = {
    "registry": set(),
    "schema": {"hydra", "omegaconf"},  # only schema.composing, which nothing else of it imports
    "radio": {"numpy", "scipy", "cvxpy"},
    "task": {"torch", "torchvision", "numpy", "sklearn", "PIL", "datasets", "flwr_datasets"},
    "protocol": {"numpy", "flwr"},
    "client_app": {"flwr", "torch", "numpy", "task", "protocol", "radio.payload"},
    # torch: the learned scheduler; cryptography, which Flower brings: the keys of nodes
    # tensorboardX and mlflow: trackers, each an extra
    "records": {"tensorboardX", "mlflow", "matplotlib", "omegaconf", "numpy", "flwr"}
    | {"protocol", "strategies", "task.metrics"},
    "strategies": {"flwr", "numpy", "scipy", "torch", "cryptography", "radio", "protocol"},
}


# From the ground up: a package may import those of a lower rank, and itself.
RANK = {
    "registry": -2,
    "schema": -1,
    "radio": 0,
    "task": 0,
    "protocol": 0,
    "client_app": 1,
    "strategies": 1,
    "records": 2,
    "server_app": 3,
    "engines": 4,
    "experiments": 5,
    "deploy": 6,
    "benchmarks": 6,
    "airflower": 7,
}
_DOTTED = re.compile(rf"({'|'.join(RANK)})(\.\w+)+(:\w+)?")


def _files(package: str) -> list[Path]:
    """Return the Python files of a package; a package that has moved away must not pass for a good one."""
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package}/ holds no Python file"
    return found


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_each_package_imports_only_what_it_may_know(package: str) -> None:
    """The third-party and own packages that each folder may import, as a list."""
    allowed = ALLOWED[package] | BOTTOM | {package}
    for path in _files(package):
        for name in _imports(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names:
                continue
            fits = any(name == entry or name.startswith(f"{entry}.") for entry in allowed)
            assert fits, f"{path.relative_to(ROOT)} imports {name}"


def _mentions(path: Path) -> set[str]:
    """Return the modules that a file names in strings, as a registry does."""
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value)
    }


@pytest.mark.parametrize("package", sorted(RANK))
def test_no_package_imports_upwards(package: str) -> None:
    """Not by a string either."""
    for path in _files(package):
        for name in _imports(path) | _mentions(path):
            top = name.partition(".")[0]
            if top in RANK and top != package:
                assert RANK[top] < RANK[package], f"{path.relative_to(ROOT)} names {name}"


def test_of_the_client_the_server_knows_the_algorithms_only() -> None:
    """It counts the steps that they take; what a device does stays the device's."""
    for path in _files("server_app"):
        for name in _imports(path):
            assert not name.startswith("client_app") or name.startswith("client_app.algorithms."), path


def test_cvxpy_is_only_in_reference_solvers_and_loaded_late() -> None:
    """Importing the radio maths must not cost the seconds that cvxpy takes."""
    for path in _files("radio"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(name.startswith("cvxpy") for name in names), path


@pytest.mark.parametrize("package", sorted(RANK))
def test_no_module_has_a_name_that_flower_leaves_out_of_an_app(package: str) -> None:
    """`flwr build` packs no ``test_*.py`` and no ``*_test.py``, whatever the app says."""
    for path in _files(package):
        assert not path.name.startswith("test_"), path
        assert not path.name.endswith("_test.py"), path
