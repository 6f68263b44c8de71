"""The live link on a Flower deployment: nodes are invited with one Flower message each and stay for the run.

Flower is stood in for by a Grid whose nodes are threads that run the ClientApp; the link between them is the real one,
TLS and all. tests/flower has the same with a SuperLink and SuperNodes.
"""

import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict

from client.app import app as client_app
from examples.plain_loop import trajectory
from experiment.opened import open_experiment
from foundation.errors import ConfigError
from link import flwr_compat
from link.identity.authority import Authority
from link.invitation import JOIN, Invitation
from link.polled import PolledGrid
from link.seats import Seat
from server import bridge
from server.app import app as server_app
from strategies.strategy import NoClientsError
from tests.integration.processes import SOON_S, free_address, rounds_of, summary_of
from tests.local_grid import LocalGrid
from tests.saved import x_of

pytestmark = pytest.mark.slow

TEXT = """
[federation]
clients = 4
byzantine = 1
seed = 5
join_timeout_s = 60.0
deadline_s = 20.0
[task]
kind = "digits"
model = "softmax"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 40
gamma = 0.3
p = 0.2
cohort = 3
batch = 8
alpha = 2.0
[compressor]
kind = "rand-k"
ratio = 0.2
[attack]
kind = "alie"
view = "omniscient"
"""


