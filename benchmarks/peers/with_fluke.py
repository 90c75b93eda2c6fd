"""fluke: its server, clients and loop; one process, PyTorch's threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fluke import DDict, FlukeENV
from fluke.algorithms import CentralizedFL
from fluke.algorithms.fedavg import FedAVG
from fluke.algorithms.fedrep import FedRepClient, _ModOpt2
from fluke.client import Client
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from fluke.nets import EncoderHeadNet, HeadGlobalEncoderLocalNet
from fluke.server import Server
from torch import nn

from benchmarks.peers.given import Given, done, finish, folder_of_side, load


class _Loader(FastDataLoader):
    """fluke's loader, whose images lie in the order that is given for the round and phase."""

    def __init__(self, given: Given, device: int) -> None:
        super().__init__(
            given.images[device],
            given.labels[device],
            num_labels=10,
            batch_size=given.batch,
            skip_singleton=False,
        )
        self._given, self._device, self._own = given, device, (given.images[device], given.labels[device])
        self.round = self._passes = 0

    def __iter__(self) -> Any:
        phases = self._given.orders.shape[2]
        order = self._given.orders[self.round - 1, self._device, self._passes % phases]
        self._passes += 1
        self.tensors = [tensor[order] for tensor in self._own]
        return super().__iter__()


class _Server(Server):
    """fluke's server, which takes the participants that are given."""

    given: Given
    number = 0

    def get_eligible_clients(self, eligible_perc: float) -> Sequence[Client]:
        """Return the clients of the next round."""
        if self.number:
            done(self.number, self.given)
        if self.number == self.given.rounds:
            return []
        self.number += 1
        chosen = [self.clients[device] for device in self.given.participants[self.number - 1]]
        for client in chosen:
            client.train_set.round = self.number
        return chosen


class _Alternating(FedRepClient):
    """fluke's alternating client with the first layers, not the head, kept on the device."""

    def __init__(self, *, model: EncoderHeadNet, **options: Any) -> None:
        super().__init__(model=model, **options)
        self._modopt = _ModOpt2(model=HeadGlobalEncoderLocalNet(model))


def _halves(given: Given) -> EncoderHeadNet:
    """Return the network as what stays on the devices and what is averaged."""
    layers = dict(given.network().named_children())
    last = max(
        place
        for place, name in enumerate(layers)
        if any(one.startswith(f"{name}.") for one in given.personal)
    )
    first, rest = list(layers.values())[: last + 1], list(layers.values())[last + 1 :]
    return EncoderHeadNet(nn.Sequential(*first), nn.Sequential(*rest))


def main() -> None:
    """Train."""
    folder = folder_of_side()
    given = load(folder)
    torch.set_num_threads(given.threads)
    FlukeENV().set_eval_cfg(server=False, locals=False)
    optimizer = OptimizerConfigurator(
        optimizer_cfg=DDict(name="SGD", lr=given.rate), scheduler_cfg=DDict(name="StepLR", step_size=10**9)
    )
    options: dict[str, Any] = {"optimizer_cfg": optimizer, "test_set": None, "local_epochs": 1}
    devices = range(len(given.images))
    if given.personal:
        clients: list[Client] = [
            _Alternating(
                index=device, model=_halves(given), train_set=_Loader(given, device), tau=1,
                loss_fn=nn.CrossEntropyLoss(), **options,
            )
            for device in devices
        ]  # fmt: skip
        model: nn.Module = _halves(given).head
    else:
        clients = [
            Client(index=device, train_set=_Loader(given, device), loss_fn=nn.CrossEntropyLoss(), **options)
            for device in devices
        ]
        model = given.network()
    server = _Server(model, None, clients)
    server.given = given
    kind: type[CentralizedFL] = CentralizedFL if given.personal else FedAVG
    loop = kind(len(clients), None, DDict(), clients=clients, server=server)
    loop.finalize = lambda: None  # its last tests are no part of a round
    loop.run(given.rounds, 1.0)
    done(given.rounds, given)
    own = [name for name in given.weights if name not in given.personal]
    finish(folder, dict(zip(own, server.model.parameters(), strict=True)))


if __name__ == "__main__":
    main()
