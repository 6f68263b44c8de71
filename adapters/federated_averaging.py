"""RobustFedAvg: FedAvg's place in a Flower app, taken by a method that Byzantine clients cannot break.

    -  strategy = FedAvg(fraction_train=0.5)
    +  strategy = RobustFedAvg(byzantine=3, fraction_train=0.5)

and ``breakwater.robust_deltas_mod`` on the ClientApp. The instruction is FedAvg's, the model under "arrays" and the
app's configuration under "config", and beside them ``adapters.orders`` for the mod. The model travels once, as the app
reads it. Between rounds, clients evaluate as with FedAvg; what they report is shown and weighs nothing.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from adapters.app_strategy import OWN_RECORDS, AppCodec, AppOptions, AppStrategy, check_share
from adapters.client_metrics import Aggregate, median_metrics, screened
from adapters.named_arrays import RUNNING_NAMES, ArrayLayout
from adapters.orders import ORDER, RUNNING, write, write_order
from foundation.errors import ConfigError
from foundation.text import kind_and_line, one_line
from strategies.aggregators import CoordinateMedian, Rule
from strategies.cohorts import byzantine_majority, expected_byzantine, sample
from strategies.compressors import Identity, PermK
from strategies.hyperparameters import AUTO
from strategies.method import Ask, Compressor, Vector
from strategies.radius import Alpha
from strategies.randomness import Role, stream
from strategies.robust_averaging import RobustAveraging
from strategies.strategy import NoClientsError, Outcome, RoundRecord

log = logging.getLogger("flwr.breakwater")


@dataclass(frozen=True)
class DeltaCodec(AppCodec):
    """Instructions that an app written for FedAvg can read.

    Args:
        compressor: Q.
        arrays: name of the record that is the model.
    """

    compressor: Compressor
    arrays: str

    def write_ask(self, ask: Ask, extra: Mapping[str, Vector] = {}) -> RecordDict:  # never written to
        """Return the content of an instruction; this method has nothing extra for anybody."""
        order = write_order(ask, self.compressor, self.arrays, self.layout.running)
        return RecordDict({self.arrays: self.to_arrays(ask.vectors["x"]), ORDER: order})


class RobustFedAvg(AppStrategy):
    """Federated averaging by ``strategies.robust_averaging``. What clients claim, examples and metrics, weighs nothing.

    Args:
        clients: n; see ``AppStrategy``. None: as many as nodes are there at round 1, at least ``min_available_nodes``;
            nodes that come later are left out.
        byzantine: f, how many clients may be Byzantine.
        byzantine_fraction: in its place, the share of them, from 0 and below 0.5: f = floor(byzantine_fraction n).
        fraction_train: C/n, the share of clients sampled in a round. The opening rounds ask all.
        fraction_evaluate: the share of clients that evaluate the model after a round, at least 2f + 1 of them, so that
            the median lies within what honest ones reported; 0 asks nobody. Clients that cannot evaluate do no harm.
        aggregator: the robust rule, with its pre-aggregators.
        compressor: what the mod compresses deltas with; unbiased.
        alpha: clipping multiplier of ``strategies.robust_averaging``; "auto" learns it, ``math.inf`` does not clip.
        server_learning_rate: gamma, what the aggregated delta is multiplied by.
        weighted_by_key: name of the metric that is a weight: the median leaves it out, and the functions below get it.
        train_metrics_aggr_fn: aggregates the metrics of training, as in FedAvg: a function of the contents of replies
            and ``weighted_by_key``. It gets those with usable metrics, all of the same names. What it raises is logged.
            Default: the median of each metric over clients, where more than 2f reported it.
        evaluate_metrics_aggr_fn: the same for evaluation.
        arrayrecord_key: name of the record with the model.
        configrecord_key: name of the record with the app's ``train_config`` or ``evaluate_config``.
        running_statistics: names of arrays that are running statistics, beside those whose name ends with one of
            torch's: running_mean, running_var, num_batches_tracked. They are no part of what the method compresses,
            clips and aggregates: each round they become the coordinate-wise median over the replies that count, where
            more than twice as many report them as may be Byzantine in such a cohort.

        options: those of ``AppStrategy``. Without ``clients``, the default of ``min_available_nodes`` is 2f + 1, but at
            least 2. ``every`` counts for evaluation by clients too.

    Raises:
        ConfigError: a value is out of bounds, or the rule cannot defend such cohorts.
    """

    method: RobustAveraging
    byzantine: int
    hint = "is breakwater.robust_deltas_mod on its ClientApp?"

    def __init__(
        self,
        clients: int | None = None,
        byzantine: int | None = None,
        *,
        byzantine_fraction: float | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        aggregator: Rule | None = None,
        compressor: Compressor | None = None,
        alpha: Alpha = 2.0,
        server_learning_rate: float = 1.0,
        weighted_by_key: str = "num-examples",
        train_metrics_aggr_fn: Aggregate | None = None,
        evaluate_metrics_aggr_fn: Aggregate | None = None,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        running_statistics: Collection[str] | None = None,
        **options: Unpack[AppOptions],
    ) -> None:
        if (byzantine is None) == (byzantine_fraction is None):
            what = "neither is" if byzantine is None else "both are"
            raise ConfigError(f"byzantine, byzantine_fraction: {what} given; give one of them (0 for no attackers)")
        if byzantine_fraction is not None and not 0 <= byzantine_fraction < 0.5:
            limit = "must be at least 0 and below 0.5, as no rule withstands half"
            raise ConfigError(f"byzantine_fraction = {byzantine_fraction}: {limit}")
        if not 0 < fraction_train <= 1:
            raise ConfigError(f"fraction_train = {fraction_train}: must be above 0 and at most 1")
        if not 0 <= fraction_evaluate <= 1:
            raise ConfigError(f"fraction_evaluate = {fraction_evaluate}: must be at least 0 and at most 1")
        if not 0 < server_learning_rate < math.inf:
            raise ConfigError(f"server_learning_rate = {server_learning_rate}: must be a positive number")
        if alpha != AUTO and not (isinstance(alpha, int | float) and alpha > 0):
            raise ConfigError(f'alpha = {alpha!r}: must be a positive number, math.inf or "auto"')
        form: Compressor = Identity() if compressor is None else compressor
        write(form)  # refuses what no mod knows
        if not form.unbiased:
            raise ConfigError(f"compressor = {form.kind}: biased, and the mean of biased deltas leads elsewhere")
        if arrayrecord_key in OWN_RECORDS or arrayrecord_key == configrecord_key:
            raise ConfigError(f"arrayrecord_key = {arrayrecord_key!r}: another record has that name; choose another")
        self._byzantine, self._share = byzantine, byzantine_fraction
        self.fraction_train, self.fraction_evaluate = float(fraction_train), float(fraction_evaluate)
        self._rule = CoordinateMedian() if aggregator is None else aggregator
        self._running = frozenset(running_statistics or ())
        self._form, self._alpha, self._gamma = form, alpha, float(server_learning_rate)
        self._open_n = clients is None
        if clients is None:
            clients = self._least(options.get("min_available_nodes"))  # until the nodes are there
            options["min_available_nodes"] = clients
        f = self._byzantine_of(clients)
        check_share(clients, f)
        super().__init__(
            self._method_for(clients, f, checked=not self._open_n),
            clients=clients,
            byzantine=f,
            configrecord_key=configrecord_key,
            **options,
        )
        self.arrayrecord_key, self.weighted_by_key = arrayrecord_key, weighted_by_key
        self.train_metrics_aggr_fn = train_metrics_aggr_fn or median_metrics
        self.evaluate_metrics_aggr_fn = evaluate_metrics_aggr_fn or median_metrics

    # --- how many clients -------------------------------------------------------------------------------------------

    def _least(self, given: int | None) -> int:
        """Return how many nodes must be there where n is their number."""
        fewest = 1 if self._byzantine is None else 2 * self._byzantine + 1
        if given is None:
            return max(2, fewest)
        if given < fewest:
            why = "" if self._byzantine is None else " (2 byzantine + 1), as no rule withstands half of them"
            raise ConfigError(f"min_available_nodes = {given}: must be at least {fewest}{why}")
        return given

    def _byzantine_of(self, clients: int) -> int:
        if self._byzantine is not None:
            return self._byzantine
        return math.floor(Fraction(repr(float(self._share or 0))) * clients)  # 0.29 * 100 is a little less than 29

    def _method_for(self, n: int, f: int, *, checked: bool = True) -> RobustAveraging:
        """Return the method for so many clients.

        Raises:
            ConfigError: the rule cannot defend them.
        """
        cohort, clips = max(1, round(self.fraction_train * n)), self._alpha != math.inf
        if checked:
            _check_rule(self._rule, cohort, n, f, clips=clips)
        form = self._form
        if isinstance(form, PermK) and form.parts is None:
            form = replace(form, parts=n)
        alpha = self._alpha if clips else None
        return RobustAveraging(
            n=n, f=f, gamma=self._gamma, cohort=cohort, aggregator=self._rule, compressor=form, alpha=alpha
        )

    @property
    def compressor(self) -> Compressor:
        """What the mod compresses deltas with."""
        return self.method.compressor

    def _gather(self) -> None:
        if self._open_n:
            self._settle()
        else:
            super()._gather()

    def _settle(self) -> None:
        """Take the nodes that are there for the clients, where their number was not given.

        Raises:
            NoClientsError: they are fewer than ``min_available_nodes``.
            ConfigError: the rule cannot defend so many.
        """
        if not self._open_n:
            return
        least = self.min_available_nodes
        self.seats.open()
        self.wait_for(least)
        self.clients = self.seats.close()
        if self.clients < least:
            came = f"{self.clients} nodes came within {self.idle_timeout_s:g} s"
            fix = "start the others, or lower min_available_nodes"
            raise NoClientsError(f"{came}, and {least} are needed (min_available_nodes): {fix}")
        self.byzantine = self._byzantine_of(self.clients)
        self.method = self._method_for(self.clients, self.byzantine)
        if isinstance(self.codec, DeltaCodec):
            self.codec = self.make_codec(self.codec.layout)

    # --- the log ----------------------------------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the clients, the sampling and the method, and how much it has to clip."""
        method = self.method
        log.info("\t├──> Clients: %d, of which at most %d are Byzantine", self.clients, self.byzantine)
        log.info("\t├──> Sampling:")
        fractions = self.fraction_train, self.fraction_evaluate
        log.info("\t│\t├── Fraction: train (%.2f) | evaluate (%.2f)", *fractions)
        log.info("\t│\t└── Nodes: train (%d) | evaluate (%d)", method.cohort, self._evaluators)
        log.info("\t├──> Robust averaging:")
        log.info("\t│\t├── Aggregator: %s", method.aggregator)
        log.info("\t│\t├── Clipping: %s", "none" if method.alpha is None else f"alpha = {method.alpha}")
        log.info("\t│\t├── Compressor: %s", method.compressor)
        log.info("\t│\t└── Server learning rate: %g", self._gamma)
        log.info("\t└──> Keys in records:")
        log.info("\t\t├── ArrayRecord key: '%s'", self.arrayrecord_key)
        log.info("\t\t└── ConfigRecord key: '%s'", self.configrecord_key)
        share = sum(byzantine_majority(self.clients, self.byzantine, method.cohort))
        if share > 0:
            risk = "%.0f %% of the cohorts have no honest majority, so their updates are clipped"
            log.info(f"{risk}; a larger fraction_train makes them fewer and the model better", 100 * share)

    # --- training ---------------------------------------------------------------------------------------------------

    def layout_of(self, arrays: ArrayRecord) -> ArrayLayout:
        """Return the layout of a model, with its running statistics apart.

        Raises:
            ConfigError: the model cannot be trained, or lacks an array of ``running_statistics``.
        """
        known = {name for name in arrays if name.rpartition(".")[2] in RUNNING_NAMES}
        return ArrayLayout.of(arrays, known | self._running)

    def make_codec(self, layout: ArrayLayout) -> AppCodec:
        """Return how this model travels.

        Raises:
            ConfigError: the compressor cannot carry it.
        """
        try:
            self.compressor.layout(layout.dim, layout.dtype)
        except ValueError as error:
            raise ConfigError(f"compressor: {error}") from None
        return DeltaCodec(layout, self.hint, self.compressor, self.arrayrecord_key)

    def forget(self) -> None:
        """Forget every round, so that the next one is the first."""
        super().forget()
        self._train_claims: dict[int, RecordDict] = {}
        self._train_metrics: MetricRecord | None = None
        self._reports: list[ArrayRecord] = []  # running statistics of this round
        self._few_reports = False  # the log has said that they are too few for a median
        self._asked: list[tuple[Message, int]] = []  # to evaluate: instruction and worker
        self._evaluated = self._cannot_evaluate = False
        self._explained: set[tuple[int, str]] = set()  # whose metrics the log has called unusable, and why

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Close the round, where Flower's own loop drives it."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        return arrays, metrics if self._train_metrics is None else self._train_metrics

    def _outcome(self, replies: Iterable[Message]) -> Outcome:
        """Work out the round, and keep the metrics of the replies that were accepted."""
        batch = list(replies)
        outcome = super()._outcome(batch)
        opened, accepted = outcome.opened, set(outcome.record.accepted)
        pairs = zip(opened.messages, opened.cohort, strict=True)
        sent = {message.metadata.message_id: worker for message, worker in pairs if worker in accepted}
        found = ((sent.get(reply.metadata.reply_to_message_id), reply) for reply in batch)
        counted = {i: reply for i, reply in found if i is not None and reply.has_content()}
        self._train_claims = {i: _metrics_of(reply) for i, reply in counted.items()}
        self._reports = self._running_of(outcome, {i: counted[i] for i in outcome.used if i in counted})
        return outcome

    def _running_of(self, outcome: Outcome, replies: Mapping[int, Message]) -> list[ArrayRecord]:
        """Return the running statistics in the replies that are used; none where these are too few for a median."""
        layout = self.codec.layout if isinstance(self.codec, AppCodec) else None
        if layout is None or not layout.running or not outcome.used:
            return []
        reports: dict[int, ArrayRecord] = {}
        flaws: dict[int, str] = {}
        for worker, reply in replies.items():
            try:
                reports[worker] = layout.statistics(reply.content.array_records[RUNNING])
            except KeyError:
                flaws[worker] = "missing: the reply lacks some; is its robust_deltas_mod of this version?"
            except Exception as error:  # whatever a client sends: the round goes on
                flaws[worker] = one_line(f"unusable: {error}")
        round_ = outcome.record.round
        self._explain("running statistics", round_, flaws)
        lies = min(self.byzantine, expected_byzantine(len(outcome.opened.cohort), self.clients, self.byzantine))
        if len(reports) > 2 * lies:
            return list(reports.values())
        if not self._few_reports:
            few = f"{len(reports)} replies have running statistics, of which {lies} may be lies"
            log.warning("round %d: running statistics: too few: %s; they stay as they are", round_, few)
        self._few_reports = True
        return []

    def _commit(self, outcome: Outcome) -> RoundRecord:
        """Let a round take effect, log it, and aggregate the metrics of its training."""
        record = super()._commit(outcome)
        claims, self._train_claims = self._train_claims, {}
        reports, self._reports = self._reports, []
        if reports and isinstance(self.codec, AppCodec):
            self.codec = self.make_codec(self.codec.layout.with_medians(reports))
        self._train_metrics = None
        if any(content.metric_records for content in claims.values()):
            usable, flaws = screened(claims)
            self._explain("training", record.round, flaws)
            self._train_metrics = self._aggregated("train", usable, self.train_metrics_aggr_fn)
        return record

    # --- evaluation by clients --------------------------------------------------------------------------------------

    @property
    def asks_to_evaluate(self) -> bool:
        """Whether clients are asked to evaluate."""
        return self.fraction_evaluate > 0

    @property
    def _evaluators(self) -> int:
        """How many clients evaluate: their share, and at least as many as the median needs."""
        wanted = max(round(self.fraction_evaluate * self.clients), 2 * self.byzantine + 1)
        return min(wanted, self.clients) if self.asks_to_evaluate else 0

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask some clients to evaluate the model, as FedAvg does."""
        self._asked = []
        if not self.asks_to_evaluate or self._cannot_evaluate:
            return []
        nodes = self.seats.nodes()
        rng = stream(self.seed, Role.EVALUATION, round_=server_round)
        workers = sample(self.clients, self._evaluators, nodes, rng)
        told = ConfigRecord({**config, "server-round": server_round})  # the app may go on changing its own
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: told})
        self._asked = [
            (Message(content, nodes[worker], "evaluate", ttl=self.deadline_s, group_id=str(server_round)), worker)
            for worker in workers
        ]
        log.info("configure_evaluate: Sampled %d nodes (out of %d)", len(workers), len(nodes))
        return [message for message, _ in self._asked]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Aggregate the metrics of the clients that could evaluate; None where they do not suffice."""
        asked, self._asked = self._asked, []
        if not asked:
            return None
        claims, failures, refused = self._evaluations(asked, replies)
        usable, flaws = screened(claims)
        failures, refused = {**failures, **flaws}, refused | flaws.keys()
        log.info("aggregate_evaluate: Received %d results and %d failures", len(usable), len(failures))
        self._evaluated = self._evaluated or len(usable) > self.byzantine
        if not self._evaluated and len(refused) >= min(self.clients, max(self.byzantine, 1) + 1):
            self._cannot_evaluate = True
            worker = min(refused)
            why = f"clients cannot evaluate and are not asked again: {self.roster.name(worker)}: {failures[worker]}"
            log.warning("\t└──> %s; give the ClientApp an @app.evaluate function, or set fraction_evaluate=0", why)
            return None
        self._explain("evaluation", server_round, failures)
        return self._aggregated("evaluate", usable, self.evaluate_metrics_aggr_fn)

    def add_claims(self, round_: int, grid: Grid, result: Result, *, evaluated: bool) -> None:
        """Add the metrics of training, and let clients evaluate where that is due; they are in the result alone."""
        if self._train_metrics is not None:
            result.train_metrics_clientapp[round_] = self._train_metrics
        if not evaluated or not self.asks_to_evaluate or self._cannot_evaluate:
            return
        arrays = self.codec.to_arrays(self.state.x)
        messages = self.configure_evaluate(round_, arrays, self._evaluate_config, grid)
        replies = grid.send_and_receive(messages, timeout=self.deadline_s)
        metrics = self.aggregate_evaluate(round_, replies)
        if metrics is not None:
            result.evaluate_metrics_clientapp[round_] = metrics

    def _evaluations(
        self, asked: Sequence[tuple[Message, int]], replies: Iterable[Message]
    ) -> tuple[dict[int, RecordDict], dict[int, str], set[int]]:
        """Return the metrics that came, why other clients have none, and who of these replied; by worker."""
        sent = {message.metadata.message_id: (worker, message.metadata.dst_node_id) for message, worker in asked}
        claims: dict[int, RecordDict] = {}
        failures: dict[int, str] = {}
        refused: set[int] = set()
        for reply in replies:
            worker, node = sent.get(reply.metadata.reply_to_message_id, (None, None))
            own = reply.metadata.src_node_id == node
            if worker is None or not (own or reply.has_error()):  # only errors come in another's name
                log.warning("node %d answers no evaluation that it was asked for", reply.metadata.src_node_id)
            elif worker in claims or worker in failures:
                claims.pop(worker, None)
                failures[worker] = "duplicate: more than one reply"
            elif reply.has_error():
                failures[worker] = one_line(f"error: {reply.error.reason}")
                refused |= {worker} if own else set()
            else:
                claims[worker] = _metrics_of(reply)
        silent = f"silent: no reply within {self.deadline_s:g} s"
        failures |= {worker: silent for _, worker in asked if worker not in claims and worker not in failures}
        return claims, failures, refused

    # --- what clients claim -----------------------------------------------------------------------------------------

    def _explain(self, what: str, round_: int, failures: Mapping[int, str]) -> None:
        """Log whose metrics are not used and why; once for each kind of reason."""
        for worker, reason in sorted(failures.items()):
            known = worker, f"{what}: {reason.partition(':')[0]}"
            if known not in self._explained:
                self._explained.add(known)
                log.warning("round %d: metrics of %s rejected (%s): %s", round_, self.roster.name(worker), what, reason)

    def _aggregated(self, what: str, usable: Mapping[int, RecordDict], function: Aggregate) -> MetricRecord | None:
        """Return the aggregate of usable metrics, and log it; None where there is none."""
        if not usable:
            return None
        if function is median_metrics and len(usable) <= 2 * self.byzantine:
            if (-1, what) not in self._explained:
                self._explained.add((-1, what))
                few = "\t└──> Metrics of %d clients, of which %d may be Byzantine, are not aggregated: %d are needed"
                log.info(few, len(usable), self.byzantine, 2 * self.byzantine + 1)
            return None
        try:
            metrics = function(list(usable.values()), self.weighted_by_key)
        except Exception as error:  # the user's function, at work on what clients claim: no reason to lose the run
            log.error("\t└──> %s_metrics_aggr_fn failed, so there is no aggregate: %s", what, kind_and_line(error))
            return None
        if not metrics:
            return None
        if self._num_rounds:  # else Flower's loop says so
            log.info("\t└──> Aggregated MetricRecord: %s", metrics)
        return metrics


