"""What can be exchanged is found by name or by place, and its options are checked against its signature."""

from dataclasses import dataclass
from typing import Any

import pytest

from client_app.algorithms import ALGORITHMS
from radio.allocation.policies import POLICIES
from radio.beamforming import BEAMFORMERS
from radio.scheduling import SCHEDULERS
from registry import Registry
from task.models import MODELS
from task.partition import PARTITIONERS


def part(first: int, *, width: int = 3, rng: object = None) -> int:
    return first * width


def greedy_part(first: int, **anything: Any) -> dict[str, Any]:
    return anything


@dataclass(kw_only=True)
class Part:
    strength: float
    steps: int = 1


class Outer:
    @staticmethod
    def inner(*, depth: int = 1) -> int:
        return depth


NUMBER = 3


@pytest.fixture
def parts() -> Registry[Any]:
    registry: Registry[Any] = Registry("part", key="thing.part", given={"rng"})
    registry.register("plain")(part)
    registry.register("class")(Part)
    registry.register_at(later="colorsys:rgb_to_hsv", never="no_such_package:f")
    return registry


def test_a_part_is_found_by_name_and_by_place(parts: Registry[Any]) -> None:
    assert parts.find("plain") is parts.find(f"{__name__}:part") is parts["plain"] is part
    assert parts.find(f"{__name__}:Outer.inner") is Outer.inner
    assert parts.find("later").__name__ == "rgb_to_hsv"


def test_a_part_that_is_imported_late_is_not_imported_to_be_listed(parts: Registry[Any]) -> None:
    assert list(parts) == ["plain", "class", "later", "never"]
    assert "never" in parts
    assert len(parts) == 4


def test_options_are_the_keywords_of_a_function_or_class_that_are_not_given(parts: Registry[Any]) -> None:
    assert parts.options("plain") == ("width",)
    assert parts.options("class") == ("strength", "steps")
    assert parts.options(f"{__name__}:Outer.inner") == ("depth",)
    assert parts.select("plain", {"width": 2})(2, width=2) == 4
    assert parts.select(f"{__name__}:greedy_part", {"x": 1}) is greedy_part


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        (
            "plane",
            {},
            r"thing.part = 'plane' is unknown; did you mean plain\? valid: class, later, never, plain",
        ),
        ("plain", {"widht": 1}, r"'plain' has no option 'widht'; did you mean width\? valid: width"),
        ("plain", {"rng": 1}, r"has no option 'rng'"),
        (f"{__name__}:greedy_part", {"rng": 1}, r"has no option 'rng'"),
        ("class", {}, "'class' needs the option 'strength'"),
        ("no_such_module:f", {}, "thing.part = 'no_such_module:f' cannot be imported: ModuleNotFoundError"),
        (f"{__name__}:nothing", {}, "cannot be imported: AttributeError"),
        (f"{__name__}:NUMBER", {}, "is a int; it must be a function or a class"),
        (":f", {}, "cannot be imported"),
    ],
)
def test_what_is_not_there_is_said(
    parts: Registry[Any], name: str, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        parts.select(name, options)


def test_a_name_belongs_to_one_part(parts: Registry[Any]) -> None:
    for again in ("plain", "later"):
        with pytest.raises(ValueError, match=f"part '{again}' is registered twice"):
            parts.register(again)(part)
    with pytest.raises(ValueError, match="registered twice"):
        parts.register_at(plain="colorsys:rgb_to_hsv")
    assert parts["plain"] is part


@pytest.mark.parametrize("joint", [POLICIES, SCHEDULERS, BEAMFORMERS, MODELS, PARTITIONERS, ALGORITHMS])
def test_every_joint_takes_parts_of_the_users_own(joint: Registry[Any]) -> None:
    assert joint.find(f"{__name__}:part") is part
    with pytest.raises(ValueError, match=r"\w+\.\w+ = 'parrt' is unknown; .*valid: "):
        joint.find("parrt")
