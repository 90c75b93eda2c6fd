"""The real ClientApp with device 9 hostile; how is in AIRFLOWER_TEST_ATTACK, as JSON.

``norm``: it sends its honest update turned round, with this norm. ``metrics`` and ``evaluation``: what it
writes over its reports.
"""

import json
import os
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import client_app.app as real
from protocol.arrays import read_weights
from protocol.messages import TrainOrder, spec_from_json
from radio import payload

app = ClientApp()
HOSTILE = 9


def _attack(context: Context) -> dict:
    mine = context.node_config["partition-id"] == HOSTILE
    return json.loads(os.environ.get("AIRFLOWER_TEST_ATTACK", "{}")) if mine else {}


@app.train()
def train(message: Message, context: Context) -> Message:
    attack, reply = _attack(context), real.train(message, context)
    if "norm" in attack:
        order = TrainOrder.from_records(message.content)
        weights, spec = read_weights(order.weights), spec_from_json(order.spec)
        sent: Any = reply.content["upload"]["payload"]
        honest = payload.decode(sent.numpy().data, num_weights=weights.size)
        analog = spec.uplink == "analog"
        update = honest.dense() if analog else np.where(honest.mask, honest.dense() - weights, np.float32(0))
        update *= np.float32(-attack["norm"] / np.linalg.norm(update))
        values = update if analog else weights + update
        encoded = payload.encode(values, honest.mask, bits=honest.bits)
        reply.content["upload"] = ArrayRecord({"payload": Array(np.frombuffer(encoded, np.uint8))})
    for name, value in attack.get("metrics", {}).items():
        reply.content["metrics"][name] = value
    return reply


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    reply = real.evaluate(message, context)
    for name, value in _attack(context).get("evaluation", {}).items():
        reply.content["metrics"][name] = value
    return reply


app.query("hello")(real.hello)
app.query("save")(real.save)
