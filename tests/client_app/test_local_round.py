import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from client_app.algorithms import make_algorithm
from client_app.algorithms.alternating import Alternating
from client_app.local_round import local_round
from client_app.masks import select_mask
from client_app.network import ModuleNetwork
from client_app.results import DivergedError
from client_app.samples import mini_batches
from protocol.training import TrainingSpec
from task.models import build_model
from task.split import split_parameters

SAMPLES = 40


def _sgd(**values) -> TrainingSpec:
    return TrainingSpec(
        **{"optimizer": "sgd", "personal_learning_rate": 0.02, "global_learning_rate": 0.02, **values}
    )


def _flat(name="lenet5", personal=("conv*",), **options) -> ModuleNetwork:
    module = build_model(name, options=options, generator=torch.Generator().manual_seed(0))
    return ModuleNetwork(module, split_parameters(module, personal))


def _data(seed=5):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(SAMPLES, 1, 28, 28, generator=generator),
        torch.randint(0, 2, (SAMPLES,), generator=generator),
    )


def _round(model, spec, num_pruned, *, seed=3, mask=None, data=None):
    images, labels = data or _data()
    start = _flat_start(model)
    return local_round(
        model,
        images,
        labels,
        broadcast=start[1],
        personal=start[0],
        num_pruned=num_pruned,
        algorithm=make_algorithm(spec.algorithm, spec.options),
        training=spec,
        generator=torch.Generator().manual_seed(seed),
        mask=mask,
    )


def _flat_start(model):
    rng = np.random.default_rng(0)
    return tuple(
        (0.05 * rng.standard_normal(n)).astype(np.float32)
        for n in (model.split.personal.size, model.split.global_part.size)
    )


OPTIMIZERS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"optimizer": "adam", "weight_decay": 0.1, "global_learning_rate": 1e-3},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", ["alternating", "simultaneous"])
@pytest.mark.parametrize("importance", ["update", "first_order", "magnitude", "random"])
def test_a_pruned_weight_never_revives(optimizer, algorithm, importance):
    model = _flat()
    spec = _sgd(algorithm=algorithm, importance=importance, global_steps=4, batch_size=16, **optimizer)
    num_pruned = model.split.global_part.size * 6 // 10
    result = _round(model, spec, num_pruned)
    assert int((~result.mask).sum()) == num_pruned
    assert not result.global_part[~result.mask].any()
    assert np.count_nonzero(result.global_part[result.mask]) > 0.99 * result.mask.sum()


