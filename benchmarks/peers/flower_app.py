"""A ClientApp and a loop of messages, without a strategy's own work.

Ray's processes look for these functions by the name of their module; a command's is another one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from benchmarks.peers.given import Given, done, finish, folder_of_side, load, steps

client_app = ClientApp()
server_app = ServerApp()


@lru_cache(maxsize=1)
def _given(folder: str) -> Given:
    torch.set_num_threads(1)
    return load(folder)


@lru_cache(maxsize=1)
def _network(folder: str) -> torch.nn.Module:
    return _given(folder).network()


@client_app.query()
def which(message: Message, context: Context) -> Message:
    """Say which device this is."""
    number = int(context.node_config["partition-id"])
    return Message(RecordDict({"which": ConfigRecord({"device": number})}), reply_to=message)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Train."""
    told: Any = message.content["told"]
    sent: Any = message.content["weights"]
    folder, number, device = told["folder"], told["round"], int(context.node_config["partition-id"])
    given, model = _given(folder), _network(folder)
    own = dict(model.named_parameters())
    kept: Any = context.state.get("personal")
    with torch.no_grad():
        for name, parameter in own.items():
            if name not in given.personal:
                parameter.copy_(torch.from_numpy(sent[name].numpy().copy()))
            elif kept is None:
                parameter.copy_(given.weights[name])
            else:
                parameter.copy_(torch.from_numpy(kept[name].numpy().copy()))
    steps(given, model, number, device)
    arrays = {name: Array(value.detach().numpy()) for name, value in own.items()}
    if given.personal:
        context.state["personal"] = ArrayRecord({name: arrays[name] for name in given.personal})
    shared = ArrayRecord({name: array for name, array in arrays.items() if name not in given.personal})
    return Message(RecordDict({"weights": shared}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Do the rounds."""
    folder = folder_of_side()
    given = load(folder)
    nodes: list[int] = []
    while len(nodes) < len(given.images):
        nodes = list(grid.get_node_ids())
    asked = [Message(RecordDict(), node, "query") for node in nodes]
    found: dict[int, int] = {}
    for reply in grid.send_and_receive(asked):
        answer: Any = reply.content["which"]
        found[answer["device"]] = reply.metadata.src_node_id
    weights = {name: value.numpy() for name, value in given.weights.items() if name not in given.personal}
    for number, devices in enumerate(given.participants, 1):
        record = ArrayRecord({name: Array(value) for name, value in weights.items()})
        told = ConfigRecord({"folder": folder, "round": number})
        orders = [
            Message(RecordDict({"weights": record, "told": told}), found[device], "train")
            for device in devices
        ]
        total = {name: np.zeros_like(value) for name, value in weights.items()}
        for reply in grid.send_and_receive(orders):
            arrays: Any = reply.content["weights"]
            for name in total:
                total[name] += arrays[name].numpy()
        weights = {name: value / np.float32(len(devices)) for name, value in total.items()}
        done(number, given)
    finish(folder, {name: torch.from_numpy(value) for name, value in weights.items()})
