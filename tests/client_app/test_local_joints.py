"""What a user exchanges in local training: schedule, optimiser, importance, loss; the edges of the data."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from client_app.algorithms import make_algorithm
from client_app.evaluation import evaluate
from client_app.importance import ranking
from client_app.local_round import local_round
from client_app.network import ModuleNetwork
from client_app.optimizers import check_optimizer, optimizer
from client_app.schedules import rate
from protocol.training import TrainingSpec
from task.losses import cross_entropy
from task.metrics import balanced_accuracy
from task.models import build_model
from task.split import flatten, split_parameters


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _normed() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def _round(module, inputs, targets, *, num_pruned=0, factor=1.0, personal=(), **training):
    split = split_parameters(module, personal)
    start = flatten(module, split.global_part), flatten(module, split.personal)
    spec = TrainingSpec(**{"optimizer": "sgd", "global_learning_rate": 0.1, "batch_size": 4, **training})
    return start, local_round(
        ModuleNetwork(module, split), inputs, targets, broadcast=start[0], personal=start[1],
        num_pruned=num_pruned, algorithm=make_algorithm("alternating", {}), training=spec,
        generator=torch.Generator().manual_seed(3), rate=factor,
    )  # fmt: skip


def _table(number):
    return torch.randn(number, 4, generator=_seeded()), torch.arange(number) % 3


def absolute_weight(displacement, weights):
    """A ranking of one's own: |u|, whatever the trial steps did."""
    return weights.abs() + 0 * displacement


def by_the_sum(displacement, weights):
    return displacement.abs() / displacement.abs().sum()


def halves(server_round: int, *, after: int) -> float:
    return 1.0 if server_round <= after else 0.5


