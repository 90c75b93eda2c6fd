"""The line that a user watches: one per round."""

from __future__ import annotations

from collections.abc import Mapping

from strategies.records import RoundLog


def round_line(log: RoundLog, rounds: int, timing: Mapping[str, float]) -> str:
    """Return the progress line of a round."""
    columns = log.columns
    parts = [f"round {log.round:>{len(str(rounds))}}/{rounds}"]
    if "accuracy_mean" in columns:
        parts.append(f"accuracy {columns['accuracy_mean']:.4f} (worst {columns['accuracy_worst']:.4f})")
        parts.append(f"loss {columns['loss_mean']:.4f}")
    if isinstance(latency := columns.get("latency_s"), float):
        parts.append(f"latency {1e3 * latency:.2f} ms")
    if isinstance(ratio := columns.get("pruning_ratio_mean"), float):
        parts.append(f"pruning ratio {ratio:.3f}")
    if isinstance(sent := columns.get("wire_bytes"), int):
        parts.append(f"up {sent / 1e6:.2f} MB")
    if failed := columns.get("failed"):
        parts.append(f"failed: {failed}")
    parts.append(f"[{sum(timing.values()):.1f} s]")
    return "  ".join(parts)
