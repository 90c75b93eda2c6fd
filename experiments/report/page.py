"""The HTML page: one file, pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from experiments.report.claims import Finding, Verdict
from experiments.report.figures import Figure
from experiments.report.folders import Run, differing
from experiments.report.metrics import (
    key_label,
    matches,
    plus_minus,
    quantity,
    samples,
    show,
    to_target,
    values_of,
)
from experiments.report.spec import Report
from experiments.report.views import View
from protocol.untrusted import LONGEST, safe_text


@dataclass(frozen=True)
class Section:
    """One experiment of the page.

    Attributes:
        anchor: unique id.
        report: what it shows.
        runs: its runs, finished or not.
        figure: None if nothing could be drawn.
        findings: checked claims.
    """

    anchor: str
    report: Report
    runs: Sequence[Run]
    figure: Figure | None
    findings: Sequence[Finding]


MARKS: dict[Verdict, str] = {
    "confirmed": "✓",
    "contradicted": "✗",
    "not decidable": "?",
    "by construction": "=",
    "fault": "‼",
}

_FOLDER = Path(__file__).parent


def render(sections: Sequence[Section], tidy: Sequence[Path], *, facts: Sequence[str]) -> str:
    """Return the page."""
    verdicts: Counter[Verdict] = Counter(
        finding.verdict for section in sections for finding in section.findings
    )
    failed = [run for section in sections for run in section.runs if not run.completed]
    total = sum(len(section.runs) for section in sections)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>airflower report</title><style>{(_FOLDER / 'page.css').read_text()}</style></head><body>",
        "<h1>airflower report</h1>",
        f'<p class="note">{total} runs in {len(sections)} group(s)'
        + (f", {len(failed)} of them not completed" if failed else "")
        + "".join(f" · {escape(fact)}" for fact in facts)
        + "</p>",
        _alarm(sections),
        _overview(sections, verdicts),
    ]
    parts += [_section(section, tidy[0].parent if tidy else Path()) for section in sections]
    names = ", ".join(_link(path) for path in tidy)
    parts.append(f"<h2>Data</h2><p>Beside this page, all rows of all runs as tidy CSV: {names}.</p>")
    parts.append(f"<script>\n{(_FOLDER / 'page.js').read_text()}</script></body></html>\n")
    return "\n".join(parts)


def _link(path: Path) -> str:
    """Return a link to a file beside the page."""
    return f'<a href="{escape(quote(path.name))}">{escape(path.name)}</a>'


def p_text(p: float | None) -> str:
    """Return a p-value for a table."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def markdown(sections: Sequence[Section]) -> str:
    """Return the claims as Markdown tables, for a document beside the figures."""
    parts = []
    for section in sections:
        rows = "".join(
            f"| {_cell(finding.claim.text)} | {MARKS[finding.verdict]} {finding.verdict} "
            f"| {p_text(finding.p)} | {_cell(finding.evidence)} |\n"
            for finding in section.findings
        )
        if rows:
            head = "| claim | verdict | p | numbers (± standard error) |\n| --- | --- | --- | --- |\n"
            figure = f"![{section.report.name}]({section.anchor}.png)"
            parts.append(f"## {section.report.title}\n\n{figure}\n\n{head}{rows}")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return safe_text(text, 4 * LONGEST).replace("|", "\\|")


def faults(sections: Sequence[Section]) -> list[str]:
    """Return the claims that hold by construction and yet fail."""
    return [
        f"{section.report.name}: {finding.claim.text} ({finding.evidence})"
        for section in sections
        for finding in section.findings
        if finding.verdict == "fault"
    ]


def _alarm(sections: Sequence[Section]) -> str:
    return "".join(
        f'<p class="alarm">Fault of the program, not of a claim: this holds by construction and yet fails. '
        f"{escape(text)}</p>"
        for text in faults(sections)
    )


