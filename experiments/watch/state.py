"""What the folder of a run, or of a sweep, says right now."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from protocol.untrusted import safe_text
from records.live import LIVE
from records.ownership import RUNNING, SUMMARY, status_of
from records.recorder import DEVICE_TIMING, DEVICES, ROUNDS, TIMING, read_table
from schema import ConfigError

CONFIG, SWEEP = "config.yaml", "sweep.json"
_TAIL_BYTES = 1 << 20  # of a table of devices: the rows of the last rounds
_RECENT_ROUNDS = 10  # from whose time the time left is reckoned
_QUANTITIES = (
    ("loss_mean", "loss"),
    ("latency_s", "emulated latency, s"),
    ("pruning_ratio_mean", "pruning ratio"),
    ("uplink_bits", "uplink, bits"),
    ("energy_j", "energy, J"),
    ("normalised_mse", "normalised MSE"),
    ("starved", "starved devices"),
    ("failed", "failed devices"),
)


@dataclass(frozen=True)
class Node:
    """One device, as last heard of.

    Attributes:
        device: index.
        phase: training, evaluating, storing, replied, failed, or idle.
        seen_s: seconds since it last answered.
        download_s: seconds from its last order to its beginning with it; of nodes (`strategies.journeys`).
        train_s: seconds that its last training took, as it says.
        upload_s: seconds from its end to its answer's arrival; of nodes.
        transfer_s: of its last upload by the rate of a timed transfer (`channel=measured`).
        exchange_s: from its order to its answer, less training; of devices whose download and upload are not
            told apart, as in a simulation, where most of it is waiting for a processor.
        sent_bytes: size of its last upload.
        energy_j: that its board measured while it trained.
        accuracy: of its last test.
        status, reason: of its last round.
    """

    device: int
    phase: str = "idle"
    seen_s: float | None = None
    download_s: float | None = None
    train_s: float | None = None
    upload_s: float | None = None
    transfer_s: float | None = None
    exchange_s: float | None = None
    sent_bytes: float | None = None
    energy_j: float | None = None
    accuracy: float | None = None
    status: str = ""
    reason: str = ""


@dataclass(frozen=True)
class SweepState:
    """A sweep: `done` of `jobs` have ended, `failed` of them badly; seconds that the others may take."""

    jobs: int
    done: int
    failed: int
    left_s: float | None


@dataclass(frozen=True)
class Snapshot:
    """What is known of a run.

    Attributes:
        folder: where its records are.
        name: scheme, data, devices, seed.
        status, reason: of its summary; "killed" if its process is gone.
        round, rounds: the one that has ended last, and how many there are to be.
        phase: of the present round.
        accuracy: (round, mean accuracy) of every evaluation.
        worst: accuracy of the worst device at the last one.
        figures: further numbers of the last round: name, value.
        round_s: wall-clock seconds of a recent round.
        left_s: seconds that the others may take.
        nodes: by device.
        sweep: of a sweep.
    """

    folder: str
    name: str = ""
    status: str = ""
    reason: str = ""
    round: int = 0
    rounds: int = 0
    phase: str = ""
    accuracy: tuple[tuple[int, float], ...] = ()
    worst: float | None = None
    figures: tuple[tuple[str, float], ...] = ()
    round_s: float | None = None
    left_s: float | None = None
    nodes: tuple[Node, ...] = ()
    sweep: SweepState | None = None
    at: float = field(default_factory=time.time)

    @property
    def over(self) -> bool:
        """Whether the run, or every job of the sweep, has ended."""
        if self.sweep is not None:
            return self.sweep.done >= self.sweep.jobs
        return bool(self.status) and self.status != RUNNING

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self) | {"over": self.over}


def newest(below: Path) -> Path:
    """Return the run or sweep folder below a folder that was written to last.

    Raises:
        ConfigError: if there is none.
    """
    found = [
        path.parent
        for root in ("outputs", "multirun")
        for pattern in (f"*/{SWEEP}", f"*/*/{CONFIG}", f"*/{CONFIG}")
        for path in (below / root).glob(pattern)
    ]
    if not found:
        raise ConfigError(f"no run in {below / 'outputs'} or {below / 'multirun'}; name its folder")
    return max(found, key=lambda folder: max(path.stat().st_mtime for path in folder.iterdir()))


def look(folder: Path) -> Snapshot:
    """Return what a run folder says, or what a sweep says with its present (or last) job.

    Raises:
        ConfigError: if it is neither.
    """
    if (folder / CONFIG).is_file():
        return _look_at_run(folder)
    jobs = [path.parent for path in folder.glob(f"*/{CONFIG}")] if folder.is_dir() else []
    if not jobs and not (folder / SWEEP).is_file():
        raise ConfigError(f"{folder} is no run folder: it has neither {CONFIG} nor jobs of a sweep")
    sweep = _look_at_sweep(folder, jobs)
    if not jobs:
        return Snapshot(str(folder), sweep=sweep)
    running = [job for job in jobs if status_of(job)[0] == RUNNING]
    job = max(running or jobs, key=lambda path: (path / CONFIG).stat().st_mtime)
    return Snapshot(**{**vars(_look_at_run(job)), "sweep": sweep})


def _look_at_sweep(folder: Path, jobs: list[Path]) -> SweepState:
    plan = _read_json(folder / SWEEP)
    ended = {job: status for job in jobs if (status := status_of(job)[0]) not in ("", RUNNING)}
    names = plan.get("folders")
    if isinstance(names, list):
        ended = {job: status for job, status in ended.items() if job.name in names}
    number = len(names) if isinstance(names, list) else len(jobs)
    took = [
        (job / SUMMARY).stat().st_mtime - (job / CONFIG).stat().st_mtime
        for job, status in ended.items()
        if status == "completed"
    ]
    took = [seconds for seconds in took if seconds > 0]
    left = (number - len(ended)) * sum(took) / len(took) if took else None
    return SweepState(number, len(ended), sum(status != "completed" for status in ended.values()), left)


def _look_at_run(folder: Path) -> Snapshot:
    config = _config(folder)
    status, reason = status_of(folder)
    rows = read_table(folder / ROUNDS) if (folder / ROUNDS).is_file() else []
    rows = [row for row in rows if None not in row.values()]  # the last may be half written
    live = _read_json(folder / LIVE)
    last = rows[-1] if rows else {}
    accuracy = tuple(
        (int(row["round"]), value) for row in rows if (value := _number(row.get("accuracy_mean"))) is not None
    )
    worst = [value for row in rows if (value := _number(row.get("accuracy_worst"))) is not None]
    done, rounds = len(rows), int(config.get("rounds") or live.get("rounds") or 0)
    each = _round_seconds(folder)
    figures = tuple(
        (label, value)
        for column, label in _QUANTITIES
        if (value := _figure(column, last.get(column))) is not None
    )
    return Snapshot(
        folder=str(folder),
        name=_name(config),
        status=status,
        reason=safe_text(reason),
        round=done,
        rounds=rounds,
        phase=str(live.get("phase", "")) if status == RUNNING else "",
        accuracy=accuracy,
        worst=worst[-1] if worst else None,
        figures=figures,
        round_s=each,
        left_s=each * max(0, rounds - done) if each is not None and status == RUNNING else None,
        nodes=_nodes(folder, live, running=status == RUNNING),
    )


def _nodes(folder: Path, live: Mapping[str, Any], *, running: bool) -> tuple[Node, ...]:
    now = time.time()
    known: dict[int, dict[str, Any]] = {}
    for row in _tail(folder / DEVICES):
        entry = known.setdefault(int(row["device"]), {})
        entry |= {
            "status": row.get("status") or entry.get("status", ""),
            "reason": safe_text(row.get("reason") or ""),
        }
        for name, column in (("sent_bytes", "wire_bytes"), ("accuracy", "test_accuracy")):
            if (value := _number(row.get(column))) is not None:
                entry[name] = value
    for row in _tail(folder / DEVICE_TIMING):
        entry = known.setdefault(int(row["device"]), {})
        for name, column in (
            ("download_s", "measured_download_seconds"),
            ("train_s", "measured_train_seconds"),
            ("upload_s", "measured_upload_seconds"),
            ("transfer_s", "measured_transfer_seconds"),
            ("energy_j", "measured_energy_j"),
        ):
            if (value := _number(row.get(column))) is not None:
                entry[name] = value
    for device, said in (live.get("devices") or {}).items():
        entry = known.setdefault(int(device), {})
        entry["phase"] = str(said.get("phase", "idle")) if running else "idle"
        if "seen" in said:
            entry["seen_s"] = max(0.0, now - float(said["seen"]))
        if "took" in said and "train_s" in entry and "upload_s" not in entry:
            entry["exchange_s"] = max(0.0, float(said["took"]) - entry["train_s"])
    return tuple(Node(device, **entry) for device, entry in sorted(known.items()))


def _tail(path: Path) -> Iterator[dict[str, str]]:
    """Yield the whole rows at the end of a table."""
    try:
        with path.open("rb") as file:
            header = file.readline()
            start = max(len(header), path.stat().st_size - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return
    if start > len(header):
        lines = lines[1:]  # it may have begun in the middle
    names = next(csv.reader([header.decode(errors="replace")]), [])
    for cells in csv.reader(line for line in lines if line.endswith("\n")):
        if len(cells) == len(names):
            yield dict(zip(names, cells, strict=True))


def _round_seconds(folder: Path) -> float | None:
    """Return the mean wall-clock seconds of the last rounds."""
    rows = list(_tail(folder / TIMING))[-_RECENT_ROUNDS:]
    names = ("measured_train_seconds", "measured_aggregate_seconds", "measured_evaluate_seconds")
    sums = [sum(_number(row.get(name)) or 0.0 for name in names) for row in rows]
    return sum(sums) / len(sums) if sums else None


def _name(config: Mapping[str, Any]) -> str:
    parts = [str((config.get(group) or {}).get("name") or "") for group in ("scheme", "dataset", "model")]
    devices = (config.get("fleet") or {}).get("num_devices")
    parts += [f"{devices} devices" if devices else "", f"seed {config['seed']}" if "seed" in config else ""]
    return safe_text(" · ".join(filter(None, parts)))


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except Exception:  # yaml fails in ways of its own; a run that is just being written, too
        return {}
    return {str(key): value for key, value in tree.items()} if isinstance(tree, dict) else {}


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _figure(column: str, text: str | None) -> float | None:
    if column == "failed":  # a list of devices
        return float(len(text.split(";"))) if text else None
    value = _number(text)
    return value if value or column != "starved" else None
