"""Sweeps that go on where they stopped.

A job of a sweep has a folder named after what the sweep varies, inside a folder named after the command.
A job whose folder already holds a completed run of the same configuration is skipped; any other folder is
emptied and its job done anew, so that an interrupted sweep ends with the files of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from protocol.archives import digest_of
from records.ownership import LOCK_FILE
from records.recorder import write_json
from server_app.settings import Settings, decides_nothing

log = logging.getLogger(__name__)


def sweep_name(arguments: Sequence[str]) -> str:
    """Return the folder name of a sweep: the same for the same overrides, whatever their order.

    An experiment gives its name and size; other overrides add a short digest.
    """
    overrides = dict(
        argument.split("=", 1) for argument in arguments if not argument.startswith("-") and "=" in argument
    )
    parts = [overrides.pop(name) for name in ("experiment", "size") if name in overrides]
    rest = sorted(
        f"{name}={value}"
        for name, value in overrides.items()
        if not name.lstrip("+~").startswith("hydra") and not decides_nothing(name.lstrip("+~"))
    )
    if rest or not parts:
        parts.append(hashlib.sha256("\n".join(rest).encode()).hexdigest()[:8])
    return re.sub(r"[^\w.,=-]", "_", "-".join(parts))


# What conf/config.yaml says: replaced by a name of the command, and by names of its jobs.
DEFAULT_SWEEP = "multirun/sweep"
DEFAULT_JOB = "subdir: ${hydra.job.override_dirname}"
_LONGEST_NAME = 120  # bytes; file systems allow 255, and some things append to it
_RESOLVER = "airflower_job_folder"


def subfolder(swept: Sequence[str]) -> str:
    """Return the interpolation that names a job's folder after the keys that are swept."""
    keys = " ".join(swept)
    return (
        f"${{{_RESOLVER}:${{hydra.overrides.task}},'{keys}',"
        "${hydra.sweep.dir},${hydra.job.override_dirname}}"
    )


def job_name(overrides: Sequence[str], swept: Collection[str]) -> str:
    """Return the name of a job's folder: what is swept, bounded, unique within its sweep.

    Where letters had to be replaced or left out, a digest of all of them follows.

    Args:
        overrides: of the job.
        swept: keys that differ between jobs, as in `overrides`; none: all keys name it.
    """
    chosen = [one for one in overrides if not swept or one.partition("=")[0] in swept]
    whole = ",".join(one.lstrip("+") for one in chosen) or "job"
    name = re.sub(r"[^\w.,=+-]", "_", whole)
    if name == whole and len(name.encode()) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
    short = name.encode()[: _LONGEST_NAME - len(digest) - 1].decode(errors="ignore")
    return f"{short}-{digest}"


def _job_folder(task: Sequence[str], keys: str, sweep: str, former: str) -> str:
    """Return a job's folder in its sweep; one that has the name of former versions is gone on with."""
    swept = keys.split()
    differ_only_there = any(_FORMERLY_LEFT_OUT.fullmatch(key) for key in swept)
    if not differ_only_there and len(former.encode()) < 256 and "/" not in former:
        with suppress(OSError):
            if Path(sweep, former, "config.yaml").is_file():
                return former
    return job_name(task, swept)


# Keys that names of former versions left out, so that two jobs could have one folder.
_FORMERLY_LEFT_OUT = re.compile(
    r"\+*(experiment|size|tracker|engine|engine\.workers|dataset\.(root|download))"
)

OmegaConf.register_new_resolver(_RESOLVER, _job_folder, replace=True)


def is_finished(folder: Path, settings: Settings) -> bool:
    """Return whether the folder holds a completed run of this configuration, with all of its records."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        stored = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        whole = bool(summary["records"]) and all(
            digest_of(folder / name).sha256 == digest for name, digest in summary["records"].items()
        )
        completed = summary["status"] == "completed"
    except Exception:  # damaged files fail in many ways; the job is then done again
        return False
    return completed and whole and _deciding(stored) == _deciding(json.loads(json.dumps(settings.to_dict())))


def _deciding(tree: Any, path: str = "") -> Any:
    if not isinstance(tree, dict):
        return tree
    paths = {name: f"{path}.{name}" if path else str(name) for name in tree}
    return {name: _deciding(tree[name], full) for name, full in paths.items() if not decides_nothing(full)}


def refresh(folder: Path, settings: Settings) -> None:
    """Store what may have changed of a finished run's configuration: how it is drawn, for one."""
    OmegaConf.save(settings.to_dict(), folder / "config.yaml")


def start_afresh(folder: Path) -> None:
    """Remove what an earlier attempt left in a job's folder, but for Hydra's own record of the job."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name in (".hydra", LOCK_FILE):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def note_failure(folder: Path, error: BaseException) -> None:
    """Make sure that the job's summary says that it failed, also if it failed before it began."""
    try:
        status = json.loads((folder / "summary.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        status = None
    if status != "failed":
        write_json(
            folder / "summary.json", {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        )


PLAN = "sweep.json"


def write_plan(folder: Path, jobs: Collection[Path]) -> None:
    """Write down what jobs a sweep has, for whoever watches it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, {"jobs": len(jobs), "folders": [job.name for job in jobs]})


def job_line(number: int, jobs: int, name: str, seconds: Sequence[float]) -> str:
    """Return the line before a job of a sweep: which of how many, and how long the others may take.

    Args:
        number: of the job, from 1.
        jobs: how many there are.
        name: of the job's folder.
        seconds: that those took which this process has done.
    """
    left = ""
    if seconds:
        minutes = (jobs - number + 1) * sum(seconds) / len(seconds) / 60
        shown = f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
        left = f", about {shown} left"
    return f"job {number} of {jobs}{left}: {name}"


def say_how_it_ended(folder: Path, jobs: Mapping[Path, Settings]) -> None:
    """Say whether the jobs of this sweep have completed; others in the same folder do not matter.

    Args:
        folder: of the sweep.
        jobs: settings by folder.

    Raises:
        SystemExit: with status 1, if one has not.
    """
    failed = [str(job.name) for job, settings in jobs.items() if not is_finished(job, settings)]
    if failed:
        print(f"airflower: {len(failed)} job(s) of {folder} failed: {'; '.join(failed)}", file=sys.stderr)
        sys.exit(1)
    command = shlex.join(["airflower-report", str(folder)])
    print(f"airflower: all {len(jobs)} job(s) completed; draw them with: {command}")
