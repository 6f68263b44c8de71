"""RobustFedAvg as a user of FedAvg knows it: its log, metrics, evaluation by clients, n as the nodes that are there."""

import logging
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from hypothesis import given
from hypothesis import strategies as st

from adapters.client_metrics import median_metrics, screened
from adapters.federated_averaging import RobustFedAvg
from adapters.mods import robust_deltas_mod
from foundation.errors import ConfigError
from strategies.aggregators import Krum
from strategies.compressors import PermK
from strategies.strategy import NoClientsError, RoundRecord
from tests.component_grid import LOST, AppGrid
from tests.unit.adapters.test_component import NODES, SEATED, X0, N, model, ordinary, vector

Says = Callable[[Message, Context], MetricRecord]


def says(metrics: Mapping[str, Any] | Says | None, *, evaluates: bool = True) -> ClientApp:
    """An app that trains as ``ordinary`` does, and reports these metrics of training and evaluation."""

    def claimed(message: Message, context: Context) -> RecordDict:
        found = (
            metrics(message, context) if callable(metrics) else None if metrics is None else MetricRecord({**metrics})
        )
        return RecordDict({} if found is None else {"metrics": found})

    app = ClientApp(mods=[robust_deltas_mod])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = claimed(message, context)
        reply = ordinary(message, context)
        reply.content = RecordDict({"arrays": reply.content["arrays"], **content})
        return reply

    if evaluates:

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            assert set(message.content) == {"arrays", "config"}
            return Message(claimed(message, context), reply_to=message)

    return app


def by_seat(message: Message, context: Context) -> MetricRecord:
    """Seat 0 says 0.0, seat 1 says 0.1, ..."""
    return MetricRecord({"loss": SEATED.index(context.node_id) / 10, "num-examples": 7})


def nodes(bad: Mapping[int, ClientApp | str] | None = None, *, default: ClientApp | None = None) -> AppGrid:
    own = {SEATED[seat]: app for seat, app in (bad or {}).items()}
    return AppGrid({node: own.get(node, default or says(by_seat)) for node in NODES})


def strategy(**options: Any) -> RobustFedAvg:
    return RobustFedAvg(**{"clients": N, "byzantine": 2, "seed": 1, "join_timeout_s": 0.05, **options})


def evaluations(grid: AppGrid) -> list[list[Message]]:
    return [batch for batch in grid.pushed if batch[0].metadata.message_type == "evaluate"]


# --- the log ------------------------------------------------------------------------------------------------------

SHOWN = """\
Starting RobustFedAvg strategy:
	├── Number of rounds: 2
	├── ArrayRecord (0.00 MB)
	├── ConfigRecord (train): {'lr': 0.1}
	├── ConfigRecord (evaluate): (empty!)
	├──> Clients: 5, of which at most 2 are Byzantine
	├──> Sampling:
	│	├── Fraction: train (1.00) | evaluate (1.00)
	│	└── Nodes: train (5) | evaluate (5)
	├──> Robust averaging:
	│	├── Aggregator: CoordinateMedian(kind='cm', pre=())
	│	├── Clipping: alpha = 2.0
	│	├── Compressor: Identity(kind='identity', values='full')
	│	└── Server learning rate: 1
	└──> Keys in records:
		├── ArrayRecord key: 'arrays'
		└── ConfigRecord key: 'config'

Initial global evaluation results: {'norm': 1.0}

[ROUND 1/2]
configure_train: Sampled 5 nodes (out of 5)
aggregate_train: Received 5 results and 0 failures
	└──> Clipped 0 of 5; last step 0
	└──> Aggregated MetricRecord: {'loss': 0.2}
configure_evaluate: Sampled 5 nodes (out of 5)
aggregate_evaluate: Received 5 results and 0 failures
	└──> Aggregated MetricRecord: {'loss': 0.2}
Global evaluation
	└──> MetricRecord: {'norm': 1.0}

[ROUND 2/2]
"""


