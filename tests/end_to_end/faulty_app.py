"""The real ClientApp with devices that fail in a chosen way; what they do is in AIRFLOWER_TEST_FAULTS.

The variable holds pairs ``device:fault`` separated by commas; faults happen in every round.
"""

import os

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

import client_app.app as real

app = ClientApp()


def _fault(context: Context) -> str:
    faults = dict(pair.split(":") for pair in os.environ.get("AIRFLOWER_TEST_FAULTS", "").split(",") if pair)
    return faults.get(str(context.node_config["partition-id"]), faults.get("all", ""))


@app.train()
def train(message: Message, context: Context) -> Message:
    fault = _fault(context)
    if fault == "die":
        os._exit(9)
    if fault == "raise":
        raise RuntimeError("the battery is empty")
    reply = real.train(message, context)
    upload = reply.content["upload"]["payload"].numpy()
    if fault == "truncate":
        upload = upload[: upload.size // 2]
    elif fault == "nan":
        upload = upload.copy()
        values = upload[28 : 28 + 4].view(np.float32)
        values[:] = np.nan
    elif fault == "short":
        reply.content["metrics"]["num-examples"] = 0
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
