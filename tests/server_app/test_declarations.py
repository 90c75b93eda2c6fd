"""Each key is declared once; what files, help and glossary say of it is what is declared."""

import dataclasses
import re
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import DictConfig, OmegaConf

from experiments.help import help_text
from radio.settings import RadioSettings
from radio.units import MS
from schema import ConfigError, Unit, build, checked, decides_nothing, declarations, in_si, key, open_keys
from server_app.settings import Settings, compose_config, compose_settings

ROOT = Path(__file__).resolve().parents[2]
DECLARED = declarations(Settings)
FILES = [
    path
    for path in sorted((ROOT / "conf").rglob("*.yaml"))
    if path.parent.name not in ("experiment", "size")  # what is studied, and values that it refers to
]


def _package(path: Path) -> str:
    """Return the group that a file's keys are in."""
    whole_tree = path.parent.name == "conf" or "@package _global_" in path.read_text()
    return "" if whole_tree else f"{path.parent.name}."


def _leaves(tree: Any, path: str = "") -> set[str]:
    if not isinstance(tree, DictConfig) or path.rstrip(".") in DECLARED:
        return {path.rstrip(".")}
    return (
        set().union(*(_leaves(tree._get_node(name), f"{path}{name}.") for name in map(str, tree)))
        if tree
        else set()
    )


def test_every_key_has_a_value_in_the_files_and_every_value_a_key():
    found = {name for name in _leaves(compose_config([])) if not name.startswith(("hydra.", "budget."))}
    assert found == set(DECLARED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_a_file_sets_keys_that_there_are_and_its_comments_say_what_is_declared(path):
    tree = OmegaConf.load(path)
    for name in _leaves(tree):
        if name and not name.startswith(("defaults", "hydra.")):
            full = _package(path) + name
            assert full in DECLARED or full.startswith(open_keys(Settings)), full
    stack: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        if not (match := re.match(r"( *)([A-Za-z_]+):([^#]*)(?:# (.*))?$", line)):
            continue
        indent, name, _, comment = match.groups()
        stack = [entry for entry in stack if entry[0] < len(indent)] + [(len(indent), name)]
        full = _package(path) + ".".join(part for _, part in stack)
        if full in DECLARED and comment:
            assert comment.strip() == DECLARED[full].meaning, f"{full}: # {DECLARED[full].meaning}"


def test_every_key_says_what_it_means_and_ends_with_its_unit():
    """A unit that is converted has to stand in the name: nobody may take 25 ms for 25 s."""
    for name, declared in DECLARED.items():
        assert len(declared.help) > 5, name
        assert not declared.help.endswith("."), name
        if isinstance(declared.unit, Unit):
            assert name.endswith(declared.suffix), name
    units = {"s", "ms", "hz", "db", "dbm", "m", "mib"}
    for name, declared in DECLARED.items():
        ending = name.rpartition("_")[2]
        assert ending not in units or declared.unit_name.lower() == ending, name


def test_help_shows_every_key_with_unit_value_and_meaning():
    text = help_text()
    flat = " ".join(text.split())
    for name, declared in DECLARED.items():
        assert f"  {name} = " in text
        assert " ".join(declared.help.split()) in flat
    assert "  radio.latency_threshold_ms = 25.0 ms\n" in text


def test_help_can_be_narrowed_and_follows_overrides():
    text = help_text(["air", "scheme=aircomp_pruned"])
    assert "  air.snr_db = 20.0 dB\n" in text
    assert "fleet." not in text
    with pytest.raises(ConfigError, match="did you mean radio"):
        help_text(["radoi"])


def test_the_glossary_names_keys_that_there_are_with_their_units():
    rows = [line for line in (ROOT / "docs/glossary.md").read_text().splitlines() if line.startswith("|")]
    groups = {name.partition(".")[0] for name in DECLARED if "." in name}
    seen = set()
    for row in rows:
        unit = row.rsplit("|", 2)[1]
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", row):
            if name.partition(".")[0] not in groups:
                continue
            full = next(one for one in (name, name.rpartition(".")[0]) if one in DECLARED)
            assert DECLARED[full].unit_name in unit, f"{name}: {DECLARED[full].unit_name} is not in {unit}"
            seen.add(full)
    assert len(seen) > 20


def test_values_in_si_are_those_of_the_field():
    settings = compose_settings([])
    radio = in_si(settings.radio)
    assert radio["transmit_power"] == pytest.approx(10**-0.2)  # 28 dBm
    assert radio["latency_threshold"] == pytest.approx(0.025)
    assert radio["bandwidth"] == 200e6
    assert in_si(settings.engine)["state_memory"] == 2**30
    assert in_si(settings.air)["snr"] == pytest.approx(1e-4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Group:
    """One key: a line here, its value in a file."""

    wait_ms: float = key("how long", unit=MS, above=0, below=100)
    mode: float | Literal["auto"] = key("which")
    place: str | None = key("where", path=True, decides=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Tree:
    """A tree with a group."""

    group: _Group


def test_a_key_is_one_line_and_everything_follows_from_it():
    tree = build(_Tree, {"group": {"wait_ms": 5, "mode": "auto", "place": None}})
    assert in_si(tree.group) == {"wait": 0.005, "mode": "auto", "place": None}
    assert decides_nothing(_Tree, "group.place")
    assert not decides_nothing(_Tree, "group")
    with pytest.raises(ConfigError, match=r"group.wait_ms = 100.0 must be below 100"):
        build(_Tree, {"group": {"wait_ms": 100, "mode": 1.0, "place": None}})
    with pytest.raises(ConfigError, match=r"group.mode = None"):  # null is a value only where it is one
        build(_Tree, {"group": {"wait_ms": 5, "mode": None, "place": None}})
    with pytest.raises(ConfigError, match=r"wait_ms = -1.0 must be above 0"):
        checked(dataclasses.replace(tree.group, wait_ms=-1))


def test_an_unknown_unit_and_an_undeclared_field_are_refused():
    with pytest.raises(ValueError, match="furlong"):
        key("how far", unit="furlong")

    @dataclasses.dataclass(frozen=True)
    class Forgotten:
        wait_s: float = 1.0

    with pytest.raises(TypeError, match=r"wait_s is not declared"):
        declarations(Forgotten)


def test_a_key_is_declared_in_the_package_that_it_configures():
    assert RadioSettings.__module__ == "radio.settings"