class Nodes(LocalGrid):
    """SuperNodes: each runs the ClientApp in a thread of its own, one message at a time."""

    def __init__(self, clients: int, **given: str | int) -> None:
        super().__init__(clients, lambda worker, message: ())
        self.given = given
        self.attackers = 1
        self.config = ""
        self.joined: list[int] = []
        self.threads: list[threading.Thread] = []
        self._answers: list[Message] = []

    def node_config(self, worker: int) -> dict[str, str | float | bool]:
        attacks = worker >= len(self.online) - self.attackers
        byzantine: dict[str, str | float | bool] = {"attack": "alie"} if attacks else {}
        return {"partition-id": worker, **byzantine, **self.given}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        batch = list(messages)
        ids = super().push_messages(batch)
        for message in batch:
            thread = threading.Thread(target=self._run, args=(message,), daemon=True)
            thread.start()
            self.threads.append(thread)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        found = [reply for reply in self._answers if reply.metadata.reply_to_message_id in wanted]
        self._answers = [reply for reply in self._answers if reply not in found]
        return found

    def _run(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        worker = next(worker for worker, at in self.nodes().items() if at == node)
        run_config: dict[str, str | float | bool] = {"config": self.config}
        context = Context(self.run_id, node, self.node_config(worker), RecordDict(), run_config)
        self.joined.append(worker)
        try:
            reply = client_app(message, context)
        except Exception as error:  # as Flower reports it
            reply = Message(Error(flwr_compat.APP_RAISED, repr(error)), reply_to=message)
        self._answers.append(reply)


def serve(grid: Nodes, out: Path, address: str, text: str = TEXT) -> None:
    path = out.with_name("config.toml")
    path.write_text(text, encoding="utf-8")
    grid.config = str(path)
    run_config: dict[str, str | float | bool] = {"config": grid.config, "out": str(out), "link": address}
    server_app(grid, Context(grid.run_id, 1, {}, RecordDict(), run_config))


def test_one_message_a_node_and_the_trajectory_of_a_plain_loop(tmp_path: Path) -> None:
    grid = Nodes(4)
    serve(grid, tmp_path / "run", free_address())
    *_, x = trajectory(open_experiment(TEXT, None, None))
    assert np.array_equal(x_of(tmp_path / "run"), x)
    assert sorted(grid.joined) == [0, 1, 2, 3]
    assert sum(len(batch) for batch in grid.pushed) == 4
    assert summary_of(tmp_path / "run")["bytes_up"] > 0
    assert all(not line["rejected"] for line in rounds_of(tmp_path / "run"))
    for thread in grid.threads:
        thread.join(SOON_S)
    assert not [thread for thread in grid.threads if thread.is_alive()]


class Link:
    """The seats of a link, by name; the rest of it is not there."""

    def __init__(self, **connected: bool) -> None:
        self.connected = {name.replace("_", "-"): there for name, there in connected.items()}

    def seats(self) -> dict[int, Seat]:
        return {i: Seat(name, i, i, there) for i, (name, there) in enumerate(self.connected.items())}

    def vacate(self, name: str) -> None:
        assert not self.connected.pop(name)


def invited(grid: LocalGrid) -> list[int]:
    """Return the nodes that were invited, in order."""
    return [message.metadata.dst_node_id for batch in grid.pushed for message in batch]


def test_nodes_are_invited_when_they_come_and_again_when_they_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("server.bridge.time.monotonic", lambda: now[0])
    grid = LocalGrid(3, lambda worker, message: ())
    grid.online = {0, 1}
    link = Link()
    host = bridge._Host(PolledGrid(grid), link, Authority.create(), "a:1")  # type: ignore[arg-type]  # enough of a link
    host._look()
    host._look()
    assert invited(grid) == [100, 101]
    grid.online.add(2)
    link.connected = {"node-100": True}
    now[0] += 60
    host._look()
    assert invited(grid) == [100, 101, 102]
    now[0] += 60  # the first one was here until now; the second one never came
    host._look()
    assert invited(grid) == [100, 101, 102, 101]


def test_a_seat_is_given_up_when_flower_says_that_its_node_has_gone() -> None:
    """A SuperNode without a key comes back under another node id, and claims the same partition."""
    grid = LocalGrid(3, lambda worker, message: ())
    link = Link(node_100=False, node_101=False, node_102=True)
    grid.online = {0}
    bridge._Host(PolledGrid(grid), link, Authority.create(), "a:1")._look()  # type: ignore[arg-type]  # enough of a link
    assert link.connected == {"node-100": False, "node-102": True}


def test_attackers_on_several_nodes_act_as_one_coalition(tmp_path: Path) -> None:
    grid = Nodes(7)
    grid.attackers = 3
    text = TEXT.replace("clients = 4\nbyzantine = 1", "clients = 7\nbyzantine = 3").replace("cohort = 3", "cohort = 5")
    serve(grid, tmp_path / "run", free_address(), text)
    *_, x = trajectory(open_experiment(text, None, None))
    assert np.array_equal(x_of(tmp_path / "run"), x)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"partition-id": 9}, "partition-id = 9: must be 0 .. 3"),
        ({"attak": "alie"}, "attak: unknown key; did you mean attack?"),
        ({"set": "attack.z='1"}, "No closing quotation"),
    ],
)
def test_a_node_config_at_fault_is_told_to_both_ends(
    given: dict[str, str | int], words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = TEXT.replace("join_timeout_s = 60.0", "join_timeout_s = 3.0")
    logger = logging.getLogger("breakwater")
    logger.addHandler(caplog.handler)
    try:
        with pytest.raises(NoClientsError, match="0 of 4 clients joined"):
            serve(Nodes(4, **given), tmp_path / "run", free_address(), text)
    finally:
        logger.removeHandler(caplog.handler)
    told = [record for record in caplog.records if words in record.getMessage()]
    assert {record.name for record in told} == {"breakwater.client", "breakwater.server"}


@pytest.mark.parametrize("address", ["here", "host:", ":9090", "host:0", "host:70000", "host:x"])
def test_an_address_that_is_none(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run config: link = .*: must be HOST:PORT"):
        serve(Nodes(4), tmp_path / "run", address)


def test_simulated_nodes_cannot_stay(tmp_path: Path) -> None:
    class InMemoryGrid(Nodes):
        """What Flower's simulation calls its own."""

    with pytest.raises(ConfigError, match="simulated nodes share processes"):
        serve(InMemoryGrid(4), tmp_path / "run", free_address())


def test_what_is_no_invitation() -> None:
    with pytest.raises(ConfigError, match="not an invitation to a link: address is missing or no str"):
        Invitation.read(RecordDict())
    content = Invitation("a:1", b"", b"", b"").write()
    assert Invitation.read(content) == Invitation("a:1", b"", b"", b"")
    content.config_records[JOIN]["key"] = "text"
    with pytest.raises(ConfigError, match="not an invitation to a link: key is missing or no bytes"):
        Invitation.read(content)
