"""How many small faults do the fast tests notice?

    python tests/mutation/mutate.py                        # 100 faults, drawn with seed 1
    python tests/mutation/mutate.py --only ofdma --count 20
    python tests/mutation/mutate.py --part 1/4             # the same 100 in four pieces
    python tests/mutation/mutate.py --save found.json      # then, after writing tests: --again found.json

The tree is copied and each fault is put into the copy. Of the tests that `targets.toml` names for its file,
those that come by its line without the fault run in a process of their own, the shortest first, until one
fails. A fault is killed if a test fails, or needs far more processor
time than without the fault. Survivors are shown as diffs. Faults that change no result are listed in
`targets.toml`, each with its reason, and do not count. The same seed draws the same faults of the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from faults import Fault, faults

if TYPE_CHECKING:
    import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Imported once, before the forks that run the tests; nothing of this project is among them.
HEAVY = (
    "torch", "numpy", "scipy.optimize", "scipy.stats", "sklearn.datasets", "hydra", "omegaconf",
    "matplotlib.pyplot", "hypothesis", "pytest", "flwr.app", "flwr.serverapp", "flwr.clientapp",
)  # fmt: skip
OPTIONS = (
    "-q",
    "-x",
    "-m",
    "not slow and not fleet and not exhaustive",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
)
# A fault that needs so much more processor time than no fault is one that a person would notice.
PATIENCE, LEAST_SECONDS, MOST_SECONDS, WALL_SECONDS = 5.0, 20.0, 120.0, 900.0


def main() -> int:
    """Run the command; the exit status is 1 if too many faults survive."""
    options = _options()
    targets = tomllib.loads((HERE / "targets.toml").read_text())
    tests: dict[str, list[str]] = targets["files"]
    chosen = [file for file in tests if not options.only or any(name in file for name in options.only)]
    drawn = _again(options.again, chosen) if options.again else _draw(chosen, options.seed, options.count)
    part, parts = options.part
    chosen = chosen[part - 1 :: parts]
    drawn = [fault for fault in drawn if fault.file in chosen]
    equivalent: list[Any] = []
    counted: list[Any] = []
    for fault in drawn:
        (equivalent if _reason(fault, targets.get("equivalent", [])) else counted).append(fault)
    if options.list:
        for fault in counted:
            print(fault.diff)
        return 0
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder) / "tree"
        _copy(tree)
        survivors = _try_all(tree, counted, tests, blind=options.blind)
    killed = len(counted) - len(survivors)
    for fault in survivors:
        print(f"\nsurvived ({fault.kind}):\n{fault.diff}")
    for file in chosen:
        total = sum(fault.file == file for fault in counted)
        alive = sum(fault.file == file for fault in survivors)
        print(f"{file}: {total - alive} of {total}")
    rate = killed / max(len(counted), 1)
    print(f"killed {killed} of {len(counted)}: {rate:.0%} ({len(equivalent)} equivalent ones left out)")
    if options.save:
        options.save.write_text(
            json.dumps([[fault.file, fault.old, fault.new, _line(fault)] for fault in survivors])
        )
    return int(rate < options.least)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Put small faults into the code and see whether a fast test fails."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", action="append", help="part of a file's name; may be repeated")
    parser.add_argument("--least", type=float, default=0.85, help="share that must be killed")
    parser.add_argument(
        "--part", type=_part, default=(1, 1), metavar="K/N", help="of the faults, those of every N-th file"
    )
    parser.add_argument(
        "--blind",
        action="store_true",
        help="run the tests as listed, without a first run to see which matter",
    )
    parser.add_argument("--list", action="store_true", help="show the faults, run nothing")
    parser.add_argument("--save", type=Path, help="write the survivors to this file")
    parser.add_argument("--again", type=Path, help="try the survivors of this file instead of drawing")
    return parser.parse_args()


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 1 <= part <= parts:
        raise ValueError(text)
    return part, parts


def _draw(files: Sequence[str], seed: int, count: int) -> list[Fault]:
    """Return `count` faults, as many of each file, at random places."""
    decks = []
    for file in files:
        deck = faults(file, (ROOT / file).read_text())
        random.Random(f"{seed} {file}").shuffle(deck)
        decks.append(deck)
    drawn: list[Fault] = []
    while len(drawn) < count and any(decks):
        taken = [deck.pop() for deck in decks if deck]
        drawn += [fault for fault in taken if fault.changes][: count - len(drawn)]
    return sorted(drawn, key=lambda fault: (fault.file, fault.begin, fault.new))


def _again(path: Path, files: Sequence[str]) -> list[Fault]:
    wanted = [tuple(entry) for entry in json.loads(path.read_text())]
    everything = [fault for file in files for fault in faults(file, (ROOT / file).read_text())]
    return [fault for fault in everything if (fault.file, fault.old, fault.new, _line(fault)) in wanted]


def _line(fault: Fault) -> str:
    return fault.source.splitlines()[fault.line - 1].strip()


def _reason(fault: Fault, known: Sequence[dict[str, str]]) -> str | None:
    """Return why a fault changes nothing, if known: its file, line and new lines are in the list."""
    changed = fault.text.splitlines()[fault.line - 1].strip()
    for entry in known:
        if (
            entry["file"] == fault.file
            and entry["old"] == _line(fault)
            and changed in entry["new"].split(" | ")
        ):
            return entry["reason"]
    return None


def _copy(tree: Path) -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listing.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)


def _try_all(tree: Path, drawn: Sequence[Fault], tests: dict[str, list[str]], *, blind: bool) -> list[Fault]:
    sys.dont_write_bytecode = True  # a file that changes twice in a second must not be taken from a cache
    os.environ.update(PYTHONPATH=str(tree), PYTHONDONTWRITEBYTECODE="1")
    # Tests that look for data beside the checkout find it from the copy, too.
    os.environ.setdefault("AIRFLOWER_DATA_ROOT", str(ROOT.parent / "shared" / "data"))
    sys.path[:] = [
        str(tree),
        *(path for path in sys.path if path and Path(path).resolve() not in (HERE, ROOT)),
    ]
    for name in HEAVY:
        importlib.import_module(name)
    os.chdir(tree)
    visits = {} if blind else _visits(tree, {fault.file: tests[fault.file] for fault in drawn})
    for file, found in visits.items():
        seconds = sum(visit.seconds for visit in found)
        print(f"{file}: {len(found)} tests, {seconds:.0f} s without a fault", flush=True)
    survivors = []
    for number, fault in enumerate(drawn, 1):
        chosen = _chosen(visits[fault.file], fault) if visits else []
        names = [visit.test for visit in chosen] or tests[fault.file]
        place = tree / fault.file
        place.write_text(fault.text)
        limit = (
            max(LEAST_SECONDS, PATIENCE * sum(visit.seconds for visit in chosen)) if visits else MOST_SECONDS
        )
        failed, seconds, output = _run(names, limit)
        place.write_text(fault.source)
        word = "killed" if failed else "SURVIVED"
        noticed = next((line for line in output.splitlines() if line.startswith("FAILED")), "")
        print(
            f"{number}/{len(drawn)} {word} {seconds:.1f} s, {len(chosen) or 'all'} tests: "
            f"{fault.file}:{fault.line} {fault.kind} {noticed}",
            flush=True,
        )
        if not failed:
            survivors.append(fault)
    return survivors


@dataclass(frozen=True)
class Visit:
    """What a test does in a file: how long it takes, and the lines of the file that it comes by."""

    test: str
    seconds: float
    lines: frozenset[int]


def _visits(tree: Path, wanted: dict[str, list[str]]) -> dict[str, list[Visit]]:
    """Run the tests of all files once, without a fault; return per file what its tests do there.

    Raises:
        SystemExit: if one fails.
    """
    names = list(dict.fromkeys(name for tests in wanted.values() for name in tests))
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "visits.json"
        watcher = _Watcher({str(tree / file): file for file in wanted}, found)
        failed, _, output = _run(names, float("inf"), plugins=[watcher])
        if failed:
            raise SystemExit(f"tests fail without a fault:\n{output}")
        noted = json.loads(found.read_text())
    return {
        file: [
            Visit(test, seconds, frozenset(lines.get(file, [])))
            for test, seconds, lines in noted
            if any(test == name or test.startswith((f"{name}::", f"{name}[")) for name in tests)
        ]
        for file, tests in wanted.items()
    }


def _chosen(visits: Sequence[Visit], fault: Fault) -> list[Visit]:
    """Return the tests that come by a fault, the shortest first; all of them if none is seen to."""
    spoilt = set(range(fault.line, fault.line + fault.old.count("\n") + 1))
    there = [visit for visit in visits if visit.lines & spoilt]
    return sorted(there or visits, key=lambda visit: visit.seconds)


class _Watcher:
    """A pytest plugin that notes the lines of some files that each test comes by, in this process.

    What happens while a test is set up counts for all tests of its module: they may share what was set up.
    """

    def __init__(self, files: dict[str, str], found: Path) -> None:
        self._files, self._found = files, found
        self._lines: dict[str, set[int]] = {}
        self._tests: dict[str, tuple[float, dict[str, set[int]]]] = {}
        self._shared: dict[str, dict[str, set[int]]] = {}
        self._began = 0.0

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._began, self._lines = time.process_time(), self._shared.setdefault(_module(item.nodeid), {})
        sys.settrace(self._trace)
        threading.settrace(self._trace)

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self._lines = {}

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        sys.settrace(None)
        threading.settrace(None)
        self._tests[item.nodeid] = (time.process_time() - self._began, self._lines)

    def pytest_sessionfinish(self) -> None:
        noted = []
        for test, (seconds, lines) in self._tests.items():
            shared = self._shared[_module(test)]
            both = {
                file: sorted(lines.get(file, set()) | shared.get(file, set()))
                for file in lines.keys() | shared.keys()
            }
            noted.append((test, seconds, both))
        self._found.write_text(json.dumps(noted))

    def _trace(self, frame: FrameType, event: str, value: object) -> Callable[..., Any] | None:
        file = self._files.get(frame.f_code.co_filename)
        if file is None:
            return None
        lines = self._lines.setdefault(file, set())

        def note(frame: FrameType, event: str, value: object) -> Callable[..., Any]:
            lines.add(frame.f_lineno)
            return note

        return note(frame, event, value)


def _module(test: str) -> str:
    return test.partition("::")[0]


def _run(names: Sequence[str], cpu_seconds: float, plugins: Sequence[object] = ()) -> tuple[bool, float, str]:
    """Run tests in a fork; return whether one failed (or took too long), the seconds and the output."""
    with tempfile.TemporaryFile() as output:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        child = os.fork()
        if child == 0:
            _child(names, cpu_seconds, output.fileno(), plugins)
        status = _wait(child, WALL_SECONDS if cpu_seconds < float("inf") else cpu_seconds)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        text = output.read().decode(errors="replace")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return status != 0, seconds, text


def _child(names: Sequence[str], cpu_seconds: float, output: int, plugins: Sequence[object]) -> None:
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    if cpu_seconds != float("inf"):
        limit = int(cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    import pytest

    status: int = 70
    with contextlib.suppress(BaseException):
        status = int(pytest.main([*OPTIONS, *names], list(plugins)))
    sys.stdout.flush()
    os._exit(status)


def _wait(child: int, seconds: float) -> int:
    """Wait for a fork and end whatever it leaves behind in its session."""
    deadline = time.monotonic() + seconds
    status = None
    while status is None and time.monotonic() < deadline:
        found, code = os.waitpid(child, os.WNOHANG)
        if found:
            status = code
        else:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
        return 1
    return status


if __name__ == "__main__":
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=True)
    sys.exit(main())
