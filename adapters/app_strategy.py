"""RobustStrategy inside any Flower app: its arrays, its nodes, its log.

``RobustStrategy`` knows vectors, workers and a roster. A Flower app has an ``ArrayRecord`` of named arrays, nodes that
come and go, and a Grid that must be polled. ``AppStrategy`` connects them, for any method; the ClientApp answers
with ``breakwater.answer``. ``adapters.federated_averaging`` builds on it for ClientApps written for FedAvg.

What an instruction holds beside that of ``link.codec``::

    ConfigRecord "ask":    + {"worker": its seat, "draw": the seed of what it draws at random}
    ConfigRecord "config": the app's train_config and "server-round", as from Flower's strategies
"""

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from adapters.flower_log import log_end, log_start, show_warnings
from adapters.named_arrays import ArrayLayout
from adapters.node_roster import NodeRoster
from adapters.orders import RUNNING
from foundation.errors import ConfigError
from link import codec
from strategies.method import Ask, Compressor, Method, Packet, Rejected, Vector
from strategies.progress import STALL_ROUNDS
from strategies.randomness import Role, stream
from strategies.strategy import NoClientsError, Outcome, RobustStrategy, RoundRecord

log = logging.getLogger("flwr.breakwater")

OWN_RECORDS = frozenset({"ask", "vectors", "packet", RUNNING})
"""Names of our records in an instruction."""


