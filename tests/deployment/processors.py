"""A share of a processor for some processes and all that they start: a control group of the kernel."""

import os
import subprocess
from pathlib import Path

import pytest

from engines.process_table import descendants

_PERIOD = 20_000  # microseconds: short, so that a step of training is slowed evenly
_NAME = f"airflower-node-{os.getpid()}"


class ProcessorGroup:
    """Made by `processor_group`."""

    def __init__(self, folder: Path, quota: str, unlimited: str) -> None:
        self._folder, self._quota, self._unlimited = folder, quota, unlimited

    def add(self, pid: int) -> None:
        """Put a process into the group, with what it has started; what it starts later follows."""
        for process in (pid, *descendants(pid)):
            (self._folder / "cgroup.procs").write_text(str(process))

    def limit(self, share: float | None) -> None:
        """Limit the group to a share of one processor; None: no limit."""
        text = self._unlimited if share is None else self._quota.format(int(share * _PERIOD))
        name, _, value = text.partition("=")
        (self._folder / name).write_text(value)

    def close(self) -> None:
        """Remove the group, once its processes have ended."""
        subprocess.run(["rmdir", str(self._folder)], check=False)


def processor_group() -> ProcessorGroup:
    """Return a new group, or skip the test where none can be made."""
    root = Path("/sys/fs/cgroup")
    first = root / "cpu"
    folder = (first if first.is_dir() else root) / _NAME
    try:
        folder.mkdir()
        if first.is_dir():
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
            return ProcessorGroup(folder, "cpu.cfs_quota_us={}", "cpu.cfs_quota_us=-1")
        (folder / "cpu.max").write_text(f"max {_PERIOD}")
        return ProcessorGroup(folder, f"cpu.max={{}} {_PERIOD}", f"cpu.max=max {_PERIOD}")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"no control group of processors can be made here: {error}")
