"""What is written as an override is read as the same value, and paths are taken as people type them."""

import math
import re
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from schema import ConfigError
from server_app.settings import compose_settings
from server_app.settings.overrides import as_meant, joined, override, split

TEXTS = st.text(max_size=12) | st.text(alphabet="\\'\"${},=:[]() ä\n\tab1.", max_size=12)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True).filter(
    lambda name: name.lower() not in {"null", "true", "false", "inf", "nan"}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def read(text):
    """Return the value that Hydra and OmegaConf make of an override, as a configuration does."""
    parsed = OverridesParser.create().parse_override(text)
    assert not parsed.is_sweep_override()
    config = OmegaConf.create({"x": parsed.value(), "a": "another value"})
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return plain["x"]


def same(left, right):
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if isinstance(left, dict):
        return isinstance(right, dict) and [*left] == [*right] and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return isinstance(right, list) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@settings(max_examples=300, deadline=None)
@given(VALUES)
@example("sw/model=mlp,rounds=2,seed=1")
@example("dätä (1), x")
@example("${a}")
@example("\\${a}\\")
@example("\\\n")
@example("it's \\' \\\\' \"x\"")
@example(["null", "true", "1e3", "", " a ", "inf", None])
@example({"a.b": {"c": ["x,y", 1, -0.5, 1e-300]}})
def test_a_value_that_is_written_is_read_again(value):
    written = override("x", value)
    assert same(value, read(written)), written
    assert split(joined([written, "seed=1"])) == [written, "seed=1"]


@pytest.mark.parametrize("value", [{"a b": 1}, {"null": 1}, {1: 2}, b"x", object()])
def test_what_no_override_can_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"cannot be a name|no override can hold"):
        override("x", value)


PATHS = [
    "sw/model=mlp,rounds=2,seed=1",
    "dätä (1), x",
    "a b",
    "123",
    "1e3",
    "true",
    "[x]",
    "{x: 1}",
    "it's",
    'say "x"',
    "C:\\runs\\",
    "choice(a,b)",
    "~user=1",
    "日本/語",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_taken_as_it_is_typed(path):
    assert compose_settings([f"dataset.root={path}"]).dataset.root == path
    assert compose_settings([f"resume={path}"]).resume == path
    assert compose_settings([override("resume", path)]).resume == path


@pytest.mark.parametrize("path", [*PATHS, "null", "${oc.env:HOME}", "x,y", "'quoted'", "\\${a}"])
def test_a_path_that_is_there_is_meant_in_a_sweep_too(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / path).mkdir(parents=True, exist_ok=True)
    if path not in ("null", "'quoted'"):  # these are said by their quotes
        assert compose_settings(as_meant([f"resume={path}"], sweep=True)).resume == path


def test_several_paths_of_a_sweep_stay_several():
    assert as_meant(["dataset.root=/a,/b", "resume=null"], sweep=True) == [
        "dataset.root=/a,/b",
        "resume=null",
    ]
    assert as_meant(["dataset.root=/a,/b"]) == ["dataset.root='/a,/b'"]


@pytest.mark.parametrize(
    ("given_override", "key", "value"),
    [
        ("resume=null", "resume", None),
        ("resume='null'", "resume", "null"),
        ("dataset.root=${oc.env:THE_ROOT}/x", "root", "/r (1)/x"),
    ],
)
def test_what_is_said_in_hydras_grammar_is_left_alone(monkeypatch, given_override, key, value):
    monkeypatch.setenv("THE_ROOT", "/r (1)")
    found = compose_settings([given_override])
    assert (found.resume if key == "resume" else found.dataset.root) == value


def test_options_of_the_chosen_part_need_no_plus():
    found = compose_settings(["partition=dirichlet", "partition.options.min_samples=10"])
    assert found.partition.options == {"alpha": 0.5, "min_samples": 10}
    air = compose_settings(["scheme=over_the_air", override("scheduler.options.starts", 5)])
    assert air.scheduler.options == {"starts": 5}
    assert compose_settings(["model.options.kernel_size=3"]).model.options == {"kernel_size": 3}
    assert compose_settings(["model.options={kernel_size: 3}"]).model.options == {"kernel_size": 3}


@pytest.mark.parametrize("text", ["3.5", "1", "true", "-2e3", ".5", "01"])
def test_a_number_for_a_group_is_answered_with_the_names_there_are(text):
    """Hydra alone ends with a ValueError that names neither key nor choice."""
    with pytest.raises(ConfigError, match=rf"Could not find 'radio/{re.escape(text)}'(.|\n)*calibrated"):
        compose_settings([f"radio={text}"])
