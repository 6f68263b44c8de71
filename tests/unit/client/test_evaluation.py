"""Clients that measure the model: who is asked, whose answers count, and that the model is the same without them."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict

from client.answers import client_app, measure
from client.worker import HonestWorker
from experiment.config import parse
from experiment.opened import Experiment, open_config
from foundation.errors import ConfigError, WireError
from link import claims, codec, flwr_compat
from strategies.claims import NO_EVALUATION, Claims
from strategies.method import Vector
from strategies.strategy import RobustStrategy, RoundRecord
from tests.local_grid import FIRST_NODE, LocalGrid, federation
from tests.packages import ROOT

TEXT = """
[federation]
clients = 7
byzantine = 2
seed = 3
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.3
p = 0.3
cohort = 2
batch = 8
alpha = 2.0
[attack]
kind = "ipm"
[evaluation]
every = 2
by = "clients"
"""


def opened(*changes: str, text: str = TEXT) -> Experiment:
    return open_config(parse(text, changes))


def trained(
    experiment: Experiment, change: Callable[[LocalGrid, RobustStrategy], None] | None = None, *, resident: bool = True
) -> tuple[list[RoundRecord], Vector, LocalGrid]:
    """Run an experiment; return its rounds, its model and its grid."""
    grid, strategy = federation(experiment, resident=resident)
    records: list[RoundRecord] = []
    strategy.on_round = records.append
    if change is not None:
        change(grid, strategy)
    x0 = codec.to_arrays(experiment.problem.initial())
    strategy.start(grid, x0, num_rounds=experiment.config.strategy.rounds)
    return records, strategy.state.x, grid


def evaluations(records: list[RoundRecord]) -> list[Claims]:
    return [record.claims for record in records if record.claims is not None]


def answering(grid: LocalGrid, answers: dict[int, Any]) -> None:
    """Let workers answer evaluations so: with contents or errors, one or several; [] is silence."""
    inner = grid._answer

    def answer(worker: int, message: Message) -> Iterator[Message]:
        if message.metadata.message_type != "evaluate" or worker not in answers:
            yield from inner(worker, message)
            return
        given = answers[worker]
        for each in given if isinstance(given, list) else [given]:
            yield Message(each, reply_to=message)

    grid._answer = answer


def metrics(**values: Any) -> RecordDict:
    return RecordDict({"measures": MetricRecord(values)})


@pytest.mark.parametrize("resident", [True, False])
def test_all_clients_are_asked_and_the_median_is_the_figure(resident: bool) -> None:
    """Two of seven are sampled in most rounds; all seven measure the model, each on its own part."""
    experiment = opened()
    records, _, grid = trained(experiment, resident=resident)
    asked = [batch for batch in grid.pushed if batch[0].metadata.message_type == "evaluate"]
    assert [len(batch) for batch in asked] == [7, 7, 7]
    assert [record.round for record in records if record.claims] == [2, 4, 6]
    last = records[-1]
    assert last.claims is not None
    assert last.measured_by == "clients"
    assert last.evaluation is None
    assert list(last.claims.clients) == [f"client-{i}" for i in range(7)]
    problem: Any = experiment.problem
    losses = sorted(claim.loss for claim in last.claims.clients.values())
    assert last.headline is not None
    assert last.headline.loss == losses[3]
    assert {claim.samples for claim in last.claims.clients.values()} <= {problem.kept_back(i) for i in range(7)}


@pytest.mark.parametrize("by", ["clients", "both", "none"])
def test_who_measures_changes_no_bit_of_the_model(by: str) -> None:
    def known(records: list[RoundRecord]) -> list[Any]:
        return [replace(record, claims=None, evaluation=None, round_s=0.0, note="") for record in records]

    records, x, _ = trained(opened("evaluation.by=server"))
    others, same, _ = trained(opened(f"evaluation.by={by}"))
    assert np.array_equal(x, same)
    assert [(r.cohort, r.accepted, r.rejected, r.step_norm) for r in known(records)] == [
        (r.cohort, r.accepted, r.rejected, r.step_norm) for r in known(others)
    ]
    assert {record.measured_by for record in others[1::2]} == {{"both": "server"}.get(by, by)}


def test_both_keeps_the_servers_measures_and_the_claims_apart() -> None:
    records, _, _ = trained(opened("evaluation.by=both"))
    last = records[-1]
    assert last.claims is not None
    assert last.evaluation is not None
    assert last.headline == last.evaluation
    assert last.claims.evaluation != last.evaluation


LIES: list[Any] = [
    metrics(loss=1e300, accuracy=0.0, samples=1),
    metrics(loss=0.0, accuracy=1.0, samples=10**9),
]


@pytest.mark.parametrize("lies", [LIES, LIES[::-1], [LIES[0]] * 2, [LIES[1]] * 2])
def test_lies_of_f_clients_leave_the_figures_within_what_honest_ones_say(lies: list[RecordDict]) -> None:
    records, _, _ = trained(opened(), lambda grid, _: answering(grid, {5: lies[0], 6: lies[1]}))
    for found in evaluations(records):
        honest = [found.clients[f"client-{i}"] for i in range(5)]
        assert found.loss is not None
        assert found.accuracy is not None
        assert min(c.loss for c in honest) <= found.loss.median <= max(c.loss for c in honest)
        shares = [c.accuracy or 0.0 for c in honest]
        assert min(shares) <= found.accuracy.median <= max(shares)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ([], "silent: no reply within 30 s"),
        ([metrics(loss=1.0)] * 2, "duplicate: more than one reply"),
        (RecordDict(), "undecodable: 0 records, expected one"),
        (RecordDict({"measures": ConfigRecord({"loss": 1.0})}), "undecodable: 1 records, expected one with metrics"),
        (RecordDict({"metrics": MetricRecord({"loss": 1.0})}), "undecodable: 1 records, expected one"),
        (metrics(), "wrong names: none; expected loss"),
        (metrics(loss=1.0, evil=2.0), "wrong names: 'loss', 'evil'"),
        (metrics(loss=math.nan), "not finite: loss is nan"),
        (metrics(loss=-1.0), "out of bounds: loss = -1"),
        (metrics(loss=1.0, accuracy=1.5), "out of bounds: accuracy = 1.5"),
        (metrics(loss=1.0, samples=2**70), "out of bounds: samples"),
        (metrics(loss=2**70), "wrong type: loss is of type int"),
        (metrics(loss=[1.0, 2.0]), "wrong type: loss is of type list"),
        (Error(flwr_compat.APP_RAISED, "boom\x1b[31m\nline"), "error: boom"),
    ],
)
def test_a_hostile_answer_costs_its_sender_its_voice_and_nothing_else(
    answer: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, model, _ = trained(opened())
    with caplog.at_level(logging.WARNING):
        records, x, _ = trained(opened(), lambda grid, _: answering(grid, {0: answer}))
    assert np.array_equal(x, model)
    assert [record.rejected for record in records] == [[]] * 6
    for found in evaluations(records):
        assert list(found.missing) == ["client-0"]
        assert found.missing["client-0"].startswith(reason)
        assert found.missing["client-0"].isprintable()
        assert (found.answers, found.shortage) == (6, "")
    told = [r.message for r in caplog.records if "no answer of client-0 counts" in r.message]
    assert len(told) == 1, "a warning is for the first time alone"


def test_too_few_answers_give_no_figure_and_one_note(caplog: pytest.LogCaptureFixture) -> None:
    silent: dict[int, Any] = {0: [], 1: [], 2: []}
    records, x, _ = trained(opened(), lambda grid, _: answering(grid, silent))
    assert [record.measured_by for record in records] == ["none"] * 6
    notes = [record.note for record in records if "no figure" in record.note]
    assert notes == ["no figure: 4 usable answers, and up to 2 may be lies; at least 5 are needed (2 byzantine + 1)"]
    assert len([r for r in caplog.records if "no figure" in r.message and r.levelno == logging.WARNING]) == 1
    assert np.array_equal(x, trained(opened())[1])


def test_a_client_that_joins_late_is_heard_and_one_that_left_is_not_waited_for() -> None:
    def come_and_go(grid: LocalGrid, strategy: RobustStrategy) -> None:
        grid.online = {0, 1, 2, 4, 5, 6}
        keep = strategy.on_round
        assert keep is not None

        def on_round(record: RoundRecord) -> None:
            keep(record)
            grid.online |= {3}
            if record.round == 4:
                grid.online -= {0}

        strategy.on_round = on_round

    first, second, third = evaluations(trained(opened(), come_and_go)[0])
    assert [each.answers for each in (first, second, third)] == [7, 7, 6]
    assert "client-3" in first.clients
    assert "client-0" not in {**third.clients, **third.missing}


def test_the_initial_model_and_any_other_can_be_measured_before_a_round() -> None:
    experiment = opened()
    grid, strategy = federation(experiment)
    grid.measured = iter([(10, 100), (13, 107)])
    found = strategy.ask_clients(grid, 0, experiment.problem.initial())
    assert found is not None
    assert (found.answers, found.bytes_up, found.bytes_down) == (7, 3, 7)
    assert strategy.state is None
    first = found.clients["client-0"]
    assert first.loss == pytest.approx(2.3, abs=0.1)
    assert first.samples == 206


def test_flowers_own_loop_asks_clients_and_gets_the_medians() -> None:
    experiment = opened()
    grid, strategy = federation(experiment)
    arrays = codec.to_arrays(experiment.problem.initial())
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    found = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert found is not None
    assert set(found) == {"loss", "accuracy"}
    assert strategy.aggregate_evaluate(1, []) is None


def test_a_count_is_neither_sent_nor_taken_where_it_is_not_declared() -> None:
    changes = ("federation.declare_samples=false",)
    records, _, _ = trained(opened(*changes), lambda grid, _: answering(grid, {0: metrics(loss=1.0, samples=9)}))
    for found in evaluations(records):
        assert {claim.samples for claim in found.clients.values()} == {None}
        assert found.missing == {"client-0": "wrong names: 'loss', 'samples'; expected loss, of accuracy, loss"}


def test_an_owner_may_decline_and_that_is_no_rejection(caplog: pytest.LogCaptureFixture) -> None:
    experiment = opened()
    worker = HonestWorker(experiment, 0)

    def decline(grid: LocalGrid, strategy: RobustStrategy) -> None:
        inner = grid._answer

        def answer(i: int, message: Message) -> Iterator[Message]:
            if i == 0 and message.metadata.message_type == "evaluate":
                yield measure(message, lambda: worker, evaluates=False)
            else:
                yield from inner(i, message)

        grid._answer = answer

    with caplog.at_level(logging.WARNING):
        records, _, _ = trained(experiment, decline)
    assert [found.missing for found in evaluations(records)] == [{"client-0": NO_EVALUATION}] * 3
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert client_app(worker, evaluates=False) is not None


def test_an_answer_for_another_node_is_left_out() -> None:
    """Worker 6 answers what worker 0 was asked, in its own name: worker 0 is still heard once."""
    experiment = opened()
    grid, strategy = federation(experiment)
    arrays = codec.to_arrays(experiment.problem.initial())
    messages = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    replies = grid.send_and_receive(messages)
    forged = Message(metrics(loss=0.0, accuracy=1.0), reply_to=messages[0])
    forged.metadata.__dict__["_src_node_id"] = FIRST_NODE + 6
    found = strategy._claims_of(1, [forged, *replies])
    assert found.answers == 7
    assert found.clients["client-0"].loss > 0


LIBSVM = "".join(f"{(-1) ** i} 1:{i % 5} 2:{i % 3}\n" for i in range(40))
TASKS = {
    "digits": ["task.partition=label"],
    "logistic": ["task.kind=logistic", "task.data=few", "task.partition=iid"],
    "torch": ["task.kind=custom", "task.path=my_task.py:TwoMoons"],
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_worker_measures_its_own_part_of_shared_data(kind: str, tmp_path: Path) -> None:
    (tmp_path / "few").write_text(LIBSVM, encoding="utf-8")
    experiment = open_config(parse(TEXT, TASKS[kind]), tmp_path, ROOT / "examples")
    problem: Any = experiment.problem
    x = (problem.initial() + 0.01).astype(problem.dtype)
    parts = [problem.measure(i, x) for i in range(7)]
    assert np.mean([part.loss for part in parts[:5]]) == pytest.approx(problem.evaluate(x).loss, rel=1e-5)
    assert sum(problem.kept_back(i) for i in range(7)) == len(problem.training_data()[-1])
    assert all(0 <= part.accuracy <= 1 for part in parts)
    assert len({part.loss for part in parts}) > 1


def test_the_model_to_measure_arrives_as_it_was_sent() -> None:
    x = np.array([1.5, -0.0, 3e-40], np.float32)
    content = claims.write_evaluation(3, codec.to_arrays(x))
    assert claims.read_evaluation(content).tobytes() == x.tobytes()
    with pytest.raises(WireError, match="the instruction has no"):
        claims.read_evaluation(RecordDict())


def test_a_task_that_cannot_measure_for_a_client_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "class Mine:\n"
        "    def load(self, setting): return Problem()\n"
        "class Problem:\n"
        "    dim, dtype, samples, smoothness, optimum = 2, np.dtype('float64'), 5, None, None\n"
        "    def initial(self): return np.zeros(2)\n"
        "    def oracle(self, worker, *, flipped=False): raise NotImplementedError\n"
        "    def evaluate(self, x): raise NotImplementedError\n"
    )
    text = TEXT.replace('kind = "digits"\nmodel = "softmax"', 'kind = "custom"\npath = "mine.py:Mine"')
    with pytest.raises(ConfigError) as refused:
        open_config(parse(text), config_dir=tmp_path)
    assert str(refused.value) == (
        '[evaluation] by = "clients": the task has no measure and no kept_back; '
        'add them (docs/tasks.md), or use "server" or "none"'
    )


def test_running_statistics_travel_beside_the_model_and_only_as_finite_numbers() -> None:
    x, stats = np.arange(3.0, dtype=np.float32), np.array([0.5, 1.0])
    asked = claims.WithNormStats(lambda model: stats * model[1]).write_evaluation(3, codec.to_arrays(x))
    assert claims.read_evaluation(asked).tobytes() == x.tobytes()
    found = claims.read_norm_stats(asked)
    assert found is not None
    assert found.tobytes() == stats.tobytes()
    plain = claims.WithNormStats(lambda _: None).write_evaluation(3, codec.to_arrays(x))
    assert list(plain) == list(claims.write_evaluation(3, codec.to_arrays(x)))
    assert claims.read_norm_stats(plain) is None
    for wrong in (np.array([np.nan]), stats.astype(np.float32)):
        with pytest.raises(WireError, match="running statistics"):
            claims.read_norm_stats(claims.with_norm_stats(RecordDict(), wrong))
