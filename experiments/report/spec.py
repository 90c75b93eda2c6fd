"""What the `report` node of an experiment's yaml says: title, panels, claims.

Everything that is drawn or checked is data, so that a new experiment is one yaml file. Keys with dots
(``radio.latency_threshold_ms``) are configuration keys; names without (``accuracy_mean``) are columns of
``rounds.csv`` or ``draws.csv``, or of the derived ones in metrics.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from experiments.report.folders import ReportError

T = TypeVar("T")

Spread = Literal["auto", "deviation", "confidence"]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        kind: curve (y along the rounds), final (one number per run against a configuration key), bar (the
            same for names), cdf (distribution of `x` over draws), devices (distribution of the column `y` of
            devices.csv over the devices at the end), heat (the same as a map: devices against settings, or
            against rounds if there is one setting).
        y: column.
        x: column of a curve (default: round) or a distribution, configuration key of final and bar.
        series: keys whose values make the lines; default: those of the report.
        where: configuration values that a run must have.
        title: above the axes.
        log, logx: logarithmic axes.
        target: of final and bar: `y` (round, elapsed_s, sent_bits, spent_j) when the mean accuracy first
            reaches it.
        group: heading on the page.
    """

    kind: Literal["curve", "final", "bar", "cdf", "devices", "heat"]
    y: str = ""
    x: str = ""
    series: Sequence[str] | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    log: bool = False
    logx: bool = False
    target: float | None = None
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with one row per combination of `rows` and one column per value of `columns`.

    Attributes:
        y: column of the records.
        rows: configuration keys.
        columns: configuration key.
        title: above it.
        statistic: of the numbers of a cell: their mean, or the largest.
    """

    y: str
    rows: Sequence[str]
    columns: str
    title: str = ""
    statistic: Literal["mean", "max"] = "mean"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One qualitative statement and how it is checked.

    Attributes:
        text: the statement.
        check: monotone, compare, ratio, value, crossing or correlation (see claims.py).
        y: column.
        over: key (monotone) or column (correlation).
        direction: of monotone and correlation.
        relation: of compare.
        first, second: configuration values of the two sides.
        margin: how much less still counts as "at least".
        least, most: limits of ratio and value.
        statistic: mean; std (compare, monotone): the spread over draws or seeds; max (value): the largest
            of all rounds and draws; last (value): the mean of the runs' last evaluations, where mean takes
            their last quarters.
        groups: keys whose values are one point each of a correlation.
        where: configuration values that a run must have.
        everywhere: keys at each of whose values the claim must hold; without, what is not named in `where` is
            averaged.
        by_construction: why it cannot be otherwise, if so: then it is no finding, but failing is a fault.
    """

    text: str
    check: Literal["monotone", "compare", "ratio", "value", "crossing", "correlation"]
    y: str
    over: str = ""
    direction: Literal["rising", "falling"] = "rising"
    relation: Literal["above", "below", "at_least"] = "above"
    first: Mapping[str, Any] = field(default_factory=dict)
    second: Mapping[str, Any] = field(default_factory=dict)
    margin: float = 0.0
    least: float = -float("inf")
    most: float = float("inf")
    statistic: Literal["mean", "max", "std", "last"] = "mean"
    groups: Sequence[str] = ()
    where: Mapping[str, Any] = field(default_factory=dict)
    everywhere: Sequence[str] = ()
    by_construction: str = ""


# What each check uses besides text, check, y, where and everywhere; anything else would be without effect.
_USED_BY = {
    "compare": {"first", "second", "relation", "margin", "statistic", "by_construction"},
    "ratio": {"first", "second", "least", "most", "by_construction"},
    "value": {"first", "least", "most", "statistic", "by_construction"},
    "monotone": {"over", "direction", "statistic", "by_construction"},
    "crossing": {"first", "second"},
    "correlation": {"over", "direction", "groups"},
}
_NEEDED_BY = {
    "compare": ("first", "second"),
    "ratio": ("first", "second"),
    "monotone": ("over",),
    "crossing": ("first", "second"),
    "correlation": ("over", "groups"),
}
_STATISTICS = {"compare": ("mean", "std"), "monotone": ("mean", "std"), "value": ("mean", "max", "last")}


