"""The real ClientApp with devices that fail in a chosen way; what they do is in AIRFLOWER_TEST_FAULTS.

The variable holds pairs ``device:fault`` separated by commas; faults happen in every round.
"""

import os
import time
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import client_app.app as real
from protocol.arrays import read_weights
from protocol.messages import TrainOrder
from radio import payload

app = ClientApp()


def _fault(context: Context) -> str:
    faults = dict(pair.split(":") for pair in os.environ.get("AIRFLOWER_TEST_FAULTS", "").split(",") if pair)
    return faults.get(str(context.node_config["partition-id"]), faults.get("all", ""))


@app.train()
def train(message: Message, context: Context) -> Message:
    fault = _fault(context)
    if fault == "die":
        os._exit(9)
    if fault == "hang":
        time.sleep(3600)
    if fault == "raise":
        raise RuntimeError("the battery is empty")
    reply = real.train(message, context)
    if not fault or "upload" not in reply.content:  # a device that prunes everything has nothing to spoil
        return reply
    sent: Any = reply.content["upload"]["payload"]
    upload = sent.numpy()
    num_weights = read_weights(TrainOrder.from_records(message.content).weights).size
    if fault == "truncate":
        upload = upload[: upload.size // 2]
    elif fault == "nan":
        honest = payload.decode(upload.data, num_weights=num_weights)
        values = honest.dense()
        values[honest.index[0]] = np.nan
        upload = np.frombuffer(payload.encode(values, honest.mask, check_finite=False), np.uint8)
    elif fault == "short":
        metrics: Any = reply.content["metrics"]
        metrics["num-examples"] = 0
    elif fault == "no-upload":
        del reply.content["upload"]
        return reply
    elif fault == "float-payload":
        reply.content["upload"] = ArrayRecord({"payload": Array(upload.astype(np.float64))})
        return reply
    reply.content["upload"] = ArrayRecord({"payload": Array(upload)})
    return reply


app.evaluate()(real.evaluate)
app.query("hello")(real.hello)
app.query("save")(real.save)


def train_many(messages, contexts, **options):
    """Devices trained together: one of them kills the process of all, or holds it up."""
    if any(_fault(context) == "die" for context in contexts):
        os._exit(9)
    if any(_fault(context) == "hang" for context in contexts):
        time.sleep(3600)
    return real.train_many(messages, contexts, **options)
