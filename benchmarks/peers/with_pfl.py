"""pfl (Apple, pfl-research): its backend, algorithm and model; processes by `torchrun`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import nn

from benchmarks.peers.given import Given, done, finish, folder_of_side, load


class _Network(nn.Module):
    """The network with what pfl asks of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.inner(x)
        return out

    def loss(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:
        return nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> dict[str, Any]:
        return {"loss": Weighted(float(self.loss(x, y)) * len(y), len(y))}


class _Alternating(FederatedAveraging):
    """Personal steps on each user's own part, then those on the common part."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self._given, self._kept = given, dict[int, dict[str, torch.Tensor]]()

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):  # type: ignore[no-untyped-def]
        """Return the difference of the common part; the personal one stays here."""
        given, device = self._given, int(user_dataset.user_id)
        own = dict(model.pytorch_model.inner.named_parameters())
        with torch.no_grad():
            for name in given.personal:
                own[name].copy_(self._kept.get(device, given.weights)[name])
        parameters = central_context.model_train_params
        for phase, personal in enumerate((True, False)):
            for name, parameter in own.items():
                parameter.requires_grad_((name in given.personal) == personal)
            user_dataset.phase = phase
            model.do_multiple_epochs_of(user_dataset, parameters, _step)
        for parameter in own.values():
            parameter.requires_grad_(True)
        self._kept[device] = {name: own[name].detach().clone() for name in given.personal}
        with torch.no_grad():
            for name in given.personal:  # they do not move in the common model
                own[name].copy_(initial_model_state[f"inner.{name}"])
        return model.get_model_difference(initial_model_state), Metrics()


def _step(model, optimizer, batch, train_kwargs, step_arguments):  # type: ignore[no-untyped-def]
    optimizer.zero_grad()
    model.loss(*batch).backward()
    optimizer.step()


class _Shuffled(PyTorchTensorDataset):
    """A user's images, in the order that is given for a round and phase."""

    def __init__(self, given: Given, number: int, device: int) -> None:
        self._order, self.phase = given.orders[number - 1, device], -1
        super().__init__((given.images[device], given.labels[device]), user_id=str(device))

    def iter(self, batch_size: int | None) -> Iterator[Any]:
        images, labels = self.raw_data
        for batch in torch.split(self._order[self.phase], batch_size or len(labels)):
            yield images[batch], labels[batch]


class _AfterRound(TrainingProcessCallback):
    def __init__(self, given: Given, rank: int) -> None:
        self._given, self._rank = given, rank

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):  # type: ignore[no-untyped-def]
        if not self._rank:
            done(central_iteration + 1, self._given)
        return False, Metrics()


def main() -> None:
    """Train."""
    folder = folder_of_side()
    given = load(folder)
    distributed = pytorch_ops.distributed
    torch.set_num_threads(max(1, given.threads // distributed.world_size))
    network = _Network(given.network())
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    order = [(number, device) for number, devices in enumerate(given.participants, 1) for device in devices]
    users = itertools.chain(order)
    data = FederatedDataset(lambda user: _Shuffled(given, *user), lambda: next(users))
    algorithm = _Alternating(given) if given.personal else FederatedAveraging()
    algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=10 * given.rounds,
            train_cohort_size=len(given.participants[0]),
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(local_batch_size=given.batch, local_num_epochs=1, local_learning_rate=given.rate),
        callbacks=[_AfterRound(given, distributed.global_rank)],
        send_metrics_to_platform=False,
    )
    if not distributed.global_rank:
        finish(folder, dict(network.inner.named_parameters()))


if __name__ == "__main__":
    main()