def _overview(sections: Sequence[Section], verdicts: Counter[Verdict]) -> str:
    marks = {
        verdict: mark
        for verdict, mark in MARKS.items()
        if verdicts and (verdict != "fault" or verdicts[verdict])
    }
    rows = []
    for section in sections:
        count: Counter[Verdict] = Counter(finding.verdict for finding in section.findings)
        rows.append(
            f'<tr><td><a href="#{section.anchor}">{escape(section.report.title)}</a></td>'
            f'<td class="n">{len(section.runs)}</td>'
            + "".join(f'<td class="n">{count[verdict] or ""}</td>' for verdict in marks)
            + "</tr>"
        )
    head = "".join(f"<th>{mark} {verdict}</th>" for verdict, mark in marks.items())
    table = (
        f'<div class="scroll"><table><thead><tr><th>experiment</th><th>runs</th>{head}</tr></thead><tbody>'
        f"{''.join(rows)}"
    )
    if not verdicts:
        return f"{table}</tbody></table></div>"
    foot = "".join(f'<td class="n"><b>{verdicts[verdict]}</b></td>' for verdict in marks)
    tested = verdicts.total() - verdicts["by construction"] - verdicts["fault"]
    return (
        f"{table}<tr><td><b>all claims</b></td><td></td>{foot}</tr></tbody></table></div>"
        f'<p class="note">A claim is confirmed or contradicted when its p-value, corrected by Holm over the '
        f"{tested} tested claims of this page, is at most 0.05: the chance that any of these verdicts is "
        "false is then at most 5 %. Otherwise the numbers do not decide it. Claims that hold by construction "
        "are no findings and are counted apart.</p>"
    )


def _section(section: Section, out: Path) -> str:
    parts = [f'<h2 id="{section.anchor}">{escape(section.report.title)}</h2>']
    failed = [run for run in section.runs if not run.completed]
    if failed:
        items = "".join(
            f"<li><code>{escape(run.name)}</code>: {escape(str(run.summary.get('status')))}"
            f" {escape(str(run.summary.get('reason', '')))}</li>"
            for run in failed
        )
        parts.append(f"<p><b>Not completed, left out:</b></p><ul>{items}</ul>")
    if section.figure:
        parts.append(_panels(section.figure.views, section.anchor))
        parts.append(
            f'<p class="note">All panels in one picture: {_link(section.figure.png)}, '
            f"{_link(section.figure.pdf)}.</p>"
        )
    if section.findings:
        rows = "".join(
            f"<tr><td>{escape(finding.claim.text)}</td>"
            f'<td class="v {finding.verdict.split()[0]}">{MARKS[finding.verdict]} {finding.verdict}</td>'
            f'<td class="n">{escape(p_text(finding.p))}</td><td>{escape(finding.evidence)}</td></tr>'
            for finding in section.findings
        )
        parts.append(
            '<h3>Claims</h3><div class="scroll"><table><thead><tr><th>claim</th><th>verdict</th><th>p</th>'
            f"<th>numbers (mean ± standard error)</th></tr></thead><tbody>{rows}</tbody></table></div>"
        )
    parts += [_table(title, head, rows) for title, head, rows in tables(section)]
    parts.append(_results(section))
    parts.append(_configuration(section.runs, out))
    return "\n".join(parts)


def _panels(views: Sequence[View], anchor: str) -> str:
    """Return the panels under their headings, each heading with the switches of its lines."""
    parts: list[str] = []
    sets: dict[tuple[tuple[str, ...], tuple[tuple[int, str, str], ...]], str] = {}
    for group, found in groupby(views, key=lambda view: view.group):
        members = list(found)
        if group:
            parts.append(f"<h3>{escape(group)}</h3>")
        for view in members:
            if view.labels and (view.keys, view.labels) not in sets:
                name = f"{anchor}-{len(sets)}"
                sets[view.keys, view.labels] = name
                parts.append(_switches(view, name))
        parts.append('<div class="panels">')
        parts += [_panel(view, sets.get((view.keys, view.labels), "")) for view in members]
        parts.append("</div>")
    return "\n".join(parts)


def _switches(view: View, name: str) -> str:
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-line="{look}" style="--c:{colour}">'
        f"{escape(label)}</button>"
        for look, label, colour in view.labels
    )
    title = escape(", ".join(key_label(key) for key in view.keys))
    return f'<div class="switches" data-set="{name}"><span>{title}:</span>{buttons}</div>'


