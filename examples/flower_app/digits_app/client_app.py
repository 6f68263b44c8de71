"""The ClientApp, written for FedAvg; only the mod is new."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from adapters.mods import robust_deltas_mod
from digits_app.task import from_record, to_record, train, train_data

app = ClientApp(mods=[robust_deltas_mod])  # was: ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train the model on this node's data."""
    model = from_record(message.content.array_records["arrays"])
    config = message.content.config_records["config"]
    partition, clients = int(context.node_config["partition-id"]), int(context.run_config["clients"])
    images, labels = train_data(partition, clients)
    trained = train(model, images, labels, int(config["local-steps"]), float(config["lr"]))
    if partition >= clients - int(context.run_config["attackers"]):  # a Byzantine node, for the example
        trained = {name: model[name] - 10 * (trained[name] - model[name]) for name in model}
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": to_record(trained), "metrics": metrics}), reply_to=message)
