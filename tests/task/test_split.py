import math

import pytest
import torch

from task.models import build_model
from task.split import split_parameters


@pytest.fixture(scope="module")
def lenet():
    return build_model("lenet5", generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patterns", [[], ["conv*"], ["fc*"], ["conv1.weight", "fc3.*"]])
def test_every_parameter_has_exactly_one_place(lenet, patterns):
    split = split_parameters(lenet, patterns)
    sizes = {name: tuple(p.shape) for name, p in lenet.named_parameters()}
    assert set(split.personal.names).isdisjoint(split.global_part.names)
    for part in (split.personal, split.global_part):
        assert all(sizes.pop(n) == s for n, s in zip(part.names, part.shapes, strict=True))
        places = list(part.slices().values())
        edges = [0, *(place.stop for place in places)]
        assert [place.start for place in places] == edges[:-1]
        assert edges[-1] == part.size == sum(map(math.prod, part.shapes))
    assert not sizes


def test_either_end_can_be_personal(lenet):
    front, back = split_parameters(lenet, ["conv*"]), split_parameters(lenet, ["fc*"])
    assert front.personal == back.global_part
    assert front.global_part == back.personal


@pytest.mark.parametrize(
    ("patterns", "text"),
    [
        (["cnv*"], r"'cnv\*' matches no parameter.*conv1.weight"),
        (["*"], "nothing is left"),
        ("conv*", "list"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(lenet, patterns, text):
    with pytest.raises(ValueError, match=text):
        split_parameters(lenet, patterns)
