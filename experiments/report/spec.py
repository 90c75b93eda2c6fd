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

from experiments.report.folders import ReportError, Run, differing

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One pair of axes.

    Attributes:
        kind: curve (y along the rounds), final (one number per run against a configuration key), bar (the
            same for names), cdf (distribution of `x` over draws).
        y: column.
        x: column of a curve (default: round) or a distribution, configuration key of final and bar.
        series: keys whose values make the lines; default: those of the report.
        where: configuration values that a run must have.
        title: above the axes.
        log, logx: logarithmic axes.
    """

    kind: Literal["curve", "final", "bar", "cdf"]
    y: str = ""
    x: str = ""
    series: Sequence[str] | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    log: bool = False
    logx: bool = False


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
            of all rounds and draws.
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
    statistic: Literal["mean", "max", "std"] = "mean"
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
_STATISTICS = {"compare": ("mean", "std"), "monotone": ("mean", "std"), "value": ("mean", "max")}


@dataclass(frozen=True)
class Report:
    """One experiment's page.

    Attributes:
        name: of the experiment, used in file names.
        title: headline.
        series: keys whose values make the lines.
        panels: axes of its figure.
        claims: statements to check.
    """

    name: str
    title: str
    series: tuple[str, ...]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...] = ()

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
        return tuple(dict.fromkeys(key for key in keys if "." in key))


def read_report(node: Mapping[str, Any]) -> Report:
    """Read the `report` node of a configuration.

    Raises:
        ReportError: naming the unknown or missing entry.
    """
    known = {"name", "title", "series", "panels", "claims"}
    if unknown := sorted(set(node) - known):
        raise ReportError(f"report.{unknown[0]} is unknown; valid: {', '.join(sorted(known))}")
    name = str(node.get("name", "runs"))
    return Report(
        name=name,
        title=str(node.get("title", name)),
        series=tuple(node.get("series", ())),
        panels=tuple(
            _read(Panel, item, f"report.panels[{i}]") for i, item in enumerate(node.get("panels", ()))
        ),
        claims=tuple(
            _read_claim(item, f"report.claims[{i}]") for i, item in enumerate(node.get("claims", ()))
        ),
    )


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


def default_report(runs: Sequence[Run]) -> Report:
    """Return the page of runs whose configuration says nothing of it: what differs makes the lines."""
    keys = _shortest(runs, differing(runs))
    panels: list[Panel] = []
    learning = [run for run in runs if not run.is_study]
    if learning:
        panels += [
            Panel(kind="curve", y=column, log=column == "mse_realised")
            for column in ("accuracy_mean", "loss_mean", "pruning_ratio_mean", "latency_s", "mse_realised")
            if any(row.get(column) for run in learning for row in run.table("rounds.csv"))
        ]
    studies = [run for run in runs if run.is_study]
    if studies and keys:
        columns = [name for name in (studies[0].table("draws.csv") or [{}])[0] if name != "draw"]
        panels += [Panel(kind="bar", x=keys[0], y=column, series=keys[1:]) for column in columns[:4]]
    return Report("runs", "Runs", tuple(keys), tuple(panels))


def _shortest(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """Drop keys that tell no more runs apart than those before them (a scheme changes several at once)."""
    chosen: list[str] = []
    told_apart = 1
    ordered = sorted(keys, key=lambda key: not key.endswith((".name", ".method")))
    for key in ordered:
        count = len({tuple(str(run.config.get(k)) for k in [*chosen, key]) for run in runs})
        if count > told_apart:
            chosen, told_apart = [*chosen, key], count
    return chosen
