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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from strategies import batch_statistics
from strategies.batch_statistics import NO_STATISTICS, QUESTION, NormStats
from strategies.claims import NO_EVALUATION, Claim, Claims, MeasuredBy, headline, measured_by
from strategies.cohorts import quorum_of, sample
from strategies.compressors import Identity
from strategies.deadline import LearntDeadline
from strategies.evidence import Evidence
from strategies.hold import NoClientsError as NoClientsError
from strategies.hold import NoReplyCountsError as NoReplyCountsError
from strategies.hold import Probe, Watch
from strategies.hold import StalledError as StalledError
from strategies.method import (
    AGREEMENT,
    STALE,
    STATELESS,
    UNPREPARED,
    Ask,
    CheckpointEpoch,
    Compressor,
    Evaluation,
    Method,
    Oracle,
    Packet,
    Rejected,
    State,
    Vector,
    WorkerState,
    begin,
)
from strategies.progress import STALL_ROUNDS
from strategies.radius import AUTO
from strategies.randomness import Role, stream
from strategies.roster import Roster as Roster
from strategies.safeguard import HALF, Course, Supervisor

log = logging.getLogger("breakwater.strategy")
T = TypeVar("T")

NOT_FINITE = "model or loss is not finite"
EVALUATE = "evaluate"
"""The type of messages that ask clients to measure a model, and the kind of round that their deadline is learnt for."""


class Codec(Protocol):
    """How asks and packets are written into Flower records; ``link.codec`` is the one in use."""

    def write_ask(self, ask: Ask, extra: Mapping[str, Vector] = ...) -> RecordDict:
        """Return the content of an instruction; ``extra`` are vectors for one worker alone."""

    def addressed(self, message: Message, node: int) -> Message:
        """Return the same instruction, with the same content, to another node."""

    def read_reply(self, message: Message, ask: Ask, form: Compressor, like: Vector) -> Packet | Rejected:
        """Return the packet of a reply, or why there is none. Never raises."""

    def to_arrays(self, v: Vector) -> ArrayRecord:
        """Return the model as a record."""

    def from_arrays(self, arrays: ArrayRecord) -> Vector:
        """Return the model of a record."""


class ClaimCodec(Protocol):
    """How clients are asked to measure a model, and how their answers are read; ``link.claims`` is the one in use."""

    def write_evaluation(self, round_: int, arrays: ArrayRecord) -> RecordDict:
        """Return the content of an instruction."""

    def read_claim(self, message: Message, declared: bool) -> Claim | Rejected:
        """Return the claim of an answer, or why there is none; never raise.

        Args:
            message: whatever arrived.
            declared: clients say how many samples they have measured.
        """


class StatisticsCodec(Protocol):
    """How clients are asked for batch statistics, and who uses them; ``server.norm_stats`` has the one in use."""

    variances: NDArray[np.bool_]
    """Which of the numbers are variances."""

    def write_question(self, round_: int, arrays: ArrayRecord) -> RecordDict:
        """Return the content of a question about a model."""

    def read_answer(self, message: Message) -> Vector | Rejected:
        """Return the statistics of an answer, or why there are none; never raise."""

    def use(self, values: Vector | None) -> None:
        """Measure and save models with these statistics from now on; None for those that the model was made with."""


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
        evaluation: the model x^r as the server measured it, where it did.
        deadline_s: seconds that it waited for replies at most.
        note: what a reader should know.
        diverged: model or loss is not finite; this is the last round.
        names: of the cohort, in its order.
        evidence: what the round shows about each accepted worker, in their order; None where nothing was aggregated.
        late: names of clients whose reply to an earlier round came since.
        incomplete: fewer replies than the quorum of this round came, so none of them was used.
        claims: what clients claim about x^r, where they were asked.
        statistics_bytes: bytes that came from clients, and went to them, to ask for running statistics of x^r.
    """

    round: int
    kind: str
    cohort: Sequence[int]
    accepted: Sequence[int]
    rejected: Sequence[tuple[str, str]]
    clipped: Sequence[int]
    lam: float | None
    step_norm: float
    bytes_up: int = 0
    bytes_down: int = 0
    round_s: float = 0.0
    evaluation: Evaluation | None = None
    note: str = ""
    diverged: bool = False
    resynced: Sequence[int] = ()
    deadline_s: float | None = None
    names: Sequence[str] = ()
    evidence: Evidence | None = None
    late: Sequence[str] = ()
    incomplete: bool = False
    claims: Claims | None = None
    statistics_bytes: tuple[int, int] = (0, 0)

    @property
    def headline(self) -> Evaluation | None:
        """The measures of x^r that are shown first: the server's, else the medians of what clients claim."""
        return headline(self.evaluation, self.claims)

    @property
    def measured_by(self) -> MeasuredBy:
        """Whose the measures in ``headline`` are."""
        return measured_by(self.evaluation, self.claims)


