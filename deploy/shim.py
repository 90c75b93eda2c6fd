"""Lets the files `deploy/local-fleet` and the like run without an activated environment.

Only the standard library: nothing else may be there.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def run(function: str, *first: str) -> int:
    """Call a function of `deploy.cli` with `first` and the command line's arguments; return its exit code.

    Where Flower is not installed for this interpreter, that of the clone's own environment takes over.
    """
    if importlib.util.find_spec("flwr") is None:
        python = _ROOT / ".venv" / "bin" / "python"  # not resolved: the link's place makes the environment
        if python.is_file() and str(python) != sys.executable:
            os.execv(python, [str(python), *sys.argv])
        print(
            f"{Path(sys.argv[0]).name}: airflower is not installed for {sys.executable}. Activate the "
            f"environment that has it, or make one: python3 -m venv {_ROOT}/.venv && "
            f"{_ROOT}/.venv/bin/pip install -e {_ROOT}",
            file=sys.stderr,
        )
        return 2
    sys.path.insert(0, str(_ROOT))
    return int(getattr(importlib.import_module("deploy.cli"), function)([*first, *sys.argv[1:]]))
