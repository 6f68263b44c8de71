"""A Grid that is not ours: who is who is asked of the nodes, and what they claim is checked."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import app as client_app
from experiment.code import code_fingerprint
from experiment.opened import open_experiment
from link.invitation import TASK, WHO
from link.queried import QueriedGrid
from server.link import judge_of
from tests.local_grid import FIRST_NODE, LocalGrid

TEXT = """
[federation]
clients = 4
byzantine = 1
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 6
gamma = 0.2
p = 0.3
cohort = 2
batch = 8
alpha = 2.0
[attack]
kind = "ipm"
"""


def answers(*claims: tuple[object, str] | None) -> LocalGrid:
    """A grid whose nodes answer the roster's question with these (index, fingerprint), or with an error."""

    def answer(worker: int, message: Message) -> Iterator[Message]:
        claim = claims[worker]
        if claim is None:
            yield Message(Error(2, "no data here"), reply_to=message)
        else:
            record = ConfigRecord({"index": claim[0], "fingerprint": claim[1]})  # type: ignore[dict-item]
            yield Message(RecordDict({WHO: record}), reply_to=message)

    return LocalGrid(len(claims), answer)


def test_nodes_sit_where_they_say() -> None:
    mine = code_fingerprint()
    roster = QueriedGrid(answers((1, mine), (0, mine)), 2, mine, timeout_s=0.05)
    assert roster.nodes() == {0: FIRST_NODE + 1, 1: FIRST_NODE}
    assert roster.wait(2, timeout=0.0) == 2


def test_each_node_is_asked_once() -> None:
    grid = answers((0, "same"))
    roster = QueriedGrid(grid, 1, "same", timeout_s=0.05)
    roster.nodes()
    roster.nodes()
    assert len(grid.pushed) == 1


def test_a_node_that_does_not_answer_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = LocalGrid(1, lambda worker, message: ())
    roster = QueriedGrid(grid, 1, "same", timeout_s=0.05)
    assert roster.nodes() == {}
    roster.nodes()
    assert len(grid.pushed) == 1
    monkeypatch.setattr(QueriedGrid, "AGAIN_S", 0.0)
    late = QueriedGrid(grid, 1, "same", timeout_s=0.05)
    late.nodes()
    late.nodes()
    assert len(grid.pushed) == 3


