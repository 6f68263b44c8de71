"""The ClientApp: its own loss, and the worker half of the method."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from breakwater import answer
from marina_app.loss import Flipped, Loss, method

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    config = context.run_config
    partition, clients = int(context.node_config["partition-id"]), int(config["clients"])
    attacks = partition >= clients - int(config["attackers"])
    loss = (Flipped if attacks else Loss).of_client(partition, clients)
    return answer(message, context, method(config), loss)
