"""How many processors this process may use: not those of the machine, but those that it was given."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_processors(cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the number of processors that this process may keep busy, at least 1.

    The least of the processors that it may run on (``taskset``, a cluster's scheduler) and the quota of the
    control groups that it is in (``docker run --cpus``, a systemd unit's ``CPUQuota``), rounded up.

    Args:
        cgroups: where Linux shows control groups.
        membership: file that names those of this process.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    count = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    for quota in _quotas(cgroups, membership):
        count = min(count, math.ceil(quota))
    return max(count, 1)


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """Return the processors that each control group from the process's own up to the top allows."""
    found = []
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                root = cgroups
            elif "cpu" in controllers.split(","):
                root = cgroups / "cpu" if (cgroups / "cpu").is_dir() else cgroups / controllers
            else:
                continue
            group = root / path.strip("/")
            # In a container the path may be the host's, and only the top is there.
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    found += _quota(folder)
    return found


def _quota(folder: Path) -> list[float]:
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with suppress(OSError, ValueError, ZeroDivisionError):
        microseconds = int((folder / "cpu.cfs_quota_us").read_text())
        if microseconds > 0:
            return [microseconds / int((folder / "cpu.cfs_period_us").read_text())]
    return []
