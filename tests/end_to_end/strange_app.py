"""The real ClientApp with devices that state what they measured, or hold images of their own.

What they do is in AIRFLOWER_TEST_FAULTS, as in `faulty_app`, which also knows the other words: "own-images"
counts with a thousand images more, "unstated" leaves the uplink's rate to a timed transfer.
"""

from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

import client_app.app as real
from protocol.messages import TrainOrder
from radio.beamforming import Beam, gains
from radio.channel.mobility import Straight
from tests.end_to_end import faulty_app

app = ClientApp()


def _strange(message: Message, context: Context, reply: Message) -> Message:
    if reply.has_error():
        return reply
    device = int(str(context.node_config["partition-id"]))
    metrics: Any = reply.content["metrics"]
    fault = faulty_app._fault(context)
    if fault == "own-images":
        metrics["num-examples"] += 1000 * (device + 1)
    # Another time in every round, so that a median of one round is not that of three.
    server_round = TrainOrder.from_records(message.content).round
    metrics["measured-compute-seconds"] = 0.02 + 0.005 * device + 0.01 * (server_round % 3)
    if fault != "unstated":
        metrics["stated-uplink-bps"] = 1e7
    return reply


@app.train()
def train(message: Message, context: Context) -> Message:
    return _strange(message, context, faulty_app.train(message, context))


app.evaluate()(real.evaluate)
app.query("hello")(real.hello)
app.query("save")(real.save)


def train_many(messages, contexts, **options):
    """Devices trained together state the same."""
    replies = real.train_many(messages, contexts, **options)
    return [_strange(*each) for each in zip(messages, contexts, replies, strict=True)]


def poor_beam(channels, *, rng, initial=None):
    """Listen with all antennas alike: the beam of whoever asks for it."""
    beam = np.full(channels.shape[1], channels.shape[1] ** -0.5, complex)
    return Beam(beam, float(gains(channels, beam).min()), None, "converged", 0)


def driving(scene, *, speed_kmh=30.0):
    """Move straight on, at a speed that need not be said."""
    return Straight(scene, speed_kmh=speed_kmh)


def halving(server_round, *, by=0.5):
    """Return a rate that falls with every round."""
    return float(by ** (server_round - 1))
