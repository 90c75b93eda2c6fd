"""What is personal under the schemes of the literature, in every network that is built in."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from radio.payload import upload_bits
from schema import ConfigError
from server_app.job import prepare
from server_app.settings import compose_settings
from task.layers import layers
from task.models import MODELS, build_model
from task.settings import OWN_PERSONAL
from task.split import persistent_buffers, split_parameters

# What the papers call the head, of each network: its last layer, which has an output for each class.
HEADS = {
    "cnn": "fc2", "fedavg_cnn": "fc2", "lenet5": "fc3", "mlp": "fc2", "resnet8": "fc", "resnet20": "fc",
    "lstm": "head", "transformer": "head",
}  # fmt: skip


@functools.cache
def network(name: str) -> nn.Module:
    shape = (8,) if name in ("lstm", "transformer") else (3, 32, 32) if "resnet" in name else (1, 28, 28)
    return build_model(name, num_classes=10, sample_shape=shape, generator=torch.Generator().manual_seed(0))


@functools.cache
def preset(name: str):
    return compose_settings([f"personalisation={name}"])


def parts(name: str, scheme: str) -> tuple[set[str], set[str], set[str]]:
    """Return the names of the personal and the global parameters, and of the buffers that stay."""
    settings = preset(scheme)
    assert settings.personal_patterns is not None
    split = split_parameters(network(name), settings.personal_patterns, settings.model.buffers)
    return set(split.personal.names), set(split.global_part.names), set(split.personal_buffers)


def test_every_network_that_is_built_in_has_a_head_and_a_personal_part_of_its_own():
    assert set(HEADS) == set(MODELS) == set(OWN_PERSONAL)


@pytest.mark.parametrize("name", HEADS)
def test_the_personal_parts_are_what_the_papers_say(name):
    everything = {parameter for parameter, _ in network(name).named_parameters()}
    head = {parameter for parameter in everything if parameter.startswith(f"{HEADS[name]}.")}
    assert {p.shape[0] for n, p in network(name).named_parameters() if n in head} == {10}
    for scheme in ("fedper", "fedrep"):  # the head stays, the base is shared
        assert parts(name, scheme)[:2] == (head, everything - head)
    assert parts(name, "lg_fedavg")[:2] == (everything - head, head)  # the other way round
    assert parts(name, "ditto")[:2] == (set(), everything)
    assert preset("fedper").training.algorithm == preset("lg_fedavg").training.algorithm == "simultaneous"
    assert preset("fedrep").training.algorithm == "alternating"
    assert preset("fedrep").training.personal_steps > preset("fedrep").training.global_steps


@pytest.mark.parametrize("name", HEADS)
def test_fedbn_keeps_the_batch_normalisation_with_its_statistics(name):
    norms = {prefix for prefix, module in network(name).named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        with pytest.raises(ValueError, match=r"'batchnorm' matches nothing.*resnet8"):
            parts(name, "fedbn")
        return
    mine, shared, buffers = parts(name, "fedbn")
    assert mine == {f"{prefix}.{kind}" for prefix in norms for kind in ("weight", "bias")}
    assert {n.rpartition(".")[0] for n in shared}.isdisjoint(norms)
    assert buffers == set(persistent_buffers(network(name)))


def test_a_residual_network_has_as_many_layers_as_its_name_says():
    """Its normalisations are no layers: they stand with the convolution before them."""
    assert len(layers(network("resnet20"))) == 20
    assert len(layers(network("resnet8"))) == 8
    last_two = split_parameters(network("resnet8"), ["last:2"])
    assert last_two.personal.names == (
        "layer3.0.conv2.weight", "layer3.0.bn2.weight", "layer3.0.bn2.bias", "fc.weight", "fc.bias",
    )  # fmt: skip


@given(st.sampled_from(sorted(HEADS)), st.integers(1, 3))
def test_the_last_layers_and_the_others_are_the_whole(name, number):
    if number >= len(layers(network(name))):
        return
    last, others = (split_parameters(network(name), [f"{side}:{number}"]) for side in ("last", "but_last"))
    assert last.personal == others.global_part
    assert last.global_part == others.personal


def test_a_weight_that_two_layers_share_is_personal_if_the_head_is():
    tied = build_model(
        "transformer", num_classes=7, sample_shape=(5,), options={"tied": True},
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    names = [name for name, _ in tied.named_parameters()]
    assert sum("embedding" in name or name == "head.weight" for name in names) == 1
    split = split_parameters(tied, ["last:1"])
    assert set(split.personal.names) == {"embedding.weight", "head.bias"}
    assert set(split_parameters(tied, ["but_last:1"]).global_part.names) == {"embedding.weight", "head.bias"}


@pytest.mark.parametrize("pattern", ["last:0", "last:8", "but_last:8", "last:", "last:x", "but_last:-1"])
def test_layers_that_there_are_not_are_refused_with_those_that_there_are(pattern):
    with pytest.raises(ValueError, match=rf"{pattern}.*8 layers.*1 to 7"):
        split_parameters(network("resnet8"), [pattern])


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_who_changes_the_name_alone_gets_that_networks_own_personal_part(name):
    """Not the patterns of the network that is there otherwise: conv* of a resnet would be its first layer."""
    by_name, by_group = compose_settings([f"model.name={name}"]), compose_settings([f"model={name}"])
    assert by_name.model == by_group.model
    assert by_name.model.personal == OWN_PERSONAL[name]


def test_of_a_network_of_ones_own_the_personal_part_is_to_be_chosen():
    own = ["model.name=tests.end_to_end.own_task:table", "dataset.name=tests.end_to_end.own_task:houses"]
    with pytest.raises(ConfigError, match=r"model.personal: .*own_task:table.*0.weight.*last:K.*\[\]"):
        prepare(compose_settings([*own, "partition=natural", "fleet.num_devices=4"]))
    job = prepare(compose_settings([*own, "partition=natural", "fleet.num_devices=4", "scheme=fedavg"]))
    assert job.split.personal.size == 0


def test_the_network_of_federated_averaging_has_the_published_size():
    """McMahan et al. 2017, section 3: 1 663 370 total parameters; dense, 32 bits each and a header."""
    assert sum(parameter.numel() for parameter in network("fedavg_cnn").parameters()) == 1_663_370
    assert upload_bits(1_663_370, 1_663_370, 32) == 53_228_064
    assert [p.shape for n, p in network("fedavg_cnn").named_parameters() if n.endswith("weight")] == [
        (32, 1, 5, 5), (64, 32, 5, 5), (512, 3136), (10, 512),
    ]  # fmt: skip
