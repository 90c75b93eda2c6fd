"""The HTML page: one file, pictures inside, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from experiments.report.claims import Finding, Verdict
from experiments.report.figures import Figure
from experiments.report.folders import Run, differing
from experiments.report.metrics import key_label, matches, plus_minus, quantity, samples, show, values_of
from experiments.report.spec import Report
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

_STYLE = """
:root{--ink:#1a1a1a;--soft:#5a5a5a;--line:#d9d9d9;--paper:#fff;--shade:#f5f6f8}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
color:var(--ink);background:var(--paper);margin:0 auto;max-width:1180px;padding:1.5rem}
h1{font-size:1.6rem;margin:.2rem 0}
h2{font-size:1.25rem;margin:2.4rem 0 .4rem;border-top:2px solid var(--ink);padding-top:.7rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p.note{color:var(--soft);margin:.2rem 0 .8rem}
img{max-width:100%;height:auto;display:block}
figure{margin:.6rem 0}
figcaption{color:var(--soft);font-size:.87rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.87rem;margin:.3rem 0}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
th{background:var(--shade)}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.v{white-space:nowrap;font-weight:600}
.confirmed{color:#00624a}.contradicted{color:#a84300}.not,.by{color:#555}
.fault{color:#fff;background:#b00020;padding:.1rem .4rem}
p.alarm{color:#fff;background:#b00020;font-weight:600;padding:.6rem .9rem}p.alarm a{color:#fff}
details{margin:.5rem 0}summary{cursor:pointer;color:#005a8c}code{font-size:.87em}
@media print{details{display:block}h2{break-before:page}}
"""


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
        f"<title>airflower report</title><style>{_STYLE}</style></head><body>",
        "<h1>airflower report</h1>",
        f'<p class="note">{total} runs in {len(sections)} group(s)'
        + (f", {len(failed)} of them not completed" if failed else "")
        + "".join(f" · {escape(fact)}" for fact in facts)
        + "</p>",
        _alarm(sections),
        _overview(sections, verdicts),
    ]
    parts += [_section(section) for section in sections]
    names = ", ".join(_link(path) for path in tidy)
    parts.append(f"<h2>Data</h2><p>Beside this page, all rows of all runs as tidy CSV: {names}.</p>")
    parts.append("</body></html>\n")
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


def _section(section: Section) -> str:
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
        data = base64.b64encode(section.figure.png.read_bytes()).decode()
        parts.append(
            f'<figure><img alt="{escape(section.report.title)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(section.figure.caption)} "
            f"Also as {_link(section.figure.png)} and {_link(section.figure.pdf)}.</figcaption></figure>"
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
    parts.append(_results(section))
    parts.append(_configuration(section.runs))
    return "\n".join(parts)


_NUMBER_CELL = ' class="n"'
_COLUMNS = (
    "accuracy_mean",
    "accuracy_worst",
    "loss_mean",
    "pruning_ratio_mean",
    "latency_s",
    "uplink_bits",
    "wire_bytes",
    "airtime_s",
    "normalised_mse",
    "mse_realised",
    "starved",
    "starved_share",
    "negative_bandwidth",
    "negative_ratio",
    "measured_schedule_seconds",
)


def results(section: Section) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of an experiment's table: one row per setting, mean ± standard deviation.

    The deviation is that of the draws of a study, and that of the runs (seeds) of a learning experiment.
    """
    completed = [run for run in section.runs if run.completed]
    keys = [key for key in section.report.dimensions if len(values_of(completed, [key])) > 1]
    found = {run: {column: _numbers(run, column) for column in _COLUMNS} for run in completed}
    columns = [column for column in _COLUMNS if any(values[column] for values in found.values())]
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
        rows.append(cells)
    head = [*(key_label(key) for key in keys), "runs", *(quantity(column).label for column in columns)]
    return head, rows


def results_markdown(sections: Sequence[Section]) -> str:
    """Return the tables of results as Markdown."""
    parts = []
    for section in sections:
        head, rows = results(section)
        if rows:
            lines = [head, ["---"] * len(head), *rows]
            table = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
            parts.append(f"## {section.report.title}\n\n{table}\n\n{_note(section)}\n")
    return "\n".join(parts)


def _note(section: Section) -> str:
    completed = [run for run in section.runs if run.completed]
    if all(run.is_study for run in completed):
        counts = [len(found) for run in completed for column in _COLUMNS if (found := _numbers(run, column))]
        return f"Mean ± standard deviation over {_range(counts)} draws per run." if counts else ""
    spread = "Mean ± standard deviation over runs. " if len(completed) > len(results(section)[1]) else ""
    return (
        f"{spread}Accuracy and loss: mean of the last quarter of the evaluations; other columns: mean of all "
        "rounds."
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


def _configuration(runs: Sequence[Run]) -> str:
    keys = ["seed", *differing(runs)]
    common = {key: value for key, value in runs[0].config.items() if key not in keys}
    rows = "".join(
        f"<tr><td><code>{escape(run.name)}</code></td><td>{escape(str(run.summary.get('status')))}</td>"
        + "".join(f"<td>{escape(show(run.config.get(key), key))}</td>" for key in keys)
        + "</tr>"
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
        f'<div class="scroll"><table><thead><tr><th>run</th><th>status</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
        "<details><summary>What all of them share</summary>"
        f"<table><tbody>{shared}<tr><td>git commit</td><td>{escape(commits)}</td></tr></tbody></table>"
        "</details>"
    )