def _plain_round(model, spec, start, *, num_pruned, seed):
    """The protocol written out with one vector per part, textbook SGD and a full sort; nothing reused."""
    images, labels = _data()
    module = build_model("lenet5", generator=torch.Generator().manual_seed(0))
    parameters = dict(module.named_parameters())
    seeds = torch.randint(0, 2**63 - 1, (3,), generator=torch.Generator().manual_seed(seed)).tolist()

    def gradients(v, u, batch, layout):
        for part, vector in ((model.split.personal, v), (model.split.global_part, u)):
            for name, place in part.slices().items():
                parameters[name].data = vector[place].reshape(parameters[name].shape).clone()
                parameters[name].requires_grad_(part is layout)
        wanted = [parameters[name] for name in layout.names]
        loss = nn.functional.cross_entropy(module(images[batch]), labels[batch])
        return torch.cat([g.ravel() for g in torch.autograd.grad(loss, wanted)])

    def batches(which, steps):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(seeds[which]))
        return [order[i * spec.batch_size : (i + 1) * spec.batch_size] for i in range(steps)]

    v, u = map(torch.tensor, start)
    for batch in batches(0, spec.personal_steps):
        v = v.add(gradients(v, u, batch, model.split.personal), alpha=-spec.personal_learning_rate)
    mask = torch.ones_like(u)
    if num_pruned:
        moved = torch.zeros_like(u)
        for batch in batches(1, spec.importance_steps):
            moved = moved - spec.global_learning_rate * gradients(
                v, u + moved, batch, model.split.global_part
            )
        order = np.lexsort((-np.arange(u.numel()), u.abs().numpy(), moved.abs().numpy()))
        mask[torch.from_numpy(order[:num_pruned].copy())] = 0.0
    u = u * mask
    for batch in batches(2, spec.global_steps):
        u = u.add(gradients(v, u, batch, model.split.global_part) * mask, alpha=-spec.global_learning_rate)
    return v.numpy(), u.numpy(), mask.numpy().astype(bool)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_alternating_round_equals_the_protocol_written_out(share):
    model = _flat()
    spec = _sgd(personal_steps=3, global_steps=3, importance_steps=2, batch_size=8)
    num_pruned = math.ceil(share * model.split.global_part.size)
    result = _round(model, spec, num_pruned, seed=11)
    personal, global_part, mask = _plain_round(
        model, spec, _flat_start(model), num_pruned=num_pruned, seed=11
    )
    if share == 0.0:  # plain partial personalisation, bit for bit
        np.testing.assert_array_equal(result.personal, personal)
        np.testing.assert_array_equal(result.global_part, global_part)
    assert (result.mask == mask).mean() > 0.999
    same = result.mask == mask
    np.testing.assert_allclose(result.personal, personal, atol=1e-6)
    np.testing.assert_allclose(result.global_part[same], global_part[same], atol=1e-5)
    assert (result.personal_steps, result.global_steps) == (3, 3)
    assert result.importance_steps == (2 if num_pruned else 0)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**63 - 1), global_seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_result_depends_on_the_generator_alone(seed, global_seed, share):
    spec = _sgd(batch_size=8, importance="random" if seed % 2 else "update")
    results = []
    for noise in (0, global_seed):
        model = _flat("mlp", ("fc1*",), hidden=4)  # built anew: what a model did before must not matter
        torch.manual_seed(noise)
        state = torch.random.get_rng_state()
        if noise:
            _round(model, spec, 3, seed=1)
        results.append(_round(model, spec, math.ceil(share * model.split.global_part.size), seed=seed))
        assert torch.equal(torch.random.get_rng_state(), state)
    for name in ("personal", "global_part", "mask"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_personal_steps_see_the_dense_model_and_the_same_batches_at_any_ratio():
    spec = _sgd(batch_size=8)
    model = _flat()
    size = model.split.global_part.size
    results = [_round(model, spec, n) for n in (0, size // 2, size)]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].personal, other.personal)


@pytest.mark.parametrize("algorithm", ["alternating", "simultaneous"])
def test_full_pruning_uploads_nothing_but_still_trains_the_personal_part(algorithm):
    model = _flat()
    spec = _sgd(algorithm=algorithm, batch_size=8)
    result = _round(model, spec, model.split.global_part.size)
    assert not result.mask.any()
    assert not result.global_part.any()
    assert not np.array_equal(result.personal, _flat_start(model)[0])
    assert result.personal_steps == 2
    assert result.importance_steps == result.global_steps == 0
    assert math.isfinite(result.personal_loss)
    assert math.isnan(result.global_loss)


def test_masked_steps_start_from_the_broadcast_not_from_the_trial_steps():
    """With a vanishing step size the upload is the broadcast times the mask."""
    model = _flat()
    spec = _sgd(global_learning_rate=1e-30, importance_steps=3, batch_size=8)
    result = _round(model, spec, 30_000)
    np.testing.assert_array_equal(result.global_part, _flat_start(model)[1] * result.mask)
    assert not result.mask.all()


def test_ranking_does_not_depend_on_the_learning_rate():
    """One trial step: importance is the rate times |gradient|, and is not rounded to bits of the weight."""
    model = _flat()
    masks = [
        _round(model, _sgd(global_learning_rate=rate, batch_size=8), 30_000).mask for rate in (0.25, 2**-12)
    ]
    np.testing.assert_array_equal(*masks)


def test_ranking_is_by_plain_sgd_whatever_the_optimizer():
    model = _flat()
    spec = _sgd(batch_size=8, personal_steps=0)  # personal steps differ with the optimiser
    masks = [
        _round(model, replace(spec, **options), 30_000).mask
        for options in ({}, {"optimizer": "adam"}, {"momentum": 0.9, "weight_decay": 0.1})
    ]
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_a_given_mask_is_used_without_importance_steps():
    model = _flat()
    mask = np.random.default_rng(0).random(model.split.global_part.size) < 0.5
    num_pruned = int((~mask).sum())
    result = _round(model, _sgd(batch_size=8), num_pruned, mask=mask)
    np.testing.assert_array_equal(result.mask, mask)
    assert result.importance_steps == 0
    assert not result.global_part[~mask].any()
    with pytest.raises(ValueError, match="num_pruned = 7"):
        _round(model, _sgd(), 7, mask=mask)


def test_without_a_personal_part_it_is_federated_averaging():
    model = _flat("mlp", (), hidden=4)
    result = _round(model, _sgd(batch_size=8), 0)
    assert result.personal.size == 0
    assert result.mask.all()
    assert math.isnan(result.personal_loss)
    other = _round(model, _sgd(batch_size=8, algorithm="simultaneous"), 0)
    np.testing.assert_array_equal(result.global_part, other.global_part)


def test_simultaneous_steps_move_both_parts_from_one_gradient():
    model = _flat()
    spec = _sgd(algorithm="simultaneous", global_steps=1, batch_size=SAMPLES, personal_learning_rate=0.1)
    v, u = _flat_start(model)
    result = _round(model, spec, 0)
    images, labels = _data()
    model.load(personal=v, global_part=u)
    model.train_only(personal=True, global_part=True)
    model.backward(images[None], labels[None])
    np.testing.assert_allclose(result.personal, v - 0.1 * model.personal.grad[0].numpy(), atol=1e-7)
    np.testing.assert_allclose(result.global_part, u - 0.02 * model.global_part.grad[0].numpy(), atol=1e-7)
    assert result.personal_loss == result.global_loss


def test_optimizer_state_does_not_cross_rounds():
    spec = _sgd(momentum=0.9, batch_size=8)
    model = _flat()
    fresh = _round(model, spec, 100)
    again = _round(model, spec, 100)
    np.testing.assert_array_equal(fresh.global_part, again.global_part)


@pytest.mark.parametrize("personal", [("conv*",), ("fc*",)])
def test_cached_features_change_nothing_beyond_rounding(personal, monkeypatch):
    """Many passes over few samples: the frozen first layers run once for each sample."""
    spec = _sgd(global_epochs=4, batch_size=16, optimizer="sgd")
    cached = _round(_flat(personal=personal), spec, 1000)
    monkeypatch.setattr("client_app.samples.FEATURE_CACHE_BYTES", 0)
    plain = _round(_flat(personal=personal), spec, 1000)
    same = cached.mask == plain.mask
    assert same.mean() > 0.999
    np.testing.assert_allclose(cached.global_part[same], plain.global_part[same], atol=1e-5)
    assert cached.global_steps == plain.global_steps == 4 * 3


def test_biases_go_last_when_protected():
    model = _flat()
    biases = sum(
        p.numel() for n, p in model.module.named_parameters() if n.startswith("fc") and n.endswith("bias")
    )
    size = model.split.global_part.size
    spec = _sgd(prune_bias=False, batch_size=8)
    global_part = _round(model, spec, size - biases)
    for name, place in model.split.global_part.slices().items():
        assert global_part.mask[place].all() == name.endswith("bias")


@settings(deadline=None)
@given(n=st.integers(1, 70), batch=st.integers(1, 80), steps=st.integers(1, 12), epochs=st.integers(1, 3))
def test_mini_batches(n, batch, steps, epochs):
    def generator():
        return torch.Generator().manual_seed(0)

    everything = torch.arange(n)
    by_steps = [everything[b] for b in mini_batches(n, batch, generator(), steps=steps)]
    assert [b.numel() for b in by_steps] == [min(n, batch)] * steps
    per_pass = max(n // batch, 1)
    for first in range(0, steps, per_pass):
        seen = torch.cat(by_steps[first : first + per_pass])
        assert seen.unique().numel() == seen.numel()
    by_epochs = torch.cat(
        [everything[b] for b in mini_batches(n, batch, generator(), steps=1, epochs=epochs)]
    )
    assert by_epochs.numel() == epochs * n
    assert torch.equal(by_epochs.bincount(), torch.full((n,), epochs))


@pytest.mark.parametrize("bad", [{"personal_learning_rate": 1e30}, {"global_learning_rate": 1e30}])
def test_divergence_is_raised(bad):
    with pytest.raises(DivergedError, match="not finite"):
        _round(_flat(), _sgd(personal_steps=8, global_steps=8, **bad), 100)


def test_inputs_are_not_written():
    model = _flat()
    v, u = _flat_start(model)
    v.flags.writeable = u.flags.writeable = False
    images, labels = _data()
    result = local_round(
        model, images, labels, broadcast=u, personal=v, num_pruned=50, algorithm=Alternating(),
        training=_sgd(), generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    kept = result.global_part.copy(), result.personal.copy()
    _round(model, _sgd(), 0)
    np.testing.assert_array_equal(result.global_part, kept[0])
    np.testing.assert_array_equal(result.personal, kept[1])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kernels": "slow"}, "fast, plain"),
        ({"optimizer": "rmsprop"}, "sgd, adam"),
        ({"importance": "size"}, "first_order"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"global_steps": 0}, "global_steps = 0"),
        ({"personal_epochs": 0}, "personal_epochs = 0"),
        ({"personal_learning_rate": 0.0}, "personal_learning_rate"),
        ({"global_learning_rate": math.nan}, "global_learning_rate"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "momentum = 1"),
        ({"momentum": 0.5, "optimizer": "adam"}, "adam"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_wrong_settings_are_named(values, text):
    with pytest.raises(ValueError, match=text):
        TrainingSpec(**values)


def test_mask_is_the_tie_rules_on_dead_units():
    """Half of the first hidden layer dead: their weights tie at importance 0 and go in the rule's order."""
    model = _flat("mlp", (), hidden=6)
    places = model.split.global_part.slices()
    u = np.random.default_rng(0).standard_normal(model.split.global_part.size).astype(np.float32) * 0.05
    u[places["fc1.bias"]][:3] = -1e3  # never fires: exactly zero gradients on its weights
    images, labels = _data()
    spec = _sgd(batch_size=SAMPLES)
    result = local_round(
        model, images, labels, broadcast=u, personal=u[:0], num_pruned=2000, algorithm=Alternating(),
        training=spec,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.load(global_part=u)
    model.train_only(global_part=True)
    model.backward(images[None], labels[None])
    gradient = np.abs(model.global_part.grad[0].numpy())
    assert (gradient == 0).sum() > 2000
    np.testing.assert_array_equal(result.mask, select_mask(gradient, u, 2000))
    dead = np.flatnonzero(gradient == 0)
    assert np.abs(u[dead][~result.mask[dead]]).max() <= np.abs(u[dead][result.mask[dead]]).min()
