"""Before the first round a user reads what every device has, and what nobody uses."""

import json

import pytest

from protocol.messages import Introduction
from server_app.job import prepare
from server_app.settings import compose_settings


def _facts(*overrides):
    return prepare(compose_settings(["model=mlp", *overrides])).data


def test_everything_is_used_and_nothing_is_warned_of():
    facts = _facts()
    assert sum(facts.used) == sum(facts.available) == sum(facts.train) == 1433
    assert facts.warning() == ""
    assert facts.line().startswith("data: digits, 10 devices with ")
    assert facts.line().endswith("of 2 labels each; 1433 of 1433 training images are used")


def test_labels_that_no_device_has_are_named():
    """Three devices with labels k and k+1 hold 0..3; the six others are nobody's."""
    facts = _facts("fleet.num_devices=3")
    assert facts.unused_labels == (4, 5, 6, 7, 8, 9)
    assert sum(facts.used) == sum(facts.train) < 0.5 * sum(facts.available)
    assert "are left out, among them all of label 4, 5, 6, 7, 8, 9" in facts.warning()


def test_a_cap_that_the_user_set_is_reported_but_no_surprise():
    facts = _facts("partition.samples_per_device=40")
    assert sum(facts.used) == 400
    assert "400 of 1433 training images are used" in facts.line()
    assert facts.warning() == ""


@pytest.mark.parametrize("partition", ["iid", "shards", "dirichlet", "labels"])
def test_the_counts_are_those_of_the_parts(partition):
    facts = _facts(f"partition={partition}")
    assert len(facts.train) == len(facts.test) == len(facts.labels) == 10
    assert sum(facts.train) == sum(facts.used)


def test_images_of_a_node_count_instead_of_its_part():
    own = Introduction(2, 10, own_images=True, train_samples=7, test_samples=3, labels=(5,))
    facts = _facts().with_own({2: own, 3: Introduction(3, 10)})
    assert (facts.train[2], facts.test[2], facts.labels[2], facts.own) == (7, 3, (5,), (2,))
    assert "(1 with images of their own)" in facts.line()


def test_it_is_on_the_log_before_the_first_round_and_in_the_summary(tmp_path):
    from engines.inprocess import open_grid
    from server_app.run import run

    settings = compose_settings(
        ["model=mlp", "rounds=1", "fleet.num_devices=3", "partition.test_samples_per_device=20"]
    )
    with open_grid(settings) as grid:
        run(settings, grid, tmp_path)
    lines = (tmp_path / "run.log").read_text().splitlines()
    first_round = next(number for number, line in enumerate(lines) if line.startswith("round 1/1"))
    before = "\n".join(lines[:first_round])
    assert "data: digits, 3 devices with" in before
    assert "are left out, among them all of label 4" in before
    facts = json.loads((tmp_path / "summary.json").read_text())["data"]
    assert len(facts["train_samples"]) == 3
    assert facts["labels"][1] == [1, 2]
    assert facts["labels_of_no_device"] == [4, 5, 6, 7, 8, 9]
    assert facts["train_samples_used"] == sum(facts["train_samples"])
