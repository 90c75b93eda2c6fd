"""The Flower ClientApp: orders in, reports out."""

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client_app import device
from protocol.messages import DEVICE, METRICS, EvaluateOrder, SaveOrder, TrainOrder

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on an order and upload what was kept."""
    report = device.train(TrainOrder.from_records(message.content), context)
    return Message(report.to_records(), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Test the global part with the device's own personal part."""
    result = device.test(EvaluateOrder.from_records(message.content), context)
    metrics = MetricRecord(
        {"accuracy": result.accuracy, "loss": result.loss, "num-examples": result.num_samples}
    )
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Tell which device this node is."""
    return Message(_introduction(context), reply_to=message)


@app.query("save")
def save(message: Message, context: Context) -> Message:
    """Write the personal part to the checkpoint; a device that never trained has none to write."""
    device.save(SaveOrder.from_records(message.content), context)
    return Message(_introduction(context), reply_to=message)


def _introduction(context: Context) -> RecordDict:
    index, number = device.device_index(context)
    return RecordDict({DEVICE: ConfigRecord({"index": index, "num-devices": number})})
