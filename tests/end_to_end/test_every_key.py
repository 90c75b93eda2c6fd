"""A key is refused where it would change nothing, and nowhere else: every key, under every scheme.

For each trial of `key_trials` a tiny job runs with the key and without. Where the declarations say that the
key has an effect, some record must differ: a row, a weight, or how the run ended. Where they refuse it, no
record may. The check for refused keys is left out on purpose: the job runs with a key that a user could not
set.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from omegaconf import OmegaConf

from engines.inprocess import open_grid
from records.recorder import read_table
from schema import ConfigError, declarations
from server_app.run import RunFailedError, run
from server_app.settings import Settings, compose_config, settings_from_config
from server_app.settings.effects import without_effect
from strategies.base import DivergedError
from tests.end_to_end.jobs import final_weights
from tests.end_to_end.key_trials import BASE, ELSEWHERE, OF_SCHEME, SCHEMES, TRIALS, Trial

APP = "tests.end_to_end.strange_app:app"


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        tree = tree[group]
    tree[last] = value


@functools.cache
def _scheme(name: str) -> dict[str, Any]:
    chosen = "proposed" if name == "measured" else name
    tree: Any = OmegaConf.to_container(compose_config([f"scheme={chosen}"]), resolve=True)
    for key, value in {**BASE, **OF_SCHEME.get(name, {})}.items():
        _set(tree, key, value)
    return tree


def _settings(scheme: str, trial: Trial, *, changed: bool) -> Settings:
    tree = copy.deepcopy(_scheme(scheme))
    for key, value in trial.setting.items():
        if key != trial.key:
            _set(tree, key, value)
    if changed:
        _set(tree, trial.key, trial.value(scheme))
    return settings_from_config(OmegaConf.create(tree))


_KNOWN: dict[str, Any] = {}


def _records(settings: Settings, faults: str) -> Any:
    """Return the tables and the final global part of a run, or how it failed; equal jobs run once."""
    name = json.dumps([settings.to_dict(), faults], sort_keys=True)
    if name not in _KNOWN:
        _KNOWN[name] = _run(settings, faults)
    return _KNOWN[name]


def _run(settings: Settings, faults: str) -> Any:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict("os.environ", AIRFLOWER_TEST_FAULTS=faults),
        mock.patch("server_app.run.draw_run"),
    ):
        try:
            with open_grid(
                settings, "tests.end_to_end.strange_app:app", settings.engine.workers or 1
            ) as grid:
                run(settings, grid, Path(folder))
        except (ConfigError, RunFailedError, DivergedError) as error:
            return f"{type(error).__name__}: {error}"
        tables = [read_table(Path(folder) / name) for name in ("rounds.csv", "devices.csv")]
        return tables, final_weights(Path(folder))


def _differ(one: Any, other: Any) -> bool:
    """Return whether records differ by more than rounding."""
    if isinstance(one, str) or isinstance(other, str):
        return bool(one != other)
    if one[1].shape != other[1].shape or not np.allclose(one[1], other[1], rtol=1e-4, atol=1e-7):
        return True
    return any(_tables_differ(*pair) for pair in zip(one[0], other[0], strict=True))


def _tables_differ(one: list[Mapping[str, str]], other: list[Mapping[str, str]]) -> bool:
    if [list(row) for row in one] != [list(row) for row in other]:
        return True
    return any(_cells_differ(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def _cells_differ(a: str, b: str) -> bool:
    try:
        return not math.isclose(float(a), float(b), rel_tol=1e-4, abs_tol=1e-17)
    except ValueError:
        return a != b


def _refused(settings: Settings, trial: Trial, scheme: str) -> bool:
    return bool(without_effect(settings, {trial.key: str(trial.value(scheme))}))


def _check(scheme: str, trial: Trial) -> None:
    changed = _settings(scheme, trial, changed=True)
    before = _records(_settings(scheme, trial, changed=False), trial.faults)
    after = _records(changed, trial.faults)
    assert not isinstance(before, str) or trial.key == "fleet.upload_norm_action", before
    declared = declarations(Settings)[trial.key]
    if _refused(changed, trial, scheme):
        same = str(after).startswith("ConfigError") or not _differ(before, after)
        assert same, f"{trial.key} is refused with {scheme}, although it has an effect"
    elif declared.decides:
        assert _differ(before, after), f"{trial.key} is taken with {scheme}, although it has no effect"
    else:
        assert not _differ(before, after), f"{trial.key} is said to decide nothing, although it does"


@functools.cache
def _base(scheme: str) -> Settings:
    return settings_from_config(OmegaConf.create(_scheme(scheme)))


def _sketch(scheme: str, trial: Trial) -> Settings:
    """Return the changed settings without any check; building them takes a hundred times as long."""
    settings: Any = _base(scheme)
    for name, value in {**trial.setting, trial.key: trial.value(scheme)}.items():
        group, _, key = name.rpartition(".")
        part = {key: tuple(value) if isinstance(value, list) else value}
        if group:
            part = {group: dataclasses.replace(getattr(settings, group), **part)}
        settings = dataclasses.replace(settings, **part)
    return settings


def _some_schemes(trial: Trial, number: int) -> list[str]:
    """Return one scheme that uses the key and one that does not, others for each trial."""
    schemes = tuple(trial.schemes) or SCHEMES
    turned = schemes[number % len(schemes) :] + schemes[: number % len(schemes)]
    kinds: dict[bool, str] = {}
    for scheme in turned:
        refused = _refused(_sketch(scheme, trial), trial, scheme)
        if refused not in kinds and _valid(scheme, trial):
            kinds[refused] = scheme
    return list(kinds.values())


def _valid(scheme: str, trial: Trial) -> bool:
    """Return whether the changed job gets past the checks of its settings: if not, the key is not silent."""
    try:
        _settings(scheme, trial, changed=True)
    except ConfigError:
        return False
    return True


_NAMES = [f"{trial.key}-{','.join(map(str, trial.setting.items()))}" for trial in TRIALS]


_NUMBERS = [pytest.param(number, id=name) for number, name in enumerate(_NAMES)]
_FIRST = {trial.key: number for number, trial in reversed([*enumerate(TRIALS)])}
# Each key in one setting; further settings are a run of their own.
_OFTEN = [
    pytest.param(
        number, id=name, marks=() if _FIRST[TRIALS[number].key] == number else pytest.mark.exhaustive
    )
    for number, name in enumerate(_NAMES)
]


@pytest.mark.parametrize("number", _OFTEN)
def test_a_key_is_refused_where_it_changes_nothing_and_nowhere_else(number):
    for scheme in _some_schemes(TRIALS[number], number):
        _check(scheme, TRIALS[number])


@pytest.mark.exhaustive
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("number", _NUMBERS)
def test_under_every_scheme(scheme, number):
    trial = TRIALS[number]
    if (trial.schemes and scheme not in trial.schemes) or not _valid(scheme, trial):
        return
    _check(scheme, trial)


def test_every_key_is_tried_or_looked_at_elsewhere():
    tried, declared = {trial.key for trial in TRIALS}, set(declarations(Settings))
    assert not tried & set(ELSEWHERE)
    assert tried | set(ELSEWHERE) == declared
