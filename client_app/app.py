"""The Flower ClientApp: orders in, reports out."""

import traceback
from collections.abc import Sequence

from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from client_app import device, many, together
from protocol.fields import MessageError
from protocol.messages import METRICS, SAVED, EvaluateOrder, HelloOrder, SaveOrder, TrainOrder, TrainReport
from protocol.typed_messages import read, reply

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on an order and upload what was kept."""
    return reply(message, device.train(read(message, TrainOrder), context))


def train_many(
    messages: Sequence[Message], contexts: Sequence[Context], *, batch_devices: int, device: str = "cpu"
) -> list[Message]:
    """Answer the train messages of many devices together; see `client_app.many.train_many`.

    Returns:
        The replies, in order; that of a device whose training raised an exception is an error, as in Flower's
        engines.
    """
    orders: list[TrainOrder | Exception] = []
    for message in messages:
        try:
            orders.append(read(message, TrainOrder))
        except MessageError as error:
            orders.append(error)
    readable = [place for place, order in enumerate(orders) if isinstance(order, TrainOrder)]
    reports = many.train_many(
        [order for order in orders if isinstance(order, TrainOrder)],
        [contexts[place] for place in readable],
        batch_devices=batch_devices,
        device=device,
    )
    answers = dict(zip(readable, reports, strict=True))
    return [_reply(message, answers.get(place, orders[place])) for place, message in enumerate(messages)]


def prepare(message: Message) -> None:
    """Build what the devices of a run share, so that processes forked from this one have it."""
    kinds: dict[str, type[HelloOrder] | type[TrainOrder] | type[EvaluateOrder]] = {
        "query.hello": HelloOrder,
        "train": TrainOrder,
        "evaluate": EvaluateOrder,
    }
    kind = kinds.get(message.metadata.message_type)
    spec = read(message, kind).spec if kind is not None else ""
    if spec:
        device.run_context(spec)


def devices_at_once(message: Message, devices: int) -> int:
    """Return how many of the devices that get such a train message are best trained as one set of tensors."""
    return together.devices_at_once(read(message, TrainOrder).spec, devices)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global part with the device's own personal part."""
    result = device.test(read(message, EvaluateOrder), context)
    values: dict[str, float] = dict(result.values)
    metrics = MetricRecord({**values, "loss": result.loss, "num-examples": result.num_samples})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell which device this node is, and whether it has what the run needs."""
    said = device.introduce(HelloOrder.from_records(message.content), context)
    return Message(said.to_records(), reply_to=message)


@app.query("save")
def save(message: Message, context: Context) -> Message:
    """Store the personal part for a checkpoint; a device that never trained has none to store."""
    report = device.save(SaveOrder.from_records(message.content), context)
    who = device.introduce(HelloOrder(), context).to_records()
    return Message(RecordDict({**who, SAVED: report.to_record()}), reply_to=message)


def _reply(message: Message, answer: object) -> Message:
    if isinstance(answer, TrainReport):
        return reply(message, answer)
    assert isinstance(answer, Exception)
    reason = "".join(traceback.format_exception(answer))
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
