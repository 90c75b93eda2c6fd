"""Running statistics: one device, many at once, on disk and in memory."""

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from client_app import state
from client_app.algorithms import make_algorithm
from client_app.fast.vmapped import VmappedNetwork
from client_app.local_round import DeviceRound, LocalTraining
from client_app.network import ModuleNetwork, Network
from client_app.phases import statistics
from client_app.results import LocalResult
from client_app.samples import TensorPool
from protocol.training import TrainingSpec
from task.split import split_parameters


def _module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def _results(network: Network, at_once: int) -> list[LocalResult]:
    spec = TrainingSpec(optimizer="sgd", global_learning_rate=0.1, personal_learning_rate=0.1, batch_size=8)
    draw = torch.Generator().manual_seed(1)
    pool = TensorPool(torch.randn(40, 4, generator=draw), torch.randint(0, 3, (40,), generator=draw))
    local = LocalTraining(network, pool, make_algorithm("alternating", {}), spec, devices_at_once=at_once)
    size = network.split.global_part.size
    start = np.linspace(-1, 1, size, dtype=np.float32)
    mine = np.zeros(network.split.personal.size, np.float32)
    rounds = [
        DeviceRound(np.arange(n, n + 5), mine, pruned, lambda: torch.Generator().manual_seed(3))
        for n, pruned in ((0, 0), (7, 5), (13, size), (20, 5))
    ]
    found: dict[int, LocalResult | Exception] = {}
    for chunk in local.rounds(start, rounds):
        found |= chunk
    results = [found[k] for k in range(len(rounds))]
    assert all(isinstance(one, LocalResult) for one in results)
    return [one for one in results if isinstance(one, LocalResult)]


def test_many_devices_keep_the_statistics_that_each_has_alone():
    split = split_parameters(_module(), ["3.*"])
    alone = _results(ModuleNetwork(_module(), split), 1)
    together = _results(VmappedNetwork(_module(), split, fill_to=1), 4)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other.global_part, one.global_part, atol=1e-5)
        assert one.buffers["1.num_batches_tracked"] == other.buffers["1.num_batches_tracked"]
        for name in one.buffers:
            np.testing.assert_allclose(other.buffers[name], one.buffers[name], atol=1e-5)
    # Two personal and two global steps; the trial step that ranks weights moves no statistics.
    assert [int(one.buffers["1.num_batches_tracked"][0]) for one in alone] == [4, 4, 2, 4]


def test_a_batch_of_one_uses_the_running_statistics():
    module = _module()
    network = ModuleNetwork(module, split_parameters(module, []))
    network.use(1)
    network.train_only(global_part=True)
    loss = network.backward(torch.ones(1, 1, 4), torch.zeros(1, 1, dtype=torch.int64))
    assert torch.isfinite(loss).all()
    assert int(network.copy_buffers()[0]["1.num_batches_tracked"][0]) == 0


@pytest.mark.parametrize("on_disk", [True, False])
def test_they_are_kept_with_the_personal_part(tmp_path, on_disk):
    config: dict[str, str | int | float] = {"state-dir": str(tmp_path)} if on_disk else {}
    context = Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})

    def store() -> state.StateStore:
        return state.open_store(context, 0, run_key="k", run="r", resume_run="", resume_dir="")

    for number in (1, 2, 3):
        arrays = {"bn.mean": np.full(2, number, np.float32), "bn.count": np.array([number])}
        store().keep(np.zeros(3, np.float32), number, arrays)
    if on_disk:
        context.state.clear()
    for until in (2, 3):
        part = store().recover(3, until).part
        assert part is not None
        assert part.arrays["bn.count"].tolist() == [until]
        assert part.arrays["bn.mean"].tolist() == [until, until]


def _of_ditto(network: Network, algorithm: str, options: dict[str, float], lead: float) -> LocalResult:
    """Do two rounds of one device; the second broadcast is the first one times `lead`."""
    spec = TrainingSpec(optimizer="sgd", global_learning_rate=0.1, personal_learning_rate=0.1, batch_size=8)
    draw = torch.Generator().manual_seed(1)
    pool = TensorPool(torch.randn(40, 4, generator=draw), torch.randint(0, 3, (40,), generator=draw))
    local = LocalTraining(network, pool, make_algorithm(algorithm, options), spec, devices_at_once=1)
    start = np.linspace(-1, 1, network.split.global_part.size, dtype=np.float32)
    buffers: dict[str, np.ndarray] = {}
    kept: dict[str, np.ndarray] = {}
    results: list[LocalResult] = []
    for broadcast in (start, np.float32(lead) * start):
        order = DeviceRound(
            np.arange(30), np.zeros(0, np.float32), 0, lambda: torch.Generator().manual_seed(3), None,
            buffers, kept,
        )  # fmt: skip
        ((result,),) = [list(chunk.values()) for chunk in local.rounds(broadcast, [order])]
        assert isinstance(result, LocalResult), result
        buffers, kept = dict(result.buffers), dict(result.state)
        results.append(result)
    return results[-1]


@pytest.mark.parametrize("many", [False, True])
def test_the_copy_of_ditto_has_statistics_of_its_own(many):
    """With lam = 0 nothing of a copy depends on what is broadcast later; nothing of u depends on its copy."""
    split = split_parameters(_module(), [])

    def network() -> Network:
        return VmappedNetwork(_module(), split, fill_to=1) if many else ModuleNetwork(_module(), split)

    one, other = (_of_ditto(network(), "ditto", {"lam": 0.0}, lead) for lead in (1.0, -2.0))
    own, others = (statistics(result.buffers, result.state) for result in (one, other))
    assert sorted(own) == sorted(one.buffers)
    for name, values in own.items():
        np.testing.assert_array_equal(values, others[name])
    assert any(not np.array_equal(own[name], values) for name, values in one.buffers.items())
    plain = _of_ditto(network(), "alternating", {}, 1.0)
    for name, values in plain.buffers.items():
        np.testing.assert_array_equal(values, one.buffers[name])
