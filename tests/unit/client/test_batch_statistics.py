"""Clients that answer statistics of their batches: who answers, on the link and on Flower, and what a dry run shows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

pytest.importorskip("torch")

from client import app
from client.answers import client_app
from client.coalition import Coalition, CoalitionMember
from client.dry_run import dry_run
from client.party import Limits
from client.preparation import PreparationOptions, agree_on
from client.worker import HonestWorker, Worker
from experiment.config import load, parse
from experiment.opened import Experiment, open_config
from foundation.errors import Refused
from link import batch_statistics, claims, codec
from link.flwr_compat import instruction
from strategies.batch_statistics import QUESTION
from strategies.claims import Claim
from tests.unit.server.test_norm_stats import study


def shared(place: Path, source: str = "aggregate", **changes: Any) -> Experiment:
    config = study(place, partition="iid")
    changed = {"task.norm_stats": source, **changes}
    return open_config(load(config, changed), place / "server", place)


def asked(content: RecordDict, kind: str = QUESTION) -> Any:
    return instruction(content, run_id=1, node_id=2, message_id="7", message_type=kind, group_id="3", ttl_s=9.0)


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def workers(experiment: Experiment) -> list[Worker]:
    assert experiment.config.attack is not None
    return [HonestWorker(experiment, 0), CoalitionMember(Coalition(experiment, experiment.config.attack), 3)]


def test_honest_workers_and_attackers_answer_what_their_data_give_on_the_link_and_on_flower(tmp_path: Path) -> None:
    experiment = shared(tmp_path, **{"attack.kind": "ipm"})
    problem: Any = experiment.problem
    x = problem.initial()
    question = batch_statistics.write_question(3, codec.to_arrays(x))
    for worker in workers(experiment):
        expected = problem.batch_statistics(worker.index, x, 3)
        for answer in (client_app(worker), app._visited(worker)):
            found = batch_statistics.read_answer(answer(asked(question), context()), problem.variances)
            assert np.array_equal(found, expected)  # type: ignore[arg-type]  # no refusal
    assert app.app(asked(question), context()).has_error()  # it knows the question, and this node has no config


def test_a_task_whose_server_has_training_data_answers_none(tmp_path: Path) -> None:
    experiment = shared(tmp_path, "reference")
    content = batch_statistics.write_question(3, codec.to_arrays(experiment.problem.initial()))
    reply = client_app(HonestWorker(experiment, 0))(asked(content), context())
    assert "no running statistics that clients answer" in str(reply.error.reason)


def test_a_model_is_measured_with_the_statistics_beside_it(tmp_path: Path) -> None:
    experiment = shared(tmp_path)
    problem: Any = experiment.problem
    x, stats = problem.initial(), np.arange(1.0, 9.0)
    codec_of = claims.WithNormStats(lambda _: stats)
    content = codec_of.write_evaluation(3, codec.to_arrays(x))
    app_of_0 = client_app(HonestWorker(experiment, 0))
    claim = claims.read_claim(app_of_0(asked(content, "evaluate"), context()), declared=True)
    problem.set_norm_stats(stats)
    assert isinstance(claim, Claim)
    assert claim.loss == problem.measure(0, x).loss
    problem.set_norm_stats(None)
    assert claim.loss != problem.measure(0, x).loss


@pytest.mark.parametrize(
    ("mine", "servers", "said"),
    [
        (None, "aggregate", ""),
        (None, "reference", ""),
        ("aggregate", "aggregate", ""),
        ("aggregate", None, ""),  # of a bundle, as it was written
        ("reference", "aggregate", "the server has 'aggregate', the file given has 'reference'"),
        (None, "local", "the server has 'local', the file given has None"),
    ],
)
def test_an_owner_may_leave_the_source_to_the_server_or_fix_it(
    tmp_path: Path, mine: str | None, servers: str | None, said: str
) -> None:
    text = study(tmp_path).read_text()
    own, other = (
        parse(text, {"evaluation.by": "clients"} | ({} if source is None else {"task.norm_stats": source}))
        for source in (mine, servers)
    )
    if not said:
        agree_on(own, other)
        return
    with pytest.raises(Refused, match=rf"\[task\] norm_stats: {said}"):
        agree_on(own, other)


@pytest.mark.parametrize(
    ("source", "limits", "line"),
    [
        (
            None,
            Limits(),
            "means and variances, over batches of 8 of its samples: 8 numbers, 64 bytes, each time that the server"
            " measures or saves a model, unless it has training data of its own",
        ),
        (None, Limits(statistics=False), "declined: statistics"),
        ("reference", Limits(), 'nothing: [task] norm_stats = "reference"'),
    ],
)
def test_a_dry_run_lists_the_statistics_that_would_leave(
    tmp_path: Path, source: str | None, limits: Limits, line: str
) -> None:
    config = study(tmp_path)
    if source is not None:
        own = f'partition = "own"\nnorm_stats = "{source}"'
        config.write_text(config.read_text().replace('partition = "own"', own))
    options = PreparationOptions(config=config, config_dir=tmp_path, data=tmp_path / "parties" / "p1", limits=limits)
    assert f"{'batch norm':12} {line}" in list(dry_run(options))
