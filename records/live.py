"""What a run is doing right now: ``live.json`` in its folder, for whoever watches (`airflower-watch`).

Tables get a row when a round has ended; a round of a fleet may take minutes. In between, the file says which
devices have an order, which have answered, and when each was last heard of. It is written every
half second at most, and at a change of phase as often again, without a thread of its own and without forcing
anything to the disk: a run does not wait for it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LIVE = "live.json"
TRAINING, EVALUATING, STORING = "training", "evaluating", "storing"
_PHASES = {"train": TRAINING, "evaluate": EVALUATING, "query.save": STORING}
_EVERY_SECONDS = 0.5
_LEAST_PAUSE = 20.0  # times what the last writing took: with ten thousand devices it takes a while


class Live:
    """Keeps ``live.json`` of a run.

    Args:
        folder: of the run.
        rounds: how many it is to have.
    """

    def __init__(self, folder: Path, rounds: int) -> None:
        self._path = folder / LIVE
        self._state: dict[str, Any] = {"round": 0, "rounds": rounds, "phase": "starting"}
        self._devices: dict[int, dict[str, Any]] = {}
        self._next = 0.0
        self._next_phase = 0.0
        self._broken = False

    def notice(self, kind: str, device: int | None, server_round: int | None) -> None:
        """Take note of an order (its message type) or an answer ("replied"); without a device, of the time.

        A change of phase is written at once, unless one has just been written.
        """
        now = time.time()
        phase = _PHASES.get(kind, "")
        changed = bool(phase) and (phase, server_round) != (self._state["phase"], self._state["round"])
        if changed:
            self._state |= {"round": server_round, "phase": phase, "since": now}
        if device is not None:
            entry = self._devices.setdefault(device, {})
            if phase:
                entry["phase"], entry["asked"] = phase, now
            else:
                if entry.get("phase") == TRAINING and "asked" in entry:
                    entry["took"] = now - entry["asked"]
                entry["phase"], entry["seen"] = kind, now
        if now >= (min(self._next, self._next_phase) if changed else self._next):
            self._next = now + max(_EVERY_SECONDS, self._write(now))
            if changed:
                self._next_phase = self._next

    def close(self) -> None:
        """Say that the run is at its end."""
        self._state["phase"] = "ended"
        self._write(time.time())

    def _write(self, now: float) -> float:
        """Write the file; return the seconds for which it is not to be written again."""
        started = time.perf_counter()
        temporary = self._path.with_name(f".{LIVE}.{os.getpid()}")
        try:
            devices = {str(device): _rounded(entry) for device, entry in self._devices.items()}
            temporary.write_text(json.dumps(_rounded({**self._state, "devices": devices, "updated": now})))
            temporary.replace(self._path)
        except OSError as error:  # a run does not fail because nobody can watch it
            if not self._broken:
                log.warning("%s cannot be written: %s", self._path, error)
            self._broken = True
        return _LEAST_PAUSE * (time.perf_counter() - started)


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Round times to milliseconds: here, not at each of a thousand notices."""
    return {name: round(one, 3) if isinstance(one, float) else one for name, one in values.items()}