def _panel(view: View, name: str) -> str:
    colours = escape(json.dumps({str(look): colour for look, _, colour in view.labels}))
    return (
        f'<figure class="panel" data-set="{name}" data-colours="{colours}"><h4>{escape(view.title)}</h4>'
        f"{view.svg}<figcaption>{escape(view.caption)}</figcaption>"
        f'<script type="application/json">{view.values}</script></figure>'
    )


Rows = tuple[list[str], list[list[str]]]


def tables(section: Section) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, head and rows of the tables that the report asks for."""
    completed = [run for run in section.runs if run.completed]
    found = []
    for table in section.report.tables:
        names = [value for (value,) in values_of(completed, [table.columns])]
        head = [*map(key_label, table.rows), *(show(name, table.columns) for name in names)]
        rows = []
        for group in values_of(completed, table.rows):
            where = dict(zip(table.rows, group, strict=True))
            cells = [show(value, key) for key, value in where.items()]
            for name in names:
                members = [run for run in completed if matches(run, {**where, table.columns: name})]
                numbers = np.array([value for run in members for value in _numbers(run, table.y)])
                numbers *= quantity(table.y).scale
                cells.append(_largest(numbers) if table.statistic == "max" else _mean_and_error(numbers))
            rows.append(cells)
        largest = "largest " if table.statistic == "max" else ""
        found.append((table.title or f"{largest}{quantity(table.y).label}", head, rows))
    return found


def _mean_and_error(numbers: Any) -> str:
    """Return mean ± standard error."""
    if not numbers.size:
        return "–"
    error = float(numbers.std(ddof=1)) / math.sqrt(numbers.size) if numbers.size > 1 else math.inf
    return plus_minus(float(numbers.mean()), error)


def _largest(numbers: Any) -> str:
    return f"{float(numbers.max()):.3g}" if numbers.size else "–"


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<h3>{escape(title)}</h3><div class="scroll"><table><thead><tr>'
        + "".join(f"<th>{escape(label)}</th>" for label in head)
        + f'</tr></thead><tbody>{body}</tbody></table></div><p class="note">'
        + f"{_ERRORS}</p>"
    )


_ERRORS = "Mean ± standard error, where there is a ±."
_NUMBER_CELL = ' class="n"'
_COLUMNS = (
    "accuracy_mean",
    "accuracy_worst",
    "global_accuracy",
    "loss_mean",
    "pruning_ratio_mean",
    "latency_s",
    "elapsed_s",
    "uplink_bits",
    "wire_bytes",
    "energy_j",
    "airtime_s",
    "normalised_mse",
    "mse_realised",
    "outage_share",
    "starved",
    "starved_share",
    "negative_bandwidth",
    "negative_ratio",
    "measured_schedule_seconds",
)


_TO_TARGET = ("round", "elapsed_s", "sent_bits", "spent_j")


def results(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of an experiment's table: one row per setting, mean ± standard deviation.

    The deviation is that of the draws of a study, and that of the runs (seeds) of a learning experiment.
    """
    completed = [run for run in section.runs if run.completed]
    keys = [key for key in section.report.dimensions if len(values_of(completed, [key])) > 1]
    found = {run: {column: _numbers(run, column) for column in _COLUMNS} for run in completed}
    columns = [column for column in _COLUMNS if any(values[column] for values in found.values())]
    target = section.report.target
    reached = {
        column: {run: to_target(run, column, target) for run in completed}
        for column in _TO_TARGET
        if target is not None
    }
    reached = {
        column: values for column, values in reached.items() if any(v is not None for v in values.values())
    }
    if not columns:
        return [], []
    rows = []
    for group in values_of(completed, keys):
        members = [run for run in completed if matches(run, dict(zip(keys, group, strict=True)))]
        cells = [show(value, key) for key, value in zip(keys, group, strict=True)]
        cells.append(str(len(members)))
        for column in columns:
            numbers = np.array([value for run in members for value in found[run][column]])
            cells.append(_spread(numbers * quantity(column).scale))
        for column, values in reached.items():
            there = [value for run in members if (value := values[run]) is not None]
            few = f" ({len(there)} of {len(members)})" if len(there) < len(members) else ""
            cells.append(_spread(np.array(there) * quantity(column).scale) + few if there else "never")
        rows.append(cells)
    head = [
        *(key_label(key) for key in keys),
        "runs",
        *(quantity(column).label for column in columns),
        *(f"{quantity(column).label} to {target:g}" for column in reached),
    ]
    return head, rows


