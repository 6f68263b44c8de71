"""Runs whose model clients measure, over the link, in one process and on a Grid of Flower's: the same figures, the same
model, and hostile answers over the wire that cost their senders their voice.
"""

import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client.answers import client_app
from client.app import app as node_app
from client.worker import HonestWorker
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.code import Code, code_fingerprint
from experiment.config import parse
from experiment.opened import Experiment, open_config
from foundation.errors import ConfigError, Silent
from link import flwr_compat
from link.node import Prepared, join
from link.wire import Welcome
from server.app import app as server_app
from server.link import open_link
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.reader import read_rounds
from server.run_folder.writer import RunFolder
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.saved import x_of

TEXT = """
[federation]
clients = 5
byzantine = 0
seed = 3
deadline_s = 20
heartbeat_s = 2
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 4
gamma = 0.3
p = 0.3
cohort = 2
batch = 8
alpha = 2.0
[evaluation]
every = 2
by = "clients"
"""
QUIET = Monitoring(quiet=True, pictures=False, silent=True)
NAMES = [f"client-{i}" for i in range(5)]

Answer = Callable[[Message], Message]


def metrics(**values: Any) -> RecordDict:
    return RecordDict({"measures": MetricRecord(values)})


def with_answer(worker: HonestWorker, answer: RecordDict | Error) -> ClientApp:
    """Return a client that trains honestly and answers evaluations so."""
    honest, app = client_app(worker), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return honest(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(answer, reply_to=message)

    return app


def over_the_link(experiment: Experiment, out: Path, answers: dict[int, RecordDict | Error] = {}) -> None:  # noqa: B006
    """Run over real streams; the clients are threads of this process."""

    def prepare(welcome: Welcome) -> Prepared:
        worker, i = HonestWorker(experiment, welcome.worker), welcome.worker
        app = with_answer(worker, answers[i]) if i in answers else client_app(worker)
        context = Context(
            run_id=welcome.run_id, node_id=welcome.node_id, node_config={}, state=RecordDict(), run_config={}
        )
        report = Code.here(experiment.config).added_to(experiment.identity.written())
        return Prepared(app, context, report)

    grid = open_link(experiment, 7, None)
    address = grid.listen("127.0.0.1:0")
    joined = partial(join, address, prepare=prepare, fingerprint=code_fingerprint())
    clients = [threading.Thread(target=joined, args=(name,), kwargs={"worker": i}) for i, name in enumerate(NAMES)]
    try:
        for client in clients:
            client.start()
        with RunFolder(out) as folder:
            run(experiment, folder, grid, QUIET, incarnation=1)
    finally:
        grid.close("over")
        for client in clients:
            client.join(30)


def on_nodes(text: str, folder: Path, **run_config: str) -> None:
    """Run the ServerApp over nodes that run the ClientApp message by message."""
    config = folder / "config.toml"
    config.write_text(text, encoding="utf-8")
    named: dict[str, str | float | bool] = {"config": str(config)}
    contexts = [Context(1, FIRST_NODE + i, {"partition-id": i}, RecordDict(), named) for i in range(5)]

    def answer(worker: int, message: Message) -> Iterator[Message]:
        try:
            yield node_app(message, contexts[worker])
        except Silent as error:
            yield Message(Error(flwr_compat.APP_RAISED, str(error)), reply_to=message)

    grid = LocalGrid(5, answer)
    server_app(grid, Context(grid.run_id, 1, {}, RecordDict(), {**named, "quiet": True, **run_config}))


def summary_of(out: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return summary


def figures(out: Path) -> list[Any]:
    """Return what was claimed, by round: without names, which differ between ways to run."""
    found = [record.claims for record in read_rounds(out) if record.claims is not None]
    return [(each.loss, each.accuracy, list(each.clients.values()), list(each.missing.values())) for each in found]


def test_all_ways_to_run_give_the_same_claims_and_the_model_of_a_run_that_the_server_measures(tmp_path: Path) -> None:
    config = parse(TEXT)
    over_the_link(open_config(config), tmp_path / "link")
    run_in_process(LocalOptions(config=config, out=tmp_path / "process", monitoring=QUIET))
    on_nodes(TEXT, tmp_path, out=str(tmp_path / "nodes"))
    served = parse(TEXT, {"evaluation.by": "server"})
    run_in_process(LocalOptions(config=served, out=tmp_path / "server", monitoring=QUIET))

    outs = [tmp_path / name for name in ("link", "process", "nodes")]
    model = x_of(tmp_path / "server")
    for out in outs:
        assert np.array_equal(x_of(out), model)
        assert figures(out) == figures(outs[0])
        summary = summary_of(out)
        last = read_rounds(out)[-1].headline
        assert last is not None
        assert (summary["measured_by"], summary["loss"]) == ("clients", last.loss)
        assert summary["start"]["loss"] == pytest.approx(2.3, abs=0.1)
        assert summary["claims"]["answers"] == 5
    assert len(figures(outs[0])) == 2
    assert summary_of(tmp_path / "server")["measured_by"] == "server"
    for out in outs[:2]:  # bytes of evaluations are counted apart from those of rounds
        took = summary_of(out)["evaluation_bytes"]
        assert 3 * 5 * 4 * 650 < took["down"] < 3 * 5 * (4 * 650 + 120)
        assert 0 < took["up"] < 3 * 5 * 100
    rounds = [record.bytes_up for record in read_rounds(tmp_path / "process")]
    assert rounds == [record.bytes_up for record in read_rounds(tmp_path / "server")]


LONG = RecordDict({"measures": ArrayRecord({"loss": Array("uint8", (9000,), "raw", bytes(9000))})})
HOSTILE: list[tuple[RecordDict | Error, str]] = [
    (metrics(loss=-1.0, accuracy=0.5), "out of bounds: loss"),
    (metrics(loss=float("nan")), "not finite: loss is nan"),
    (metrics(loss=2**63), "wrong type: loss is of type int"),
    (metrics(loss=0.5, samples=2**64 - 1), "out of bounds: samples"),
    (RecordDict({"measures": ConfigRecord({"loss": "low", "accuracy": True})}), "undecodable: 1 records, expected one"),
    (RecordDict({"measures": MetricRecord({"x" * 200: 1.0})}), "wrong names: 'xxx"),
    (LONG, "oversize: "),
    (Error(flwr_compat.APP_RAISED, "declined: evaluation"), "declined: evaluation"),
    (Error(flwr_compat.APP_RAISED, "a value of a patient\n"), "error: a value of a patient"),
]


def test_hostile_answers_over_the_wire_cost_their_senders_their_voice(tmp_path: Path) -> None:
    """Two of five clients at a time, in one short run for each two of the answers."""
    model = None
    for at in range(0, len(HOSTILE), 2):
        answers = {3 + i: answer for i, (answer, _) in enumerate(HOSTILE[at : at + 2])}
        experiment = open_config(parse(TEXT, {"federation.byzantine": 1}))
        out = tmp_path / str(at)
        over_the_link(experiment, out, answers)
        assert summary_of(out)["rejected"] == {}
        model = x_of(out) if model is None else model
        assert np.array_equal(x_of(out), model)
        for record in read_rounds(out)[1::2]:
            assert record.claims is not None
            assert record.measured_by == "clients"
            for i, (_, reason) in enumerate(HOSTILE[at : at + 2]):
                assert record.claims.missing[NAMES[3 + i]].startswith(reason)


def test_a_run_that_nobody_measures_ends_well_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(TEXT, {"evaluation.by": "none"})
    run_in_process(LocalOptions(config=config, out=tmp_path / "run", monitoring=Monitoring()))
    summary = summary_of(tmp_path / "run")
    assert [summary[key] for key in ("status", "loss", "accuracy", "measured_by", "start")] == [
        "finished", None, None, "none", None
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert "round 4/4" in told
    assert "loss" not in told
    assert "No model was measured" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_a_server_that_is_to_measure_and_has_no_test_data_is_refused(tmp_path: Path) -> None:
    class Blind(type(open_config(parse(TEXT)).problem)):  # type: ignore[misc]  # the class of the loaded task
        has_test_data = False

    experiment = open_config(parse(TEXT, {"evaluation.by": "both"}))
    experiment.problem.__class__ = Blind
    with RunFolder(tmp_path / "run") as folder, pytest.raises(ConfigError) as refused:
        run(experiment, folder, LocalGrid(5, lambda worker, message: []), QUIET)
    assert str(refused.value) == (
        '[evaluation] by = "both": the server has no test data; give it a test set (--data), or use "clients" or "none"'
    )


def test_a_resumed_run_has_its_model_measured_again_before_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.run.write_report", lambda out: None)  # which takes most of the time
    monkeypatch.setattr("server.run.draw", lambda runs, path, title: None)

    def nodes(rounds: int, **run_config: str) -> None:
        on_nodes(TEXT.replace("rounds = 4", f"rounds = {rounds}"), tmp_path, **run_config)

    nodes(4, out=str(tmp_path / "whole"))
    out = tmp_path / "parts"
    nodes(2, out=str(out))
    took = summary_of(out)["evaluation_bytes"]
    nodes(4, resume=str(out))
    assert np.array_equal(x_of(out), x_of(tmp_path / "whole"))
    assert figures(out) == figures(tmp_path / "whole")
    whole, parts = summary_of(tmp_path / "whole"), summary_of(out)
    assert {key: parts[key] for key in ("loss", "accuracy", "start", "measured_by", "claims")} == {
        key: whole[key] for key in ("loss", "accuracy", "start", "measured_by", "claims")
    }
    assert took["down"] < parts["evaluation_bytes"]["down"]
