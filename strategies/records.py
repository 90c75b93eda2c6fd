"""What a round leaves behind: one row of the round, one row per device.

Columns named ``measured_...`` hold what this run really took (wall-clock seconds); all others are
emulated or learned and repeat exactly with the seed. The recorder keeps the two in separate files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.untrusted import safe_text

Value = float | int | str | None

ROUND_COLUMNS = (
    "accuracy_mean",
    "accuracy_samples",
    "accuracy_worst",
    "loss_mean",
    "loss_median",
    "evaluated",
    "diverged",
    "participants",
    "replies",
    "failed",
    "starved",
    "latency_s",
    "uplink_bits",
    "wire_bytes",
    "uncovered_share",
)
DEVICE_COLUMNS = (
    "status",
    "reason",
    "num_examples",
    "kept_weights",
    "uplink_bits",
    "wire_bytes",
    "latency_s",
    "personal_loss",
    "global_loss",
    "update_norm",
    "evaluation",
    "num_test",
    "test_accuracy",
    "test_loss",
)


@dataclass
class RoundLog:
    """Rows of one round, filled while it runs.

    Attributes:
        round: number of the round, from 1.
        columns: the row of the round.
        devices: device index -> its row.
    """

    round: int
    columns: dict[str, Value] = field(default_factory=dict)
    devices: dict[int, dict[str, Value]] = field(default_factory=dict)

    def device(self, index: int, columns: Mapping[str, Value]) -> None:
        """Add columns to a device's row; a text may be the device's own."""
        row = self.devices.setdefault(index, {})
        row.update(columns)
        for name, value in columns.items():
            if isinstance(value, str):
                row[name] = safe_text(value)
