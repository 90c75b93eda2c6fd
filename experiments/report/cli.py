"""The `airflower-report` command."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from experiments.report.claims import check_pages
from experiments.report.defaults import default_report
from experiments.report.figures import draw
from experiments.report.folders import ReportError, Run, find_runs
from experiments.report.page import Section, faults, markdown, render, results_markdown
from experiments.report.panels import panels_of
from experiments.report.spec import Report, Spread, read_report
from experiments.report.tidy import write_tidy


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 if there is nothing to report, with 1 if it shows a fault."""
    parser = argparse.ArgumentParser(
        prog="airflower-report",
        description="Draw runs and sweeps: figures, one HTML page with tables and claim checks, tidy CSV.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="run or sweep folders")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder to write (default: report)")
    parser.add_argument(
        "--spread",
        choices=get_args(Spread),
        help="bands and error bars: standard deviation, 95 %% confidence of the mean, or auto: deviation "
        "over runs, two standard errors over draws (default: what the experiment says)",
    )
    parser.add_argument(
        "--target",
        type=float,
        help="accuracy to which rounds, seconds, bits and joules are counted (default: the highest usual "
        "level that at least half of the runs reach)",
    )
    options = parser.parse_args(arguments)
    if options.target is not None and not 0 < options.target <= 1:
        parser.error(f"--target {options.target:g}: an accuracy lies in (0, 1]")
    try:
        page, broken = _build(options.paths, options.out, options.spread, options.target)
    except ReportError as error:
        print(f"airflower-report: {error}", file=sys.stderr)
        sys.exit(2)
    print(page)
    for fault in broken:
        print(f"airflower-report: FAULT: holds by construction and yet fails: {fault}", file=sys.stderr)
    if broken:
        sys.exit(1)


def build_report(
    paths: Sequence[Path], out: Path, *, spread: Spread | None = None, target: float | None = None
) -> Path:
    """Write figures, tables, the page and CSV files into `out`, and return the page.

    Args:
        paths: run or sweep folders.
        out: folder to write.
        spread: what bands and error bars are; None: what the report says.
        target: accuracy of the columns "to the target"; None: what the report says.

    Raises:
        ReportError: if there is no run, or an experiment's report node cannot be read.
    """
    return _build(paths, out, spread, target)[0]


def _build(
    paths: Sequence[Path], out: Path, spread: Spread | None, target: float | None
) -> tuple[Path, list[str]]:
    """Write everything; return the page and the claims that hold by construction and yet fail."""
    runs = find_runs(paths)
    out.mkdir(parents=True, exist_ok=True)
    used = set[str]()
    drawn = []
    for name, members in _groups(runs):
        try:
            report = _report(name, members, spread, target)
        except ReportError as error:
            raise ReportError(f"{members[0].folder}: {error}") from error
        stem = re.sub(r"[^\w-]", "_", report.name)
        while stem in used:
            stem += "_"
        used.add(stem)
        figure = draw(panels_of(report, members), out, stem)
        drawn.append((stem, report, members, figure))
    findings = check_pages([(report, members) for _, report, members, _ in drawn])
    sections = [Section(*parts, found) for parts, found in zip(drawn, findings, strict=True)]
    tidy = write_tidy(runs, out)
    versions = sorted({str(run.summary.get("versions", {}).get("airflower")) for run in runs})
    page = out / "index.html"
    facts = [f"airflower {', '.join(versions)}"]
    page.write_text(render(sections, tidy, facts=facts), encoding="utf-8")
    claims = [
        {
            "experiment": section.report.name,
            "claim": finding.claim.text,
            "verdict": finding.verdict,
            "p": finding.p,
            "evidence": finding.evidence,
        }
        for section in sections
        for finding in section.findings
    ]
    (out / "claims.json").write_text(
        json.dumps(claims, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (out / "claims.md").write_text(markdown(sections), encoding="utf-8")
    (out / "results.md").write_text(results_markdown(sections), encoding="utf-8")
    return page, faults(sections)


def _report(name: str, runs: Sequence[Run], spread: Spread | None, target: float | None) -> Report:
    """Return what to show of an experiment, with what the command line says of it."""
    if not name:
        return default_report(runs, spread=spread or "auto", target=target)
    report = read_report(runs[0].report)
    return replace(report, spread=spread or report.spread, target=report.target if target is None else target)


def _groups(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Group runs by experiment and sweep folder: two sizes of one experiment are not mixed."""
    groups: dict[tuple[str, Path | None], list[Run]] = {}
    for run in runs:
        name = str(run.report.get("name", ""))
        groups.setdefault((name, run.folder.parent if name else None), []).append(run)
    return [(name, members) for (name, _), members in groups.items()]


if __name__ == "__main__":
    main()
