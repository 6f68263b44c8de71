"""The ClientApp of the App Bundle: what a Flower SuperNode, or Flower's simulation, runs for each message.

The node config says which worker the node is (``partition-id``) and, for an attacker, what it does (``attack="alie"``).
"""

import logging
from functools import cached_property, lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import invited
from client.answers import measure, refusal, visit
from client.coalition import Coalition, CoalitionMember
from client.node_config import NodeConfig
from client.worker import HonestWorker, Worker
from experiment.code import Code, code_fingerprint
from experiment.opened import Experiment, identity_of, load_task, resolved, try_out
from experiment.run_config import RunConfig
from foundation.errors import BreakwaterError, ConfigError
from foundation.origin import release
from link.invitation import JOIN, TASK, WHO

log = logging.getLogger("breakwater.client")

app = ClientApp()


class Nodes:
    """The nodes of one run in this process, which may be several.

    Args:
        run: the run config.
        data: folder of their data files.
    """

    def __init__(self, run: RunConfig, data: Path | None) -> None:
        self._run = run
        self._config = run.load()
        self._setting = self._config.setting(data, run.path.parent)
        self._problem = load_task(self._config, self._setting)
        self._workers: dict[NodeConfig, Worker] = {}
        self._tried = False

    @cached_property
    def report(self) -> str:
        """What the task looks like here, and which code runs it; see ``tasks.identity`` and ``experiment.code``."""
        return Code.here(self._config).added_to(identity_of(self._problem).written())

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment, which is resolved after its task is loaded: what was loaded may be why it cannot be."""
        return resolved(self._config, self._problem, self._setting)

    def worker(self, node: NodeConfig) -> Worker:
        """Return the worker of a node, made at its first message here.

        Raises:
            ConfigError: see ``make_worker``.
        """
        if node not in self._workers:
            self._workers[node] = make_worker(self.experiment, node, self._run)
        return self._workers[node]

    def try_out(self, node: NodeConfig) -> None:
        """Try the task, for the first of the nodes.

        Raises:
            ConfigError: it cannot be used, or node config or run config are at fault.
        """
        config = self.experiment.config
        if self._tried or self._workers:
            return
        try_out(self.experiment, node.seat(config.federation.clients), node.attack_of(self._run, config))
        self._tried = True


def make_worker(experiment: Experiment, node: NodeConfig, run: RunConfig) -> Worker:
    """Make the worker that a node config describes.

    Raises:
        ConfigError: the node config names no seat of this federation, or an attack that there is not.
    """
    federation = experiment.config.federation
    index, attack = node.seat(federation.clients), node.attack_of(run, experiment.config)
    if attack is None:
        return HonestWorker(experiment, index)
    brain = Coalition(experiment, attack, federation.flower_deadline_s)
    for worker in federation.last_seats:  # each attacker has its own brain, and takes these for its fellows
        brain.enlist(worker)
    return CoalitionMember(brain, index)


@lru_cache(maxsize=1)
def _nodes_of(run_id: int, run: RunConfig, data: Path | None) -> Nodes:
    return Nodes(run, data)


def _read(context: Context) -> tuple[Nodes, NodeConfig]:
    """Return what this process has of a node's run, and the node's config.

    Raises:
        ConfigError: run config or node config are at fault.
    """
    node, run = NodeConfig.read(context.node_config), RunConfig.read(context.run_config)
    return _nodes_of(context.run_id, run, run.data_dir(node.data)), node


def _worker(context: Context) -> Worker:
    """Return the worker of a node.

    Raises:
        ConfigError: see ``_read`` and ``make_worker``.
    """
    nodes, node = _read(context)
    return nodes.worker(node)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    return visit(message, context.state, lambda: _worker(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure a model on this node's data."""
    return measure(message, lambda: _worker(context))


@app.query(WHO)
def who(message: Message, context: Context) -> Message:
    """Say which worker this is, which code it runs and on what, for servers that have no link to read it from."""
    answer = ConfigRecord({"fingerprint": code_fingerprint(), "version": release()})
    try:
        nodes, node = _read(context)
        answer[TASK] = nodes.report
        nodes.try_out(node)
        answer["index"] = nodes.worker(node).index
    except ConfigError as error:
        log.error("%s", error)
        answer["flaw"] = str(error)  # beside the fingerprint: other code explains any flaw
    return Message(RecordDict({WHO: answer}), reply_to=message)


@app.query(JOIN)
def join(message: Message, context: Context) -> Message:
    """Join the server over the link and stay, in the process of this one message, until the run is over."""
    try:
        run, node = RunConfig.read(context.run_config), NodeConfig.read(context.node_config)
        reason = invited.take_part(message.content, run, node)
    except BreakwaterError as error:
        return refusal(error, message)
    return Message(RecordDict({JOIN: ConfigRecord({"reason": reason})}), reply_to=message)