@dataclass(frozen=True)
class Report:
    """One experiment's page.

    Attributes:
        name: of the experiment, used in file names.
        title: headline.
        series: keys whose values make the lines.
        panels: axes of its figure.
        claims: statements to check.
        tables: beside that of all results.
        spread: of bands and error bars: standard deviation over runs, 95 % confidence of the mean, or auto:
            deviation over runs, two standard errors over draws.
        target: accuracy of the columns "to the target"; None: without them.
    """

    name: str
    title: str
    series: tuple[str, ...]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...] = ()
    tables: tuple[Table, ...] = ()
    spread: Spread = "auto"
    target: float | None = None

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Configuration keys that the page mentions: the dimensions of the sweep, but for the seed."""
        keys = [*self.series]
        for panel in self.panels:
            keys += [
                *(panel.series or ()),
                *panel.where,
                *([panel.x] if panel.kind in ("final", "bar") else []),
            ]
        for claim in self.claims:
            keys += [
                *(*claim.first, *claim.second, *claim.where, *claim.everywhere, *claim.groups),
                claim.over,
            ]
        for table in self.tables:
            keys += [*table.rows, table.columns]
        return tuple(dict.fromkeys(key for key in keys if "." in key))


def read_report(node: Mapping[str, Any]) -> Report:
    """Read the `report` node of a configuration.

    Raises:
        ReportError: naming the unknown or missing entry.
    """
    known = {"name", "title", "series", "panels", "claims", "tables", "spread", "target"}
    if unknown := sorted(set(node) - known):
        raise ReportError(f"report.{unknown[0]} is unknown; valid: {', '.join(sorted(known))}")
    name = str(node.get("name", "runs"))
    spread = node.get("spread", "auto")
    if spread not in get_args(Spread):
        raise ReportError(f"report.spread = {spread!r} is not one of: {', '.join(get_args(Spread))}")
    return Report(
        name=name,
        title=str(node.get("title", name)),
        series=tuple(node.get("series", ())),
        panels=tuple(
            _read_panel(item, f"report.panels[{i}]") for i, item in enumerate(node.get("panels", ()))
        ),
        claims=tuple(
            _read_claim(item, f"report.claims[{i}]") for i, item in enumerate(node.get("claims", ()))
        ),
        tables=tuple(
            _read(Table, item, f"report.tables[{i}]") for i, item in enumerate(node.get("tables", ()))
        ),
        spread=spread,
        target=None if node.get("target") is None else float(node["target"]),
    )


def _read_panel(item: Any, path: str) -> Panel:
    panel = _read(Panel, item, path)
    if panel.target is not None and panel.kind not in ("final", "bar"):
        raise ReportError(f"{path}.target has no effect on kind: {panel.kind}, only on final and bar")
    return panel


def _read_claim(item: Any, path: str) -> Claim:
    claim = _read(Claim, item, path)
    used = {"text", "check", "y", "where", "everywhere", *_USED_BY[claim.check]}
    if idle := [key for key in item if key not in used]:
        raise ReportError(
            f"{path}.{idle[0]} has no effect on check: {claim.check}, which uses: {', '.join(sorted(used))}"
        )
    if missing := [key for key in _NEEDED_BY.get(claim.check, ()) if not getattr(claim, key)]:
        raise ReportError(f"{path}.{missing[0]} is not set; check: {claim.check} needs it")
    if claim.statistic not in (valid := _STATISTICS.get(claim.check, ("mean",))):
        raise ReportError(
            f"{path}.statistic = {claim.statistic} has no test with check: {claim.check}; "
            f"valid: {', '.join(valid)}"
        )
    if claim.check in ("ratio", "value") and not claim.least <= claim.most:
        raise ReportError(f"{path}.least = {claim.least:g} is above most = {claim.most:g}")
    if claim.check in ("ratio", "value") and not {"least", "most"} & set(item):
        raise ReportError(f"{path} has neither least nor most: every number would confirm it")
    if claim.margin and claim.relation != "at_least":
        raise ReportError(f"{path}.margin has no effect on relation: {claim.relation}, only on at_least")
    return claim


def _read(cls: type[T], item: Any, path: str) -> T:
    if not isinstance(item, Mapping):
        raise ReportError(f"{path} = {item!r} is not a group of keys")
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(item) - set(fields)):
        raise ReportError(f"{path}.{unknown[0]} is unknown; valid: {', '.join(fields)}")
    for entry in fields.values():
        needed = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if needed and entry.name not in item:
            raise ReportError(f"{path}.{entry.name} is not set")
    hints = get_type_hints(cls)
    for name, value in item.items():
        if get_origin(hints[name]) is Literal and value not in get_args(hints[name]):
            raise ReportError(f"{path}.{name} = {value!r} is not one of: {', '.join(get_args(hints[name]))}")
    return cls(**item)