def test_the_log_looks_as_that_of_flowers_strategies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr.breakwater"):
        result = strategy().start(
            nodes(),
            model(X0),
            2,
            train_config=ConfigRecord({"lr": 0.1}),
            evaluate_fn=lambda *_: MetricRecord({"norm": 1.0}),
        )
    lines = [record.getMessage() for record in caplog.records]
    shown = "\n".join(line for line in lines if not re.match(r"node \d+ is worker", line)) + "\n"
    assert shown.startswith(SHOWN)
    end = shown[shown.index("Strategy execution finished in ") :]
    assert "Final results:" in end
    for line in str(result).splitlines():
        assert f"\t{line}\n" in end
    assert "ServerApp-side Evaluate Metrics:\n\t{ 0: {'norm': '1.0000e+00'}" in end


def test_warnings_of_the_strategy_are_shown_where_flowers_log_is(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    class Console(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    ours, flower = logging.getLogger("breakwater"), logging.getLogger("flwr")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(flower, "handlers", [Console()])
    for _ in range(2):
        strategy().start(nodes(), model(X0), 1)
    logging.getLogger("breakwater.strategy").warning("holding the model")
    assert shown.count("holding the model") == 1
    assert shown.count("[ROUND 1/1]") == 2


# --- evaluation by clients ----------------------------------------------------------------------------------------


def test_clients_evaluate_as_with_fedavg() -> None:
    grid, config = nodes(), ConfigRecord({"batch": 32})
    result = strategy(fraction_train=0.6).start(grid, model(X0), 3, evaluate_config=config, timeout=9.0)
    assert {k: dict(metrics) for k, metrics in result.evaluate_metrics_clientapp.items()} == {
        k: {"loss": 0.2} for k in (1, 2, 3)
    }
    assert dict(config) == {"batch": 32}, "the app's own record stays as it is"
    for k, batch in enumerate(evaluations(grid), 1):
        assert len(batch) == N
        assert len({id(message.content) for message in batch}) == 1, "the model is one object for all"
        for message in batch:
            assert dict(message.content.config_records["config"]) == {"batch": 32, "server-round": k}
            assert message.metadata.ttl == 9.0
    last = evaluations(grid)[-1][0].content.array_records["arrays"]
    assert vector(last).tobytes() == vector(result.arrays).tobytes()


def test_evaluation_changes_no_model() -> None:
    one = strategy(fraction_train=0.6, fraction_evaluate=0.0).start(nodes(), model(X0), 8)
    two = strategy(fraction_train=0.6).start(nodes(), model(X0), 8)
    assert vector(one.arrays).tobytes() == vector(two.arrays).tobytes()


@pytest.mark.parametrize(
    ("fraction", "byzantine", "asked"), [(0.2, 0, 1), (0.2, 1, 3), (0.6, 1, 3), (0.8, 1, 4), (0.2, 2, 5)]
)
def test_at_least_as_many_evaluate_as_the_median_needs(fraction: float, byzantine: int, asked: int) -> None:
    grid = nodes()
    result = strategy(byzantine=byzantine, fraction_evaluate=fraction).start(grid, model(X0), 6)
    batches = evaluations(grid)
    assert [len(batch) for batch in batches] == [asked] * 6
    assert len(result.evaluate_metrics_clientapp) == 6
    chosen = {tuple(message.metadata.dst_node_id for message in batch) for batch in batches}
    assert len(chosen) == 1 if asked == N else len(chosen) > 1


def test_nobody_is_asked_with_a_fraction_of_zero_and_rarely_with_every(caplog: pytest.LogCaptureFixture) -> None:
    grid = nodes()
    result = strategy(fraction_evaluate=0).start(grid, model(X0), 2, evaluate_config=ConfigRecord({"a": 1}))
    assert not evaluations(grid)
    assert not result.evaluate_metrics_clientapp
    assert "evaluate_config is not used" in caplog.text
    result = strategy(every=3).start(nodes(), model(X0), 7)
    assert list(result.evaluate_metrics_clientapp) == [3, 6, 7]


def test_flowers_loop_lets_clients_evaluate_too() -> None:
    grid, one = nodes(), strategy()
    ids = grid.push_messages(one.configure_train(1, model(X0), ConfigRecord(), grid))
    arrays, metrics = one.aggregate_train(1, grid.pull_messages(ids))
    assert dict(metrics or {}) == {"loss": 0.2}
    assert arrays is not None
    ids = grid.push_messages(one.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert dict(one.aggregate_evaluate(1, grid.pull_messages(ids)) or {}) == {"loss": 0.2}
    assert one.aggregate_evaluate(2, []) is None


BAD: dict[str, tuple[ClientApp | str, str]] = {
    "nan": (says({"loss": math.nan, "num-examples": 7}), "not finite: metric 'loss' is nan"),
    "infinity": (says({"loss": 1.0, "num-examples": math.inf}), "not finite: metric 'num-examples' is inf"),
    "no metrics": (says(None), "no metric records in the reply, expected one"),
    "another name": (says({"lo\nss": 1.0}), "other metrics: 'lo\\nss'; most clients have 'loss', 'num-examples'"),
    "one more": (
        says({"loss": 0.0, "num-examples": 7, "x": 1}),
        "other metrics: 'loss', 'num-examples', 'x'; most clients have 'loss', 'num-examples'",
    ),
    "a list": (
        says({"loss": [0.0, 1.0], "num-examples": 7}),
        "other metrics: 'loss' (2 numbers), 'num-examples'; most clients have 'loss', 'num-examples'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_metrics_that_are_none_are_rejected_and_the_round_goes_on(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    app, reason = BAD[kind]
    records: list[RoundRecord] = []
    result = strategy(byzantine=1, on_round=records.append).start(nodes({4: app}), model(X0), 3)
    for metrics in (result.train_metrics_clientapp, result.evaluate_metrics_clientapp):
        assert {k: dict(found) for k, found in metrics.items()} == {k: {"loss": pytest.approx(0.15)} for k in (1, 2, 3)}
    assert [record.accepted for record in records] == [[0, 1, 2, 3, 4]] * 3, "their updates count"
    for what in ("training", "evaluation"):
        said = f"round 1: metrics of worker 4 (node {SEATED[4]}) rejected ({what}): {reason}"
        assert [record.getMessage() for record in caplog.records].count(said) == 1, "once, and not in every round"


def test_a_client_that_fails_or_is_silent_costs_its_metrics(caplog: pytest.LogCaptureFixture) -> None:
    grid = nodes({0: says(by_seat, evaluates=False), 1: LOST})
    result = strategy(byzantine=1).start(grid, model(X0), 2)
    assert [dict(found) for found in result.evaluate_metrics_clientapp.values()] == [{"loss": 0.3}] * 2
    assert "worker 0 (node 30) rejected (evaluation): error: " in caplog.text
    assert "No evaluate function registered" in caplog.text


def test_an_app_that_cannot_evaluate_is_asked_once_and_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    grid = nodes(default=says(by_seat, evaluates=False))
    result = strategy().start(grid, model(X0), 4)
    assert len(evaluations(grid)) == 1
    assert not result.evaluate_metrics_clientapp
    assert vector(result.arrays).tobytes() == vector(strategy().start(nodes(), model(X0), 4).arrays).tobytes()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("\t└──> clients cannot evaluate and are not asked again: worker 0 (node 30): error: ")
    assert line.endswith("give the ClientApp an @app.evaluate function, or set fraction_evaluate=0")


def test_as_many_failures_as_may_be_byzantine_do_not_end_evaluation() -> None:
    late = {"n": 0}

    def cold(message: Message, context: Context) -> MetricRecord:
        if context.node_id == SEATED[2] and message.metadata.message_type == "evaluate":
            late["n"] += 1
            if late["n"] == 1:
                raise RuntimeError("no data yet")
        return by_seat(message, context)

    broken = says(by_seat, evaluates=False)
    grid = nodes({0: broken}, default=says(cold))
    result = strategy(byzantine=1, clients=N).start(grid, model(X0), 3)
    assert list(result.evaluate_metrics_clientapp) == [1, 2, 3]
    grid = nodes({0: broken, 1: broken, 3: LOST, 4: LOST})
    result = strategy(byzantine=2).start(grid, model(X0), 3)
    assert len(evaluations(grid)) == 3, "two of at most two Byzantine clients prove nothing"
    assert not result.evaluate_metrics_clientapp


def test_too_few_answers_are_not_aggregated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "flwr.breakwater"):
        result = strategy(fraction_train=0.4).start(nodes({0: LOST}), model(X0), 3)
    assert not result.evaluate_metrics_clientapp
    assert not result.train_metrics_clientapp
    few = "Metrics of 4 clients, of which 2 may be Byzantine, are not aggregated: 5 are needed"
    assert caplog.text.count(few) == 2, "once for training and once for evaluation"


def test_functions_of_the_users_own_aggregate_what_is_usable(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, str]] = []

    def largest(records: list[RecordDict], key: str) -> MetricRecord:
        seen.append((len(records), key))
        return MetricRecord({"largest": max(content.metric_records["metrics"]["loss"] for content in records)})

    liar = says({"loss": math.nan, "num-examples": 7})
    one = strategy(evaluate_metrics_aggr_fn=largest, train_metrics_aggr_fn=aggregate_metricrecords)
    result = one.start(nodes({0: liar}), model(X0), 1)
    assert seen == [(4, "num-examples")]
    assert dict(result.evaluate_metrics_clientapp[1]) == {"largest": 0.4}
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(0.25)

    other = strategy(evaluate_metrics_aggr_fn=lambda records, key: 1 / 0, train_metrics_aggr_fn=aggregate_metricrecords)
    result = other.start(nodes(default=says({"loss": 1.0})), model(X0), 2)
    assert not result.evaluate_metrics_clientapp
    assert (
        "evaluate_metrics_aggr_fn failed, so there is no aggregate: ZeroDivisionError: division by zero" in caplog.text
    )
    assert "train_metrics_aggr_fn failed, so there is no aggregate: KeyError: 'num-examples'" in caplog.text


def test_the_same_app_with_fedavg_reports_the_same_metrics() -> None:
    grid = nodes(default=says({"loss": 0.5, "num-examples": 7}))
    fedavg = FedAvg()
    ids = grid.push_messages(fedavg.configure_evaluate(1, model(X0), ConfigRecord(), grid))
    theirs = fedavg.aggregate_evaluate(1, grid.pull_messages(ids))
    ours = strategy().start(grid, model(X0), 1).evaluate_metrics_clientapp[1]
    assert theirs is not None
    assert dict(theirs) == pytest.approx(dict(ours))


# --- the median ---------------------------------------------------------------------------------------------------


def content(**metrics: Any) -> RecordDict:
    return RecordDict({"m": MetricRecord(metrics)})


finite = st.floats(-1e300, 1e300) | st.integers(-(2**53), 2**53)


@given(st.data(), st.integers(0, 3), st.integers(1, 5))
def test_liars_cannot_move_the_median_beyond_the_honest(data: st.DataObject, f: int, spare: int) -> None:
    honest = data.draw(st.lists(finite, min_size=f + spare, max_size=f + spare))
    lies = data.draw(st.lists(st.floats() | finite, min_size=f, max_size=f))
    claims = {i: content(loss=value) for i, value in enumerate([*honest, *lies])}
    usable, flaws = screened(claims)
    assert not flaws.keys() & set(range(len(honest)))
    if len(usable) > 2 * f:
        middle = median_metrics(list(usable.values()), "w")["loss"]
        assert isinstance(middle, float)
        assert min(honest) <= middle <= max(honest)


def test_lists_of_equal_length_have_a_median_for_each_of_their_numbers() -> None:
    records = [content(a=[1, 5], w=1), content(a=[2.0, 4.0], w=1), content(a=[9, 9], w=9)]
    assert dict(median_metrics(records, "w")) == {"a": [2.0, 5.0]}
    usable, flaws = screened({0: records[0], 1: records[1], 2: content(a=[1.0], w=1), 3: RecordDict({})})
    assert list(usable) == [0, 1]
    assert flaws == {
        2: "other metrics: 'a' (1 numbers), 'w'; most clients have 'a' (2 numbers), 'w'",
        3: "no metric records in the reply, expected one",
    }
    assert screened({}) == ({}, {})


# --- n is the number of nodes that are there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "f"),
    [({"byzantine": 1}, 1), ({"byzantine_fraction": 0.4}, 2), ({"byzantine_fraction": 0.39}, 1), ({"byzantine": 0}, 0)],
)
def test_n_is_the_number_of_nodes_at_round_1(options: dict[str, Any], f: int) -> None:
    one = RobustFedAvg(seed=1, join_timeout_s=0.05, fraction_train=0.6, compressor=PermK(), **options)
    result = one.start(nodes(), model(X0), 6)
    assert (one.clients, one.byzantine, one.method.n, one.method.f, one.method.cohort) == (N, f, N, f, 3)
    other = strategy(byzantine=f, fraction_train=0.6, compressor=PermK()).start(nodes(), model(X0), 6)
    assert vector(result.arrays).tobytes() == vector(other.arrays).tobytes()


def test_nodes_that_come_later_are_left_out_and_n_is_counted_at_each_start(caplog: pytest.LogCaptureFixture) -> None:
    grid, cohorts = nodes(), list[list[int]]()
    grid.offline = {SEATED[0], SEATED[4]}

    def joined(record: RoundRecord) -> None:
        cohorts.append(list(record.cohort))
        grid.offline = set()

    one = RobustFedAvg(byzantine=1, seed=1, join_timeout_s=0.05, on_round=joined)
    one.start(grid, model(X0), 3)
    assert (one.clients, cohorts) == (3, [[0, 1, 2]] * 3)
    why = "all 3 seats are held by nodes that are online; nodes that come after the start do not take part"
    assert f"node {SEATED[0]} is left out: {why}" in caplog.text
    one.start(grid, model(X0), 1)
    assert one.clients == N


def test_flowers_loop_counts_the_nodes_too() -> None:
    grid, one = nodes(), RobustFedAvg(byzantine_fraction=0.4, seed=1, join_timeout_s=0.05)
    messages = list(one.configure_train(1, model(X0), ConfigRecord(), grid))
    assert (len(messages), one.clients, one.byzantine) == (N, N, 2)


def test_fewer_nodes_than_must_be_available(caplog: pytest.LogCaptureFixture) -> None:
    grid = nodes()
    grid.offline = set(SEATED[:3])
    caplog.set_level(logging.INFO, "flwr.breakwater")
    for options, least in (({"byzantine": 1}, 3), ({"byzantine_fraction": 0.3, "min_available_nodes": 4}, 4)):
        with pytest.raises(NoClientsError, match=rf"^2 nodes came within 0.05 s, and {least} are needed \(min_avail"):
            RobustFedAvg(join_timeout_s=0.05, **options).start(grid, model(X0), 1)
        assert f"Waiting for nodes to connect: 2 connected (waiting for {least})." in caplog.text
    assert RobustFedAvg(byzantine_fraction=0.3, join_timeout_s=0.05).start(grid, model(X0), 1).arrays


def test_a_rule_that_cannot_defend_those_who_came() -> None:
    with pytest.raises(ConfigError, match="aggregator = krum: of 5 replies 2 may be Byzantine, and it tolerates 1"):
        RobustFedAvg(byzantine=2, aggregator=Krum(), join_timeout_s=0.05).start(nodes(), model(X0), 1)


def test_a_share_of_a_known_number() -> None:
    assert RobustFedAvg(100, byzantine_fraction=0.29).byzantine == 29
    assert RobustFedAvg(10, byzantine_fraction=np.float64(0.3)).byzantine == 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"byzantine": 3, "byzantine_fraction": 0.3},
            "byzantine, byzantine_fraction: both are given; give one of them",
        ),
        ({}, "byzantine, byzantine_fraction: neither is given; give one of them"),
        ({"byzantine_fraction": 0.5}, "byzantine_fraction = 0.5: must be at least 0 and below 0.5"),
        ({"byzantine_fraction": -0.1}, "byzantine_fraction = -0.1: must be at least 0"),
        ({"byzantine_fraction": math.nan}, "byzantine_fraction = nan: must be at least 0"),
        ({"byzantine": -1}, "byzantine = -1"),
        (
            {"byzantine": 2, "min_available_nodes": 4},
            r"min_available_nodes = 4: must be at least 5 \(2 byz",
        ),
        ({"byzantine_fraction": 0.1, "min_available_nodes": 0}, "min_available_nodes = 0: must be at least 1"),
        ({"byzantine": 1, "fraction_evaluate": 1.1}, "fraction_evaluate = 1.1: must be at least 0 and at most 1"),
    ],
)
def test_combinations_that_cannot_work(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^{reason}[^\n]*$"):
        RobustFedAvg(**options)


def test_types_of_arrays_are_as_given() -> None:
    result = RobustFedAvg(byzantine=1, join_timeout_s=0.05).start(nodes(), model(X0), 1)
    assert isinstance(result.arrays, ArrayRecord)
    assert list(result.arrays) == list(model(X0))
