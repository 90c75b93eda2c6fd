"""The lines that a user watches: one per round, and one at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strategies.records import RoundLog, Value

_NAMED = 20  # devices at most on a line


def round_line(log: RoundLog, rounds: int, timing: Mapping[str, float]) -> str:
    """Return the progress line of a round."""
    columns = log.columns
    parts = [f"round {log.round:>{len(str(rounds))}}/{rounds}"]
    if "accuracy_mean" in columns:
        parts.append(f"accuracy {columns['accuracy_mean']:.4f} (worst {columns['accuracy_worst']:.4f})")
    for name, value in columns.items():  # of the metrics that are not accuracy
        metric = name.removesuffix("_mean")
        if name.endswith("_mean") and f"{metric}_worst" in columns and metric != "accuracy":
            parts.append(f"{metric} {value:.4f} (worst {columns[f'{metric}_worst']:.4f})")
    if isinstance(loss := columns.get("loss_mean"), float):
        parts.append(f"loss {loss:.4f}")
    if isinstance(latency := columns.get("latency_s"), float):
        parts.append(f"latency {1e3 * latency:.2f} ms")
    if isinstance(ratio := columns.get("pruning_ratio_mean"), float):
        parts.append(f"pruning ratio {ratio:.3f}")
    if isinstance(sent := columns.get("wire_bytes"), int):
        parts.append(f"up {sent / 1e6:.2f} MB")
    if failed := columns.get("failed"):
        parts.append(f"failed: {failed}")
    if columns.get("starved"):
        parts.append(f"starved: {_devices(log, 'kept_weights', 0)}")
    if columns.get("diverged"):
        parts.append(f"diverged: {_devices(log, 'evaluation', 'diverged')}")
    parts.append(f"[{sum(timing.values()):.1f} s]")
    return "  ".join(parts)


def starved_line(starved: Mapping[str, int], rounds: int) -> str:
    """Return the line at the end of a run in which devices were pruned to nothing."""
    most = sorted(starved.items(), key=lambda item: -item[1])
    shown = ", ".join(f"device {device} in {number}" for device, number in most[:_NAMED])
    more = f", and {len(most) - _NAMED} more devices" if len(most) > _NAMED else ""
    return f"starved (pruned to nothing) of {rounds} rounds: {shown}{more}"


def end_line(summary: Mapping[str, Any], folder: Path) -> str:
    """Return the last line of a run: how it ended, its result, and where its records are."""
    parts = [str(summary.get("status", "?"))]
    if "final_accuracy_mean" in summary:
        worst = summary.get("final_accuracy_worst")
        beside = "" if worst is None else f" (worst {worst:.4f})"
        parts.append(f"accuracy {summary['final_accuracy_mean']:.4f}{beside}")
    elif "final_loss_mean" in summary:
        parts.append(f"loss {summary['final_loss_mean']:.4f}")
    parts += [f"{summary[name]} {name}" for name in ("rounds", "draws") if name in summary]
    if "total_latency_s" in summary:
        parts.append(f"{summary['total_latency_s']:.3g} s emulated")
    if "total_uplink_bits" in summary:
        parts.append(f"{summary['total_uplink_bits'] / 1e6:.4g} Mbit up")
    if "total_energy_j" in summary:
        parts.append(f"{summary['total_energy_j']:.3g} J")
    return f"{', '.join(parts)}: {folder}"


def _devices(log: RoundLog, column: str, value: Value) -> str:
    named = [device for device, row in sorted(log.devices.items()) if row.get(column) == value]
    shown = ";".join(map(str, named[:_NAMED]))
    return shown if len(named) <= _NAMED else f"{shown}... ({len(named)} devices)"
