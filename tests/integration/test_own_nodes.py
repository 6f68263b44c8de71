"""Flower nodes with data of their own, each message in a new process as far as the node can tell."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client import app as nodes
from client import invited
from deploy.inprocess import run_in_process
from deploy.local import LocalOptions
from experiment.code import code_fingerprint
from experiment.config import load
from experiment.opened import open_config
from foundation.errors import ConfigError, RunEndedError
from link.flwr_compat import instruction
from link.invitation import JOIN, WHO
from link.queried import QueriedGrid
from link.wire import Payload
from server.link import judge_of
from server.monitor.exporters import Monitoring
from server.run import run
from server.run_folder.writer import RunFolder
from strategies.method import Vector
from tests.integration import test_bytes_accounted as bytes_accounted
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.parties import federation
from tests.saved import x_of

SILENT = Monitoring(quiet=True, pictures=False)


class Nodes:
    """A ClientApp's process for every message, and what Flower keeps of each node.

    Args:
        path: of the config.
        folders: the ``data`` of each node config; None for the sub-folders of the run's.
    """

    def __init__(self, path: Path, folders: list[Path] | None = None, **node_config: Any) -> None:
        given: dict[str, Any] = {"config": str(path), "data": str(path.parent / "parties")}
        self.said: list[Message] = []
        self.contexts = []
        for worker in range(4):
            own: dict[str, Any] = {"partition-id": worker, **node_config}
            if folders is not None:
                own["data"] = str(folders[worker])
            context = Context(
                run_id=7, node_id=FIRST_NODE + worker, node_config=own, state=RecordDict(), run_config=given
            )
            self.contexts.append(context)

    def answer(self, worker: int, message: Message) -> Iterable[Message]:
        for cached in (nodes._parties_of, nodes._nodes_of, nodes._loaded):
            cached.cache_clear()
        came = instruction(
            message.content,
            run_id=7,
            node_id=FIRST_NODE + worker,
            message_id=message.metadata.message_id,
            message_type=message.metadata.message_type,
            group_id="",
            ttl_s=60.0,
        )
        reply = nodes.app(came, self.contexts[worker])
        self.said.append(reply)
        yield reply


def through_flower(path: Path, out: Path, seats: Nodes, monkeypatch: pytest.MonkeyPatch) -> Vector:
    monkeypatch.setattr(QueriedGrid, "POLL_S", 0.01)
    experiment = open_config(load(path), path.parent / "server", path.parent)
    grid = QueriedGrid(LocalGrid(4, seats.answer), 4, code_fingerprint(), 5.0, judge_of(experiment))
    with RunFolder(out, None) as folder:
        run(experiment, folder, grid, SILENT)
    return x_of(out)


@pytest.mark.parametrize("method", ["byz-vr-marina-pp", "robust-momentum-sgd"])
def test_nodes_with_their_own_folders_give_the_bits_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    path = federation(tmp_path, f=0)
    path.write_text(path.read_text().replace("rounds = 6", "rounds = 2"))
    if method != "byz-vr-marina-pp":
        text = path.read_text().replace('kind = "byz-vr-marina-pp"', f'kind = "{method}"')
        path.write_text(text.replace("p = 0.5\n", "").replace("cohort = 3\n", ""))
    folders = [tmp_path / "parties" / f"p{worker}" for worker in range(4)]
    named = method == "robust-momentum-sgd"
    seats = Nodes(path, folders, config=str(path)) if named else Nodes(path)
    found = through_flower(path, tmp_path / "flower", seats, monkeypatch)
    options = LocalOptions(config=load(path), out=tmp_path / "one", config_dir=tmp_path, monitoring=SILENT)
    run_in_process(replace(options, data=tmp_path / "parties", server_data=tmp_path / "server"))
    assert np.array_equal(found, x_of(tmp_path / "one"))


def test_a_node_says_no_word_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = federation(tmp_path, f=0)
    path.write_text(path.read_text().replace("join_timeout_s = 30.0", "join_timeout_s = 0.1"))
    (tmp_path / "parties" / "p2" / "points.csv").write_text("1,2,3,HIV+\n")
    seats = Nodes(path)
    with pytest.raises(RunEndedError, match="1 of 4 nodes: cannot take part: failed: the client's own log"):
        through_flower(path, tmp_path / "out", seats, monkeypatch)
    assert "HIV" not in "".join(map(repr, (reply.content for reply in seats.said if reply.has_content())))


def test_nodes_with_tables_answer_with_what_is_declared_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        bytes_accounted.visits(tmp_path / "parties" / f"p{i}", i)
    (tmp_path / "server").mkdir()
    path = tmp_path / "study.toml"
    text = bytes_accounted.CONFIG.format(clients=4, more="", task=bytes_accounted.TABLE)
    path.write_text(text.replace("rounds = 6", "rounds = 3").replace("byzantine = 1", "byzantine = 0"))
    seats = Nodes(path)
    through_flower(path, tmp_path / "out", seats, monkeypatch)
    kinds = Counter[str]()
    for reply in seats.said:
        content = reply.content
        who = content.config_records.get(WHO)
        if who is None:
            kinds[bytes_accounted.kind_of_answer(content, 5)] += 1
        else:
            assert who.keys() == {"fingerprint", "version", "task", "index"}
            bytes_accounted.check_declaration(str(who["task"]))
        bytes_accounted.no_marker_in(Payload(content).envelope(), "a reply")
    assert kinds == {"breakwater_statistics": 4, "p": 12, "measures": 8, "model": 4}
    for file in (tmp_path / "out").rglob("*.*"):
        bytes_accounted.no_marker_in(file.read_bytes(), str(file))


@pytest.mark.parametrize("error", [ValueError("HIV+"), ConfigError("HIV+"), KeyError("HIV+")])
def test_an_invited_node_that_cannot_take_part_says_no_word_of_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def take_part(*_: object) -> str:
        raise error

    monkeypatch.setattr(invited, "take_part", take_part)
    (reply,) = Nodes(federation(tmp_path)).answer(0, Message(RecordDict(), FIRST_NODE, f"query.{JOIN}", ttl=9.0))
    assert reply.error.reason == "failed: the client's own log has the reason"


def test_a_node_whose_owner_has_another_config_does_not_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = federation(tmp_path, f=0)
    path.write_text(path.read_text().replace("join_timeout_s = 30.0", "join_timeout_s = 0.1"))
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace("batch = 8", "batch = 12"))
    with pytest.raises(RunEndedError):
        through_flower(path, tmp_path / "out", Nodes(path, config=str(other)), monkeypatch)
    assert "[strategy] batch: the server has 8, the file given has 12" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("min-batch", 0, "must be a whole number from 1 up"),
        ("max-rounds", "x", "must be a whole number from 1 up"),
        ("evaluation", 1, "must be true or false"),
    ],
)
def test_limits_in_a_node_config_are_checked(tmp_path: Path, key: str, value: object, said: str) -> None:
    seats = Nodes(federation(tmp_path), None, **{key: value})
    message = Message(RecordDict(), FIRST_NODE, "query.breakwater_worker", ttl=9.0)
    (reply,) = seats.answer(0, message)
    assert said in str(reply.content.config_records["breakwater_worker"]["flaw"])
