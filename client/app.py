"""The ClientApp of the App Bundle: what a Flower SuperNode, or Flower's simulation, runs for each message.

The node config says which worker the node is (``partition-id``) and, for an attacker, what it does (``attack="alie"``).
"""

import logging
from functools import cached_property, lru_cache
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client import invited
from client.answers import answer_statistics, measure, refusal, visit
from client.coalition import Coalition, CoalitionMember
from client.node_config import NodeConfig
from client.party import PartyApp, withheld
from client.preparation import PartyPreparation, agree_on
from client.worker import HonestWorker, Worker
from experiment import config as configs
from experiment.code import Code, code_fingerprint
from experiment.opened import Experiment, identity_of, load_task, resolved, try_out
from experiment.run_config import RunConfig
from foundation.errors import BreakwaterError, ConfigError
from foundation.origin import release
from link.invitation import JOIN, MODEL, STATISTICS, TASK, WHO
from link.replies import App
from strategies.batch_statistics import ACTION, QUESTION
from tasks.compute import CPU, Compute, computing

log = logging.getLogger("breakwater.client")

app = ClientApp()


class Nodes:
    """The nodes of one run in this process, which may be several.

    Args:
        run: the run config.
        config: of the experiment that it names.
        data: folder of their data files.
        compute: where they compute.
    """

    def __init__(self, run: RunConfig, config: configs.Config, data: Path | None, compute: Compute = CPU) -> None:
        self._run, self._config = run, config
        self._setting = self._config.setting(data, run.path.parent)
        with computing(compute):
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
    for worker in experiment.config.attackers:  # each attacker has its own brain, and takes these for its fellows
        brain.enlist(worker)
    return CoalitionMember(brain, index)


class Parties:
    """The nodes of one run in this process whose data are their own, each with its folder.

    Args:
        run: the run config.
        config: of the experiment that it names.
    """

    def __init__(self, run: RunConfig, config: configs.Config) -> None:
        self._run, self._config = run, config
        self._prepared: dict[NodeConfig, PartyPreparation] = {}
        self._apps: dict[NodeConfig, PartyApp] = {}

    @property
    def clients(self) -> int:
        """n."""
        return self._config.federation.clients

    def prepared(self, node: NodeConfig) -> PartyPreparation:
        """Return a node's data, loaded and tried at its first message here.

        Raises:
            ConfigError: they cannot be used. What leaves the node says no more than that.
        """
        if node not in self._prepared:
            try:
                self._prepared[node] = self._prepare(node)
            except Exception as error:  # the owner's files, and code
                raise withheld(error) from None
        return self._prepared[node]

    def _prepare(self, node: NodeConfig) -> PartyPreparation:
        options = invited.options_of(self._run, node, self._config)
        config = self._config
        if node.config is not None:
            config = configs.load(node.config)
            agree_on(config, self._config)
        with computing(node.compute):
            return PartyPreparation(config, options)

    def app(self, node: NodeConfig) -> PartyApp:
        """Return what answers for a node.

        Raises:
            ConfigError: see ``prepared``.
        """
        if node not in self._apps:
            seat = node.seat(self._config.federation.clients)
            self._apps[node] = self.prepared(node).app(seat, _visited)
        return self._apps[node]


def _visited(worker: Worker) -> App:
    """Return what answers for a worker whose process may be another one for the next message."""

    def answer(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "evaluate":
            return measure(message, lambda: worker)
        if message.metadata.message_type == QUESTION:
            return answer_statistics(message, lambda: worker)
        return visit(message, context.state, lambda: worker)

    return answer


@lru_cache(maxsize=1)
def _parties_of(run_id: int, run: RunConfig) -> Parties:
    return Parties(run, _loaded(run_id, run))


def _own(context: Context) -> tuple[Parties, NodeConfig] | None:
    """Return what this process has of a node with data of its own, and the node's config; None in other runs.

    Raises:
        ConfigError: run config or node config are at fault.
    """
    run = RunConfig.read(context.run_config)
    if not _loaded(context.run_id, run).own_data:
        return None
    return _parties_of(context.run_id, run), NodeConfig.read(context.node_config)


def _of_party(message: Message, context: Context) -> Message | None:
    """Return the answer of a node with data of its own; None in other runs."""
    try:
        if (own := _own(context)) is None:
            return None
        parties, node = own
        return parties.app(node)(message, context)
    except ConfigError as error:
        return refusal(error, message)


@lru_cache(maxsize=1)
def _loaded(run_id: int, run: RunConfig) -> configs.Config:
    return run.load()


@lru_cache(maxsize=1)
def _nodes_of(run_id: int, run: RunConfig, data: Path | None, compute: Compute) -> Nodes:
    return Nodes(run, _loaded(run_id, run), data, compute)


def _read(context: Context) -> tuple[Nodes, NodeConfig]:
    """Return what this process has of a node's run, and the node's config.

    Raises:
        ConfigError: run config or node config are at fault.
    """
    node, run = NodeConfig.read(context.node_config), RunConfig.read(context.run_config)
    return _nodes_of(context.run_id, run, run.data_dir(node.data), node.compute), node


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
    return _of_party(message, context) or visit(message, context.state, lambda: _worker(context))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure a model on this node's data."""
    return _of_party(message, context) or measure(message, lambda: _worker(context))


@app.query(ACTION)
def batch_statistics(message: Message, context: Context) -> Message:
    """Return statistics of batches of this node's data, for batch norm."""
    return _of_party(message, context) or answer_statistics(message, lambda: _worker(context))


@app.query(WHO)
def who(message: Message, context: Context) -> Message:
    """Say which worker this is, which code it runs and on what, for servers that have no link to read it from."""
    answer = ConfigRecord({"fingerprint": code_fingerprint(), "version": release()})
    try:
        if (own := _own(context)) is not None:
            parties, node = own
            party = parties.prepared(node)
            answer["index"] = seat = node.seat(parties.clients)
            answer[TASK] = party.report(seat)
            return Message(RecordDict({WHO: answer}), reply_to=message)
        nodes, node = _read(context)
        answer[TASK] = nodes.report
        nodes.try_out(node)
        answer["index"] = nodes.worker(node).index
    except ConfigError as error:
        log.error("%s", error)
        answer["flaw"] = str(error)  # beside the fingerprint: other code explains any flaw
    return Message(RecordDict({WHO: answer}), reply_to=message)


@app.query(STATISTICS)
def statistics(message: Message, context: Context) -> Message:
    """Report the statistics of the node's columns, where it has data of its own."""
    return _answer_as_party(message, context)


@app.query(MODEL)
def final_model(message: Message, context: Context) -> Message:
    """Keep the final model, where the node has data of its own and its node config names a file."""
    return _answer_as_party(message, context)


def _answer_as_party(message: Message, context: Context) -> Message:
    none = ConfigError("this run has no clients with data of their own")
    return _of_party(message, context) or refusal(none, message)


@app.query(JOIN)
def join(message: Message, context: Context) -> Message:
    """Join the server over the link and stay, in the process of this one message, until the run is over."""
    own = False
    try:
        run, node = RunConfig.read(context.run_config), NodeConfig.read(context.node_config)
        own = _loaded(context.run_id, run).own_data
        with computing(node.compute):
            reason = invited.take_part(message.content, run, node)
    except Exception as error:  # with own data, whatever it says may be about them
        if not own and not isinstance(error, BreakwaterError):
            raise
        if not own:
            return refusal(error, message)
        return refusal(withheld(error), message)
    return Message(RecordDict({JOIN: ConfigRecord({"reason": reason})}), reply_to=message)