def _metrics_of(reply: Message) -> RecordDict:
    """Return the metrics of a reply without all else that it holds."""
    return RecordDict(dict(reply.content.metric_records))


def _check_rule(rule: Rule, cohort: int, n: int, f: int, *, clips: bool) -> None:
    """Refuse a rule that cannot defend all clients, or cannot take a cohort and what silent clients leave of it.

    A cohort may have more Byzantine clients than the rule tolerates, where clipping bounds what they do.
    """
    for size in (n,) if clips else (n, cohort):
        share, tolerated = expected_byzantine(size, n, f), rule.tolerates(size)
        if rule.defends and tolerated < share:
            others = "" if size == n else ", a larger fraction_train, or clip"
            limit = f"{share} may be Byzantine, and it tolerates {max(0, tolerated)}"
            raise ConfigError(f"aggregator = {rule.kind}: of {size} replies {limit}; choose another rule{others}")
    share = expected_byzantine(cohort, n, f)
    for size in (cohort, cohort - share):
        if size > 0 and rule.tolerates(size) < 0:
            silent = f", {share} of them silent" if size < cohort else ""
            few, fix = "are too few for it", "choose another rule or a larger fraction_train"
            raise ConfigError(f"aggregator = {rule.kind}: {cohort} clients in a round{silent} {few}; {fix}")
