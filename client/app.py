"""The ClientApp: answers the server's instructions for one worker.

The same app stays resident in a ``breakwater client`` process, and runs on a Flower SuperNode as part of an App Bundle.
There the node config says which worker it is (``partition-id``) and, for an attacker, what it does (``attack="alie"``).
"""

from functools import lru_cache

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import worker as workers
from client.coalition import Coalition, CoalitionMember
from link import codec
from link.config import parse_attack
from link.errors import ConfigError, Silent
from link.experiment import Experiment, code_fingerprint, from_run_config

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    ask = codec.read_ask(message.content)
    packet = worker_of(context).answer(ask)
    if packet is None:
        raise Silent(f"round {ask.round}: the attack says nothing")
    return Message(codec.write_packet(packet, ask), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which worker this is and which code it runs, for servers that have no link to read it from."""
    answer = ConfigRecord({"index": worker_of(context).index, "fingerprint": code_fingerprint()})
    return Message(RecordDict({"worker": answer}), reply_to=message)


def worker_of(context: Context) -> workers.Worker:
    """Return the worker of this node, made at its first message."""
    found = workers.find(context.run_id, context.node_id)
    if found is None:
        found = make_worker(from_run_config(context.run_config), context)
        workers.keep(context.run_id, context.node_id, found)
    return found


def make_worker(experiment: Experiment, context: Context) -> workers.Worker:
    """Make the worker that the node config describes.

    Raises:
        ConfigError: the node config names no seat of this federation.
    """
    clients = experiment.config.federation.clients
    index = context.node_config.get("partition-id")
    if not isinstance(index, int) or not 0 <= index < clients:
        raise ConfigError(f"node config: partition-id = {index!r}: must be 0 .. {clients - 1}")
    if "attack" not in context.node_config:
        return workers.HonestWorker(experiment, index)
    return CoalitionMember(_brain(experiment, str(context.node_config["attack"])), index)


@lru_cache(maxsize=1)
def _brain(experiment: Experiment, kind: str) -> Coalition:
    """Return the brain of this process's attackers.

    Their fellows may sit in other processes, so the coalition is taken to be the last f workers, as in a local run.
    """
    coalition = Coalition(experiment, parse_attack(kind, (), experiment.config))
    federation = experiment.config.federation
    for worker in range(federation.clients - federation.byzantine, federation.clients):
        coalition.enlist(worker)
    return coalition
