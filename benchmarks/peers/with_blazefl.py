"""BlazeFL: its FedAvg on a pool of threads."""

from __future__ import annotations

import copy
from enum import StrEnum
from typing import Any

import torch
from blazefl.contrib.fedavg import FedAvgBaseServerHandler, FedAvgPartitionType, FedAvgThreadPoolClientTrainer
from torch import nn

from benchmarks.peers.given import Given, done, finish, folder_of_side, load


class _Name(StrEnum):
    GIVEN = "given"


class _Models:
    def __init__(self, given: Given) -> None:
        self._network = given.network()

    def select_model(self, model_name: _Name) -> nn.Module:
        """Return a copy of the network: BlazeFL asks for one for each device and round."""
        return copy.deepcopy(self._network)


class _Data:
    """The devices' batches as lists, which are faster than a `DataLoader`."""

    def __init__(self, given: Given) -> None:
        self._given, self.round = given, 0

    def get_dataloader(self, type_: FedAvgPartitionType, cid: int, batch_size: int, generator: Any) -> Any:
        """Return the batches of a device."""
        images, labels = self._given.images[cid], self._given.labels[cid]
        return [(images[batch], labels[batch]) for batch in self._given.batches(self.round, cid)]


def main() -> None:
    """Train."""
    folder = folder_of_side()
    given = load(folder)
    torch.set_num_threads(1)
    models, data, number = _Models(given), _Data(given), len(given.images)
    share = len(given.participants[0]) / number
    handler = FedAvgBaseServerHandler(
        models, _Name.GIVEN, data, given.rounds, number, share, "cpu", given.batch, 0
    )
    trainer = FedAvgThreadPoolClientTrainer(
        models, _Name.GIVEN, data, "cpu", number, 1, given.batch, given.rate, 0, given.threads
    )
    trainer.progress_fn = lambda futures: futures
    for round_number, devices in enumerate(given.participants, 1):
        data.round = round_number
        trainer.local_process(handler.downlink_package(), devices)
        for package in trainer.uplink_package():
            handler.load(package)
        done(round_number, given)
    finish(folder, dict(handler.model.named_parameters()))


if __name__ == "__main__":
    main()
