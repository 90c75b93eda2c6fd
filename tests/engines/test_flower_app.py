"""What `flwr build` makes of this repository: an app of format 1, whole and small; nothing is fetched."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk, build_fab_from_files

from engines import superlink
from schema import ConfigError
from server_app.run_config import PLAIN, overrides_of
from server_app.settings import compose_settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
APP = PROJECT["tool"]["flwr"]["app"]


@pytest.fixture(scope="module")
def packed():
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))) as archive:
        yield {name: archive.read(name) for name in archive.namelist()}


def test_the_app_has_format_1_and_its_license(packed):
    config = tomllib.loads(packed["pyproject.toml"].decode())
    assert config["tool"]["flwr"]["app"]["fab-format-version"] == 1
    assert b"Apache License" in packed["LICENSE"]
    files = {name: ROOT / name for name in packed if (ROOT / name).is_file()}
    _, metadata = build_fab_from_files({**files, "pyproject.toml": ROOT / "pyproject.toml"})
    assert (metadata.fab_format_version, metadata.flwr_version_min) == (1, "1.41")
    assert metadata.flwr_version_target == APP["flwr-version-target"]


def test_the_app_holds_every_module_that_it_imports_and_no_test(packed):
    for package in ("server_app", "client_app", "strategies", "radio", "task", "protocol", "records", "conf"):
        own = {path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
        assert own <= set(packed), sorted(own - set(packed))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")} <= set(packed)
    assert not [name for name in packed if name.startswith(("tests/", "benchmarks/", "docs/"))]
    assert sum(map(len, packed.values())) < 4e6


def test_an_installed_app_packs_the_same_as_the_clone(packed, tmp_path, monkeypatch):
    """The wheel has no clone around it: pyproject.toml, LICENSE and README.md lie in `engines`."""
    site = tmp_path / "site"
    for name, content in packed.items():
        if not name.startswith(".info") and name not in ("pyproject.toml", "LICENSE", "README.md"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(content)
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in wheel["force-include"].items():
        (site / target).parent.mkdir(parents=True, exist_ok=True)
        (site / target).write_bytes((ROOT / source).read_bytes())
    monkeypatch.setattr(superlink, "__file__", str(site / "engines" / "superlink.py"))
    made = superlink.app_folder(tmp_path)
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(made))) as archive:
        assert set(archive.namelist()) == set(packed)


def test_the_plain_keys_are_those_that_the_app_declares():
    assert set(APP["config"]) == {*PLAIN, "overrides", "settings", "out-dir"}
    assert set(APP["config"].values()) == {""}
    assert len(PLAIN) >= 12


def test_plain_keys_are_the_same_settings_as_overrides():
    run_config = {**APP["config"], "scheme": "over_the_air", "rounds": 7, "num-devices": 20, "snr-db": -3.5}
    settings = compose_settings(
        overrides_of({**run_config, "overrides": "air.antennas=4 air.num_selected=5"})
    )
    same = ["scheme=over_the_air", "rounds=7", "fleet.num_devices=20", "air.snr_db=-3.5"]
    assert settings == compose_settings([*same, "air.antennas=4", "air.num_selected=5"])


def test_an_app_without_plain_keys_is_the_default_job():
    assert overrides_of(APP["config"]) == []


def test_a_key_that_is_said_twice_is_refused():
    with pytest.raises(
        ConfigError, match=r"latency-threshold-ms = 20 and radio.latency_threshold_ms in overrides"
    ):
        overrides_of({"latency-threshold-ms": 20, "overrides": "radio.latency_threshold_ms=30"})
