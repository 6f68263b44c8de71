"""The ClientApp, written for FedAvg; only the mod is new."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from breakwater import robust_deltas_mod
from pytorch_digits import task

app = ClientApp(mods=[robust_deltas_mod])  # was: ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model on this node's images."""
    net = task.Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    partition, partitions = int(context.node_config["partition-id"]), int(context.run_config["clients"])
    data, _ = task.load_data(partition, partitions, int(context.run_config["batch-size"]))
    lr = float(message.content.config_records["config"]["lr"])  # type: ignore[arg-type]  # the server sends a number
    loss = task.train(net, data, int(context.run_config["local-epochs"]), lr)
    trained = net.state_dict()
    if partition >= partitions - int(context.run_config["attackers"]):  # a Byzantine node, for the example
        trained = {name: before[name] - 5 * (value - before[name]) for name, value in trained.items()}
    metrics = MetricRecord({"train_loss": loss, "num-examples": len(data.dataset)})  # type: ignore[arg-type]
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model on images that this node did not train on."""
    net = task.Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    partition, partitions = int(context.node_config["partition-id"]), int(context.run_config["clients"])
    _, data = task.load_data(partition, partitions, int(context.run_config["batch-size"]))
    loss, accuracy = task.test(net, data)
    if partition >= partitions - int(context.run_config["attackers"]):  # it lies about the accuracy, too
        accuracy = 1e9
    metrics = {"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(data.dataset)}  # type: ignore[arg-type]
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
