"""The virtual environments of the sides: made once, by pip, in a folder of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Side:
    """What does the rounds.

    Attributes:
        text: for the table.
        module: of this package; "": `airflower` itself.
        packages: for an environment of its own; (): that of this process.
        python: the least version of Python.
        workloads: that it can do; (): all.
        launcher: arguments between Python and the module, ``{threads}`` for the number of processes.
    """

    text: str
    module: str
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    workloads: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()


_ONE_MODEL = ("W1", "W2", "W2all", "W3", "W4")
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "{threads}")

SIDES = {
    "ours": Side("airflower, default settings", ""),
    "plain": Side("plain loop, processes", "with_nothing"),
    "vmap": Side("plain `torch.func.vmap`, one thread", "with_vmap", workloads=("W3",)),
    "pfl": Side("pfl 0.6.0, processes", "with_pfl", ("pfl==0.6.0", TORCH), launcher=_TORCHRUN),
    "blazefl": Side(
        "BlazeFL 2.0.3, threads",
        "with_blazefl",
        ("blazefl==2.0.3", "tqdm", "numpy", TORCH),
        (3, 12),
        _ONE_MODEL,
    ),
    "fluke": Side("fluke 0.8.1, PyTorch's threads", "with_fluke", ("fluke-fl==0.8.1", TORCH), (3, 12)),
    "flower": Side("Flower 1.42 + Ray, actors", "with_flower"),
}


def python_of(name: str, root: Path) -> Path:
    """Return the interpreter of a side, after making its environment if it is not there.

    Raises:
        LookupError: if no Python of the version is found.
        subprocess.CalledProcessError: if a package cannot be installed.
    """
    side = SIDES[name]
    if not side.packages:
        return Path(sys.executable)
    folder = root / name
    made = folder / "made"
    wanted = " ".join(side.packages)
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([_interpreter(side.python), "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *side.packages]
        subprocess.run(pip, check=True)
        made.write_text(wanted)
    return folder / "bin" / "python"


def _interpreter(least: tuple[int, int]) -> str:
    if sys.version_info[:2] >= least:
        return sys.executable
    for minor in range(least[1], least[1] + 4):
        found = shutil.which(f"python{least[0]}.{minor}")
        if found and not subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode:
            return found
    raise LookupError(f"no Python from {least[0]}.{least[1]} on")
