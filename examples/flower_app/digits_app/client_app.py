"""The ClientApp, written for FedAvg; only the mod is new."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from breakwater import robust_deltas_mod
from digits_app.task import CLASSES, load_record, new_model, to_record, train_data

app = ClientApp(mods=[robust_deltas_mod])  # was: ClientApp()


@app.train()
def fit(message: Message, context: Context) -> Message:
    """Train the model on this node's data."""
    config = message.content.config_records["config"]
    model = load_record(new_model(float(config["lr"])), message.content.array_records["arrays"])
    before = model.coef_.copy(), model.intercept_.copy()
    partition, clients = int(context.node_config["partition-id"]), int(context.run_config["clients"])
    images, labels = train_data(partition, clients)
    for _ in range(int(config["local-epochs"])):
        model.partial_fit(images, labels, classes=CLASSES)
    if partition >= clients - int(context.run_config["attackers"]):  # a Byzantine node, for the example
        model.coef_ = before[0] - 10 * (model.coef_ - before[0])
        model.intercept_ = before[1] - 10 * (model.intercept_ - before[1])
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": to_record(model), "metrics": metrics}), reply_to=message)