@given(st.integers(2, 50), st.floats(0, 0.9))
def test_a_cosine_falls_from_one_to_its_floor(rounds, floor):
    spec = TrainingSpec(schedule="cosine", schedule_options={"rounds": rounds, "floor": floor})
    factors = [rate(spec, number) for number in range(1, rounds + 3)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    assert factors[rounds - 1 :] == pytest.approx([max(floor, 1e-12)] * 3)
    half = [one for one in factors[:rounds] if one >= (1 + floor) / 2 - 1e-12]
    assert len(half) == -(-rounds // 2)  # symmetric about the middle


def test_steps_fall_by_their_factor_and_ones_own_schedule_is_asked():
    spec = TrainingSpec(schedule="step", schedule_options={"every": 3, "factor": 0.5})
    assert [rate(spec, number) for number in range(1, 8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    own = TrainingSpec(schedule=f"{__name__}:halves", schedule_options={"after": 2})
    assert [rate(own, number) for number in (1, 2, 3)] == [1, 1, 0.5]
    for options in ({"every": 0}, {"every": 2, "factor": 0.0}, {}, {"rounds": 3}):
        with pytest.raises(ValueError, match=r"every|factor"):
            rate(TrainingSpec(schedule="step", schedule_options=options), 1)


def test_half_the_rate_is_a_round_with_half_the_step_size():
    _, by_schedule = _round(_normed(), *_table(12), factor=0.5, personal=["3.*"], personal_learning_rate=0.2)
    _, by_size = _round(
        _normed(), *_table(12), personal=["3.*"], personal_learning_rate=0.1, global_learning_rate=0.05
    )
    np.testing.assert_array_equal(by_schedule.global_part, by_size.global_part)
    np.testing.assert_array_equal(by_schedule.personal, by_size.personal)


@pytest.mark.parametrize(
    ("name", "options"), [("RMSprop", {"alpha": 0.9}), ("Adagrad", {}), ("NAdam", {}), ("Rprop", {})]
)
def test_any_optimiser_of_torch_takes_torchs_steps(name, options):
    spec = TrainingSpec(optimizer=f"torch.optim:{name}", optimizer_options=options)
    check_optimizer(spec)
    mine = torch.randn(50, generator=_seeded())
    theirs = mine.clone()
    reference, steps = getattr(torch.optim, name)([theirs], lr=0.01, **options), optimizer(mine, 0.01, spec)
    for _ in range(4):
        mine.grad = torch.randn(50, generator=_seeded())
        theirs.grad = mine.grad.clone()
        steps.step()
        reference.step()
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam", "Muon"])
def test_one_that_does_not_work_entry_by_entry_is_refused_with_its_key(name):
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch {torch.__version__} has no {name}")
    with pytest.raises(ValueError, match=f"training.optimizer = torch.optim:{name}"):
        check_optimizer(TrainingSpec(optimizer=f"torch.optim:{name}"))


def test_importance_of_ones_own_decides_what_is_pruned():
    (start, _), result = _round(
        _normed(), *_table(12), num_pruned=20, importance=f"{__name__}:absolute_weight", prune_bias=True
    )
    assert result.mask.sum() == start.size - 20
    assert np.abs(start[result.mask]).min() >= np.abs(start[~result.mask]).max()
    with pytest.raises(ValueError, match="by_the_sum returns"):
        ranking(f"{__name__}:by_the_sum")


@given(st.floats(0, 0.99), st.integers(2, 7))
def test_label_smoothing_is_cross_entropy_against_the_softened_truth(share, classes):
    logits = torch.randn(5, classes, generator=_seeded(), dtype=torch.float64)
    labels = torch.arange(5) % classes
    truth = (1 - share) * torch.eye(classes, dtype=torch.float64)[labels] + share / classes
    expected = -(truth * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(cross_entropy(logits, labels, label_smoothing=share), expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_transformer_trains_and_tied_weights_are_one(tied):
    module = build_model(
        "transformer", num_classes=7, sample_shape=(5,), generator=_seeded(),
        options={"tied": tied, "each_position": True, "width": 8, "heads": 2, "layers": 1, "dropout": 0.0},
    )  # fmt: skip
    start = torch.arange(8)[:, None] % 7
    rows = (start + torch.arange(6)) % 7
    (global_part, _), result = _round(
        module, rows[:, :-1], rows[:, 1:], batch_size=8, global_steps=60, global_learning_rate=0.3
    )
    split = split_parameters(module, [])
    assert sum(math.prod(shape) for shape in split.global_part.shapes) == global_part.size
    assert ("head.weight" in split.global_part.names) is not tied
    assert result.global_loss is not None
    with torch.no_grad():
        loss = cross_entropy(module(rows[:, :-1]), rows[:, 1:]).mean()
    assert float(loss) < 0.7 * math.log(7)  # of a guess
    if tied:  # both uses pull at the one matrix
        assert module.get_parameter("head.weight") is module.get_parameter("embedding.weight")


@pytest.mark.parametrize("number", [1, 5])
def test_a_device_with_one_sample_or_a_last_batch_of_one_trains_with_batch_normalisation(number):
    """Five samples in batches of four leave one, which no statistics can be taken of."""
    _, result = _round(_normed(), *_table(number), global_epochs=2)
    assert np.isfinite(result.global_part).all()
    assert all(np.isfinite(buffer).all() for buffer in result.buffers.values())
    seen = int(result.buffers["1.num_batches_tracked"][0])
    assert seen == (0 if number == 1 else 2)


def test_a_class_that_a_device_does_not_have_counts_for_nothing():
    """Balanced accuracy is over the classes that are there; the others' outputs may win all the same."""
    outputs = torch.tensor([[9.0, 0, 0, 1], [0, 9, 0, 1], [0, 1, 0, 9]])
    labels = torch.tensor([0, 1, 1])
    assert balanced_accuracy(outputs, labels) == pytest.approx((1 + 0.5) / 2)
    module = _normed()
    split = split_parameters(module, [])
    tested = evaluate(
        ModuleNetwork(module, split), global_part=flatten(module, split.global_part),
        personal=np.zeros(0, np.float32), images=torch.randn(3, 4, generator=_seeded()),
        labels=torch.zeros(3, dtype=torch.int64),
    )  # fmt: skip
    assert tested.num_samples == 3
    assert 0 <= tested.accuracy <= 1
