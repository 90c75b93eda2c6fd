"""Radio maths knows no Flower, learning code no radio; Flower code is where the two meet."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OURS = {"benchmarks", "client_app", "conf", "protocol", "radio", "server_app", "strategies", "task"}

ALLOWED = {
    "radio": {"numpy", "scipy", "cvxpy"},
    "task": {"torch", "torchvision", "numpy", "sklearn", "PIL"},
    "protocol": {"numpy", "flwr"},
    "client_app": {"flwr", "torch", "numpy", "task", "protocol", "radio.payload"},
    "strategies": {"flwr", "numpy", "scipy", "radio", "protocol"},
}


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
    allowed = ALLOWED[package] | {package}
    for path in (ROOT / package).rglob("*.py"):
        for name in _imports(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names:
                continue
            fits = any(name == entry or name.startswith(f"{entry}.") for entry in allowed)
            assert fits, f"{path.relative_to(ROOT)} imports {name}"


def test_the_server_does_not_import_the_client() -> None:
    """The server trusts nothing of a device, not even its code."""
    for path in (ROOT / "server_app").rglob("*.py"):
        assert not any(name.startswith("client_app") for name in _imports(path)), path


def test_cvxpy_is_only_in_reference_solvers_and_loaded_late() -> None:
    """Importing the radio maths must not cost the seconds that cvxpy takes."""
    for path in (ROOT / "radio").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                assert not any(name.startswith("cvxpy") for name in names), path