@dataclass(frozen=True)
class AppCodec:
    """``link.codec`` for a model of named arrays.

    Args:
        layout: of the model.
        hint: what to look at where a reply is not in our format.
    """

    layout: ArrayLayout
    hint: str

    def write_ask(self, ask: Ask, extra: Mapping[str, Vector] = {}) -> RecordDict:  # never written to
        """Return the content of an instruction."""
        return codec.write_ask(ask, extra)

    def addressed(self, message: Message, node: int) -> Message:
        """Return the same instruction to another node."""
        return codec.addressed(message, node)

    def read_reply(self, message: Message, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
        """Return the packet of a reply, or why there is none."""
        if message.has_content() and "p" not in message.content:
            return Rejected(f"undecodable: no packet in the reply; {self.hint}")
        return codec.read_reply(message, ask, form, like)

    def to_arrays(self, v: Vector) -> ArrayRecord:
        """Return the model as the app knows it."""
        return self.layout.record(v)

    def from_arrays(self, arrays: ArrayRecord) -> Vector:
        """Return the app's model as a vector."""
        return self.layout.flat(arrays)


class AppOptions(TypedDict, total=False):
    """Arguments of ``AppStrategy`` that a subclass passes on."""

    seed: int | None
    deadline_s: float
    join_timeout_s: float
    min_available_nodes: int | None
    stall_rounds: int
    every: int
    on_round: Callable[[RoundRecord], None] | None


class AppStrategy(RobustStrategy):
    """Drives one method for the nodes of any Flower app.

    Args:
        method: both halves; its n and f are ``clients`` and ``byzantine``.
        clients: n, how many nodes take part. More that show up are left out; of fewer, those that are there are asked.
        byzantine: f, how many of them may be Byzantine.
        seed: fixes everything random. It predicts who will be sampled, so it is drawn if not given.
        deadline_s: seconds that a round waits for replies; ``timeout`` of ``start`` where that is less.
        join_timeout_s: seconds to wait for all clients before round 1, and later on for enough of them to answer.
        min_available_nodes: how many must have come by then; default: the n - f honest ones.
        stall_rounds: rounds in a row without a usable reply after which the model is held and all nodes are asked; see
            ``strategies.progress``.
        every: rounds between evaluations; the last round is always evaluated.
        configrecord_key: name of the record with the app's own ``train_config``.
        on_round: called with the record of every finished round.

    Flower's log shows what happens, in the form that Flower's own strategies use.

    Raises:
        ConfigError: a number is out of bounds.
    """

    byzantine: int
    deadline_s: float
    hint = "does its ClientApp reply with breakwater.answer?"
    """What to look at where a reply is not in our format."""

    def __init__(
        self,
        method: Method,
        *,
        clients: int,
        byzantine: int,
        seed: int | None = None,
        deadline_s: float = 600.0,
        join_timeout_s: float = 120.0,
        min_available_nodes: int | None = None,
        stall_rounds: int = STALL_ROUNDS,
        every: int = 1,
        configrecord_key: str = "config",
        on_round: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        check_share(clients, byzantine)
        for name, value in (("deadline_s", deadline_s), ("join_timeout_s", join_timeout_s), ("every", every)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name} = {value}: must be a positive number")
        if configrecord_key in OWN_RECORDS:
            raise ConfigError(f"configrecord_key = {configrecord_key!r}: that record is ours; choose another name")
        least = clients - byzantine if min_available_nodes is None else min_available_nodes
        if stall_rounds < 1:
            raise ConfigError(f"stall_rounds = {stall_rounds}: must be at least 1")
        if not byzantine < least <= clients:
            bounds = f"must be byzantine + 1 = {byzantine + 1} .. clients = {clients}"
            raise ConfigError(f"min_available_nodes = {least}: {bounds}; fewer may all be Byzantine")
        self.seats = NodeRoster(clients)
        super().__init__(
            method,
            codec=codec,
            roster=self.seats,
            clients=clients,
            byzantine=byzantine,
            any_app=True,
            stall_rounds=stall_rounds,
            seed=secrets.randbits(63) if seed is None else seed,
            deadline_s=deadline_s,
            idle_timeout_s=join_timeout_s,
            every=every,
            on_round=on_round,
        )
        self.min_available_nodes = least
        self.configrecord_key = configrecord_key
        self._num_rounds = 0  # of the run that ``start`` drives
        self._app_config = self._evaluate_config = ConfigRecord()

    def layout_of(self, arrays: ArrayRecord) -> ArrayLayout:
        """Return which arrays are trained, and where they lie in x.

        Raises:
            ConfigError: the method cannot work on such arrays.
        """
        return ArrayLayout.of(arrays)

    def make_codec(self, layout: ArrayLayout) -> AppCodec:
        """Return how this model travels.

        Raises:
            ConfigError: the method cannot work on it.
        """
        return AppCodec(layout, self.hint)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round: one instruction each, which share what they can."""
        if self.state is None:
            self.codec = self.make_codec(self.layout_of(arrays))
            self.seats.watch(grid)
            self._settle()
        config["server-round"] = server_round
        self._app_config = ConfigRecord(dict(config))  # the app may go on changing its own
        if self._num_rounds:  # else Flower's loop says so
            log.info("")
            log.info("[ROUND %d/%d]", server_round, self._num_rounds)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        log.info("configure_train: Sampled %d nodes (out of %d)", len(messages), self.seats.online)
        return messages

    def complete(self, message: Message, worker: int, round_: int) -> None:
        """Add the worker's seat, the seed of its random draws and the app's own configuration."""
        draw = int(stream(self.seed, Role.WORKER, worker, round_).bit_generator.random_raw())
        ask = ConfigRecord({**message.content.config_records["ask"], "worker": worker, "draw": draw})
        message.content = RecordDict({**message.content, "ask": ask, self.configrecord_key: self._app_config})

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round, where Flower's own loop drives it."""
        closed = super().aggregate_train(server_round, replies)
        if flaw := self.flaw_of_model(self.state.x):
            log.error("round %d: %s", server_round, flaw)
        return closed

    def flaw_of_model(self, x: Vector) -> str:
        """Say why no round can follow this model: it is not finite, or an array has outgrown its own type."""
        flaw, arrays = super().flaw_of_model(x), self.codec
        if flaw or not isinstance(arrays, AppCodec):
            return flaw
        flaw = arrays.layout.validate(x)
        return flaw and f"{flaw}, where it is cut off; keep the model in float32 here, or take smaller steps"

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run rounds 1 .. num_rounds from ``initial_arrays``; return the last model under the same names.

        Args:
            grid: the one that Flower gave the ServerApp.
            initial_arrays: the app's model.
            num_rounds: rounds to run.
            timeout: seconds that a round waits for replies, where that is less than ``deadline_s``.
            train_config: reaches the ClientApp as ``configrecord_key``, with "server-round".
            evaluate_config: the same for ``@app.evaluate``, where the strategy asks clients to evaluate.
            evaluate_fn: measures the model, before round 1 (as round 0) and then every ``every`` rounds.

        Raises:
            ConfigError: the model cannot be trained, or ``num_rounds`` is below 1.
            NoClientsError: too few nodes came.
            NoReplyCountsError: no ClientApp answers in our format.
            StalledError: fewer than f + 1 nodes gave usable replies for ``join_timeout_s``; it has the last model that
                counted, as ``arrays``.
        """
        if num_rounds < 1:
            raise ConfigError(f"num_rounds = {num_rounds}: must be at least 1")
        if evaluate_config is not None and not self.asks_to_evaluate:
            log.warning("evaluate_config is not used: clients are not asked to evaluate; give evaluate_fn")
        self._evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        layout = self.layout_of(initial_arrays)
        self.codec = self.make_codec(layout)
        self.codec.from_arrays(initial_arrays)  # find a flaw before waiting
        if unchanged := layout.unchanged():
            log.warning("not floating point, so not trained but kept as they are: %s", ", ".join(unchanged[:10]))
        self.forget()
        began = time.monotonic()
        show_warnings()
        self.deadline_s = min(self.deadline_s, timeout)
        polled = self.seats.watch(grid)
        self._gather()
        log_start(type(self).__name__, num_rounds, initial_arrays, train_config, evaluate_config)
        self.summary()
        log.info("")
        first = None
        if evaluate_fn is not None:
            first = evaluate_fn(0, initial_arrays)
            log.info("Initial global evaluation results: %s", first)
        self._num_rounds = num_rounds
        try:
            measure = None if evaluate_fn is None else _logged(evaluate_fn)
            result = super().start(polled, initial_arrays, num_rounds, timeout, train_config, None, measure)
        finally:
            self._num_rounds = 0
        if first is not None:
            result.evaluate_metrics_serverapp = {0: first, **result.evaluate_metrics_serverapp}
        log_end(time.monotonic() - began, result)
        return result

    @property
    def asks_to_evaluate(self) -> bool:
        """Whether clients are asked to evaluate."""
        return False

    def summary(self) -> None:
        """Log the clients, the method and its hyper-parameters."""
        log.info("\t├──> Clients: %d, of which at most %d are Byzantine", self.clients, self.byzantine)
        log.info("\t└──> Method: %s", self.method)

    def _commit(self, outcome: Outcome) -> RoundRecord:
        """Let a round take effect, and log what came back."""
        record = super()._commit(outcome)
        results, failures = len(record.accepted), len(record.rejected)
        log.info("aggregate_train: Received %d results and %d failures", results, failures)
        note = f"; {record.note}" if record.note else ""
        log.info("\t└──> Clipped %d of %d; last step %.3g%s", len(record.clipped), results, record.step_norm, note)
        return record

    def _tell(self, round_: int, worker: int, verdict: Rejected) -> None:
        """Log a rejection: a warning the first time that this client is rejected for this reason."""
        name = self.roster.name(worker)
        level = logging.INFO if (name, verdict.slug) in self._warned else logging.WARNING
        self._warned.add((name, verdict.slug))
        log.log(level, "round %d: %s rejected: %s", round_, name, verdict.reason)

    def _settle(self) -> None:
        """Fix who takes part, where that is still open when the first round begins."""

    def wait_for(self, nodes: int) -> int:
        """Wait for so many nodes, at most ``join_timeout_s``; return how many there are."""
        if (ready := len(self.seats.nodes())) < nodes:
            log.info("Waiting for nodes to connect: %d connected (waiting for %d).", ready, nodes)
        return self.seats.wait(nodes, self.idle_timeout_s)

    def _gather(self) -> None:
        ready = self.wait_for(self.clients)
        if ready < self.min_available_nodes:
            came = f"{ready} of {self.clients} clients came within {self.idle_timeout_s:g} s"
            needed = f"{self.min_available_nodes} are needed (min_available_nodes)"
            raise NoClientsError(f"{came}, and {needed}: start the others, or change `clients`")
        if ready < self.clients:
            log.warning("%d of %d clients are there after %g s: starting", ready, self.clients, self.idle_timeout_s)


def _logged(
    evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None],
) -> Callable[[int, ArrayRecord], MetricRecord | None]:
    """Return an evaluation that logs what it found, as Flower does."""

    def measure(round_: int, arrays: ArrayRecord) -> MetricRecord | None:
        log.info("Global evaluation")
        found = evaluate_fn(round_, arrays)
        log.info("\t└──> MetricRecord: %s", found)
        return found

    return measure


def check_share(clients: int, byzantine: int) -> None:
    """Refuse numbers of clients that no rule can work with.

    Raises:
        ConfigError: there are none, or half of them may be Byzantine.
    """
    if clients < 1:
        raise ConfigError(f"clients = {clients}: must be at least 1")
    if not 0 <= 2 * byzantine < clients:
        limit = f"no rule withstands half; at most {(clients - 1) // 2}"
        raise ConfigError(f"byzantine = {byzantine} of clients = {clients}: {limit}")
