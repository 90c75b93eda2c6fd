"""Sweeps that go on where they stopped.

A job of a sweep has a folder named after its overrides, inside a folder named after the command. A job
whose folder already holds a completed run of the same configuration is skipped; any other folder is
emptied and its job done anew, so that an interrupted sweep ends with the files of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from server_app.recorder import write_json
from server_app.settings import Settings

log = logging.getLogger(__name__)

# Keys that do not decide the records of a run: where data lie, what runs the devices, how it is drawn.
_FREE = ("dataset.root", "dataset.download", "engine", "tracker", "report", "fleet.round_timeout_s")


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
        if not name.lstrip("+~").startswith((*_FREE, "hydra"))
    )
    if rest or not parts:
        parts.append(hashlib.sha256("\n".join(rest).encode()).hexdigest()[:8])
    return re.sub(r"[^\w.,=-]", "_", "-".join(parts))


def is_finished(folder: Path, settings: Settings) -> bool:
    """Return whether the folder holds a completed run of this configuration."""
    try:
        completed = json.loads((folder / "summary.json").read_text())["status"] == "completed"
        stored = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(completed) and _deciding(stored) == _deciding(json.loads(json.dumps(settings.to_dict())))


def _deciding(tree: Any, path: str = "") -> Any:
    if not isinstance(tree, dict):
        return tree
    paths = {name: f"{path}.{name}" if path else str(name) for name in tree}
    return {name: _deciding(tree[name], full) for name, full in paths.items() if full not in _FREE}


def refresh(folder: Path, settings: Settings) -> None:
    """Store what may have changed of a finished run's configuration: how it is drawn, for one."""
    OmegaConf.save(settings.to_dict(), folder / "config.yaml")


def start_afresh(folder: Path) -> None:
    """Remove what an earlier attempt left in a job's folder, but for Hydra's own record of the job."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == ".hydra":
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


def unfinished_jobs(folder: Path) -> list[str]:
    """Return the names of the jobs in a sweep folder that have not completed."""
    names = []
    for job in sorted(path.parent for path in folder.glob("*/.hydra")):
        try:
            status = json.loads((job / "summary.json").read_text())["status"]
        except (OSError, ValueError, KeyError):
            status = "interrupted"
        if status != "completed":
            names.append(job.name)
    return names


class SweepEnd(Callback):  # type: ignore[misc]
    """Hydra callback: a sweep with a failed job ends with exit status 1, after all others have run."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the jobs that failed."""
        folder = Path(config.hydra.sweep.dir)
        if failed := unfinished_jobs(folder):
            print(f"airflower: {len(failed)} job(s) of {folder} failed: {'; '.join(failed)}", file=sys.stderr)
            sys.exit(1)
        print(f"airflower: all jobs completed; draw them with: airflower-report {folder}")
