"""RobustStrategy: any method of this folder as a Flower Strategy. The only file here that imports flwr.

It does what every method needs and no method should see: samples clients, writes the instruction, screens and decodes
each reply, hands the survivors to ``method.update``, and keeps the books. A reply that is late, missing, malformed or
hostile costs its sender's voice in this round and nothing else: the round goes on with the others.

The model's trajectory depends on config and seed alone. It is the same over the gRPC link, on a SuperLink and in a
plain loop, because every draw has its own stream and replies are ordered by worker and not by arrival.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from strategies.algorithm import Ask, Compressor, Evaluation, Mark, Method, Packet, Rejected, State, Vector
from strategies.cohorts import sample
from strategies.deadline import LearntDeadline
from strategies.evidence import Evidence
from strategies.randomness import Role, stream

log = logging.getLogger("breakwater.strategy")

NOT_FINITE = "model or loss is not finite"


class Codec(Protocol):
    """How asks and packets are written into Flower records; ``link.codec`` is the one in use."""

    def write_ask(self, ask: Ask, extra: Mapping[str, Vector] = ...) -> RecordDict:
        """Return the content of an instruction; ``extra`` are vectors for one worker alone."""

    def read_reply(self, message: Message, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
        """Return the packet of a reply, or why there is none. Never raises."""

    def to_arrays(self, v: Vector) -> ArrayRecord:
        """Return the model as a record."""

    def from_arrays(self, arrays: ArrayRecord) -> Vector:
        """Return the model of a record."""


class Roster(Protocol):
    """Which worker can be reached at which Flower node."""

    def nodes(self) -> Mapping[int, int]:
        """Return node id by worker, of those that can be reached now."""

    def name(self, worker: int) -> str:
        """Return the worker's name, for logs and metrics."""

    def wait(self, count: int, timeout: float) -> int:
        """Wait until ``count`` workers can be reached, at most ``timeout`` seconds; return how many can."""


class NoClientsError(Exception):
    """No client could be reached within the time that the config allows."""


class NoReplyCountsError(Exception):
    """More workers than may be Byzantine were refused before any reply counted: their ClientApp is another one."""


@dataclass(frozen=True)
class RoundRecord:
    """One round as it is written to ``metrics.jsonl``.

    Args:
        round: r, from 1; the round ends with the model x^r.
        kind: the method's word for the round.
        cohort: the sampled workers.
        accepted: the workers whose reply counted.
        rejected: (name, reason) of every other sampled worker; silence is a reason too.
        resynced: the workers that were sent their state again, as they may have lost it or missed a round.
        clipped: the workers whose vector was clipped.
        lam: clipping radius; None where nothing is clipped.
        step_norm: length of the step that led to the model this round asked about.
        bytes_up: bytes that came from clients during the round.
        bytes_down: bytes that went to clients during the round.
        round_s: seconds that the round took.
        evaluation: the model x^r measured, where it was.
        deadline_s: seconds that it waited for replies at most.
        note: what a reader should know.
        diverged: model or loss is not finite; this is the last round.
        names: of the cohort, in its order.
        evidence: what the round shows about each accepted worker, in their order; None where nothing was aggregated.
        late: names of clients whose reply to an earlier round came since.
    """

    round: int
    kind: str
    cohort: Sequence[int]
    accepted: Sequence[int]
    rejected: Sequence[tuple[str, str]]
    clipped: Sequence[int]
    lam: float | None
    step_norm: float
    bytes_up: int
    bytes_down: int
    round_s: float
    evaluation: Evaluation | None = None
    note: str = ""
    diverged: bool = False
    resynced: Sequence[int] = ()
    deadline_s: float | None = None
    names: Sequence[str] = ()
    evidence: Evidence | None = None
    late: Sequence[str] = ()


@dataclass(frozen=True)
class _Open:
    """The round that is under way: one message for each worker of the cohort, in the same order."""

    ask: Ask
    cohort: list[int]
    messages: list[Message]
    resynced: list[int]


