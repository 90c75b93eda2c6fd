"""The real ClientApp with some devices hostile: they send their honest update turned round and lengthened.

``AIRFLOWER_BENCHMARK_HOSTILE=2,5.5``: devices 0 and 1 send -5.5 times their update.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import client_app.app as real
from protocol.arrays import read_weights
from protocol.messages import TrainOrder, spec_from_json
from radio import payload

VARIABLE = "AIRFLOWER_BENCHMARK_HOSTILE"

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train, and turn the update round if the device is hostile."""
    reply = real.train(message, context)
    number, _, factor = os.environ.get(VARIABLE, "0,1").partition(",")
    if int(str(context.node_config["partition-id"])) >= int(number) or not reply.has_content():
        return reply
    order = TrainOrder.from_records(message.content)
    base = read_weights(order.weights)
    sent: Any = reply.content["upload"]["payload"]
    honest = payload.decode(sent.numpy().data, num_weights=base.size)
    analog = spec_from_json(order.spec).uplink == "analog"
    update = honest.dense() if analog else np.where(honest.mask, honest.dense() - base, np.float32(0))
    update = update * np.float32(-float(factor))
    values = update if analog else base + update
    encoded = payload.encode(values, honest.mask, bits=honest.bits)
    reply.content["upload"] = ArrayRecord({"payload": Array(np.frombuffer(encoded, np.uint8))})
    return reply


app.evaluate()(real.evaluate)
app.query("hello")(real.hello)
app.query("save")(real.save)
