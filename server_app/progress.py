"""The line that a user watches: one per round."""

from __future__ import annotations

from collections.abc import Mapping

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


def _devices(log: RoundLog, column: str, value: Value) -> str:
    named = [device for device, row in sorted(log.devices.items()) if row.get(column) == value]
    shown = ";".join(map(str, named[:_NAMED]))
    return shown if len(named) <= _NAMED else f"{shown}... ({len(named)} devices)"