class RobustStrategy(Strategy):
    """Drives one method over any Grid.

    Args:
        method: both halves of the algorithm; only the server half runs here.
        codec: how asks and packets become Flower records.
        roster: which worker is at which node.
        clients: n.
        byzantine: f, where the nodes may run any app: ``NoReplyCountsError`` then ends a run in which more workers than
            that, and more than one, were refused before any reply has counted. None never to.
        seed: the run's seed.
        deadline_s: seconds that a round waits for replies, or what learns it from the rounds.
        waits: returns the seconds after which each reply of the last round came; needed to learn a deadline.
        quorum: share of the sampled clients, in (0, 1], whose replies a round needs; with fewer usable ones the method
            is told that none came. None for what the method itself needs.
        idle_timeout_s: seconds to wait when nobody is connected before ``NoClientsError`` is raised.
        reveal_cohort: tell the sampled workers who else was sampled.
        traffic: returns (bytes up, bytes down) since the start, as measured by the transport; None if it cannot tell.
        late: returns the names of the clients whose reply came after its round was over, since the last call; None if
            the transport does not tell.
        evaluate: measures a model; None to measure nothing.
        every: rounds between evaluations; the last round is always measured.
        on_round: called with the record of every finished round.
    """

    def __init__(
        self,
        method: Method,
        *,
        codec: Codec,
        roster: Roster,
        clients: int,
        byzantine: int | None = None,
        seed: int = 0,
        deadline_s: float | LearntDeadline = 30.0,
        waits: Callable[[], Sequence[float]] | None = None,
        quorum: float | None = None,
        idle_timeout_s: float = 120.0,
        reveal_cohort: bool = False,
        traffic: Callable[[], tuple[int, int]] | None = None,
        late: Callable[[], Sequence[str]] | None = None,
        evaluate: Callable[[Vector], Evaluation] | None = None,
        every: int = 50,
        on_round: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        self.method = method
        self.codec = codec
        self.roster = roster
        self.clients = clients
        self.byzantine = byzantine
        self.seed = seed
        self.learnt = deadline_s if isinstance(deadline_s, LearntDeadline) else None
        self.deadline_s = deadline_s.first_s if isinstance(deadline_s, LearntDeadline) else deadline_s
        self.waits = waits
        self.quorum = quorum
        self.mark: Mark | None = None  # of the server's newest checkpoint, where it keeps any
        self.idle_timeout_s = idle_timeout_s
        self.reveal_cohort = reveal_cohort
        self.traffic = traffic
        self.late = late
        self.evaluate = evaluate
        self.every = every
        self.on_round = on_round
        self.forget()

    def forget(self) -> None:
        """Forget every round, so that the next one is the first."""
        self.state: Any = None
        self.last: RoundRecord | None = None
        self._open: _Open | None = None
        self._warned: set[tuple[str, str]] = set()
        self._counted = False
        self._refused: set[int] = set()  # workers that were, while no reply has counted

    @property
    def asked(self) -> list[int]:
        """The workers of the round that is open, in the order of its messages."""
        return [] if self._open is None else self._open.cohort

    # --- one round: ask, screen, update ---------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open a round: let the method ask, sample the cohort, write one instruction for all of it.

        ``arrays`` is x^0 in round 1; from then on the state kept here is the truth.
        """
        if self.state is None:
            self.state = self.method.start(self.codec.from_arrays(arrays))
        state: State = self.state
        ask = self.method.ask(state, stream(self.seed, Role.COIN, round_=state.round))
        nodes = self.roster.nodes()
        cohort = sample(self.clients, ask.sample, nodes, stream(self.seed, Role.COHORT, round_=state.round))
        ask = replace(ask, cohort=tuple(cohort))
        told = replace(ask, cohort=ask.cohort if self.reveal_cohort else None, mark=self.mark)
        if self.learnt is not None:
            self.deadline_s = self.learnt.seconds(ask.kind)
        content = self.codec.write_ask(told)  # one object for all: a Grid may serialise it once
        messages, resynced = [], []
        for worker in cohort:
            mine, extra = content, self.method.resync(state, worker)
            if extra:
                resynced.append(worker)
                mine = self.codec.write_ask(told, extra)
            messages.append(Message(mine, nodes[worker], "train", ttl=self.deadline_s, group_id=str(ask.round)))
        self._open = _Open(ask, cohort, messages, resynced)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round: screen every reply, update, return the new model."""
        self._close(replies)
        state: State = self.state
        return self.codec.to_arrays(state.x), MetricRecord({"step-norm": state.report.step_norm})

    def _close(self, replies: Iterable[Message]) -> RoundRecord:
        opened, self._open = self._open, None
        if opened is None:
            raise RuntimeError("aggregate_train without configure_train")
        ask, before = opened.ask, self.state
        # By instruction and not by sender: a SuperLink reports a lost node's error in its own name.
        worker_of = {m.metadata.message_id: worker for m, worker in zip(opened.messages, opened.cohort, strict=True)}
        node_of = {worker: m.metadata.dst_node_id for m, worker in zip(opened.messages, opened.cohort, strict=True)}
        verdicts: dict[int, Packet | Rejected] = {}
        spoke: set[int] = set()  # they said something; of a node that is lost the SuperLink says so
        for message in replies:
            worker = worker_of.get(message.metadata.reply_to_message_id)
            own = worker is not None and message.metadata.src_node_id == node_of[worker]
            if worker is not None and own:
                spoke.add(worker)
            if worker is None or not (own or message.has_error()):  # only errors come in another's name
                log.warning("round %d: node %d answers no instruction of it", ask.round, message.metadata.src_node_id)
            elif worker in verdicts:
                verdicts[worker] = Rejected("duplicate: more than one reply")
            else:
                verdicts[worker] = self._screen(worker, message, ask, before)
        rows: dict[int, Vector] = {}
        rejected: list[tuple[str, str]] = []
        for worker in opened.cohort:
            verdict = verdicts.get(worker, Rejected(f"silent: no reply within {self.deadline_s:g} s"))
            if isinstance(verdict, Packet):
                rows[worker] = self.method.form(ask, worker).decompress(verdict, before.x.dtype)
            else:
                name = self.roster.name(worker)
                rejected.append((name, verdict.reason))
                self._tell(ask.round, name, verdict)
        refusals = {i: verdict.reason for i in sorted(spoke) if isinstance(verdict := verdicts[i], Rejected)}
        self._check_app(ask.round, refusals, bool(rows))
        void = self._void(opened, rows)
        if void:
            rejected += [(self.roster.name(worker), void) for worker in rows]
            rows = {}
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is seen in its model, see `start`
            self.state = self.method.update(before, ask, rows, stream(self.seed, Role.AGGREGATE, round_=ask.round))
        report = self.state.report
        note = "; ".join(filter(None, (void, report.note)))
        if note:
            log.info("round %d: %s", ask.round, note)
        self.last = RoundRecord(
            round=ask.round,
            kind=ask.kind,
            cohort=opened.cohort,
            accepted=list(rows),
            rejected=rejected,
            clipped=report.clipped,
            lam=report.lam,
            step_norm=report.step_norm,
            bytes_up=0,
            bytes_down=0,
            round_s=0.0,
            note=note,
            resynced=opened.resynced,
            deadline_s=self.deadline_s,
            names=[self.roster.name(worker) for worker in opened.cohort],
            evidence=None if report.evidence is None else report.evidence.of(list(rows)),
        )
        return self.last

    def _void(self, opened: _Open, rows: Mapping[int, Vector]) -> str:
        """Say that these replies are fewer than the config wants; "" if they are enough."""
        wanted = 0 if self.quorum is None else math.ceil(self.quorum * opened.ask.sample)
        if len(rows) >= wanted:
            return ""
        return f"no quorum: {len(rows)} usable replies of the {wanted} that federation.quorum wants; none is used"

    def _screen(self, worker: int, message: Message, ask: Ask, state: State) -> Packet | Rejected:
        verdict = self.codec.read_reply(message, ask, self.method.form(ask, worker), state.x)
        if isinstance(verdict, Packet) and not self.method.knows(state, worker, verdict.version):
            return Rejected(f"stale state: the reply builds on version {verdict.version}, which is not this round's")
        return verdict

    def _check_app(self, round_: int, refusals: Mapping[int, str], counted: bool) -> None:
        """End the run where the nodes run another ClientApp: no attack is mistaken for one, it is at most f workers."""
        self._counted = self._counted or counted
        if self._counted or self.byzantine is None:
            return
        self._refused |= refusals.keys()
        if len(self._refused) >= min(self.clients, max(self.byzantine, 1) + 1):
            worker, reason = next(iter(refusals.items()))
            raise NoReplyCountsError(
                f"round {round_}: no reply has counted yet, and {len(self._refused)} clients replied, of which "
                f"{self.byzantine} may be Byzantine: it is their ClientApp. {self.roster.name(worker)}: {reason}"
            )

    def _tell(self, round_: int, name: str, verdict: Rejected) -> None:
        """Log a rejection: loudly the first time that this client is rejected for this reason, quietly from then on."""
        first = (name, verdict.slug) not in self._warned
        self._warned.add((name, verdict.slug))
        log.log(
            logging.WARNING if first else logging.INFO,
            "round %d: %s rejected: %s%s",
            round_,
            name,
            verdict.reason,
            " (repetitions are only in the log file and the metrics)" if first else "",
        )

    # --- what Flower's Strategy also asks for -----------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: what clients claim about a model is no evidence; the server evaluates itself."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing, see ``configure_evaluate``."""
        return None

    def summary(self) -> None:
        """Log the method and its hyper-parameters."""
        log.info("%s", self.method)

    # --- the whole run ------------------------------------------------------------------------------------------------

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
        """Run rounds 1 .. num_rounds and return the last model.

        Flower's own loop would do (the two halves of a round above are all it needs), but it writes eight log lines a
        round, packs the model into a record each time, and can neither measure traffic, nor pause while nobody is
        connected, nor stop when the model has diverged.

        Args:
            grid: where the clients are.
            initial_arrays: x^0.
            num_rounds: rounds to run.
            timeout: unused beyond ``deadline_s``, which is the smaller of the two.
            train_config: not used; hyper-parameters are the method's.
            evaluate_config: not used.
            evaluate_fn: called as Flower does, in rounds that are evaluated, in addition to ``evaluate``.

        Raises:
            NoClientsError: no client was connected for ``idle_timeout_s``.
        """
        result = Result()
        config = train_config or ConfigRecord()
        while self.state is None or self.state.round <= num_rounds:
            self._wait_for_anybody()
            began, (up, down) = time.perf_counter(), self._traffic()
            round_ = 1 if self.state is None else self.state.round
            messages = self.configure_train(round_, initial_arrays, config, grid)
            deadline_s = min(self.deadline_s, timeout)
            replies = grid.send_and_receive(messages, timeout=deadline_s)
            if self.learnt is not None and self.waits is not None and self._open is not None:
                self.learnt.observe(self._open.ask.kind, len(self._open.messages), self.waits(), deadline_s)
            record = self._close(replies)
            round_s = time.perf_counter() - began
            up_now, down_now = self._traffic()
            x = self.state.x
            flaw = self.flaw_of_model(x)
            diverged = bool(flaw)
            evaluation = None
            if round_ % self.every == 0 or round_ == num_rounds or diverged:
                evaluation = self.evaluate(x) if self.evaluate else None
                diverged = diverged or (evaluation is not None and not math.isfinite(evaluation.loss))
                metrics = evaluate_fn(round_, self.codec.to_arrays(x)) if evaluate_fn else None
                if metrics is not None:
                    result.evaluate_metrics_serverapp[round_] = metrics
            note = f"diverged: {flaw or NOT_FINITE} after round {round_}" if diverged else record.note
            record = replace(
                record,
                round_s=round_s,
                bytes_up=up_now - up,
                bytes_down=down_now - down,
                evaluation=evaluation,
                note=note,
                diverged=diverged,
                late=self.late() if self.late else (),
            )
            self.last = record
            if self.on_round:
                self.on_round(record)
            if diverged:
                log.error("%s: no later round can mend it; the run ends here", note)
                break
        result.arrays = self.codec.to_arrays(self.state.x)
        return result

    def flaw_of_model(self, x: Vector) -> str:
        """Say why no round can follow this model; "" if one can."""
        return "" if np.isfinite(x).all() else NOT_FINITE

    def _wait_for_anybody(self) -> None:
        if self.roster.nodes():
            return
        log.warning("nobody is connected: waiting up to %g s for a client", self.idle_timeout_s)
        if self.roster.wait(1, self.idle_timeout_s) < 1:
            raise NoClientsError(
                f"no client connected for {self.idle_timeout_s:g} s (federation.join_timeout_s): start clients, "
                "or check that they can reach this address"
            )

    def _traffic(self) -> tuple[int, int]:
        return self.traffic() if self.traffic else (0, 0)