def test_a_node_that_left_is_not_listed() -> None:
    grid = answers((0, "same"), (1, "same"))
    roster = QueriedGrid(grid, 2, "same", timeout_s=0.05)
    roster.nodes()
    grid.online.remove(0)
    assert roster.nodes() == {1: FIRST_NODE + 1}


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ((0, "same"), "claims seat 0, which node 100 holds: it must wait"),
        ((2, "same"), "claims seat 2: must be 0 .. 1"),
        (("x", "same"), "claims seat x: must be 0 .. 1"),
        ((1, "other"), "runs other code: unknown version (other), this server 0.1.0 (same)"),
        (None, "node 101: cannot take part: no data here"),
    ],
)
def test_a_false_claim_is_logged_and_left_out(
    claim: tuple[object, str] | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    roster = QueriedGrid(answers((0, "same"), claim), 2, "same", timeout_s=0.05)
    logger = logging.getLogger("breakwater.link")
    logger.addHandler(caplog.handler)
    try:
        assert roster.nodes() == {0: FIRST_NODE}
    finally:
        logger.removeHandler(caplog.handler)
    assert words in caplog.text


def test_the_next_claimant_takes_a_seat_whose_node_has_gone() -> None:
    """A SuperNode without a key comes back under another node id."""
    grid = answers((0, "same"), (0, "same"))
    roster = QueriedGrid(grid, 2, "same", timeout_s=0.05)
    assert roster.nodes() == {0: FIRST_NODE}
    grid.online.remove(0)
    assert roster.nodes() == {0: FIRST_NODE + 1}
    assert roster.name(0) == f"worker 0 (node {FIRST_NODE + 1})"
    grid.online.add(0)
    assert roster.nodes() == {0: FIRST_NODE}
    assert len(grid.pushed) == 1


def test_where_all_nodes_run_other_code_nobody_is_waited_for() -> None:
    roster = QueriedGrid(answers((0, "other"), (0, "other")), 2, "same", timeout_s=0.05)
    assert roster.wait(2, timeout=1e6) == 0
    assert roster.complaints().startswith(
        "2 of 2 nodes: runs other code: unknown version (other), this server 0.1.0 (same)"
    )


def test_nodes_of_another_app_are_told_by_what_flower_says_of_the_question() -> None:
    app_of_another = ClientApp()

    def answer(worker: int, message: Message) -> Iterator[Message]:
        try:
            yield app_of_another(message, Context(1, worker, {}, RecordDict(), {}))
        except Exception as error:  # as Flower reports it
            yield Message(Error(2, repr(error)), reply_to=message)

    roster = QueriedGrid(LocalGrid(3, answer), 3, "same", timeout_s=0.05)
    assert roster.wait(3, timeout=1e6) == 0
    assert roster.complaints().startswith("3 of 3 nodes: does not know what Breakwater asks: left out")


def test_one_node_with_other_code_is_no_reason_to_stop_waiting() -> None:
    roster = QueriedGrid(answers((0, "same"), (1, "other")), 2, "same", timeout_s=0.05)
    assert roster.wait(2, timeout=0.0) == 1
    assert "1 of 2 nodes: runs other code" in roster.complaints()


def test_who_does_not_answer_is_counted() -> None:
    roster = QueriedGrid(LocalGrid(2, lambda worker, message: ()), 2, "same", timeout_s=0.05)
    roster.nodes()
    assert roster.complaints() == "2 of 2 nodes did not answer"


def test_a_node_that_cannot_open_the_experiment_says_why_beside_its_fingerprint() -> None:
    context = Context(7, 8, {"partition-id": 0}, RecordDict(), {"config": "deploy/configs/none.toml"})
    question = LocalGrid(1, lambda worker, message: ())
    message = Message(RecordDict(), FIRST_NODE, f"query.{WHO}")
    question.push_messages([message])
    answer = client_app(message, context).content.config_records[WHO]
    assert answer["fingerprint"] == code_fingerprint()
    assert "no such file in the bundle" in str(answer["flaw"])
    roster = QueriedGrid(LocalGrid(1, lambda worker, asked: [client_app(asked, context)]), 1, code_fingerprint(), 1.0)
    assert roster.nodes() == {}
    assert 'cannot take part: run config: config = "deploy/configs/none.toml"' in roster.complaints()


def test_a_node_that_has_other_data_is_left_out_and_told_why(tmp_path: Path) -> None:
    for name, lines in (("mine", 30), ("other", 20)):
        (tmp_path / name).mkdir()
        rows = [f"{(-1) ** i} {1 + i % 3}:{1 + i}" for i in range(lines)]
        (tmp_path / name / "t").write_text("\n".join(rows), encoding="utf-8")
    text = (
        '[federation]\nclients = 2\n[task]\nkind = "logistic"\ndata = "t"\n'
        '[strategy]\nkind = "robust-sgd"\nrounds = 1\ngamma = 0.1\n'
    )
    path = tmp_path / "t.toml"
    path.write_text(text, encoding="utf-8")
    contexts = [
        Context(71, 72 + i, {"partition-id": i, "data": str(tmp_path / name)}, RecordDict(), {"config": str(path)})
        for i, name in enumerate(("mine", "other"))
    ]
    judge = judge_of(open_experiment(text, tmp_path / "mine", None))
    grid = LocalGrid(2, lambda worker, asked: [client_app(asked, contexts[worker])])
    roster = QueriedGrid(grid, 2, code_fingerprint(), 1.0, judge)
    assert list(roster.nodes()) == [0]
    assert "1 of 2 nodes: cannot take part: the training data differ: 20 rows at the client, 30" in roster.complaints()


@pytest.mark.parametrize("said", ["", "{", "[]", "[" * 4000, '{"dim": 3}', '{"dim": ["x"]}', "\x00" * 9000, 7, b"x"])
def test_what_a_node_says_of_its_task_disturbs_nobody(said: object) -> None:
    record = ConfigRecord({"index": 0, "fingerprint": "same", TASK: said})  # type: ignore[dict-item]
    grid = LocalGrid(1, lambda worker, asked: [Message(RecordDict({WHO: record}), reply_to=asked)])
    roster = QueriedGrid(grid, 1, "same", 1.0, judge_of(open_experiment(TEXT, None, None)))
    assert list(roster.nodes()) == [0]


def test_other_code_is_seated_where_the_run_allows_it_and_its_report_kept() -> None:
    grid = answers((0, "other"), (1, "same"))
    assert list(QueriedGrid(grid, 2, "same", timeout_s=0.05).nodes()) == [1]
    lenient = QueriedGrid(answers((0, "other"), (1, "same")), 2, "same", timeout_s=0.05, same_code=False)
    assert list(lenient.nodes()) == [0, 1]
    assert lenient.reports().keys() == {f"node {FIRST_NODE}", f"node {FIRST_NODE + 1}"}