@dataclass(frozen=True)
class _Open:
    """The round that is under way: one message for each worker of the cohort, in the same order."""

    ask: Ask
    cohort: list[int]
    messages: list[Message]
    resynced: list[int]


@dataclass(frozen=True)
class Outcome:
    """What came of a round, before it takes effect.

    Args:
        opened: the round.
        after: the method's state after it.
        record: of it.
        used: the workers whose replies were used.
        wanted: how many replies the round needed.
    """

    opened: _Open
    after: Any
    record: RoundRecord
    used: Sequence[int]
    wanted: int


class Standing(NamedTuple):
    """All that a strategy goes on with after a round; each checkpoint holds it.

    Args:
        state: the method's.
        course: what evaluations have shown; None without a supervisor.
        step_scale: see ``RobustStrategy``.
        alpha_scale: the same.
        since: the first round after the run last went back; 0 where it never did.
        norm_stats: the running statistics of clients; None where there are none.
    """

    state: Any
    course: Course | None = None
    step_scale: float = 1.0
    alpha_scale: float = 1.0
    since: int = 0
    norm_stats: NormStats | None = None


@dataclass(eq=False, repr=False)
class RobustStrategy(Strategy):
    """Drives one method over any Grid.

    Args:
        method: both halves of the algorithm; only the server half runs here.
        codec: how asks and packets become Flower records.
        roster: which worker is at which node, and what the transport measures.
        clients: n.
        byzantine: f.
        any_app: the nodes may run any app: ``NoReplyCountsError`` then ends a run in which more workers than f, and
            more than one, were refused before any reply has counted.
        stall_rounds: see ``strategies.progress``; used by ``start``.
        seed: the run's seed.
        deadline_s: seconds that a round waits for replies, or what learns it from the rounds.
        quorum: share of the sampled clients, in (0, 1], whose replies a round needs; with fewer usable ones the method
            is given none. None for what the method itself needs.
        idle_timeout_s: seconds to wait when no client is connected before ``NoClientsError`` is raised, and to look for
            clients that answer before ``StalledError`` is.
        reveal_cohort: tell the sampled workers who else was sampled.
        stratum: workers of whom every cohort has the same number, see ``cohorts.sample``; for experiments.
        agreement: a record that each worker is sent with its first instruction, and again when it answers that it has
            not been; None for none.
        root: the gradients of the server's own training data, for a rule that ``needs_root``; the server then computes
            the row of a worker on them, without compression.
        evaluate: measures a model; None where the server measures nothing.
        claim_codec: how all connected clients are asked to measure the model, which never affects the method; None
            where they are not.
        statistics: how all connected clients are asked for batch statistics before the model is measured or saved,
            which never affects the method; None where they are not.
        declare_samples: clients say how many samples they have measured.
        every: rounds between evaluations; the last round is always measured.
        supervisor: ends the run early, or lets it go back to an earlier model; None for neither. ``course`` must then
            be set before ``start``.
        on_round: called with the record of every finished round.
        on_hold: called with one line when the run is held because too few clients answer, and with "" when it goes on.

    Attributes:
        step_scale: what the step size of the next rounds is multiplied by, whatever the method and its schedule; 1 at
            first. To be set between rounds alone. It is in the checkpoint.
        alpha_scale: the same for the clipping multiplier, given or learnt.
        since: the first round after the run last went back to an earlier model; 0 where it never did.
        course: what the evaluations have shown so far; None without a supervisor.
        norm_stats: the running statistics that models are measured with, where clients answer them.
        statistics_bytes: what the last asking for them took, bytes up and down.
    """

    method: Method
    _: KW_ONLY
    codec: Codec
    roster: Roster
    clients: int
    byzantine: int = 0
    any_app: bool = False
    stall_rounds: int = STALL_ROUNDS
    seed: int = 0
    deadline_s: float | LearntDeadline = 30.0
    quorum: float | None = None
    idle_timeout_s: float = 120.0
    reveal_cohort: bool = False
    stratum: Collection[int] = ()
    agreement: ConfigRecord | None = None
    root: Oracle | None = None
    evaluate: Callable[[Vector], Evaluation] | None = None
    claim_codec: ClaimCodec | None = None
    statistics: StatisticsCodec | None = None
    declare_samples: bool = True
    every: int = 50
    supervisor: Supervisor | None = None
    on_round: Callable[[RoundRecord], None] | None = None
    on_hold: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        rule: Any = self.method.aggregator
        if getattr(rule, "needs_root", False) and (self.root is None or not self.method.takes_root):
            needs = "gradients of the server's own data (root=) and a method whose rows are like those of a worker"
            raise ValueError(f"the rule {rule.kind} needs {needs}; use another rule")
        self.epoch: CheckpointEpoch | None = None  # of the server's newest checkpoint, where it keeps any
        self.forget()

    def forget(self) -> None:
        """Forget every round, so that the next one is the first."""
        self.state: Any = None
        self.step_scale, self.alpha_scale = 1.0, 1.0
        self.since = 0
        self.course: Course | None = None
        self.norm_stats: NormStats | None = None
        self.statistics_bytes = (0, 0)
        self._recorded: Standing | None = None  # after the last round whose record was passed on
        self.last: RoundRecord | None = None
        self.wait_s = 0.0  # of the round that is under way
        self._open: _Open | None = None
        self._warned: set[tuple[str, str]] = set()
        self._agreed: set[int] = set()  # the workers that have the agreement
        self._asked: list[tuple[Message, int]] = []  # to measure the model: instruction and worker
        self._short = False  # too few have measured it, and the note of a round says so
        self._watch = Watch(self)

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
        cohort = sample(
            self.clients, ask.sample, nodes, stream(self.seed, Role.COHORT, round_=state.round), self.stratum
        )
        ask = replace(
            ask, cohort=tuple(cohort), since=self.since, step_scale=self.step_scale, alpha_scale=self.alpha_scale
        )
        self.wait_s = self._seconds(ask.kind)
        self._open = self._opened(ask, cohort, nodes)
        return self._open.messages

    def _seconds(self, kind: str) -> float:
        """Return how long to wait for replies to messages of this kind."""
        given = self.deadline_s
        return given.seconds(kind) if isinstance(given, LearntDeadline) else given

    def _opened(self, ask: Ask, workers: list[int], nodes: Mapping[int, int]) -> _Open:
        """Write one instruction for these workers, and for those that are behind one of their own."""
        sent = replace(ask, cohort=ask.cohort if self.reveal_cohort else None, epoch=self.epoch)
        content = self.codec.write_ask(sent)  # one object for all: a Grid may serialise it once
        with_agreement = self._with_agreement(content)
        to_all: dict[bool, Message] = {}  # an instruction with each of the two, which the others are copies of
        messages, resynced = [], []
        for worker in workers:
            knows, extra = worker in self._agreed, self.method.resync(self.state, worker)
            if extra:
                resynced.append(worker)
                mine = self.codec.write_ask(sent, extra)
                message = self._instruction(mine if knows else self._with_agreement(mine), nodes[worker], ask)
            else:
                if knows not in to_all:
                    to_all[knows] = self._instruction(content if knows else with_agreement, nodes[worker], ask)
                message = self.codec.addressed(to_all[knows], nodes[worker])
            self.complete(message, worker, ask.round)
            messages.append(message)
        return _Open(ask, workers, messages, resynced)

    def _instruction(self, content: RecordDict, node: int, ask: Ask) -> Message:
        return Message(content, node, "train", ttl=self.wait_s, group_id=str(ask.round))

    def _with_agreement(self, content: RecordDict) -> RecordDict:
        """Return the content with the agreement, if there is one; the records are shared."""
        return content if self.agreement is None else RecordDict({**content, AGREEMENT: self.agreement})

    def _note_agreed(self, answers: Mapping[int, object]) -> None:
        """Note who has the agreement: who answers well, but not who says that it has not been sent it."""
        for worker, answer in answers.items():
            if not isinstance(answer, Rejected):
                self._agreed.add(worker)
            elif answer.slug == UNPREPARED:  # its process is another one
                self._agreed.discard(worker)

    def complete(self, message: Message, worker: int, round_: int) -> None:
        """Add to an instruction what a subclass sends beside it."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round: screen every reply, update, return the new model."""
        self._commit(self._outcome(replies))
        state: State = self.state
        return self.codec.to_arrays(state.x), MetricRecord({"step-norm": state.report.step_norm})

    def _outcome(self, replies: Iterable[Message]) -> Outcome:
        """Screen every reply and work out what the round makes of them; ``_commit`` lets it take effect."""
        opened, self._open = self._open, None
        if opened is None:
            raise RuntimeError("aggregate_train without configure_train")
        ask, before = opened.ask, self.state
        verdicts, spoke = self._verdicts(opened, replies)
        rows: dict[int, Vector] = {}
        rejected: list[tuple[str, str]] = []
        for worker in opened.cohort:
            verdict = verdicts[worker]
            if isinstance(verdict, Packet):
                rows[worker] = self.method.compressor_for(ask, worker).decompress(verdict, before.x.dtype)
            else:
                rejected.append((self.roster.name(worker), verdict.reason))
                self._tell(ask.round, worker, verdict)
        refusals = {i: verdict.reason for i in sorted(spoke) if isinstance(verdict := verdicts[i], Rejected)}
        self._watch.check_app(ask.round, refusals, bool(rows))
        wanted, needed, void = quorum_of(self.quorum, ask.sample), self.method.quorum(before, ask), ""
        if len(rows) < wanted:
            void = f"no quorum: {len(rows)} usable replies of the {wanted} that federation.quorum wants; none is used"
            rejected += [(self.roster.name(worker), void) for worker in rows]
            rows = {}
        with np.errstate(over="ignore", invalid="ignore"):  # a diverging run is seen in its model, see `start`
            rng = stream(self.seed, Role.AGGREGATE, round_=ask.round)
            if self.root is None:
                after = self.method.update(before, ask, rows, rng)
            else:
                row, mine = self._own_row(before, ask, self.root)
                after = self.method.update(before, replace(ask, root=row), rows, rng)
                after = replace(after, root=tuple(mine.vectors.items()))
        report = after.report
        complete = not void and len(rows) >= needed and not report.below_quorum
        record = RoundRecord(
            round=ask.round,
            kind=ask.kind,
            cohort=opened.cohort,
            accepted=list(rows),
            rejected=rejected,
            clipped=report.clipped,
            lam=report.lam,
            step_norm=report.step_norm,
            note="; ".join(filter(None, (void, report.note))),
            resynced=opened.resynced,
            deadline_s=self.wait_s,
            names=[self.roster.name(worker) for worker in opened.cohort],
            evidence=None if report.evidence is None else report.evidence.of(list(rows)),
            incomplete=not complete,
        )
        return Outcome(opened, after, record, list(rows) if complete else [], max(wanted, needed))

    def _own_row(self, state: Any, ask: Ask, oracle: Oracle) -> tuple[Vector, WorkerState]:
        """Return what an honest worker with the server's own data would send, uncompressed, and its next state."""
        worker = replace(self.method, compressor=Identity())
        mine = WorkerState(state.round - 1, dict(state.root)) if state.root else STATELESS
        rng = stream(self.seed, Role.WORKER, self.clients, ask.round)  # clients have the numbers below
        begin(oracle, partial(stream, self.seed, Role.MODEL, self.clients, ask.round))
        mine, packet = worker.reply(self.clients, mine, ask, oracle, rng)
        return worker.compressor.decompress(packet, state.x.dtype), mine

    def _commit(self, outcome: Outcome) -> RoundRecord:
        """Let a round take effect."""
        self.state, self.last = outcome.after, outcome.record
        if outcome.record.note:
            log.info("round %d: %s", outcome.record.round, outcome.record.note)
        return outcome.record

    def _verdicts(self, opened: _Open, replies: Iterable[Message]) -> tuple[dict[int, Packet | Rejected], set[int]]:
        """Return what became of each sampled worker's reply, and which workers said anything at all."""
        ask = opened.ask
        verdicts: dict[int, Packet | Rejected] = {}
        spoke: set[int] = set()  # they said something; of a node that is lost the SuperLink says so
        for worker, message, own in _matched(zip(opened.messages, opened.cohort, strict=True), replies, ask.round):
            spoke |= {worker} if own else set()
            verdicts[worker] = _DUPLICATE if worker in verdicts else self._screen(worker, message, ask)
        self._note_agreed(verdicts)
        silent = Rejected(f"silent: no reply within {self.wait_s:g} s")
        return {worker: verdicts.get(worker, silent) for worker in opened.cohort}, spoke

    def _screen(self, worker: int, message: Message, ask: Ask) -> Packet | Rejected:
        state: State = self.state
        verdict = self.codec.read_reply(message, ask, self.method.compressor_for(ask, worker), state.x)
        if ask.probe:  # it changes no state, so it may build on any
            return verdict
        if isinstance(verdict, Packet) and not self.method.accepts_version(state, worker, verdict.version):
            return Rejected(f"{STALE}: the reply builds on version {verdict.version}, which is not this round's")
        return verdict

    def _tell(self, round_: int, worker: int, verdict: Rejected) -> None:
        """Log a rejection: loudly the first time that this client is rejected for this reason, quietly from then on."""
        name, level, hint = self.roster.name(worker), logging.INFO, ""
        if (name, verdict.slug) not in self._warned:
            self._warned.add((name, verdict.slug))
            level, hint = logging.WARNING, " (repetitions are only in the log file and the metrics)"
        log.log(level, "round %d: %s rejected: %s%s", round_, name, verdict.reason, hint)

    # --- evaluation by clients ----------------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask all connected clients to measure the model; nobody where there is no ``claim_codec``."""
        self._asked = []
        if self.claim_codec is None:
            return []
        self._asked = self._to_all(EVALUATE, server_round, self.claim_codec.write_evaluation(server_round, arrays))
        return [message for message, _ in self._asked]

    def _to_all(self, kind: str, round_: int, content: RecordDict) -> list[tuple[Message, int]]:
        """Return a message of this type for each connected client, with its worker; one content, as in a round."""
        wait_s, with_agreement = self._seconds(kind), self._with_agreement(content)
        return [
            (Message(mine, node, kind, ttl=wait_s, group_id=str(round_)), worker)
            for worker, node in sorted(self.roster.nodes().items())
            for mine in [content if worker in self._agreed else with_agreement]
        ]

    def _replies(self, grid: Grid, kind: str, messages: list[Message]) -> tuple[list[Message], tuple[int, int]]:
        """Send messages of one type; return the replies, and the bytes that came and went for them."""
        (up, down), wait_s = self.roster.traffic(), self._seconds(kind)
        replies = list(grid.send_and_receive(messages, timeout=wait_s)) if messages else []
        if isinstance(self.deadline_s, LearntDeadline) and messages:
            self.deadline_s.observe(kind, len(messages), self.roster.waits(), wait_s)
        up_now, down_now = self.roster.traffic()
        return replies, (up_now - up, down_now - down)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Screen what clients answer; return the medians, or None where too few answers are usable."""
        return _medians(self._claims_of(server_round, replies))

    def ask_clients(self, grid: Grid, round_: int, x: Vector) -> Claims | None:
        """Have all connected clients measure a model; None where clients are not asked.

        Nothing of it affects the method, its random draws or what workers keep.

        Args:
            grid: where they are.
            round_: r, the model is x^r.
            x: shape (d,).
        """
        if self.claim_codec is None:
            return None
        messages = list(self.configure_evaluate(round_, self.codec.to_arrays(x), ConfigRecord(), grid))
        replies, (up, down) = self._replies(grid, EVALUATE, messages)
        return replace(self._claims_of(round_, replies), bytes_up=up, bytes_down=down)

    def ask_statistics(self, grid: Grid, round_: int, x: Vector) -> str:
        """Have all connected clients compute batch statistics at a model, and use them from now on.

        Nothing of it affects the method, its random draws or what workers keep. Where too few answers are usable the
        statistics stay as they are.

        Args:
            grid: where they are.
            round_: r, the model is x^r.
            x: shape (d,).

        Returns:
            Why there are no new statistics, one line; "" where there are, and where clients are not asked.
        """
        if (codec := self.statistics) is None:
            return ""
        asked = self._to_all(QUESTION, round_, codec.write_question(round_, self.codec.to_arrays(x)))
        replies, self.statistics_bytes = self._replies(grid, QUESTION, [message for message, _ in asked])
        answers, _ = self._answers(QUESTION, round_, asked, replies, codec.read_answer)
        found = batch_statistics.combined(list(answers.values()), codec.variances, self.byzantine)
        if found is None:
            shortage = batch_statistics.shortage(len(answers), self.byzantine, self.norm_stats)
            level = logging.INFO if (key := ("", "statistics")) in self._warned else logging.WARNING
            self._warned.add(key)
            log.log(level, "round %d: %s", round_, shortage)
            return shortage
        self.measure_with(batch_statistics.averaged(self.norm_stats, found, round_))
        return ""

    def measure_with(self, norm_stats: NormStats | None) -> None:
        """Use these running statistics from now on, where clients answer them."""
        self.norm_stats = norm_stats
        if self.statistics is not None:
            self.statistics.use(None if norm_stats is None else norm_stats.values)

    def add_claims(self, round_: int, grid: Grid, result: Result, *, evaluated: bool) -> Claims | None:
        """Return what clients claim about the model after a round, and add their medians to the result.

        Args:
            round_: r; the model is that of the state.
            grid: to ask them.
            result: of the run.
            evaluated: whether the model is to be measured after this round.
        """
        claims = self.ask_clients(grid, round_, self.state.x) if evaluated else None
        if claims is not None and (metrics := _medians(claims)) is not None:
            result.evaluate_metrics_clientapp[round_] = metrics
        return claims

    def _claims_of(self, round_: int, replies: Iterable[Message]) -> Claims:
        """Screen what the clients that were asked have answered."""
        (asked, self._asked), reader = (self._asked, []), self.claim_codec
        if reader is None:
            return Claims(0, self.byzantine)
        read = partial(reader.read_claim, declared=self.declare_samples)
        clients, missing = self._answers(EVALUATE, round_, asked, replies, read)
        claims = Claims.of(clients, missing, self.byzantine)
        if claims.shortage and (key := ("", "evaluation")) not in self._warned:
            self._warned.add(key)
            log.warning("round %d: evaluation: %s; reported once", round_, claims.shortage)
        return claims

    def _answers(
        self,
        kind: str,
        round_: int,
        asked: Sequence[tuple[Message, int]],
        replies: Iterable[Message],
        read: Callable[[Message], T | Rejected],
    ) -> tuple[dict[str, T], dict[str, str]]:
        """Screen what the clients that were asked have answered.

        Returns:
            The answers that count, and why others do not, by the client's name.
        """
        verdicts: dict[int, T | Rejected] = {}
        for worker, reply, _ in _matched(asked, replies, round_):
            verdicts[worker] = _DUPLICATE if worker in verdicts else read(reply)
        self._note_agreed(verdicts)
        answers: dict[str, T] = {}
        missing: dict[str, str] = {}
        for message, worker in asked:
            silent = Rejected(f"silent: no reply within {message.metadata.ttl:g} s")
            name, verdict = self.roster.name(worker), verdicts.get(worker, silent)
            if isinstance(verdict, Rejected):
                missing[name] = verdict.reason
                self._tell_missing(kind, round_, name, verdict)
            else:
                answers[name] = verdict
        return answers, missing

    def _tell_missing(self, kind: str, round_: int, name: str, verdict: Rejected) -> None:
        """Log why an answer of a client does not count: loudly the first time for this reason, unless it declines."""
        what = _WORDS[kind]
        key = name, f"{what}: {verdict.slug}"
        loud = key not in self._warned and verdict.reason not in (NO_EVALUATION, NO_STATISTICS)
        self._warned.add(key)
        level = logging.WARNING if loud else logging.INFO
        log.log(level, "round %d: %s: no answer of %s counts: %s", round_, what, name, verdict.reason)

    # --- what Flower's Strategy also asks for -------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        """All that the run goes on with now."""
        return Standing(self.state, self.course, self.step_scale, self.alpha_scale, self.since, self.norm_stats)

    @standing.setter
    def standing(self, standing: Standing) -> None:
        self.state, self.course, self.step_scale, self.alpha_scale, self.since, norm_stats = standing
        self.measure_with(norm_stats)

    def standing_after(self, rounds: int) -> Standing | None:
        """Return the standing after that many rounds, where it is the newest or the last that was recorded; else None.

        A run that is interrupted may have ended a round that nobody has written down.
        """
        known = [each for each in (self.standing, self._recorded) if each is not None and each.state is not None]
        return next((each for each in known if each.state.round - 1 == rounds), None)

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
        connected, nor stop when the model has diverged or no reply counts any more.

        Args:
            grid: where the clients are.
            initial_arrays: x^0.
            num_rounds: rounds to run.
            timeout: unused beyond ``deadline_s``, which is the smaller of the two.
            train_config: not used; hyper-parameters are the method's.
            evaluate_config: not used.
            evaluate_fn: called as Flower does, in rounds that are evaluated, in addition to ``evaluate``.

        Raises:
            NoClientsError: no client was connected for ``idle_timeout_s``, before any reply was usable.
            StalledError: too few clients answered for ``idle_timeout_s``; see ``strategies.progress``.
        """
        result = Result()
        config = train_config or ConfigRecord()
        goes_on = self.state is not None and self.state.round > 1
        if self.state is None:
            self.state = self.method.start(self.codec.from_arrays(initial_arrays))
        self._recorded = self.standing
        watch = self._watch
        watch.begin(self.state.round - 1, self.state.x, self.codec.to_arrays, distrust=goes_on)
        while self.state.round <= num_rounds:
            watch.wait_for_anybody()
            began, (up, down) = time.perf_counter(), self.roster.traffic()
            round_ = self.state.round
            messages = self.configure_train(round_, initial_arrays, config, grid)
            deadline_s = min(self.wait_s, timeout)
            replies = grid.send_and_receive(messages, timeout=deadline_s)
            outcome = self._outcome(replies)
            ask, found = outcome.opened.ask, outcome.record
            if isinstance(self.deadline_s, LearntDeadline):
                self.deadline_s.observe(ask.kind, len(outcome.opened.messages), self.roster.waits(), deadline_s)
            reasons = [reason for _, reason in found.rejected] or [found.note] * found.incomplete
            watch.add(round_, ask.sample, outcome.used, reasons)
            if watch.in_doubt(last=round_ == num_rounds):
                ask_all = partial(self._probe, grid, ask, deadline_s)
                held = watch.hold(round_, len(outcome.used), outcome.wanted, ask_all)
                note = "; ".join(filter(None, (found.note, held)))
                outcome = replace(outcome, record=replace(found, note=note))
            record = self._commit(outcome)
            watch.keep(round_, self.state.x)
            seconds, (up_now, down_now) = time.perf_counter() - began, self.roster.traffic()
            x = self.state.x
            flaw = self.flaw_of_model(x)
            diverged = bool(flaw)
            evaluation, claims, due = None, None, round_ % self.every == 0 or round_ == num_rounds
            self.statistics_bytes = (0, 0)
            stale = self.ask_statistics(grid, round_, x) if due and not diverged else ""
            if not diverged:
                claims = self.add_claims(round_, grid, result, evaluated=due)
            if due or diverged:
                evaluation = self.evaluate(x) if self.evaluate else None
                diverged = diverged or (evaluation is not None and not math.isfinite(evaluation.loss))
                metrics = evaluate_fn(round_, self.codec.to_arrays(x)) if evaluate_fn else None
                if metrics is not None:
                    result.evaluate_metrics_serverapp[round_] = metrics
            flaw = (flaw or NOT_FINITE) if diverged else ""
            undone = self._supervise(round_, evaluation, claims, flaw, last=round_ == num_rounds)
            diverged = diverged and not undone
            note = f"diverged: {flaw} after round {round_}" if diverged else record.note
            note = "; ".join(filter(None, (note, stale, undone)))
            if claims is not None and claims.shortage and not self._short:
                self._short, note = True, "; ".join(filter(None, (note, claims.shortage)))
            record = replace(
                record,
                round_s=seconds,
                bytes_up=up_now - up,
                bytes_down=down_now - down,
                evaluation=evaluation,
                claims=claims,
                note=note,
                diverged=diverged,
                late=self.roster.late(),
                statistics_bytes=self.statistics_bytes,
            )
            self.last = record
            if self.on_round:
                self.on_round(record)
            self._recorded = self.standing
            if self.course is not None and self.course.ended:
                log.info("round %d: the run ends: %s", round_, self.course.ended)
                break
            if diverged:
                log.error("%s: no later round can repair it; the run ends here", note)
                break
        result.arrays = self.codec.to_arrays(self.state.x)
        return result

    def _supervise(
        self, round_: int, evaluation: Evaluation | None, claims: Claims | None, flaw: str, *, last: bool
    ) -> str:
        """Note what a round's measures show, and go back to an earlier model if they ask for it; return why, or ""."""
        if self.supervisor is None or self.course is None:
            return ""
        course, undone = self.supervisor.after(
            self.course, self.method, self.state, round_, evaluation, claims, self.norm_stats, flaw=flaw, last=last
        )
        if not undone:
            self.course = course
            return ""
        learns = getattr(self.method, "alpha", None) == AUTO
        self.standing = Standing(
            self.method.restart(course.good, round_ + 1),
            course,
            self.step_scale * HALF,
            self.alpha_scale * (HALF if learns else 1.0),
            since=round_ + 1,
            norm_stats=course.good_stats,
        )
        self._watch.begin(round_, self.state.x, self.codec.to_arrays, distrust=False)
        log.warning("round %d: %s; step size%s halved", round_, undone, " and clipping multiplier" if learns else "")
        return f"safeguard: {undone}"

    def flaw_of_model(self, x: Vector) -> str:
        """Say why no round can follow this model; "" if one can."""
        return "" if np.isfinite(x).all() else NOT_FINITE

    def _probe(self, grid: Grid, ask: Ask, deadline_s: float, nodes: Mapping[int, int]) -> Probe:
        """Ask all of these workers what a round asked, at the same model and without any effect on what workers keep.

        What they reply only shows that they can: the round itself ends as it has.
        """
        probe = self._opened(replace(ask, probe=True), list(nodes), nodes)
        verdicts, spoke = self._verdicts(probe, grid.send_and_receive(probe.messages, timeout=deadline_s))
        # A worker that lost its state is well: with the next ask it is sent the server's.
        failed = {i: v for i, v in verdicts.items() if isinstance(v, Rejected) and v.slug != STALE}
        for worker, verdict in failed.items():
            self._tell(ask.round, worker, verdict)
        reasons, mass = [v.reason for v in failed.values()], self.method.mass_of(verdicts.keys() - failed.keys())
        answered = len(verdicts) - len(failed)
        if mass is not None and answered and not self.method.aggregator.withstands(mass, self.byzantine):
            answered = 0
            reasons.append("no quorum by weight: those that answer have too little of it beside the heaviest")
        return Probe(answered, reasons, failed.keys() & spoke)


