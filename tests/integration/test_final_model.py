"""The final model at every party: on all ways to run, whoever was never sampled, and whatever clients answer to it."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict

from client.final_model import ModelFile
from client.party import FAILED_TEXT, PartyApp
from client.preparation import PartyPreparation, PreparationOptions
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.agreement import Agreement
from experiment.config import load
from experiment.opened import Experiment, open_config
from link import codec
from link.flwr_compat import instruction
from link.invitation import MODEL
from server.final_model import send_model
from strategies.method import AGREEMENT
from tests.integration.test_own_nodes import SILENT, Nodes, through_flower
from tests.local_grid import LocalGrid
from tests.parties import federation


def test_nodes_of_a_flower_deployment_leave_the_model_where_their_node_config_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = federation(tmp_path, f=0)
    path.write_text(path.read_text().replace("rounds = 6", "rounds = 1"))
    through_flower(path, tmp_path / "out", Nodes(path, model=str(tmp_path / "mine.safetensors")), monkeypatch)
    assert (tmp_path / "mine.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_in_one_process_all_clients_take_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = federation(tmp_path, f=0)
    options = LocalOptions(config=load(path), out=tmp_path / "one", config_dir=tmp_path, monitoring=SILENT)
    with caplog.at_level(logging.INFO, "breakwater.server"):
        run_in_process(replace(options, data=tmp_path / "parties", server_data=tmp_path / "server"))
    assert "4 of 4 connected clients took the final model" in caplog.text


class Party:
    """A client with own data, called directly.

    Args:
        place: where its federation is.
    """

    def __init__(self, place: Path) -> None:
        path = federation(place, f=0)
        self.file = ModelFile(place / "mine.safetensors")
        folder = next(iter(sorted((place / "parties").iterdir())))
        options = PreparationOptions(config=path, config_dir=place, data=folder, model=self.file)
        party = PartyPreparation(load(path), options)
        self.problem = party.experiment.problem
        self.app: PartyApp = party.app(0, lambda worker: lambda message, context: message)
        self.context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})

    def send(self, content: RecordDict) -> Message:
        """Send the content as the final model; return the answer."""
        message = instruction(
            content, run_id=1, node_id=2, message_id="1", message_type=f"query.{MODEL}", group_id="", ttl_s=9.0
        )
        return self.app(message, self.context)


AGREED = Agreement(samples=10).record()


def test_a_client_that_was_never_sampled_gets_the_agreement_with_the_model(tmp_path: Path) -> None:
    party = Party(tmp_path)
    content = RecordDict({MODEL: codec.to_arrays(party.problem.initial())})
    assert str(party.send(content).error.reason).startswith("unprepared: ")
    assert not party.file.written
    assert not party.send(RecordDict({**content, AGREEMENT: AGREED})).has_error()
    party.file.check()
    assert party.file.path.exists()


@pytest.mark.parametrize("flaw", ["missing", "short", "type", "nan", "record"])
def test_what_is_no_model_is_not_kept(tmp_path: Path, flaw: str) -> None:
    party = Party(tmp_path)
    x = party.problem.initial()
    other = np.float64 if x.dtype == np.float32 else np.float32
    records: dict[str, ArrayRecord | ConfigRecord] = {
        "missing": ArrayRecord(),
        "short": codec.to_arrays(x[1:]),
        "type": codec.to_arrays(x.astype(other)),
        "nan": codec.to_arrays(np.full_like(x, np.nan)),
        "record": ConfigRecord({"x": 1}),
    }
    content = RecordDict({AGREEMENT: AGREED})
    content[MODEL] = records[flaw]
    reply = party.send(content)
    assert reply.error.reason == FAILED_TEXT
    assert not party.file.path.exists()


def test_clients_that_answer_wrongly_or_not_at_all_are_named_and_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(worker: int, message: Message) -> Iterable[Message]:
        if worker == 0:
            yield Message(RecordDict({"anything": ConfigRecord({"x": "\x1b[31m"})}), reply_to=message)
        elif worker == 1:
            yield Message(Error(1, "no"), reply_to=message)
        elif worker == 2:
            yield from (Message(RecordDict(), reply_to=message) for _ in range(3))

    experiment = _opened(tmp_path)
    grid = LocalGrid(4, answer)
    with caplog.at_level(logging.INFO, "breakwater.server"):
        send_model(experiment, grid, experiment.problem.initial())
    assert "2 of 4 connected clients took the final model" in caplog.text
    assert "the final model did not reach client-1, client-3" in caplog.text
    assert grid.timeouts == [experiment.config.federation.longest_deadline_s]


def test_a_transport_that_fails_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = _opened(tmp_path)

    def answer(worker: int, message: Message) -> Iterable[Message]:
        raise ConnectionError("the SuperLink is gone")

    send_model(experiment, LocalGrid(4, answer), experiment.problem.initial())
    assert "could not be sent to the clients: ConnectionError: the SuperLink is gone" in caplog.text


def _opened(place: Path) -> Experiment:
    path = federation(place, f=0)
    return open_config(load(path), place / "server", path.parent).settled(Agreement(samples=10))