def results_markdown(sections: Sequence[Section]) -> str:
    """Return the tables of results as Markdown."""
    parts = []
    for section in sections:
        head, rows = results(section)
        if rows:
            parts.append(f"## {section.report.title}\n\n{_markdown(head, rows)}\n\n{_note(section)}\n")
        for title, head, rows in tables(section):
            parts.append(f"### {title}\n\n{_markdown(head, rows)}\n\n{_ERRORS}\n")
    return "\n".join(parts)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first, *others = (f"| {' | '.join(map(_cell, line))} |" for line in (head, *rows))
    return "\n".join([first, f"|{' --- |' * len(head)}", *others])


def _note(section: Section) -> str:
    completed = [run for run in section.runs if run.completed]
    if all(run.is_study for run in completed):
        counts = [len(found) for run in completed for column in _COLUMNS if (found := _numbers(run, column))]
        return f"Mean ± standard deviation over {_range(counts)} draws per run." if counts else ""
    spread = "Mean ± standard deviation over runs. " if len(completed) > len(results(section)[1]) else ""
    return (
        f"{spread}Accuracy and loss: mean of the last quarter of the evaluations; emulated time: that of "
        "all rounds; "
        "other columns: mean of all rounds."
    )


def _range(counts: Sequence[int]) -> str:
    few, many = min(counts), max(counts)
    return str(many) if few == many else f"{few} to {many}"


def _results(section: Section) -> str:
    head, rows = results(section)
    if not rows:
        return ""
    labels = head.index("runs")
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{'' if place < labels else _NUMBER_CELL}>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return (
        '<h3>Results</h3><div class="scroll"><table><thead><tr>'
        + "".join(f"<th>{escape(label)}</th>" for label in head)
        + f'</tr></thead><tbody>{body}</tbody></table></div><p class="note">{escape(_note(section))}</p>'
    )


def _numbers(run: Run, column: str) -> list[float]:
    return list(samples(run, column).values())


def _spread(numbers: Any) -> str:
    if not numbers.size:
        return ""
    return plus_minus(float(numbers.mean()), float(numbers.std(ddof=1)) if numbers.size > 1 else 0.0)


_FILES = ("rounds.csv", "devices.csv", "draws.csv", "config.yaml", "summary.json", "run.log", "figure.png")


def _files(run: Run, out: Path) -> str:
    """Return links to the files of a run, from the page's own folder."""
    links = []
    for name in _FILES:
        path = run.folder / name
        if path.is_file():
            try:
                target = Path(os.path.relpath(path, out.resolve())).as_posix()
            except ValueError:  # another drive
                continue
            links.append(f'<a href="{escape(quote(target))}">{escape(name)}</a>')
    return " ".join(links)


def _configuration(runs: Sequence[Run], out: Path) -> str:
    keys = ["seed", *differing(runs)]
    common = {key: value for key, value in runs[0].config.items() if key not in keys}
    rows = "".join(
        f"<tr><td><code>{escape(run.name)}</code></td><td>{escape(str(run.summary.get('status')))}</td>"
        + "".join(f"<td>{escape(show(run.config.get(key), key))}</td>" for key in keys)
        + f"<td>{_files(run, out)}</td></tr>"
        for run in runs
    )
    head = "".join(f"<th>{escape(key_label(key))}<br><code>{escape(key)}</code></th>" for key in keys)
    shared = "".join(
        f"<tr><td><code>{escape(key)}</code></td><td>{escape(show(value))}</td></tr>"
        for key, value in common.items()
    )
    commits = ", ".join(sorted({str(run.summary.get("git_commit")) for run in runs}))
    return (
        f"<details><summary>Configurations: what differs between the {len(runs)} runs</summary>"
        f'<div class="scroll"><table><thead><tr><th>run</th><th>status</th>{head}<th>files</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
        "<details><summary>What all of them share</summary>"
        f"<table><tbody>{shared}<tr><td>git commit</td><td>{escape(commits)}</td></tr></tbody></table>"
        "</details>"
    )