_DUPLICATE = Rejected("duplicate: more than one reply")
_WORDS = {EVALUATE: "evaluation", QUESTION: "statistics"}
"""For logs, by the type of a message."""


def _matched(
    sent: Iterable[tuple[Message, int]], replies: Iterable[Message], round_: int
) -> Iterator[tuple[int, Message, bool]]:
    """Yield each reply with the worker whose instruction it answers, and whether it comes from that worker's node.

    By instruction and not by sender: a SuperLink reports a lost node's error in its own name.

    Args:
        sent: the instructions and their workers.
        replies: whatever came.
        round_: r, for the log.
    """
    workers = {message.metadata.message_id: (worker, message.metadata.dst_node_id) for message, worker in sent}
    for reply in replies:
        worker, node = workers.get(reply.metadata.reply_to_message_id, (None, None))
        own = reply.metadata.src_node_id == node
        if worker is None or not (own or reply.has_error()):  # only errors come in another's name
            log.warning("round %d: node %d answers no instruction of it", round_, reply.metadata.src_node_id)
        else:
            yield worker, reply, own


def _medians(claims: Claims) -> MetricRecord | None:
    """Return the medians of claims as Flower's result has them; None where there is no figure."""
    if (found := claims.evaluation) is None:
        return None
    known = {"loss": found.loss, "accuracy": found.accuracy}
    return MetricRecord({name: value for name, value in known.items() if value is not None})
