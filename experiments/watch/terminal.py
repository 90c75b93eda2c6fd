"""A snapshot in a terminal, with rich (which Flower brings)."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.watch.state import Node, Snapshot

_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
_MOST_NODES = 40  # rows; those with trouble first
_LEAST_WANTED = ("sent", "energy", "last seen", "exchange", "phase")  # where the terminal is narrow
_FRAME, _GAP, _LAST_ROUND = 4, 2, 12  # letters of the frame, between two columns, for how a round went
_STYLE = {"completed": "green", "running": "cyan", "failed": "red", "killed": "red", "interrupted": "yellow"}
_PHASE_STYLE = {"training": "cyan", "evaluating": "magenta", "storing": "blue", "failed": "red"}


def sparkline(values: Sequence[float], width: int, bars: str = _BARS) -> str:
    """Return values as bars from the least to the largest, at most `width`; of a constant, low ones."""
    if not values or width < 1:
        return ""
    chosen = values
    if len(values) > width:  # the last one is always there
        chosen = [
            values[len(values) - 1 - (width - 1 - i) * (len(values) - 1) // max(1, width - 1)]
            for i in range(width)
        ]
    low, high = min(chosen), max(chosen)
    top = len(bars) - 1
    return "".join(bars[round((value - low) / (high - low) * top) if high > low else 0] for value in chosen)


def duration(seconds: float | None) -> str:
    """Return seconds as "3 s", "4 min 10 s", "2 h 5 min"; a dash for None."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e6 else f"{value / 1e6:.4g} M"


def size(number: float | None) -> str:
    """Return a number of bytes with its unit."""
    if number is None:
        return "-"
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def render(snapshot: Snapshot, console: Console) -> RenderableType:
    """Return what the terminal shows; all texts are plain, whoever wrote them."""
    try:
        _BARS.encode(console.encoding or "ascii")
        bars = _BARS
    except (UnicodeError, LookupError):
        bars = _PLAIN_BARS
    parts: list[RenderableType] = []
    if snapshot.sweep is not None:
        sweep = snapshot.sweep
        failed = f", {sweep.failed} of them failed" if sweep.failed else ""
        left = f", about {duration(sweep.left_s)} left" if sweep.left_s else ""
        parts.append(Text(f"sweep: {sweep.done} of {sweep.jobs} jobs have ended{failed}{left}", style="bold"))
    head = Text()
    head.append(f"{snapshot.status or 'starting'} ", style=_STYLE.get(snapshot.status, ""))
    head.append(f"round {snapshot.round} of {snapshot.rounds}")
    if snapshot.phase:
        head.append(f"  {snapshot.phase}")
    if snapshot.round_s is not None:
        head.append(f"  {duration(snapshot.round_s)} a round")
    if snapshot.left_s:
        head.append(f"  about {duration(snapshot.left_s)} left")
    parts.append(head)
    if snapshot.rounds:
        width = min(60, console.width - 4)
        parts.append(Padding(ProgressBar(total=snapshot.rounds, completed=snapshot.round, width=width), 0))
    if snapshot.reason and snapshot.status != "completed":
        parts.append(Text(snapshot.reason, style="red"))
    if snapshot.accuracy:
        values = [value for _, value in snapshot.accuracy]
        line = Text(f"accuracy {values[-1]:.4f}")
        if snapshot.worst is not None:
            line.append(f" (worst {snapshot.worst:.4f})")
        line.append(f"  {sparkline(values, min(60, console.width - 40), bars)}", style="green")
        parts.append(line)
    if snapshot.figures:
        parts.append(Text("   ".join(f"{name} {_number(value)}" for name, value in snapshot.figures)))
    if snapshot.nodes:
        parts.append(_table(snapshot.nodes, console.width - _FRAME))
    return Panel(Group(*parts), title=Text(snapshot.name or "airflower"), subtitle=Text(snapshot.folder))


def _table(nodes: Sequence[Node], width: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    known = {name for node in nodes for name, value in vars(node).items() if value is not None}
    columns = [("device", "right"), ("phase", "left"), ("last seen", "right")]
    columns += [("download", "right")] * ("download_s" in known)
    columns += [("training", "right")]
    columns += [("upload", "right")] * ("upload_s" in known)
    columns += [("exchange", "right")] * ("exchange_s" in known)
    columns += [("sent", "right")]
    columns += [("energy", "right")] * ("energy_j" in known)
    columns += [("accuracy", "right"), ("last round", "left")]
    shown = sorted(nodes, key=lambda node: (node.status == "ok", node.device))[:_MOST_NODES]
    rows = [_cells(node) for node in sorted(shown, key=lambda node: node.device)]
    for name in _LEAST_WANTED:
        widths = [max(len(name), *(len(row[name]) for row in rows)) for name, _ in columns[:-1]]
        if sum(widths) + _GAP * len(widths) + _LAST_ROUND <= width:
            break
        columns = [column for column in columns if column[0] != name]
    for name, side in columns:
        table.add_column(name, justify=side, no_wrap=name != "last round")  # type: ignore[arg-type]
    for node, row in zip(sorted(shown, key=lambda node: node.device), rows, strict=True):
        style = _PHASE_STYLE.get("failed" if node.status == "failed" else node.phase, "")
        table.add_row(*(Text(row[name], style=style) for name, _ in columns))
    if len(nodes) > _MOST_NODES:
        table.add_row(Text("..."), Text(f"{len(nodes) - _MOST_NODES} more"))
    return table


def _cells(node: Node) -> dict[str, str]:
    return {
        "device": str(node.device),
        "phase": node.phase,
        "last seen": "-" if node.seen_s is None else f"{duration(node.seen_s)} ago",
        "download": duration(node.download_s),
        "training": duration(node.train_s),
        "upload": duration(node.upload_s),
        "exchange": duration(node.exchange_s),
        "sent": size(node.sent_bytes),
        "energy": "-" if node.energy_j is None else f"{node.energy_j:.3g} J",
        "accuracy": "-" if node.accuracy is None else f"{node.accuracy:.4f}",
        "last round": f"{node.status} {node.reason}".strip(),
    }
